import BrokerBasics
import Testing

@Suite("byte builder and parser")
struct ByteBuilderTests {
    @Test("numbers are little-endian, texts have a u16 length, byte strings a u32 length")
    func layout() {
        var builder = ByteBuilder()
        builder.put(UInt8(0x01))
        builder.put(UInt16(0x0203))
        builder.put(UInt32(0x0405_0607))
        builder.put(UInt64(0x0809_0A0B_0C0D_0E0F))
        builder.put(true)
        builder.put("é")
        builder.put(bytes: [0xAA])
        [UInt8]([0xBB]).withUnsafeBytes { builder.put(raw: $0) }
        #expect(
            builder.bytes == [
                1, 3, 2, 7, 6, 5, 4, 0x0F, 0x0E, 0x0D, 0x0C, 0x0B, 0x0A, 9, 8, 1,
                2, 0, 0xC3, 0xA9, 1, 0, 0, 0, 0xAA, 0xBB,
            ]
        )
    }

    @Test("what was built is parsed, to the last byte")
    func roundTrip() throws {
        var builder = ByteBuilder()
        builder.put(UInt8.max)
        builder.put(UInt16.max)
        builder.put(UInt32.max)
        builder.put(UInt64.max)
        builder.put(false)
        builder.put("text")
        builder.put("")
        builder.put(bytes: [1, 2])
        try builder.bytes.withUnsafeBytes { bytes throws in
            var parser = ByteParser(bytes)
            #expect(try parser.u8() == .max)
            #expect(try parser.u16() == .max)
            #expect(try parser.u32() == .max)
            #expect(try parser.u64() == .max)
            #expect(try parser.bool() == false)
            #expect(try parser.string() == "text")
            #expect(try parser.string() == "")
            #expect(try parser.byteString() == [1, 2])
            #expect(parser.remaining == 0)
            #expect(throws: ByteParserError.truncated) { try parser.u8() }
            #expect(parser.position == bytes.count)
        }
    }

    @Test("a text longer than 65,535 bytes is cut at a character")
    func longText() throws {
        for (character, bytes) in [("a", 1), ("é", 2), ("😀", 4)] {
            var builder = ByteBuilder()
            builder.put(String(repeating: character, count: 65_600 / bytes + 1))
            let kept = 65_535 / bytes
            #expect(builder.bytes.count == 2 + kept * bytes)
            try builder.bytes.withUnsafeBytes { buffer in
                var parser = ByteParser(buffer)
                let text = try parser.string()
                #expect(text == String(repeating: character, count: kept))
            }
        }
    }

    @Test("nothing is read from no bytes")
    func empty() throws {
        var parser = ByteParser(UnsafeRawBufferPointer(start: nil, count: 0))
        #expect(throws: ByteParserError.truncated) { try parser.u8() }
        #expect(throws: ByteParserError.truncated) { try parser.string() }
        #expect(throws: ByteParserError.truncated) { try parser.raw(1) }
        #expect(throws: ByteParserError.truncated) { try parser.raw(-1) }
        #expect(try parser.raw(0).isEmpty)
    }

    @Test("a count is held against the bytes that remain")
    func counts() throws {
        func count(_ count: UInt8, remaining: Int, itemBytesMin: Int) throws -> Int {
            try ([count, 0, 0, 0] + [UInt8](repeating: 0, count: remaining)).withUnsafeBytes {
                var parser = ByteParser($0)
                return try parser.count(itemBytesMin: itemBytesMin)
            }
        }
        #expect(try count(2, remaining: 8, itemBytesMin: 4) == 2)
        #expect(throws: ByteParserError.truncated) {
            try count(2, remaining: 7, itemBytesMin: 4)
        }
        #expect(throws: ByteParserError.truncated) {
            try count(3, remaining: 2, itemBytesMin: 0)
        }
        #expect(try count(0, remaining: 0, itemBytesMin: 4) == 0)
    }
}
