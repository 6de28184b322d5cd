internal import Glibc

/// Standard output through a buffer: whole answers, or whole lines, in few system calls.
struct StandardOutput {
    private static let bufferBytes = 256 << 10
    private let descriptor = ControlTool.streams.output
    private var buffer: [UInt8] = []

    var isLarge: Bool { buffer.count >= Self.bufferBytes }

    mutating func write(_ text: String) { buffer.append(contentsOf: text.utf8) }
    mutating func write(_ bytes: [UInt8]) { buffer.append(contentsOf: bytes) }

    /// Lets `body` append to the buffer.
    mutating func append(_ body: (inout [UInt8]) -> Void) { body(&buffer) }

    /// Hands everything to the kernel; what was written counts as printed after this.
    mutating func flush() throws(Failure) {
        var written = 0
        while written < buffer.count {
            let count = buffer.withUnsafeBytes { bytes in
                let rest = UnsafeRawBufferPointer(rebasing: bytes[written...])
                return Glibc.write(descriptor, rest.baseAddress, rest.count)
            }
            if count >= 0 {
                written += count
                continue
            }
            switch errno {
            case EINTR: continue
            case EAGAIN:
                // Somebody shares the descriptor with us and made it non-blocking.
                var waiting = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
                _ = poll(&waiting, 1, -1)
            case EPIPE: throw .outputClosed
            default: throw .outputFailed(String(cString: strerror(errno)))
            }
        }
        buffer.removeAll(keepingCapacity: true)
    }
}
