import BrokerBasics
import BrokerCore
import BrokerShard
import BrokerTestSupport
import LogStorage
import Testing
import WireProtocol

/// The check of segments that goes on while a shard serves.
@Suite("Scrub") struct ScrubTests {
    private static let recordsPerBatch = 7
    private static let batches: UInt64 = 60
    private static let records = batches * UInt64(recordsPerBatch)

    /// A stopped broker's disk: queues of 60 batches of 7 KiB, a chunk each.
    private func disk(_ queues: [String]) throws -> SimulatedDisk {
        let fixture = try Fixture()
        for queue in queues {
            let partition = try fixture.create(queue)[0]
            for number in 0..<Self.batches {
                let values = (0..<Self.recordsPerBatch).map { "\(number) \($0)" }
                try fixture.publish(batch(values, bytes: 1000), to: partition)
            }
        }
        fixture.shard.machine.beginStop()
        let isStopped = fixture.shard.run { fixture.shard.machine.stage == .stopped }
        try #require(isStopped)
        var random = SeededRandom(seed: 3)
        return fixture.shard.disk.afterPowerCut(.none, &random)
    }

    private func fixture(
        _ disk: SimulatedDisk, bandwidth: UInt64 = 1 << 20,
        settings change: (inout SimulatedShard.Settings) -> Void = { _ in }
    ) throws -> Fixture {
        try Fixture(disk: disk) {
            $0.limits.scrubBytesPerSecond = bandwidth
            $0.limits.coldPieceBytes = 8192
            change(&$0)
        }
    }

    private func segments(_ disk: SimulatedDisk, _ partition: UInt32) -> [FileName] {
        disk.allNames.filter {
            if case .segment(partition, _, _) = $0 { true } else { false }
        }
    }

    private func waitForPass(_ fixture: Fixture, _ passes: UInt64 = 1) {
        let isDone = fixture.shard.run { fixture.shard.machine.scrubber.passes >= passes }
        #expect(isDone)
    }

    private func damage(_ fixture: Fixture) -> [String] {
        fixture.shard.machine.events.compactMap {
            if case .dataDamaged(let what) = $0 { what } else { nil }
        }
    }

    private func fact(_ fixture: Fixture, _ name: String) -> String? {
        fixture.shard.machine.facts.first { $0.name == name }?.value
    }

    @Test("a flipped bit is found and named once, with its offsets; what it took is served never")
    func found() throws {
        let disk = try disk(["orders", "ticks"])
        let file = segments(disk, 1)[2]
        guard case .segment(_, let base, _) = file else { return }
        let position = 4096 + 2 * 8192
        disk.flip(file, bit: (position + 777) * 8 + 2)
        let fixture = try fixture(disk) { $0.limits.scrubIntervalNanoseconds = .milliseconds(50) }
        waitForPass(fixture)
        let first = base + 2 * UInt64(Self.recordsPerBatch)
        let next = first + UInt64(Self.recordsPerBatch)
        #expect(
            damage(fixture) == [
                "\(file.path), bytes \(position)..<\(position + 8192): "
                    + "offsets \(first) ..< \(next) of partition 1 can't be read"
            ])
        #expect(fixture.counters.damagedRanges == 1)
        #expect(fact(fixture, "damaged_ranges") == "1")
        // All that there is, and each byte once.
        let (passed, whole) = (
            fixture.shard.machine.scrubber.passedBytes, fixture.shard.machine.scrubber.passBytes
        )
        #expect(passed == whole)
        #expect(passed > 2 * Self.records * 1000)
        // Found again, and not named again.
        waitForPass(fixture, 3)
        #expect(damage(fixture).count == 1)
        let client = fixture.client
        _ = try #require(client.subscribe("orders", stream: 1))
        _ = try #require(client.subscribe("ticks", stream: 2))
        fixture.shard.run(steps: 4000) {
            !client.pushes.isEmpty
                && client.delivered.count { $0.partition == 2 } == Int(Self.records)
        }
        let push = try #require(client.pushes.first)
        #expect(StatusCode(rawValue: push.header.status) == .dataDamaged)
        #expect(try Refusal(body: push.body).message.contains("\(file.path) is damaged at byte"))
        #expect(
            client.delivered.filter { $0.partition == 1 }.map(\.offset) == Array(0..<first))
        #expect(client.delivered.count { $0.partition == 2 } == Int(Self.records))
        #expect(client.badBatches == 0)
        #expect(fixture.counters.damagedRanges == 1)
    }

    @Test("what was found damaged stays so until a restart, even if the disk reads it well again")
    func quarantined() throws {
        let disk = try disk(["orders"])
        let file = segments(disk, 1)[2]
        guard case .segment(_, let base, _) = file else { return }
        let bit = (4096 + 8192 + 777) * 8
        disk.flip(file, bit: bit)
        // Memory for two stretches: at the end of the pass the damaged one has left it.
        let fixture = try fixture(disk) {
            $0.limits.coldBytesMax = 2 * $0.limits.coldStretchBytesMax
        }
        waitForPass(fixture)
        #expect(fixture.counters.damagedRanges == 1)
        disk.flip(file, bit: bit)
        let client = fixture.client
        _ = try #require(client.subscribe("orders", stream: 1))
        fixture.shard.run(steps: 4000) { !client.pushes.isEmpty }
        let push = try #require(client.pushes.first)
        #expect(StatusCode(rawValue: push.header.status) == .dataDamaged)
        #expect(client.delivered.count == Int(base) + Self.recordsPerBatch)
        let after = try Fixture(disk: fixture.shard.disk.copy())
        let found = try after.readBack("orders", records: Int(Self.records))
        #expect(found.count == Int(Self.records))
    }

    @Test("a damaged header is named; its chunks vouch for themselves and are served")
    func header() throws {
        let disk = try disk(["orders"])
        let file = segments(disk, 1)[0]
        disk.flip(file, bit: 20 * 8)
        let fixture = try fixture(disk)
        waitForPass(fixture)
        #expect(damage(fixture).count == 1)
        #expect(damage(fixture).first?.contains("not the header of a segment") == true)
        let found = try fixture.readBack("orders", records: Int(Self.records))
        #expect(found.count == Int(Self.records))
    }

    @Test("it reads no more than its bandwidth, and comes to its end", arguments: [64, 256])
    func bandwidth(kibibytes: UInt64) throws {
        let fixture = try fixture(try disk(["orders", "ticks"]), bandwidth: kibibytes << 10)
        let before = fixture.counters.scrubbedBytes
        fixture.shard.pass(milliseconds: 1000)
        let checked = fixture.counters.scrubbedBytes - before
        // A tenth of a second's worth may be left from before, and one read of it is ahead.
        #expect(checked <= (kibibytes << 10) * 11 / 10 + 2 * 8192)
        #expect(checked >= (kibibytes << 10) / 2)
        waitForPass(fixture)
        #expect(damage(fixture).isEmpty)
        #expect(fact(fixture, "scrub_percent") == "100")
        fixture.shard.pass(milliseconds: 50)
        let isPending = fixture.shard.machine.hasPendingEffects
        #expect(!isPending)
    }

    @Test("with a bandwidth of 0 nothing is read")
    func off() throws {
        let fixture = try fixture(try disk(["orders"]), bandwidth: 0)
        fixture.shard.pass(milliseconds: 3000)
        #expect(fixture.counters.scrubbedBytes == 0)
        #expect(fixture.counters.coldReads == 0)
    }

    @Test("what can't be read is named, and left to the next pass; readers try it themselves")
    func failedRead() throws {
        let disk = try disk(["orders"])
        let file = segments(disk, 1)[1]
        let fixture = try fixture(disk)
        fixture.shard.fault = { $0.kind == .read && $0.file == file && $0.position > 0 ? -5 : nil }
        waitForPass(fixture)
        #expect(fixture.shard.faultsFired.count > 0)
        #expect(fixture.counters.scrubErrors == 1)
        #expect(fixture.counters.damagedRanges == 0)
        #expect(damage(fixture).first?.contains("\(file.path) can't read it at byte") == true)
        fixture.shard.fault = nil
        let found = try fixture.readBack("orders", records: Int(Self.records))
        #expect(found.count == Int(Self.records))
    }

    @Test("readers that wait for memory get what it holds, and both come to their end")
    func besideReaders() throws {
        let queues = ["a", "b", "c"]
        let fixture = try fixture(try disk(queues), bandwidth: 256 << 10) {
            $0.limits.coldBytesMax = 2 * $0.limits.coldStretchBytesMax
        }
        let shard = fixture.shard
        var mostUsed = 0
        shard.aroundCompletion = { _, _ in
            mostUsed = max(mostUsed, shard.machine.coldReader.usedBytes)
        }
        let readers = try queues.map { try fixture.connect($0) }
        for (reader, queue) in zip(readers, queues) {
            _ = try #require(reader.subscribe(queue, stream: 1))
        }
        shard.run { readers.allSatisfy { $0.delivered.count == Int(Self.records) } }
        #expect(readers.allSatisfy { $0.delivered.map(\.offset) == Array(0..<Self.records) })
        waitForPass(fixture)
        #expect(mostUsed <= shard.settings.limits.coldBytesMax)
        #expect(damage(fixture).isEmpty)
    }

    @Test("a queue can be deleted at every step of its check")
    func deleted() throws {
        let disk = try disk(["orders", "ticks"])
        for steps in 0..<20 {
            let fixture = try fixture(disk.copy())
            for _ in 0..<steps * 5 { fixture.shard.step() }
            let reply = fixture.client.ask(
                .queueDelete, QueueNameRequest(name: "orders"), reply: Empty.self)
            #expect(reply != nil)
            waitForPass(fixture)
            fixture.shard.pass(milliseconds: 25_000)
            #expect(segments(fixture.shard.disk, 1).isEmpty)
            #expect(damage(fixture).isEmpty)
        }
    }
}
