internal import BlockingClient
internal import ReplayHarness
internal import WireProtocol

/// Reads one queue, by itself or as a group's only member, and notes what it saw and acked.
final class CutReader {
    private(set) var seen: [Seen] = []
    private(set) var acks: [AckHistory] = []
    private let queue: QueueInfo
    private let name: String
    private let group: String
    private let moment: () -> Int
    private let indexes: [UInt32: Int]
    private var subscription: Subscription?
    private var life = 0

    init(_ name: String, queue: QueueInfo, group: String = "", moment: @escaping () -> Int) {
        self.name = name
        self.queue = queue
        self.group = group
        self.moment = moment
        indexes = Dictionary(
            uniqueKeysWithValues: queue.partitions.map { ($0.id, Int($0.index)) }
        )
        if !group.isEmpty {
            acks = (0..<queue.partitions.count).map { AckHistory(group: group, partition: $0) }
        }
    }

    func disconnect() { subscription = nil }

    /// Takes what has come; reads from the start again after a lost connection.
    ///
    /// - Parameter ack: whether to ack what a batch brought.
    func drain(at place: BrokerPlace, ack: () -> Bool) throws {
        do throws(ClientError) {
            if subscription == nil {
                life += 1
                subscription = try Subscription(
                    on: try place.connect(clientName: name),
                    queue: queue.name,
                    group: group
                )
            }
            while let event = try subscription?.next(timeoutMilliseconds: 0) {
                try take(event, ack)
            }
        } catch {
            guard error.mayReconnect else { throw error }
            subscription = nil
        }
    }

    private func take(_ event: SubscriptionEvent, _ ack: () -> Bool) throws(ClientError) {
        switch event {
        case .records(let batch):
            guard let index = indexes[batch.partition] else { return }
            // What a group gets begins at its cursor, and is not held against the log.
            if group.isEmpty {
                for entry in batch.entries {
                    note(
                        index,
                        .record(
                            offset: entry.offset,
                            epoch: batch.epoch,
                            payload: RecordSource.hash(entry.record)
                        )
                    )
                }
            } else if ack() {
                acks[index].asked.append(.init(offset: batch.endOffset, at: moment()))
                try subscription?.ack(partition: batch.partition, below: batch.endOffset)
            }
        case .lost(let range):
            guard let index = indexes[range.partition], group.isEmpty else { return }
            let (from, to) = (range.offsets.lowerBound, range.offsets.upperBound)
            note(index, .lost(from: from, to: to, epoch: range.epoch))
        case .acked(let ack):
            guard let index = indexes[ack.partition] else { return }
            acks[index].confirmed.append(.init(offset: ack.offset, at: moment()))
        case .ackRefused(_, let refused):
            throw .refused(refused)
        case .ended(let refused): throw .refused(refused)
        // No queue of a run removes records: a gap in what comes is for the checker to find.
        case .assigned, .skipped: break
        }
    }

    private func note(_ partition: Int, _ what: Seen.What) {
        seen.append(
            Seen(reader: "\(name)-\(life)", partition: partition, what: what, seenAt: moment())
        )
    }
}
