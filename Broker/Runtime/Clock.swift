public import BrokerBasics
internal import CLinux
internal import Glibc

/// The two clocks of the kernel. Read once per duty cycle, and where a stage is stamped.
public enum Clock {
    @inline(__always)
    private static func read(_ id: clockid_t) -> UInt64 {
        var time = timespec()
        clock_gettime(id, &time)
        return UInt64(time.tv_sec) &* 1_000_000_000 &+ UInt64(time.tv_nsec)
    }
    @inline(__always) public static var monotonic: MonotonicTime {
        MonotonicTime(nanoseconds: read(CLOCK_MONOTONIC))
    }
    @inline(__always) public static var wall: WallTime {
        WallTime(nanoseconds: read(CLOCK_REALTIME))
    }
    @inline(__always) public static var now: Instant {
        Instant(monotonic: monotonic, wall: wall)
    }
}

/// What a thread that owns a core does to it.
public enum CoreControl {
    public static func pin(cpu: Int) throws(SystemError) {
        let error = millrace_pin(Int32(cpu))
        guard error == 0 else { throw SystemError("pinning to CPU \(cpu)", errno: error) }
    }
    /// A long slice, so that a spinning thread isn't preempted at each tick. Best effort: some
    /// containers refuse it.
    @discardableResult
    public static func setLongSlice() -> Bool { millrace_set_slice(100_000_000) == 0 }

    /// What `top -H` and `perf` call the calling thread; at most 15 bytes.
    public static func nameThread(_ name: String) { millrace_name_thread(name) }

    /// The CPUs this process may use, of the first 64.
    public static var allowedCPUs: [Int] {
        let map = millrace_allowed_cpus()
        return (0..<64).filter { map & (1 << UInt64($0)) != 0 }
    }

    /// Lets a kernel worker on this core run: every empty cycle of a spinning thread calls it. On a
    /// disk without FUA the kernel finishes a synced write on the CPU that takes the disk's
    /// interrupt; a thread that spins there without yielding turns 0.09 ms into 4 ms.
    @inline(__always) public static func yield() { sched_yield() }
}
