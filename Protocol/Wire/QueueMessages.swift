public import BrokerBasics

public struct QueueCreateRequest: WireMessage {
    /// 1 ... 255 bytes of `a-z A-Z 0-9 . _ - $`, not beginning with `.` or `-`.
    public var name: String
    public var partitions: UInt32
    public var level: UInt8
    public var labels: [Pair]
    /// Of each partition. Came later: left away when everything is kept.
    public var retention: Retention
    public init(
        name: String, partitions: UInt32, level: DurabilityLevel, labels: [Pair] = [],
        retention: Retention = .keepAll
    ) {
        self.name = name
        self.partitions = partitions
        self.level = level.rawValue
        self.labels = labels
        self.retention = retention
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(name)
        builder.put(partitions)
        builder.put(level)
        builder.put(list: labels)
        if retention != .keepAll { retention.encode(into: &builder) }
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        name = try parser.string()
        partitions = try parser.u32()
        level = try parser.u8()
        labels = try parser.list(of: Pair.self, itemBytesMin: 4)
        retention = try parser.later(.keepAll)
    }
}

/// Replaces the labels that are named; an empty value removes one. The level of a queue does not
/// change: a `level` other than 255 or the queue's own is refused with `change-not-offered`.
public struct QueueAlterRequest: WireMessage {
    public static let unchanged: UInt8 = 255
    public var name: String
    public var level: UInt8
    public var labels: [Pair]
    /// All ones leave a limit as it is. Came later: left away when none changes.
    public var retention: Retention
    public init(
        name: String, level: UInt8 = Self.unchanged, labels: [Pair],
        retention: Retention = .unchanged
    ) {
        self.name = name
        self.level = level
        self.labels = labels
        self.retention = retention
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(name)
        builder.put(level)
        builder.put(list: labels)
        if retention != .unchanged { retention.encode(into: &builder) }
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        name = try parser.string()
        level = try parser.u8()
        labels = try parser.list(of: Pair.self, itemBytesMin: 4)
        retention = try parser.later(.unchanged)
    }
}

/// Names one queue: the body of delete and describe.
public struct QueueNameRequest: WireMessage {
    public var name: String
    public init(name: String) { self.name = name }
    public func encode(into builder: inout ByteBuilder) { builder.put(name) }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        name = try parser.string()
    }
}

/// Removes the oldest records of a queue, in one partition or in all. The answer is the queue as it is
/// then.
public struct QueuePurgeRequest: WireMessage {
    public static let toTheEnd = UInt64.max
    public var name: String
    /// A partition id, or `PartitionID.all`.
    public var partition: UInt32
    /// Records below it go, as far as they are committed; `toTheEnd`: all that are.
    public var before: UInt64
    public init(name: String, partition: PartitionID = .all, before: UInt64 = Self.toTheEnd) {
        self.name = name
        self.partition = partition.rawValue
        self.before = before
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(name)
        builder.put(partition)
        builder.put(before)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        name = try parser.string()
        partition = try parser.u32()
        before = try parser.u64()
    }
}

/// Asks for queues in the order of their names, after `after`, at most `limit`.
public struct QueueListRequest: WireMessage {
    public var after: String
    public var limit: UInt32
    public init(after: String = "", limit: UInt32 = 1000) {
        self.after = after
        self.limit = limit
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(after)
        builder.put(limit)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        after = try parser.string()
        limit = try parser.u32()
    }
}

/// One partition's positions. All bounds are half-open.
public struct PartitionInfo: WireMessage {
    public var id: UInt32
    public var index: UInt32
    public var shard: UInt16
    public var epoch: UInt32
    public var startOffset: UInt64
    public var committedOffset: UInt64
    public var endOffset: UInt64
    /// Bytes of stored batches between start and end.
    public var bytes: UInt64
    /// Offsets below this can be read from segments.
    public var segmentOffset: UInt64
    public var segments: UInt32
    public var records: UInt64
    /// Offsets that a crash took from a queue below `synced`.
    public var lostRecords: UInt64

    public init(
        id: UInt32, index: UInt32, shard: UInt16, epoch: UInt32, startOffset: UInt64,
        committedOffset: UInt64, endOffset: UInt64, bytes: UInt64, segmentOffset: UInt64,
        segments: UInt32, records: UInt64, lostRecords: UInt64
    ) {
        self.id = id
        self.index = index
        self.shard = shard
        self.epoch = epoch
        self.startOffset = startOffset
        self.committedOffset = committedOffset
        self.endOffset = endOffset
        self.bytes = bytes
        self.segmentOffset = segmentOffset
        self.segments = segments
        self.records = records
        self.lostRecords = lostRecords
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(id)
        builder.put(index)
        builder.put(shard)
        builder.put(epoch)
        builder.put(startOffset)
        builder.put(committedOffset)
        builder.put(endOffset)
        builder.put(bytes)
        builder.put(segmentOffset)
        builder.put(segments)
        builder.put(records)
        builder.put(lostRecords)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        id = try parser.u32()
        index = try parser.u32()
        shard = try parser.u16()
        epoch = try parser.u32()
        startOffset = try parser.u64()
        committedOffset = try parser.u64()
        endOffset = try parser.u64()
        bytes = try parser.u64()
        segmentOffset = try parser.u64()
        segments = try parser.u32()
        records = try parser.u64()
        lostRecords = try parser.u64()
    }
}

/// A queue as `create`, `alter`, `describe` and `list` answer it. `list` leaves `partitions` empty.
public struct QueueInfo: WireMessage {
    public var id: UInt32
    public var name: String
    public var level: UInt8
    public var partitionCount: UInt32
    /// Nanoseconds since 1970.
    public var createdAt: UInt64
    public var labels: [Pair]
    public var records: UInt64
    public var bytes: UInt64
    public var partitions: [PartitionInfo]
    /// Of each partition. Came later: left away when everything is kept.
    public var retention: Retention

    public init(
        id: UInt32, name: String, level: UInt8, partitionCount: UInt32, createdAt: UInt64,
        labels: [Pair], records: UInt64, bytes: UInt64, partitions: [PartitionInfo],
        retention: Retention = .keepAll
    ) {
        self.id = id
        self.name = name
        self.level = level
        self.partitionCount = partitionCount
        self.createdAt = createdAt
        self.labels = labels
        self.records = records
        self.bytes = bytes
        self.partitions = partitions
        self.retention = retention
    }
    public func encode(into builder: inout ByteBuilder) {
        encode(item: &builder)
        if retention != .keepAll { retention.encode(into: &builder) }
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        try self.init(item: &parser)
        retention = try parser.later(.keepAll)
    }

    /// As an item of a list, which never grows.
    func encode(item builder: inout ByteBuilder) {
        builder.put(id)
        builder.put(name)
        builder.put(level)
        builder.put(partitionCount)
        builder.put(createdAt)
        builder.put(list: labels)
        builder.put(records)
        builder.put(bytes)
        builder.put(list: partitions)
    }
    init(item parser: inout ByteParser) throws(ByteParserError) {
        id = try parser.u32()
        name = try parser.string()
        level = try parser.u8()
        partitionCount = try parser.u32()
        createdAt = try parser.u64()
        labels = try parser.list(of: Pair.self, itemBytesMin: 4)
        records = try parser.u64()
        bytes = try parser.u64()
        partitions = try parser.list(of: PartitionInfo.self, itemBytesMin: 74)
        retention = .keepAll
    }
}

/// Asks for a partition to live on another shard from now on.
public struct QueueMoveRequest: WireMessage {
    /// The partition's id.
    public var partition: UInt32
    public var shard: UInt16
    public init(partition: UInt32, shard: UInt16) {
        self.partition = partition
        self.shard = shard
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(partition)
        builder.put(shard)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        partition = try parser.u32()
        shard = try parser.u16()
    }
}

/// The partition has moved.
public struct QueueMoveReply: WireMessage {
    public var partition: UInt32
    public var from: UInt16
    public var to: UInt16
    /// How long nothing was published to it or acked in it, at most; 0 when it was there already.
    public var pauseNanoseconds: UInt64
    public init(partition: UInt32, from: UInt16, to: UInt16, pauseNanoseconds: UInt64) {
        self.partition = partition
        self.from = from
        self.to = to
        self.pauseNanoseconds = pauseNanoseconds
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(partition)
        builder.put(from)
        builder.put(to)
        builder.put(pauseNanoseconds)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        partition = try parser.u32()
        from = try parser.u16()
        to = try parser.u16()
        pauseNanoseconds = try parser.u64()
    }
}

public struct QueueListReply: WireMessage {
    public var queues: [QueueInfo]
    /// True when there are more behind the last one.
    public var more: Bool
    public init(queues: [QueueInfo], more: Bool) {
        self.queues = queues
        self.more = more
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(UInt32(queues.count))
        for queue in queues { queue.encode(item: &builder) }
        builder.put(more)
        // Came later, behind the list: one for each queue, left away when all keep everything.
        guard queues.contains(where: { $0.retention != .keepAll }) else { return }
        builder.put(list: queues.map(\.retention))
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        queues = []
        for _ in 0..<(try parser.count(itemBytesMin: 43)) {
            queues.append(try QueueInfo(item: &parser))
        }
        more = try parser.bool()
        guard parser.remaining > 0 else { return }
        let retentions = try parser.list(of: Retention.self, itemBytesMin: Retention.byteCount)
        guard retentions.count == queues.count else { throw .invalid }
        for (place, retention) in retentions.enumerated() { queues[place].retention = retention }
    }
}
