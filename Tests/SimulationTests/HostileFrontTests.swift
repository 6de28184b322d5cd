import BrokerBasics
import BrokerCore
import BrokerShard
import BrokerTestSupport
import LogStorage
import Testing
import WireProtocol

/// What a hostile client says to one shard of several, which passes some of it on.
@Suite("Hostile clients of several shards")
struct HostileFrontTests {
    private static let messages: [any WireMessage] = [
        QueueCreateRequest(name: "more", partitions: 3, level: .memory),
        QueueAlterRequest(name: "orders", labels: [Pair(name: "colocate", value: "x")]),
        QueueNameRequest(name: "orders"), QueueNameRequest(name: "more"), QueueListRequest(),
        QueuePurgeRequest(name: "orders", partition: .all, before: 3),
        ProducerOpenRequest(name: "gateway"), Empty(),
        SubscribeRequest(queue: "orders", creditRecords: 3, creditBytes: 900),
        SubscribeRequest(queue: "orders", group: "g", creditRecords: .max, creditBytes: .max),
        SubscribeRequest(queue: "more", group: "h", creditRecords: 1, creditBytes: .max),
        QueueMoveRequest(partition: 2, shard: 1), QueueMoveRequest(partition: 4, shard: 9),
        Credit(records: 9, bytes: .max), Ack(partition: 2, epoch: 1, offset: 1),
        GroupDescribeRequest(queue: "orders", group: "g"), GroupListRequest(),
        HelloRequest(frameBytesMax: 4096, clientName: "again"),
    ]
    /// Requests, pushes, and what only shards say to each other.
    private static let opcodes = Opcode.allCases.map(\.rawValue) + (0x0700...0x070A)

    private func frame(_ random: inout SeededRandom) -> [UInt8] {
        var body = Self.messages[random.below(Self.messages.count)].encoded
        // Often as it is, else a byte changed or the end cut off; the checksum is right.
        switch random.below(4) {
        case 0: if !body.isEmpty { body[random.below(body.count)] = UInt8(random.below(256)) }
        case 1: body.removeLast(random.below(body.count + 1))
        default: break
        }
        var header = FrameHeader(
            opcode: .ping, flags: random.chance(1, in: 8) ? UInt8(random.below(8)) : 0,
            correlation: UInt64(random.below(40)), stream: UInt32(random.below(9)),
            argument: random.chance(1, in: 8) ? UInt32(random.below(50)) : 0)
        header.opcode = Self.opcodes[random.below(Self.opcodes.count)]
        return header.frame(body: body)
    }

    @Test("no frame traps, wedges or fills any shard, whatever it says", arguments: 1...40)
    func frames(seed: Int) throws {
        var settings = SimulatedShard.Settings()
        settings.shards = 3
        settings.mailboxMessages = 1 + seed % 4
        let runner = try ScenarioRunner(settings: settings, seed: UInt64(seed))
        try #require(runner.start())
        let honest = try #require(runner.connect("honest", to: 2))
        let queue = runner.createQueue(honest, "orders", partitions: 6)
        let producer = try #require(runner.openProducer(honest))
        var random = SeededRandom(seed: UInt64(seed) &* 7919)
        for _ in 0..<25 {
            let hostile = try #require(runner.connect("hostile", to: random.below(3)))
            if random.chance(1, in: 3) { hostile.isReading = false }
            for _ in 0..<random.below(30) {
                guard !hostile.isClosed else { break }
                hostile.send(frame(&random))
                if random.chance(1, in: 3) { runner.shard.step() }
            }
            if random.chance(1, in: 2) { runner.shard.pass(milliseconds: 3) }
            if !hostile.isReading { runner.shard.readAgain(hostile) }
            if !hostile.isClosed { runner.shard.disconnect(hostile.index, shard: hostile.number) }
        }
        runner.shard.pass(milliseconds: 50)
        // Whoever is honest goes on, unless its queue was deleted or its name taken.
        let names = QueueNameRequest(name: "orders")
        if honest.ask(.queueDescribe, names, reply: QueueInfo.self) != nil {
            for partition in queue { runner.publish(honest, producer, partition) }
            runner.settle(honest, queue)
            #expect(runner.violation == nil)
        } else {
            #expect(runner.createQueue(honest, "orders", partitions: 6).count == 6)
        }
        #expect(
            runner.connect("late", to: 1)?.subscribe("orders", stream: 1)?.partitions.count == 6)
        for shard in 0..<3 {
            // Only those of the two that are left, and the shards' own.
            let links = runner.shard.withMachine(shard) {
                $0.connections.indices.count - $0.socketCount
            }
            #expect(links <= 2 + 3, "shard \(shard) keeps \(links) links")
        }
    }
}
