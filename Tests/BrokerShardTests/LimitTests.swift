import BrokerBasics
import BrokerCore
import BrokerShard
import BrokerTestSupport
import LogStorage
import Testing
import WireProtocol

@Suite("At a limit")
struct LimitTests {
    // MARK: a peer that takes nothing

    /// A connection that broke the protocol while what was sent to it is not read.
    private func drainingPeer(_ fixture: Fixture) throws -> SimulatedClient {
        let partition = try fixture.create("orders")[0]
        let slow = try fixture.connect("slow")
        _ = try #require(slow.subscribe("orders", stream: 1))
        slow.isReading = false
        try fixture.publish(2, to: partition, bytes: 900)
        slow.send([UInt8](repeating: 0xFF, count: 64))
        let state = fixture.shard.machine.connections[slow.index].pointee.state
        #expect(state == .draining)
        return slow
    }

    @Test("a connection that is to close is closed after a while when its peer does not read")
    func drainingForEver() throws {
        let fixture = try Fixture()
        let slow = try drainingPeer(fixture)
        let wait = fixture.shard.settings.limits.drainNanoseconds / .milliseconds(1)
        fixture.shard.pass(milliseconds: wait - 100)
        #expect(!slow.isClosed)
        fixture.shard.pass(milliseconds: 200)
        #expect(slow.isClosed)
        #expect(fixture.isServing())
    }

    @Test("a connection that is to close and goes on reading gets all that was left for it")
    func drainingSlowly() throws {
        let fixture = try Fixture()
        let slow = try drainingPeer(fixture)
        fixture.shard.pass(milliseconds: 9_000)
        #expect(!slow.isClosed)
        fixture.shard.readAgain(slow)
        fixture.shard.pass(milliseconds: 5)
        #expect(slow.isClosed)
        #expect(slow.delivered.count == 2)
        #expect(slow.pushes.contains { $0.header.opcode == Opcode.error.rawValue })
    }

    @Test(
        "a peer that takes a byte now and then is closed after its time, one that takes enough is not"
    )
    func takingBytes() throws {
        let fixture = try Fixture {
            $0.limits.peerNanoseconds = .seconds(20)
            $0.limits.sendBytesMax = 4096
        }
        let partition = try fixture.create("orders")[0]
        let (drip, slow) = (try fixture.connect("drip"), try fixture.connect("slow"))
        for client in [drip, slow] {
            _ = try #require(client.subscribe("orders", stream: 1))
            client.isReading = false
        }
        try fixture.publish(40, to: partition, bytes: 900)
        for second in 1...60 {
            fixture.shard.takeSome(1, drip)
            // A send buffer within the time, if in small pieces.
            fixture.shard.takeSome(300, slow)
            fixture.shard.pass(milliseconds: 1000)
            #expect(drip.isClosed == (second >= 20), "after \(second) s")
            #expect(!slow.isClosed)
        }
        #expect(fixture.counters.connectionsTimedOut == 1)
        #expect(slow.delivered.count > 10)
        #expect(fixture.isServing())
    }

    @Test("readers that take nothing leave memory to everybody's answers, however many they are")
    func manySlowReaders() throws {
        let fixture = try Fixture {
            $0.limits.sendBytesMax = 4096
            $0.limits.sendMemoryBytesMax = 64 * 1024
        }
        let partition = try fixture.create("orders")[0]
        let readers = try (0..<20).map { try fixture.connect("reader \($0)") }
        for reader in readers {
            _ = try #require(reader.subscribe("orders", stream: 1))
            reader.isReading = false
        }
        try fixture.publish(40, to: partition, bytes: 900)
        #expect(readers.count { $0.holdsSend } >= 6)
        let lent = fixture.shard.machine.sendPool.reservedBytes
        #expect(lent >= 48 * 1024)
        let other = try fixture.connect("other")
        for _ in 0..<20 {
            try fixture.publish(batch(["x"]), to: partition, by: other)
            #expect(other.ask(.ping, Empty(), reply: Empty.self) != nil)
        }
        for reader in readers { fixture.shard.readAgain(reader) }
        fixture.shard.run { readers.allSatisfy { $0.delivered.count == 60 } }
        #expect(readers.allSatisfy { $0.delivered.count == 60 })
    }

    // MARK: replies that are too large

    private func narrow(_ fixture: Fixture) throws -> SimulatedClient {
        let client = try #require(fixture.shard.connect("narrow", sayingHello: false))
        let hello = client.request(.hello, HelloRequest(frameBytesMax: 4096, clientName: "narrow"))
        fixture.shard.run { client.replies[hello] != nil }
        return client
    }

    private func fixture() throws -> Fixture {
        try Fixture { settings in
            settings.limits.frameBytesMax = 32 * 1024
            settings.limits.stagingBytes = 128 * 1024
        }
    }

    @Test("a queue whose description does not fit the client's frames is not made")
    func wideQueue() throws {
        let fixture = try fixture()
        let narrow = try narrow(fixture)
        for (partitions, expected) in [(UInt32(200), StatusCode.frameTooLarge), (10, .ok)] {
            let create = QueueCreateRequest(name: "wide", partitions: partitions, level: .synced)
            #expect(try fixture.refusal(.queueCreate, create, by: narrow) == expected)
            let described = try fixture.refusal(.queueDescribe, QueueNameRequest(name: "wide"))
            #expect(described == (expected == .ok ? .ok : .queueNotFound))
        }
        #expect(!narrow.isClosed)
    }

    @Test("labels that would make a description too large for the client are not set")
    func wideLabels() throws {
        let fixture = try fixture()
        _ = try fixture.create("orders")
        let narrow = try narrow(fixture)
        let long = String(repeating: "x", count: 1500)
        for number in 0..<3 {
            let alter = QueueAlterRequest(
                name: "orders", labels: [Pair(name: "label\(number)", value: long)])
            #expect(
                try fixture.refusal(.queueAlter, alter, by: narrow)
                    == (number < 2 ? .ok : .frameTooLarge))
        }
        let info = try #require(
            fixture.client.ask(
                .queueDescribe, QueueNameRequest(name: "orders"), reply: QueueInfo.self))
        #expect(info.labels.map(\.name) == ["label0", "label1"])
    }

    @Test(
        "a subscription whose assignment does not fit the client's frames is not made, nor its group"
    )
    func wideSubscription() throws {
        let fixture = try fixture()
        let wide = try fixture.create("wide", partitions: 300)
        try fixture.publish(batch(["x"]), to: wide[0])
        _ = try fixture.create("slim", partitions: 2)
        let narrow = try narrow(fixture)
        for group in ["", "desk"] {
            let subscribe = SubscribeRequest(
                queue: "wide", group: group, creditRecords: .max, creditBytes: .max)
            #expect(
                try fixture.refusal(.subscribe, subscribe, stream: 1, by: narrow) == .frameTooLarge)
        }
        let describe = GroupDescribeRequest(queue: "wide", group: "desk")
        #expect(try fixture.refusal(.groupDescribe, describe) == .groupNotFound)
        fixture.shard.pass(milliseconds: 5)
        #expect(narrow.delivered.isEmpty)
        #expect(narrow.subscribe("slim", stream: 1) != nil)
        // One partition of it fits.
        let one = SubscribeRequest(
            queue: "wide", partition: PartitionID(rawValue: wide[0]), creditRecords: .max,
            creditBytes: .max)
        #expect(try fixture.refusal(.subscribe, one, stream: 2, by: narrow) == .ok)
        fixture.shard.run(steps: 50) { !narrow.delivered.isEmpty }
        #expect(narrow.delivered.count == 1)
    }

    // MARK: the memory of all send buffers

    @Test("a reader without memory to send from goes on when another connection gives its back")
    func sendMemory() throws {
        let fixture = try Fixture { $0.limits.sendMemoryBytesMax = 4 * $0.limits.sendBytesMax }
        let partition = try fixture.create("orders")[0]
        // Three quarters are for deliveries, and with readers that take nothing.
        let slow = try (0..<3).map { try fixture.connect("slow \($0)") }
        for client in slow {
            _ = try #require(client.subscribe("orders", stream: 1))
            client.isReading = false
        }
        let waiting = try fixture.connect("waiting")
        _ = try #require(waiting.subscribe("orders", stream: 1, credit: 0))
        try fixture.publish(1, to: partition)
        #expect(slow.allSatisfy { $0.holdsSend })
        waiting.request(.credit, Credit(records: .max, bytes: .max), stream: 1)
        fixture.shard.pass(milliseconds: 100)
        #expect(waiting.delivered.isEmpty)
        // The rest is with one who does not take an answer.
        let mute = try fixture.connect("mute")
        mute.isReading = false
        mute.request(.ping, Empty())
        fixture.shard.pass(milliseconds: 5)
        #expect(mute.holdsSend)
        let sent = fixture.client.publish(batch(["x"]), partition: partition)
        fixture.shard.pass(milliseconds: 100)
        #expect(!fixture.client.isAnswered(sent))
        fixture.shard.readAgain(slow[0])
        fixture.shard.pass(milliseconds: 100)
        #expect(fixture.client.isAnswered(sent))
        #expect(waiting.delivered.isEmpty)
        fixture.shard.readAgain(slow[1])
        fixture.shard.pass(milliseconds: 100)
        #expect(waiting.delivered.count == 2)
        #expect(slow[0].delivered.count == 2 && slow[1].delivered.count == 2)
    }

    @Test("a connection that goes gives its memory to a reader that waits for some")
    func sendMemoryOfTheGone() throws {
        let fixture = try Fixture { $0.limits.sendMemoryBytesMax = 3 * $0.limits.sendBytesMax }
        let partition = try fixture.create("orders")[0]
        let slow = try (0..<2).map { try fixture.connect("slow \($0)") }
        for client in slow {
            _ = try #require(client.subscribe("orders", stream: 1))
            client.isReading = false
        }
        let waiting = try fixture.connect("waiting")
        _ = try #require(waiting.subscribe("orders", stream: 1, credit: 0))
        fixture.client.publish(batch(["x"]), partition: partition)
        fixture.shard.pass(milliseconds: 5)
        waiting.request(.credit, Credit(records: .max, bytes: .max), stream: 1)
        fixture.shard.pass(milliseconds: 100)
        #expect(waiting.delivered.isEmpty)
        fixture.shard.disconnect(slow[0].index)
        fixture.shard.pass(milliseconds: 100)
        #expect(waiting.delivered.count == 1)
    }

    @Test("a frame larger than a buffer gets the memory that small buffers gave back")
    func largeFrameAfterSmallOnes() {
        var pool = SendPool(bufferBytes: 1024, budgetBytes: 4096)
        var buffers = (0..<4).map { _ in SendBuffer() }
        for index in buffers.indices {
            #expect(buffers[index].reserve(100, pool: &pool) != nil)
            buffers[index].commit(100)
            #expect(buffers[index].startSend() != nil)
        }
        #expect(buffers[0].reserve(100, pool: &pool) == nil)
        for index in buffers.indices { #expect(buffers[index].sent(100, pool: &pool) == nil) }
        #expect(buffers[0].reserve(3000, pool: &pool) != nil)
        #expect(pool.reservedBytes <= 4096)
        for index in buffers.indices { buffers[index].release(pool: &pool) }
    }

    // MARK: effects that did not fit

    @Test(
        "what did not fit into the effects is announced, so that the loop does not sleep over it",
        arguments: [1, 2, 3, 64])
    func announced(effectsPerCycle: Int) throws {
        let fixture = try Fixture {
            $0.effectsPerCycle = effectsPerCycle
            $0.limits.segmentBytes = 32 * 1024
            $0.limits.tailBytesMax = 64 * 1024
        }
        fixture.shard.looksForUnannounced = true
        let partitions = try fixture.create("orders", partitions: 2)
        let ticks = try fixture.create("ticks", level: .memory)
        for round in 0..<40 {
            for partition in partitions + ticks {
                fixture.client.publish(
                    batch((0..<3).map { "\(round) \($0)" }, bytes: 900), partition: partition)
            }
            fixture.shard.pass(milliseconds: 2)
        }
        fixture.shard.pass(milliseconds: 11_000)
        let readers = try (0..<3).map { try fixture.connect("reader \($0)") }
        for reader in readers { _ = try #require(reader.subscribe("orders", stream: 1)) }
        fixture.shard.run(steps: 3000) { readers.allSatisfy { $0.delivered.count == 240 } }
        #expect(readers.allSatisfy { $0.delivered.count == 240 })
        #expect(fixture.counters.coldReads > 0)
        // Many files go at once.
        #expect(
            fixture.client.ask(.queueDelete, QueueNameRequest(name: "orders"), reply: Empty.self)
                != nil)
        fixture.shard.pass(milliseconds: 22_000)
        let kept = fixture.shard.disk.allNames.filter {
            if case .segment(let partition, _, _) = $0 {
                partitions.contains(partition)
            } else {
                false
            }
        }
        #expect(kept.isEmpty)
        #expect(fixture.shard.unannounced == 0)
        // And at rest there is nothing to announce: it would be a loop that never sleeps.
        let isPending = fixture.shard.machine.hasPendingEffects
        #expect(!isPending)
    }

    @Test("a shard at rest lets its loop sleep, also after it has written to its journal")
    func sleeps() throws {
        let fixture = try Fixture()
        let partition = try fixture.create("orders")[0]
        for _ in 0..<3 {
            try fixture.publish(1, to: partition)
            fixture.shard.pass(milliseconds: 50)
            fixture.shard.cycle()
            let (needsSeal, deadline) = (
                fixture.shard.machine.journal.needsSeal, fixture.shard.machine.nextDeadline
            )
            #expect(!needsSeal)
            #expect(deadline > fixture.shard.time)
        }
    }
}
