internal import FuseDisk
internal import ReplayHarness

/// A disk that was cut off, mounted again, with a broker started on it and judged.
struct CutRun {
    struct Outcome {
        var faults: [String] = []
        var ready = Duration.zero
        var wasRepaired = false
        /// Said to be damaged, where the filesystem lost what it had synced.
        var damagedQueues = 0
        var recordsRead = 0
        var recordsLostAsSaid = 0
        /// Stored by the producers that sent everything again.
        var stored = 0
        var duplicates = 0
        /// The disk's log of the recovery, up to the end of the first reading.
        var log = WriteLog()
        /// What that reading showed.
        var found: ReadBack?
    }

    var filesystem: Filesystem
    var loop: String
    var shards: Int
    var brokerd: String
    var directory: String
    var boot: BootID

    /// - Parameter resends: whether producers send everything again, and all is read once more.
    func judge(
        _ memory: consuming DiskMemory,
        _ history: ClientHistory,
        resends: Bool
    ) throws -> Outcome {
        try Interrupt.check()
        var outcome = Outcome()
        let disk = RecordedDisk(memory)
        do {
            try boot.next()
            let mounted = try MountedDisk(disk, filesystem, in: directory, isNew: false)
            outcome.wasRepaired = mounted.wasRepaired
            let broker = try CutBroker(
                brokerd,
                on: mounted,
                loop: loop,
                shards: shards,
                log: directory + "/brokerd.log"
            )
            outcome.ready = broker.ready
            let found = try ReadBack(
                from: broker.place,
                allowsDamage: filesystem.losesWhatItSynced
            )
            outcome.damagedQueues = found.damaged.count
            outcome.log = disk.log
            let verdict = try Verdict(history, found)
            outcome.faults = verdict.faults
            outcome.recordsRead = verdict.recordsRead
            outcome.recordsLostAsSaid = verdict.recordsLostAsSaid
            outcome.found = found
            if resends, outcome.faults.isEmpty { try resend(history, found, broker, &outcome) }
            broker.kill()
            try mounted.unmount()
        } catch {
            try Interrupt.check()
            outcome.faults.append("\(error)")
        }
        return outcome
    }

    /// Whoever publishes at `synced` sends all of it again: what was stored is known, what was not
    /// is stored now, and each record is there once.
    private func resend(
        _ history: ClientHistory,
        _ found: ReadBack,
        _ broker: CutBroker,
        _ outcome: inout Outcome
    ) throws {
        var resent: [String: [ProducerHistory]] = [:]
        for queue in history.queues where queue.isSynced {
            guard let info = found.queues[queue.name], found.damaged[queue.name] == nil else {
                continue
            }
            for earlier in queue.producers {
                // One whose first confirm never came may be unknown now.
                guard earlier.batches.contains(where: { $0.confirmedAt != nil }) else { continue }
                let producer = try CutProducer(resending: earlier, queue: info, at: broker.place)
                while producer.unconfirmedBatches > 0 {
                    try Interrupt.check()
                    try broker.check()
                    try producer.pump(timeoutMilliseconds: 100)
                }
                resent[queue.name, default: []].append(producer.history)
                outcome.duplicates += producer.duplicates
                outcome.stored += producer.history.batches.count - producer.duplicates
                outcome.faults += Self.moved(earlier, producer.history)
            }
        }
        let again = try ReadBack(
            from: broker.place,
            allowsDamage: filesystem.losesWhatItSynced
        )
        let verdict = try Verdict(history, again, resent: resent)
        outcome.faults += verdict.faults.map { "after everything was sent again: \($0)" }
    }

    /// A record stays where it was confirmed.
    private static func moved(_ first: ProducerHistory, _ second: ProducerHistory) -> [String] {
        zip(first.batches, second.batches).compactMap { before, after in
            guard let old = before.offset, let new = after.offset, old != new else { return nil }
            return
                "record \(before.first) of \(first.name) was confirmed at \(old), and now at \(new)"
        }
    }
}
