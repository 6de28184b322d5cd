internal import LogChecker
internal import WireProtocol

/// Holds what a recovered broker shows against what the clients were told before the cut.
struct Verdict {
    private(set) var faults: [String] = []
    private(set) var recordsRead = 0
    private(set) var recordsLostAsSaid = 0

    /// - Parameters:
    ///   - history: what was asked and told before the cut.
    ///   - found: what the broker shows.
    ///   - resent: by queue, what its producers were told when they sent everything again.
    init(
        _ history: ClientHistory,
        _ found: ReadBack,
        resent: [String: [ProducerHistory]] = [:]
    ) throws {
        for queue in history.queues {
            let exists = found.queues[queue.name] != nil
            if queue.createdAt != nil, queue.deleteAskedAt == nil, !exists {
                faults.append("queue \(queue.name) was confirmed and is gone")
            }
            if queue.deletedAt != nil, exists {
                faults.append("queue \(queue.name) was deleted, confirmed, and is back")
            }
            // Of what is damaged and said to be there is nothing to judge.
            guard let info = found.queues[queue.name], found.damaged[queue.name] == nil else {
                continue
            }
            let events = found.seen[queue.name] ?? []
            try judgeRecords(queue, info, events, resent[queue.name])
            if queue.isSynced { judgeRuns(queue, events) }
            judgeKills(queue)
            judgeCursors(queue, info, found)
        }
        let known = Set(history.queues.map(\.name))
        for name in found.queues.keys where !known.contains(name) {
            faults.append("queue \(name) is there, and nobody had asked for it")
        }
    }

    /// By the checker that shares no code with the broker.
    private mutating func judgeRecords(
        _ queue: QueueHistory,
        _ info: QueueInfo,
        _ events: [Seen],
        _ resent: [ProducerHistory]?
    ) throws {
        let lines = Self.events(queue, info, events, resent)
        let report = try LogChecker.check(LogHistory(lines))
        faults += report.faults.map { "queue \(queue.name): \($0)" }
        let hidden = report.counts.values.reduce(0, +) - report.faults.count
        if hidden > 0 { faults.append("queue \(queue.name): \(hidden) more") }
        recordsRead += events.count
        recordsLostAsSaid += report.lostAsSaid
    }

    private static func events(
        _ queue: QueueHistory,
        _ info: QueueInfo,
        _ events: [Seen],
        _ resent: [ProducerHistory]?
    ) -> [LogEvent] {
        // A cut takes what was only written as it takes what was in memory.
        let level: LogEvent.Level = queue.isSynced ? .synced : .memory
        var lines: [LogEvent] = []
        for producer in queue.producers {
            let again = resent?.first { $0.name == producer.name }
            for (number, batch) in producer.batches.enumerated() {
                let second = again?.batches[number]
                let isConfirmed = batch.confirmedAt != nil || second?.confirmedAt != nil
                let base = batch.offset ?? second?.offset
                for (place, record) in batch.records(producer.name).enumerated() {
                    let sequence = batch.first + UInt64(place)
                    lines.append(
                        .published(
                            .init(
                                producer: producer.name,
                                sequence: sequence,
                                partition: UInt64(batch.partition),
                                payload: RecordSource.hash(record),
                                level: level
                            )
                        )
                    )
                    guard isConfirmed else { continue }
                    lines.append(
                        .confirmed(
                            .init(
                                producer: producer.name,
                                sequence: sequence,
                                partition: UInt64(batch.partition),
                                offset: base.map { $0 + UInt64(place) },
                                level: level
                            )
                        )
                    )
                }
            }
        }
        let partitions = info.partitions.sorted { $0.index < $1.index }
        var orders: [String: UInt64] = [:]
        func add(_ seen: Seen) {
            let order = orders[seen.reader, default: 0]
            orders[seen.reader] = order + 1
            switch seen.what {
            case .record(let offset, let epoch, let payload):
                lines.append(
                    .delivered(
                        .init(
                            reader: seen.reader,
                            order: order,
                            partition: UInt64(seen.partition),
                            offset: offset,
                            epoch: UInt64(epoch),
                            payload: payload
                        )
                    )
                )
            case .lost(let from, let to, let epoch):
                lines.append(
                    .lost(
                        .init(
                            reader: seen.reader,
                            order: order,
                            partition: UInt64(seen.partition),
                            offsets: from..<to,
                            epoch: UInt64(epoch)
                        )
                    )
                )
            }
        }
        for reader in Set(queue.seen.map(\.reader)).sorted() {
            for index in partitions.indices {
                lines.append(.began(reader: reader, partition: UInt64(index), offset: 0))
            }
        }
        for seen in queue.seen { add(seen) }
        lines.append(.crash)
        for (index, partition) in partitions.enumerated() {
            lines.append(
                .began(
                    reader: "afterwards",
                    partition: UInt64(index),
                    offset: partition.startOffset
                )
            )
        }
        for seen in events { add(seen) }
        for (index, partition) in partitions.enumerated() {
            lines.append(
                .end(
                    reader: "afterwards",
                    partition: UInt64(index),
                    offset: partition.committedOffset
                )
            )
        }
        return lines
    }

    /// The kills before the cut take nothing of what was written; only the cut may.
    private mutating func judgeKills(_ queue: QueueHistory) {
        guard queue.level > DurabilityLevel.memory.rawValue else { return }
        for seen in queue.seen where !seen.isRecovered {
            if case .lost(let from, let to, _) = seen.what {
                faults.append("queue \(queue.name): \(from) to \(to) were lost in a kill")
            }
        }
    }

    /// At `synced` each producer's records of a partition are there from its first one on, without a
    /// hole: what was sent later is not stored without what was sent before.
    private mutating func judgeRuns(_ queue: QueueHistory, _ events: [Seen]) {
        var found: [Int: Set<UInt64>] = [:]
        for seen in events {
            if case .record(_, _, let payload) = seen.what {
                found[seen.partition, default: []].insert(payload)
            }
        }
        for producer in queue.producers {
            var missing: [Int: UInt64] = [:]
            for batch in producer.batches {
                for (place, record) in batch.records(producer.name).enumerated() {
                    let number = batch.first + UInt64(place)
                    if found[batch.partition]?.contains(RecordSource.hash(record)) != true {
                        missing[batch.partition] = missing[batch.partition] ?? number
                    } else if let hole = missing[batch.partition] {
                        faults.append(
                            "queue \(queue.name): record \(number) of \(producer.name) is there, "
                                + "and \(hole) before it is not"
                        )
                        return
                    }
                }
            }
        }
    }

    /// Not behind what was confirmed, and not beyond what was asked for or what there is.
    private mutating func judgeCursors(
        _ queue: QueueHistory,
        _ info: QueueInfo,
        _ found: ReadBack
    ) {
        for acks in queue.acks {
            let key = ReadBack.Cursor(
                queue: queue.name,
                group: acks.group,
                partition: acks.partition
            )
            let floor = found.cursors[key] ?? 0
            let confirmed = acks.confirmed.map(\.offset).max() ?? 0
            let asked = max(confirmed, acks.asked.map(\.offset).max() ?? 0)
            let place = "group \(acks.group) of \(queue.name), partition \(acks.partition)"
            if floor < confirmed {
                faults.append("\(place): ack of \(confirmed) was confirmed, the floor is \(floor)")
            }
            if floor > asked {
                faults.append("\(place): the floor \(floor) was never asked for, \(asked) was")
            }
            let end = info.partitions.first { Int($0.index) == acks.partition }?.endOffset ?? 0
            if floor > end {
                faults.append("\(place): the floor is \(floor), the end \(end)")
            }
        }
    }
}
