internal import BrokerBasics
internal import ChildProcess
internal import FuseDisk
internal import Glibc

/// Records several lives of a broker and cuts the power of each at many places.
struct Campaign {
    struct Settings {
        var cuts: Int
        var seed: UInt64
        var steps: Int
        /// Of the broker in every second recording; the others have one.
        var shards: Int
        var brokerd: String
        var control: Control
        /// Where the disk of a cut that broke a promise is kept.
        var keepIn: String
    }

    /// Something that is broken on purpose, to see that it is found.
    enum Control: Equatable {
        case none
        /// The disk answers flushes and does nothing.
        case lyingDisk
        /// The broker's fsyncs do nothing; its journal is written as ever.
        case withoutSync
    }

    /// What was done, and so what the verdict is worth.
    struct Counts {
        var cuts = 0
        /// A cut in the life after a cut: during its recovery, or right behind it.
        var secondCuts = 0
        var unsyncedWrites = 0
        var losing = 0
        var tearing = 0
        var reordering = 0
        var epochs = 0
        /// Syncs of the broker that were seen to reach the disk.
        var probes = 0
        /// Partitions that went to another shard.
        var moves = 0
        /// Cuts of several shards, and those after which another number of them was started.
        var ofShards = 0
        var otherShards = 0
        var repaired = 0
        /// Cuts after which something was named as damaged: ext4 without a journal only.
        var damaged = 0
        var recordsRead = 0
        var lostAsSaid = 0
        var stored = 0
        var duplicates = 0
        var recoveries: [Duration] = []
        /// Cuts that broke a promise, and of the lying disk those that had to.
        var broken = 0
        var hadToBreak = 0
        var missed = 0

        mutating func add(_ facts: PowerCut.Facts) {
            unsyncedWrites += facts.unsyncedWrites
            if facts.lostWrites > 0 { losing += 1 }
            if facts.tornWrites > 0 { tearing += 1 }
            if facts.isReordered { reordering += 1 }
        }

        mutating func add(_ outcome: CutRun.Outcome) {
            if outcome.wasRepaired { repaired += 1 }
            if outcome.damagedQueues > 0 { damaged += 1 }
            recordsRead += outcome.recordsRead
            lostAsSaid += outcome.recordsLostAsSaid
            stored += outcome.stored
            duplicates += outcome.duplicates
            if outcome.ready > .zero { recoveries.append(outcome.ready) }
        }
    }

    private struct Setup {
        var filesystem: Filesystem
        var loop: String
        var shards = 1
    }
    /// Both loops on both filesystems, with one shard and with several.
    private static func setups(shards: Int) -> [Setup] {
        Set([1, shards]).sorted().flatMap { count in
            Filesystem.allCases.flatMap { filesystem in
                ["io_uring", "epoll"].map {
                    Setup(filesystem: filesystem, loop: $0, shards: count)
                }
            }
        }
    }

    private static let attemptsMax = 500

    let settings: Settings
    private(set) var counts = Counts()
    private var random: SeededRandom
    private let directory: TemporaryDirectory
    private let boot: BootID

    init(_ settings: Settings) throws {
        self.settings = settings
        random = SeededRandom(seed: settings.seed)
        directory = try TemporaryDirectory(prefix: "millrace-powercut")
        boot = try BootID(in: directory.path, seed: settings.seed)
    }

    /// - Returns: true when every promise was kept and every fault was met, or, of the lying disk,
    ///   when every loss was found.
    mutating func run() throws -> Bool {
        let setups =
            switch settings.control {
            case .none: Self.setups(shards: settings.shards)
            case .lyingDisk: [Setup(filesystem: .journalled, loop: "io_uring")]
            // Whose syncs are system calls.
            case .withoutSync: [Setup(filesystem: .journalled, loop: "epoll")]
            }
        for (number, setup) in setups.enumerated() {
            let before = settings.cuts * number / setups.count
            let share = settings.cuts * (number + 1) / setups.count - before
            guard share > 0 else { continue }
            let recording = try Recording(
                .init(
                    filesystem: setup.filesystem,
                    loop: setup.loop,
                    shards: setup.shards,
                    seed: random.next(),
                    steps: settings.steps,
                    brokerd: settings.brokerd,
                    directory: directory.path,
                    isLying: settings.control == .lyingDisk,
                    launcher: settings.control == .withoutSync
                        ? [try Executable.named("withoutsync")] : []
                )
            )
            describe(recording)
            counts.epochs += recording.log.flushCount
            counts.probes += recording.facts.probes
            counts.moves += recording.facts.moves
            for _ in 0..<share { try cut(recording) }
        }
        return report()
    }

    private func describe(_ recording: Recording) {
        let log = recording.log
        Console.line(
            "recorded on \(recording.settings.filesystem.rawValue), \(recording.settings.loop), "
                + "\(recording.settings.shards) shards: "
                + "\(recording.history.confirmedRecords) records and "
                + "\(recording.history.confirmedAcks) acks confirmed, "
                + "\(recording.facts.kills) kills, \(recording.facts.moves) moves, \(recording.facts.duplicates) publishes stored "
                + "before; \(log.writeCount) writes of \(log.bytes.count >> 10) KiB, "
                + "\(log.flushCount) flushes, \(recording.facts.probes) syncs followed to the disk"
        )
    }

    // MARK: one cut

    private mutating func cut(_ recording: Recording) throws {
        counts.cuts += 1
        if settings.control == .lyingDisk { return try cutLying(recording) }
        let survivals = PowerCut.Survival.allCases
        let survival = survivals[counts.cuts % survivals.count]
        // Most places of a log have nothing unsynced before them.
        var place = choosePlace(recording)
        for _ in 0..<Self.attemptsMax
        where PowerCut.unsyncedWrites(recording.log, at: place) < survival.unsyncedWritesMin {
            place = choosePlace(recording)
        }
        let cut = PowerCut(place: place, survival: survival, seed: random.next())
        let memory = DiskMemory(try DiskMemory.take(Recording.diskBytes))
        counts.add(
            cut.apply(
                recording.log,
                to: memory,
                sectorBytes: recording.settings.filesystem.sectorBytes
            )
        )
        let history = recording.history.before(place)
        let second = random.chance(1, in: 4)
        // Sending again changes what the second cut would have to keep.
        let outcome = try judge(memory, history, recording, cut, resends: !second)
        if second, outcome.faults.isEmpty {
            try cutAgain(recording, history, cut, outcome)
        }
    }

    /// Half of the cuts come as soon as something was promised, when a missing sync shows; a quarter
    /// right before a flush, when the disk's cache holds most; the others anywhere.
    private mutating func choosePlace(_ recording: Recording) -> Int {
        let (start, end) = (recording.start, recording.log.entries.count)
        switch random.below(4) {
        case 0...1:
            let promises = recording.history.queues.flatMap(\.promises)
            return promises.isEmpty ? end : promises[random.below(promises.count)]
        case 2:
            let any = start + random.below(end - start)
            let flush = recording.log.entries[any...].firstIndex {
                if case .flush = $0 { true } else { false }
            }
            return flush ?? end
        default: return start + random.below(end - start + 1)
        }
    }

    /// The power goes again while the broker recovers, or when it has just been read.
    private mutating func cutAgain(
        _ recording: Recording,
        _ history: ClientHistory,
        _ first: PowerCut,
        _ recovered: CutRun.Outcome
    ) throws {
        counts.secondCuts += 1
        let filesystem = recording.settings.filesystem
        let memory = DiskMemory(try DiskMemory.take(Recording.diskBytes))
        _ = first.apply(recording.log, to: memory, sectorBytes: filesystem.sectorBytes)
        let end = recovered.log.entries.count
        let place = random.chance(1, in: 3) ? end : random.below(end + 1)
        let survivals = PowerCut.Survival.allCases
        let survival = survivals[random.below(survivals.count)]
        let cut = PowerCut(place: place, survival: survival, seed: random.next())
        counts.add(cut.apply(recovered.log, to: memory, sectorBytes: filesystem.sectorBytes))
        var history = history
        // What the first recovery showed must still hold.
        if place == end, let found = recovered.found {
            for index in history.queues.indices {
                let seen = found.seen[history.queues[index].name] ?? []
                history.queues[index].seen += seen.map { seen in
                    var seen = seen
                    seen.reader = "recovered"
                    seen.isRecovered = true
                    return seen
                }
            }
        }
        _ = try judge(memory, history, recording, cut, resends: false)
    }

    private mutating func judge(
        _ memory: consuming DiskMemory,
        _ history: ClientHistory,
        _ recording: Recording,
        _ cut: PowerCut,
        resends: Bool
    ) throws -> CutRun.Outcome {
        let image = try memory.copy()
        let shards = shardsAfter(recording)
        let run = CutRun(
            filesystem: recording.settings.filesystem,
            loop: recording.settings.loop,
            shards: shards,
            brokerd: settings.brokerd,
            directory: directory.path,
            boot: boot
        )
        let outcome = try run.judge(memory, history, resends: resends)
        counts.add(outcome)
        guard !outcome.faults.isEmpty else { return outcome }
        counts.broken += 1
        // Of a control one is enough to look at.
        guard settings.control == .none || counts.broken == 1 else { return outcome }
        let path = "\(settings.keepIn)/powercut-\(settings.seed)-\(counts.cuts)"
        let kept = KeptCut(
            filesystem: recording.settings.filesystem,
            loop: recording.settings.loop,
            shards: shards,
            resends: resends,
            faults: outcome.faults,
            history: history
        )
        Console.line(
            "! cut \(counts.cuts) at \(cut.place) of \(recording.log.entries.count), "
                + "\(cut.survival.rawValue), \(recording.settings.filesystem.rawValue), "
                + recording.settings.loop
        )
        for fault in outcome.faults.prefix(5) { Console.line("    \(fault)") }
        if outcome.faults.count > 5 { Console.line("    and \(outcome.faults.count - 5) more") }
        if settings.control == .none {
            try kept.keep(image, in: path)
            Console.line("  kept: \(path)/disk.image; again: powercut --repeat \(path)")
        }
        return outcome
    }

    /// As many as before the cut, or, of several, one more or less.
    private mutating func shardsAfter(_ recording: Recording) -> Int {
        let before = recording.settings.shards
        guard before > 1 else { return before }
        counts.ofShards += 1
        guard random.chance(1, in: 3) else { return before }
        counts.otherShards += 1
        return random.chance(1, in: 2) ? before - 1 : before + 1
    }

    /// A disk that answers flushes and keeps what it has written so far, in order: the filesystem
    /// is whole, and what was confirmed since is gone.
    private mutating func cutLying(_ recording: Recording) throws {
        var (place, kept) = chooseLie(recording)
        for _ in 0..<Self.attemptsMax where !Self.isLie(recording.history.before(place), kept) {
            (place, kept) = chooseLie(recording)
        }
        let memory = DiskMemory(try DiskMemory.take(Recording.diskBytes))
        let honest = PowerCut(place: kept, survival: .all, seed: 0)
        _ = honest.apply(recording.log, to: memory, sectorBytes: 512)
        var facts = PowerCut.Facts()
        facts.lostWrites = recording.log.entries[kept..<place].count {
            if case .write = $0 { true } else { false }
        }
        facts.unsyncedWrites = facts.lostWrites
        counts.add(facts)
        let cut = PowerCut(place: place, survival: .none, seed: 0)
        let history = recording.history.before(place)
        let broken = counts.broken
        _ = try judge(memory, history, recording, cut, resends: false)
        if Self.isLie(history, kept) {
            counts.hadToBreak += 1
            if counts.broken == broken {
                Console.line("! cut \(counts.cuts) took confirmed records, and nothing was found")
                counts.missed += 1
            }
        }
    }

    /// Where the power is cut, and how much of the log the disk has kept: so many of the last writes
    /// were in its cache.
    private mutating func chooseLie(_ recording: Recording) -> (place: Int, kept: Int) {
        let place = choosePlace(recording)
        return (place, max(recording.start, place - 1 - random.below(400)))
    }

    /// Whether something was confirmed that can't be there, since it was sent after what is kept.
    private static func isLie(_ history: ClientHistory, _ kept: Int) -> Bool {
        history.queues.contains { queue in
            queue.isSynced && queue.deleteAskedAt == nil
                && queue.producers.contains { producer in
                    producer.batches.contains { $0.sentAt > kept && $0.confirmedAt != nil }
                }
        }
    }

    // MARK: the end

    private func report() -> Bool {
        let sorted = counts.recoveries.sorted()
        Console.line(
            "\(counts.cuts) cuts, and \(counts.secondCuts) more after a cut; \(counts.losing) lost "
                + "unsynced writes, \(counts.tearing) tore one, \(counts.reordering) kept a later "
                + "one and not an earlier; \(counts.unsyncedWrites) writes were unsynced, "
                + "\(counts.epochs) flush epochs"
        )
        Console.line(
            "\(counts.recordsRead) records and lost ranges read back; \(counts.lostAsSaid) "
                + "of memory and written lost, as said; sent again: \(counts.duplicates) batches known, "
                + "\(counts.stored) stored; \(counts.repaired) journalled filesystems mended by fsck"
        )
        if let first = sorted.first, let last = sorted.last {
            Console.line(
                "from start to ready: least \(first), median \(sorted[sorted.count / 2]), most \(last)"
            )
        }
        switch settings.control {
        case .none: break
        case .lyingDisk:
            Console.line(
                "a disk that lies: \(counts.hadToBreak) cuts took confirmed records, and "
                    + "\(counts.missed) of them were not found"
            )
            return counts.hadToBreak > 0 && counts.missed == 0
        case .withoutSync:
            Console.line("a broker without syncs: \(counts.broken) cuts were found broken")
            return counts.broken > 0
        }
        var isGood = counts.broken == 0
        Console.line(
            "\(counts.damaged) cuts after which ext4 without a journal had lost what it had synced, "
                + "named as damage"
        )
        Console.line("\(counts.broken) cuts broke a promise")
        var met = [
            ("lost an unsynced write", counts.losing), ("tore a write", counts.tearing),
            ("kept writes out of order", counts.reordering), ("was in an epoch", counts.epochs),
            ("found a publish stored before", counts.duplicates),
            ("followed a sync to the disk", counts.probes),
        ]
        if settings.shards > 1, settings.cuts >= Self.setups(shards: settings.shards).count {
            Console.line(
                "\(counts.moves) partitions moved; \(counts.ofShards) cuts of several shards, "
                    + "after \(counts.otherShards) of them another number was started"
            )
            met.append(("moved to another shard", counts.moves))
            met.append(("was cut from several shards", counts.ofShards))
        }
        for (what, count) in met where count == 0 {
            Console.line("! nothing \(what): nothing was shown of that")
            isGood = false
        }
        return isGood
    }
}
