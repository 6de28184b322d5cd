package import BrokerShard
internal import Glibc
package import ShardRuntime

/// Looks twice a second at how full the file system of the data directory is, on a thread of its own:
/// `statvfs` may wait for a disk, and the shard must not. Runs until the process ends.
package enum DiskWatch {
    static let intervalMicroseconds: UInt32 = 500_000

    /// Looks once before it returns, so that a full disk is known before anybody is served.
    package static func start(_ path: String, control: ShardControl) throws(SystemError) {
        if let space = look(path) { control.note(disk: space) }
        try DetachedThread.start("disk-watch") {
            while true {
                usleep(intervalMicroseconds)
                if let space = look(path) { control.note(disk: space) }
            }
        }
    }

    /// - Returns: `nil` when the file system does not say.
    package static func look(_ path: String) -> DiskSpace? {
        var facts = statvfs()
        guard statvfs(path, &facts) == 0, facts.f_blocks > 0 else { return nil }
        // What only root may use is not room for us: as df(1) counts.
        return DiskSpace(
            usedBytes: UInt64(facts.f_blocks - min(facts.f_blocks, facts.f_bfree))
                &* UInt64(facts.f_frsize),
            availableBytes: UInt64(facts.f_bavail) &* UInt64(facts.f_frsize))
    }
}
