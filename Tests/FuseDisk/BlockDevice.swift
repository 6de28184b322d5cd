internal import Glibc

/// The filesystems that are met in the field.
package enum Filesystem: String, CaseIterable, Sendable, Codable {
    case journalled = "ext4"
    /// `mkfs.ext4 -O ^has_journal`. After a cut it is checked and repaired by fsck before it is
    /// mounted, as any machine does at boot.
    ///
    /// It keeps less than it answers a sync for: a file of several extents that grows behind its
    /// synced part moves its extents to a block of their own, and the inode that then points to that
    /// block may reach the disk with a neighbour's sync, the block not. The synced part is gone. (Two
    /// files that are grown by fallocate in turn and the second one synced show it on Linux 6.18,
    /// without a broker.) So here damage may be met, and has to be named.
    case unjournalled = "ext4-no-journal"

    package var losesWhatItSynced: Bool { self == .unjournalled }

    /// What the disk under it writes whole. Without a journal ext4 changes its 4 KiB blocks in
    /// place, and relies on disks that tear none.
    package var sectorBytes: Int { self == .journalled ? 512 : 4096 }
}

/// A filesystem on a loop device over a disk of ours, mounted in a directory of its own.
package final class MountedDisk {
    package let disk: RecordedDisk
    /// Where it is mounted.
    package let path: String
    /// fsck had to mend what ext4's own recovery could not.
    package private(set) var wasRepaired = false
    private let server: FuseServer
    private var isMounted = false

    /// - Parameters:
    ///   - directory: one that exists, and is used for one disk at a time.
    ///   - isNew: it is to be formatted; otherwise it was cut off.
    package init(
        _ disk: RecordedDisk, _ filesystem: Filesystem, in directory: String, isNew: Bool
    ) throws {
        self.disk = disk
        path = directory + "/mounted"
        let file = directory + "/disk"
        unlink(file)
        mkdir(path, 0o700)
        server = try FuseServer(disk, at: file)
        let device = try Command.output(
            "losetup",
            ["--find", "--show", "--sector-size", "\(filesystem.sectorBytes)", file]
        )
        // Once it is mounted, the device goes with the mount: nothing is left of a killed process.
        defer { _ = try? Command.output("losetup", ["--detach", device]) }
        if isNew {
            var options = ["-q", "-F", "-b", "4096", "-E", "nodiscard,lazy_itable_init=0"]
            if filesystem == .unjournalled { options += ["-O", "^has_journal"] }
            _ = try Command.output("mkfs.ext4", options + [device])
        } else if filesystem == .unjournalled {
            try repair(device)
        }
        do {
            try mount(device, filesystem)
        } catch {
            guard !isNew else { throw error }
            try repair(device)
            wasRepaired = true
            try mount(device, filesystem)
        }
    }

    private func mount(_ device: String, _ filesystem: Filesystem) throws {
        // Its journal is committed every second, so that there is something to replay.
        let options = filesystem == .journalled ? ["-o", "commit=1"] : []
        _ = try Command.output("mount", ["-t", "ext4"] + options + [device, path])
        isMounted = true
    }

    private func repair(_ device: String) throws {
        // Exit codes 0 to 3: clean, or everything mended (fsck.ext4(8)).
        _ = try Command.output("fsck.ext4", ["-f", "-y", device], accepting: 0...3)
    }

    /// Unmounts. Whoever uses it must have ended.
    package func unmount() throws {
        guard tryToUnmount() else { throw SystemFailure("unmounting \(path)") }
        server.stop()
    }

    /// For up to 20 s: the ring of a process that was just killed may still be letting go of files.
    private func tryToUnmount() -> Bool {
        for _ in 0..<2_000 where isMounted {
            if umount2(path, 0) == 0 { isMounted = false } else { usleep(10_000) }
        }
        return !isMounted
    }

    deinit {
        if !tryToUnmount() { _ = umount2(path, Int32(MNT_DETACH)) }
        server.stop()
    }
}
