import ChildProcess
import Glibc

/// A small ext4 of its own on a loop device, which can be filled to the last block. Needs root.
final class LoopDisk {
    let path: String
    private let file: String

    /// Why there can be none here; `nil` when there can.
    static let obstacle: String? = {
        guard geteuid() == 0 else { return "not root, so nothing can be mounted" }
        do {
            let directory = try TemporaryDirectory(prefix: "millrace-test")
            _ = try LoopDisk(in: directory.path, bytes: 16 << 20)
            return nil
        } catch {
            return "\(error)"
        }
    }()

    /// - Parameter directory: is there, and used for one at a time.
    init(in directory: String, bytes: Int64) throws {
        file = directory + "/disk"
        path = directory + "/mounted"
        mkdir(path, 0o700)
        let descriptor = open(file, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        guard descriptor >= 0, ftruncate(descriptor, off_t(bytes)) == 0 else {
            throw ChildFailure("making \(file): \(String(cString: strerror(errno)))")
        }
        close(descriptor)
        try Self.run("mkfs.ext4", ["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0", file])
        try Self.run("mount", ["-o", "loop", file, path])
    }

    deinit {
        unfill()
        // A process that was just killed may still be letting go of its files.
        for _ in 0..<500 where umount2(path, 0) != 0 {
            if errno != EBUSY { break }
            usleep(10_000)
        }
        umount2(path, Int32(MNT_DETACH))
        unlink(file)
    }

    private static func run(_ program: String, _ arguments: [String]) throws {
        let child = try SpawnedChild(program, arguments: arguments)
        let end = child.wait(timeoutMilliseconds: 60_000)
        guard end == .exited(0) else {
            throw ChildFailure("\(program) ended with \(end.map { "\($0)" } ?? "nothing")")
        }
    }

    private var other: String { path + "/other" }

    /// Bytes that are left.
    var available: Int64 {
        var facts = statvfs()
        guard statvfs(path, &facts) == 0 else { return 0 }
        return Int64(facts.f_bavail) * Int64(facts.f_frsize)
    }

    /// Takes all that is left, as another program might. What the broker removes meanwhile is taken too.
    func fill() {
        let descriptor = open(other, O_WRONLY | O_CREAT | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { return }
        defer { close(descriptor) }
        var end = lseek(descriptor, 0, SEEK_END)
        var part = max(4096, available)
        while part >= 4096 {
            if posix_fallocate(descriptor, end, off_t(part)) == 0 {
                end += off_t(part)
                part = min(part, available)
            } else {
                part /= 2
            }
        }
    }

    /// Gives it back.
    func unfill() { unlink(other) }
}
