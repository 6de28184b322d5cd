internal import BrokerBasics
package import WireProtocol

// How it works. Every record names itself (RecordTag), and what it must look like follows from its
// name (ReplayStream). So the queue is read once, from its start, and each record is held against
// its name on the way: was it sent, to this partition, in these bytes, after what its producer and
// its key had before, and not yet seen? What remains is to ask of each confirmed record whether it
// was seen, and where. Memory: 8 bytes per record sent.

/// A promise that was broken.
package enum Violation: Equatable, Hashable, Sendable {
    /// Confirmed, and not there; in a queue below `synced`: nor in a range that is said to be lost.
    case missing
    case duplicate
    /// Behind a record that its producer, or its key, had later.
    case reordered
    /// Another value, key, trace context, timestamp or header than was sent.
    case changed
    /// There, or delivered, but never sent.
    case neverSent
    /// In a partition that its key does not belong to.
    case wrongPartition
    /// There, but not at the offset that the confirm named.
    case misplaced
    /// Offsets that no record has, and that are not said to be lost.
    case hole
    /// Offsets of a `synced` queue that are said to be lost.
    case lostRange
    /// Delivered while the queue was in use, and not in it afterwards.
    case phantom
    /// In the queue, and not delivered to whoever read all along.
    case undelivered
    /// Delivered to a group again, although its ack had been confirmed.
    case redelivered
    /// An answer that the protocol does not allow.
    case badAnswer
}

/// Holds what is read back from a queue against what was sent to it.
package struct HistoryChecker {
    package struct Report: Sendable {
        package var sent = 0
        package var confirmed = 0
        package var read = 0
        package var traced = 0
        /// Offsets that the broker says are lost.
        package var lostOffsets: UInt64 = 0
        /// Records among them that had been confirmed: the exact loss.
        package var lostConfirmed = 0
        /// Never confirmed, and there all the same.
        package var unconfirmedButThere = 0
        package var delivered = 0
        /// Records that a reader had got before the broker lost them.
        package var deliveredThenLost = 0
        package var counts: [Violation: Int] = [:]
        /// The first of each kind, in words.
        package var examples: [(violation: Violation, text: String)] = []

        package var isGood: Bool { counts.isEmpty }

        package mutating func add(_ violation: Violation, _ text: @autoclosure () -> String) {
            counts[violation, default: 0] += 1
            if counts[violation, default: 0] <= Self.examplesMax {
                examples.append((violation, text()))
            }
        }
        private static let examplesMax = 3
    }

    private struct Partition {
        var nextOffset: UInt64
        var lost: [Range<UInt64>] = []
        /// Per producer: the highest record number so far, plus one.
        var nextNumbers: [UInt64]
    }

    private let level: DurabilityLevel
    private let histories: [SentHistory]
    /// The place of each producer in `histories`.
    private let places: [UInt32: Int]
    private var partitions: [Partition]
    /// Per history and record: the offset where it was read.
    private var seen: [[UInt64]]
    /// Per history and key: the highest record number so far, plus one.
    private var keys: [[UInt64]]
    private var report = Report()

    private static let unseen = UInt64.max

    /// - Parameter startOffsets: where each partition begins, by index.
    package init(level: DurabilityLevel, startOffsets: [UInt64], histories: [SentHistory]) {
        self.level = level
        self.histories = histories
        places = Dictionary(
            uniqueKeysWithValues: histories.enumerated().map { ($1.stream.producer, $0) }
        )
        partitions = startOffsets.map {
            Partition(
                nextOffset: $0,
                nextNumbers: [UInt64](repeating: 0, count: histories.count)
            )
        }
        seen = histories.map { [UInt64](repeating: Self.unseen, count: $0.sentCount) }
        keys = histories.map { [UInt64](repeating: 0, count: $0.stream.keyCount) }
        report.sent = histories.reduce(0) { $0 + $1.sentCount }
        report.confirmed = histories.reduce(0) { $0 + $1.confirmedCount }
        for history in histories {
            for fault in history.faults { report.add(.badAnswer, fault) }
        }
    }

    // MARK: Reading back

    /// Takes the next record of the partition with this index, in the order in which they come.
    package mutating func read(_ record: Record, partition: Int, offset: UInt64) {
        report.read += 1
        if record.trace != nil { report.traced += 1 }
        advance(partition, from: offset, to: offset + 1)
        guard let (history, tag) = identify(record) else {
            report.add(.neverSent, "partition \(partition) offset \(offset): nobody sent it")
            return
        }
        let stream = histories[history].stream
        let number = tag.number
        if let difference = Self.difference(record, stream.record(number)) {
            report.add(
                .changed,
                "\(tag), partition \(partition) offset \(offset): another \(difference)"
            )
        }
        if stream.partition(of: number) != partition {
            report.add(
                .wrongPartition,
                "\(tag) is in partition \(partition), not \(stream.partition(of: number))"
            )
        }
        let earlier = seen[history][Int(number)]
        guard earlier == Self.unseen else {
            report.add(
                .duplicate,
                "\(tag) is in partition \(partition) at offset \(offset) and before at \(earlier)"
            )
            return
        }
        seen[history][Int(number)] = offset
        let next = partitions[partition].nextNumbers[history]
        let key = stream.key(of: number)
        if number < next || number < keys[history][key] {
            report.add(
                .reordered,
                "\(tag), partition \(partition) offset \(offset), comes behind record "
                    + "\(max(next, keys[history][key]) - 1)"
            )
        }
        partitions[partition].nextNumbers[history] = max(next, number + 1)
        keys[history][key] = max(keys[history][key], number + 1)
    }

    /// Takes a range that the broker says is lost.
    package mutating func lost(_ range: Range<UInt64>, partition: Int) {
        advance(partition, from: range.lowerBound, to: range.upperBound)
        partitions[partition].lost.append(range)
        report.lostOffsets += UInt64(range.count)
        // A killed process takes nothing of what was written.
        if level > .memory {
            report.add(.lostRange, "partition \(partition): offsets \(range) are said to be lost")
        }
    }

    /// Takes the end of a partition, after all of it was read.
    package mutating func end(_ offset: UInt64, partition: Int) {
        guard partitions[partition].nextOffset != offset else { return }
        report.add(
            .hole,
            "partition \(partition) was read up to \(partitions[partition].nextOffset), its end "
                + "is \(offset)"
        )
    }

    private mutating func advance(_ partition: Int, from offset: UInt64, to end: UInt64) {
        let next = partitions[partition].nextOffset
        if offset != next {
            report.add(
                .hole,
                "partition \(partition): offset \(offset) where \(next) was to come"
            )
        }
        partitions[partition].nextOffset = max(next, end)
    }

    /// Whose record it is; `nil` when nobody sent it.
    private func identify(_ record: Record) -> (history: Int, tag: RecordTag)? {
        guard let tag = RecordTag(of: record), let history = places[tag.producer],
            tag.number < UInt64(histories[history].sentCount)
        else { return nil }
        return (history, tag)
    }

    /// What differs, in a word; `nil` when both are the same, byte for byte.
    package static func difference(_ record: Record, _ sent: Record) -> String? {
        if record.value != sent.value { return "value" }
        if record.key != sent.key { return "key" }
        if record.trace != sent.trace { return "trace context" }
        if record.timestamp != sent.timestamp { return "timestamp" }
        if record.headers != sent.headers { return "header" }
        return nil
    }

    // MARK: What readers got meanwhile

    /// Takes what a reader got while the queue was in use; call it when all is read back.
    ///
    /// - Parameter isComplete: it read from the start to the end, so it must have got everything.
    package mutating func delivered(_ log: DeliveryLog, isComplete: Bool) {
        report.delivered += log.deliveries.count
        for (violation, text) in log.violations { report.add(violation, text) }
        var got = histories.map { [Bool](repeating: false, count: $0.sentCount) }
        for delivery in log.deliveries {
            guard let history = places[delivery.tag.producer],
                delivery.tag.number < UInt64(histories[history].sentCount)
            else {
                report.add(.neverSent, "delivered: \(delivery), but nobody sent it")
                continue
            }
            let number = Int(delivery.tag.number)
            got[history][number] = true
            let isThere =
                seen[history][number] == delivery.offset
                && histories[history].stream.partition(of: delivery.tag.number)
                    == Int(delivery.partition)
            if isThere { continue }
            if isLost(delivery.offset, partition: Int(delivery.partition)) {
                report.deliveredThenLost += 1
            } else {
                report.add(.phantom, "delivered: \(delivery), but it is not there")
            }
        }
        guard isComplete else { return }
        for (history, numbers) in seen.enumerated() {
            for (number, offset) in numbers.enumerated()
            where offset != Self.unseen && !got[history][number] {
                report.add(
                    .undelivered,
                    "producer \(histories[history].stream.producer) record \(number) at offset "
                        + "\(offset)"
                )
            }
        }
    }

    private func isLost(_ offset: UInt64, partition: Int) -> Bool {
        partitions.indices.contains(partition)
            && partitions[partition].lost.contains { $0.contains(offset) }
    }

    // MARK: The verdict

    /// Asks for every confirmed record; call it last.
    package mutating func finish() -> Report {
        for (place, history) in histories.enumerated() {
            for number in 0..<UInt64(history.sentCount) {
                check(number, of: history, seenAt: seen[place][Int(number)])
            }
        }
        return report
    }

    private mutating func check(_ number: UInt64, of history: SentHistory, seenAt offset: UInt64) {
        let partition = history.stream.partition(of: number)
        let tag = RecordTag(producer: history.stream.producer, number: number)
        switch history.outcome(number) {
        case .unconfirmed:
            if offset != Self.unseen { report.unconfirmedButThere += 1 }
        case .confirmed(let place) where offset == Self.unseen:
            if level == .memory, isLost(place, partition: partition) {
                report.lostConfirmed += 1
            } else {
                report.add(
                    .missing,
                    "\(tag), confirmed at offset \(place) of partition \(partition)"
                )
            }
        case .confirmed(let place):
            if place != offset {
                report.add(
                    .misplaced,
                    "\(tag) is at offset \(offset) of partition \(partition), confirmed at "
                        + "\(place)"
                )
            }
        case .confirmedSomewhere:
            guard offset == Self.unseen else { return }
            if level == .memory, !partitions[partition].lost.isEmpty {
                report.lostConfirmed += 1
            } else {
                report.add(.missing, "\(tag), confirmed as a duplicate, partition \(partition)")
            }
        }
    }
}
