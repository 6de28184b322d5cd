internal import Glibc

/// Small text files, whole: what /proc and /sys say, and the configuration.
package enum SystemText {
    package static let bytesMax = 4 << 20

    /// - Returns: `nil` when it can't be read or is larger than `bytesMax`.
    package static func read(_ path: String) -> String? {
        let fd = open(path, O_RDONLY | O_CLOEXEC)
        guard fd >= 0 else { return nil }
        defer { close(fd) }
        var text: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 16 * 1024)
        while text.count <= bytesMax {
            let count = Glibc.read(fd, &buffer, buffer.count)
            if count < 0, errno == EINTR { continue }
            guard count >= 0 else { return nil }
            if count == 0 { return String(decoding: text, as: UTF8.self) }
            text += buffer[..<count]
        }
        return nil
    }

    /// The first line, without its end.
    static func line(_ path: String) -> String? {
        read(path).map { String($0.prefix { $0 != "\n" }) }
    }

    /// The path without symbolic links.
    /// The first half of the number that the kernel drew when this machine was started.
    package static var bootID: UInt64? {
        guard let text = line("/proc/sys/kernel/random/boot_id") else { return nil }
        return UInt64(text.filter { $0 != "-" }.prefix(16), radix: 16)
    }

    static func resolved(_ path: String) -> String? {
        guard let real = realpath(path, nil) else { return nil }
        defer { free(real) }
        return String(cString: real)
    }
}
