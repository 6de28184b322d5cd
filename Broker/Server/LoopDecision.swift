package import ShardRuntime

/// Which loop a broker runs on, decided once at its start.
package struct LoopDecision: Sendable, Equatable {
    package var kind: LoopKind
    /// Why it is not io_uring although that would have been taken.
    package var refusal: RingRefusal?

    private init(_ kind: LoopKind, _ refusal: RingRefusal? = nil) {
        self.kind = kind
        self.refusal = refusal
    }

    /// - Parameter probe: whether io_uring is refused; asked when it matters.
    /// - Throws: when nothing but io_uring will do.
    package static func make(
        _ choice: LoopChoice, probe: () -> RingRefusal? = { RingPort.refusal() }
    ) throws(LoopRefused) -> LoopDecision {
        guard choice != .epoll else { return LoopDecision(.epoll) }
        guard let refusal = probe() else { return LoopDecision(.uring) }
        guard choice != .uring else { throw LoopRefused(refusal) }
        return LoopDecision(.epoll, refusal)
    }

    /// In a few words, for `server status` and metrics.
    package var reason: String {
        if let refusal { return "io_uring is refused: \(refusal.cause.rawValue)" }
        return kind == .uring ? "io_uring is allowed" : "--loop epoll"
    }
}

/// `--loop io_uring` where there is none.
package struct LoopRefused: Error, CustomStringConvertible {
    package var description: String

    init(_ refusal: RingRefusal) {
        description =
            "--loop io_uring, but io_uring is refused here (\(refusal.cause.rawValue)): \(refusal); or "
            + "take --loop auto, which runs on epoll, slower"
    }
}
