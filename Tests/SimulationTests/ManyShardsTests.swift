import BrokerBasics
import BrokerCore
import BrokerShard
import BrokerTestSupport
import LogStorage
import Testing
import WireProtocol

/// Several shards that are one broker to their clients.
@Suite("Many shards")
struct ManyShardsTests {
    private static func broker(_ shards: Int, mailbox: Int = 4) throws -> ScenarioRunner {
        var settings = SimulatedShard.Settings()
        settings.shards = shards
        settings.mailboxMessages = mailbox
        let runner = try ScenarioRunner(settings: settings, seed: 7)
        try #require(runner.start())
        return runner
    }

    @Test("a queue's partitions are spread over the shards, and every front describes them all")
    func placement() throws {
        let runner = try Self.broker(3)
        let client = try #require(runner.connect(to: 2))
        let partitions = runner.createQueue(client, "orders", partitions: 6)
        #expect(partitions.count == 6)
        for shard in 0..<3 {
            let other = try #require(runner.connect(to: shard))
            let info = try #require(
                other.ask(
                    .queueDescribe, QueueNameRequest(name: "orders"), reply: QueueInfo.self))
            #expect(info.partitions.map(\.id) == partitions)
            #expect(info.partitions.map(\.shard).sorted() == [0, 0, 1, 1, 2, 2])
            let list = try #require(
                other.ask(.queueList, QueueListRequest(), reply: QueueListReply.self))
            #expect(list.queues.map(\.name) == ["orders"])
        }
    }

    @Test("queues with the same colocate label live on one shard")
    func colocation() throws {
        let runner = try Self.broker(3)
        let client = try #require(runner.connect(to: 1))
        var shards: Set<UInt16> = []
        for name in ["a", "b", "c", "d"] {
            let info = try #require(
                client.ask(
                    .queueCreate,
                    QueueCreateRequest(
                        name: name, partitions: 3, level: .synced,
                        labels: [Pair(name: "colocate", value: "desk")]),
                    reply: QueueInfo.self))
            shards.formUnion(info.partitions.map(\.shard))
        }
        #expect(shards.count == 1)
    }

    @Test(
        "what is published at any front is confirmed in order and read at any other",
        arguments: [(2, 4), (3, 1), (3, 16)])
    func publishAnywhere(shards: Int, mailbox: Int) throws {
        let runner = try Self.broker(shards, mailbox: mailbox)
        let clients = try (0..<shards).map { try #require(runner.connect(to: $0)) }
        let queue = runner.createQueue(clients[shards - 1], "orders", partitions: 4)
        let ticks = runner.createQueue(clients[0], "ticks", partitions: 3, level: .memory)
        let producers = try clients.map { try #require(runner.openProducer($0)) }
        for (number, client) in clients.enumerated() {
            #expect(client.subscribe("orders", stream: 1)?.partitions.count == 4, "\(number)")
        }
        for round in 0..<40 {
            for (client, producer) in zip(clients, producers) {
                for partition in queue + ticks {
                    runner.publish(client, producer, partition, records: 1 + round % 3)
                }
            }
        }
        for client in clients { runner.settle(client, []) }
        runner.run {
            for client in clients { runner.note(client) }
            return (queue + ticks).allSatisfy { partition in
                (runner.history.sent[partition] ?? []).allSatisfy { $0.confirmedAt != nil }
            }
        }
        for client in clients { runner.note(client) }
        #expect(runner.violation == nil)
        let sent = queue.reduce(0) { sum, partition in
            sum + (runner.history.sent[partition] ?? []).reduce(0) { $0 + $1.values.count }
        }
        runner.run { clients.allSatisfy { $0.delivered.count >= sent } }
        for client in clients {
            #expect(client.delivered.count == sent)
            #expect(client.badBatches == 0)
        }
        #expect(runner.shard.messages > 50)
        try runner.history.check(try ReadBack(from: runner.shard))
    }

    @Test("a subscription over several shards never gets more than a batch above its credit")
    func credit() throws {
        let runner = try Self.broker(3)
        let client = try #require(runner.connect(to: 1))
        let queue = runner.createQueue(client, "orders", partitions: 6)
        let producer = try #require(runner.openProducer(client))
        for _ in 0..<30 {
            for partition in queue { runner.publish(client, producer, partition, records: 3) }
        }
        runner.settle(client, queue)
        let reader = try #require(runner.connect(to: 2))
        #expect(reader.subscribe("orders", stream: 5, credit: 10) != nil)
        runner.shard.pass(milliseconds: 20)
        #expect((10...12).contains(reader.delivered.count), "\(reader.delivered.count)")
        for granted in stride(from: UInt64(20), through: 540, by: 13) {
            reader.request(.credit, Credit(records: granted, bytes: .max), stream: 5)
            runner.shard.pass(milliseconds: 3)
            let count = UInt64(reader.delivered.count)
            #expect(count >= min(granted, 540) && count <= granted + 2, "\(granted): \(count)")
        }
        reader.request(.credit, Credit(records: .max, bytes: .max), stream: 5)
        runner.shard.pass(milliseconds: 20)
        #expect(reader.delivered.count == 540)
        for partition in queue {
            let offsets = reader.delivered.filter { $0.partition == partition }.map(\.offset)
            #expect(offsets == Array(0..<90))
        }
    }

    @Test("a group's partitions are divided among members at different fronts, and acks are kept")
    func groups() throws {
        let runner = try Self.broker(3)
        let publisher = try #require(runner.connect(to: 0))
        let queue = runner.createQueue(publisher, "orders", partitions: 6)
        let producer = try #require(runner.openProducer(publisher))
        for _ in 0..<10 {
            for partition in queue { runner.publish(publisher, producer, partition) }
        }
        runner.settle(publisher, queue)
        let first = try #require(runner.connect("first", to: 1))
        let second = try #require(runner.connect("second", to: 2))
        let whole = try #require(first.subscribe("orders", group: "desk", stream: 1))
        #expect(whole.partitions.map(\.partition) == queue)
        runner.shard.pass(milliseconds: 10)
        #expect(first.delivered.count == 60)
        for partition in queue {
            runner.ack(
                first, queue: "orders", group: "desk", stream: 1, partition: partition, offset: 4)
        }
        let half = try #require(second.subscribe("orders", group: "desk", stream: 9))
        #expect(half.partitions.count == 3)
        #expect(half.partitions.allSatisfy { $0.nextOffset == 4 && $0.epoch == 1 })
        runner.shard.pass(milliseconds: 10)
        let push = try #require(
            first.pushes.last { $0.header.opcode == Opcode.assignment.rawValue })
        let left = try Assignment(body: push.body)
        #expect(left.partitions.count == 3)
        #expect(second.delivered.count == 18)
        // What went to the other is fenced.
        let gone = try #require(half.partitions.first).partition
        let refused = first.request(
            .ack, Ack(partition: gone, epoch: 1, offset: 6), stream: 1)
        runner.shard.pass(milliseconds: 5)
        #expect(first.status(of: refused) == .notAssigned)
        let info = try #require(
            publisher.ask(
                .groupDescribe, GroupDescribeRequest(queue: "orders", group: "desk"),
                reply: GroupInfo.self))
        #expect(info.members.count == 2)
        #expect(info.cursors.map(\.ackFloor) == [4, 4, 4, 4, 4, 4])
        #expect(info.cursors.allSatisfy { !$0.member.isEmpty })
        // A member that leaves without a word gives its partitions back.
        runner.shard.disconnect(second.index, shard: 2)
        runner.shard.pass(milliseconds: 20)
        let back = try #require(
            first.pushes.last { $0.header.opcode == Opcode.assignment.rawValue })
        #expect(try Assignment(body: back.body).partitions.count == 6)
        runner.shard.pass(milliseconds: 20)
        #expect(first.delivered.count == 60 + 18)
    }

    @Test("whoever leaves in the middle of joining is no member, and is answered")
    func leaveWhileJoining() throws {
        let runner = try Self.broker(3)
        let publisher = try #require(runner.connect(to: 0))
        let queue = runner.createQueue(publisher, "orders", partitions: 6)
        let hasty = try #require(runner.connect("hasty", to: 1))
        let asked = hasty.request(
            .subscribe,
            SubscribeRequest(
                queue: "orders", group: "desk", creditRecords: .max, creditBytes: .max),
            stream: 7)
        let left = hasty.request(.unsubscribe, Empty(), stream: 7)
        runner.shard.pass(milliseconds: 20)
        #expect(hasty.status(of: asked) == .subscriptionNotFound)
        #expect(hasty.status(of: left) == .ok)
        let member = try #require(runner.connect("member", to: 2))
        let whole = try #require(member.subscribe("orders", group: "desk", stream: 1))
        #expect(whole.partitions.map(\.partition) == queue)
        // The id is free again.
        #expect(hasty.subscribe("orders", stream: 7)?.partitions.count == 6)
    }

    @Test("members that come and go at once leave no partition without a reader", arguments: 1...12)
    func joinAndLeaveAtOnce(steps: Int) throws {
        let runner = try Self.broker(3)
        let publisher = try #require(runner.connect(to: 0))
        let queue = runner.createQueue(publisher, "orders", partitions: 6)
        let producer = try #require(runner.openProducer(publisher))
        let old = try #require(runner.connect("old", to: 1))
        #expect(old.subscribe("orders", group: "desk", stream: 1)?.partitions.count == 6)
        let new = try #require(runner.connect("new", to: 2))
        // Something on shard 0 that is not durable yet, so that its answers wait.
        for partition in queue { runner.publish(publisher, producer, partition) }
        runner.ack(
            old, queue: "orders", group: "desk", stream: 1, partition: queue[0], offset: 0)
        new.request(
            .subscribe,
            SubscribeRequest(
                queue: "orders", group: "desk", creditRecords: .max, creditBytes: .max),
            stream: 1)
        for _ in 0..<steps { runner.shard.step() }
        runner.shard.disconnect(old.index, shard: 1)
        runner.shard.pass(milliseconds: 30)
        for partition in queue { runner.publish(publisher, producer, partition) }
        runner.settle(publisher, queue)
        runner.shard.pass(milliseconds: 30)
        for partition in queue {
            let got = new.delivered.filter { $0.partition == partition }.map(\.offset)
            #expect(got.last == 1, "partition \(partition): \(got)")
        }
    }

    /// What a shard that goes has left is removed, and removed names are not durable at once. So what is
    /// left may come back under a shard that is made anew with its number.
    @Test("a shard goes and one with its number comes, each cut short anywhere: nothing is missed")
    func goneAndBack() throws {
        let runner = try Self.broker(2)
        let client = try #require(runner.connect(to: 0))
        let queue = runner.createQueue(client, "orders", partitions: 4)
        let producer = try #require(runner.openProducer(client))
        for partition in queue { runner.publish(client, producer, partition, records: 3) }
        runner.settle(client, queue)
        var random = SeededRandom(seed: 5)
        func start(_ disk: SimulatedDisk, shards: Int) throws -> SimulatedShard {
            var settings = runner.settings
            settings.shards = shards
            return try SimulatedShard(disk: disk, settings: settings, seed: 1)
        }
        for retired in 0... {
            let disk = runner.shard.disk.afterKill(&random)
            let alone = try start(disk, shards: 1)
            try #require(alone.run(until: { alone.isReady }))
            disk.operationsUntilCrash = retired
            let isRetired = (try? alone.retire()) != nil
            disk.operationsUntilCrash = nil
            for made in 0... {
                let again = disk.afterKill(&random)
                again.operationsUntilCrash = made
                let isMade = (try? start(again, shards: 2)) != nil
                again.operationsUntilCrash = nil
                for survival in [SimulatedDisk.Survival.none, .all, .some] {
                    let found = try start(again.afterPowerCut(survival, &random), shards: 2)
                    try runner.history.check(ReadBack(from: found))
                }
                if isMade { break }
            }
            if isRetired { break }
        }
    }

    @Test(
        "a queue that lives on several shards, or elsewhere than its companions, is not colocated")
    func labelledLater() throws {
        let runner = try Self.broker(3)
        let client = try #require(runner.connect(to: 1))
        func alter(_ name: String, _ value: String) -> StatusCode? {
            let label = Pair(name: "colocate", value: value)
            let asked = client.request(
                .queueAlter, QueueAlterRequest(name: name, labels: [label]))
            runner.run { client.replies[asked] != nil }
            return client.status(of: asked)
        }
        _ = runner.createQueue(client, "spread", partitions: 3)
        #expect(alter("spread", "desk") == .changeNotOffered)
        // One partition each, on the shards in turn.
        for name in ["a", "b", "c", "d"] { _ = runner.createQueue(client, name, partitions: 1) }
        #expect(alter("a", "desk") == .ok)
        #expect(alter("b", "desk") == .changeNotOffered)
        #expect(alter("d", "desk") == .ok)
        #expect(alter("b", "") == .ok)
        let info = try #require(
            client.ask(.queueDescribe, QueueNameRequest(name: "b"), reply: QueueInfo.self))
        #expect(info.labels.isEmpty)
    }

    @Test("what was colocated when it was spread already leaves the shards that go, and no others")
    func spreadAndColocated() {
        let queue = Queue(
            id: 1, name: "orders", level: .synced, createdAt: 0,
            labels: [Pair(name: "colocate", value: "desk")], partitions: [1, 2, 3, 4, 5, 6],
            shards: [0, 1, 2, 0, 1, 2], retention: Retention())
        let moves = Placement.moves(queues: [queue], before: 3, shards: 2)
        #expect(moves.map(\.partition) == [3, 6])
        #expect(moves.allSatisfy { $0.from == 2 && $0.to == 0 })
    }

    @Test("a queue that is gone ends its subscriptions at every front, once")
    func deletion() throws {
        let runner = try Self.broker(3)
        let clients = try (0..<3).map { try #require(runner.connect(to: $0)) }
        _ = runner.createQueue(clients[0], "orders", partitions: 5)
        for client in clients {
            #expect(client.subscribe("orders", stream: 3) != nil)
            #expect(client.subscribe("orders", group: "g", stream: 4) != nil)
        }
        runner.deleteQueue(clients[1], "orders")
        runner.shard.pass(milliseconds: 20)
        for client in clients {
            let ended = client.pushes.filter { $0.header.opcode == Opcode.ended.rawValue }
            #expect(ended.map(\.header.stream).sorted() == [3, 4])
            #expect(
                client.ask(.queueDescribe, QueueNameRequest(name: "orders"), reply: QueueInfo.self)
                    == nil)
        }
        // The ids may be used again.
        _ = runner.createQueue(clients[2], "orders", partitions: 5)
        for client in clients { #expect(client.subscribe("orders", stream: 3) != nil) }
    }

    @Test("a producer's epoch is fenced on every shard")
    func producers() throws {
        let runner = try Self.broker(2)
        let client = try #require(runner.connect(to: 1))
        let queue = runner.createQueue(client, "orders", partitions: 2)
        let old = try #require(runner.openProducer(client, name: "gateway"))
        for partition in queue { runner.publish(client, old, partition) }
        runner.settle(client, queue)
        let other = try #require(runner.connect(to: 0))
        let new = try #require(runner.openProducer(other, name: "gateway"))
        #expect(new.producerID == old.producerID && new.epoch == old.epoch + 1)
        for partition in queue {
            runner.publish(client, old, partition)
            runner.shard.pass(milliseconds: 5)
            let refused = client.replies.values.filter {
                $0.header.status == StatusCode.producerFenced.rawValue
            }
            #expect(refused.contains { $0.header.stream == partition })
        }
    }

    @Test("a slow reader at one front holds up nobody else")
    func slowReader() throws {
        let runner = try Self.broker(2)
        let client = try #require(runner.connect(to: 0))
        let queue = runner.createQueue(client, "orders", partitions: 4)
        let slow = try #require(runner.connect("slow", to: 1))
        let quick = try #require(runner.connect("quick", to: 1))
        for reader in [slow, quick] { #expect(reader.subscribe("orders", stream: 1) != nil) }
        slow.isReading = false
        let producer = try #require(runner.openProducer(client))
        for _ in 0..<60 {
            for partition in queue {
                runner.publish(client, producer, partition, records: 2, bytes: 700)
            }
            runner.settle(client, queue)
        }
        runner.shard.pass(milliseconds: 20)
        #expect(quick.delivered.count == 480)
        #expect(slow.delivered.count < 480)
        runner.shard.readAgain(slow)
        runner.shard.pass(milliseconds: 50)
        #expect(slow.delivered.count == 480)
    }

    @Test("all shards stop in order, and come back as they were")
    func stop() throws {
        let runner = try Self.broker(3)
        let client = try #require(runner.connect(to: 2))
        let queue = runner.createQueue(client, "orders", partitions: 6)
        let producer = try #require(runner.openProducer(client))
        for partition in queue { runner.publish(client, producer, partition, records: 5) }
        runner.settle(client, queue)
        runner.stop()
        #expect(runner.violation == nil)
        try runner.crash(nil)
        try #require(runner.start())
        #expect(runner.shard.partitionsMoved == 0)
        try runner.history.check(try ReadBack(from: runner.shard))
    }

    @Test("partitions move when the number of shards changes, and nothing is lost on the way")
    func otherCount() throws {
        let runner = try Self.broker(1)
        var client = try #require(runner.connect())
        let orders = runner.createQueue(client, "orders", partitions: 6)
        let ticks = runner.createQueue(client, "ticks", partitions: 3, level: .memory)
        let fills = runner.createQueue(client, "fills", partitions: 3, level: .written)
        let all = orders + ticks + fills
        let producer = try #require(runner.openProducer(client))
        #expect(client.subscribe("orders", group: "desk", stream: 1) != nil)
        for partition in orders {
            runner.publish(client, producer, partition, records: 7)
            runner.settle(client, [partition])
            runner.ack(
                client, queue: "orders", group: "desk", stream: 1, partition: partition, offset: 3)
        }
        for shards in [2, 1, 3, 3, 2, 1] {
            let before = runner.settings.shards
            for partition in all { runner.publish(client, producer, partition, records: 2) }
            runner.settle(client, all)
            try runner.crash(shards % 2 == 0 ? nil : SimulatedDisk.Survival.none, shards: shards)
            try #require(runner.start())
            if before != shards { #expect(runner.shard.partitionsMoved > 0) }
            if before == shards { #expect(runner.shard.partitionsMoved == 0) }
            try runner.shard.retire()
            client = try #require(runner.connect(to: shards - 1))
            let info = try #require(
                client.ask(
                    .queueDescribe, QueueNameRequest(name: "orders"), reply: QueueInfo.self))
            #expect(Set(info.partitions.map(\.shard)).count == shards)
            try runner.history.check(try ReadBack(from: runner.shard), killed: shards % 2 == 0)
        }
    }

    @Test("a producer that comes back while the shards are asked about it does not expire")
    func openedWhileAsked() throws {
        /// - Parameter step: when the producer is opened again; `nil`: never.
        /// - Returns: the step in which it expired, or what became of a publish under its new epoch.
        func run(openingAt step: Int?) throws -> (expired: Int?, published: StatusCode?) {
            var settings = SimulatedShard.Settings()
            settings.shards = 2
            settings.sleepsWhenIdle = true
            settings.limits.producerExpirySeconds = 120
            let shard = try SimulatedShard(disk: SimulatedDisk(), settings: settings, seed: 5)
            shard.run { shard.isReady }
            let client = try #require(shard.connect("client", to: 0))
            let queue = try #require(
                client.ask(
                    .queueCreate, QueueCreateRequest(name: "orders", partitions: 1, level: .synced),
                    reply: QueueInfo.self))
            let open = ProducerOpenRequest(name: "gw")
            let first = try #require(client.ask(.producerOpen, open, reply: ProducerOpenReply.self))
            for number in 0..<100_000 {
                guard number == step else {
                    let count = shard.withMachine(0) { $0.state.producers.producers.count }
                    if count == 0 { return (number, nil) }
                    shard.step()
                    continue
                }
                let again = try #require(
                    client.ask(.producerOpen, open, reply: ProducerOpenReply.self))
                shard.pass(milliseconds: 50)
                guard again.producerID == first.producerID else { return (nil, .ok) }
                var builder = BatchBuilder()
                _ = builder.append(Record(value: [1]))
                let sent = client.publish(
                    builder.finish(
                        producer: ProducerID(rawValue: again.producerID), epoch: again.epoch,
                        sequence: 0), partition: queue.partitions[0].id)
                let isAnswered = shard.run {
                    client.status(of: sent) != nil
                        || client.confirms.contains { $0.correlation == sent }
                }
                #expect(isAnswered && again.epoch == first.epoch + 1)
                return (nil, client.status(of: sent) ?? .ok)
            }
            return (nil, nil)
        }
        let expired = try #require(try run(openingAt: nil).expired)
        for step in (expired - 30)..<expired {
            #expect(try run(openingAt: step).published == .ok, "\(expired - step) steps before")
        }
    }
}
