public import BrokerBasics

/// Where a subscription without stored progress begins.
public enum StartPosition: Equatable, Sendable {
    case start
    case end
    case offset(UInt64)
    /// The first record appended at or after this time, in ns since 1970.
    case time(UInt64)

    var kind: UInt8 {
        switch self {
        case .start: 0
        case .end: 1
        case .offset: 2
        case .time: 3
        }
    }
    var value: UInt64 {
        switch self {
        case .start, .end: 0
        case .offset(let value), .time(let value): value
        }
    }
}

/// Starts a subscription; its id is the frame's `stream`, chosen by the client, unused on the
/// connection.
public struct SubscribeRequest: WireMessage {
    public var queue: String
    /// Empty: a subscription without stored progress.
    public var group: String
    /// Where to begin; for a group only where it has no cursor yet.
    public var start: StartPosition
    /// A partition id, or `PartitionID.all`. A group's members are assigned theirs.
    public var partition: UInt32
    /// Absolute credit: records and bytes that may be delivered in all, since the subscription began.
    public var creditRecords: UInt64
    public var creditBytes: UInt64

    public init(
        queue: String, group: String = "", start: StartPosition = .start,
        partition: PartitionID = .all, creditRecords: UInt64, creditBytes: UInt64
    ) {
        self.queue = queue
        self.group = group
        self.start = start
        self.partition = partition.rawValue
        self.creditRecords = creditRecords
        self.creditBytes = creditBytes
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(queue)
        builder.put(group)
        builder.put(start.kind)
        builder.put(start.value)
        builder.put(partition)
        builder.put(creditRecords)
        builder.put(creditBytes)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        queue = try parser.string()
        group = try parser.string()
        let kind = try parser.u8()
        let value = try parser.u64()
        switch kind {
        case 0: start = .start
        case 1: start = .end
        case 2: start = .offset(value)
        case 3: start = .time(value)
        default: throw .invalid
        }
        partition = try parser.u32()
        creditRecords = try parser.u64()
        creditBytes = try parser.u64()
    }
}

/// A partition that the subscription reads, and the first offset it will get.
public struct AssignedPartition: WireMessage {
    public var partition: UInt32
    public var index: UInt32
    public var epoch: UInt32
    public var nextOffset: UInt64
    public init(partition: UInt32, index: UInt32, epoch: UInt32, nextOffset: UInt64) {
        self.partition = partition
        self.index = index
        self.epoch = epoch
        self.nextOffset = nextOffset
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(partition)
        builder.put(index)
        builder.put(epoch)
        builder.put(nextOffset)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        partition = try parser.u32()
        index = try parser.u32()
        epoch = try parser.u32()
        nextOffset = try parser.u64()
    }
}

/// The reply to subscribe, and the push when a group's members change: the whole set that the
/// subscription now reads. A partition that stays keeps its place in the stream; one that is gone is
/// fenced: its acks are refused from here on.
public struct Assignment: WireMessage {
    /// Counts the changes of the group's membership; 0 without a group.
    public var generation: UInt64
    public var partitions: [AssignedPartition]
    public init(generation: UInt64, partitions: [AssignedPartition]) {
        self.generation = generation
        self.partitions = partitions
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(generation)
        builder.put(list: partitions)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        generation = try parser.u64()
        partitions = try parser.list(of: AssignedPartition.self, itemBytesMin: 20)
    }
}

/// A push: records that the subscription would have got next were removed, by retention or a purge. It
/// goes on at `range`'s end.
public struct Skipped: WireMessage {
    public var partition: UInt32
    /// Where the subscription stood.
    public var from: UInt64
    /// The partition's start offset.
    public var to: UInt64
    public init(partition: UInt32, from: UInt64, to: UInt64) {
        self.partition = partition
        self.from = from
        self.to = to
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(partition)
        builder.put(from)
        builder.put(to)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        partition = try parser.u32()
        from = try parser.u64()
        to = try parser.u64()
        guard from < to else { throw .invalid }
    }
}

/// Absolute credit: a repeated or overtaken frame changes nothing, a lost one is made good by the
/// next.
public struct Credit: WireMessage {
    @inlinable public static var byteCount: Int { 16 }
    public var records: UInt64
    public var bytes: UInt64
    public init(records: UInt64, bytes: UInt64) {
        self.records = records
        self.bytes = bytes
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(records)
        builder.put(bytes)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        records = try parser.u64()
        bytes = try parser.u64()
    }
}

/// "Everything below `offset` is done" for one partition of the subscription's group. The reply has
/// the same body and may answer several acks at once: it names the highest.
public struct Ack: WireMessage {
    @inlinable public static var byteCount: Int { 16 }
    public var partition: UInt32
    /// The partition's epoch as the member saw it in the batch.
    public var epoch: UInt32
    public var offset: UInt64
    public init(partition: UInt32, epoch: UInt32, offset: UInt64) {
        self.partition = partition
        self.epoch = epoch
        self.offset = offset
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(partition)
        builder.put(epoch)
        builder.put(offset)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        partition = try parser.u32()
        epoch = try parser.u32()
        offset = try parser.u64()
    }
}

public struct GroupDescribeRequest: WireMessage {
    public var queue: String
    public var group: String
    public init(queue: String, group: String) {
        self.queue = queue
        self.group = group
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(queue)
        builder.put(group)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        queue = try parser.string()
        group = try parser.string()
    }
}

/// Groups of one queue, or of all when `queue` is empty; those after `after` by `queue/group`.
public struct GroupListRequest: WireMessage {
    public var queue: String
    public var after: String
    public var limit: UInt32
    public init(queue: String = "", after: String = "", limit: UInt32 = 1000) {
        self.queue = queue
        self.after = after
        self.limit = limit
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(queue)
        builder.put(after)
        builder.put(limit)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        queue = try parser.string()
        after = try parser.string()
        limit = try parser.u32()
    }
}

/// A group's place in one partition, and how far behind it is.
public struct GroupCursor: WireMessage {
    public var partition: UInt32
    public var index: UInt32
    /// Every offset below it is acked.
    public var ackFloor: UInt64
    public var highWatermark: UInt64
    public var lagRecords: UInt64
    public var lagBytes: UInt64
    /// The age of the oldest record that is not acked, in milliseconds.
    public var lagMilliseconds: UInt64
    /// The member that reads it; empty when there is none.
    public var member: String
    /// `delivering`, `idle`, `wait-credit`, `wait-ack`, `wait-send`, `reading`, `unassigned`.
    public var state: String
    public var stateMilliseconds: UInt64

    public init(
        partition: UInt32, index: UInt32, ackFloor: UInt64, highWatermark: UInt64,
        lagRecords: UInt64, lagBytes: UInt64, lagMilliseconds: UInt64, member: String,
        state: String, stateMilliseconds: UInt64
    ) {
        self.partition = partition
        self.index = index
        self.ackFloor = ackFloor
        self.highWatermark = highWatermark
        self.lagRecords = lagRecords
        self.lagBytes = lagBytes
        self.lagMilliseconds = lagMilliseconds
        self.member = member
        self.state = state
        self.stateMilliseconds = stateMilliseconds
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(partition)
        builder.put(index)
        builder.put(ackFloor)
        builder.put(highWatermark)
        builder.put(lagRecords)
        builder.put(lagBytes)
        builder.put(lagMilliseconds)
        builder.put(member)
        builder.put(state)
        builder.put(stateMilliseconds)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        partition = try parser.u32()
        index = try parser.u32()
        ackFloor = try parser.u64()
        highWatermark = try parser.u64()
        lagRecords = try parser.u64()
        lagBytes = try parser.u64()
        lagMilliseconds = try parser.u64()
        member = try parser.string()
        state = try parser.string()
        stateMilliseconds = try parser.u64()
    }
}

public struct GroupInfo: WireMessage {
    public var id: UInt32
    public var queue: String
    public var name: String
    /// `ordered`.
    public var mode: String
    public var generation: UInt64
    public var members: [String]
    public var lagRecords: UInt64
    /// Empty in a list.
    public var cursors: [GroupCursor]
    /// For each of `cursors`: offsets that were removed before the group had acked them, since it came
    /// into being. Came later: left away, and empty, when there are none.
    public var skippedRecords: [UInt64]

    public init(
        id: UInt32, queue: String, name: String, mode: String, generation: UInt64,
        members: [String], lagRecords: UInt64, cursors: [GroupCursor],
        skippedRecords: [UInt64] = []
    ) {
        self.id = id
        self.queue = queue
        self.name = name
        self.mode = mode
        self.generation = generation
        self.members = members
        self.lagRecords = lagRecords
        self.cursors = cursors
        self.skippedRecords = skippedRecords
    }
    public func encode(into builder: inout ByteBuilder) {
        encode(item: &builder)
        guard !skippedRecords.isEmpty else { return }
        builder.put(UInt32(skippedRecords.count))
        for records in skippedRecords { builder.put(records) }
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        try self.init(item: &parser)
        guard parser.remaining > 0 else { return }
        for _ in 0..<(try parser.count(itemBytesMin: 8)) {
            skippedRecords.append(try parser.u64())
        }
        guard skippedRecords.count == cursors.count else { throw .invalid }
    }

    /// As an item of a list, which never grows.
    func encode(item builder: inout ByteBuilder) {
        builder.put(id)
        builder.put(queue)
        builder.put(name)
        builder.put(mode)
        builder.put(generation)
        builder.put(UInt32(members.count))
        for member in members { builder.put(member) }
        builder.put(lagRecords)
        builder.put(list: cursors)
    }
    init(item parser: inout ByteParser) throws(ByteParserError) {
        id = try parser.u32()
        queue = try parser.string()
        name = try parser.string()
        mode = try parser.string()
        generation = try parser.u64()
        members = []
        for _ in 0..<(try parser.count(itemBytesMin: 2)) { members.append(try parser.string()) }
        lagRecords = try parser.u64()
        cursors = try parser.list(of: GroupCursor.self, itemBytesMin: 60)
        skippedRecords = []
    }
}

public struct GroupListReply: WireMessage {
    public var groups: [GroupInfo]
    public var more: Bool
    public init(groups: [GroupInfo], more: Bool) {
        self.groups = groups
        self.more = more
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(UInt32(groups.count))
        for group in groups { group.encode(item: &builder) }
        builder.put(more)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        groups = []
        for _ in 0..<(try parser.count(itemBytesMin: 34)) {
            groups.append(try GroupInfo(item: &parser))
        }
        more = try parser.bool()
    }
}
