import Testing
import WireProtocol

@Suite("optional fields")
struct OptionalFieldsTests {
    private static let trace = [UInt8](repeating: 9, count: 25)

    struct Row: Sendable, CustomTestStringConvertible {
        let testDescription: String
        let bytes: [UInt8]
        let status: StatusCode
    }

    static let rows: [Row] = [
        Row(testDescription: "none", bytes: [], status: .ok),
        Row(testDescription: "half a head", bytes: [1], status: .badFrame),
        Row(testDescription: "a head but for one byte", bytes: [1, 0, 0], status: .badFrame),
        Row(testDescription: "unknown optional, empty", bytes: [9, 0, 0, 0], status: .ok),
        Row(testDescription: "number 0, optional", bytes: [0, 0, 0, 0], status: .ok),
        Row(testDescription: "unknown optional", bytes: [9, 0, 2, 0, 1, 2], status: .ok),
        Row(testDescription: "longer than there is", bytes: [9, 0, 3, 0, 1, 2], status: .badFrame),
        Row(testDescription: "longest", bytes: [9, 0, 0xFF, 0xFF, 1], status: .badFrame),
        Row(
            testDescription: "bytes behind the last",
            bytes: [9, 0, 1, 0, 1, 2],
            status: .badFrame
        ),
        Row(
            testDescription: "unknown mandatory",
            bytes: [9, 0x80, 0, 0],
            status: .unknownMandatoryField
        ),
        Row(
            testDescription: "number 0, mandatory",
            bytes: [0, 0x80, 0, 0],
            status: .unknownMandatoryField
        ),
        Row(
            testDescription: "unknown mandatory behind an optional",
            bytes: [9, 0, 1, 0, 7, 9, 0x80, 0, 0],
            status: .unknownMandatoryField
        ),
        Row(
            testDescription: "unknown mandatory that is too long",
            bytes: [9, 0x80, 1, 0],
            status: .badFrame
        ),
        Row(testDescription: "trace context", bytes: [1, 0, 25, 0] + trace, status: .ok),
        Row(testDescription: "mandatory", bytes: [1, 0x80, 25, 0] + trace, status: .ok),
        Row(
            testDescription: "trace context, too short",
            bytes: [1, 0, 24, 0] + trace.dropLast(),
            status: .badFrame
        ),
        Row(
            testDescription: "trace context, too long",
            bytes: [1, 0, 26, 0] + trace + [1],
            status: .badFrame
        ),
        Row(
            testDescription: "trace context, then another",
            bytes: [1, 0, 25, 0] + trace + [9, 0, 0, 0],
            status: .ok
        ),
    ]

    @Test("optional fields are walked, skipped or refused", arguments: rows)
    func check(row: Row) {
        #expect(withGuardedBytes(row.bytes) { OptionalFields.check($0) } == row.status)
    }

    @Test("a trace context has 25 bytes")
    func traceContext() {
        #expect(TraceContext(bytes: Self.trace)?.bytes == Self.trace)
        #expect(TraceContext(bytes: Self.trace.dropLast()) == nil)
        #expect(TraceContext(bytes: Self.trace + [1]) == nil)
    }
}
