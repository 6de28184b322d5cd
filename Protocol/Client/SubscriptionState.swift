package import WireProtocol

/// What a subscription tells its user, in the order in which the server said it.
package enum SubscriptionEvent: Equatable, Sendable {
    case records(DeliveredBatch)
    case lost(LostRange)
    /// Records were removed before they were delivered; what comes next is behind them.
    case skipped(Skipped)
    /// The partitions that are read from here on; those that are missing are fenced.
    case assigned(Assignment)
    /// "Everything below `offset` is done" is stored.
    case acked(Ack)
    case ackRefused(partition: UInt32, Refused)
    /// Nothing more comes: the queue was deleted, for example.
    case ended(Refused)
}

/// The bookkeeping of one subscription: positions, credit and acks, without a socket.
///
/// Frames go in, events come out; `creditDue` and `makeAck` say what to send.
package struct SubscriptionState {
    /// How much may be on its way. Credit is topped up when half of either is used.
    package struct Window: Equatable, Sendable {
        package var records: UInt64
        package var bytes: UInt64
        package init(records: UInt64 = 8_192, bytes: UInt64 = 4 << 20) {
            self.records = records
            self.bytes = bytes
        }
    }

    private struct Position {
        var nextOffset: UInt64
        var epoch: UInt32
    }

    package private(set) var assignment: Assignment
    package private(set) var hasEnded = false
    private let window: Window
    private var positions: [UInt32: Position] = [:]
    /// Totals since the subscription began; so is credit.
    private var deliveredRecords: UInt64 = 0
    private var deliveredBytes: UInt64 = 0
    private var granted: Credit
    /// Acks that have no answer yet, by correlation id.
    private var pendingAcks: [UInt64: Ack] = [:]

    /// - Parameter window: what the subscribe request granted.
    package init(assignment: Assignment, window: Window) {
        self.assignment = assignment
        self.window = window
        granted = Credit(records: window.records, bytes: window.bytes)
        adopt(assignment)
    }

    private mutating func adopt(_ assignment: Assignment) {
        self.assignment = assignment
        var kept: [UInt32: Position] = [:]
        for partition in assignment.partitions {
            // A partition that stays keeps its place in the stream.
            kept[partition.partition] =
                positions[partition.partition]
                ?? Position(nextOffset: partition.nextOffset, epoch: partition.epoch)
        }
        positions = kept
    }

    /// The first offset of `partition` that was not delivered yet; `nil` when it is not assigned.
    package func nextOffset(of partition: UInt32) -> UInt64? { positions[partition]?.nextOffset }

    package var unansweredAcks: Int { pendingAcks.count }

    /// True for a frame that belongs to the subscription with the id `stream`.
    package func owns(_ frame: Frame, stream: UInt32) -> Bool {
        switch frame.opcode {
        case .deliver, .assignment, .ended, .skipped: return frame.header.stream == stream
        // The answer to an ack is known by its number as well: an error says no more than that.
        case .ack, .credit, .error:
            if pendingAcks[frame.header.correlation] != nil { return true }
            // A partition's id travels in the same field, so a refused publish looks alike.
            return frame.header.stream == stream
                && frame.header.correlation & PublishLedger.correlationMark == 0
        default: return false
        }
    }

    /// Takes a frame of this subscription's stream.
    package mutating func receive(_ frame: Frame) throws(ClientError) -> [SubscriptionEvent] {
        if frame.isRefusal, let ack = pendingAcks.removeValue(forKey: frame.header.correlation) {
            return [.ackRefused(partition: ack.partition, frame.refused)]
        }
        if frame.isRefusal, frame.opcode == .ack { return [] }
        switch frame.opcode {
        case .deliver: return try deliver(frame)
        case .assignment:
            let assignment = try frame.message(Assignment.self)
            adopt(assignment)
            return [.assigned(assignment)]
        case .skipped:
            let skipped = try frame.message(Skipped.self)
            guard let position = positions[skipped.partition], position.nextOffset < skipped.to
            else { return [] }
            positions[skipped.partition]?.nextOffset = skipped.to
            return [.skipped(skipped)]
        case .ack:
            let ack = try frame.message(Ack.self)
            // One reply may answer several acks; it names the highest.
            pendingAcks = pendingAcks.filter {
                $0.value.partition != ack.partition || $0.value.offset > ack.offset
            }
            pendingAcks[frame.header.correlation] = nil
            return [.acked(ack)]
        case .ended:
            hasEnded = true
            return [.ended(frame.refused)]
        default:
            if frame.isRefusal {
                hasEnded = true
                return [.ended(frame.refused)]
            }
            // A frame of a later version is not ours to judge.
            return []
        }
    }

    private mutating func deliver(_ frame: Frame) throws(ClientError) -> [SubscriptionEvent] {
        let partition = frame.header.argument
        let deliveries = try Delivery.decode(frame.body, partition: partition)
        deliveredBytes &+= UInt64(frame.body.count)
        var events: [SubscriptionEvent] = []
        for delivery in deliveries {
            if case .records(let batch) = delivery {
                deliveredRecords &+= UInt64(batch.entries.count)
            }
            // What was on its way when a partition was taken from this member is not ours.
            guard var position = positions[partition] else { continue }
            if let event = Self.event(delivery, from: position.nextOffset) { events.append(event) }
            position.nextOffset = max(position.nextOffset, delivery.endOffset)
            position.epoch = delivery.epoch
            positions[partition] = position
        }
        // The server's count wins where it is higher: credit that lags behind it would run dry.
        deliveredRecords = max(deliveredRecords, frame.header.correlation)
        return events
    }

    /// Batches travel whole, so the first may begin below the offset that was asked for.
    private static func event(
        _ delivery: Delivery,
        from nextOffset: UInt64
    ) -> SubscriptionEvent? {
        guard delivery.endOffset > nextOffset else { return nil }
        switch delivery {
        case .records(var batch):
            if let first = batch.entries.first, first.offset < nextOffset {
                batch.entries.removeAll { $0.offset < nextOffset }
            }
            return .records(batch)
        case .lost(var range):
            range.offsets = max(range.offsets.lowerBound, nextOffset)..<range.offsets.upperBound
            return .lost(range)
        }
    }

    /// The credit to send now, or `nil` while more than half of the window is open.
    package mutating func creditDue() -> Credit? {
        let (records, bytes) = (granted.records, granted.bytes)
        guard !hasEnded,
            Self.remaining(records, deliveredRecords) <= window.records / 2
                || Self.remaining(bytes, deliveredBytes) <= window.bytes / 2
        else { return nil }
        granted = Credit(
            records: Self.sum(deliveredRecords, window.records),
            bytes: Self.sum(deliveredBytes, window.bytes)
        )
        return granted
    }

    /// Batches are never split, so more than was granted may have come.
    private static func remaining(_ granted: UInt64, _ delivered: UInt64) -> UInt64 {
        granted > delivered ? granted - delivered : 0
    }
    private static func sum(_ left: UInt64, _ right: UInt64) -> UInt64 {
        let (sum, overflow) = left.addingReportingOverflow(right)
        return overflow ? .max : sum
    }

    /// The ack to send for "everything below `offset` is done", noted until it is answered.
    ///
    /// - Returns: `nil` when the partition is not this member's (any more).
    package mutating func makeAck(
        partition: UInt32,
        offset: UInt64,
        correlation: UInt64
    ) -> Ack? {
        guard let position = positions[partition] else { return nil }
        let ack = Ack(partition: partition, epoch: position.epoch, offset: offset)
        pendingAcks[correlation] = ack
        return ack
    }
}
