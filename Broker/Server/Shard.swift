internal import BrokerBasics
package import BrokerShard
internal import LogStorage
package import ShardRuntime

// The loop around the machine: completions become inputs, effects become work for the kernel, which
// is asked through a port (`ShardPort`): io_uring, or epoll where that is refused. `runOnce` is the
// whole of it.

/// One shard's loop: one thread, one port, one core. Made, run and ended on the same thread.
package struct Shard<Port: ShardPort & ~Copyable>: ~Copyable {
    /// A connection whose last bytes are on their way to the peer.
    private struct Lingering {
        var connection: Int32
        var cutAt: MonotonicTime
    }

    // In front of the machine, so that it ends first: what it has in flight lies in its memory.
    private var port: Port
    package var machine: ShardMachine
    private var effects: EffectBuffer
    private let control: ShardControl
    /// `nil` when there is no other shard.
    private let mail: MailRoom?
    private let number: Int
    private var hasNotedStop = false
    private var hasClosedSockets = false
    private let idle: IdleStrategy
    private var closing: [Lingering] = []
    private var now: Instant
    private var idleSince: MonotonicTime
    private var duty = DutyCycle()
    private var isAccepting = false
    private let log: (ShardEvent) -> Void
    private let backups: BackupRunner?
    /// What was taken in of `ShardControl.backupWish`, and whether the plan was told.
    private var backupWish = BackupWish.nothing
    private var backupIsTold = false

    /// Opens the journal's files and directories; the machine has been recovered.
    package init(
        machine: consuming ShardMachine, configuration: ShardConfiguration, control: ShardControl,
        mail: MailRoom? = nil, backups: BackupRunner? = nil, log: @escaping (ShardEvent) -> Void
    ) throws(SystemError) {
        port = try Port(
            ShardPortSetup(
                root: configuration.dataDirectory,
                folder: ShardFolder(shard: configuration.shard), listeners: configuration.listeners,
                eventDescriptor: control.eventDescriptor, journalMemory: machine.journal.memory,
                journalFiles: machine.journal.geometry.fileCount,
                filesMax: machine.limits.filesMax, opensDirect: configuration.usesDirectIO))
        self.log = log
        self.backups = backups
        self.control = control
        self.mail = mail
        number = Int(configuration.shard)
        idle = configuration.idle
        effects = EffectBuffer(capacity: machine.limits.effectsMax)
        now = Clock.now
        idleSince = now.monotonic
        self.machine = machine
    }

    // MARK: the cycle

    /// Runs until the machine has stopped.
    package mutating func run() {
        while machine.stage != .stopped || !closing.isEmpty || isAwaited
            || machine.hasReadsInFlight
        {
            runOnce()
        }
    }

    /// The others may still ask: a shard ends when all may.
    private var isAwaited: Bool { mail != nil && !hasClosedSockets }

    /// One duty cycle: completions in, conclusions, effects out; then idle if there was nothing.
    @inline(__always)
    package mutating func runOnce() {
        port.exchange()
        let before = now.monotonic
        now = Clock.now
        machine.begin(now: now)
        var work = port.takeCompletions(into: &machine) + lookAround()
        if let mail { work += takeMail(mail) }
        machine.advance()
        let isBusy = carryOutEffects() || work > 0
        account(isBusy, since: before)
        if isBusy {
            idleSince = now.monotonic
        } else if !port.hasWork {
            rest()
        }
    }

    private mutating func rest() {
        let deadline = machine.nextDeadline
        guard
            idle.shouldSleep(
                now: now.monotonic, idleSince: idleSince, awaitsDisk: machine.journal.awaitsDisk),
            deadline > now.monotonic
        else {
            CoreControl.yield()
            return
        }
        let longest: UInt64 = hasNotedStop ? .milliseconds(1) : .milliseconds(100)
        guard let mail else {
            return port.wait(nanoseconds: min(deadline.since(now.monotonic), longest))
        }
        guard mail.mayFallAsleep(number) else { return }
        port.wait(nanoseconds: min(deadline.since(now.monotonic), longest))
        mail.wakeUp(number)
    }

    // MARK: the other shards

    /// Takes what the others have posted, the lanes in their order, and sees how much they take.
    private mutating func takeMail(_ mail: MailRoom) -> Int {
        var work = 0
        for other in 0..<mail.shards where other != number {
            for lane in PeerLane.allCases {
                let incoming = mail.mailbox(from: other, to: number, lane)
                while let message = incoming.take() {
                    machine.posted(message, from: UInt16(other))
                    work += 1
                }
                incoming.release()
                machine.setRoom(
                    UInt16(other), lane, mail.mailbox(from: number, to: other, lane).room())
            }
        }
        if machine.stage == .stopped, !hasNotedStop {
            hasNotedStop = true
            mail.noteStopped()
        }
        if hasNotedStop, !hasClosedSockets, mail.allStopped {
            // What the others had to say was posted before they stopped.
            hasClosedSockets = true
            work += takeMail(mail) + 1
            machine.closeSockets()
        }
        return work
    }

    /// Shows the others what was posted to them in this cycle.
    private func publishMail(_ mail: MailRoom) {
        for other in 0..<mail.shards where other != number {
            var isNew = false
            for lane in PeerLane.allCases
            where mail.mailbox(from: number, to: other, lane).publish() { isNew = true }
            if isNew { mail.wakeIfAsleep(other) }
        }
    }

    @inline(__always)
    private mutating func account(_ isBusy: Bool, since before: MonotonicTime) {
        let spent = now.monotonic.since(before)
        duty.cycles &+= 1
        if isBusy {
            duty.busyCycles &+= 1
            duty.busyNanoseconds &+= spent
            duty.longestNanoseconds = max(duty.longestNanoseconds, spent)
        } else {
            duty.idleNanoseconds &+= spent
        }
    }

    /// Flags from other threads, and sockets that linger.
    @inline(__always)
    private mutating func lookAround() -> Int {
        control.beat(now.monotonic)
        var work = 0
        if machine.isReady, !isAccepting { work += startAccepting() }
        port.retryAccepting(machine)
        if control.stopIsWanted { machine.beginStop() }
        if control.reportIsWanted { publishReport() }
        if control.diskIsNew, let space = control.takeDisk() { machine.observed(space) }
        if !machine.events.isEmpty { reportEvents() }
        if control.backupWish | backupWish.number > 0 { followBackup() }
        if machine.hasBackupJob { serveBackupJob() }
        if !closing.isEmpty { work += finishClosing() }
        return work
    }

    /// - Returns: true when there were any.
    @inline(__always)
    private mutating func carryOutEffects() -> Bool {
        machine.emit(into: &effects)
        let count = effects.count
        let diskIsLate = count > 0 && machine.diskIsLate
        for index in 0..<count {
            switch effects[index] {
            case .send(let connection, let bytes, let count): port.send(connection, bytes, count)
            case .storage(let request): port.start(request, diskIsLate: diskIsLate)
            case .pauseReceive(let connection): port.pause(connection)
            case .resumeReceive(let connection): port.resume(connection)
            case .close(let connection): beginClosing(connection)
            case .post(let shard, let lane, let message):
                mail?.mailbox(from: number, to: Int(shard), lane).put(message)
            }
        }
        if count > 0, let mail { publishMail(mail) }
        effects.removeAll()
        return count > 0
    }

    // MARK: connections' beginnings and ends

    private mutating func startAccepting() -> Int {
        isAccepting = true
        control.publish { $0.stage = "ready" }
        port.startAccepting()
        return 1
    }

    /// What was sent reaches the peer before the socket goes: it is shut down for writing, and
    /// lingers until the peer ends its side, a second at most.
    private mutating func beginClosing(_ connection: Int32) {
        port.beginClosing(connection)
        closing.append(
            Lingering(connection: connection, cutAt: now.monotonic + .seconds(1)))
    }

    private mutating func finishClosing() -> Int {
        var left: [Lingering] = []
        var work = 0
        for var lingering in closing {
            if port.isQuiet(lingering.connection) {
                port.release(lingering.connection)
                machine.released(lingering.connection)
                work += 1
            } else {
                if now.monotonic >= lingering.cutAt {
                    port.cut(lingering.connection)
                    lingering.cutAt = .never
                }
                left.append(lingering)
            }
        }
        closing = left
        return work
    }

    // MARK: other threads

    private mutating func publishReport() {
        guard control.takeReportRequest() else { return }
        let report = machine.report()
        let duty = duty
        let stage = machine.stage
        control.publish { published in
            published.report = report
            published.reportNumber += 1
            published.duty = duty
            if stage == .stopping { published.stage = "stopping" }
            published.failure = report.counters.storageFailure
        }
    }

    /// Holds back what the backup wants, and tells what may be copied.
    private mutating func followBackup() {
        let wish = control.takeBackupWish()
        if wish.number != backupWish.number {
            machine.endBackup()
            control.publish { $0.backupPlan = nil }
            backupIsTold = false
            if wish.number > 0 { _ = machine.beginBackup() }
        }
        backupWish = wish
        switch wish {
        case .nothing, .checkpoint: break
        case .everything: machine.holdForBackup()
        case .files: machine.releaseJournalOfBackup()
        }
        guard wish.number > 0 else { return }
        // A stop or a failure ends it, or it did not begin.
        guard machine.backup.isOn else { return control.noteBroken(backup: wish.number) }
        guard !backupIsTold, let plan = machine.backup.plan else { return }
        backupIsTold = true
        control.publish { $0.backupPlan = (wish.number, plan) }
    }

    private mutating func serveBackupJob() {
        // First, so that what was noted of the one before is not taken for this one's.
        control.note(backupIsAbandoned: machine.backupIsAbandoned)
        if let job = machine.takeBackupJob() { backups?.start(job) }
        if control.backupHasEnded, let outcome = control.takeBackupOutcome() {
            machine.backupEnded(outcome)
        }
    }

    private mutating func reportEvents() {
        let events = machine.events
        machine.events.removeAll()
        for event in events {
            if case .storageFailed(let what) = event { control.publish { $0.failure = what } }
            log(event)
        }
    }
}
