/// Builds a control message or a state record field by field, little-endian.
///
/// Off the hot path: it grows an array. Strings are a `u16` length and UTF-8; byte strings and
/// lists carry a `u32` length or count.
public struct ByteBuilder {
    public private(set) var bytes: [UInt8] = []

    public init() {}

    public mutating func put(_ value: UInt8) { bytes.append(value) }
    public mutating func put(_ value: UInt16) { append(value.littleEndian) }
    public mutating func put(_ value: UInt32) { append(value.littleEndian) }
    public mutating func put(_ value: UInt64) { append(value.littleEndian) }
    public mutating func put(_ value: Bool) { bytes.append(value ? 1 : 0) }

    /// Writes at most 65,535 bytes of UTF-8; what is longer is cut at a character.
    public mutating func put(_ text: String) {
        var text = Substring(text)
        while text.utf8.count > Int(UInt16.max) { text = text.dropLast() }
        put(UInt16(text.utf8.count))
        bytes.append(contentsOf: text.utf8)
    }
    public mutating func put(bytes more: [UInt8]) {
        put(UInt32(more.count))
        bytes.append(contentsOf: more)
    }
    public mutating func put(raw more: UnsafeRawBufferPointer) { bytes.append(contentsOf: more) }

    private mutating func append(_ value: some FixedWidthInteger) {
        withUnsafeBytes(of: value) { bytes.append(contentsOf: $0) }
    }
}

/// What `ByteParser` throws: the bytes end before the field does, or the field is not valid.
public enum ByteParserError: Error, Equatable {
    case truncated
    case invalid
}

/// Reads what `ByteBuilder` wrote; every read is checked against the end.
public struct ByteParser {
    private let bytes: UnsafeRawBufferPointer
    public private(set) var position = 0

    /// `bytes` must outlive the parser.
    public init(_ bytes: UnsafeRawBufferPointer) { self.bytes = bytes }

    public var remaining: Int { bytes.count - position }

    private mutating func take(_ count: Int) throws(ByteParserError) -> UnsafeRawBufferPointer {
        guard count >= 0, count <= remaining else { throw .truncated }
        defer { position += count }
        return UnsafeRawBufferPointer(rebasing: bytes[position..<position + count])
    }
    private mutating func integer<T: FixedWidthInteger>(
        _: T.Type
    ) throws(ByteParserError) -> T {
        T(littleEndian: try take(MemoryLayout<T>.size).loadUnaligned(as: T.self))
    }

    public mutating func u8() throws(ByteParserError) -> UInt8 { try integer(UInt8.self) }
    public mutating func u16() throws(ByteParserError) -> UInt16 { try integer(UInt16.self) }
    public mutating func u32() throws(ByteParserError) -> UInt32 { try integer(UInt32.self) }
    public mutating func u64() throws(ByteParserError) -> UInt64 { try integer(UInt64.self) }
    public mutating func bool() throws(ByteParserError) -> Bool {
        switch try u8() {
        case 0: false
        case 1: true
        default: throw .invalid
        }
    }
    public mutating func string() throws(ByteParserError) -> String {
        let count = Int(try u16())
        guard let text = String(validating: try take(count), as: UTF8.self) else {
            throw .invalid
        }
        return text
    }
    public mutating func byteString() throws(ByteParserError) -> [UInt8] {
        let count = Int(try u32())
        return [UInt8](try take(count))
    }
    public mutating func raw(_ count: Int) throws(ByteParserError) -> UnsafeRawBufferPointer {
        try take(count)
    }
    /// A count of items of which each takes at least `itemBytesMin`: a lie cannot ask for memory.
    public mutating func count(itemBytesMin: Int) throws(ByteParserError) -> Int {
        let count = Int(try u32())
        guard count <= remaining / max(1, itemBytesMin) else { throw .truncated }
        return count
    }
}
