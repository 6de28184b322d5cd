package import BrokerBasics

/// The body of a control frame (SPEC.md, section 4): fields in order, little-endian; see
/// `ByteBuilder` for strings and lists. Bytes behind the last known field are ignored, so that a
/// later version may add fields.
package protocol WireMessage: Equatable, Sendable {
    func encode(into builder: inout ByteBuilder)
    init(from parser: inout ByteParser) throws(ByteParserError)
}

extension WireMessage {
    package var encoded: [UInt8] {
        var builder = ByteBuilder()
        encode(into: &builder)
        return builder.bytes
    }
    package init(body: UnsafeRawBufferPointer) throws(ByteParserError) {
        var parser = ByteParser(body)
        try self.init(from: &parser)
    }
    package init(body: [UInt8]) throws(ByteParserError) {
        let result = body.withUnsafeBytes { buffer in
            Result { () throws(ByteParserError) in try Self(body: buffer) }
        }
        self = try result.get()
    }
}

extension ByteBuilder {
    package mutating func put(list: [some WireMessage]) {
        put(UInt32(list.count))
        for item in list { item.encode(into: &self) }
    }
}

extension ByteParser {
    package mutating func list<T: WireMessage>(
        of _: T.Type, itemBytesMin: Int
    ) throws(ByteParserError) -> [T] {
        let count = try count(itemBytesMin: itemBytesMin)
        var list: [T] = []
        list.reserveCapacity(count)
        for _ in 0 ..< count { list.append(try T(from: &self)) }
        return list
    }
}

/// A reply that says only "done".
package struct Empty: WireMessage {
    package init() {}
    package func encode(into builder: inout ByteBuilder) {}
    package init(from parser: inout ByteParser) throws(ByteParserError) {}
}

/// A name and a text: labels, and the facts of `server describe`.
package struct Pair: WireMessage {
    package var name: String
    package var value: String
    package init(name: String, value: String) {
        self.name = name
        self.value = value
    }
    package func encode(into builder: inout ByteBuilder) {
        builder.put(name)
        builder.put(value)
    }
    package init(from parser: inout ByteParser) throws(ByteParserError) {
        name = try parser.string()
        value = try parser.string()
    }
}

/// The body of an `error` frame: the status itself is in the header.
package struct Refusal: WireMessage {
    package var errorClass: UInt8
    package var retryAfterMilliseconds: UInt32
    /// A sentence for a person: what was tried, on what, what happened.
    package var message: String
    package init(errorClass: UInt8, retryAfterMilliseconds: UInt32 = 0, message: String) {
        self.errorClass = errorClass
        self.retryAfterMilliseconds = retryAfterMilliseconds
        self.message = message
    }
    package func encode(into builder: inout ByteBuilder) {
        builder.put(errorClass)
        builder.put(retryAfterMilliseconds)
        builder.put(message)
    }
    package init(from parser: inout ByteParser) throws(ByteParserError) {
        errorClass = try parser.u8()
        retryAfterMilliseconds = try parser.u32()
        message = try parser.string()
    }
}
