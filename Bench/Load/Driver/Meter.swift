internal import BrokerBasics
package import Histogram

/// What one series of the run has measured.
package struct Meter {
    /// Nanoseconds, three significant digits, up to 100 s (what is longer counts as that).
    ///
    /// Its memory is fixed.
    package private(set) var histogram = Histogram<UInt64>(
        lowestDiscernibleValue: 1,
        highestTrackableValue: Self.longestNanoseconds,
        numberOfSignificantValueDigits: .three
    )
    /// Finished inside the measured interval.
    package fileprivate(set) var records: UInt64 = 0
    /// Finished at any time.
    package fileprivate(set) var recordsEver: UInt64 = 0
    package fileprivate(set) var lastNanoseconds: UInt64 = 0

    private static let longestNanoseconds: UInt64 = 100_000_000_000

    /// A run of frames that were sent at one time: many share a stamp, so the histogram is touched
    /// once per run and not once per frame.
    private var runStamp: UInt64 = 0
    private var runFrames: UInt64 = 0

    package init() {}

    @inline(__always)
    mutating func finished(stamp: UInt64, now: UInt64) {
        if stamp == runStamp {
            runFrames &+= 1
            return
        }
        flush(now: now)
        runStamp = stamp
        runFrames = 1
    }

    /// Closes the run; before `now` changes.
    @inline(__always)
    mutating func flush(now: UInt64) {
        guard runFrames > 0 else { return }
        let taken = now > runStamp ? now - runStamp : 0
        _ = histogram.record(min(taken, Self.longestNanoseconds), count: runFrames)
        runFrames = 0
        runStamp = 0
    }

    @inline(__always)
    mutating func count(records more: UInt64, now: UInt64, measured: Bool) {
        recordsEver &+= more
        if measured { records &+= more }
        lastNanoseconds = now
    }
}

/// Errors by name: a status code's, or one of the driver's own checks.
///
/// Off the hot path: it allocates.
package struct Failures: Sendable {
    package private(set) var counts: [String: UInt64] = [:]
    /// The broker's sentence with the first refusal of each kind.
    package private(set) var messages: [String: String] = [:]
    package private(set) var total: UInt64 = 0

    package init() {}

    package mutating func add(_ name: String, count: UInt64 = 1, message: String = "") {
        guard count > 0 else { return }
        counts[name, default: 0] += count
        total += count
        if !message.isEmpty, messages[name] == nil { messages[name] = message }
    }

    /// `sequence-gap 3 (text of the broker), unconfirmed 12`.
    package var summary: String {
        counts.sorted { $0.key < $1.key }
            .map { name, count in
                "\(name) \(count)" + (messages[name].map { " (\($0))" } ?? "")
            }
            .joined(separator: ", ")
    }
}
