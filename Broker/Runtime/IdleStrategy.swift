public import BrokerBasics

/// What a loop does when a cycle found nothing.
public enum IdleStrategy: String, Sendable, CaseIterable {
    /// Sleeps only when the disk is overdue: lowest latency, one whole core.
    case spin
    /// Spins for a time after the last work, then sleeps.
    case adaptive
    /// Sleeps at once: lowest CPU.
    case block

    /// How long `adaptive` spins after the last work. Measured: 100 µs keeps the latency of a
    /// synced write within 1 µs of spinning, and costs nothing on a quiet server.
    public static let adaptiveSpinNanoseconds: UInt64 = .microseconds(100)

    /// How long a spinning thread waits for a write before it lets go of its core. A kernel worker
    /// that would finish that very write may be kept from the core by the spinning, whether it yields
    /// or not: Linux 6.18 left one runnable for 100 to 300 ms beside a thread that yielded all along.
    /// Twice what a write takes on a busy disk.
    public static let overdueNanoseconds: UInt64 = .microseconds(500)

    /// True when the loop should sleep, `idleSince` being the end of the last cycle with work.
    ///
    /// - Parameter awaitsDisk: something written is not known to be durable yet.
    @inline(__always)
    public func shouldSleep(
        now: MonotonicTime, idleSince: MonotonicTime, awaitsDisk: Bool
    ) -> Bool {
        switch self {
        case .spin: awaitsDisk && now.since(idleSince) >= Self.overdueNanoseconds
        case .adaptive: now.since(idleSince) >= Self.adaptiveSpinNanoseconds
        case .block: true
        }
    }
}
