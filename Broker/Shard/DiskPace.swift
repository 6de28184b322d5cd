internal import BrokerBasics
internal import LogStorage

// How it works. A disk that is late is not a failure: whoever waits for it waits on, within the bounds of tail and
// journal, and everybody else is served. But nothing is recorded of a write before it completes, so one that is under
// way is looked at while it is, once a millisecond with the rest of the housekeeping.

/// Whether the disk keeps the journal waiting longer than `diskSlowNanoseconds`.
struct DiskPace {
    /// A slow disk is steady again when nothing took that long for this long: one line for a bad time, not one for
    /// each of its writes.
    static let calmNanoseconds: UInt64 = .seconds(10)
    /// A journal write that takes longer than this is far from what a disk takes as a rule (99.9 % take less than
    /// a millisecond, see the README).
    static let lateNanoseconds: UInt64 = .milliseconds(5)

    fileprivate(set) var isSlow = false
    /// When something was last seen that took too long.
    fileprivate var lastSlow = MonotonicTime.zero
    fileprivate var longestNanoseconds: UInt64 = 0
}

extension ShardMachine {
    /// For how long the oldest journal write or sync is under way; 0: none is.
    package var journalWaitNanoseconds: UInt64 {
        journal.awaitsDiskSince.map { now.monotonic.since($0) } ?? 0
    }

    /// True when the journal waits so long that even to ask the disk for more may take long.
    package var diskIsLate: Bool { journalWaitNanoseconds > DiskPace.lateNanoseconds }

    /// Says when the disk begins to be slow, and when that is over.
    mutating func watchPace() {
        let waited = journalWaitNanoseconds
        if waited > limits.diskSlowNanoseconds {
            pace.lastSlow = now.monotonic
            pace.longestNanoseconds = max(pace.longestNanoseconds, waited)
            guard !pace.isSlow else { return }
            pace.isSlow = true
            events.append(
                .diskSlow(
                    "the disk is slow: a journal write is under way for "
                        + "\(waited / .milliseconds(1)) ms; confirms wait for it"))
        } else if pace.isSlow, now.monotonic.since(pace.lastSlow) > DiskPace.calmNanoseconds {
            let longest = pace.longestNanoseconds / .milliseconds(1)
            pace = DiskPace()
            events.append(
                .diskSteady("the disk is steady again; the longest wait seen was \(longest) ms"))
        }
    }
}
