import BrokerBasics
import Testing

@Suite("CRC32C")
struct CRC32CTests {
    private static let data: [UInt8] = {
        var random = SeededRandom(seed: 0x5EED_0010)
        return (0..<20_100).map { _ in UInt8(truncatingIfNeeded: random.next()) }
    }()

    /// All short ones, those around each change of method, and some in between.
    private static let lengths: [Int] = {
        var lengths = Set(0...300)
        for edge in [
            512, 768, 1024, 1536, 2304, 6144, 6912, 12_288, 13_056, 18_432, 19_200, 20_000,
        ] {
            lengths.formUnion((edge - 9...edge + 9).filter { $0 <= 20_000 })
        }
        var random = SeededRandom(seed: 0x5EED_0011)
        for _ in 0..<300 { lengths.insert(random.below(20_001)) }
        return lengths.sorted()
    }()

    @Test("the check value, in both forms")
    func checkValue() {
        [UInt8]("123456789".utf8).withUnsafeBytes { bytes in
            #expect(CRC32C.of(bytes) == 0xE306_9283)
            #expect(CRC32C.portable(0, bytes) == 0xE306_9283)
        }
    }

    @Test("the vectors of RFC 3720, appendix B.4")
    func vectors() {
        let ascending = [UInt8](0..<32)
        let table: [([UInt8], UInt32)] = [
            ([UInt8](repeating: 0, count: 32), 0x8A91_36AA),
            ([UInt8](repeating: 0xFF, count: 32), 0x62A8_AB43),
            (ascending, 0x46DD_794E),
            (ascending.reversed(), 0x113F_DB5C),
        ]
        for (bytes, expected) in table {
            #expect(bytes.withUnsafeBytes { CRC32C.of($0) } == expected)
        }
    }

    @Test("the fast form agrees with the table, at every alignment", arguments: 0..<16)
    func fast(alignment: Int) {
        Self.data.withUnsafeBytes { data in
            for length in Self.lengths {
                let bytes = UnsafeRawBufferPointer(
                    rebasing: data[alignment..<alignment + length]
                )
                let seed = UInt32(truncatingIfNeeded: length &* 2_654_435_761)
                let expected = CRC32C.portable(seed, bytes)
                #expect(CRC32C.extend(seed, bytes) == expected, "\(length) bytes")
                #expect(CRC32C.inLanes(seed, bytes) == expected, "\(length) bytes")
                if let base = bytes.baseAddress {
                    #expect(CRC32C.extend(seed, base, count: length) == expected)
                }
            }
        }
    }

    @Test("extending is the same as one pass, wherever the bytes are cut")
    func extends() {
        Self.data.withUnsafeBytes { data in
            let whole = UnsafeRawBufferPointer(rebasing: data[..<7000])
            let expected = CRC32C.of(whole)
            for cut in stride(from: 0, through: 7000, by: 13) {
                let first = CRC32C.of(UnsafeRawBufferPointer(rebasing: whole[..<cut]))
                let both = CRC32C.extend(first, UnsafeRawBufferPointer(rebasing: whole[cut...]))
                #expect(both == expected, "cut at \(cut)")
            }
        }
    }

    @Test("headers and stamps, whose lengths are fixed")
    func fixed() {
        Self.data.withUnsafeBytes { data in
            guard let base = data.baseAddress else { return }
            for at in 0..<100 {
                let seed = UInt32(truncatingIfNeeded: at &* 2_654_435_761)
                func expected(_ count: Int) -> UInt32 {
                    CRC32C.portable(seed, UnsafeRawBufferPointer(start: base + at, count: count))
                }
                #expect(CRC32C.extend(seed, base + at, fixed: 4) == expected(4))
                #expect(CRC32C.extend(seed, base + at, fixed: 8) == expected(8))
                #expect(CRC32C.extend(seed, base + at, fixed: 20) == expected(20))
                #expect(CRC32C.extend(seed, base + at, fixed: 28) == expected(28))
            }
        }
    }

    @Test("no bytes change nothing, and a number counts as its eight little-endian bytes")
    func edges() {
        #expect(CRC32C.extend(7, UnsafeRawBufferPointer(start: nil, count: 0)) == 7)
        #expect(CRC32C.portable(7, UnsafeRawBufferPointer(start: nil, count: 0)) == 7)
        let bytes: [UInt8] = [8, 7, 6, 5, 4, 3, 2, 1]
        #expect(
            CRC32C.extend(7, 0x0102_0304_0506_0708)
                == bytes.withUnsafeBytes { CRC32C.extend(7, $0) }
        )
    }
}
