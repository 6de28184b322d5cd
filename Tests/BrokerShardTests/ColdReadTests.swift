import BrokerBasics
import BrokerCore
import BrokerShard
import BrokerTestSupport
import LogStorage
import Testing
import WireProtocol

/// Readers behind the tail: what they read ahead, what they share, and what they may hold.
@Suite("Old records") struct ColdReadTests {
    private static let recordsPerBatch = 7

    /// A broker with queues whose oldest records are in segments only: `batches` batches of 7 KiB each.
    private func fixture(
        _ queues: [String] = ["orders"], batches: Int = 80,
        settings change: (inout SimulatedShard.Settings) -> Void = { _ in }
    ) throws -> Fixture {
        let fixture = try Fixture {
            $0.limits.tailBytesMax = 64 * 1024
            $0.limits.coldPieceBytes = 8192
            change(&$0)
        }
        for queue in queues {
            let partition = try fixture.create(queue)[0]
            for number in 0..<batches { try fixture.publish(Self.batch(number), to: partition) }
        }
        fixture.shard.pass(milliseconds: 12_000)
        return fixture
    }

    private static func batch(_ number: Int) -> [UInt8] {
        BrokerShardTests.batch((0..<recordsPerBatch).map { "\(number) \($0)" }, bytes: 1000)
    }

    private func isWhole(_ client: SimulatedClient, batches: Int = 80) -> Bool {
        client.delivered.map(\.offset) == Array(0..<UInt64(batches * Self.recordsPerBatch))
            && client.badBatches == 0
    }

    /// Runs until each of `clients` has got `batches` batches.
    private func read(
        _ fixture: Fixture, _ clients: [SimulatedClient], batches: Int = 80, steps: Int = 20_000
    ) {
        fixture.shard.run(steps: steps) {
            clients.allSatisfy { $0.delivered.count == batches * Self.recordsPerBatch }
        }
    }

    private func segments(_ fixture: Fixture, _ partition: UInt32) -> [FileName] {
        fixture.shard.disk.allNames.filter {
            if case .segment(partition, _, _) = $0 { true } else { false }
        }
    }

    // MARK: reading ahead

    @Test("a reader that goes on has the next reads in flight, and reads each byte once")
    func readAhead() throws {
        let fixture = try fixture { $0.limits.coldReadsMax = 4 }
        let shard = fixture.shard
        var mostInFlight = 0
        shard.aroundCompletion = { _, _ in
            mostInFlight = max(mostInFlight, shard.machine.coldReader.readsInFlight)
        }
        _ = try #require(fixture.client.subscribe("orders", stream: 1))
        read(fixture, [fixture.client])
        #expect(isWhole(fixture.client))
        #expect(mostInFlight >= 3)
        #expect(mostInFlight <= 4)
        let bytes = segments(fixture, 1).reduce(0) { $0 + shard.disk.length($1) }
        #expect(fixture.counters.coldReadBytes > UInt64(bytes / 2))
        #expect(fixture.counters.coldReadBytes <= UInt64(bytes))
        fixture.shard.pass(milliseconds: 20)
        let isPending = shard.machine.hasPendingEffects
        #expect(!isPending)
    }

    @Test("who wants one record has one chunk read")
    func oneRecord() throws {
        let fixture = try fixture { $0.limits.coldReadsMax = 4 }
        _ = try #require(fixture.client.subscribe("orders", stream: 1, credit: 1))
        fixture.shard.pass(milliseconds: 20)
        #expect(fixture.client.delivered.count == Self.recordsPerBatch)
        // Of the chunk, and what the first step of reading ahead asks for.
        #expect(fixture.counters.coldReads >= 1)
        #expect(fixture.counters.coldReads <= 2)
    }

    @Test("reads stay within their limit, however many read", arguments: [1, 2, 3])
    func inFlight(limit: Int) throws {
        let queues = ["a", "b", "c", "d"]
        let fixture = try fixture(queues, batches: 30) { $0.limits.coldReadsMax = limit }
        let shard = fixture.shard
        var mostInFlight = 0
        shard.aroundCompletion = { _, _ in
            mostInFlight = max(mostInFlight, shard.machine.coldReader.readsInFlight)
        }
        let readers = try queues.map { try fixture.connect($0) }
        for (reader, queue) in zip(readers, queues) {
            _ = try #require(reader.subscribe(queue, stream: 1))
        }
        read(fixture, readers, batches: 30)
        #expect(readers.allSatisfy { isWhole($0, batches: 30) })
        #expect(mostInFlight == limit)
    }

    // MARK: sharing

    @Test("many readers of the same range make about one reader's reads")
    func shared() throws {
        let alone = try fixture()
        _ = try #require(alone.client.subscribe("orders", stream: 1))
        read(alone, [alone.client])
        #expect(isWhole(alone.client))
        let one = alone.counters.coldReadBytes
        #expect(one > 0)
        let together = try fixture()
        let readers = try (0..<10).map { try together.connect("reader \($0)") }
        for reader in readers {
            reader.request(
                .subscribe,
                SubscribeRequest(
                    queue: "orders", start: .start, creditRecords: .max, creditBytes: .max),
                stream: 1)
        }
        read(together, readers)
        #expect(readers.allSatisfy { isWhole($0) })
        #expect(together.counters.coldReadBytes <= one * 12 / 10)
    }

    // MARK: the budget

    /// Memory for two stretches, and more readers of different ranges than that.
    private func tight(_ settings: inout SimulatedShard.Settings) {
        settings.limits.coldBytesMax = 2 * settings.limits.coldStretchBytesMax
    }

    @Test("memory stays within its budget, and all readers come to the end")
    func budget() throws {
        let queues = ["a", "b", "c", "d", "e"]
        let fixture = try fixture(queues, batches: 40) { tight(&$0) }
        let shard = fixture.shard
        let limit = shard.settings.limits.coldBytesMax
        var mostUsed = 0
        var waited = 0
        shard.aroundCompletion = { _, _ in
            mostUsed = max(mostUsed, shard.machine.coldReader.usedBytes)
            for index in shard.machine.readers.indices
            where shard.machine.readers[index].pointee.state == .waitRead { waited += 1 }
        }
        let readers = try queues.map { try fixture.connect($0) }
        for (reader, queue) in zip(readers, queues) {
            _ = try #require(reader.subscribe(queue, stream: 1))
        }
        read(fixture, readers, batches: 40)
        #expect(readers.allSatisfy { isWhole($0, batches: 40) })
        #expect(mostUsed == limit)
        #expect(waited > 0)
    }

    @Test("no reader is left behind while others read: they take turns")
    func fairness() throws {
        let queues = ["a", "b", "c", "d", "e", "f"]
        let fixture = try fixture(queues, batches: 60) { tight(&$0) }
        let readers = try queues.map { try fixture.connect($0) }
        for (reader, queue) in zip(readers, queues) {
            reader.request(
                .subscribe,
                SubscribeRequest(
                    queue: queue, start: .start, creditRecords: .max, creditBytes: .max),
                stream: 1)
        }
        let all = 60 * Self.recordsPerBatch
        fixture.shard.run { readers.contains { $0.delivered.count >= all * 3 / 4 } }
        for reader in readers { #expect(reader.delivered.count >= all / 4) }
        read(fixture, readers, batches: 60)
        #expect(readers.allSatisfy { isWhole($0, batches: 60) })
    }

    @Test("a consumer that takes nothing does not keep the memory that others wait for")
    func slowConsumer() throws {
        let queues = ["a", "b", "c"]
        let fixture = try fixture(queues, batches: 40) { tight(&$0) }
        let slow = try ["a", "b"].map { try fixture.connect($0) }
        for (reader, queue) in zip(slow, queues) {
            _ = try #require(reader.subscribe(queue, stream: 1, credit: 1))
            reader.isReading = false
            reader.request(.credit, Credit(records: .max, bytes: .max), stream: 1)
        }
        fixture.shard.pass(milliseconds: 5)
        // Both hold what they read, and can't go on.
        for reader in slow {
            let index = fixture.shard.machine.readers.indices.first {
                fixture.shard.machine.readers[$0].pointee.state == .waitSend
            }
            #expect(index != nil && reader.holdsSend)
        }
        let quick = try fixture.connect("quick")
        _ = try #require(quick.subscribe("c", stream: 1))
        read(fixture, [quick], batches: 40, steps: 3000)
        #expect(isWhole(quick, batches: 40))
        for reader in slow { fixture.shard.readAgain(reader) }
        read(fixture, slow, batches: 40)
        #expect(slow.allSatisfy { isWhole($0, batches: 40) })
    }

    // MARK: what goes wrong

    @Test("damage in what is read ahead is met in its turn: what lies before it is delivered")
    func damageAhead() throws {
        let before = try fixture()
        var random = SeededRandom(seed: 3)
        before.shard.machine.beginStop()
        before.shard.run { before.shard.machine.stage == .stopped }
        let disk = before.shard.disk.afterPowerCut(.none, &random)
        let file = segments(before, 1)[1]
        // The fourth chunk of the second segment.
        disk.flip(file, bit: (4096 + 3 * 8192 + 300) * 8)
        let fixture = try Fixture(disk: disk) {
            $0.limits.coldPieceBytes = 8192
            $0.limits.coldReadsMax = 4
        }
        _ = try #require(fixture.client.subscribe("orders", stream: 1))
        fixture.shard.run(steps: 3000) { !fixture.client.pushes.isEmpty }
        let push = try #require(fixture.client.pushes.first)
        #expect(StatusCode(rawValue: push.header.status) == .dataDamaged)
        let message = try Refusal(body: push.body).message
        #expect(message.contains("\(file.path) is damaged at byte \(4096 + 3 * 8192)"))
        let offsets = fixture.client.delivered.map(\.offset)
        #expect(offsets == Array(0..<UInt64(offsets.count)))
        #expect(message.contains("offset \(offsets.count) "))
        #expect(offsets.count == 7 * Self.recordsPerBatch)
        #expect(fixture.client.badBatches == 0)
        // What lies behind the damaged segment can be had.
        guard case .segment(_, let next, _) = segments(before, 1)[2] else { return }
        let behind = try fixture.connect()
        _ = try #require(behind.subscribe("orders", start: .offset(next), stream: 1))
        fixture.shard.run(steps: 3000) { behind.delivered.last?.offset == 559 }
        #expect(behind.delivered.map(\.offset) == Array(next..<560))
    }

    @Test("a read ahead that fails ends the subscription when it comes there, and not before")
    func failedAhead() throws {
        let fixture = try fixture { $0.limits.coldReadsMax = 4 }
        fixture.shard.fault = { $0.kind == .read && $0.position == 4096 + 2 * 8192 ? -5 : nil }
        _ = try #require(fixture.client.subscribe("orders", stream: 1))
        fixture.shard.run(steps: 3000) { !fixture.client.pushes.isEmpty }
        #expect(fixture.shard.faultsFired.count > 0)
        let push = try #require(fixture.client.pushes.first)
        #expect(StatusCode(rawValue: push.header.status) == .dataDamaged)
        #expect(try Refusal(body: push.body).message.contains("at byte 20480 failed (errno 5)"))
        #expect(fixture.client.delivered.map(\.offset) == Array(0..<UInt64(14)))
        // It is not kept: who comes later has it read anew.
        fixture.shard.fault = nil
        let other = try fixture.connect()
        _ = try #require(other.subscribe("orders", stream: 1))
        read(fixture, [other])
        #expect(isWhole(other))
    }

    @Test("a read that comes back short is done again; a file that ends too soon is damage")
    func shortReads() throws {
        let fixture = try fixture()
        var shorts = 0
        fixture.shard.fault = {
            guard $0.kind == .read, shorts < 4, $0.position == 4096 else { return nil }
            shorts += 1
            return 512
        }
        _ = try #require(fixture.client.subscribe("orders", stream: 1))
        read(fixture, [fixture.client])
        #expect(shorts == 4)
        #expect(isWhole(fixture.client))
        let other = try Fixture(disk: fixture.shard.disk.copy()) {
            $0.limits.coldPieceBytes = 8192
        }
        other.shard.fault = { $0.kind == .read && $0.position == 4096 + 8192 ? 4096 : nil }
        _ = try #require(other.client.subscribe("orders", stream: 1))
        other.shard.run(steps: 3000) { !other.client.pushes.isEmpty }
        #expect(other.shard.faultsFired.count == 5)
        let push = try #require(other.client.pushes.first)
        #expect(StatusCode(rawValue: push.header.status) == .dataDamaged)
        #expect(
            try Refusal(body: push.body).message.contains("is damaged at byte \(4096 + 8192)"))
        #expect(other.client.delivered.count == Self.recordsPerBatch)
    }

    @Test(
        "a queue can be deleted, or purged, at every step of reading it", arguments: [false, true])
    func removedWhileReading(purges: Bool) throws {
        var steps = 0
        var wasInFlight = 0
        repeat {
            let fixture = try fixture(["orders", "other"], batches: 20) {
                $0.limits.coldReadsMax = 3
            }
            let reader = try fixture.connect("reader")
            let witness = try fixture.connect("witness")
            reader.request(
                .subscribe,
                SubscribeRequest(
                    queue: "orders", start: .start, creditRecords: .max, creditBytes: .max),
                stream: 1)
            _ = try #require(witness.subscribe("other", stream: 1))
            for _ in 0..<steps { fixture.shard.step() }
            if fixture.shard.machine.coldReader.readsInFlight > 0 { wasInFlight += 1 }
            if purges {
                let reply = fixture.client.ask(
                    .queuePurge, QueuePurgeRequest(name: "orders"), reply: QueueInfo.self)
                #expect(reply != nil)
            } else {
                let reply = fixture.client.ask(
                    .queueDelete, QueueNameRequest(name: "orders"), reply: Empty.self)
                #expect(reply != nil)
            }
            fixture.shard.pass(milliseconds: 25_000)
            #expect(segments(fixture, 1).isEmpty)
            #expect(reader.badBatches == 0)
            let offsets = reader.delivered.map(\.offset)
            #expect(offsets == Array(0..<UInt64(offsets.count)))
            read(fixture, [witness], batches: 20, steps: 2000)
            #expect(isWhole(witness, batches: 20))
            #expect(fixture.isServing())
            steps += 1
        } while steps < 24
        #expect(wasInFlight > 3)
    }

    @Test("a file that cannot be opened for want of places is opened when there is one")
    func noPlaces() throws {
        let queues = (0..<12).map { "queue-\($0)" }
        let fixture = try fixture(queues, batches: 8) { $0.limits.filesMax = 16 }
        let readers = try queues.map { try fixture.connect($0) }
        for (reader, queue) in zip(readers, queues) {
            _ = try #require(reader.subscribe(queue, stream: 1))
        }
        read(fixture, readers, batches: 8)
        #expect(readers.allSatisfy { isWhole($0, batches: 8) })
    }
}
