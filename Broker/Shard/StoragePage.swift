internal import WireProtocol

/// A page of what lies on disk: filled in order, as far as the reply fits what its client takes.
struct StoragePage {
    private(set) var reply = StorageReply()
    private var bytesLeft: Int

    /// - Parameter bytesMax: of the reply's body.
    init(bytesMax: Int) { bytesLeft = bytesMax - StorageReply().encoded.count }

    /// - Returns: false when the page is full; the next one begins with this shard.
    mutating func add(_ shard: ShardStorage) -> Bool {
        guard !reply.more else { return false }
        guard takes(shard.encoded.count) else {
            end(at: StorageCursor(shard: UInt32(shard.shard)))
            return false
        }
        reply.shards.append(shard)
        return true
    }

    /// Adds a partition with as many of its damages as fit.
    ///
    /// - Returns: false when the page is full; the next one goes on where this one ends.
    mutating func add(_ partition: PartitionStorage) -> Bool {
        guard !reply.more else { return false }
        var fitting = partition
        fitting.damages = []
        guard takes(fitting.encoded.count) else {
            end(at: .partitions(from: partition.partition))
            return false
        }
        for damage in partition.damages {
            guard takes(damage.encoded.count) else {
                end(
                    at: .partitions(
                        from: partition.partition, base: damage.base, byte: damage.firstByte))
                break
            }
            fitting.damages.append(damage)
        }
        reply.partitions.append(fitting)
        return !reply.more
    }

    private mutating func takes(_ bytes: Int) -> Bool {
        guard bytes <= bytesLeft else { return false }
        bytesLeft -= bytes
        return true
    }

    /// There is more, from `next` on.
    mutating func end(at next: StorageCursor) {
        reply.more = true
        reply.next = next
    }

    /// One page of those of several shards: it ends where the first of them does, or before.
    static func merged(_ pages: [StorageReply], bytesMax: Int) -> StorageReply {
        var page = StoragePage(bytesMax: bytesMax)
        let end = pages.filter(\.more).map(\.next).min()
        func isInside(_ cursor: StorageCursor) -> Bool { end.map { cursor < $0 } ?? true }
        for shard in pages.flatMap(\.shards).sorted(by: { $0.shard < $1.shard })
        where isInside(StorageCursor(shard: UInt32(shard.shard))) {
            guard page.add(shard) else { return page.reply }
        }
        for partition in pages.flatMap(\.partitions).sorted(by: { $0.partition < $1.partition })
        where isInside(.partitions(from: partition.partition)) {
            guard page.add(partition) else { return page.reply }
        }
        if let end { page.end(at: end) }
        return page.reply
    }
}

extension StorageCursor {
    /// Behind all shards.
    static func partitions(from partition: UInt32, base: UInt64 = 0, byte: UInt64 = 0) -> Self {
        Self(shard: .max, partition: partition, base: base, byte: byte)
    }
}
