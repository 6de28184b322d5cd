package import BrokerBasics

/// The first frame on every connection: what the client speaks.
package struct HelloRequest: WireMessage {
    package var versionMin: UInt8
    package var versionMax: UInt8
    package var features: UInt64
    /// The largest frame that the client takes, in bytes.
    package var frameBytesMax: UInt32
    package var clientName: String

    package init(
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
    package func encode(into builder: inout ByteBuilder) {
        builder.put(versionMin)
        builder.put(versionMax)
        builder.put(features)
        builder.put(frameBytesMax)
        builder.put(clientName)
    }
    package init(from parser: inout ByteParser) throws(ByteParserError) {
        versionMin = try parser.u8()
        versionMax = try parser.u8()
        features = try parser.u64()
        frameBytesMax = try parser.u32()
        clientName = try parser.string()
    }
}

/// Where a shard can be reached directly.
package struct ShardAddress: WireMessage {
    package var shard: UInt16
    package var address: String
    package init(shard: UInt16, address: String) {
        self.shard = shard
        self.address = address
    }
    package func encode(into builder: inout ByteBuilder) {
        builder.put(shard)
        builder.put(address)
    }
    package init(from parser: inout ByteParser) throws(ByteParserError) {
        shard = try parser.u16()
        address = try parser.string()
    }
}

/// What was agreed, who the server is, and where its shards are.
package struct HelloReply: WireMessage {
    package var version: UInt8
    package var features: UInt64
    package var frameBytesMax: UInt32
    /// Chosen when the data directory was made.
    package var serverID: UInt64
    /// One higher at each start.
    package var serverEpoch: UInt64
    package var shards: [ShardAddress]

    package init(
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
    package func encode(into builder: inout ByteBuilder) {
        builder.put(version)
        builder.put(features)
        builder.put(frameBytesMax)
        builder.put(serverID)
        builder.put(serverEpoch)
        builder.put(list: shards)
    }
    package init(from parser: inout ByteParser) throws(ByteParserError) {
        version = try parser.u8()
        features = try parser.u64()
        frameBytesMax = try parser.u32()
        serverID = try parser.u64()
        serverEpoch = try parser.u64()
        shards = try parser.list(of: ShardAddress.self, itemBytesMin: 4)
    }
}

/// What the server says of itself, as names and texts in a stable order.
package struct ServerDescription: WireMessage {
    package var facts: [Pair]
    package init(facts: [Pair]) { self.facts = facts }
    package func encode(into builder: inout ByteBuilder) { builder.put(list: facts) }
    package init(from parser: inout ByteParser) throws(ByteParserError) {
        facts = try parser.list(of: Pair.self, itemBytesMin: 4)
    }
}
