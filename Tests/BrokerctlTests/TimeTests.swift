import Testing
import WireProtocol
import brokerctl

@Suite struct TimeTests {
    @Test(
        "times are read in UTC, with zones, fractions, and as Unix time",
        arguments: [
            ("1970-01-01T00:00:00Z", 0),
            ("2024-08-08T12:34:56Z", 1_723_120_496_000_000_000),
            ("2024-08-08t12:34:56.5z", 1_723_120_496_500_000_000),
            ("2024-08-08 14:34:56.123456789+02:00", 1_723_120_496_123_456_789),
            ("2024-08-08T07:04:56.1234567899-05:30", 1_723_120_496_123_456_789),
            ("2024-02-29T00:00:00Z", 1_709_164_800_000_000_000),
            ("2000-03-01T00:00:00Z", 951_868_800_000_000_000),
            ("@1723120496", 1_723_120_496_000_000_000),
            ("@1723120496.25", 1_723_120_496_250_000_000),
            ("@1723120496000000001ns", 1_723_120_496_000_000_001),
        ] as [(String, UInt64)]
    )
    func lawful(text: String, nanoseconds: UInt64) {
        #expect(CivilTime.parse(text) == nanoseconds)
        #expect(ConsumeArguments.position(text) == .time(nanoseconds))
    }

    @Test(
        "what is no time is refused",
        arguments: [
            "", "@", "@x", "@-1", "@1.", "@1.2.3", "@ns", "@99999999999999999999", "@18446744074",
            "2024-08-08", "2024-08-08T12:34:56", "2024-13-01T00:00:00Z", "2023-02-29T00:00:00Z",
            "2024-08-08T24:00:00Z", "2024-08-08T12:60:00Z", "2024-08-08T12:34:56.Z",
            "2024-08-08T12:34:56+2:00", "1969-12-31T23:59:59Z", "1970-01-01T00:00:00+01:00",
            "9999-12-31T00:00:00Z", "2024-08-08T12:34:56Zx", "éééééééééééééééééééé",
        ]
    )
    func unlawful(text: String) {
        #expect(CivilTime.parse(text) == nil)
        #expect(ConsumeArguments.position(text) == nil)
    }

    @Test("every day of four centuries is read as it was written")
    func roundTrip() {
        for day in stride(from: UInt64(0), to: 146_097, by: 1) {
            let nanoseconds = day * 86_400_000_000_000 + 1
            guard nanoseconds / 86_400_000_000_000 == day else { continue }
            let text = CivilTime.text(nanoseconds: nanoseconds)
            if CivilTime.parse(text) != nanoseconds {
                Issue.record("day \(day) is \(text)")
                return
            }
        }
    }

    @Test("start, end and offsets are positions")
    func positions() {
        #expect(ConsumeArguments.position("start") == .start)
        #expect(ConsumeArguments.position("end") == .end)
        #expect(ConsumeArguments.position("1723120496") == .offset(1_723_120_496))
        #expect(ConsumeArguments.position("-1") == nil)
        #expect(ConsumeArguments.position("18446744073709551616") == nil)
    }
}
