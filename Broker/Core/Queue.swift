public import BrokerBasics
public import WireProtocol

/// A named, partitioned, append-only log with one configuration. Cold: looked up by control
/// requests, never per record.
public struct Queue: Sendable, Equatable {
    public var id: UInt32
    public var name: String
    public var level: DurabilityLevel
    /// Nanoseconds since 1970.
    public var createdAt: UInt64
    /// Sorted by name.
    public var labels: [Pair]
    /// Partition ids, in the order of their index.
    public var partitions: [UInt32]
    /// Where each partition lives, in the same order: stored, never computed.
    public var shards: [UInt16]
    /// Of each partition.
    public var retention: Retention

    public init(
        id: UInt32, name: String, level: DurabilityLevel, createdAt: UInt64, labels: [Pair],
        partitions: [UInt32], shards: [UInt16]? = nil, retention: Retention = .keepAll
    ) {
        self.id = id
        self.name = name
        self.level = level
        self.createdAt = createdAt
        self.labels = labels.sorted { $0.name < $1.name }
        self.partitions = partitions
        self.shards = shards ?? [UInt16](repeating: 0, count: partitions.count)
        self.retention = retention
    }

    public static let nameBytesMax = 255

    /// 1 ... 255 bytes of letters, digits, `.`, `_`, `-`, `$`; not beginning with `.` or `-`.
    public static func isValid(name: String) -> Bool {
        guard let first = name.utf8.first, name.utf8.count <= nameBytesMax,
            first != UInt8(ascii: "."), first != UInt8(ascii: "-")
        else { return false }
        return name.utf8.allSatisfy { byte in
            switch byte {
            case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
                UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "."), UInt8(ascii: "_"),
                UInt8(ascii: "-"), UInt8(ascii: "$"):
                true
            default: false
            }
        }
    }

    /// Sets the labels that are named; an empty value removes one.
    public mutating func merge(labels changes: [Pair]) {
        for change in changes {
            labels.removeAll { $0.name == change.name }
            if !change.value.isEmpty { labels.append(change) }
        }
        labels.sort { $0.name < $1.name }
    }

    public func encode(into builder: inout ByteBuilder) {
        builder.put(id)
        builder.put(name)
        builder.put(level.rawValue)
        builder.put(createdAt)
        builder.put(list: labels)
        builder.put(UInt32(partitions.count))
        for partition in partitions { builder.put(partition) }
        retention.encode(into: &builder)
        for shard in shards { builder.put(shard) }
    }

    /// What the formats of the data directory wrote: each adds to the one before.
    public enum Layout: CaseIterable {
        case plain
        case withRetention
        case withPlacement
    }

    public init(from parser: inout ByteParser, _ layout: Layout) throws(ByteParserError) {
        try self.init(from: &parser)
        if layout != .plain { retention = try Retention(from: &parser) }
        guard layout == .withPlacement else { return }
        for index in shards.indices { shards[index] = try parser.u16() }
    }

    private init(from parser: inout ByteParser) throws(ByteParserError) {
        id = try parser.u32()
        name = try parser.string()
        guard let level = DurabilityLevel(rawValue: try parser.u8()) else { throw .invalid }
        self.level = level
        createdAt = try parser.u64()
        labels = try parser.list(of: Pair.self, itemBytesMin: 4)
        partitions = []
        for _ in 0..<(try parser.count(itemBytesMin: 4)) { partitions.append(try parser.u32()) }
        shards = [UInt16](repeating: 0, count: partitions.count)
        retention = .keepAll
    }
}
