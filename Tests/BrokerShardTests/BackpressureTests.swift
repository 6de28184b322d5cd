import BrokerBasics
import BrokerCore
import BrokerShard
import BrokerTestSupport
import LogStorage
import Testing
import WireProtocol

@Suite("Backpressure")
struct BackpressureTests {
    // MARK: few effects at a time

    private struct Result: Equatable {
        var confirmed: [UInt64?] = []
        var records: [UInt32: [[UInt8]]] = [:]
        var delivered: [UInt32: [UInt64: [UInt8]]] = [:]
    }

    private func workload(effectsPerCycle: Int) throws -> Result {
        var settings = SimulatedShard.Settings()
        settings.effectsPerCycle = effectsPerCycle
        let runner = try ScenarioRunner(settings: settings, seed: 5)
        try #require(runner.start())
        let client = try #require(runner.connect())
        let queue = runner.createQueue(client, "orders", partitions: 2)
        let ticks = runner.createQueue(client, "ticks", level: .memory)
        _ = try #require(client.subscribe("orders", stream: 1))
        _ = try #require(client.subscribe("ticks", stream: 2))
        let producer = try #require(runner.openProducer(client))
        for round in 0..<40 {
            for partition in queue + ticks {
                runner.publish(client, producer, partition, records: 1 + round % 3, bytes: 400)
            }
            if round % 4 == 3 { runner.settle(client, queue + ticks) }
        }
        runner.settle(client, queue + ticks)
        runner.shard.pass(milliseconds: 11_000)
        runner.note(client)
        if let violation = runner.violation { throw violation }
        #expect(runner.shard.machine.counters.checkpoints >= 3)
        #expect(runner.shard.machine.counters.chunksWritten > 0)
        var result = Result()
        for partition in queue + ticks {
            result.confirmed += (runner.history.sent[partition] ?? []).map(\.confirmedAt)
        }
        result.delivered = runner.history.delivered.mapValues { $0.mapValues(\.value) }
        let found = try ReadBack(from: runner.shard)
        try runner.history.check(found)
        result.records = found.records.mapValues { $0.map(\.value) }
        return result
    }

    @Test("with room for a single effect per cycle everything completes, with the same results")
    func oneEffect() throws {
        let one = try workload(effectsPerCycle: 1)
        #expect(try one == workload(effectsPerCycle: 64))
        #expect(try one == workload(effectsPerCycle: 2))
        #expect(one.records.values.reduce(0) { $0 + $1.count } == 3 * 79)
        #expect(one.confirmed.allSatisfy { $0 != nil })
        #expect(one.delivered.values.reduce(0) { $0 + $1.count } == 3 * 79)
    }

    // MARK: credit

    @Test("a consumer gets nothing without credit, and then as much as it allows")
    func credit() throws {
        let fixture = try Fixture()
        let partition = try fixture.create("orders")[0]
        try fixture.publish(10, to: partition)
        let client = fixture.client
        _ = try #require(client.subscribe("orders", stream: 1, credit: 0))
        fixture.shard.pass(milliseconds: 20)
        #expect(client.delivered.isEmpty)
        for (credit, expected) in [(UInt64(3), 3), (7, 7), (100, 10)] {
            client.request(.credit, Credit(records: credit, bytes: .max), stream: 1)
            fixture.shard.pass(milliseconds: 5)
            #expect(client.delivered.count == expected)
        }
        #expect(client.delivered.map(\.offset) == Array(0..<10))
    }

    @Test("credit that is repeated or overtaken changes nothing")
    func absoluteCredit() throws {
        let fixture = try Fixture()
        let partition = try fixture.create("orders")[0]
        try fixture.publish(10, to: partition)
        let client = fixture.client
        _ = try #require(client.subscribe("orders", stream: 1, credit: 2))
        for credit in [UInt64(5), 5, 3, 0, 5] {
            client.request(.credit, Credit(records: credit, bytes: 0), stream: 1)
            fixture.shard.pass(milliseconds: 2)
        }
        #expect(client.delivered.count == 5)
        // Of a subscription that is not there: no answer, no harm.
        let correlation = client.request(.credit, Credit(records: 5, bytes: 5), stream: 77)
        fixture.shard.pass(milliseconds: 2)
        #expect(client.replies[correlation] == nil)
        #expect(!client.isClosed)
    }

    @Test("credit in bytes is overshot by one batch at most")
    func byteCredit() throws {
        let fixture = try Fixture()
        let partition = try fixture.create("orders")[0]
        try fixture.publish(6, to: partition, bytes: 500)
        let client = fixture.client
        let request = SubscribeRequest(queue: "orders", creditRecords: .max, creditBytes: 1100)
        _ = client.ask(.subscribe, request, stream: 1, reply: Assignment.self)
        fixture.shard.pass(milliseconds: 5)
        #expect(client.delivered.count == 2)
    }

    // MARK: a consumer that does not read

    @Test("a consumer that does not read holds two buffers of memory, and nobody else up")
    func slowConsumer() throws {
        let fixture = try Fixture()
        let partition = try fixture.create("orders")[0]
        let slow = try fixture.connect("slow")
        let quick = try fixture.connect("quick")
        _ = try #require(slow.subscribe("orders", stream: 1))
        _ = try #require(quick.subscribe("orders", stream: 1))
        slow.isReading = false
        try fixture.publish(120, to: partition, bytes: 900)
        let limits = fixture.shard.settings.limits
        let pending = fixture.shard.machine.connections[slow.index].pointee.send.pendingBytes
        #expect(pending > limits.sendBytesMax)
        #expect(pending <= 2 * (limits.sendBytesMax + Int(limits.frameBytesMax)))
        #expect(slow.delivered.isEmpty)
        fixture.shard.run { quick.delivered.count == 120 }
        #expect(quick.delivered.count == 120)
        fixture.shard.readAgain(slow)
        fixture.shard.run(steps: 500) { slow.delivered.count == 120 }
        #expect(slow.delivered.map(\.offset) == Array(0..<120))
        #expect(slow.delivered.map(\.value) == quick.delivered.map(\.value))
    }

    @Test("what a client that does not read must be told holds up no answer to others")
    func deferredPush() throws {
        let fixture = try Fixture()
        let partition = try fixture.create("orders")[0]
        _ = try fixture.create("other")
        let slow = try fixture.connect("slow")
        _ = try #require(slow.subscribe("orders", stream: 1))
        _ = try #require(slow.subscribe("other", stream: 2))
        slow.isReading = false
        fillSend(of: slow, fixture, partition)
        for name in ["orders", "other"] {
            let reply = fixture.client.ask(
                .queueDelete, QueueNameRequest(name: name), reply: Empty.self)
            #expect(reply != nil, "deleting \(name) waits for a client that does not read")
        }
        #expect(try fixture.create("third").count == 1)
        fixture.shard.readAgain(slow)
        fixture.shard.run(steps: 200) { slow.pushes.count == 2 }
        #expect(slow.pushes.map(\.header.stream) == [1, 2])
        #expect(slow.pushes.allSatisfy { StatusCode(rawValue: $0.header.status) == .queueNotFound })
    }

    /// Publishes until not even a small frame fits into what waits for `client`.
    private func fillSend(
        of client: SimulatedClient, _ fixture: Fixture, _ partition: UInt32
    ) {
        func free() -> Int {
            let pool = fixture.shard.settings.limits.sendBytesMax
            return pool - fixture.shard.machine.connections[client.index].pointee.send.activeCount
        }
        for bytes in [900, 900, 400, 100, 1] {
            for _ in 0..<60 where free() > bytes + 200 || bytes == 1 {
                _ = try? fixture.publish(batch(["x"], bytes: bytes), to: partition)
            }
        }
    }

    @Test("a large answer that does not fit waits for room, and the request is done once")
    func largeReply() throws {
        let fixture = try Fixture { settings in
            settings.limits.frameBytesMax = 32 * 1024
            settings.limits.stagingBytes = 128 * 1024
        }
        let partition = try fixture.create("orders")[0]
        _ = try fixture.create("wider", partitions: 300)
        let slow = try fixture.connect("slow")
        _ = try #require(slow.subscribe("orders", stream: 1))
        slow.isReading = false
        // One buffer in flight, the other filled so far that a control request still begins.
        while fixture.shard.machine.connections[slow.index].pointee.send.activeCount < 11_000 {
            try fixture.publish(batch(["x"], bytes: 900), to: partition)
        }
        let free =
            fixture.shard.settings.limits.sendBytesMax
            - fixture.shard.machine.connections[slow.index].pointee.send.activeCount
        #expect(free >= 4096 && free < 6000)
        let correlation = slow.request(
            .subscribe,
            SubscribeRequest(queue: "wider", creditRecords: .max, creditBytes: .max), stream: 2)
        fixture.shard.pass(milliseconds: 5)
        fixture.shard.readAgain(slow)
        fixture.shard.run(steps: 100) { slow.replies[correlation] != nil }
        #expect(slow.status(of: correlation) == .ok)
    }

    // MARK: a full journal

    @Test("a full journal parks publishers and lets them go on; nothing is lost or doubled")
    func fullJournal() throws {
        let fixture = try Fixture { $0.latencyMax = 2_000_000 }
        let partitions = try fixture.create("orders", partitions: 2)
        let client = fixture.client
        var sent: [UInt64] = []
        for number in 0..<200 {
            for partition in partitions {
                sent.append(
                    client.publish(
                        batch((0..<4).map { "\(number) \($0)" }, bytes: 1200),
                        partition: partition))
            }
        }
        fixture.shard.run(steps: 20_000) { sent.allSatisfy { client.isAnswered($0) } }
        #expect(fixture.counters.parks > 0)
        #expect(sent.allSatisfy { client.confirm(of: $0) != nil })
        #expect(!client.isPaused)
        let found = try fixture.readBack("orders", records: 1600)
        for partition in partitions {
            let records = found.filter { $0.partition == partition }
            #expect(records.map(\.offset) == Array(0..<800))
            #expect(records.map(\.text) == (0..<800).map { "\($0 / 4) \($0 % 4)" })
        }
    }
}
