package import BlockingClient
package import WireProtocol

/// Reads a whole queue back through a subscription of its own.
package enum QueueReader {
    package struct Summary: Sendable {
        package var queue: QueueInfo
        package var records = 0
        package var lostOffsets: UInt64 = 0
        /// In how many pieces.
        package var lostRanges = 0
    }

    /// Holds all that the queue keeps against `histories`.
    ///
    /// - Parameters:
    ///   - isWanted: asked now and then; false ends the reading.
    ///   - observe: is told everything that comes.
    package static func check(
        _ name: String,
        on connection: Connection,
        histories: [SentHistory],
        isWanted: () -> Bool = { true },
        observe: (SubscriptionEvent) -> Void = { _ in }
    ) throws(ClientError) -> (HistoryChecker, Summary) {
        let queue = try connection.request(
            .queueDescribe,
            QueueNameRequest(name: name),
            reply: QueueInfo.self
        )
        let partitions = queue.partitions.sorted { $0.index < $1.index }
        var indexes: [UInt32: Int] = [:]
        for (index, partition) in partitions.enumerated() { indexes[partition.id] = index }
        var checker = HistoryChecker(
            level: DurabilityLevel(rawValue: queue.level) ?? .synced,
            startOffsets: partitions.map(\.startOffset),
            histories: histories
        )
        var summary = Summary(queue: queue)
        let subscription = try Subscription(on: connection, queue: name)
        func isDone() -> Bool {
            partitions.allSatisfy {
                (subscription.nextOffset(of: $0.id) ?? 0) >= $0.committedOffset
            }
        }
        while subscription.hasPending || !isDone() {
            guard isWanted() else { throw .timeout("reading \(name) back was given up") }
            guard let event = try subscription.next(timeoutMilliseconds: 10_000) else {
                let places = partitions.map {
                    "\(subscription.nextOffset(of: $0.id) ?? 0) of \($0.committedOffset)"
                }
                throw .timeout(
                    "nothing of \(name) came in 10 s; it was read up to "
                        + places.joined(separator: ", ")
                )
            }
            observe(event)
            switch event {
            case .records(let batch):
                guard let index = indexes[batch.partition] else { continue }
                summary.records += batch.entries.count
                for entry in batch.entries {
                    checker.read(entry.record, partition: index, offset: entry.offset)
                }
            case .lost(let range):
                guard let index = indexes[range.partition] else { continue }
                summary.lostRanges += 1
                summary.lostOffsets += UInt64(range.offsets.count)
                checker.lost(range.offsets, partition: index)
            case .ended(let refused): throw .refused(refused)
            case .assigned, .acked, .ackRefused, .skipped: break
            }
        }
        for (index, partition) in partitions.enumerated() {
            checker.end(partition.committedOffset, partition: index)
        }
        try subscription.unsubscribe()
        return (checker, summary)
    }
}
