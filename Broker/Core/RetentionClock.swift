public import BrokerBasics

// How it works. Append times are wall time, and a wall clock may step: NTP finds its server, somebody sets
// the date, the machine was off. A step forward would make records old at once. So ages are measured by
// a clock of their own, which never runs ahead of the wall clock and gains on it, after a step, at no
// more than `paceMax` times the real pace:
//
//     wall      ___________________|‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾   a step of a day
//     ages      _____________________/‾‾‾‾‾‾‾‾‾‾‾‾‾   is taken in within an hour
//
// A step back is followed at once: records are then younger, and kept for longer.

/// The time by which retention tells how old a record is. Owned by one shard.
public struct RetentionClock: Sendable {
    /// In an hour of real time records grow older by a day at most.
    public static let paceMax: UInt64 = 24

    public private(set) var time: WallTime
    private var last: MonotonicTime

    /// - Parameter time: the last time that is known to have been; never above the wall clock.
    public init(time: WallTime, now: Instant) {
        self.time = min(time, now.wall)
        last = now.monotonic
    }

    public mutating func advance(to now: Instant) {
        let (gained, overflow) = now.monotonic.since(last)
            .multipliedReportingOverflow(by: Self.paceMax)
        last = now.monotonic
        let behind = now.wall.nanoseconds - min(now.wall.nanoseconds, time.nanoseconds)
        time = WallTime(
            nanoseconds: overflow || gained >= behind
                ? now.wall.nanoseconds : time.nanoseconds + gained)
        time = min(time, now.wall)
    }

    /// By how much it is behind the wall clock, in nanoseconds.
    public func behind(_ now: Instant) -> UInt64 {
        now.wall.nanoseconds - min(now.wall.nanoseconds, time.nanoseconds)
    }
}
