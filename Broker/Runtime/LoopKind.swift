/// What a shard's loop asks the kernel through.
public enum LoopKind: String, Sendable, CaseIterable {
    /// One io_uring per shard: what the broker is made for.
    case uring = "io_uring"
    /// Where io_uring is refused: correct, and slower.
    case epoll
}

/// What the operator wants of it.
public enum LoopChoice: String, Sendable, CaseIterable {
    /// io_uring, and epoll where that is refused.
    case auto
    case uring = "io_uring"
    case epoll
}
