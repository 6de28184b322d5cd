/// A point on the monotonic clock, in nanoseconds. For deadlines and latency; never stored.
public struct MonotonicTime: Comparable, Hashable, Sendable {
    public var nanoseconds: UInt64

    @inlinable public init(nanoseconds: UInt64) { self.nanoseconds = nanoseconds }

    public static let zero = MonotonicTime(nanoseconds: 0)
    public static let never = MonotonicTime(nanoseconds: .max)

    @inlinable public static func < (lhs: Self, rhs: Self) -> Bool {
        lhs.nanoseconds < rhs.nanoseconds
    }
    /// Saturates: a deadline past the end of the clock is `never`.
    @inlinable public static func + (lhs: Self, nanoseconds: UInt64) -> Self {
        let (sum, overflow) = lhs.nanoseconds.addingReportingOverflow(nanoseconds)
        return Self(nanoseconds: overflow ? .max : sum)
    }
    /// How long since `earlier`, in nanoseconds; 0 when `earlier` is not earlier.
    @inlinable public func since(_ earlier: Self) -> UInt64 {
        nanoseconds > earlier.nanoseconds ? nanoseconds - earlier.nanoseconds : 0
    }
}

/// A point on the wall clock, in nanoseconds since 1970 (UTC). For what is stored.
public struct WallTime: Comparable, Hashable, Sendable {
    public var nanoseconds: UInt64

    @inlinable public init(nanoseconds: UInt64) { self.nanoseconds = nanoseconds }

    @inlinable public static func < (lhs: Self, rhs: Self) -> Bool {
        lhs.nanoseconds < rhs.nanoseconds
    }
}

/// The two clocks, read once per duty cycle and passed down: the machine never reads a clock.
public struct Instant: Sendable {
    public var monotonic: MonotonicTime
    public var wall: WallTime

    @inlinable public init(monotonic: MonotonicTime, wall: WallTime) {
        self.monotonic = monotonic
        self.wall = wall
    }
}

extension UInt64 {
    @inlinable public static func milliseconds(_ count: UInt64) -> UInt64 { count &* 1_000_000 }
    @inlinable public static func microseconds(_ count: UInt64) -> UInt64 { count &* 1_000 }
    @inlinable public static func seconds(_ count: UInt64) -> UInt64 { count &* 1_000_000_000 }
}
