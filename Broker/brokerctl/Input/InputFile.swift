internal import Glibc

/// A file or standard input, read in pieces.
struct InputFile: ~Copyable {
    let descriptor: Int32
    private let name: String
    private let isOurs: Bool
    private var buffer = [UInt8](repeating: 0, count: 256 << 10)

    /// - Parameter path: `-` is standard input.
    init(_ path: String) throws(Failure) {
        if path == "-" {
            descriptor = ControlTool.streams.input
            name = "standard input"
            isOurs = false
            return
        }
        name = path
        isOurs = true
        descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else {
            throw .usage("open \(path) failed: \(String(cString: strerror(errno)))")
        }
    }

    deinit { if isOurs { close(descriptor) } }

    /// Reads what there is into `lines`, waiting for it where it must.
    mutating func read(into lines: inout LineSplitter) throws(Failure) {
        let count = buffer.withUnsafeMutableBytes { bytes in
            Glibc.read(descriptor, bytes.baseAddress, bytes.count)
        }
        if count < 0 {
            // Standard input may be non-blocking by somebody else's choice.
            if errno == EINTR || errno == EAGAIN { return }
            throw .usage("read \(name) failed: \(String(cString: strerror(errno)))")
        }
        if count == 0 {
            lines.finish()
            return
        }
        buffer.withUnsafeBytes { bytes in
            lines.append(UnsafeRawBufferPointer(rebasing: bytes[..<count]))
        }
    }
}
