import BrokerBasics
import BrokerCore
import BrokerShard
import BrokerTestSupport
import LogStorage
import Testing
import WireProtocol

/// A partition goes to another shard while it is in use.
@Suite("Moving a partition")
struct PartitionMoveTests {
    private static func broker(
        _ shards: Int, mailbox: Int = 4, seed: UInt64 = 7, faults: StorageFaults = StorageFaults()
    ) throws -> (runner: ScenarioRunner, clients: [SimulatedClient]) {
        var settings = SimulatedShard.Settings()
        settings.faults = faults
        settings.shards = shards
        settings.mailboxMessages = mailbox
        let runner = try ScenarioRunner(settings: settings, seed: seed)
        try #require(runner.start())
        let clients = try (0..<shards).map { try #require(runner.connect("c\($0)", to: $0)) }
        return (runner, clients)
    }

    private static func describe(
        _ client: SimulatedClient, _ name: String = "orders"
    ) throws -> QueueInfo {
        try #require(
            client.ask(.queueDescribe, QueueNameRequest(name: name), reply: QueueInfo.self))
    }

    /// The replies to `queue-move` that came so far.
    private static func moves(_ clients: [SimulatedClient]) -> [QueueMoveReply] {
        clients.flatMap { client in
            client.replies.values.filter {
                $0.header.opcode == Opcode.queueMove.rawValue && $0.header.status == 0
            }.compactMap { try? QueueMoveReply(body: $0.body) }
        }
    }

    @Test(
        "clients of every front publish and read on, in order and once, while it goes round",
        arguments: [DurabilityLevel.synced, .written, .memory], 1...6)
    func moveUnderLoad(level: DurabilityLevel, seed: UInt64) throws {
        let (runner, clients) = try Self.broker(3, mailbox: 1 + Int(seed) % 4, seed: seed)
        let queue = runner.createQueue(clients[0], "orders", partitions: 1, level: level)
        let partition = try #require(queue.first)
        let producers = try clients.map { try #require(runner.openProducer($0)) }
        // At the front that is the owner, and at the others.
        for client in clients { #expect(client.subscribe("orders", stream: 3) != nil) }
        let member = try #require(runner.connect("member", to: Int(seed) % 3))
        #expect(member.subscribe("orders", group: "desk", stream: 4) != nil)
        var sent = 0
        var acks: [UInt64] = []
        for round in 1...6 {
            runner.beginMove(clients[round % 3], partition, to: UInt16(round % 3))
            for step in 0..<8 {
                for (client, producer) in zip(clients, producers) {
                    runner.publish(client, producer, partition, records: 1 + step % 2)
                    sent += 1 + step % 2
                }
                if step % 2 == Int(seed) % 2 { runner.shard.pass(milliseconds: 1) }
            }
            runner.run {
                for client in clients { runner.note(client) }
                // At every moment of the move.
                acks.append(
                    member.request(
                        .ack,
                        Ack(
                            partition: partition, epoch: 1,
                            offset: UInt64(member.delivered.count)), stream: 4))
                return Self.moves(clients).count == round
            }
            #expect(Self.moves(clients).count == round)
            for front in clients {
                let info = try Self.describe(front)
                #expect(info.partitions.map(\.shard) == [UInt16(round % 3)])
            }
            let acked = member.delivered.count
            runner.ack(
                member, queue: "orders", group: "desk", stream: 4, partition: partition,
                offset: UInt64(acked))
            #expect(runner.violation == nil)
        }
        runner.run {
            for client in clients { runner.note(client) }
            return (runner.history.sent[partition] ?? []).allSatisfy { $0.confirmedAt != nil }
        }
        runner.shard.pass(milliseconds: 30)
        #expect(runner.violation == nil)
        #expect(acks.allSatisfy { member.status(of: $0) == .ok }, "of \(acks.count) acks")
        for client in clients + [member] {
            #expect(client.delivered.map(\.offset) == Array(0..<UInt64(sent)))
            #expect(client.badBatches == 0)
            // A group's first assignment is its reply, and nothing has changed for anybody.
            #expect(client.pushes.allSatisfy { $0.header.opcode != Opcode.ended.rawValue })
            #expect(client.pushes.allSatisfy { $0.header.opcode != Opcode.assignment.rawValue })
            #expect(client.isClosed == false)
        }
        for client in clients { runner.note(client) }
        try runner.history.check(try ReadBack(from: runner.shard))
        // And so it is after the next start.
        try runner.crash(.some)
        try #require(runner.start())
        try runner.history.check(try ReadBack(from: runner.shard))
    }

    @Test("readers go on where they stood; one that is forgotten gets records twice")
    func forgotten() throws {
        var faults = StorageFaults()
        for isBroken in [false, true] {
            faults.movedReadersForgotten = isBroken
            let (runner, clients) = try Self.broker(2, faults: faults)
            let queue = runner.createQueue(clients[0], "orders", partitions: 1)
            let producer = try #require(runner.openProducer(clients[0]))
            for client in clients { #expect(client.subscribe("orders", stream: 1) != nil) }
            runner.publish(clients[0], producer, queue[0], records: 4)
            runner.settle(clients[0], queue)
            runner.beginMove(clients[0], queue[0], to: 1)
            runner.run { !Self.moves(clients).isEmpty }
            runner.shard.pass(milliseconds: 20)
            // The one at the old owner becomes a subscription of its front, which knows by itself.
            #expect(clients.map(\.delivered.count) == [4, isBroken ? 8 : 4])
        }
    }

    @Test("publishes are held back while it moves, and for no longer")
    func heldBack() throws {
        let (runner, clients) = try Self.broker(2)
        let queue = runner.createQueue(clients[1], "orders", partitions: 1)
        let partition = try #require(queue.first)
        let producer = try #require(runner.openProducer(clients[1]))
        runner.publish(clients[1], producer, partition)
        runner.settle(clients[1], queue)
        let to: UInt16 = try Self.describe(clients[0]).partitions[0].shard == 0 ? 1 : 0
        runner.beginMove(clients[0], partition, to: to)
        var parked = false
        runner.run {
            runner.publish(clients[1], producer, partition)
            let isHeld = (0..<2).contains { number in
                runner.shard.withMachine(number) { $0.peers.isFenced }
            }
            parked = parked || isHeld
            return !Self.moves(clients).isEmpty
        }
        #expect(parked)
        let reply = try #require(Self.moves(clients).first)
        #expect(reply.pauseNanoseconds > 0 && reply.to == to && reply.partition == partition)
        runner.settle(clients[1], queue)
        #expect(runner.violation == nil)
        for number in 0..<2 {
            runner.shard.withMachine(number) { #expect(!$0.peers.isFenced && !$0.peers.isMoving) }
        }
        #expect(
            runner.shard.withMachine(0) { $0.counters.partitionMoves } == 1)
    }

    @Test("what can't move is refused, and says why")
    func refused() throws {
        let (runner, clients) = try Self.broker(2)
        let queue = runner.createQueue(clients[0], "orders", partitions: 2)
        func status(_ partition: UInt32, _ shard: UInt16) -> StatusCode? {
            let asked = clients[1].request(
                .queueMove, QueueMoveRequest(partition: partition, shard: shard))
            runner.run { clients[1].replies[asked] != nil }
            return clients[1].status(of: asked)
        }
        #expect(status(99, 0) == .partitionNotFound)
        #expect(status(queue[0], 2) == .badRequest)
        let shard = try Self.describe(clients[0]).partitions[0].shard
        #expect(status(queue[0], shard) == .ok)
        #expect(Self.moves(clients).first?.pauseNanoseconds == 0)
        let desk = QueueCreateRequest(
            name: "desk", partitions: 2, level: .synced,
            labels: [Pair(name: "colocate", value: "desk")])
        let made = try #require(clients[0].ask(.queueCreate, desk, reply: QueueInfo.self))
        let moved = made.partitions[0]
        #expect(status(moved.id, 1 - moved.shard) == .changeNotOffered)
        let (alone, single) = try Self.broker(1)
        let own = alone.createQueue(single[0], "orders", partitions: 1)
        let asked = single[0].request(.queueMove, QueueMoveRequest(partition: own[0], shard: 1))
        alone.run { single[0].replies[asked] != nil }
        #expect(single[0].status(of: asked) == .badRequest)
    }

    @Test("one partition moves at a time; a queue that is deleted meanwhile ends the move")
    func atOnce() throws {
        let (runner, clients) = try Self.broker(2)
        let queue = runner.createQueue(clients[0], "orders", partitions: 2)
        let shards = try Self.describe(clients[0]).partitions.map(\.shard)
        let first = clients[0].request(
            .queueMove, QueueMoveRequest(partition: queue[0], shard: 1 - shards[0]))
        runner.shard.step()
        let second = clients[0].request(
            .queueMove, QueueMoveRequest(partition: queue[1], shard: 1 - shards[1]))
        runner.run { clients[0].replies[first] != nil && clients[0].replies[second] != nil }
        #expect(clients[0].status(of: first) == .ok)
        #expect(clients[0].status(of: second) == .busy)
        let third = clients[0].request(
            .queueMove, QueueMoveRequest(partition: queue[1], shard: 1 - shards[1]))
        runner.deleteQueue(clients[1], "orders")
        runner.run { clients[0].replies[third] != nil }
        #expect([.ok, .queueNotFound].contains(clients[0].status(of: third)))
        runner.shard.pass(milliseconds: 20)
        for number in 0..<2 {
            runner.shard.withMachine(number) { #expect(!$0.peers.isFenced && !$0.peers.isMoving) }
        }
        #expect(runner.createQueue(clients[1], "orders", partitions: 2).count == 2)
    }

    @Test("a producer opened while a partition of its moves is known by its epoch in all of them")
    func openedMeanwhile() throws {
        for delay in 0..<40 {
            let (runner, clients) = try Self.broker(2)
            _ = runner.createQueue(clients[0], "orders", partitions: 4)
            let partitions = try Self.describe(clients[0]).partitions
            let moving = partitions[0]
            let others = partitions.filter { $0.shard != moving.shard }.map(\.id)
            try #require(others.count == 2)
            let first = try #require(runner.openProducer(clients[0], name: "gw"))
            for partition in [moving.id] + others {
                runner.publish(clients[0], first, partition)
            }
            runner.settle(clients[0], [moving.id] + others)
            runner.beginMove(clients[0], moving.id, to: 1 - moving.shard)
            for _ in 0..<delay { runner.shard.step() }
            let second = try #require(runner.openProducer(clients[1], name: "gw"))
            runner.run { !Self.moves(clients).isEmpty }
            let third = try #require(runner.openProducer(clients[1], name: "gw"))
            for partition in [moving.id] + others {
                let status = [second, third].map { producer in
                    var builder = BatchBuilder()
                    _ = builder.append(Record(value: [1]))
                    let sent = clients[1].publish(
                        builder.finish(
                            producer: ProducerID(rawValue: producer.producerID),
                            epoch: producer.epoch, sequence: 0), partition: partition)
                    runner.run {
                        clients[1].status(of: sent) != nil
                            || clients[1].confirms.contains { $0.correlation == sent }
                    }
                    let isConfirmed = clients[1].confirms.contains { $0.correlation == sent }
                    return isConfirmed ? .ok : clients[1].status(of: sent)
                }
                #expect(status == [.producerFenced, .ok], "opened \(delay) steps after")
            }
        }
    }

    @Test("a queue that is on its way is not colocated meanwhile")
    func colocatedMeanwhile() throws {
        let (runner, clients) = try Self.broker(2)
        let queue = runner.createQueue(clients[0], "orders", partitions: 1)
        let shard = try Self.describe(clients[0]).partitions[0].shard
        let colocate = QueueAlterRequest(
            name: "orders", labels: [Pair(name: "colocate", value: "desk")])
        func alter() -> StatusCode? {
            let asked = clients[1].request(.queueAlter, colocate)
            runner.run { clients[1].replies[asked] != nil }
            return clients[1].status(of: asked)
        }
        runner.beginMove(clients[0], queue[0], to: 1 - shard)
        runner.run { runner.shard.withMachine(0) { $0.peers.isMoving } }
        #expect(alter() == .busy)
        runner.run { !Self.moves(clients).isEmpty }
        #expect(alter() == .ok)
        let again = clients[0].request(
            .queueMove, QueueMoveRequest(partition: queue[0], shard: shard))
        runner.run { clients[0].replies[again] != nil }
        #expect(clients[0].status(of: again) == .changeNotOffered)
    }

    @Test("a reader that takes nothing while its partition goes and comes back misses nothing")
    func goneAndBackUnread() throws {
        let (runner, clients) = try Self.broker(3)
        _ = runner.createQueue(clients[0], "orders", partitions: 6)
        let partitions = try Self.describe(clients[0]).partitions
        // Neither lives on the reader's front; what the second's owner says is not behind the first's.
        let home = [1, 2].compactMap { shard in partitions.first { $0.shard == shard }?.id }
        try #require(home.count == 2)
        let producer = try #require(runner.openProducer(clients[0]))
        runner.publish(clients[0], producer, home[0], records: 3)
        runner.settle(clients[0], home)
        let reader = try #require(runner.connect("reader", to: 0))
        #expect(reader.subscribe("orders", start: .end, stream: 1) != nil)
        reader.isReading = false
        var sent: UInt64 = 3
        func publish(_ count: Int, bytes: Int) {
            for _ in 0..<count {
                runner.publish(clients[0], producer, home[0], bytes: bytes)
                sent += 1
            }
            runner.settle(clients[0], home)
        }
        // More than its front and the link to it hold.
        publish(60, bytes: 2_000)
        func move(_ partition: UInt32, to shard: UInt16) {
            let asked = clients[0].request(
                .queueMove, QueueMoveRequest(partition: partition, shard: shard))
            runner.run { clients[0].replies[asked] != nil }
            #expect(clients[0].status(of: asked) == .ok)
        }
        move(home[0], to: 0)
        publish(5, bytes: 100)
        move(home[0], to: 1)
        publish(5, bytes: 100)
        // The front asks all anew.
        move(home[1], to: 0)
        publish(5, bytes: 100)
        let before = reader.delivered.count
        #expect(before < 60)
        runner.shard.readAgain(reader)
        runner.run { reader.delivered.count == Int(sent) - 3 }
        #expect(reader.delivered.map(\.offset) == Array(3..<sent))
    }
}
