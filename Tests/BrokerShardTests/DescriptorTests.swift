import BrokerBasics
import BrokerCore
import BrokerShard
import BrokerTestSupport
import LogStorage
import Testing
import WireProtocol

/// Files that can't be opened, since the process or the system has no descriptor left.
@Suite("Without descriptors")
struct DescriptorTests {
    @Test(
        "what can't be opened for want of a descriptor waits; nobody is refused, nothing is lost",
        arguments: [Int32(24), 23], [StorageDirectory.segments, .checkpoints])
    func waits(errno: Int32, directory: StorageDirectory) throws {
        let fixture = try Fixture { $0.limits.segmentBytes = 32 * 1024 }
        let orders = try fixture.create("orders")[0]
        let client = fixture.client
        fixture.shard.fault = {
            ($0.kind == .make || $0.kind == .open) && $0.directory == directory ? -errno : nil
        }
        // Less than the journal holds: what is accepted waits there.
        try fixture.publish(30, to: orders, bytes: 900)
        fixture.shard.pass(milliseconds: 11_000)
        #expect(fixture.shard.faultsFired.count > 1)
        let waited = fixture.counters.awaitedDescriptors
        #expect(waited > 1 && waited < 60, "\(waited) tries")
        #expect(fixture.counters.storageFailure == nil)
        #expect(try fixture.refusal(publishing: batch(["on"]), to: orders) == .ok)
        #expect(
            try fixture.refusal(
                .queueCreate, QueueCreateRequest(name: "late", partitions: 1, level: .synced))
                == .ok)
        let status = try #require(
            client.ask(.serverDescribe, Empty(), reply: ServerDescription.self))
        let storage = try #require(status.facts.first { $0.name == "storage" }?.value)
        #expect(storage.contains("a descriptor") && storage.contains("errno \(errno)"))
        // Killed in the middle of it: all of it is in the journal.
        var random = SeededRandom(seed: 4)
        let after = try Fixture(disk: fixture.shard.disk.afterKill(&random)) {
            $0.limits.segmentBytes = 32 * 1024
        }
        #expect(try after.readBack("orders", records: 31).count == 31)
        // There are descriptors again.
        fixture.shard.fault = nil
        fixture.shard.pass(milliseconds: 1100)
        let events = fixture.shard.machine.events
        #expect(events.count { if case .descriptorsAwaited = $0 { true } else { false } } == 1)
        #expect(events.count { $0 == .descriptorsFound } == 1)
        let done = fixture.counters.checkpoints
        try fixture.publish(30, to: orders, bytes: 900, from: 31)
        fixture.shard.pass(milliseconds: 11_000)
        #expect(fixture.counters.checkpoints > done)
        #expect(fixture.counters.chunksWritten > 0)
        #expect(try fixture.readBack("orders", records: 61).count == 61)
    }

    @Test("publishers wait when the journal is full of what can't be written, and then go on")
    func fullJournal() throws {
        let fixture = try Fixture { $0.limits.segmentBytes = 32 * 1024 }
        let orders = try fixture.create("orders")[0]
        fixture.shard.fault = {
            $0.kind == .make && $0.directory == .segments ? -24 : nil
        }
        let sent = (0..<400).map {
            fixture.client.publish(batch(["\($0)"], bytes: 900), partition: orders)
        }
        fixture.shard.pass(milliseconds: 3000)
        #expect(fixture.client.isPaused)
        #expect(sent.contains { !fixture.client.isAnswered($0) })
        #expect(fixture.counters.storageFailure == nil)
        #expect(fixture.isServing())
        fixture.shard.fault = nil
        fixture.shard.run(steps: 20_000) { sent.allSatisfy { fixture.client.isAnswered($0) } }
        #expect(sent.allSatisfy { fixture.client.confirm(of: $0) != nil })
        #expect(try fixture.readBack("orders", records: 400).map(\.offset) == Array(0..<400))
    }

    @Test("a reader whose segment can't be opened waits, and is not told that it is damaged")
    func reader() throws {
        let fixture = try Fixture {
            $0.limits.segmentBytes = 32 * 1024
            $0.limits.tailBytesMax = 64 * 1024
        }
        let orders = try fixture.create("orders")[0]
        try fixture.publish(200, to: orders, bytes: 900)
        fixture.shard.pass(milliseconds: 11_000)
        fixture.shard.fault = { $0.kind == .open ? -24 : nil }
        let reader = try fixture.connect("reader")
        _ = try #require(reader.subscribe("orders", stream: 1))
        fixture.shard.pass(milliseconds: 1200)
        #expect(fixture.shard.faultsFired.count > 1)
        #expect(reader.delivered.isEmpty)
        #expect(reader.pushes.isEmpty)
        try fixture.publish(1, to: orders)
        fixture.shard.fault = nil
        fixture.shard.run(steps: 3000) { reader.delivered.count == 201 }
        #expect(reader.delivered.map(\.offset) == Array(0..<201))
    }

    @Test("a stop that finds no descriptor ends, and says so; nothing is lost")
    func stop() throws {
        let fixture = try Fixture()
        let orders = try fixture.create("orders")[0]
        try fixture.publish(5, to: orders)
        fixture.shard.fault = { $0.directory == .checkpoints && $0.kind == .make ? -24 : nil }
        fixture.shard.machine.beginStop()
        #expect(fixture.shard.run(steps: 20_000) { fixture.shard.machine.stage == .stopped })
        #expect(fixture.shard.faultsFired.count > 1)
        let failure = try #require(fixture.counters.storageFailure)
        #expect(failure.contains("found no descriptor") && failure.contains("checkpoints/"))
        var random = SeededRandom(seed: 4)
        let after = try Fixture(disk: fixture.shard.disk.afterPowerCut(.none, &random))
        #expect(try after.readBack("orders", records: 5).count == 5)
    }
}
