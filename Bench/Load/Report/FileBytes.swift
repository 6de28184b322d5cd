internal import Glibc

/// Whole files, in and out.
enum FileBytes {
    static func read(_ path: String) throws(LoadError) -> [UInt8] {
        let fd = open(path, O_RDONLY | O_CLOEXEC)
        guard fd >= 0 else { throw .file(path: path, reason: LoadError.kernelReason) }
        defer { close(fd) }
        return try readAll(fd, name: path)
    }

    static func readAll(_ fd: Int32, name: String) throws(LoadError) -> [UInt8] {
        var bytes: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 1 << 18)
        while true {
            let count = chunk.withUnsafeMutableBytes { Glibc.read(fd, $0.baseAddress, $0.count) }
            if count == 0 { return bytes }
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { throw .file(path: name, reason: LoadError.kernelReason) }
            bytes += chunk[..<count]
        }
    }

    static func write(_ text: String, to path: String) throws(LoadError) {
        let fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
        guard fd >= 0 else { throw .file(path: path, reason: LoadError.kernelReason) }
        defer { close(fd) }
        let bytes = Array(text.utf8)
        var written = 0
        while written < bytes.count {
            let count = bytes[written...].withUnsafeBytes {
                Glibc.write(fd, $0.baseAddress, $0.count)
            }
            guard count > 0 else { throw .file(path: path, reason: LoadError.kernelReason) }
            written += count
        }
    }
}
