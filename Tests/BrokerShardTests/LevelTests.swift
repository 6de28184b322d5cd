import BrokerBasics
import BrokerCore
import BrokerShard
import BrokerTestSupport
import LogStorage
import Testing
import WireProtocol

@Suite("Durability levels")
struct LevelTests {
    /// The journal's writes and syncs, in the order in which they began.
    private final class JournalWatch {
        var kinds: [SimulatedShard.Asked.Kind] = []
        init(_ shard: SimulatedShard) {
            shard.onStart = { asked in
                if asked.directory == .journal { self.kinds.append(asked.kind) }
            }
        }
    }

    private static func asking(_ level: UInt8) -> [UInt8] {
        OptionalFields.encode(OptionalFields.confirmLevel, isMandatory: true, [level])
    }

    /// A queue whose first reservation is made, so that the journal holds nothing but batches.
    private static func warm(_ fixture: Fixture, _ level: DurabilityLevel) throws -> UInt32 {
        let partition = try fixture.create("fills", level: level)[0]
        try fixture.publish(batch(["first"]), to: partition)
        fixture.shard.pass(milliseconds: 30)
        return partition
    }

    @Test("a written batch is confirmed after a plain write, and synced when the shard is idle")
    func written() throws {
        let fixture = try Fixture()
        let partition = try Self.warm(fixture, .written)
        let watch = JournalWatch(fixture.shard)
        let entry = try fixture.publish(batch(["fill"]), to: partition)
        #expect(entry.level == DurabilityLevel.written.rawValue)
        #expect(entry.baseOffset == 1)
        #expect(watch.kinds == [.write])
        let isDirty = fixture.shard.machine.journal.isDirty
        #expect(isDirty)
        fixture.shard.pass(milliseconds: 30)
        // The sync, and then a group that says on disk what is durable.
        #expect(watch.kinds == [.write, .sync, .syncedWrite])
        let isDirtyLater = fixture.shard.machine.journal.isDirty
        #expect(!isDirtyLater)
    }

    @Test("one synced batch makes its group synced; behind a plain write a sync follows")
    func mixed() throws {
        let fixture = try Fixture()
        let fills = try Self.warm(fixture, .written)
        let orders = try fixture.create("orders")[0]
        fixture.shard.pass(milliseconds: 30)
        let watch = JournalWatch(fixture.shard)
        try fixture.publish(batch(["order"]), to: orders)
        #expect(watch.kinds == [.syncedWrite])
        try fixture.publish(batch(["fill"]), to: fills)
        #expect(watch.kinds == [.syncedWrite, .write])
        let entry = try fixture.publish(batch(["order"]), to: orders)
        #expect(entry.level == DurabilityLevel.synced.rawValue)
        #expect(watch.kinds == [.syncedWrite, .write, .write, .sync])
        // Covered: the next one vouches for itself again.
        try fixture.publish(batch(["order"]), to: orders)
        #expect(watch.kinds == [.syncedWrite, .write, .write, .sync, .syncedWrite])
    }

    @Test("a journal that is only written is synced before much of it is")
    func unsyncedIsBounded() throws {
        let fixture = try Fixture()
        let partition = try Self.warm(fixture, .written)
        let watch = JournalWatch(fixture.shard)
        for number in 0..<12 {
            // Never idle for long, and nothing else asks for a sync.
            try fixture.publish(batch(["\(number)"], bytes: 3000), to: partition)
        }
        #expect(watch.kinds.contains(.sync))
    }

    @Test("a publish may be content with less: its confirm comes first, its offset is not told")
    func downgraded() throws {
        let fixture = try Fixture()
        let client = fixture.client
        for level in [DurabilityLevel.synced, .written] {
            let partition = try fixture.create("q-\(level.name)", level: level)[0]
            try fixture.publish(batch(["first"]), to: partition)
            _ = client.subscribe("q-\(level.name)", stream: UInt32(level.rawValue))
            fixture.shard.pass(milliseconds: 30)
            let before = client.delivered.count
            let watch = JournalWatch(fixture.shard)
            let early = client.publish(
                batch(["early"]), partition: partition, fields: Self.asking(0))
            let entry = try #require(client.confirm(of: early))
            #expect(entry.level == DurabilityLevel.memory.rawValue)
            #expect(entry.baseOffset == Offset.unknown.rawValue)
            // The path is the queue's, and so is the time when readers see it.
            #expect(watch.kinds == [level == .synced ? .syncedWrite : .write])
            #expect(client.delivered.count == before)
            fixture.shard.run { client.delivered.count > before }
            #expect(client.delivered.last?.offset == 1)
        }
        #expect(fixture.counters.downgradedRecords == 2)
    }

    @Test("between memory and synced there is nothing on a synced queue: one write does both")
    func writtenOfSynced() throws {
        let fixture = try Fixture()
        let client = fixture.client
        let partition = try fixture.create("orders")[0]
        let correlation = client.publish(
            batch(["order"]), partition: partition, fields: Self.asking(1))
        #expect(client.confirm(of: correlation) == nil)
        fixture.shard.run { client.isAnswered(correlation) }
        let entry = try #require(client.confirm(of: correlation))
        #expect(entry.level == DurabilityLevel.synced.rawValue)
        #expect(entry.baseOffset == 0)
    }

    @Test("asking for more than the queue promises, or for no level, is refused; nothing is stored")
    func refused() throws {
        let fixture = try Fixture()
        let client = fixture.client
        let partition = try fixture.create("fills", level: .written)[0]
        for (fields, status) in [
            (Self.asking(2), StatusCode.levelNotOffered), (Self.asking(9), .levelNotOffered),
            (OptionalFields.encode(OptionalFields.confirmLevel, isMandatory: true, []), .badFrame),
            (
                OptionalFields.encode(OptionalFields.confirmLevel, isMandatory: true, [0, 0]),
                .badFrame
            ),
        ] {
            let correlation = client.publish(batch(["x"]), partition: partition, fields: fields)
            fixture.shard.run { client.isAnswered(correlation) }
            #expect(client.status(of: correlation) == status)
        }
        #expect(try fixture.publish(batch(["y"]), to: partition).baseOffset == 0)
    }

    @Test("a retry of a downgraded publish is a duplicate, confirmed as it asks")
    func retried() throws {
        let fixture = try Fixture()
        let client = fixture.client
        let partition = try fixture.create("orders")[0]
        let producer = try #require(
            client.ask(.producerOpen, ProducerOpenRequest(name: ""), reply: ProducerOpenReply.self))
        var builder = BatchBuilder()
        _ = builder.append(Record(value: [1], timestamp: 1))
        let bytes = builder.finish(
            producer: ProducerID(rawValue: producer.producerID), epoch: producer.epoch, sequence: 0)
        let first = client.publish(bytes, partition: partition, fields: Self.asking(0))
        #expect(client.confirm(of: first)?.level == DurabilityLevel.memory.rawValue)
        let again = client.publish(bytes, partition: partition, fields: Self.asking(0))
        let early = try #require(client.confirm(of: again))
        #expect(early.flags & ConfirmEntry.duplicateFlag != 0)
        #expect(early.baseOffset == Offset.unknown.rawValue)
        fixture.shard.pass(milliseconds: 30)
        let late = client.publish(bytes, partition: partition, fields: Self.asking(0))
        let known = try #require(client.confirm(of: late))
        #expect(known.level == DurabilityLevel.synced.rawValue)
        #expect(known.baseOffset == 0)
    }

    /// What the next start finds lost.
    private static func lost(_ disk: SimulatedDisk) throws -> [String] {
        try Fixture(disk: disk).shard.report.lostRanges
    }

    @Test("a power cut on a shard that is quiet for long takes nothing of a written queue")
    func quiet() throws {
        let fixture = try Fixture()
        let partition = try fixture.create("fills", level: .written)[0]
        try fixture.publish(10, to: partition)
        var random = SeededRandom(seed: 1)
        #expect(try Self.lost(fixture.shard.disk.afterPowerCut(.all, &random)).count == 1)
        fixture.shard.pass(milliseconds: 25_000)
        #expect(try Self.lost(fixture.shard.disk.afterPowerCut(.none, &random)).isEmpty)
        // And then no checkpoint comes for its sake.
        let checkpoints = fixture.counters.checkpoints
        fixture.shard.pass(milliseconds: 60_000)
        #expect(fixture.counters.checkpoints == checkpoints)
    }

    @Test("killed, started, stopped in order, and the machine started anew: nothing is lost")
    func stoppedAfterKill() throws {
        let fixture = try Fixture()
        let partition = try fixture.create("fills", level: .written)[0]
        try fixture.publish(10, to: partition)
        var random = SeededRandom(seed: 1)
        let second = try Fixture(disk: fixture.shard.disk.afterKill(&random))
        #expect(second.shard.report.lostRanges.isEmpty)
        second.shard.machine.beginStop()
        second.shard.run { second.shard.machine.stage == .stopped }
        #expect(try Self.lost(second.shard.disk.afterPowerCut(.none, &random)).isEmpty)
    }

    @Test(
        "whoever waits for stable storage does not wait until written batches are synced by the way"
    )
    func duplicatesAreNotKept() throws {
        let fixture = try Fixture()
        let client = fixture.client
        let fills = try Self.warm(fixture, .written)
        let orders = try fixture.create("orders")[0]
        let producer = try #require(
            client.ask(.producerOpen, ProducerOpenRequest(name: ""), reply: ProducerOpenReply.self))
        var builder = BatchBuilder()
        _ = builder.append(Record(value: [1], timestamp: 1))
        let bytes = builder.finish(
            producer: ProducerID(rawValue: producer.producerID), epoch: producer.epoch, sequence: 0)
        let first = client.publish(bytes, partition: orders)
        fixture.shard.run { client.isAnswered(first) }
        fixture.shard.pass(milliseconds: 30)
        // A written batch comes every few steps, so the journal is never idle.
        client.publish(batch(["fill"]), partition: fills)
        let again = client.publish(bytes, partition: orders)
        let began = fixture.shard.time
        fixture.shard.run(steps: 200) {
            client.publish(batch(["fill"]), partition: fills)
            return client.isAnswered(again)
        }
        #expect(client.confirm(of: again)?.flags == ConfirmEntry.duplicateFlag)
        #expect(fixture.shard.time.since(began) < .milliseconds(5))
    }

    @Test("a failed sync of the journal stops the shard, and whoever waits is told")
    func failedSync() throws {
        let fixture = try Fixture()
        let client = fixture.client
        let partition = try Self.warm(fixture, .written)
        fixture.shard.fault = { $0.kind == .sync && $0.directory == .journal ? -5 : nil }
        try fixture.publish(batch(["fill"]), to: partition)
        fixture.shard.pass(milliseconds: 30)
        #expect(!fixture.shard.faultsFired.isEmpty)
        #expect(fixture.counters.storageFailure?.contains("syncing the journal") == true)
        #expect(
            try fixture.refusal(publishing: batch(["fill"]), to: partition) == .storageFailed)
        #expect(!client.isClosed)
    }
}
