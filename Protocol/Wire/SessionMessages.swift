public import BrokerBasics

/// The first frame on every connection: what the client speaks.
public struct HelloRequest: WireMessage {
    public var versionMin: UInt8
    public var versionMax: UInt8
    public var features: UInt64
    /// The largest frame that the client takes, in bytes.
    public var frameBytesMax: UInt32
    public var clientName: String

    public init(
        versionMin: UInt8 = FrameHeader.version,
        versionMax: UInt8 = FrameHeader.version,
        features: UInt64 = 0,
        frameBytesMax: UInt32 = FrameHeader.defaultFrameBytesMax,
        clientName: String
    ) {
        self.versionMin = versionMin
        self.versionMax = versionMax
        self.features = features
        self.frameBytesMax = frameBytesMax
        self.clientName = clientName
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(versionMin)
        builder.put(versionMax)
        builder.put(features)
        builder.put(frameBytesMax)
        builder.put(clientName)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        versionMin = try parser.u8()
        versionMax = try parser.u8()
        features = try parser.u64()
        frameBytesMax = try parser.u32()
        clientName = try parser.string()
    }
}

/// Where a shard can be reached directly.
public struct ShardAddress: WireMessage {
    public var shard: UInt16
    public var address: String
    public init(shard: UInt16, address: String) {
        self.shard = shard
        self.address = address
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(shard)
        builder.put(address)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        shard = try parser.u16()
        address = try parser.string()
    }
}

/// What was agreed, who the server is, and where its shards are.
public struct HelloReply: WireMessage {
    public var version: UInt8
    public var features: UInt64
    public var frameBytesMax: UInt32
    /// Chosen when the data directory was made.
    public var serverID: UInt64
    /// One higher at each start.
    public var serverEpoch: UInt64
    public var shards: [ShardAddress]

    public init(
        version: UInt8, features: UInt64, frameBytesMax: UInt32, serverID: UInt64,
        serverEpoch: UInt64, shards: [ShardAddress]
    ) {
        self.version = version
        self.features = features
        self.frameBytesMax = frameBytesMax
        self.serverID = serverID
        self.serverEpoch = serverEpoch
        self.shards = shards
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(version)
        builder.put(features)
        builder.put(frameBytesMax)
        builder.put(serverID)
        builder.put(serverEpoch)
        builder.put(list: shards)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        version = try parser.u8()
        features = try parser.u64()
        frameBytesMax = try parser.u32()
        serverID = try parser.u64()
        serverEpoch = try parser.u64()
        shards = try parser.list(of: ShardAddress.self, itemBytesMin: 4)
    }
}

/// What one shard says of itself, as names and texts in a stable order.
public struct ShardInfo: WireMessage {
    public var shard: UInt16
    public var facts: [Pair]
    public init(shard: UInt16, facts: [Pair]) {
        self.shard = shard
        self.facts = facts
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(shard)
        builder.put(list: facts)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        shard = try parser.u16()
        facts = try parser.list(of: Pair.self, itemBytesMin: 4)
    }
}

public struct ShardListReply: WireMessage {
    public var shards: [ShardInfo]
    public init(shards: [ShardInfo]) { self.shards = shards }
    public func encode(into builder: inout ByteBuilder) { builder.put(list: shards) }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        shards = try parser.list(of: ShardInfo.self, itemBytesMin: 6)
    }
}

/// What the server says of itself, as names and texts in a stable order.
public struct ServerDescription: WireMessage {
    public var facts: [Pair]
    public init(facts: [Pair]) { self.facts = facts }
    public func encode(into builder: inout ByteBuilder) { builder.put(list: facts) }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        facts = try parser.list(of: Pair.self, itemBytesMin: 4)
    }
}
