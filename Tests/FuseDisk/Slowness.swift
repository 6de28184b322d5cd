internal import Glibc
internal import Synchronization

/// Makes a disk late: it waits before it writes or flushes, and counts how often it did.
///
/// A disk serves one request after the other, so whoever comes behind one that waits, waits too. Any thread
/// may use it.
package final class Slowness: Sendable {
    package enum Step: Sendable {
        case write
        case flush
    }
    /// What waited, so that a test knows that its disk was slow.
    package struct Counts: Sendable {
        package var writes = 0
        package var flushes = 0
        /// Of both, those that met a disk that stood still.
        package var held = 0
    }
    private struct State {
        var writeMilliseconds = 0
        var flushMilliseconds = 0
        var isHeld = false
        var counts = Counts()
    }
    private let state = Mutex(State())

    package init() {}

    package var counts: Counts { state.withLock { $0.counts } }

    /// From now on each takes so much longer.
    package func delay(writeMilliseconds: Int, flushMilliseconds: Int) {
        state.withLock { state in
            state.writeMilliseconds = max(0, writeMilliseconds)
            state.flushMilliseconds = max(0, flushMilliseconds)
        }
    }

    /// From now on nothing is written or flushed, until `release`.
    package func hold() { state.withLock { $0.isHeld = true } }
    package func release() { state.withLock { $0.isHeld = false } }

    /// Called before the step is done; the log has it afterwards.
    func wait(for step: Step) {
        let milliseconds = state.withLock { state in
            let milliseconds =
                step == .write ? state.writeMilliseconds : state.flushMilliseconds
            if milliseconds > 0 {
                if step == .write { state.counts.writes += 1 } else { state.counts.flushes += 1 }
            }
            if state.isHeld { state.counts.held += 1 }
            return milliseconds
        }
        if milliseconds > 0 { usleep(UInt32(clamping: milliseconds * 1000)) }
        while state.withLock({ $0.isHeld }) { usleep(1000) }
    }
}
