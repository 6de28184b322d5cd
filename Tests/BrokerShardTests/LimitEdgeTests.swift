import BrokerBasics
import BrokerCore
import BrokerShard
import BrokerTestSupport
import LogStorage
import Testing
import WireProtocol

/// Each limit that a client can meet: what is exactly at it works, one more is refused by name, and
/// everybody else goes on. What waits in a buffer: `LimitTests`, `BackpressureTests`.
@Suite("Exactly at a limit, and one beyond")
struct LimitEdgeTests {
    // MARK: frames and batches

    @Test("a frame of the largest size is worked on, one byte more closes its connection only")
    func frame() throws {
        let fixture = try Fixture()
        let most = Int(fixture.shard.settings.limits.frameBytesMax)
        func ping(_ bytes: Int) -> [UInt8] {
            FrameHeader(opcode: .ping, correlation: 77).frame(
                body: [UInt8](repeating: 0, count: bytes - FrameHeader.byteCount))
        }
        let client = try fixture.connect("large")
        client.send(ping(most))
        #expect(client.status(of: 77) == .ok)
        #expect(!client.isClosed)
        client.send(ping(most + 1))
        let push = try #require(client.pushes.first)
        #expect(StatusCode(rawValue: push.header.status) == .frameTooLarge)
        #expect(client.isClosed)
        #expect(fixture.isServing())
        let held = fixture.shard.machine.inputMemoryBytes
        #expect(held == 0)
    }

    /// One record whose batch has exactly `bytes`: the record's own bytes are in its value, or in a header.
    private func batchOf(_ bytes: Int, inHeader: Bool) throws -> [UInt8] {
        for filling in stride(from: bytes, to: max(0, bytes - 200), by: -1) {
            let content = [UInt8](repeating: 7, count: filling)
            var builder = BatchBuilder()
            _ = builder.append(
                inHeader
                    ? Record(value: [], headers: [.init(name: "h", value: content)])
                    : Record(value: content))
            let batch = builder.finish()
            if batch.count == bytes { return batch }
        }
        throw Violation("no record makes a batch of \(bytes) bytes")
    }

    @Test(
        "a batch of the largest size is stored and delivered, one byte more is refused",
        arguments: [false, true])
    func largestBatch(inHeader: Bool) throws {
        let fixture = try Fixture()
        let partition = try fixture.create("orders")[0]
        let most =
            Int(fixture.shard.settings.limits.frameBytesMax) - StoredBatch.stampBytes
            - FrameHeader.byteCount
        let largest = try batchOf(most, inHeader: inHeader)
        #expect(try fixture.refusal(publishing: largest, to: partition) == .ok)
        let larger = try batchOf(most + 1, inHeader: inHeader)
        #expect(try fixture.refusal(publishing: larger, to: partition) == .batchTooLarge)
        #expect(!fixture.client.isClosed)
        try fixture.publish(1, to: partition)
        let found = try fixture.readBack("orders", records: 2)
        #expect(found.map(\.offset) == [0, 1])
        let first = try #require(found.first)
        let content = inHeader ? first.record.headers.first?.value ?? [] : first.value
        #expect(content.count > most - 100)
    }

    @Test("a batch of 65,535 records is stored and delivered whole")
    func manyRecords() throws {
        let fixture = try Fixture { settings in
            settings.limits.frameBytesMax = 256 * 1024
            settings.limits.stagingBytes = 2 << 20
            settings.limits.tailBytesMax = 4 << 20
            settings.limits.segmentBytes = 2 << 20
            settings.geometry = JournalGeometry(fileBytes: 1 << 20, fileCount: 4)
        }
        let partition = try fixture.create("orders")[0]
        var builder = BatchBuilder()
        while !builder.isFull { _ = builder.append(Record(value: [])) }
        let entry = try fixture.publish(builder.finish(), to: partition)
        #expect(entry.records == 65_535)
        #expect(try fixture.readBack("orders", records: 65_535).last?.offset == 65_534)
    }

    // MARK: connections and what they hold

    @Test("the last connection is taken, one more is told busy, and a place that is free is taken")
    func connections() throws {
        let fixture = try Fixture { $0.limits.connectionsMax = 4 }
        let others = try (0..<3).map { try fixture.connect("other \($0)") }
        #expect(fixture.shard.connect("fifth") == nil)
        #expect(fixture.counters.connectionsRefused == 1)
        let refusal = fixture.shard.machine.refusalOfConnection
        let status = refusal.withUnsafeBytes { bytes in
            bytes.baseAddress.flatMap { try? FrameHeader.decode($0).status } ?? 0
        }
        #expect(StatusCode(rawValue: status) == .busy)
        let partition = try fixture.create("orders")[0]
        try fixture.publish(3, to: partition)
        fixture.shard.disconnect(others[1].index)
        #expect(fixture.isServing())
        _ = try fixture.connect("again")
        #expect(fixture.shard.connect("fifth") == nil)
        #expect(fixture.counters.connectionsRefused == 2)
    }

    @Test("each shard takes its own number of connections")
    func connectionsOfShards() throws {
        var settings = SimulatedShard.Settings()
        settings.shards = 2
        settings.limits.connectionsMax = 2
        let shard = try SimulatedShard(disk: SimulatedDisk(), settings: settings, seed: 1)
        shard.run { shard.isReady }
        for number in 0..<2 {
            let clients = (0..<2).compactMap { shard.connect("\($0)", to: number) }
            try #require(clients.count == 2)
            #expect(shard.connect("third", to: number) == nil)
            // The last of them reaches the other shard too.
            let info = clients[1].ask(
                .queueCreate,
                QueueCreateRequest(name: "q\(number)", partitions: 2, level: .synced),
                reply: QueueInfo.self)
            #expect(info?.partitions.count == 2)
        }
    }

    @Test("as many subscriptions as a connection may have, one more is refused until one ends")
    func subscriptions() throws {
        let fixture = try Fixture { $0.limits.subscriptionsPerConnectionMax = 3 }
        let partition = try fixture.create("orders")[0]
        func subscribe(_ stream: UInt32) throws -> StatusCode {
            try fixture.refusal(
                .subscribe,
                SubscribeRequest(queue: "orders", creditRecords: .max, creditBytes: .max),
                stream: stream)
        }
        for stream in UInt32(1)...3 { #expect(try subscribe(stream) == .ok) }
        #expect(try subscribe(4) == .tooManySubscriptions)
        let other = try fixture.connect()
        #expect(other.subscribe("orders", stream: 1) != nil)
        try fixture.publish(2, to: partition)
        fixture.shard.run(steps: 100) { fixture.client.delivered.count == 6 }
        #expect(fixture.client.delivered.count == 6)
        #expect(try fixture.refusal(.unsubscribe, Empty(), stream: 2) == .ok)
        #expect(try subscribe(4) == .ok)
        #expect(try subscribe(5) == .tooManySubscriptions)
    }

    @Test(
        "a publisher with as many confirms waiting as it may have is read again when some are out")
    func confirms() throws {
        let fixture = try Fixture {
            $0.limits.confirmRunsMax = 16
            $0.latencyMax = 20_000_000
        }
        let partitions = try fixture.create("orders", partitions: 2)
        let other = try fixture.connect("other")
        // Two partitions in turn: no two publishes are of one run.
        var sent: [UInt64] = []
        for number in 0..<16 {
            sent.append(
                fixture.client.publish(batch(["\(number)"]), partition: partitions[number % 2]))
        }
        #expect(fixture.counters.parks == 0)
        #expect(!fixture.client.isPaused)
        for number in 16..<60 {
            sent.append(
                fixture.client.publish(batch(["\(number)"]), partition: partitions[number % 2]))
        }
        #expect(fixture.counters.parks > 0)
        #expect(fixture.client.isPaused)
        // Another publisher has confirms of its own.
        let theirs = other.publish(batch(["x"]), partition: partitions[0])
        #expect(!other.isPaused)
        fixture.shard.run { sent.allSatisfy { fixture.client.isAnswered($0) } }
        fixture.shard.run { other.isAnswered(theirs) }
        #expect(sent.allSatisfy { fixture.client.confirm(of: $0) != nil })
        #expect(other.confirm(of: theirs) != nil)
        #expect(!fixture.client.isPaused)
        #expect(try fixture.readBack("orders", records: 61).count == 61)
    }

    @Test("frames in part use memory up to its limit; who asks for more is told busy, others go on")
    func inputMemory() throws {
        let fixture = try Fixture { $0.limits.inputMemoryBytesMax = 3 * 8192 }
        let partition = try fixture.create("orders")[0]
        // All but the last byte of a frame that fills a buffer of 8 KiB.
        let part = Array(
            FrameHeader(opcode: .ping, correlation: 9)
                .frame(body: [UInt8](repeating: 1, count: 8192 - FrameHeader.byteCount))
                .dropLast())
        let slow = try (0..<3).map { try fixture.connect("slow \($0)") }
        for client in slow { client.send(part) }
        #expect(slow.allSatisfy { !$0.isClosed })
        let held = fixture.shard.machine.inputMemoryBytes
        #expect(held == 3 * 8192)
        let beyond = try fixture.connect("beyond")
        beyond.send(Array(part[..<10]))
        #expect(beyond.isClosed)
        let push = try #require(beyond.pushes.first)
        #expect(StatusCode(rawValue: push.header.status) == .busy)
        #expect(fixture.counters.connectionsTurnedAway == 1)
        // Whole frames need none of it.
        try fixture.publish(3, to: partition)
        // A frame that is finished is answered, and its memory comes back when it is not used again.
        slow[0].send([1])
        #expect(slow[0].status(of: 9) == .ok)
        fixture.shard.disconnect(slow[1].index)
        fixture.shard.pass(milliseconds: 1100)
        let left = fixture.shard.machine.inputMemoryBytes
        #expect(left == 8192)
        let later = try fixture.connect("later")
        later.send(Array(part[..<10]))
        fixture.shard.pass(milliseconds: 5)
        #expect(!later.isClosed)
        for client in slow + [later] { fixture.shard.disconnect(client.index) }
        fixture.shard.pass(milliseconds: 5)
        let end = fixture.shard.machine.inputMemoryBytes
        #expect(end == 0)
    }

    // MARK: records

    @Test(
        "a record, and its headers, of the largest size are stored, one byte more is refused by name"
    )
    func recordSizes() throws {
        let fixture = try Fixture {
            $0.limits.recordBytesMax = 600
            $0.limits.recordHeadersBytesMax = 200
        }
        let partition = try fixture.create("orders")[0]
        func publish(_ record: Record, before: Int = 0) throws -> StatusCode {
            var builder = BatchBuilder()
            for _ in 0..<before { _ = builder.append(Record(value: [1], key: [2])) }
            _ = builder.append(record)
            return try fixture.refusal(publishing: builder.finish(), to: partition)
        }
        func content(_ count: Int) -> [UInt8] { [UInt8](repeating: 7, count: count) }
        // One byte of attributes, then the value.
        #expect(try publish(Record(value: content(599))) == .ok)
        #expect(try publish(Record(value: content(600)), before: 3) == .recordTooLarge)
        // Count, length and name, two bytes of length, value.
        func headers(_ bytes: Int) -> Record {
            Record(
                value: content(90), key: content(40),
                headers: [.init(name: "h", value: content(bytes - 5))], trace: nil, timestamp: 9)
        }
        #expect(try publish(headers(200), before: 3) == .ok)
        #expect(try publish(headers(201), before: 3) == .recordTooLarge)
        // Without headers a record may be as large as records may be.
        #expect(try publish(Record(value: content(300), key: content(200))) == .ok)
        let read = try fixture.readBack("orders", records: 6)
        #expect(read.count == 6)
        #expect(read[4].record.headers.first?.value.count == 195)
    }

    // MARK: producers and groups

    @Test(
        "the last producer is opened, one more is refused; one that is known opens its next epoch")
    func producers() throws {
        let fixture = try Fixture {
            $0.limits.producersMax = 3
            $0.limits.producerExpirySeconds = 120
        }
        func open(_ name: String) throws -> StatusCode {
            try fixture.refusal(.producerOpen, ProducerOpenRequest(name: name))
        }
        for name in ["a", "b", ""] { #expect(try open(name) == .ok) }
        for name in ["c", ""] { #expect(try open(name) == .limitReached) }
        #expect(try open("a") == .ok)
        fixture.shard.pass(milliseconds: 250_000)
        #expect(try open("c") == .ok)
    }

    @Test(
        "the last group begins, one more is refused; those that are there take members",
        arguments: [1, 2])
    func groups(shards: Int) throws {
        let fixture = try Fixture {
            $0.limits.groupsMax = 2
            $0.shards = shards
        }
        fixture.shard.run { fixture.shard.isReady }
        _ = try fixture.create("orders", partitions: 2)
        func join(_ group: String, _ stream: UInt32) throws -> StatusCode {
            try fixture.refusal(
                .subscribe,
                SubscribeRequest(
                    queue: "orders", group: group, creditRecords: 1, creditBytes: 1),
                stream: stream)
        }
        #expect(try join("a", 1) == .ok)
        #expect(try join("b", 2) == .ok)
        #expect(try join("c", 3) == .limitReached)
        #expect(try join("a", 4) == .ok)
        _ = try fixture.refusal(.queueDelete, QueueNameRequest(name: "orders"))
        _ = try fixture.create("orders")
        #expect(try join("c", 3) == .ok)
    }

    // MARK: queues and partitions

    @Test(
        "the last partition of all is made, one more is refused until some are deleted",
        arguments: [1, 2])
    func partitionsOfAll(shards: Int) throws {
        let fixture = try Fixture {
            $0.limits.partitionsMax = 10
            $0.shards = shards
        }
        fixture.shard.run { fixture.shard.isReady }
        func create(_ name: String, _ partitions: UInt32) throws -> StatusCode {
            try fixture.refusal(
                .queueCreate,
                QueueCreateRequest(name: name, partitions: partitions, level: .synced))
        }
        #expect(try create("a", 4) == .ok)
        #expect(try create("b", 7) == .tooManyPartitions)
        #expect(try create("b", 6) == .ok)
        #expect(try create("c", 1) == .tooManyPartitions)
        #expect(try fixture.refusal(.queueDelete, QueueNameRequest(name: "a")) == .ok)
        #expect(try create("c", 4) == .ok)
    }

    @Test("a queue with very long labels hides none behind it in the list", arguments: [1, 2])
    func longLabels(shards: Int) throws {
        let fixture = try Fixture {
            $0.limits.frameBytesMax = 256 * 1024
            $0.limits.stagingBytes = 2 << 20
            $0.limits.tailBytesMax = 4 << 20
            $0.limits.segmentBytes = 2 << 20
            $0.geometry = JournalGeometry(fileBytes: 1 << 20, fileCount: 4)
            $0.shards = shards
        }
        fixture.shard.run { fixture.shard.isReady }
        let label = Pair(name: "x", value: String(repeating: "y", count: 62_000))
        for name in ["a", "b", "c"] {
            let create = QueueCreateRequest(
                name: name, partitions: 1, level: .synced, labels: name == "c" ? [] : [label])
            #expect(try fixture.refusal(.queueCreate, create) == .ok)
        }
        var found: [String] = []
        for _ in 0..<4 {
            let page = try #require(
                fixture.client.ask(
                    .queueList, QueueListRequest(after: found.last ?? "", limit: 100),
                    reply: QueueListReply.self))
            found += page.queues.map(\.name)
            guard page.more else { break }
        }
        #expect(found == ["a", "b", "c"])
    }

    @Test("the last queue is made, one more is refused until one is deleted", arguments: [1, 2])
    func queues(shards: Int) throws {
        let fixture = try Fixture {
            $0.limits.queuesMax = 3
            $0.shards = shards
        }
        fixture.shard.run { fixture.shard.isReady }
        func create(_ name: String) throws -> StatusCode {
            try fixture.refusal(
                .queueCreate, QueueCreateRequest(name: name, partitions: 1, level: .synced))
        }
        for name in ["a", "b", "c"] { #expect(try create(name) == .ok) }
        #expect(try create("d") == .tooManyQueues)
        let list = try #require(
            fixture.client.ask(
                .queueList, QueueListRequest(after: "", limit: 10), reply: QueueListReply.self))
        #expect(list.queues.map(\.name) == ["a", "b", "c"])
        #expect(try fixture.refusal(.queueDelete, QueueNameRequest(name: "b")) == .ok)
        #expect(try create("d") == .ok)
        #expect(try create("e") == .tooManyQueues)
    }

    @Test("a queue has as many partitions as it may, each of which serves; one more is refused")
    func partitions() throws {
        let fixture = try Fixture { $0.limits.partitionsPerQueueMax = 5 }
        #expect(
            try fixture.refusal(
                .queueCreate, QueueCreateRequest(name: "wide", partitions: 6, level: .synced))
                == .tooManyPartitions)
        #expect(
            try fixture.refusal(.queueDescribe, QueueNameRequest(name: "wide")) == .queueNotFound)
        let partitions = try fixture.create("wide", partitions: 5)
        for partition in partitions { try fixture.publish(1, to: partition) }
        #expect(try fixture.readBack("wide", records: 5).count == 5)
    }

    // MARK: a peer that takes its time

    @Test("a HELLO that comes byte by byte is waited for as long as one that does not come")
    func dripHello() throws {
        let fixture = try Fixture { $0.limits.helloNanoseconds = .seconds(2) }
        let client = try fixture.shard.connectSilently()
        let hello = FrameHeader(opcode: .hello, correlation: 1)
            .frame(body: HelloRequest(clientName: "drip").encoded)
        for byte in hello.prefix(18) {
            client.send([byte])
            fixture.shard.pass(milliseconds: 100)
        }
        #expect(!client.isClosed)
        for byte in hello.dropFirst(18).prefix(10) where !client.isClosed {
            client.send([byte])
            fixture.shard.pass(milliseconds: 100)
        }
        #expect(client.isClosed)
        let push = try #require(client.pushes.first)
        #expect(StatusCode(rawValue: push.header.status) == .helloExpected)
        #expect(fixture.counters.connectionsTimedOut == 1)
        let held = fixture.shard.machine.inputMemoryBytes
        #expect(held == 0)
        #expect(fixture.isServing())
    }

    @Test("a frame that comes byte by byte is finished in its time, or its connection is closed")
    func dripFrame() throws {
        let fixture = try Fixture { $0.limits.frameNanoseconds = .seconds(3) }
        let partition = try fixture.create("orders")[0]
        let client = try fixture.connect("drip")
        func frame(_ correlation: UInt64) -> [UInt8] {
            FrameHeader(opcode: .publish, correlation: correlation, stream: partition)
                .frame(body: batch(["drip"], bytes: 600))
        }
        // In its time, again and again: the time is a frame's, not a connection's.
        for correlation in UInt64(501)...504 {
            let bytes = frame(correlation)
            for part in [bytes[..<20], bytes[20..<300], bytes[300...]] {
                client.send(Array(part))
                fixture.shard.pass(milliseconds: 900)
            }
            #expect(client.confirm(of: correlation) != nil)
        }
        #expect(!client.isClosed)
        var sent = 0
        for byte in frame(505) where !client.isClosed {
            client.send([byte])
            sent += 1
            fixture.shard.pass(milliseconds: 100)
        }
        #expect(sent >= 30 && sent < 33, "\(sent) bytes, one each 0.1 s")
        let push = try #require(client.pushes.first)
        #expect(StatusCode(rawValue: push.header.status) == .deadlineExceeded)
        #expect(fixture.counters.connectionsTimedOut == 1)
        #expect(fixture.counters.publishedRecords == 4)
        let held = fixture.shard.machine.inputMemoryBytes
        #expect(held == 0)
        #expect(fixture.isServing())
    }

    @Test("a frame that waits for the broker is not late")
    func parkedIsNotLate() throws {
        let fixture = try Fixture {
            $0.limits.frameNanoseconds = .milliseconds(50)
            $0.latencyMax = 400_000_000
        }
        let partition = try fixture.create("ticks", level: .memory)[0]
        let client = try fixture.connect()
        fixture.shard.run { !client.replies.isEmpty }
        // The first publish parks: its offsets are not reserved yet. Half a frame waits behind it.
        let first = FrameHeader(opcode: .publish, correlation: 901, stream: partition)
            .frame(body: batch(["x"]))
        let second = FrameHeader(opcode: .publish, correlation: 902, stream: partition)
            .frame(body: batch(["y"]))
        fixture.shard.receive(client.index, first + second[..<40])
        #expect(fixture.counters.parks == 1)
        let before = fixture.shard.time
        fixture.shard.run(steps: 5000) { client.confirm(of: 901) != nil || client.isClosed }
        #expect(fixture.shard.time.since(before) > .milliseconds(50))
        // Looked at again, the half that waited has its whole time from now on.
        let now = Instant(
            monotonic: fixture.shard.time + .milliseconds(2),
            wall: WallTime(nanoseconds: fixture.shard.wall))
        fixture.shard.withMachine(0) { machine in
            machine.begin(now: now)
            machine.advance()
        }
        #expect(fixture.counters.connectionsTimedOut == 0)
        #expect(!client.isClosed)
        // From now on it is the peer's time.
        fixture.shard.pass(milliseconds: 1000)
        #expect(client.isClosed)
        #expect(fixture.counters.connectionsTimedOut == 1)
    }

    @Test("many that are idle are each visited in their turn, and those who are late are closed")
    func manyIdle() throws {
        let fixture = try Fixture {
            $0.limits.connectionsMax = 1000
            $0.limits.helloNanoseconds = .seconds(2)
        }
        let greeted = try (0..<400).map { try fixture.connect("idle \($0)") }
        let silent = try (0..<400).map { _ in try fixture.shard.connectSilently() }
        fixture.shard.pass(milliseconds: 1900)
        #expect(silent.allSatisfy { !$0.isClosed })
        // 801 connections, 64 a millisecond: a round is 13 ms.
        fixture.shard.pass(milliseconds: 220)
        #expect(silent.allSatisfy { $0.isClosed })
        #expect(greeted.allSatisfy { !$0.isClosed })
        let (inputs, pool) = (
            fixture.shard.machine.inputMemoryBytes, fixture.shard.machine.sendPool.reservedBytes
        )
        #expect(inputs == 0)
        // Those of one turn are told at once.
        #expect(pool <= 66 * fixture.shard.settings.limits.sendBytesMax)
    }
}
