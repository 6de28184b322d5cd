import BlockingClient
import BrokerBasics
import Foundation
import ReplayHarness
import Synchronization
import WireProtocol

/// Moves partitions to other shards, one after the other, as long as it is let; what is refused, or cut off
/// by a kill, is left at that.
final class PartitionMover: Sendable {
    private struct State {
        var isStopping = false
        var moved = 0
    }
    private let state = Mutex(State())
    private let ended = DispatchSemaphore(value: 0)

    init(_ place: BrokerPlace, _ queues: [String]) {
        let thread = Thread { [self] in
            var random = SeededRandom(seed: 11)
            while !state.withLock({ $0.isStopping }) {
                try? move(place, queues, &random)
                usleep(5_000)
            }
            ended.signal()
        }
        thread.start()
    }

    private func move(
        _ place: BrokerPlace, _ queues: [String], _ random: inout SeededRandom
    ) throws {
        let connection = try place.connect(clientName: "mover", timeoutMilliseconds: 500)
        while !state.withLock({ $0.isStopping }) {
            let queue = try connection.request(
                .queueDescribe, QueueNameRequest(name: queues[random.below(queues.count)]),
                reply: QueueInfo.self, timeoutMilliseconds: 2_000)
            let partition = queue.partitions[random.below(queue.partitions.count)]
            let reply = try connection.request(
                .queueMove,
                QueueMoveRequest(partition: partition.id, shard: UInt16(random.below(3))),
                reply: QueueMoveReply.self, timeoutMilliseconds: 5_000)
            if reply.from != reply.to { state.withLock { $0.moved += 1 } }
            usleep(UInt32(random.below(20_000)))
        }
    }

    /// How many moves came to their end so far.
    var moved: Int { state.withLock { $0.moved } }

    /// Ends it, and waits until it is over.
    ///
    /// - Returns: how many moves came to their end.
    @discardableResult
    func stop() -> Int {
        let wasStopping = state.withLock { state in
            defer { state.isStopping = true }
            return state.isStopping
        }
        if !wasStopping { ended.wait() }
        return moved
    }
}
