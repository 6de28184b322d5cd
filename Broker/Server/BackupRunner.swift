internal import BrokerBasics
internal import BrokerCore
internal import BrokerShard
internal import Glibc
internal import LogStorage
internal import ShardRuntime
internal import Synchronization
internal import WireProtocol

// How it works. A thread of its own makes the image; the shards only hold back what it reads (`BackupHold`), and are
// told through their controls. In order: a folder `.NAME.partial` with a journal of zeros; each shard's moment, shard 0's
// last; journals and checkpoints, without a pause, since no checkpoint begins meanwhile; segments, as the bandwidth
// allows; everything synced, the identity of shard 0 last; the folder gets its name. What ends before that leaves nothing
// that looks whole, and is removed.

/// Makes images of the data directory while the broker serves. Any thread may start one.
package final class BackupRunner: Sendable {
    private static let numbers = Atomic<UInt64>(1)

    private let controls: [ShardControl]
    private let dataDirectory: String
    private let backupDirectory: String
    /// The file system of the images is not filled above it.
    private let usedPercentMax: Int

    /// - Returns: `nil` when there is no place for images.
    init?(_ configuration: ShardConfiguration, controls: [ShardControl]) {
        guard let directory = configuration.backupDirectory else { return nil }
        self.controls = controls
        dataDirectory = configuration.dataDirectory
        backupDirectory = directory
        usedPercentMax = configuration.limits.diskMarks.refuse
    }

    /// Begins; the first shard's control is told how it ended.
    func start(_ job: BackupJob) {
        let first = controls[0]
        do {
            try DetachedThread.start("backup") { first.note(backup: self.run(job)) }
        } catch {
            first.note(backup: .refused(.backupFailed, "no image was made: \(error)"))
        }
    }

    private func run(_ job: BackupJob) -> BackupOutcome {
        let path = backupDirectory + "/" + job.name
        // No name that a client can give begins with a dot.
        let partial = backupDirectory + "/." + job.name + ".partial"
        let outcome: BackupOutcome
        do throws(Refusal) {
            outcome = .made(try make(job, path, partial))
        } catch {
            outcome = .refused(error.status, error.message)
        }
        for control in controls { control.wish(backup: .nothing) }
        return outcome
    }

    /// Why there is no image.
    private struct Refusal: Error {
        var status: StatusCode
        var message: String
        init(_ status: StatusCode, _ message: String) {
            self.status = status
            self.message = message
        }
        init(_ failure: StorageFailure) {
            let isFull = failure.errno == ENOSPC || failure.errno == EDQUOT
            self.init(
                isFull ? .diskFull : .backupFailed, "no image was made: \(failure.description)")
        }
    }

    private func make(
        _ job: BackupJob, _ path: String, _ partial: String
    ) throws(Refusal) -> BackupReply {
        guard access(path, F_OK) != 0 else {
            throw Refusal(.badRequest, "\(path) is there already; no image was made")
        }
        do throws(StorageFailure) {
            // One that was left by a crash.
            try FolderTree.remove(partial)
            try FolderTree.make(partial)
        } catch { throw Refusal(error) }
        do throws(Refusal) {
            let reply: BackupReply
            let number = Self.numbers.wrappingAdd(1, ordering: .relaxed).newValue
            do throws(StorageFailure) { reply = try copy(job, number, path, partial) } catch {
                throw Refusal(error)
            }
            return reply
        } catch {
            // What can't be removed has the name of what is not whole.
            try? FolderTree.remove(partial)
            throw error
        }
    }

    private func copy(
        _ job: BackupJob, _ number: UInt64, _ path: String, _ partial: String
    ) throws(StorageFailure) -> BackupReply {
        let began = Clock.monotonic
        var pace = Pace(
            bandwidth: job.bandwidth, folder: backupDirectory, usedPercentMax: usedPercentMax)
        var reply = BackupReply(path: path)
        let count = UInt16(controls.count)
        for shard in 0..<count {
            guard let geometry = controls[Int(shard)].current.geometry else {
                throw StorageFailure("shard \(shard) does not serve yet")
            }
            try withCopy(shard, number, partial, &pace) { copy throws(StorageFailure) in
                try copy.prepare(geometry, shard: shard)
            }
        }
        for control in controls { control.wish(backup: .checkpoint(number: number)) }
        var plans: [BackupPlan] = []
        for shard in (0..<count).reversed() { plans.append(try moment(of: shard, number)) }
        if let id = BackupPlan.movedPartition(plans) {
            throw StorageFailure("partition \(id) moved to another shard meanwhile; try again")
        }
        for plan in plans {
            try withCopy(plan.shard, number, partial, &pace, isHurried: true) {
                copy throws(StorageFailure) in
                try copy.copyJournal(plan)
            }
            controls[Int(plan.shard)].wish(backup: .files(number: number))
        }
        for plan in plans {
            var linked: UInt64 = 0
            let (from, to) = (dataDirectory, partial)
            try withCopy(plan.shard, number, partial, &pace) { copy throws(StorageFailure) in
                try copy.copySegments(plan) { (file: FileName) throws(StorageFailure) in
                    // Never written to: a name that is there is the file itself.
                    guard
                        Glibc.link(from + "/" + file.path, to + "/" + file.path) == 0
                            || errno == EEXIST
                    else { return false }
                    linked += 1
                    return true
                }
            }
            reply.linkedFiles += linked
            reply.files += UInt64(plan.segments.count)
        }
        // Shard 0's identity is the last file: without it the folder was never in use.
        for plan in plans.sorted(by: { $0.shard > $1.shard }) {
            try withCopy(plan.shard, number, partial, &pace) { copy throws(StorageFailure) in
                try copy.finish(plan)
            }
        }
        try requireHeld(number)
        try FolderTree.rename(partial, to: path, in: backupDirectory)
        reply.copiedBytes = pace.bytes
        reply.milliseconds = Clock.monotonic.since(began) / .milliseconds(1)
        return reply
    }

    private func withCopy(
        _ shard: UInt16, _ number: UInt64, _ partial: String, _ pace: inout Pace,
        isHurried: Bool = false,
        _ body: (borrowing BackupCopy) throws(StorageFailure) -> Void
    ) throws(StorageFailure) {
        let folder = ShardFolder(shard: shard)
        let state = PaceBox(pace)
        let runner = self
        let copy = BackupCopy(
            from: PosixStorage(root: dataDirectory, folder: folder),
            to: PosixStorage(root: partial, folder: folder, writesDirectly: true),
            pace: { (bytes) throws(StorageFailure) in
                try state.pace.passed(bytes, isHurried: isHurried)
                repeat { try runner.requireWanted(number) } while state.pace.waits()
            })
        do throws(StorageFailure) {
            try body(copy)
            pace = state.pace
        } catch {
            pace = state.pace
            throw error
        }
    }

    /// Lends `Pace` to a closure; one thread's.
    private final class PaceBox {
        var pace: Pace
        init(_ pace: Pace) { self.pace = pace }
    }

    /// Waits for one shard's moment.
    private func moment(
        of shard: UInt16, _ number: UInt64
    ) throws(StorageFailure) -> BackupPlan {
        let control = controls[Int(shard)]
        control.wish(backup: .everything(number: number))
        let limit = Clock.monotonic + .seconds(60)
        while Clock.monotonic < limit {
            if let held = control.current.backupPlan, held.number == number { return held.plan }
            try requireWanted(number)
            usleep(1000)
        }
        throw StorageFailure(
            "shard \(shard) came to no checkpoint in 60 s; is its disk full, or too slow?")
    }

    private func requireWanted(_ number: UInt64) throws(StorageFailure) {
        if controls[0].backupIsAbandoned {
            throw StorageFailure("whoever asked for it is gone")
        }
        if controls.contains(where: { $0.isBroken(backup: number) }) {
            throw StorageFailure(
                "a shard gave it up: it stops, its storage failed, or its journal or disk filled up"
            )
        }
    }

    /// Everything that was copied was held until now.
    private func requireHeld(_ number: UInt64) throws(StorageFailure) {
        try requireWanted(number)
        for (shard, control) in controls.enumerated()
        where control.current.backupPlan?.number != number {
            throw StorageFailure("shard \(shard) did not hold its files until the end")
        }
    }
}

/// How fast an image may be written, and how much.
private struct Pace {
    private(set) var bytes: UInt64 = 0
    private let bandwidth: UInt64
    private let folder: String
    private let usedPercentMax: Int
    private var since = Clock.monotonic
    private var bytesSince: UInt64 = 0
    private var lookAt: UInt64 = 0

    init(bandwidth: UInt64, folder: String, usedPercentMax: Int) {
        self.bandwidth = bandwidth
        self.folder = folder
        self.usedPercentMax = usedPercentMax
    }

    mutating func passed(_ count: Int, isHurried: Bool) throws(StorageFailure) {
        bytes += UInt64(count)
        if bytes >= lookAt {
            lookAt = bytes + 16 << 20
            if let space = DiskWatch.look(folder), space.usedPercent >= usedPercentMax {
                throw StorageFailure(
                    "the file system of \(folder) is \(space.usedPercent) % full", errno: ENOSPC)
            }
        }
        guard bandwidth > 0, !isHurried else {
            (since, bytesSince) = (Clock.monotonic, 0)
            return
        }
        bytesSince += UInt64(count)
    }

    /// - Returns: true after a short sleep, when it is too early to go on.
    func waits() -> Bool {
        guard bandwidth > 0 else { return false }
        let due = Double(bytesSince) / Double(bandwidth)
        let left = due - Double(Clock.monotonic.since(since)) / 1e9
        guard left > 0 else { return false }
        usleep(UInt32(min(0.1, left) * 1e6) + 1)
        return true
    }
}

/// Folders as a whole.
private enum FolderTree {
    private static func failure(_ what: String, _ path: String) -> StorageFailure {
        StorageFailure("\(what) \(path): \(String(cString: strerror(errno)))", errno: errno)
    }

    static func make(_ path: String) throws(StorageFailure) {
        guard mkdir(path, 0o750) == 0 else { throw failure("making", path) }
    }

    /// Removes a folder with all that is in it; one that is not there is removed.
    static func remove(_ path: String) throws(StorageFailure) {
        guard let handle = opendir(path) else {
            if errno == ENOENT { return }
            throw failure("opening", path)
        }
        var names: [String] = []
        while let entry = readdir(handle) {
            let name = withUnsafeBytes(of: entry.pointee.d_name) { bytes in
                String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
            }
            if name != ".", name != ".." { names.append(name) }
        }
        closedir(handle)
        for name in names {
            let child = path + "/" + name
            if unlink(child) == 0 { continue }
            // Linux says EISDIR of a folder.
            guard errno == EISDIR || errno == EPERM else { throw failure("removing", child) }
            try remove(child)
        }
        guard rmdir(path) == 0 else { throw failure("removing", path) }
    }

    static func rename(
        _ path: String, to name: String, in parent: String
    ) throws(StorageFailure) {
        try sync(path)
        // A folder that came to be there meanwhile is not replaced, unless it is empty.
        guard Glibc.rename(path, name) == 0 else { throw failure("naming", name) }
        do throws(StorageFailure) { try sync(parent) } catch {
            // Nobody is told of it: it gets the name back of what is not whole.
            _ = Glibc.rename(name, path)
            throw error
        }
    }

    private static func sync(_ path: String) throws(StorageFailure) {
        let fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard fd >= 0 else { throw failure("opening", path) }
        defer { close(fd) }
        guard fsync(fd) == 0 else { throw failure("syncing", path) }
    }
}
