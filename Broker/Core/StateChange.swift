public import BrokerBasics
public import LogStorage

/// A change of a shard's durable state, as the journal carries it. What is applied when it is staged
/// is what is applied in replay, by the same function.
public enum StateChange: Equatable, Sendable {
    case queueCreated(Queue)
    /// The whole new definition.
    case queueAltered(Queue)
    case queueDeleted(UInt32)
    case producerOpened(Producer)
    case producerExpired(UInt64)
    case groupCreated(id: UInt32, queue: UInt32, name: String, cursors: [UInt64])
    case cursor(group: UInt32, partitionIndex: UInt32, offset: UInt64)
    case reservation(partition: UInt32, end: UInt64)
    /// Records of a partition below `offset` are removed; groups go on there.
    case startMoved(partition: UInt32, offset: UInt64)
    /// A partition lives here from now on: all that is durable of it, as `PartitionImage` has it.
    case partitionAdopted([UInt8])
    /// It lives on another shard from now on; its segments are that one's.
    case partitionReleased(UInt32)

    public var kind: JournalEntryKind {
        switch self {
        case .queueCreated: .queueCreated
        case .queueAltered: .queueAltered
        case .queueDeleted: .queueDeleted
        case .producerOpened: .producerOpened
        case .producerExpired: .producerExpired
        case .groupCreated: .groupCreated
        case .cursor: .cursor
        case .reservation: .reservation
        case .startMoved: .startMoved
        case .partitionAdopted: .partitionAdopted
        case .partitionReleased: .partitionReleased
        }
    }

    public var payload: [UInt8] {
        var builder = ByteBuilder()
        switch self {
        case .queueCreated(let queue), .queueAltered(let queue): queue.encode(into: &builder)
        case .queueDeleted(let id): builder.put(id)
        case .producerOpened(let producer):
            builder.put(producer.id)
            builder.put(producer.epoch)
            builder.put(producer.name)
            builder.put(producer.lastSeen)
        case .producerExpired(let id): builder.put(id)
        case .groupCreated(let id, let queue, let name, let cursors):
            builder.put(id)
            builder.put(queue)
            builder.put(name)
            builder.put(UInt32(cursors.count))
            for cursor in cursors { builder.put(cursor) }
        case .cursor(let group, let index, let offset):
            builder.put(group)
            builder.put(index)
            builder.put(offset)
        case .reservation(let partition, let end):
            builder.put(partition)
            builder.put(end)
        case .startMoved(let partition, let offset):
            builder.put(partition)
            builder.put(offset)
        case .partitionAdopted(let image): return image
        case .partitionReleased(let id): builder.put(id)
        }
        return builder.bytes
    }

    public static let cursorBytes = 16

    /// Writes the payload of `.cursor` to `room`, which has `cursorBytes`.
    public static func putCursor(
        _ room: UnsafeMutableRawPointer, group: UInt32, partitionIndex: UInt32, offset: UInt64
    ) {
        room.put(group, 0)
        room.put(partitionIndex, 4)
        room.put(offset, 8)
    }

    /// - Returns: `nil` for a batch, which is not a change of state but data.
    public init?(
        kind: JournalEntryKind, payload: UnsafeRawBufferPointer
    ) throws(ByteParserError) {
        var parser = ByteParser(payload)
        switch kind {
        case .batch: return nil
        case .queueCreated: self = .queueCreated(try Self.queue(from: &parser))
        case .queueAltered: self = .queueAltered(try Self.queue(from: &parser))
        case .queueDeleted: self = .queueDeleted(try parser.u32())
        case .producerOpened:
            self = .producerOpened(
                Producer(
                    id: try parser.u64(), epoch: try parser.u16(), name: try parser.string(),
                    lastSeen: try parser.u64()))
        case .producerExpired: self = .producerExpired(try parser.u64())
        case .groupCreated:
            let id = try parser.u32()
            let queue = try parser.u32()
            let name = try parser.string()
            var cursors: [UInt64] = []
            for _ in 0..<(try parser.count(itemBytesMin: 8)) { cursors.append(try parser.u64()) }
            self = .groupCreated(id: id, queue: queue, name: name, cursors: cursors)
        case .cursor:
            self = .cursor(
                group: try parser.u32(), partitionIndex: try parser.u32(),
                offset: try parser.u64())
        case .reservation:
            self = .reservation(partition: try parser.u32(), end: try parser.u64())
        case .startMoved:
            self = .startMoved(partition: try parser.u32(), offset: try parser.u64())
        case .partitionAdopted: self = .partitionAdopted([UInt8](payload))
        case .partitionReleased: self = .partitionReleased(try parser.u32())
        }
    }

    /// Format 1 ended the payload in front of the retention, format 2 in front of the placement.
    private static func queue(from parser: inout ByteParser) throws(ByteParserError) -> Queue {
        for layout in Queue.Layout.allCases {
            var attempt = parser
            let queue = try Queue(from: &attempt, layout)
            if attempt.remaining == 0 {
                parser = attempt
                return queue
            }
        }
        throw .invalid
    }
}
