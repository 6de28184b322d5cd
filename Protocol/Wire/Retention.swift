public import BrokerBasics

/// What each partition of a queue keeps at least (SPEC.md, section 4.3). Of several limits the first that
/// is exceeded counts; 0 is no limit.
public struct Retention: WireMessage {
    /// Of stored batches.
    public var bytes: UInt64
    /// By append time, in milliseconds.
    public var ageMilliseconds: UInt64
    public var records: UInt64

    public init(bytes: UInt64 = 0, ageMilliseconds: UInt64 = 0, records: UInt64 = 0) {
        self.bytes = bytes
        self.ageMilliseconds = ageMilliseconds
        self.records = records
    }

    public static let byteCount = 24
    public static let keepAll = Retention()
    /// In a `queue-alter`: nothing of it changes.
    public static let unchanged = Retention(
        bytes: .max, ageMilliseconds: .max, records: .max)

    /// A shorter age would ask for a file every few milliseconds, a longer one does not fit
    /// nanoseconds: 1 s to 100 years of 365 days.
    public static let ageMillisecondsRange: ClosedRange<UInt64> = 1000...3_153_600_000_000

    /// What a `queue-alter` makes of it: all ones leave a limit as it is.
    public func changed(by change: Retention) -> Retention {
        Retention(
            bytes: change.bytes == .max ? bytes : change.bytes,
            ageMilliseconds: change.ageMilliseconds == .max
                ? ageMilliseconds : change.ageMilliseconds,
            records: change.records == .max ? records : change.records)
    }

    /// False when a limit is not one that a queue can have.
    public var isValid: Bool {
        bytes != .max && records != .max
            && (ageMilliseconds == 0 || Self.ageMillisecondsRange.contains(ageMilliseconds))
    }

    public func encode(into builder: inout ByteBuilder) {
        builder.put(bytes)
        builder.put(ageMilliseconds)
        builder.put(records)
    }
    public init(from parser: inout ByteParser) throws(ByteParserError) {
        bytes = try parser.u64()
        ageMilliseconds = try parser.u64()
        records = try parser.u64()
    }
}
