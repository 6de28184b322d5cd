import BrokerBasics
import Testing

@Suite("times, random numbers and raw bytes")
struct NumberTests {
    @Test("a deadline beyond the end of the clock is never, and no time has passed before a start")
    func monotonic() {
        #expect(MonotonicTime(nanoseconds: 5) + 6 == MonotonicTime(nanoseconds: 11))
        #expect(MonotonicTime(nanoseconds: .max - 1) + 2 == .never)
        #expect(MonotonicTime(nanoseconds: 9).since(MonotonicTime(nanoseconds: 4)) == 5)
        #expect(MonotonicTime(nanoseconds: 4).since(MonotonicTime(nanoseconds: 9)) == 0)
        #expect(MonotonicTime.zero < .never)
    }

    @Test("the same seed gives the same numbers, those of SplitMix64")
    func seeded() {
        var random = SeededRandom(seed: 1_234_567)
        #expect(random.next() == 6_457_827_717_110_365_317)
        #expect(random.next() == 3_203_168_211_198_807_973)
        #expect(random.next() == 9_817_491_932_198_370_423)
        #expect(random.below(0) == 0)
        #expect(random.below(-3) == 0)
        #expect((0..<1000).allSatisfy { _ in (0..<7).contains(random.below(7)) })
        #expect((0..<100).allSatisfy { _ in random.chance(1, in: 1) })
        #expect((0..<100).allSatisfy { _ in !random.chance(0, in: 9) })
    }

    @Test("numbers are stored and loaded little-endian at every alignment")
    func rawBytes() {
        for at in 0..<8 {
            var bytes = [UInt8](repeating: 0, count: 24)
            bytes.withUnsafeMutableBytes { buffer in
                guard let base = buffer.baseAddress else { return }
                base.put(UInt64(0x0102_0304_0506_0708), at)
                base.put(UInt32(0x1112_1314), at + 8)
                base.put(UInt16(0x2122), at + 12)
                base.put(UInt8(0x31), at + 14)
                let loads = UnsafeRawPointer(base)
                #expect(loads.u64(at) == 0x0102_0304_0506_0708)
                #expect(loads.u32(at + 8) == 0x1112_1314)
                #expect(loads.u16(at + 12) == 0x2122)
                #expect(loads.u8(at + 14) == 0x31)
            }
            #expect(
                [UInt8](bytes[at..<at + 15])
                    == [8, 7, 6, 5, 4, 3, 2, 1, 0x14, 0x13, 0x12, 0x11, 0x22, 0x21, 0x31]
            )
        }
    }

    @Test("rounding up goes to the next multiple and leaves a multiple alone")
    func rounding() {
        for value in 0..<40 {
            let expected = (value + 7) / 8 * 8
            #expect(value.roundedUp(to: 8) == expected)
            #expect(UInt64(value).roundedUp(to: 8) == UInt64(expected))
        }
    }
}
