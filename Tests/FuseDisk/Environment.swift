package import ChildProcess
internal import Glibc

/// Whether a disk of ours can be mounted on this machine, and the place to do it in.
package enum Environment {
    /// What is missing, as far as can be seen; `nil` when it may work.
    package static func obstacle() -> String? {
        guard geteuid() == 0 else { return "not root, so nothing can be mounted" }
        for device in ["/dev/fuse", "/dev/loop-control"] where access(device, R_OK | W_OK) != 0 {
            return "\(device): \(String(cString: strerror(errno)))"
        }
        for program in [
            "unshare", "setpriv", "losetup", "mount", "umount", "mkfs.ext4", "fsck.ext4",
        ] {
            do {
                _ = try Command.output("which", [program])
            } catch {
                return "there is no \(program) in PATH"
            }
        }
        do {
            _ = try Command.output("unshare", ["--mount", "--propagation", "private", "true"])
        } catch {
            return "\(error)"
        }
        return nil
    }

    /// Begins this program, whose name is given, again in a mount namespace of its own: whatever it mounts is seen by
    /// nobody else, and goes when it ends, however it ends.
    package static func enterNamespace(_ program: String) throws {
        let own = try Executable.named(program)
        let words =
            ["unshare", "--mount", "--propagation", "private", own, "--in-namespace"]
            + CommandLine.arguments.dropFirst()
        var pointers: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) }
        pointers.append(nil)
        execvp("unshare", pointers)
        throw SystemFailure("executing unshare")
    }

    /// Keeps the namespace for a moment longer than this process, if that is killed.
    ///
    /// The last process of a namespace takes its mounts down while it ends, before its own files are
    /// closed (seen on Linux 6.18). Were that this one, ext4 would wait for ever for the FUSE server
    /// that it was. So `cat` waits for the end of a pipe that ends when this process has.
    package static func keepNamespace() throws -> SpawnedChild {
        var ends: [Int32] = [-1, -1]
        guard pipe(&ends) == 0 else { throw SystemFailure("making a pipe") }
        defer { close(ends[0]) }
        // The writing end stays open, in this process alone.
        return try SpawnedChild("cat", arguments: [], input: "/proc/self/fd/\(ends[0])")
    }

    /// Makes, mounts and unmounts a small filesystem.
    package static func tryOut() throws {
        let directory = try TemporaryDirectory(prefix: "millrace-disk")
        // Not with its last use, while something is mounted in it.
        defer { directory.remove() }
        let disk = try RecordedDisk(byteCount: 16 << 20)
        let mounted = try MountedDisk(disk, .journalled, in: directory.path, isNew: true)
        try mounted.unmount()
        guard disk.log.writeCount > 0, disk.log.flushCount > 0 else {
            throw SystemFailure(text: "the disk under a loop device sees no writes or no flushes")
        }
    }
}
