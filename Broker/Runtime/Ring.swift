public import CLinux
internal import Glibc

/// What a kernel call for a ring or a file answered, with the operation's name.
public struct SystemError: Error, CustomStringConvertible, Equatable {
    public var operation: String
    public var errno: Int32

    public init(_ operation: String, errno: Int32) {
        self.operation = operation
        self.errno = errno
    }
    public var description: String {
        "\(operation) failed: \(String(cString: strerror(errno))) (errno \(errno))"
    }
}

/// One io_uring instance, used by one thread only: the one that made it.
///
/// Set up with `SINGLE_ISSUER | DEFER_TASKRUN | COOP_TASKRUN | TASKRUN_FLAG`; the last lets a
/// spinning owner see in memory whether an enter would bring anything.
public struct Ring: ~Copyable {
    public let handle: UnsafeMutablePointer<io_uring>

    /// - Parameters:
    ///   - entries: submissions that can be queued between two enters.
    ///   - completions: what the kernel keeps before it overflows into slower lists.
    /// - Throws: when io_uring is refused or too old; `RingRefusal` says what to change.
    public init(entries: UInt32, completions: UInt32) throws(SystemError) {
        // Set last: from then on the deinit runs, also when the initialiser throws.
        let handle = UnsafeMutablePointer<io_uring>.allocate(capacity: 1)
        handle.initialize(to: io_uring())
        let result = millrace_ring_setup(handle, entries, completions)
        guard result == 0 else {
            handle.deallocate()
            throw SystemError("io_uring_setup", errno: -result)
        }
        var missing: Int32 = -1
        let error = millrace_ring_missing_operation(handle, &missing)
        guard error == 0, missing < 0 else {
            io_uring_queue_exit(handle)
            handle.deallocate()
            if error != 0 { throw SystemError("io_uring_register", errno: error) }
            throw SystemError("operation \(missing) of io_uring", errno: EOPNOTSUPP)
        }
        self.handle = handle
    }

    deinit {
        io_uring_queue_exit(handle)
        handle.deallocate()
    }

    /// Lets the kernel's workers run where the process' first thread may: not on the CPU of an owner
    /// that is pinned, and spins. Where the kernel can't, they run anywhere.
    public func keepWorkersOffOwner() {
        _ = millrace_ring_set_worker_cpus(handle, millrace_process_cpus())
    }

    /// True when `enter()` would bring completions.
    @inline(__always) public var hasWork: Bool { millrace_ring_has_work(handle) }
    /// Completions that the kernel had to keep outside the queue, in all.
    public var overflowCount: UInt32 { millrace_ring_overflow(handle) }

    /// Submits what is queued and lets the kernel post completions; never waits.
    @inline(__always) @discardableResult
    public mutating func enter() -> Int32 { millrace_ring_enter(handle) }

    /// Submits, then sleeps until a completion or for at most `nanoseconds`.
    public mutating func wait(nanoseconds: UInt64) { _ = millrace_ring_wait(handle, nanoseconds) }

    @inline(__always) public var completionCount: Int { Int(millrace_ring_ready(handle)) }
    @inline(__always) public func completion(_ index: Int) -> Completion {
        let entry = millrace_ring_completion(handle, UInt32(truncatingIfNeeded: index))
        return Completion(token: entry.user_data, result: entry.res, flags: entry.flags)
    }
    @inline(__always) public mutating func advance(_ count: Int) {
        millrace_ring_advance(handle, UInt32(truncatingIfNeeded: count))
    }

    /// A free submission; when the queue is full, what is queued is submitted first.
    @inline(__always)
    public mutating func submission(token: UInt64) -> UnsafeMutablePointer<io_uring_sqe>? {
        if let entry = millrace_ring_submission(handle) {
            entry.pointee.user_data = token
            return entry
        }
        return submissionAfterSubmit(token: token)
    }

    @inline(never)
    private mutating func submissionAfterSubmit(
        token: UInt64
    ) -> UnsafeMutablePointer<io_uring_sqe>? {
        _ = io_uring_submit(handle)
        guard let entry = millrace_ring_submission(handle) else { return nil }
        entry.pointee.user_data = token
        return entry
    }
}

/// One finished submission.
public struct Completion {
    public var token: UInt64
    /// Bytes, a descriptor, or a negative errno.
    public var result: Int32
    public var flags: UInt32

    /// More completions of the same (multishot) submission will come.
    @inline(__always) public var hasMore: Bool { flags & UInt32(IORING_CQE_F_MORE) != 0 }
    /// The provided buffer that holds the received bytes.
    @inline(__always) public var bufferID: UInt16? {
        flags & UInt32(IORING_CQE_F_BUFFER) != 0
            ? UInt16(truncatingIfNeeded: flags >> UInt32(IORING_CQE_BUFFER_SHIFT)) : nil
    }
}
