import BrokerBasics
import BrokerShard
import BrokerTestSupport
import LogStorage
import Testing
import WireProtocol

/// What write-behind and checkpoints ask of the kernel when many partitions are busy at once.
@Suite("Many busy partitions")
struct ManyPartitionsTests {
    /// Publishes to all partitions in turn until the shard has taken `checkpoints` more.
    private func publish(_ fixture: Fixture, _ partitions: [UInt32], checkpoints: UInt64) throws {
        let wanted = fixture.counters.checkpoints + checkpoints
        for round in 0..<2000 where fixture.counters.checkpoints < wanted {
            let batch = batch(["\(round)"], bytes: 600)
            let sent = partitions.map { fixture.client.publish(batch, partition: $0) }
            fixture.shard.run { sent.allSatisfy { fixture.client.isAnswered($0) } }
        }
        try #require(fixture.counters.checkpoints >= wanted)
    }

    @Test("a chunk that a checkpoint forces out is written synced, and its file needs no sync")
    func forcedChunks() throws {
        let fixture = try Fixture { $0.limits.carryBytesMax = 1024 }
        let partitions = try fixture.create("orders", partitions: 12)
        try publish(fixture, partitions, checkpoints: 2)
        var synced: [FileName: Int] = [:]
        var syncs = 0
        fixture.shard.onStart = { asked in
            guard asked.directory == .segments, let file = asked.file else { return }
            if asked.kind == .syncedWrite { synced[file, default: 0] += 1 }
            if asked.kind == .sync { syncs += 1 }
        }
        try publish(fixture, partitions, checkpoints: 4)
        #expect(synced.values.reduce(0, +) >= 12)
        #expect(syncs < synced.values.reduce(0, +))
    }

    @Test("syncs begin a few a millisecond while the journal has room, and all at once at the end")
    func syncsArePaced() throws {
        let fixture = try Fixture { settings in
            settings.geometry = JournalGeometry(fileBytes: 256 * 1024, fileCount: 4)
            settings.limits.syncsPerSpan = 2
            settings.limits.carryBytesMax = 64
            settings.latencyMax = 20_000
        }
        let shard = fixture.shard
        var begun: [UInt64] = []
        shard.onStart = { [unowned shard] asked in
            guard asked.kind == .sync, asked.directory == .segments else { return }
            begun.append(shard.time.nanoseconds)
        }
        let partitions = try fixture.create("orders", partitions: 20)
        for partition in partitions { try fixture.publish(5, to: partition, bytes: 600) }
        shard.pass(milliseconds: 11_000)
        #expect(begun.count >= 6)
        for time in begun {
            let span = begun.filter { $0 >= time && $0 < time + 1_000_000 }
            // Of two spans that touch, each may have had all of its syncs.
            #expect(span.count <= 4, "\(span.count) syncs within a millisecond")
        }
        for partition in try fixture.create("late", partitions: 20) {
            try fixture.publish(1, to: partition, bytes: 600)
        }
        begun = []
        shard.machine.beginStop()
        shard.run { shard.machine.stage == .stopped }
        let together = begun.map { time in begun.filter { $0 == time }.count }.max() ?? 0
        #expect(together > 4, "of \(begun.count) files, \(together) were synced at once")
    }

    @Test(
        "a partition of which little is written gets little room, a busy one room for four chunks")
    func roomByNeed() throws {
        let fixture = try Fixture {
            $0.limits.chunkBytes = 64 * 1024
            $0.limits.segmentBytes = 4 << 20
            $0.limits.tailBytesMax = 4 << 20
            $0.geometry = JournalGeometry(fileBytes: 1 << 20, fileCount: 4)
        }
        let partitions = try fixture.create("orders", partitions: 2)
        try fixture.publish(1, to: partitions[0])
        try fixture.publish(300, to: partitions[1], bytes: 900)
        fixture.shard.machine.beginStop()
        fixture.shard.run { fixture.shard.machine.stage == .stopped }
        func reserved(_ partition: UInt32) -> Int {
            fixture.shard.disk.allNames.map { name in
                guard case .segment(let of, _, _) = name, of == partition else { return 0 }
                return fixture.shard.disk.length(name)
            }.max() ?? 0
        }
        #expect(reserved(partitions[0]) == 64 * 1024)
        #expect(reserved(partitions[1]) >= 4 * 64 * 1024)
    }

    @Test("a file that was given room is written to before the next gets some")
    func roomIsUsedFirst() throws {
        let fixture = try Fixture { settings in
            settings.limits.writesBehindMax = 1
            settings.limits.chunkBytes = 4096
            settings.limits.frameBytesMax = 4096
        }
        let partitions = try fixture.create("orders", partitions: 8)
        var given = 0
        var inARow = 0
        var longest = 0
        fixture.shard.onStart = { asked in
            guard asked.directory == .segments else { return }
            if asked.kind == .allocate {
                given += 1
                inARow += 1
                longest = max(longest, inARow)
            } else if asked.kind == .write || asked.kind == .syncedWrite {
                inARow = 0
            }
        }
        try publish(fixture, partitions, checkpoints: 6)
        #expect(given >= 8)
        // Two files at a time are worked on while a checkpoint waits.
        #expect(longest <= 2)
    }

    @Test("a tail that is full of what is still being written asks for no checkpoint")
    func fullTail() throws {
        let fixture = try Fixture { settings in
            settings.latencyMax = 20_000
            settings.segmentDelay = 2_000_000
            settings.limits.tailBytesMax = 128 * 1024
        }
        let partition = try fixture.create("ticks", level: .memory)[0]
        let before = fixture.counters.checkpoints
        let sent = (0..<1500).map {
            fixture.client.publish(batch(["\($0)"], bytes: 900), partition: partition)
        }
        fixture.shard.run(steps: 50_000) { sent.allSatisfy { fixture.client.isAnswered($0) } }
        #expect(sent.allSatisfy { fixture.client.confirm(of: $0) != nil })
        #expect(fixture.counters.evictedChunks > 50)
        let checkpoints = fixture.counters.checkpoints - before
        // Each makes a sixteenth of the tail free at least: one chunk here.
        #expect(checkpoints <= fixture.counters.chunksWritten + 5, "\(checkpoints)")
        #expect(checkpoints > 5)
    }
}
