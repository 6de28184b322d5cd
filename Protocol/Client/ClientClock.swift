package import BrokerBasics
internal import Glibc

/// The two clocks, for code that waits. What decides takes `now` as an argument instead.
package enum ClientClock {
    package static func monotonic() -> MonotonicTime {
        MonotonicTime(nanoseconds: read(CLOCK_MONOTONIC))
    }
    package static func wall() -> WallTime { WallTime(nanoseconds: read(CLOCK_REALTIME)) }

    private static func read(_ clock: clockid_t) -> UInt64 {
        var time = timespec()
        // Cannot fail for these two clocks (clock_gettime(2)).
        _ = clock_gettime(clock, &time)
        return UInt64(max(0, time.tv_sec)) &* 1_000_000_000 &+ UInt64(max(0, time.tv_nsec))
    }
}

/// How long something may still take: a point on the monotonic clock, or for ever.
struct Deadline {
    private let end: MonotonicTime

    /// A negative time is for ever, as in poll(2).
    init(milliseconds: Int) {
        end =
            milliseconds < 0
            ? .never
            : ClientClock.monotonic() + UInt64(min(milliseconds, 1 << 40)) * 1_000_000
    }

    /// What is left, for poll(2): −1 for ever, rounded up so that a loop does not spin at the end.
    var remainingMilliseconds: Int {
        guard end != .never else { return -1 }
        return Int(min((end.since(ClientClock.monotonic()) + 999_999) / 1_000_000, 1 << 30))
    }
    var isOver: Bool { end != .never && ClientClock.monotonic() >= end }
}
