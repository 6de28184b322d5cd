// The nouns of the protocol as types, so that adding the wrong two does not compile.

/// The position of one record in one partition's log, counted in records from 0.
///
/// Never reused and never given to two records: a hole is delivered as a `lost` range.
public struct Offset: RawRepresentable, Comparable, Hashable, Sendable {
    public var rawValue: UInt64
    @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }
    @inlinable public static func < (lhs: Self, rhs: Self) -> Bool { lhs.rawValue < rhs.rawValue }
    public static let zero = Offset(rawValue: 0)
    /// Stands for "no longer known" in a confirm of a duplicate.
    public static let unknown = Offset(rawValue: .max)
}

/// One partition of one queue, server-wide; never reused, even when a queue's name is.
public struct PartitionID: RawRepresentable, Hashable, Sendable {
    public var rawValue: UInt32
    @inlinable public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// "Every partition" in a subscribe request.
    public static let all = PartitionID(rawValue: .max)
}

/// One queue; never reused, even when its name is.
public struct QueueID: RawRepresentable, Hashable, Sendable {
    public var rawValue: UInt32
    @inlinable public init(rawValue: UInt32) { self.rawValue = rawValue }
}

/// One producer: whoever numbers records so that a retry is stored once. 0 means "none".
public struct ProducerID: RawRepresentable, Hashable, Sendable {
    public var rawValue: UInt64
    @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }
    public static let none = ProducerID(rawValue: 0)
}

/// What a queue promises before it confirms (SPEC.md, section 6).
public enum DurabilityLevel: UInt8, Sendable, CaseIterable, Comparable {
    case memory = 0
    /// The kernel has it: survives a crash of the process, not of the machine.
    case written = 1
    /// On stable storage.
    case synced = 2

    @inlinable
    public static func < (one: DurabilityLevel, other: DurabilityLevel) -> Bool {
        one.rawValue < other.rawValue
    }

    public var name: String {
        switch self {
        case .memory: "memory"
        case .written: "written"
        case .synced: "synced"
        }
    }
    public init?(name: String) {
        guard let level = Self.allCases.first(where: { $0.name == name }) else { return nil }
        self = level
    }
}
