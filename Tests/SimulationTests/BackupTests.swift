import BrokerBasics
import BrokerCore
import BrokerShard
import BrokerTestSupport
import LogStorage
import Testing
import WireProtocol

/// Images of a data directory, taken while a broker serves.
@Suite("Backup") struct BackupTests {
    /// A broker under load, whose queues are written, acked, trimmed, made and deleted.
    private final class Load {
        let runner: ScenarioRunner
        let client: SimulatedClient
        private let producer: ProducerOpenReply
        let orders: [UInt32]
        private let kept: [UInt32]
        private let ticks: [UInt32]
        private let notes: [UInt32]
        private var doomed: [String] = []
        private var rounds = 0
        private(set) var removals = 0

        init(shards: Int, seed: UInt64, journalFactor: UInt64 = 1) throws {
            var settings = SimulatedShard.Settings()
            settings.shards = shards
            settings.geometry.fileBytes *= journalFactor
            settings.limits.checkpointAfterNanoseconds = .milliseconds(5)
            // Time passes quickly here, and copying does not go on meanwhile.
            settings.limits.backupPressureNanoseconds = .seconds(3600)
            runner = try ScenarioRunner(settings: settings, seed: seed)
            try #require(runner.start())
            client = try #require(runner.connect(to: shards - 1))
            orders = runner.createQueue(client, "orders", partitions: 4)
            kept = runner.createQueue(client, "kept", partitions: 3, keepRecords: 40)
            ticks = runner.createQueue(client, "ticks", partitions: 2, level: .memory)
            notes = runner.createQueue(client, "notes", partitions: 2, level: .written)
            producer = try #require(runner.openProducer(client, name: "gateway"))
            try #require(client.subscribe("orders", group: "desk", stream: 1) != nil)
            runner.shard.onStart = { [unowned self] asked in
                if asked.kind == .remove, asked.directory == .segments { removals += 1 }
            }
        }

        var shard: SimulatedShard { runner.shard }

        /// One round of everything; not waited for.
        func work() {
            rounds += 1
            for partition in orders + kept + ticks + notes {
                runner.publish(client, producer, partition, records: 1 + rounds % 3, bytes: 900)
            }
            if rounds % 8 == 0 {
                let name = "doomed-\(rounds)"
                let made = runner.createQueue(client, name, partitions: 2)
                for partition in made { runner.publish(client, producer, partition, bytes: 900) }
                doomed.append(name)
            }
            if rounds % 8 == 4, !doomed.isEmpty { runner.deleteQueue(client, doomed.removeFirst()) }
            runner.note(client)
            if rounds % 5 == 0, let partition = orders.first {
                let seen = client.delivered.last { $0.partition == partition }?.offset ?? 0
                runner.ack(
                    client, queue: "orders", group: "desk", stream: 1, partition: partition,
                    offset: seen)
            }
            for _ in 0..<8 { shard.step() }
        }

        /// How many records of a partition are confirmed.
        func confirmed(_ partition: UInt32) -> Int {
            (runner.history.sent[partition] ?? []).reduce(0) { sum, sent in
                sent.confirmedAt == nil ? sum : sum + sent.values.count
            }
        }
    }

    /// Takes an image as the broker does: shard 0's moment last, unless it is to be wrong.
    private func image(
        of load: Load, shards: Int, zeroIsLast: Bool = true, beforeMoment: (Int) -> Void = { _ in },
        between: () -> Void = {}
    ) throws -> (disk: SimulatedDisk, plans: [BackupPlan]) {
        let target = SimulatedDisk()
        func copy(_ shard: Int, _ pace: @escaping () -> Void) -> BackupCopy {
            BackupCopy(
                from: load.shard.disk.folder(UInt16(shard)), to: target.folder(UInt16(shard)),
                pace: { (_) throws(StorageFailure) in pace() })
        }
        for shard in 0..<shards {
            try copy(shard) {}.prepare(load.shard.settings.geometry, shard: UInt16(shard))
        }
        var plans: [BackupPlan] = []
        for shard in (0..<shards).reversed() {
            let begins = load.shard.withMachine(shard) { $0.beginBackup() }
            #expect(begins)
            let again = load.shard.withMachine(shard) { $0.beginBackup() }
            #expect(!again)
        }
        for shard in zeroIsLast ? (0..<shards).reversed() : Array(0..<shards) {
            let early = load.shard.withMachine(shard) { $0.backup.plan }
            #expect(early == nil)
            beforeMoment(shard)
            load.shard.withMachine(shard) { $0.holdForBackup() }
            for _ in 0..<500 where load.shard.withMachine(shard, { $0.backup.plan == nil }) {
                load.work()
            }
            plans.append(try #require(load.shard.withMachine(shard) { $0.backup.plan }))
        }
        between()
        for plan in plans {
            try copy(Int(plan.shard), load.work).copyJournal(plan)
            load.shard.withMachine(Int(plan.shard)) { $0.releaseJournalOfBackup() }
        }
        for plan in plans {
            try copy(Int(plan.shard), load.work).copySegments(plan) { (_) throws(StorageFailure) in
                false
            }
        }
        for plan in plans { try copy(Int(plan.shard)) {}.finish(plan) }
        for shard in 0..<shards { load.shard.withMachine(shard) { $0.endBackup() } }
        // Nothing of it relies on what was not synced.
        var random = SeededRandom(seed: 1)
        return (target.afterPowerCut(.none, &random), plans)
    }

    private func check(
        _ disk: SimulatedDisk, _ settings: SimulatedShard.Settings
    ) throws
        -> DirectoryReport
    {
        var options = RecoveryOptions(
            geometry: settings.geometry, limits: settings.limits.journal,
            chunkBytesMax: settings.limits.chunkBytes,
            tailBudgetBytes: settings.limits.tailBytesMax, serverID: 7, journalID: 11,
            now: WallTime(nanoseconds: 1_700_000_100_000_000_000))
        options.boot = disk.boot
        return try DirectoryCheck(options: options) { disk.folder($0) }.run()
    }

    @Test(
        "an image taken under load is the front of the log, and has what was confirmed before it",
        arguments: [(1, 1), (1, 2), (2, 1), (2, 3), (3, 1), (3, 2)], [UInt64(1), 2, 3])
    func underLoad(shards: (before: Int, after: Int), seed: UInt64) throws {
        let load = try Load(shards: shards.before, seed: seed)
        for _ in 0..<60 { load.work() }
        let confirmed = load.orders.map { load.confirmed($0) }
        #expect(confirmed.allSatisfy { $0 > 20 })
        let acked = load.runner.history.acksConfirmed
        let checkpoints = load.shard.machine.counters.checkpoints
        var removed = 0
        let (disk, plans) = try image(
            of: load, shards: shards.before, between: { removed = load.removals })
        #expect(load.removals == removed)
        for _ in 0..<40 { load.work() }
        // Retention and deletes went on, and what was held back is done.
        #expect(load.removals > removed)
        #expect(load.shard.machine.counters.checkpoints > checkpoints)
        #expect(plans.contains { !$0.segments.isEmpty })

        let report = try check(disk, load.shard.settings)
        #expect(report.damages.isEmpty, "\(report.damages)")
        var settings = load.shard.settings
        settings.shards = shards.after
        let restored = try SimulatedShard(disk: disk, settings: settings, seed: seed)
        let found = try ReadBack(from: restored)
        load.runner.settle(load.client, load.orders)
        #expect(load.runner.violation == nil)
        let live = try ReadBack(from: load.shard)
        for (partition, count) in zip(load.orders, confirmed) {
            let records = found.records[partition] ?? []
            #expect(records.count >= count)
            #expect(records.map(\.offset) == Array(0..<UInt64(records.count)))
            let front = (live.records[partition] ?? []).prefix(records.count)
            #expect(records.map(\.value) == front.map(\.value))
        }
        for (key, floor) in acked {
            #expect(found.cursors[key] ?? 0 >= floor)
            #expect(found.cursors[key] ?? 0 <= live.cursors[key] ?? 0)
        }
        for name in ["orders", "kept", "ticks", "notes"] { #expect(found.queues[name] != nil) }
    }

    @Test("a partition that moves meanwhile is found out, or the image has it")
    func moving() throws {
        var (moved, whole) = (0, 0)
        for seed in UInt64(1)...24 {
            let load = try Load(shards: 3, seed: seed)
            for _ in 0..<20 { load.work() }
            let confirmed = load.orders.map { load.confirmed($0) }
            // The first of them lives on the first shard, and goes to the second.
            let partition = try #require(load.orders.first)
            let (disk, plans) = try image(
                of: load, shards: 3,
                beforeMoment: { shard in
                    guard shard == Int(seed % 3) else { return }
                    load.client.request(
                        .queueMove, QueueMoveRequest(partition: partition, shard: 1))
                    for _ in 0..<seed { load.work() }
                })
            for _ in 0..<20 { load.work() }
            load.runner.settle(load.client, load.orders)
            #expect(load.runner.violation == nil)
            guard BackupPlan.movedPartition(plans) == nil else {
                moved += 1
                continue
            }
            whole += 1
            let report = try check(disk, load.shard.settings)
            #expect(report.damages.isEmpty, "\(report.damages)")
            let restored = try SimulatedShard(disk: disk, settings: load.shard.settings, seed: seed)
            let found = try ReadBack(from: restored)
            for (partition, count) in zip(load.orders, confirmed) {
                #expect((found.records[partition] ?? []).count >= count)
            }
        }
        #expect(moved > 0)
        #expect(whole > 0)
    }

    @Test(
        "a producer that came between two moments is known to the image, since shard 0's comes last",
        arguments: [2, 3], [true, false])
    func producersBetween(shards: Int, zeroIsLast: Bool) throws {
        // Room for all that comes while the journals of those that had their moment are kept.
        let load = try Load(shards: shards, seed: 5, journalFactor: 8)
        for _ in 0..<20 { load.work() }
        var opened: Set<UInt64> = []
        let (disk, _) = try image(
            of: load, shards: shards, zeroIsLast: zeroIsLast,
            beforeMoment: { _ in
                guard let producer = load.runner.openProducer(load.client) else { return }
                opened.insert(producer.producerID)
                for partition in load.orders {
                    load.runner.publish(load.client, producer, partition)
                }
                load.runner.settle(load.client, load.orders)
            })
        #expect(opened.count == shards)
        #expect(load.runner.violation == nil)
        let restored = try SimulatedShard(disk: disk, settings: load.shard.settings, seed: 5)
        restored.run { restored.isReady }
        let client = try #require(restored.connect())
        var given = 0
        for _ in 0..<shards {
            let producer = try #require(
                client.ask(.producerOpen, ProducerOpenRequest(), reply: ProducerOpenReply.self))
            given += opened.contains(producer.producerID) ? 1 : 0
        }
        // In the other order an id is given out again, and its first records would be repetitions.
        #expect((given > 0) == !zeroIsLast)
    }

    @Test("a stop in the middle of it ends it; what was copied is no plan any more")
    func stopped() throws {
        let load = try Load(shards: 1, seed: 1)
        for _ in 0..<20 { load.work() }
        let begins = load.shard.withMachine(0) { $0.beginBackup() }
        #expect(begins)
        load.shard.withMachine(0) { $0.holdForBackup() }
        for _ in 0..<500 where load.shard.machine.backup.plan == nil { load.work() }
        #expect(load.shard.machine.backup.plan != nil)
        load.runner.stop()
        #expect(load.runner.violation == nil)
        #expect(load.shard.machine.backup.plan == nil)
        let after = load.shard.withMachine(0) { $0.beginBackup() }
        #expect(!after)
    }
}
