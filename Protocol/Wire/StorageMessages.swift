public import BrokerBasics

/// What an answer about storage begins with: it has shards in the order of their numbers, then
/// partitions in the order of their ids, each with its damages in the order of `base` and `byte`.
public struct StorageCursor: WireMessage, Comparable {
    /// Shards below it are left out.
    public var shard: UInt32
    /// Partitions below it are left out.
    public var partition: UInt32
    /// Of this partition, damages in segments below it are left out.
    public var base: UInt64
    /// Of this segment, damages below it are left out.
    public var byte: UInt64

    public init(shard: UInt32 = 0, partition: UInt32 = 0, base: UInt64 = 0, byte: UInt64 = 0) {
        self.shard = shard
        self.partition = partition
        self.base = base
        self.byte = byte
    }
    public static func < (left: Self, right: Self) -> Bool {
        (left.shard, left.partition, left.base, left.byte)
            < (right.shard, right.partition, right.base, right.byte)
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(shard)
        builder.put(partition)
        builder.put(base)
        builder.put(byte)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        shard = try parser.u32()
        partition = try parser.u32()
        base = try parser.u64()
        byte = try parser.u64()
    }
}

/// Asks what lies on disk, of one queue or of all.
public struct StorageDescribeRequest: WireMessage {
    /// Empty: all queues.
    public var queue: String
    /// False: of the shards only.
    public var withPartitions: Bool
    public var from: StorageCursor
    public init(queue: String = "", withPartitions: Bool = true, from: StorageCursor = .init()) {
        self.queue = queue
        self.withPartitions = withPartitions
        self.from = from
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(queue)
        builder.put(withPartitions)
        from.encode(into: &builder)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        queue = try parser.string()
        withPartitions = try parser.bool()
        from = try StorageCursor(from: &parser)
    }
}

/// What one shard has on disk, and where its check of segments stands.
public struct ShardStorage: WireMessage {
    static let byteCount = 95

    /// What the check of segments does.
    public enum State: UInt8, Sendable, CaseIterable {
        /// Nothing is to be checked now.
        case idle = 0
        case checking = 1
        /// It lets the disk do something better first.
        case waiting = 2
        /// A write failed: the shard checks nothing any more.
        case stopped = 3
    }

    public var shard: UInt16
    public var state: UInt8
    public var partitions: UInt32
    public var segments: UInt64
    /// Of segments.
    public var bytes: UInt64
    /// Ranges known to be damaged, and their bytes. They are not served.
    public var damagedRanges: UInt64
    public var damagedBytes: UInt64
    /// Checks of everything that came to their end since the start of the server.
    public var passes: UInt64
    /// When the last of them did, in nanoseconds since 1970; 0: none has.
    public var lastPassAt: UInt64
    /// Of the check that goes on: what was read of what there was when it began.
    public var checkedBytes: UInt64
    public var checkBytes: UInt64
    /// Bytes per second that it may read; 0: none.
    public var bandwidth: UInt64
    /// The checks that were asked for are numbered from 1: the last that began, and the last that came to
    /// its end. 0: none.
    public var begun: UInt64
    public var done: UInt64

    public init(
        shard: UInt16, state: State, partitions: UInt32, segments: UInt64, bytes: UInt64,
        damagedRanges: UInt64, damagedBytes: UInt64, passes: UInt64, lastPassAt: UInt64,
        checkedBytes: UInt64, checkBytes: UInt64, bandwidth: UInt64, begun: UInt64, done: UInt64
    ) {
        self.shard = shard
        self.state = state.rawValue
        self.partitions = partitions
        self.segments = segments
        self.bytes = bytes
        self.damagedRanges = damagedRanges
        self.damagedBytes = damagedBytes
        self.passes = passes
        self.lastPassAt = lastPassAt
        self.checkedBytes = checkedBytes
        self.checkBytes = checkBytes
        self.bandwidth = bandwidth
        self.begun = begun
        self.done = done
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(shard)
        builder.put(state)
        builder.put(partitions)
        for value in [
            segments, bytes, damagedRanges, damagedBytes, passes, lastPassAt, checkedBytes,
            checkBytes, bandwidth, begun, done,
        ] { builder.put(value) }
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        shard = try parser.u16()
        state = try parser.u8()
        partitions = try parser.u32()
        segments = try parser.u64()
        bytes = try parser.u64()
        damagedRanges = try parser.u64()
        damagedBytes = try parser.u64()
        passes = try parser.u64()
        lastPassAt = try parser.u64()
        checkedBytes = try parser.u64()
        checkBytes = try parser.u64()
        bandwidth = try parser.u64()
        begun = try parser.u64()
        done = try parser.u64()
    }
}

/// A stretch of a segment that is not what was written, and what it took.
public struct StorageDamage: WireMessage {
    /// The base offset of the segment.
    public var base: UInt64
    /// The file's name below the data directory.
    public var file: String
    /// Of the file: `firstByte ..< endByte`. Empty where offsets are missing between two stretches.
    public var firstByte: UInt64
    public var endByte: UInt64
    /// What can't be read: `firstOffset ..< endOffset`; empty: nothing is lost with it.
    public var firstOffset: UInt64
    public var endOffset: UInt64

    public init(base: UInt64, file: String, bytes: Range<UInt64>, offsets: Range<UInt64>) {
        self.base = base
        self.file = file
        firstByte = bytes.lowerBound
        endByte = bytes.upperBound
        firstOffset = offsets.lowerBound
        endOffset = offsets.upperBound
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(base)
        builder.put(file)
        builder.put(firstByte)
        builder.put(endByte)
        builder.put(firstOffset)
        builder.put(endOffset)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        base = try parser.u64()
        file = try parser.string()
        firstByte = try parser.u64()
        endByte = try parser.u64()
        firstOffset = try parser.u64()
        endOffset = try parser.u64()
    }
}

/// What one partition has on disk.
public struct PartitionStorage: WireMessage {
    public var partition: UInt32
    public var queue: String
    public var index: UInt32
    public var shard: UInt16
    public var segments: UInt32
    /// Of its segments, and of those on stable storage: what a check reads.
    public var bytes: UInt64
    public var syncedBytes: UInt64
    /// What the segments hold, and since when; all 0 without a segment.
    public var firstOffset: UInt64
    public var endOffset: UInt64
    /// Append times, in nanoseconds since 1970.
    public var oldestAt: UInt64
    public var newestAt: UInt64
    /// When the last check of it came to its end, and what it read; 0: none has since the start.
    public var verifiedAt: UInt64
    public var verifiedBytes: UInt64
    /// Segments that this check could not read to their end.
    public var unreadSegments: UInt32
    public var damages: [StorageDamage]

    public init(
        partition: UInt32, queue: String, index: UInt32, shard: UInt16, segments: UInt32 = 0,
        bytes: UInt64 = 0, syncedBytes: UInt64 = 0, firstOffset: UInt64 = 0, endOffset: UInt64 = 0,
        oldestAt: UInt64 = 0, newestAt: UInt64 = 0, verifiedAt: UInt64 = 0,
        verifiedBytes: UInt64 = 0, unreadSegments: UInt32 = 0, damages: [StorageDamage] = []
    ) {
        self.partition = partition
        self.queue = queue
        self.index = index
        self.shard = shard
        self.segments = segments
        self.bytes = bytes
        self.syncedBytes = syncedBytes
        self.firstOffset = firstOffset
        self.endOffset = endOffset
        self.oldestAt = oldestAt
        self.newestAt = newestAt
        self.verifiedAt = verifiedAt
        self.verifiedBytes = verifiedBytes
        self.unreadSegments = unreadSegments
        self.damages = damages
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(partition)
        builder.put(queue)
        builder.put(index)
        builder.put(shard)
        builder.put(segments)
        for value in [
            bytes, syncedBytes, firstOffset, endOffset, oldestAt, newestAt, verifiedAt,
            verifiedBytes,
        ] { builder.put(value) }
        builder.put(unreadSegments)
        builder.put(list: damages)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        partition = try parser.u32()
        queue = try parser.string()
        index = try parser.u32()
        shard = try parser.u16()
        segments = try parser.u32()
        bytes = try parser.u64()
        syncedBytes = try parser.u64()
        firstOffset = try parser.u64()
        endOffset = try parser.u64()
        oldestAt = try parser.u64()
        newestAt = try parser.u64()
        verifiedAt = try parser.u64()
        verifiedBytes = try parser.u64()
        unreadSegments = try parser.u32()
        damages = try parser.list(of: StorageDamage.self, itemBytesMin: 42)
    }
}

/// A page of what lies on disk. A partition whose damages do not fit is continued on the next page.
public struct StorageReply: WireMessage {
    public var shards: [ShardStorage]
    public var partitions: [PartitionStorage]
    /// True when there is more, from `next` on.
    public var more: Bool
    public var next: StorageCursor

    public init(
        shards: [ShardStorage] = [], partitions: [PartitionStorage] = [], more: Bool = false,
        next: StorageCursor = .init()
    ) {
        self.shards = shards
        self.partitions = partitions
        self.more = more
        self.next = next
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(list: shards)
        builder.put(list: partitions)
        builder.put(more)
        next.encode(into: &builder)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        shards = try parser.list(of: ShardStorage.self, itemBytesMin: ShardStorage.byteCount)
        partitions = try parser.list(of: PartitionStorage.self, itemBytesMin: 88)
        more = try parser.bool()
        next = try StorageCursor(from: &parser)
    }
}

/// Asks for a check now of what is on stable storage, of one queue or of all.
public struct StorageVerifyRequest: WireMessage {
    /// Empty: all queues.
    public var queue: String
    /// Bytes per second and shard; 0: what the server is set to.
    public var bandwidth: UInt64
    public init(queue: String = "", bandwidth: UInt64 = 0) {
        self.queue = queue
        self.bandwidth = bandwidth
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(queue)
        builder.put(bandwidth)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        queue = try parser.string()
        bandwidth = try parser.u64()
    }
}

/// The number that the check has on one shard: it is over when `ShardStorage.done` has reached it.
public struct StorageCheck: WireMessage {
    public var shard: UInt16
    public var number: UInt64
    public init(shard: UInt16, number: UInt64) {
        self.shard = shard
        self.number = number
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(shard)
        builder.put(number)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        shard = try parser.u16()
        number = try parser.u64()
    }
}

public struct StorageVerifyReply: WireMessage {
    public var checks: [StorageCheck]
    public init(checks: [StorageCheck]) { self.checks = checks }
    public func encode(into builder: inout ByteBuilder) { builder.put(list: checks) }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        checks = try parser.list(of: StorageCheck.self, itemBytesMin: 10)
    }
}

/// Asks for an image of the data directory, below the directory that the server was given for them.
public struct BackupRequest: WireMessage {
    public static let nameBytesMax = 200
    public var name: String
    /// Bytes per second; 0: as fast as it goes.
    public var bandwidth: UInt64
    public init(name: String, bandwidth: UInt64 = 0) {
        self.name = name
        self.bandwidth = bandwidth
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(name)
        builder.put(bandwidth)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        name = try parser.string()
        bandwidth = try parser.u64()
    }
}

/// The image is whole, on stable storage.
public struct BackupReply: WireMessage {
    /// On the server's machine.
    public var path: String
    /// Segments, and how many of them are links.
    public var files: UInt64
    public var linkedFiles: UInt64
    /// Written, journals included.
    public var copiedBytes: UInt64
    public var milliseconds: UInt64
    public init(
        path: String, files: UInt64 = 0, linkedFiles: UInt64 = 0, copiedBytes: UInt64 = 0,
        milliseconds: UInt64 = 0
    ) {
        self.path = path
        self.files = files
        self.linkedFiles = linkedFiles
        self.copiedBytes = copiedBytes
        self.milliseconds = milliseconds
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(path)
        builder.put(files)
        builder.put(linkedFiles)
        builder.put(copiedBytes)
        builder.put(milliseconds)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        path = try parser.string()
        files = try parser.u64()
        linkedFiles = try parser.u64()
        copiedBytes = try parser.u64()
        milliseconds = try parser.u64()
    }
}
