package import BrokerShard
package import ShardRuntime
internal import Synchronization

/// The mailboxes between the shards of a broker, and who of them sleeps.
///
/// Made before the shards' threads, and shared by them: each pair of shards has a mailbox per lane, each
/// with one writer and one reader.
package final class MailRoom: Sendable {
    package static let messagesPerMailbox = 1024

    package let shards: Int
    private let boxes: [Mailbox<PeerMessage>]
    private let flags: [Flags]
    /// Shards whose machine has stopped: they go on answering until all have.
    private let stopped = Atomic<Int>(0)

    /// On cache lines of its own: others look at it whenever they post.
    private final class Flags: Sendable {
        private let before: InlineArray<16, UInt64> = .init(repeating: 0)
        let isAsleep = Atomic<Bool>(false)
        private let behind: InlineArray<16, UInt64> = .init(repeating: 0)
        let control: ShardControl
        init(_ control: ShardControl) { self.control = control }
    }

    package init(_ controls: [ShardControl]) {
        shards = controls.count
        let count = controls.count * controls.count * PeerLane.allCases.count
        boxes = (0..<count).map { _ in Mailbox(capacity: Self.messagesPerMailbox) }
        flags = controls.map(Flags.init)
    }

    @inline(__always)
    package func mailbox(from: Int, to: Int, _ lane: PeerLane) -> Mailbox<PeerMessage> {
        boxes[(from * shards + to) * PeerLane.allCases.count + lane.rawValue]
    }

    /// Says that a shard is about to sleep.
    ///
    /// - Returns: false when something has come for it meanwhile: it must not.
    package func mayFallAsleep(_ shard: Int) -> Bool {
        flags[shard].isAsleep.store(true, ordering: .sequentiallyConsistent)
        for from in 0..<shards where from != shard {
            for lane in PeerLane.allCases where !mailbox(from: from, to: shard, lane).isEmpty {
                wakeUp(shard)
                return false
            }
        }
        return true
    }
    package func wakeUp(_ shard: Int) { flags[shard].isAsleep.store(false, ordering: .relaxed) }

    /// Wakes a shard that sleeps; what was posted to it is published.
    package func wakeIfAsleep(_ shard: Int) {
        guard flags[shard].isAsleep.load(ordering: .sequentiallyConsistent) else { return }
        flags[shard].control.wake()
    }

    func noteStopped() { stopped.add(1, ordering: .releasing) }
    var allStopped: Bool { stopped.load(ordering: .acquiring) == shards }
}
