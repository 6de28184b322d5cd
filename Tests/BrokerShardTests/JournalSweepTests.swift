import BrokerBasics
import BrokerShard
import BrokerTestSupport
import LogStorage
import Testing

/// How partitions that fill no chunk leave the journal.
@Suite("The journal's sweep")
struct JournalSweepTests {
    private func fixture(
        _ change: (inout SimulatedShard.Settings) -> Void = { _ in }
    ) throws -> Fixture {
        try Fixture { settings in
            settings.geometry = JournalGeometry(fileBytes: 1 << 20, fileCount: 4)
            settings.limits.chunkBytes = 128 * 1024
            settings.limits.segmentBytes = 1 << 20
            settings.limits.tailBytesMax = 32 << 20
            settings.limits.carryBytesMax = 1024
            change(&settings)
        }
    }

    /// Publishes to all in turn until the journal has gone round `times`.
    private func publish(_ fixture: Fixture, _ partitions: [UInt32], rounds times: UInt64) throws {
        let wanted =
            fixture.shard.machine.journal.openPosition
            + times * fixture.shard.machine.journal.geometry.capacity
        for round in 0..<50_000 where fixture.shard.machine.journal.openPosition < wanted {
            let batch = batch(["\(round)"], bytes: 600)
            let sent = partitions.map { fixture.client.publish(batch, partition: $0) }
            fixture.shard.run { sent.allSatisfy { fixture.client.isAnswered($0) } }
        }
        try #require(fixture.shard.machine.journal.openPosition >= wanted)
    }

    @Test("many busy partitions are written behind one after the other, and no checkpoint waits")
    func oneAfterTheOther() throws {
        let fixture = try fixture()
        let partitions = try fixture.create("orders", partitions: 32)
        try publish(fixture, partitions, rounds: 1)
        let shard = fixture.shard
        let before = fixture.counters
        var written: [UInt64] = []
        var syncs = 0
        shard.onStart = { [unowned shard] asked in
            guard asked.directory == .segments else { return }
            if asked.kind == .sync { syncs += 1 }
            if asked.kind == .syncedWrite { written.append(shard.machine.journal.openPosition) }
        }
        try publish(fixture, partitions, rounds: 4)
        #expect(before.frames > 0 && before.frames < fixture.counters.frames)
        #expect(written.count >= 200)
        #expect(fixture.counters.syncedChunks - before.syncedChunks + 2 >= UInt64(written.count))
        #expect(syncs < written.count / 4)
        #expect(fixture.counters.awaitedChunks == before.awaitedChunks)
        #expect(fixture.counters.parks == 0)
        // Once round is seven sixteenths of the journal: a sixteenth is five of the 32 partitions.
        let window = shard.machine.journal.geometry.capacity / 16
        for position in written {
            let near = written.filter { $0 >= position && $0 < position + window }
            #expect(near.count <= 10, "\(near.count) chunks within a sixteenth of the journal")
        }
    }

    @Test("a quiet partition's few bytes are carried forward once round, and never written")
    func quietPartition() throws {
        let fixture = try fixture()
        let quiet = try fixture.create("quiet")[0]
        let busy = try fixture.create("busy")
        try fixture.publish(1, to: quiet)
        var files: Set<FileName> = []
        fixture.shard.onStart = { asked in
            if asked.directory == .segments, let file = asked.file { files.insert(file) }
        }
        try publish(fixture, busy, rounds: 6)
        #expect((8...13).contains(fixture.counters.carriedBatches))
        #expect(!files.isEmpty)
        #expect(
            !files.contains {
                if case .segment(quiet, _, _) = $0 { true } else { false }
            })
        #expect(try fixture.readBack("quiet", records: 1).map(\.text) == ["0"])
    }

    @Test("small remainders do not keep each other going round: what is too much is written")
    func remaindersEnd() throws {
        let fixture = try fixture {
            $0.geometry = JournalGeometry(fileBytes: 64 * 1024, fileCount: 4)
            $0.limits.chunkBytes = 8192
            $0.limits.segmentBytes = 64 * 1024
            $0.limits.filesMax = 256
        }
        let names = (0..<4).map { "quiet-\($0)" }
        let quiet = try names.flatMap { try fixture.create($0, partitions: 32) }
        for partition in quiet { try fixture.publish(1, to: partition, bytes: 900) }
        let busy = try fixture.create("busy")
        let capacity = fixture.shard.machine.journal.geometry.capacity
        let before = fixture.counters.carriedBatches
        try publish(fixture, busy, rounds: 2)
        // Two sixteenths of the journal in a round, which is seven.
        let carried = (fixture.counters.carriedBatches - before) * 1000
        #expect(carried > 0)
        #expect(carried < 2 * capacity * 2 / 7 * 3 / 2, "\(carried) bytes")
        fixture.shard.pass(milliseconds: 50)
        let position = fixture.shard.machine.journal.openPosition
        fixture.shard.pass(milliseconds: 500)
        #expect(fixture.shard.machine.journal.openPosition <= position + 8192)
        for name in names { #expect(try fixture.readBack(name, records: 32).count == 32) }
    }

    @Test("a journal that fills because segments are slow waits for what is old, and goes on")
    func lateDisk() throws {
        let fixture = try fixture {
            $0.segmentDelay = 100_000_000
            $0.limits.writesBehindMax = 1
        }
        let partitions = try fixture.create("orders", partitions: 32)
        try publish(fixture, partitions, rounds: 4)
        #expect(fixture.counters.awaitedChunks > 0)
        #expect(fixture.counters.parks > 0)
        fixture.shard.pass(milliseconds: 20_000)
        #expect(
            fixture.shard.machine.journal.usedBytes < fixture.shard.machine.journal.geometry
                .capacity / 2)
    }
}
