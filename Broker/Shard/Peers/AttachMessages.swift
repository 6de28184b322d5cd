internal import BrokerBasics
internal import WireProtocol

// What fronts and owners say to each other of routed subscriptions. See RoutedSubscription.swift.

/// The front tells an owner which partitions a subscription reads there.
struct AttachRequest: WireMessage {
    var round: UInt32
    /// The subscription ends.
    var leaves: Bool
    var queue: UInt32
    var group: UInt32
    var generation: UInt64
    var start: StartPosition
    var partitions: [UInt32]
    /// Of them, those that it read elsewhere before: it goes on there.
    var places: [ReaderPlace]

    init(
        round: UInt32, leaves: Bool, queue: UInt32, group: UInt32, generation: UInt64,
        start: StartPosition, partitions: [UInt32], places: [ReaderPlace]
    ) {
        self.round = round
        self.leaves = leaves
        self.queue = queue
        self.group = group
        self.generation = generation
        self.start = start
        self.partitions = partitions
        self.places = places
    }
    func encode(into builder: inout ByteBuilder) {
        builder.put(round)
        builder.put(leaves)
        builder.put(queue)
        builder.put(group)
        builder.put(generation)
        // The start, as a subscribe says it.
        SubscribeRequest(queue: "", start: start, creditRecords: 0, creditBytes: 0)
            .encode(into: &builder)
        builder.put(UInt32(partitions.count))
        for partition in partitions { builder.put(partition) }
        builder.put(list: places)
    }
    init(from parser: inout ByteParser) throws(ByteParserError) {
        round = try parser.u32()
        leaves = try parser.bool()
        queue = try parser.u32()
        group = try parser.u32()
        generation = try parser.u64()
        start = try SubscribeRequest(from: &parser).start
        partitions = []
        for _ in 0..<(try parser.count(itemBytesMin: 4)) { partitions.append(try parser.u32()) }
        places = try parser.list(of: ReaderPlace.self, itemBytesMin: ReaderPlace.byteCount)
    }
}

/// Where a subscription stands in a partition that went to another shard: what was delivered before is not
/// delivered again. The owner that had it says so, behind its last delivery.
struct ReaderPlace: WireMessage {
    var partition: UInt32
    var nextOffset: UInt64
    /// Batches appended before are passed over; 0: none.
    var notBefore: UInt64

    static let byteCount = 20

    init(partition: UInt32, nextOffset: UInt64, notBefore: UInt64) {
        self.partition = partition
        self.nextOffset = nextOffset
        self.notBefore = notBefore
    }
    func encode(into builder: inout ByteBuilder) {
        builder.put(partition)
        builder.put(nextOffset)
        builder.put(notBefore)
    }
    init(from parser: inout ByteParser) throws(ByteParserError) {
        partition = try parser.u32()
        nextOffset = try parser.u64()
        notBefore = try parser.u64()
    }
}

/// An owner's answer, or shard 0's to one who joins a group: never an error frame, which could be taken
/// for the answer to a publish of the same client.
struct AttachReply: WireMessage {
    var round: UInt32
    var status: UInt16
    var message: String
    var group: UInt32
    var assignment: Assignment

    init(
        round: UInt32, status: StatusCode = .ok, message: String = "", group: UInt32 = 0,
        assignment: Assignment = Assignment(generation: 0, partitions: [])
    ) {
        self.round = round
        self.status = status.rawValue
        self.message = message
        self.group = group
        self.assignment = assignment
    }
    func encode(into builder: inout ByteBuilder) {
        builder.put(round)
        builder.put(status)
        builder.put(message)
        builder.put(group)
        assignment.encode(into: &builder)
    }
    init(from parser: inout ByteParser) throws(ByteParserError) {
        round = try parser.u32()
        status = try parser.u16()
        message = try parser.string()
        group = try parser.u32()
        assignment = try Assignment(from: &parser)
    }
}
