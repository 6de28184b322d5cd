package import BrokerBasics

/// Where a subscription without stored progress begins.
package enum StartPosition: Equatable, Sendable {
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
package struct SubscribeRequest: WireMessage {
    package var queue: String
    /// Empty: a subscription without stored progress.
    package var group: String
    /// Where to begin; for a group only where it has no cursor yet.
    package var start: StartPosition
    /// A partition id, or `PartitionID.all`. A group's members are assigned theirs.
    package var partition: UInt32
    /// Absolute credit: records and bytes that may be delivered in all, since the subscription began.
    package var creditRecords: UInt64
    package var creditBytes: UInt64

    package init(
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
    package func encode(into builder: inout ByteBuilder) {
        builder.put(queue)
        builder.put(group)
        builder.put(start.kind)
        builder.put(start.value)
        builder.put(partition)
        builder.put(creditRecords)
        builder.put(creditBytes)
    }
    package init(from parser: inout ByteParser) throws(ByteParserError) {
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
package struct AssignedPartition: WireMessage {
    package var partition: UInt32
    package var index: UInt32
    package var epoch: UInt32
    package var nextOffset: UInt64
    package init(partition: UInt32, index: UInt32, epoch: UInt32, nextOffset: UInt64) {
        self.partition = partition
        self.index = index
        self.epoch = epoch
        self.nextOffset = nextOffset
    }
    package func encode(into builder: inout ByteBuilder) {
        builder.put(partition)
        builder.put(index)
        builder.put(epoch)
        builder.put(nextOffset)
    }
    package init(from parser: inout ByteParser) throws(ByteParserError) {
        partition = try parser.u32()
        index = try parser.u32()
        epoch = try parser.u32()
        nextOffset = try parser.u64()
    }
}

/// The reply to subscribe, and the push when a group's members change: the whole set that the
/// subscription now reads. A partition that stays keeps its place in the stream; one that is gone is
/// fenced: its acks are refused from here on.
package struct Assignment: WireMessage {
    /// Counts the changes of the group's membership; 0 without a group.
    package var generation: UInt64
    package var partitions: [AssignedPartition]
    package init(generation: UInt64, partitions: [AssignedPartition]) {
        self.generation = generation
        self.partitions = partitions
    }
    package func encode(into builder: inout ByteBuilder) {
        builder.put(generation)
        builder.put(list: partitions)
    }
    package init(from parser: inout ByteParser) throws(ByteParserError) {
        generation = try parser.u64()
        partitions = try parser.list(of: AssignedPartition.self, itemBytesMin: 20)
    }
}

/// Absolute credit: a repeated or overtaken frame changes nothing, a lost one is made good by the
/// next.
package struct Credit: WireMessage {
    @inlinable package static var byteCount: Int { 16 }
    package var records: UInt64
    package var bytes: UInt64
    package init(records: UInt64, bytes: UInt64) {
        self.records = records
        self.bytes = bytes
    }
    package func encode(into builder: inout ByteBuilder) {
        builder.put(records)
        builder.put(bytes)
    }
    package init(from parser: inout ByteParser) throws(ByteParserError) {
        records = try parser.u64()
        bytes = try parser.u64()
    }
}

/// "Everything below `offset` is done" for one partition of the subscription's group. The reply has
/// the same body and may answer several acks at once: it names the highest.
package struct Ack: WireMessage {
    @inlinable package static var byteCount: Int { 16 }
    package var partition: UInt32
    /// The partition's epoch as the member saw it in the batch.
    package var epoch: UInt32
    package var offset: UInt64
    package init(partition: UInt32, epoch: UInt32, offset: UInt64) {
        self.partition = partition
        self.epoch = epoch
        self.offset = offset
    }
    package func encode(into builder: inout ByteBuilder) {
        builder.put(partition)
        builder.put(epoch)
        builder.put(offset)
    }
    package init(from parser: inout ByteParser) throws(ByteParserError) {
        partition = try parser.u32()
        epoch = try parser.u32()
        offset = try parser.u64()
    }
}

package struct GroupDescribeRequest: WireMessage {
    package var queue: String
    package var group: String
    package init(queue: String, group: String) {
        self.queue = queue
        self.group = group
    }
    package func encode(into builder: inout ByteBuilder) {
        builder.put(queue)
        builder.put(group)
    }
    package init(from parser: inout ByteParser) throws(ByteParserError) {
        queue = try parser.string()
        group = try parser.string()
    }
}

/// Groups of one queue, or of all when `queue` is empty; those after `after` by `queue/group`.
package struct GroupListRequest: WireMessage {
    package var queue: String
    package var after: String
    package var limit: UInt32
    package init(queue: String = "", after: String = "", limit: UInt32 = 1000) {
        self.queue = queue
        self.after = after
        self.limit = limit
    }
    package func encode(into builder: inout ByteBuilder) {
        builder.put(queue)
        builder.put(after)
        builder.put(limit)
    }
    package init(from parser: inout ByteParser) throws(ByteParserError) {
        queue = try parser.string()
        after = try parser.string()
        limit = try parser.u32()
    }
}

/// A group's place in one partition, and how far behind it is.
package struct GroupCursor: WireMessage {
    package var partition: UInt32
    package var index: UInt32
    /// Every offset below it is acked.
    package var ackFloor: UInt64
    package var highWatermark: UInt64
    package var lagRecords: UInt64
    package var lagBytes: UInt64
    /// The age of the oldest record that is not acked, in milliseconds.
    package var lagMilliseconds: UInt64
    /// The member that reads it; empty when there is none.
    package var member: String
    /// `delivering`, `idle`, `wait-credit`, `wait-ack`, `wait-send`, `reading`, `unassigned`.
    package var state: String
    package var stateMilliseconds: UInt64

    package init(
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
    package func encode(into builder: inout ByteBuilder) {
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
    package init(from parser: inout ByteParser) throws(ByteParserError) {
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

package struct GroupInfo: WireMessage {
    package var id: UInt32
    package var queue: String
    package var name: String
    /// `ordered`.
    package var mode: String
    package var generation: UInt64
    package var members: [String]
    package var lagRecords: UInt64
    /// Empty in a list.
    package var cursors: [GroupCursor]

    package init(
        id: UInt32, queue: String, name: String, mode: String, generation: UInt64,
        members: [String], lagRecords: UInt64, cursors: [GroupCursor]
    ) {
        self.id = id
        self.queue = queue
        self.name = name
        self.mode = mode
        self.generation = generation
        self.members = members
        self.lagRecords = lagRecords
        self.cursors = cursors
    }
    package func encode(into builder: inout ByteBuilder) {
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
    package init(from parser: inout ByteParser) throws(ByteParserError) {
        id = try parser.u32()
        queue = try parser.string()
        name = try parser.string()
        mode = try parser.string()
        generation = try parser.u64()
        members = []
        for _ in 0 ..< (try parser.count(itemBytesMin: 2)) { members.append(try parser.string()) }
        lagRecords = try parser.u64()
        cursors = try parser.list(of: GroupCursor.self, itemBytesMin: 60)
    }
}

package struct GroupListReply: WireMessage {
    package var groups: [GroupInfo]
    package var more: Bool
    package init(groups: [GroupInfo], more: Bool) {
        self.groups = groups
        self.more = more
    }
    package func encode(into builder: inout ByteBuilder) {
        builder.put(list: groups)
        builder.put(more)
    }
    package init(from parser: inout ByteParser) throws(ByteParserError) {
        groups = try parser.list(of: GroupInfo.self, itemBytesMin: 34)
        more = try parser.bool()
    }
}
