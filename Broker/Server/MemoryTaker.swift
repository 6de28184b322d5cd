internal import CLinux
internal import Glibc
internal import ShardRuntime

/// Takes a stretch of memory from the system on a thread of its own, so that neither the start nor a
/// request waits for it. On a machine that has to find the memory first this is the slowest part of a
/// start: half a gigabyte a second was measured.
enum MemoryTaker {
    /// What is taken at once: between two steps the kernel's lock on the address space is free, and so is
    /// the processor of a kernel without preemption.
    private static let stepBytes = 2 << 20

    /// - Parameters:
    ///   - memory: mapped until the process ends. What is there is left as it is.
    ///   - cpu: a spinning shard's. The thread keeps off it as long as the process has another, and gives
    ///     way to whoever wants the processor.
    static func start(_ memory: UnsafeMutableRawBufferPointer, avoiding cpu: Int?) {
        guard let base = memory.baseAddress, memory.count > 0 else { return }
        let (address, count) = (UInt(bitPattern: base), memory.count)
        // Without a thread the memory is taken at its first use.
        try? DetachedThread.start("memory") { take(address, count, avoiding: cpu) }
    }

    private static func take(_ address: UInt, _ count: Int, avoiding cpu: Int?) {
        let all = millrace_process_cpus()
        let others = cpu.map { all & ~(1 << UInt64($0)) } ?? all
        _ = millrace_set_affinity(0, others != 0 ? others : all)
        _ = millrace_set_slice(100_000)
        _ = setpriority(__priority_which_t(PRIO_PROCESS.rawValue), 0, 19)
        var taken = 0
        while taken < count,
            let step = UnsafeMutableRawPointer(bitPattern: address + UInt(taken))
        {
            let bytes = min(stepBytes, count - taken)
            // Refused before Linux 5.14, and where the kernel has not that much.
            guard madvise(step, bytes, MADV_POPULATE_WRITE) == 0 else { break }
            taken += bytes
            sched_yield()
        }
    }
}
