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
    func takeReportRequest() -> Bool { reportFlag.exchange(false, ordering: .acquiring) }
    @inline(__always) package func beat(_ now: MonotonicTime) {
        beatNanoseconds.store(now.nanoseconds, ordering: .relaxed)
    }
    package func publish(_ body: (inout Published) -> Void) { published.withLock { body(&$0) } }
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
