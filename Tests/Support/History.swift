internal import BrokerBasics
internal import BrokerShard
package import WireProtocol

/// What a scenario's clients asked for and were told: the oracle of every crash.
///
/// Values are made from (producer, sequence, partition), so that a wrong or changed record shows.
package final class History {
    package struct Sent: Sendable {
        package var producer: UInt64
        package var epoch: UInt16
        package var sequence: UInt64
        package var values: [[UInt8]]
        package var correlation: UInt64
        package var confirmedAt: UInt64?
        /// The run of the machine in which it was confirmed.
        package var confirmedIn = 0
    }
    package struct QueueFacts: Sendable {
        package var name: String
        package var level: DurabilityLevel
        package var partitions: [UInt32]
        package var isConfirmed = false
        package var deletionAsked = false
        package var deletionConfirmed = false
        /// The labels that were confirmed, and those asked for since.
        package var labels: [Pair] = []
        package var labelsAsked: [Pair]?
        /// The same for what is kept.
        package var retention = Retention.keepAll
        package var retentionAsked: Retention?
        /// The fewest records that a partition was ever to keep; 0: never fewer than all.
        package var recordsKeptMin: UInt64 = 0
    }
    package struct CursorKey: Hashable, Sendable {
        package var queue: String
        package var group: String
        package var partition: UInt32
    }

    package var queues: [String: QueueFacts] = [:]
    /// By partition, in the order of sending; retries are not sent anew.
    package var sent: [UInt32: [Sent]] = [:]
    package var acksConfirmed: [CursorKey: UInt64] = [:]
    package var acksAsked: [CursorKey: UInt64] = [:]
    /// What a live consumer was given, and the run of the machine in which it was.
    package var delivered: [UInt32: [UInt64: (value: [UInt8], run: Int)]] = [:]
    /// Power cuts so far: each begins another run of the machine.
    package var powerCuts = 0
    /// By partition: below it a purge may have removed records.
    package var purgeAsked: [UInt32: UInt64] = [:]
    /// By partition: somebody was told that it starts here.
    package var startsSeen: [UInt32: UInt64] = [:]
    package var producersOpened: [String: ProducerOpenReply] = [:]

    package init() {}

    package func level(of partition: UInt32) -> DurabilityLevel? {
        queues.values.first { $0.partitions.contains(partition) }?.level
    }

    package func sawStart(_ offset: UInt64, of partition: UInt32) {
        startsSeen[partition] = max(startsSeen[partition] ?? 0, offset)
    }

    package static func value(
        producer: UInt64, sequence: UInt64, partition: UInt32, bytes: Int
    ) -> [UInt8] {
        var value = Array("p\(producer) s\(sequence) q\(partition) ".utf8)
        var random = SeededRandom(seed: producer &* 31 &+ sequence &* 7 &+ UInt64(partition))
        while value.count < bytes { value.append(UInt8(truncatingIfNeeded: random.next())) }
        return value
    }

    /// Takes in the confirms that a client got.
    package func confirm(_ entries: [ConfirmEntry]) {
        for entry in entries {
            var offset = entry.baseOffset
            for request in 0..<UInt64(entry.requests) {
                let correlation = entry.correlation + request
                guard
                    let place = sent[entry.partition]?.firstIndex(where: {
                        $0.correlation == correlation
                    })
                else { continue }
                let count = UInt64(sent[entry.partition]?[place].values.count ?? 0)
                if sent[entry.partition]?[place].confirmedAt == nil {
                    sent[entry.partition]?[place].confirmedAt = offset
                    sent[entry.partition]?[place].confirmedIn = powerCuts
                }
                if offset != .max { offset += count }
            }
        }
    }
}

/// A broken promise, in a sentence.
package struct Violation: Error, Equatable, CustomStringConvertible {
    package var description: String
    package init(_ description: String) { self.description = description }
}

/// What a recovered broker shows, read back through its own protocol.
package struct ReadBack {
    package var queues: [String: QueueInfo] = [:]
    package var records: [UInt32: [SimulatedClient.Delivered]] = [:]
    package var lost: [SimulatedClient.Lost] = []
    package var cursors: [History.CursorKey: UInt64] = [:]
    /// Of the stored batches that were read, by partition.
    package var batchBytes: [UInt32: UInt64] = [:]
    package var hash: UInt64 = 0xCBF2_9CE4_8422_2325

    mutating func mix(_ bytes: some Sequence<UInt8>) {
        for byte in bytes { hash = (hash ^ UInt64(byte)) &* 0x0000_0100_0000_01B3 }
    }
    mutating func mix(_ value: UInt64) { withUnsafeBytes(of: value) { mix($0) } }

    /// Reads everything: queues, each partition from its start to its end, every group's cursors.
    package init(from shard: SimulatedShard) throws(Violation) {
        guard shard.run(until: { shard.isReady }) else {
            throw Violation("the recovered broker does not become ready")
        }
        // What retention has to remove at once is removed: a start that moved between what is said here and
        // what is read would look like a loss.
        shard.pass(milliseconds: 3)
        guard let client = shard.connect("reader"),
            let list = client.ask(.queueList, QueueListRequest(), reply: QueueListReply.self)
        else { throw Violation("the recovered broker does not list its queues") }
        var wanted: [UInt32: UInt64] = [:]
        var starts: [UInt32: UInt64] = [:]
        for (place, item) in list.queues.enumerated() {
            guard
                let info = client.ask(
                    .queueDescribe, QueueNameRequest(name: item.name), reply: QueueInfo.self)
            else { throw Violation("queue \(item.name) is listed and not described") }
            queues[item.name] = info
            mix(item.name.utf8)
            for label in info.labels {
                mix(label.name.utf8)
                mix(label.value.utf8)
            }
            guard client.subscribe(item.name, stream: UInt32(place + 1)) != nil else {
                throw Violation("queue \(item.name) can't be subscribed")
            }
            for partition in info.partitions {
                wanted[partition.id] =
                    partition.committedOffset > partition.startOffset
                    ? partition.committedOffset : 0
                starts[partition.id] = partition.startOffset
                mix(partition.startOffset)
                mix(UInt64(partition.id))
                mix(partition.committedOffset)
            }
        }
        func isRead() -> Bool {
            var ends: [UInt32: UInt64] = [:]
            for record in client.delivered { ends[record.partition] = record.offset + 1 }
            for lost in client.lost {
                ends[lost.partition] = max(ends[lost.partition] ?? 0, lost.range.upperBound)
            }
            return wanted.allSatisfy { $0.value == 0 || ends[$0.key] ?? 0 >= $0.value }
        }
        guard shard.run(steps: 3000, until: { isRead() || !client.pushes.isEmpty }), isRead() else {
            let ended = client.pushes.last.flatMap { try? Refusal(body: $0.body) }?.message
            throw Violation("not everything committed can be read back: \(ended ?? "no delivery")")
        }
        guard client.badBatches == 0 else { throw Violation("a delivered batch does not verify") }
        for (partition, end) in wanted where end > 0 {
            try Self.checkWhole(client, partition, from: starts[partition] ?? 0)
        }
        batchBytes = client.batchBytes
        // A batch that the start cuts is delivered whole.
        for record in client.delivered where record.offset >= starts[record.partition] ?? 0 {
            records[record.partition, default: []].append(record)
            mix(record.offset)
            mix(record.value)
        }
        lost = client.lost
        for range in lost {
            mix(range.range.lowerBound)
            mix(range.range.upperBound)
        }
        guard
            let groups = client.ask(.groupList, GroupListRequest(), reply: GroupListReply.self)
        else { throw Violation("the recovered broker does not list its groups") }
        for group in groups.groups {
            guard
                let info = client.ask(
                    .groupDescribe, GroupDescribeRequest(queue: group.queue, group: group.name),
                    reply: GroupInfo.self)
            else { throw Violation("group \(group.name) is listed and not described") }
            for cursor in info.cursors {
                cursors[
                    .init(queue: group.queue, group: group.name, partition: cursor.partition)] =
                    cursor.ackFloor
                mix(cursor.ackFloor)
            }
        }
    }
}

extension ReadBack {
    /// Nothing is passed over in silence: every offset is delivered, or told to be lost or skipped.
    private static func checkWhole(
        _ client: SimulatedClient, _ partition: UInt32, from start: UInt64
    ) throws(Violation) {
        var told = client.delivered.filter { $0.partition == partition }
            .map { $0.offset..<$0.offset + 1 }
        told += client.lost.filter { $0.partition == partition }.map(\.range)
        told += client.skipped.filter { $0.partition == partition && $0.from < $0.to }
            .map { $0.from..<$0.to }
        var next = start
        for range in told.sorted(by: { $0.lowerBound < $1.lowerBound }) {
            if range.lowerBound > next {
                throw Violation(
                    "partition \(partition): offsets \(next) ..< \(range.lowerBound) "
                        + "are passed over")
            }
            next = max(next, range.upperBound)
        }
    }
}

extension History {
    /// The promises of the design, section 6, held against what was read back.
    ///
    /// - Parameter killed: the process was killed in the present run of the machine, and nothing else
    ///   happened: what was written must be there.
    package func check(_ found: ReadBack, killed: Bool = false) throws(Violation) {
        for queue in queues.values {
            let exists = found.queues[queue.name] != nil
            if queue.isConfirmed, !queue.deletionAsked, !exists {
                throw Violation("queue \(queue.name) was confirmed and is gone")
            }
            if queue.deletionConfirmed, exists {
                throw Violation("queue \(queue.name) was deleted, confirmed, and is back")
            }
            if exists, queue.isConfirmed, let info = found.queues[queue.name],
                info.labels != queue.labels, info.labels != queue.labelsAsked
            {
                throw Violation("queue \(queue.name) has labels nobody asked for: \(info.labels)")
            }
            if exists, queue.isConfirmed, let retention = found.queues[queue.name]?.retention,
                retention != queue.retention, retention != queue.retentionAsked
            {
                throw Violation("queue \(queue.name) keeps what nobody asked for: \(retention)")
            }
            guard exists else { continue }
            for partition in queue.partitions { try check(partition, queue, found, killed) }
        }
        for (key, floor) in acksConfirmed {
            guard found.queues[key.queue] != nil else { continue }
            let recovered = found.cursors[key] ?? 0
            if recovered < floor {
                throw Violation(
                    "group \(key.group): ack of \(floor) in partition \(key.partition) was "
                        + "confirmed, but the floor is \(recovered)")
            }
            let start =
                found.queues[key.queue]?.partitions.first { $0.id == key.partition }?.startOffset
            if recovered > max(acksAsked[key] ?? floor, start ?? 0) {
                throw Violation("group \(key.group): the floor \(recovered) was never asked for")
            }
        }
    }

    private func check(
        _ partition: UInt32, _ queue: QueueFacts, _ found: ReadBack, _ killed: Bool
    ) throws(Violation) {
        /// Whether what was promised in run `run` of the machine must be there.
        func survives(_ run: Int) -> Bool {
            queue.level == .synced || (queue.level == .written && killed && run == powerCuts)
        }
        let records = found.records[partition] ?? []
        let lost = found.lost.filter { $0.partition == partition }
        var byOffset: [UInt64: SimulatedClient.Delivered] = [:]
        guard
            let info = found.queues[queue.name]?.partitions.first(where: { $0.id == partition })
        else { throw Violation("partition \(partition) of queue \(queue.name) is gone") }
        let start = info.startOffset
        try checkStart(info, queue)
        try checkCounts(info, records, found)
        var next = start
        var seen: Set<[UInt64]> = []
        for record in records {
            while let hole = lost.first(where: {
                $0.range.lowerBound == next || (next == start && $0.range.contains(start))
            }), !hole.range.isEmpty {
                next = hole.range.upperBound
            }
            guard record.offset == next else {
                throw Violation(
                    "partition \(partition): offset \(record.offset) comes where \(next) should")
            }
            next += 1
            byOffset[record.offset] = record
            guard seen.insert([record.producer, record.sequence]).inserted || record.producer == 0
            else {
                throw Violation(
                    "partition \(partition): sequence \(record.sequence) of producer "
                        + "\(record.producer) is stored twice")
            }
        }
        if queue.level == .synced, !lost.isEmpty {
            throw Violation("partition \(partition) is synced and lost \(lost[0].range)")
        }
        try checkOrder(partition, queue.level, records)
        for batch in sent[partition] ?? [] {
            guard let offset = batch.confirmedAt, offset != .max else { continue }
            for (place, value) in batch.values.enumerated() {
                let at = offset + UInt64(place)
                guard at >= start else { continue }
                if let record = byOffset[at] {
                    guard record.value == value else {
                        throw Violation(
                            "partition \(partition): offset \(at) was confirmed with another value")
                    }
                } else if survives(batch.confirmedIn)
                    || !lost.contains(where: { $0.range.contains(at) })
                {
                    throw Violation(
                        "partition \(partition): offset \(at) was confirmed at "
                            + "\(queue.level.name) and is gone without a trace")
                }
            }
        }
        for (offset, given) in delivered[partition] ?? [:] where offset >= start {
            guard byOffset[offset] != nil || survives(given.run) else { continue }
            guard byOffset[offset]?.value == given.value else {
                throw Violation(
                    "partition \(partition): offset \(offset) was delivered and is gone or changed")
            }
        }
    }

    /// Records are gone only where a purge was asked for, or where enough is left; and do not come back.
    private func checkStart(_ info: PartitionInfo, _ queue: QueueFacts) throws(Violation) {
        let (partition, start) = (info.id, info.startOffset)
        if start < startsSeen[partition] ?? 0 {
            throw Violation(
                "partition \(partition) starts at \(start), after it was said to start at "
                    + "\(startsSeen[partition] ?? 0): what was removed is back")
        }
        guard start > purgeAsked[partition] ?? 0 else { return }
        guard queue.recordsKeptMin > 0, info.endOffset - start >= queue.recordsKeptMin else {
            throw Violation(
                "partition \(partition) starts at \(start) and ends at \(info.endOffset): more is "
                    + "removed than anybody asked for")
        }
    }

    /// What is said of records and bytes is what can be read.
    private func checkCounts(
        _ info: PartitionInfo, _ records: [SimulatedClient.Delivered], _ found: ReadBack
    ) throws(Violation) {
        guard info.records == UInt64(records.count) else {
            throw Violation(
                "partition \(info.id) says \(info.records) records, and \(records.count) can be read"
            )
        }
        let bytes = found.batchBytes[info.id] ?? 0
        // A purge that cuts a segment leaves its front in the count.
        guard info.bytes == bytes || (purgeAsked[info.id] != nil && info.bytes > bytes) else {
            throw Violation(
                "partition \(info.id) says \(info.bytes) bytes, and \(bytes) can be read")
        }
    }

    /// Nothing that was not sent, and each producer's records in the order of their sequences.
    private func checkOrder(
        _ partition: UInt32, _ level: DurabilityLevel, _ records: [SimulatedClient.Delivered]
    ) throws(Violation) {
        var values: [[UInt64]: [UInt8]] = [:]
        for batch in sent[partition] ?? [] {
            for (place, value) in batch.values.enumerated() {
                values[[batch.producer, batch.sequence + UInt64(place)]] = value
            }
        }
        var last: [UInt64: UInt64] = [:]
        for record in records where record.producer != 0 {
            guard values[[record.producer, record.sequence]] == record.value else {
                throw Violation(
                    "partition \(partition): offset \(record.offset) holds what nobody sent")
            }
            if let before = last[record.producer] {
                let inOrder =
                    level == .synced
                    ? record.sequence == before + 1 : record.sequence > before
                guard inOrder else {
                    throw Violation(
                        "partition \(partition): sequence \(record.sequence) follows \(before)")
                }
            }
            last[record.producer] = record.sequence
        }
    }
}
