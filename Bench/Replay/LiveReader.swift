package import BlockingClient
internal import Glibc
internal import Synchronization
internal import WireProtocol

/// Reads a queue while it is in use, from a thread of its own and through every crash of the
/// broker, and keeps what it got.
///
/// Alone it goes on where it was, partition by partition, so it gets every record once. As a member
/// of a group it goes on where the group is, and acks; what comes again below an ack that was
/// confirmed is a violation.
package final class LiveReader: Sendable {
    package struct Settings: Sendable {
        package var queue: String
        /// Empty: alone.
        package var group = ""
        /// Acks after so many records.
        package var ackEvery = 64
        package var streams: [ReplayStream]
        /// Is told everything that comes, on the reader's thread.
        package var observe: @Sendable (SubscriptionEvent) -> Void = { _ in }

        package init(queue: String, streams: [ReplayStream]) {
            self.queue = queue
            self.streams = streams
        }
    }

    package struct Progress: Sendable {
        package var delivered = 0
        /// By partition index: everything below was delivered (in a group: and acked, as an answer
        /// to an ack said, or the group's own place after an answer that a kill cut off).
        package var offsets: [UInt64] = []
        package var lostOffsets: UInt64 = 0
        package var acksConfirmed = 0
        package var connections = 0
        package var failure: String?
    }

    private let settings: Settings
    private let place: BrokerPlace
    private let shared = Mutex<Progress>(Progress())
    private let isStopping = Mutex(false)
    private let worker = Mutex<Worker<DeliveryLog>?>(nil)

    package init(_ settings: Settings, from place: BrokerPlace) {
        self.settings = settings
        self.place = place
    }

    package func start() {
        worker.withLock { worker in
            do throws(WorkerFailure) {
                worker = try Worker { [self] in
                    var reader = Reading(settings: settings, place: place, owner: self)
                    return reader.run()
                }
            } catch {
                let text = "reading \(settings.queue): \(error)"
                publish { $0.failure = text }
            }
        }
    }

    package var progress: Progress { shared.withLock { $0 } }

    package func stop() { isStopping.withLock { $0 = true } }

    /// Waits for the thread's end.
    package func join() -> DeliveryLog {
        let worker = worker.withLock { $0 }
        return worker?.join() ?? DeliveryLog()
    }

    fileprivate var isWanted: Bool { isStopping.withLock { !$0 } }
    fileprivate func publish(_ body: (inout Progress) -> Void) { shared.withLock { body(&$0) } }
}

/// The thread's own state.
private struct Reading {
    let settings: LiveReader.Settings
    let place: BrokerPlace
    let owner: LiveReader
    let streams: [UInt32: ReplayStream]

    var log = DeliveryLog()
    /// The place of each partition id, from the queue's description.
    var indexes: [UInt32: Int] = [:]
    var ids: [UInt32] = []
    /// By partition index: the next offset that was not delivered.
    var next: [UInt64] = []
    /// By partition index: everything below is acked, and the broker confirmed it.
    var floors: [UInt64] = []
    /// By partition index: where the group began when it was joined last.
    ///
    /// Not a floor: what an assignment tells may still be on its way to the disk.
    var begun: [UInt64] = []
    var lost: UInt64 = 0
    var acks = 0
    var connections = 0
    /// By partition index: records since the last ack.
    var unacked: [Int] = []

    init(settings: LiveReader.Settings, place: BrokerPlace, owner: LiveReader) {
        self.settings = settings
        self.place = place
        self.owner = owner
        streams = Dictionary(uniqueKeysWithValues: settings.streams.map { ($0.producer, $0) })
    }

    var isMember: Bool { !settings.group.isEmpty }

    mutating func run() -> DeliveryLog {
        while owner.isWanted {
            do throws(ClientError) {
                try session()
            } catch {
                guard error.mayReconnect else {
                    fail("\(error)")
                    return log
                }
                // A broker that is starting is asked again soon.
                usleep(5_000)
            }
        }
        return log
    }

    private func fail(_ text: String) {
        let text = "reading \(settings.queue): \(text)"
        owner.publish { $0.failure = text }
    }

    /// One connection, from its making to its end.
    private mutating func session() throws(ClientError) {
        let connection = try place.connect(clientName: "reader-\(settings.queue)")
        try describe(on: connection)
        let subscriptions = try subscribe(on: connection)
        connections += 1
        while owner.isWanted {
            var isQuiet = true
            for subscription in subscriptions {
                // No more than some at a time: the others have their turn.
                for _ in 0..<256 {
                    guard let event = try subscription.next(timeoutMilliseconds: 0) else { break }
                    isQuiet = false
                    guard try take(event, subscription) else { return }
                }
            }
            // A quiet moment: what was delivered is acked, however little it is.
            if isQuiet, isMember { try ackAll(subscriptions) }
            report()
            if isQuiet { try connection.pump(timeoutMilliseconds: 20) }
        }
    }

    private mutating func describe(on connection: Connection) throws(ClientError) {
        guard ids.isEmpty else { return }
        let queue = try connection.request(
            .queueDescribe,
            QueueNameRequest(name: settings.queue),
            reply: QueueInfo.self
        )
        ids = queue.partitions.sorted { $0.index < $1.index }.map(\.id)
        for (index, id) in ids.enumerated() { indexes[id] = index }
        next = [UInt64](repeating: 0, count: ids.count)
        floors = next
        begun = next
        unacked = [Int](repeating: 0, count: ids.count)
    }

    private mutating func subscribe(
        on connection: Connection
    ) throws(ClientError) -> [Subscription] {
        if isMember {
            let member = try Subscription(
                on: connection,
                queue: settings.queue,
                group: settings.group
            )
            adopt(member.assignment)
            return [member]
        }
        var subscriptions: [Subscription] = []
        for (index, id) in ids.enumerated() {
            subscriptions.append(
                try Subscription(
                    on: connection,
                    queue: settings.queue,
                    start: .offset(next[index]),
                    partition: PartitionID(rawValue: id)
                )
            )
        }
        return subscriptions
    }

    /// Everything of a group begins at its floor, which never falls below what was confirmed.
    private mutating func adopt(_ assignment: Assignment) {
        for partition in assignment.partitions {
            guard let index = indexes[partition.partition] else { continue }
            if partition.nextOffset < floors[index] {
                log.add(
                    .redelivered,
                    "partition \(index) begins at \(partition.nextOffset) again, acked up to "
                        + "\(floors[index])"
                )
            }
            next[index] = partition.nextOffset
            begun[index] = partition.nextOffset
            unacked[index] = 0
        }
    }

    /// - Returns: false when the subscription has ended.
    private mutating func take(
        _ event: SubscriptionEvent,
        _ subscription: Subscription
    ) throws(ClientError) -> Bool {
        settings.observe(event)
        switch event {
        case .records(let batch):
            guard let index = indexes[batch.partition] else { return true }
            for entry in batch.entries { take(entry.record, at: entry.offset, index) }
            next[index] = batch.endOffset
            unacked[index] += batch.entries.count
            if isMember, unacked[index] >= settings.ackEvery {
                unacked[index] = 0
                try subscription.ack(partition: batch.partition, below: next[index])
            }
        case .lost(let range):
            guard let index = indexes[range.partition] else { return true }
            lost += UInt64(range.offsets.count)
            next[index] = range.offsets.upperBound
            unacked[index] += 1
        case .skipped(let skipped):
            guard let index = indexes[skipped.partition] else { return true }
            next[index] = skipped.to
        case .assigned(let assignment): adopt(assignment)
        case .acked(let ack):
            guard let index = indexes[ack.partition] else { return true }
            acks += 1
            if ack.offset > next[index] {
                log.add(
                    .badAnswer,
                    "an ack up to \(ack.offset) of partition \(index), delivered up to "
                        + "\(next[index])"
                )
            }
            floors[index] = max(floors[index], ack.offset)
        case .ackRefused(let partition, let refused):
            log.add(.badAnswer, "an ack of partition \(partition): \(refused.name)")
        case .ended(let refused):
            guard refused.mayRetry else { throw .refused(refused) }
            return false
        }
        return true
    }

    private mutating func take(_ record: Record, at offset: UInt64, _ index: Int) {
        if offset < floors[index] {
            log.add(
                .redelivered,
                "partition \(index) offset \(offset), acked up to \(floors[index])"
            )
        }
        if offset < next[index] {
            log.add(
                .duplicate,
                "delivered: partition \(index) offset \(offset) where \(next[index]) was to come"
            )
        }
        guard let tag = RecordTag(of: record), let stream = streams[tag.producer] else {
            log.add(.neverSent, "delivered: partition \(index) offset \(offset)")
            return
        }
        if let difference = HistoryChecker.difference(record, stream.record(tag.number)) {
            log.add(
                .changed,
                "delivered: \(tag), partition \(index) offset \(offset): another \(difference)"
            )
        }
        log.deliveries.append(.init(partition: UInt32(index), offset: offset, tag: tag))
    }

    private mutating func ackAll(_ subscriptions: [Subscription]) throws(ClientError) {
        for subscription in subscriptions {
            for partition in subscription.assignment.partitions {
                guard let index = indexes[partition.partition], unacked[index] > 0 else {
                    continue
                }
                unacked[index] = 0
                try subscription.ack(partition: partition.partition, below: next[index])
            }
        }
    }

    private func report() {
        let offsets = isMember ? zip(floors, begun).map { max($0, $1) } : next
        let delivered = log.deliveries.count
        let (lost, acks, connections) = (lost, acks, connections)
        owner.publish { progress in
            progress.delivered = delivered
            progress.offsets = offsets
            progress.lostOffsets = lost
            progress.acksConfirmed = acks
            progress.connections = connections
        }
    }
}
