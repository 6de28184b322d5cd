internal import CLinux
internal import Glibc
internal import ShardRuntime

/// Takes a stretch of memory from the system on a thread of its own, off the shard's CPU, so that
/// neither the start nor a request waits for it. On a machine that has to find the memory first this is
/// the slowest part of a start: half a gigabyte a second was measured.
enum MemoryTaker {
    private final class Work: Sendable {
        let address: UInt
        let bytes: Int
        init(address: UInt, bytes: Int) {
            self.address = address
            self.bytes = bytes
        }
    }
    /// Between two steps the kernel's lock on the address space is free.
    private static let stepBytes = 16 << 20

    /// - Parameter memory: mapped until the process ends. What is there is left as it is.
    static func start(_ memory: UnsafeMutableRawBufferPointer) {
        guard let base = memory.baseAddress, memory.count > 0 else { return }
        let work = Unmanaged.passRetained(
            Work(address: UInt(bitPattern: base), bytes: memory.count))
        var thread = pthread_t()
        // Without a thread the memory is taken at its first use.
        guard pthread_create(&thread, nil, body, work.toOpaque()) == 0 else {
            work.release()
            return
        }
        pthread_detach(thread)
    }

    private static let body: @convention(c) (UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? = {
        pointer in
        guard let pointer else { return nil }
        let work = Unmanaged<Work>.fromOpaque(pointer).takeRetainedValue()
        CoreControl.nameThread("memory")
        _ = millrace_set_affinity(0, millrace_process_cpus())
        var taken = 0
        while taken < work.bytes, let step = UnsafeMutableRawPointer(bitPattern: work.address + UInt(taken)) {
            let bytes = min(stepBytes, work.bytes - taken)
            // Refused before Linux 5.14, and where the kernel has not that much.
            guard madvise(step, bytes, MADV_POPULATE_WRITE) == 0 else { break }
            taken += bytes
        }
        return nil
    }
}
