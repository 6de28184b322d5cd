public import WireProtocol

// How it works. What is placed together is a unit: all partitions of the queues with the same value of
// the label `colocate`, or one partition of a queue without it. A unit goes to the shard with the fewest
// partitions. What is placed stays, until an operator moves it or the number of shards changes: then
// only what must move moves.

/// Chooses shards for partitions. What is chosen is stored with the queue; nothing computes it again.
public struct Placement {
    /// Queues with the same value of this label live on one shard.
    public static let colocateLabel = "colocate"

    /// By shard: how many partitions live there.
    private var loads: [Int]

    public init(shards: Int, loads: [Int]) {
        self.loads = (0..<shards).map { $0 < loads.count ? loads[$0] : 0 }
    }

    private var lightest: Int { loads.indices.min { loads[$0] < loads[$1] } ?? 0 }

    /// Where the partitions of a new queue go.
    ///
    /// - Parameter others: the queues that are there, for `colocate`.
    public mutating func choose(
        partitions: Int, labels: [Pair], others: some Sequence<Queue>
    ) -> [UInt16] {
        if let label = Self.colocation(labels) {
            let companion = others.first {
                Self.colocation($0.labels) == label && !$0.shards.isEmpty
            }
            let shard = companion?.shards[0] ?? UInt16(lightest)
            loads[Int(shard)] += partitions
            return [UInt16](repeating: shard, count: partitions)
        }
        return (0..<partitions).map { _ in
            let shard = lightest
            loads[shard] += 1
            return UInt16(shard)
        }
    }

    /// The value of the label; `nil` without it.
    public static func colocation(_ labels: [Pair]) -> String? {
        labels.first { $0.name == colocateLabel }.map(\.value)
    }

    /// A partition that is to live elsewhere.
    public struct Move: Equatable, Sendable {
        public var queue: UInt32
        public var partition: UInt32
        public var from: UInt16
        public var to: UInt16
    }

    /// What moves when a broker that ran `before` shards starts with `shards`.
    public static func moves(queues: [Queue], before: Int, shards: Int) -> [Move] {
        var units: [(index: Int, members: [Move])] = []
        var unitOfLabel: [String: Int] = [:]
        var loads = [Int](repeating: 0, count: max(before, shards))
        for queue in queues.sorted(by: { $0.id < $1.id }) {
            let label = colocation(queue.labels)
            for (index, partition) in queue.partitions.enumerated() {
                let shard = queue.shards[index]
                if loads.count <= Int(shard) {
                    loads += [Int](repeating: 0, count: Int(shard) + 1 - loads.count)
                }
                loads[Int(shard)] += 1
                let move = Move(queue: queue.id, partition: partition, from: shard, to: shard)
                if let label, let unit = unitOfLabel[label] {
                    units[unit].members.append(move)
                } else {
                    if let label { unitOfLabel[label] = units.count }
                    units.append((label == nil ? index : 0, [move]))
                }
            }
        }
        let total = loads.reduce(0, +)
        var moves: [Move] = []
        func lightest(_ range: Range<Int>) -> Int { range.min { loads[$0] < loads[$1] } ?? 0 }
        // The first partitions of all queues, then the second ones: each queue is spread.
        units.sort { $0.index < $1.index }
        for unit in units {
            let leaving = unit.members.filter { Int($0.from) >= shards }
            let target: Int
            let movers: [Move]
            if !leaving.isEmpty {
                // Labels may have come later: then a unit lies on several shards, and not all of it goes.
                let stays = unit.members.first { Int($0.from) < shards }.map { Int($0.from) }
                target = stays ?? lightest(0..<shards)
                movers = leaving
            } else {
                // A new shard takes what leaves neither side with less than its share.
                let from = unit.members[0].from
                guard before < shards, unit.members.allSatisfy({ $0.from == from }) else {
                    continue
                }
                let share = total / shards
                let count = unit.members.count
                target = lightest(before..<shards)
                guard loads[target] + count <= max(share, 1),
                    loads[Int(from)] - count >= share
                else { continue }
                movers = unit.members
            }
            for var move in movers {
                loads[Int(move.from)] -= 1
                loads[target] += 1
                move.to = UInt16(target)
                moves.append(move)
            }
        }
        return moves
    }
}
