internal import CLinux
internal import Glibc

/// The receive buffers that the kernel picks from (a provided-buffer ring), all of one size.
///
/// Owned by one shard. A buffer is the kernel's until a completion names it, the loop's until
/// `release`, and then the kernel's again.
public struct BufferPool: ~Copyable {
    public static let group: UInt16 = 0

    private let ring: UnsafeMutablePointer<io_uring_buf_ring>
    private let memory: UnsafeMutableRawPointer
    public let bufferBytes: Int
    public let bufferCount: Int
    private var released = 0

    /// - Parameter count: a power of two, at most 32,768.
    public init(
        ring owner: borrowing Ring, count: Int, bufferBytes: Int
    ) throws(SystemError) {
        var error: Int32 = 0
        guard
            let buffers = millrace_buffers_register(
                owner.handle, UInt32(count), Int32(Self.group), &error)
        else { throw SystemError("io_uring_register_buf_ring", errno: error) }
        let bytes = count * bufferBytes
        guard
            let memory = mmap(
                nil, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
            memory != MAP_FAILED
        else { throw SystemError("mmap of \(bytes) bytes of receive buffers", errno: ENOMEM) }
        ring = buffers
        self.memory = memory
        self.bufferBytes = bufferBytes
        bufferCount = count
        for id in 0..<count { add(UInt16(id)) }
        publish()
    }

    deinit { munmap(memory, bufferCount * bufferBytes) }

    @inline(__always) public func bytes(_ id: UInt16) -> UnsafeRawPointer {
        UnsafeRawPointer(memory + Int(id) * bufferBytes)
    }

    @inline(__always)
    private mutating func add(_ id: UInt16) {
        millrace_buffers_add(
            ring, memory + Int(id) * bufferBytes, UInt32(bufferBytes), id,
            Int32(bufferCount - 1), Int32(released))
        released += 1
    }

    /// Gives a buffer back; the kernel sees it with the next `publish()`.
    @inline(__always) public mutating func release(_ id: UInt16) { add(id) }

    /// Shows the released buffers to the kernel: once per duty cycle.
    @inline(__always) public mutating func publish() {
        guard released > 0 else { return }
        millrace_buffers_advance(ring, Int32(released))
        released = 0
    }
}
