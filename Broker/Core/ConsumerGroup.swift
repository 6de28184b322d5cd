internal import BrokerBasics

// How it works. In mode `ordered` each partition is read by one member at a time, from the group's
// cursor on. When members come or go, a partition changes hands only if the balance needs it; the
// one who loses it is fenced at once, and the next begins at the ack floor: what was delivered and
// not acked is delivered again.

/// Consumers that share one cursor per partition. Cold: touched by subscribe, ack and leave.
public struct ConsumerGroup: Sendable {
    public struct Member: Sendable, Equatable {
        /// The shard's index of the member's subscription.
        public var subscription: Int32
        public var name: String
        public init(subscription: Int32, name: String) {
            self.subscription = subscription
            self.name = name
        }
    }

    public let id: UInt32
    public let queue: UInt32
    public let name: String
    /// By partition index: every offset below is acked. Durable.
    public private(set) var cursors: [UInt64]
    /// By partition index: offsets that were removed before they were acked. Durable.
    public private(set) var skipped: [UInt64]
    /// In the order of joining.
    public private(set) var members: [Member] = []
    /// By partition index: the subscription that reads it, or -1.
    public private(set) var owners: [Int32]
    /// Counts membership changes since the start of the broker.
    public private(set) var generation: UInt64 = 0

    public init(
        id: UInt32, queue: UInt32, name: String, cursors: [UInt64], skipped: [UInt64]? = nil
    ) {
        self.id = id
        self.queue = queue
        self.name = name
        self.cursors = cursors
        self.skipped = skipped ?? [UInt64](repeating: 0, count: cursors.count)
        owners = [Int32](repeating: -1, count: cursors.count)
    }

    /// Moves the ack floor of one partition; it never goes back.
    public mutating func advance(partition index: Int, to offset: UInt64) {
        invariant(
            offset >= cursors[index],
            "group \(name): ack floor \(cursors[index]) can't become \(offset)")
        cursors[index] = offset
    }

    /// What the group had not acked below `start` is gone: it goes on there.
    public mutating func skip(partition index: Int, to start: UInt64) {
        guard cursors[index] < start else { return }
        skipped[index] += start - cursors[index]
        cursors[index] = start
    }

    /// Sets what another shard says of a partition that comes from there.
    mutating func place(partition index: Int, at floor: UInt64, skipped count: UInt64) {
        guard index < cursors.count else { return }
        cursors[index] = floor
        skipped[index] = count
    }

    public mutating func join(_ member: Member) {
        members.append(member)
        balance()
    }

    public func has(_ subscription: Int32) -> Bool {
        members.contains { $0.subscription == subscription }
    }

    public mutating func leave(subscription: Int32) {
        members.removeAll { $0.subscription == subscription }
        for index in owners.indices where owners[index] == subscription { owners[index] = -1 }
        balance()
    }

    public func partitions(of subscription: Int32) -> [Int] {
        owners.indices.filter { owners[$0] == subscription }
    }

    /// Gives every partition an owner; counts differ by at most one, and only what must move moves.
    private mutating func balance() {
        generation += 1
        guard !members.isEmpty else { return }
        let least = owners.count / members.count
        var extra = owners.count % members.count
        var counts: [Int32: Int] = [:]
        for member in members { counts[member.subscription] = 0 }
        // Each keeps what it has up to its share; those who have more get the extra ones.
        let holders = members.sorted {
            partitions(of: $0.subscription).count > partitions(of: $1.subscription).count
        }
        var share: [Int32: Int] = [:]
        for member in holders {
            share[member.subscription] = least + (extra > 0 ? 1 : 0)
            extra -= extra > 0 ? 1 : 0
        }
        for index in owners.indices {
            let owner = owners[index]
            guard owner >= 0 else { continue }
            if counts[owner, default: 0] < share[owner, default: 0] {
                counts[owner, default: 0] += 1
            } else {
                owners[index] = -1
            }
        }
        for index in owners.indices where owners[index] < 0 {
            guard
                let member = members.first(where: {
                    counts[$0.subscription, default: 0] < share[$0.subscription, default: 0]
                })
            else { break }
            owners[index] = member.subscription
            counts[member.subscription, default: 0] += 1
        }
    }
}
