public import BrokerBasics

/// What a loop does when a cycle found nothing.
public enum IdleStrategy: String, Sendable, CaseIterable {
    /// Never sleeps: lowest latency, one whole core.
    case spin
    /// Spins for a time after the last work, then sleeps.
    case adaptive
    /// Sleeps at once: lowest CPU.
    case block

    /// How long `adaptive` spins after the last work. Measured: 100 µs keeps the latency of a
    /// synced write within 1 µs of spinning, and costs nothing on a quiet server.
    public static let adaptiveSpinNanoseconds: UInt64 = .microseconds(100)

    /// True when the loop should sleep, `idleSince` being the end of the last cycle with work.
    @inline(__always)
    public func shouldSleep(now: MonotonicTime, idleSince: MonotonicTime) -> Bool {
        switch self {
        case .spin: false
        case .adaptive: now.since(idleSince) >= Self.adaptiveSpinNanoseconds
        case .block: true
        }
    }
}
