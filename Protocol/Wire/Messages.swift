public import BrokerBasics

/// The body of a control frame (SPEC.md, section 4): fields in order, little-endian; see
/// `ByteBuilder` for strings and lists. Bytes behind the last known field are ignored, so that a
/// later version may add fields.
public protocol WireMessage: Equatable, Sendable {
    func encode(into builder: inout ByteBuilder)
    init(from parser: inout ByteParser) throws(ByteParserError)
}

extension WireMessage {
    public var encoded: [UInt8] {
        var builder = ByteBuilder()
        encode(into: &builder)
        return builder.bytes
    }
    public init(body: UnsafeRawBufferPointer) throws(ByteParserError) {
        var parser = ByteParser(body)
        try self.init(from: &parser)
    }
    public init(body: [UInt8]) throws(ByteParserError) {
        let result = body.withUnsafeBytes { buffer in
            Result { () throws(ByteParserError) in try Self(body: buffer) }
        }
        self = try result.get()
    }
}

extension ByteBuilder {
    public mutating func put(list: [some WireMessage]) {
        put(UInt32(list.count))
        for item in list { item.encode(into: &self) }
    }
}

extension ByteParser {
    public mutating func list<T: WireMessage>(
        of _: T.Type, itemBytesMin: Int
    ) throws(ByteParserError) -> [T] {
        let count = try count(itemBytesMin: itemBytesMin)
        var list: [T] = []
        list.reserveCapacity(count)
        for _ in 0..<count { list.append(try T(from: &self)) }
        return list
    }
}

extension ByteParser {
    /// A field that a message got later: one that ends in front of it means `standard` (SPEC.md,
    /// section 4).
    mutating func later<T: WireMessage>(_ standard: T) throws(ByteParserError) -> T {
        remaining == 0 ? standard : try T(from: &self)
    }
}

/// A reply that says only "done".
public struct Empty: WireMessage {
    public init() {}
    public func encode(into builder: inout ByteBuilder) {}
    public init(from parser: inout ByteParser) throws(ByteParserError) {}
}

/// A name and a text: labels, and the facts of `server describe`.
public struct Pair: WireMessage {
    public var name: String
    public var value: String
    public init(name: String, value: String) {
        self.name = name
        self.value = value
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(name)
        builder.put(value)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        name = try parser.string()
        value = try parser.string()
    }
}

/// The body of an `error` frame: the status itself is in the header.
public struct Refusal: WireMessage {
    public var errorClass: UInt8
    public var retryAfterMilliseconds: UInt32
    /// A sentence for a person: what was tried, on what, what happened.
    public var message: String
    public init(errorClass: UInt8, retryAfterMilliseconds: UInt32 = 0, message: String) {
        self.errorClass = errorClass
        self.retryAfterMilliseconds = retryAfterMilliseconds
        self.message = message
    }
    public func encode(into builder: inout ByteBuilder) {
        builder.put(errorClass)
        builder.put(retryAfterMilliseconds)
        builder.put(message)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        errorClass = try parser.u8()
        retryAfterMilliseconds = try parser.u32()
        message = try parser.string()
    }
}
