package import BrokerBasics
package import BrokerCore
package import BrokerShard
internal import CLinux
internal import Glibc
package import LogStorage
internal import Synchronization

/// The one door between a shard's thread and everybody else: a few flags that the loop looks at once
/// per cycle, and what it publishes when asked.
package final class ShardControl: Sendable {
    private let stopFlag = Atomic<Bool>(false)
    private let reportFlag = Atomic<Bool>(false)
    private let beatNanoseconds = Atomic<UInt64>(0)
    private let diskUsed = Atomic<UInt64>(0)
    private let diskAvailable = Atomic<UInt64>(0)
    private let diskFlag = Atomic<Bool>(false)
    private let published = Mutex<Published>(Published())
    private let backupWishes = Atomic<UInt64>(0)
    private let brokenBackup = Atomic<UInt64>(0)
    private let abandonedBackup = Atomic<Bool>(false)
    private let backupOutcome = Mutex<BackupOutcome?>(nil)
    private let backupOutcomeFlag = Atomic<Bool>(false)
    /// Wakes a sleeping loop.
    package let eventDescriptor: Int32

    /// What the loop last said.
    package struct Published: Sendable {
        package var stage = "recovering"
        package var loop: LoopDecision?
        package var progress = RecoveryProgress(stage: "starting")
        package var recovery: RecoveryReport?
        package var serverID: UInt64?
        /// Of the journal as the data directory has it.
        package var geometry: JournalGeometry?
        package var recoverySeconds: Double?
        package var report: ShardReport?
        package var reportNumber: UInt64 = 0
        package var duty = DutyCycle()
        package var failure: String?
        /// What the shard holds for a backup, by the backup's number.
        package var backupPlan: (number: UInt64, plan: BackupPlan)?

        package init() {}
    }

    /// - Parameter loop: which one will run; for those who ask.
    package init(loop: LoopDecision? = nil) {
        eventDescriptor = millrace_event_fd()
        published.withLock { $0.loop = loop }
    }
    deinit { close(eventDescriptor) }

    // Other threads:

    package func stop() {
        stopFlag.store(true, ordering: .releasing)
        millrace_event_signal(eventDescriptor)
    }
    package func askForReport() {
        reportFlag.store(true, ordering: .releasing)
        millrace_event_signal(eventDescriptor)
    }
    /// Ends a sleep of the loop: there is mail.
    func wake() { millrace_event_signal(eventDescriptor) }
    /// One thread notes. A pair of which one half is newer is put right by the flag that follows.
    package func note(disk: DiskSpace) {
        diskUsed.store(disk.usedBytes, ordering: .relaxed)
        diskAvailable.store(disk.availableBytes, ordering: .relaxed)
        diskFlag.store(true, ordering: .releasing)
    }
    func wish(backup: BackupWish) {
        backupWishes.store(backup.rawValue, ordering: .releasing)
        millrace_event_signal(eventDescriptor)
    }
    /// Of the first shard: an image is made, or not.
    func note(backup outcome: BackupOutcome) {
        backupOutcome.withLock { $0 = outcome }
        backupOutcomeFlag.store(true, ordering: .releasing)
        millrace_event_signal(eventDescriptor)
    }
    func isBroken(backup number: UInt64) -> Bool {
        brokenBackup.load(ordering: .acquiring) == number
    }
    var backupIsAbandoned: Bool { abandonedBackup.load(ordering: .relaxed) }
    package var current: Published { published.withLock { $0 } }
    /// When the loop last ran, on the monotonic clock.
    package var lastBeat: MonotonicTime {
        MonotonicTime(nanoseconds: beatNanoseconds.load(ordering: .relaxed))
    }

    // The loop:

    @inline(__always) var stopIsWanted: Bool { stopFlag.load(ordering: .relaxed) }
    @inline(__always) var reportIsWanted: Bool { reportFlag.load(ordering: .relaxed) }
    @inline(__always) var diskIsNew: Bool { diskFlag.load(ordering: .relaxed) }
    func takeDisk() -> DiskSpace? {
        guard diskFlag.exchange(false, ordering: .acquiring) else { return nil }
        return DiskSpace(
            usedBytes: diskUsed.load(ordering: .relaxed),
            availableBytes: diskAvailable.load(ordering: .relaxed))
    }
    @inline(__always) var backupWish: UInt64 { backupWishes.load(ordering: .relaxed) }
    @inline(__always) var backupHasEnded: Bool { backupOutcomeFlag.load(ordering: .relaxed) }
    func takeBackupWish() -> BackupWish {
        BackupWish(rawValue: backupWishes.load(ordering: .acquiring))
    }
    func takeBackupOutcome() -> BackupOutcome? {
        guard backupOutcomeFlag.exchange(false, ordering: .acquiring) else { return nil }
        return backupOutcome.withLock { $0.take() }
    }
    /// The shard holds nothing back any more, or never did.
    func noteBroken(backup number: UInt64) { brokenBackup.store(number, ordering: .releasing) }
    /// Whether somebody waits for the image that is being made.
    func note(backupIsAbandoned: Bool) {
        abandonedBackup.store(backupIsAbandoned, ordering: .relaxed)
    }
    func takeReportRequest() -> Bool { reportFlag.exchange(false, ordering: .acquiring) }
    @inline(__always) package func beat(_ now: MonotonicTime) {
        beatNanoseconds.store(now.nanoseconds, ordering: .relaxed)
    }
    package func publish(_ body: (inout Published) -> Void) { published.withLock { body(&$0) } }
}

/// What the backup with a number wants a shard to hold back. Numbers begin at 1, and are never used again.
enum BackupWish: Equatable {
    case nothing
    /// It is not its turn yet: a checkpoint may come before.
    case checkpoint(number: UInt64)
    case everything(number: UInt64)
    /// Its journal is copied.
    case files(number: UInt64)

    var number: UInt64 {
        switch self {
        case .nothing: 0
        case .checkpoint(let number), .everything(let number), .files(let number): number
        }
    }
    var rawValue: UInt64 {
        switch self {
        case .nothing: 0
        case .checkpoint(let number): number << 2 | 1
        case .everything(let number): number << 2 | 2
        case .files(let number): number << 2 | 3
        }
    }
    init(rawValue: UInt64) {
        switch rawValue & 3 {
        case 1: self = .checkpoint(number: rawValue >> 2)
        case 2: self = .everything(number: rawValue >> 2)
        case 3: self = .files(number: rawValue >> 2)
        default: self = .nothing
        }
    }
}

/// How a loop spent its time: a cycle that found nothing is idle, even on a busy core.
package struct DutyCycle: Sendable {
    package var busyNanoseconds: UInt64 = 0
    package var idleNanoseconds: UInt64 = 0
    package var cycles: UInt64 = 0
    package var busyCycles: UInt64 = 0
    package var longestNanoseconds: UInt64 = 0
    package init() {}
}
