import BrokerBasics
import BrokerCore
import BrokerShard
import BrokerTestSupport
import LogStorage
import Testing
import WireProtocol

/// What runs out or fails on one of several shards is that shard's affair.
@Suite("Limits over links")
struct LinkLimitTests {
    private func broker(
        _ change: (inout SimulatedShard.Settings) -> Void = { _ in }
    ) throws -> (shard: SimulatedShard, client: SimulatedClient) {
        var settings = SimulatedShard.Settings()
        settings.shards = 2
        change(&settings)
        let shard = try SimulatedShard(disk: SimulatedDisk(), settings: settings, seed: 3)
        shard.run { shard.isReady }
        return (shard, try #require(shard.connect("client", to: 0)))
    }

    /// - Returns: the partitions that live on each shard.
    private func create(_ name: String, _ client: SimulatedClient) throws -> [[UInt32]] {
        let info = try #require(
            client.ask(
                .queueCreate, QueueCreateRequest(name: name, partitions: 4, level: .synced),
                reply: QueueInfo.self))
        return (0..<2).map { shard in
            info.partitions.filter { $0.shard == shard }.map(\.id)
        }
    }

    private func batch(_ text: String, bytes: Int = 0) -> [UInt8] {
        var builder = BatchBuilder()
        let padding = [UInt8](repeating: UInt8(ascii: "."), count: max(0, bytes - text.utf8.count))
        _ = builder.append(Record(value: Array(text.utf8) + padding))
        return builder.finish()
    }

    private func isConfirmed(_ correlation: UInt64, _ client: SimulatedClient) -> Bool {
        client.confirms.contains {
            $0.correlation <= correlation && correlation < $0.correlation + UInt64($0.requests)
        }
    }

    @Test(
        "a shard whose storage fails refuses what is its own, at every front; the others go on",
        arguments: [0, 1])
    func failed(front: Int) throws {
        let (shard, _) = try broker()
        let client = try #require(shard.connect("publisher", to: front))
        let partitions = try create("orders", client)
        let reader = try #require(shard.connect("reader", to: front))
        _ = try #require(reader.subscribe("orders", stream: 1))
        for partition in partitions[0] + partitions[1] {
            let sent = client.publish(batch("before"), partition: partition)
            shard.run { isConfirmed(sent, client) }
            #expect(isConfirmed(sent, client))
        }
        shard.fault = { asked in
            asked.shard == 1 && asked.kind == .syncedWrite && asked.directory == .journal ? -5 : nil
        }
        for _ in 0..<3 {
            for partition in partitions[1] {
                let sent = client.publish(batch("lost"), partition: partition)
                shard.run { client.replies[sent] != nil }
                #expect(client.status(of: sent) == .storageFailed)
            }
        }
        #expect(!shard.faultsFired.isEmpty)
        let failures = (0..<2).map { number in
            shard.withMachine(number) { $0.counters.storageFailure }
        }
        #expect(failures[0] == nil)
        #expect(failures[1]?.contains("errno 5") == true)
        shard.run(steps: 200) { reader.delivered.count == 4 }
        for partition in partitions[0] {
            let other = try #require(shard.connect("other", to: 0))
            let sent = other.publish(batch("after"), partition: partition)
            shard.run { isConfirmed(sent, other) }
            #expect(isConfirmed(sent, other))
        }
        #expect(client.ask(.ping, Empty(), reply: Empty.self) != nil)
        #expect(!client.isClosed)
        let late = try #require(shard.connect("late", to: 0))
        _ = try #require(late.subscribe("orders", stream: 1))
        shard.run(steps: 500) { late.delivered.count >= 6 }
        // What was committed on either shard is read; nothing that was refused is.
        #expect(late.delivered.count == 6)
        #expect(!late.delivered.contains { $0.value == Array("lost".utf8) })
    }

    @Test("readers that take nothing leave send memory to what goes over links")
    func sendMemory() throws {
        let (shard, client) = try broker {
            $0.limits.sendMemoryBytesMax = 8 * $0.limits.sendBytesMax
        }
        let partitions = try create("orders", client)
        // They take as much as readers may of what the first shard has for sending.
        let slow = try (0..<8).map { try #require(shard.connect("slow \($0)", to: 0)) }
        for reader in slow {
            let request = SubscribeRequest(
                queue: "orders", partition: PartitionID(rawValue: partitions[0][0]),
                creditRecords: .max, creditBytes: .max)
            _ = try #require(
                reader.ask(.subscribe, request, stream: 1, reply: Assignment.self))
            reader.isReading = false
        }
        for number in 0..<40 {
            let sent = client.publish(
                batch("\(number)", bytes: 900), partition: partitions[0][0])
            shard.run { isConfirmed(sent, client) }
        }
        let limit = 8 * shard.settings.limits.sendBytesMax
        let lent = shard.withMachine(0) { $0.sendPool.reservedBytes }
        #expect(lent >= limit / 4 * 3)
        for number in 0..<20 {
            let over = client.publish(batch("over \(number)"), partition: partitions[1][0])
            shard.run(steps: 2000) { isConfirmed(over, client) }
            #expect(isConfirmed(over, client))
        }
        #expect(slow.allSatisfy { !$0.isClosed && $0.delivered.count < 40 })
        for reader in slow { shard.readAgain(reader) }
        shard.run(steps: 5000) { slow.allSatisfy { $0.delivered.count == 40 } }
        #expect(slow.allSatisfy { $0.delivered.count == 40 })
    }

    @Test("what is held for a reader goes to it when memory is back, though nothing else happens")
    func heldForMemory() throws {
        let (shard, client) = try broker {
            $0.limits.sendMemoryBytesMax = 8 * $0.limits.sendBytesMax
        }
        let partitions = try create("orders", client)
        let other = try create("ticks", client)
        let reader = try #require(shard.connect("reader", to: 0))
        // Each owner may deliver all of its credit: what is above it is held.
        _ = try #require(reader.subscribe("orders", stream: 1, credit: 2))
        for number in 0..<4 {
            for partition in [partitions[0][0], partitions[1][0]] {
                let sent = client.publish(batch("\(number)"), partition: partition)
                shard.run { isConfirmed(sent, client) }
            }
        }
        shard.pass(milliseconds: 5)
        #expect(reader.delivered.count == 2)
        let slow = try (0..<8).map { try #require(shard.connect("slow \($0)", to: 0)) }
        for slow in slow {
            let request = SubscribeRequest(
                queue: "ticks", partition: PartitionID(rawValue: other[0][0]),
                creditRecords: .max, creditBytes: .max)
            _ = try #require(slow.ask(.subscribe, request, stream: 1, reply: Assignment.self))
            slow.isReading = false
        }
        for number in 0..<40 {
            let sent = client.publish(batch("\(number)", bytes: 900), partition: other[0][0])
            shard.run { isConfirmed(sent, client) }
        }
        reader.request(.credit, Credit(records: 1000, bytes: .max), stream: 1)
        shard.pass(milliseconds: 20)
        #expect(reader.delivered.count == 2)
        for slow in slow { shard.readAgain(slow) }
        shard.run(steps: 5000) { reader.delivered.count == 8 }
        #expect(reader.delivered.count == 8)
    }

    @Test(
        "frames that come in pieces of any size go over a link as they are", arguments: [1, 7, 33])
    func pieces(bytes: Int) throws {
        let (shard, client) = try broker()
        let partition = try #require(try create("orders", client)[1].first)
        var frames: [UInt8] = []
        for number in UInt64(0)..<30 {
            frames += FrameHeader(
                opcode: .publish, correlation: 1000 + number, stream: partition
            ).frame(body: batch("\(number)"))
        }
        var at = 0
        while at < frames.count {
            let end = min(frames.count, at + bytes)
            client.send(Array(frames[at..<end]))
            if at % 5 == 0 { shard.step() }
            at = end
        }
        shard.run { (1000..<1030).allSatisfy { isConfirmed($0, client) } }
        #expect((1000..<1030).allSatisfy { isConfirmed($0, client) })
        _ = try #require(client.subscribe("orders", stream: 1))
        shard.run(steps: 500) { client.delivered.count == 30 }
        #expect(
            client.delivered.map { String(decoding: $0.value, as: UTF8.self) }
                == (0..<30).map { "\($0)" })
    }
}
