internal import BrokerBasics
internal import BrokerConfiguration
internal import BrokerCore
internal import BrokerServer
internal import BrokerShard
internal import Glibc
internal import LogStorage
internal import ShardRuntime

/// `brokerd --check-only`: reads a data directory that nobody serves, and says what is damaged.
struct OfflineCheck {
    private let options: ServerOptions

    init(_ options: ServerOptions) { self.options = options }

    /// - Parameter say: takes a line.
    /// - Returns: the exit code: 0 nothing is damaged, 1 something is, or it could not be read.
    func run(say: (String) -> Void) -> Int32 {
        do {
            // Opening makes a directory that is missing: a check makes nothing.
            guard access(options.dataDirectory + "/" + FileName.identity.path, F_OK) == 0 else {
                throw StorageFailure(
                    "\(options.dataDirectory) is no data directory: it has no "
                        + FileName.identity.path)
            }
            let directory = try DataDirectory(checking: options.dataDirectory)
            let report = try check(directory)
            return tell(report, say)
        } catch {
            say("not checked: \(error)")
            return 1
        }
    }

    private func check(_ directory: borrowing DataDirectory) throws -> DirectoryReport {
        var recovery = RecoveryOptions(
            geometry: options.geometry,
            limits: options.limits.journal,
            chunkBytesMax: options.limits.chunkBytes,
            tailBudgetBytes: options.limits.tailBytesMax,
            serverID: 0,
            journalID: 0,
            now: Clock.wall
        )
        recovery.boot = SystemText.bootID ?? 0
        let root = directory.path
        return try DirectoryCheck(options: recovery) {
            PosixStorage(root: root, folder: ShardFolder(shard: $0))
        }.run()
    }

    private func tell(_ report: DirectoryReport, _ say: (String) -> Void) -> Int32 {
        for damage in report.damages { say("damaged: \(damage)") }
        guard !report.recoveries.isEmpty else {
            say("a start would be refused; segments were not read")
            return 1
        }
        for recovery in report.recoveries {
            for range in recovery.lostRanges { say("a start would declare lost: \(range)") }
            guard recovery.tornBytes > 0 else { continue }
            say(
                "a start would drop a torn tail of \(recovery.tornBytes) bytes, never confirmed at synced"
            )
        }
        let journalBytes = report.recoveries.reduce(0) { $0 + $1.journalBytesRead }
        say(
            "checked \(report.queues) queues, \(report.partitions) partitions, "
                + "\(report.segments) segments with \(report.chunks) chunks, \(report.batches) "
                + "batches and \(OptionValue.sizeText(report.segmentBytes)), "
                + "\(OptionValue.sizeText(journalBytes)) of the journal: "
                + (report.damages.isEmpty
                    ? "nothing is damaged" : "\(report.damages.count) places are damaged")
        )
        return report.damages.isEmpty ? 0 : 1
    }
}
