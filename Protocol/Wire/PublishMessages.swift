public import BrokerBasics

/// Asks for a producer id. A name makes it lasting: the same name gets the same id with the next
/// epoch, and whoever still publishes with the epoch before is fenced.
public struct ProducerOpenRequest: WireMessage {
    public var name: String
    public init(name: String = "") { self.name = name }
    public func encode(into builder: inout ByteBuilder) { builder.put(name) }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        name = try parser.string()
    }
}

public struct ProducerOpenReply: WireMessage {
    public var producerID: UInt64
    public var epoch: UInt16
    /// An idle producer is forgotten after this many seconds.
    public var expirySeconds: UInt32
    public init(producerID: UInt64, epoch: UInt16, expirySeconds: UInt32) {
        self.producerID = producerID
        self.epoch = epoch
        self.expirySeconds = expirySeconds
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(producerID)
        builder.put(epoch)
        builder.put(expirySeconds)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        producerID = try parser.u64()
        epoch = try parser.u16()
        expirySeconds = try parser.u32()
    }
}

/// One entry of a `confirm` frame: a run of publish requests whose correlation ids are consecutive,
/// stored at consecutive offsets of one partition.
///
/// ```
///  0 u64 correlation   of the first request of the run
///  8 u32 requests      how many requests
/// 12 u32 partition
/// 16 u32 epoch
/// 20 u32 records       how many records, in all
/// 24 u64 base_offset   of the first record; all ones: a duplicate whose place is not kept
/// 32 u8  level         the durability level that is reached
/// 33 u8  flags         bit 0: duplicates, stored earlier
/// 34     reserved, 6 bytes
/// ```
public struct ConfirmEntry: Equatable, Sendable {
    @inlinable public static var byteCount: Int { 40 }
    @inlinable public static var duplicateFlag: UInt8 { 1 }

    public var correlation: UInt64
    public var requests: UInt32
    public var partition: UInt32
    public var epoch: UInt32
    public var records: UInt32
    public var baseOffset: UInt64
    public var level: UInt8
    public var flags: UInt8

    @inlinable @inline(__always)
    public init(
        correlation: UInt64, requests: UInt32, partition: UInt32, epoch: UInt32, records: UInt32,
        baseOffset: UInt64, level: UInt8, flags: UInt8
    ) {
        self.correlation = correlation
        self.requests = requests
        self.partition = partition
        self.epoch = epoch
        self.records = records
        self.baseOffset = baseOffset
        self.level = level
        self.flags = flags
    }
    @inlinable @inline(__always)
    public init(at bytes: UnsafeRawPointer) {
        correlation = bytes.u64(0)
        requests = bytes.u32(8)
        partition = bytes.u32(12)
        epoch = bytes.u32(16)
        records = bytes.u32(20)
        baseOffset = bytes.u64(24)
        level = bytes.u8(32)
        flags = bytes.u8(33)
    }
    /// The offset behind the run; `Offset.unknown` when the base is.
    @inlinable @inline(__always)
    public var endOffset: UInt64 {
        baseOffset == Offset.unknown.rawValue ? baseOffset : baseOffset &+ UInt64(records)
    }

    @inlinable @inline(__always)
    public func encode(at bytes: UnsafeMutableRawPointer) {
        bytes.put(correlation, 0)
        bytes.put(requests, 8)
        bytes.put(partition, 12)
        bytes.put(epoch, 16)
        bytes.put(records, 20)
        bytes.put(baseOffset, 24)
        bytes.put(UInt64(level) | UInt64(flags) << 8, 32)
    }
}
