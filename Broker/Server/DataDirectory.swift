internal import CLinux
internal import Glibc
internal import LogStorage
package import ShardRuntime

/// The data directory, made when missing and locked for as long as this lives.
package struct DataDirectory: ~Copyable {
    package let path: String
    private let lock: Int32
    /// Whether the filesystem takes direct I/O, and with which alignment.
    package let directAlignment: Int?
    /// A sentence on the disk below: its write cache and the CPU of its interrupt, if known.
    package let diskDescription: String

    package init(path: String) throws(SystemError) {
        guard mkdir(path, 0o750) == 0 || errno == EEXIST else {
            throw SystemError("making the data directory \(path)", errno: errno)
        }
        let lock = open(path + "/LOCK", O_RDWR | O_CREAT | O_CLOEXEC, 0o640)
        guard lock >= 0 else { throw SystemError("opening \(path)/LOCK", errno: errno) }
        try self.init(path: path, lock: lock)
    }

    /// One that is only read, perhaps on a read-only filesystem: nothing is made. Locked where there is
    /// something to lock; a copy may have none.
    package init(checking path: String) throws(SystemError) {
        let lock = open(path + "/LOCK", O_RDONLY | O_CLOEXEC)
        let directory = lock < 0 ? open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : lock
        guard directory >= 0 else { throw SystemError("opening \(path)", errno: errno) }
        try self.init(path: path, lock: directory)
    }

    private init(path: String, lock: Int32) throws(SystemError) {
        self.path = path
        guard flock(lock, LOCK_EX | LOCK_NB) == 0 else {
            let code = errno
            close(lock)
            throw SystemError(
                code == EWOULDBLOCK
                    ? "locking the data directory \(path) (another brokerd is using it)"
                    : "locking the data directory \(path)", errno: code)
        }
        self.lock = lock
        var memory: UInt32 = 0
        var offset: UInt32 = 0
        // Asked of a regular file: directories have no direct I/O.
        directAlignment =
            millrace_direct_alignment(lock, &memory, &offset) == 0
            ? Int(max(memory, offset)) : nil
        diskDescription = Disk.describe(descriptor: lock)
    }

    deinit { close(lock) }
}

/// What can be read of the disk below a file.
enum Disk {
    static func describe(descriptor: Int32) -> String {
        var facts = stat()
        guard fstat(descriptor, &facts) == 0 else { return "unknown disk" }
        let major = (facts.st_dev >> 8) & 0xFFF
        let minor = (facts.st_dev & 0xFF) | ((facts.st_dev >> 12) & 0xFFF00)
        let base = "/sys/dev/block/\(major):\(minor)"
        var queue = base + "/queue"
        if access(queue, F_OK) != 0 { queue = base + "/../queue" }
        let cache = read(queue + "/write_cache") ?? "unknown write cache"
        let fua = read(queue + "/fua").map { $0 == "1" ? "FUA" : "no FUA" } ?? "FUA unknown"
        return "device \(major):\(minor), \(cache), \(fua)"
    }

    private static func read(_ path: String) -> String? {
        let fd = open(path, O_RDONLY | O_CLOEXEC)
        guard fd >= 0 else { return nil }
        defer { close(fd) }
        var buffer = [UInt8](repeating: 0, count: 256)
        let count = Glibc.read(fd, &buffer, buffer.count)
        guard count > 0 else { return nil }
        let text = String(decoding: buffer[..<count], as: UTF8.self)
        return String(text.prefix { $0 != "\n" })
    }
}
