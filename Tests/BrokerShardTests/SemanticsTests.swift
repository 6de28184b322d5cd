import BrokerBasics
import BrokerCore
import BrokerShard
import BrokerTestSupport
import LogStorage
import Testing
import WireProtocol

@Suite("What requests mean")
struct SemanticsTests {
    // MARK: where a subscription begins

    @Test("a subscription begins at the start, the end, an offset or a time")
    func starts() throws {
        let fixture = try Fixture()
        let partition = try fixture.create("orders")[0]
        try fixture.publish(5, to: partition)
        fixture.shard.pass(milliseconds: 50)
        let middle = fixture.shard.wall
        try fixture.publish(5, to: partition, from: 5)
        let future = fixture.shard.wall + .seconds(1)
        let starts: [(StartPosition, [UInt64])] = [
            (.start, Array(0..<12)), (.end, [10, 11]), (.offset(7), Array(7..<12)),
            (.offset(10), [10, 11]), (.time(middle), Array(5..<12)), (.time(0), Array(0..<12)),
            (.time(future), [11]),
        ]
        var clients: [SimulatedClient] = []
        for (start, _) in starts {
            let client = try fixture.connect()
            _ = try #require(client.subscribe("orders", start: start, stream: 1))
            clients.append(client)
        }
        #expect(
            try fixture.refusal(
                .subscribe,
                SubscribeRequest(
                    queue: "orders", start: .offset(11), creditRecords: 1, creditBytes: 1),
                stream: 9) == .offsetOutOfRange)
        try fixture.publish(1, to: partition, from: 10)
        fixture.shard.pass(milliseconds: 1500)
        try fixture.publish(1, to: partition, from: 11)
        fixture.shard.pass(milliseconds: 5)
        for ((start, offsets), client) in zip(starts, clients) {
            #expect(client.delivered.map(\.offset) == offsets, "\(start)")
        }
    }

    @Test("an offset in the middle of a batch gets the whole batch")
    func middleOfBatch() throws {
        let fixture = try Fixture()
        let partition = try fixture.create("orders")[0]
        try fixture.publish(batch(["a", "b", "c"]), to: partition)
        try fixture.publish(batch(["d"]), to: partition)
        let assignment = try #require(
            fixture.client.subscribe("orders", start: .offset(2), stream: 1))
        #expect(assignment.partitions.map(\.nextOffset) == [2])
        fixture.shard.pass(milliseconds: 5)
        #expect(fixture.client.delivered.map(\.text) == ["a", "b", "c", "d"])
    }

    @Test("a subscription's id is unique on its connection and free again after unsubscribe")
    func subscriptionIDs() throws {
        let fixture = try Fixture()
        _ = try fixture.create("orders")
        let request = SubscribeRequest(queue: "orders", creditRecords: 1, creditBytes: 1)
        #expect(try fixture.refusal(.subscribe, request, stream: 4) == .ok)
        #expect(try fixture.refusal(.subscribe, request, stream: 4) == .subscriptionExists)
        #expect(try fixture.refusal(.unsubscribe, Empty(), stream: 4) == .ok)
        #expect(try fixture.refusal(.unsubscribe, Empty(), stream: 4) == .subscriptionNotFound)
        #expect(try fixture.refusal(.subscribe, request, stream: 4) == .ok)
        let missing = SubscribeRequest(queue: "nothing", creditRecords: 1, creditBytes: 1)
        #expect(try fixture.refusal(.subscribe, missing, stream: 5) == .queueNotFound)
    }

    // MARK: groups

    private func subscribe(
        _ client: SimulatedClient, stream: UInt32 = 1
    ) throws -> [UInt32] {
        try #require(client.subscribe("orders", group: "desk", stream: stream))
            .partitions.map(\.partition)
    }

    private func ack(
        _ fixture: Fixture, _ client: SimulatedClient, _ partition: UInt32, _ offset: UInt64,
        epoch: UInt32 = 1, stream: UInt32 = 1
    ) throws -> StatusCode {
        try fixture.refusal(
            .ack, Ack(partition: partition, epoch: epoch, offset: offset), stream: stream,
            by: client)
    }

    @Test("members share a group's partitions; who loses one is fenced at once")
    func rebalance() throws {
        let fixture = try Fixture()
        let partitions = try fixture.create("orders", partitions: 4)
        for partition in partitions { try fixture.publish(3, to: partition) }
        let first = try fixture.connect("first")
        let second = try fixture.connect("second")
        #expect(try subscribe(first) == partitions)
        fixture.shard.run { first.delivered.count == 12 }
        #expect(try ack(fixture, first, partitions[0], 2) == .ok)
        let taken = try subscribe(second)
        #expect(taken.count == 2)
        fixture.shard.run { !first.pushes.isEmpty }
        let push = try #require(first.pushes.last)
        #expect(push.header.opcode == Opcode.assignment.rawValue)
        let kept = try Assignment(body: push.body)
        #expect(Set(kept.partitions.map(\.partition)).isDisjoint(with: taken))
        #expect(kept.partitions.count == 2)
        #expect(try ack(fixture, first, taken[0], 3) == .notAssigned)
        #expect(try ack(fixture, first, kept.partitions[0].partition, 3) == .ok)
        // The next reader begins at the ack floor.
        fixture.shard.run { second.delivered.count == 6 }
        #expect(second.delivered.count == 6)
        // Who leaves gives its partitions back.
        fixture.shard.disconnect(second.index)
        fixture.shard.run(steps: 300) { first.pushes.count == 2 && first.delivered.count == 18 }
        let all = try Assignment(body: #require(first.pushes.last).body)
        #expect(all.partitions.count == 4)
        #expect(all.generation == kept.generation + 1)
        #expect(first.delivered.count == 18)
    }

    @Test("an ack beyond what was delivered, or of nobody's subscription, is refused")
    func ackRange() throws {
        let fixture = try Fixture()
        let partition = try fixture.create("orders")[0]
        try fixture.publish(5, to: partition)
        let client = fixture.client
        _ = try #require(client.subscribe("orders", group: "desk", stream: 1, credit: 3))
        fixture.shard.pass(milliseconds: 5)
        #expect(client.delivered.count == 3)
        #expect(try ack(fixture, client, partition, 4) == .ackOutOfRange)
        #expect(try ack(fixture, client, partition, 3) == .ok)
        #expect(try ack(fixture, client, partition, 1) == .ok)
        #expect(try ack(fixture, client, partition, 3, stream: 8) == .subscriptionNotFound)
        #expect(try ack(fixture, client, partition, 3, epoch: 2) == .epochFenced)
        #expect(try ack(fixture, client, partition, 3, epoch: 0) == .epochFenced)
        _ = try #require(client.subscribe("orders", stream: 2))
        #expect(try ack(fixture, client, partition, 3, stream: 2) == .notAssigned)
        let info = try #require(
            client.ask(
                .groupDescribe, GroupDescribeRequest(queue: "orders", group: "desk"),
                reply: GroupInfo.self))
        #expect(info.cursors.map(\.ackFloor) == [3])
        #expect(info.lagRecords == 2)
    }

    @Test("after a loss, an ack of the new epoch's records under the old epoch is fenced")
    func staleEpoch() throws {
        let before = try Fixture()
        let partition = try before.create("orders", level: .memory)[0]
        try before.publish(4, to: partition)
        before.shard.pass(milliseconds: 12_000)
        try before.publish(4, to: partition, from: 4)
        var random = SeededRandom(seed: 1)
        let fixture = try Fixture(
            disk: before.shard.disk.afterPowerCut(SimulatedDisk.Survival.none, &random))
        let confirm = try fixture.publish(batch(["new"]), to: partition)
        #expect(confirm.epoch == 2)
        let client = fixture.client
        _ = try #require(client.subscribe("orders", group: "desk", stream: 1))
        fixture.shard.run(steps: 300) { client.delivered.count == 5 }
        #expect(client.lost.count == 1)
        #expect(client.delivered.map(\.epoch) == [1, 1, 1, 1, 2])
        let end = confirm.baseOffset + 1
        #expect(try ack(fixture, client, partition, 3, epoch: 1) == .ok)
        #expect(try ack(fixture, client, partition, end, epoch: 1) == .epochFenced)
        #expect(try ack(fixture, client, partition, end, epoch: 2) == .ok)
    }

    // MARK: numbered producers

    @Test("gaps, repeats, overlaps, fenced epochs and unknown producers each get their answer")
    func sequences() throws {
        let fixture = try Fixture()
        let partition = try fixture.create("orders")[0]
        func open() throws -> ProducerOpenReply {
            try #require(
                fixture.client.ask(
                    .producerOpen, ProducerOpenRequest(name: "gateway"),
                    reply: ProducerOpenReply.self))
        }
        let producer = try open()
        let id = producer.producerID
        func numbered(_ sequence: UInt64, _ values: [String], epoch: UInt16 = 1) -> [UInt8] {
            batch(values, producer: id, epoch: epoch, sequence: sequence)
        }
        #expect(try fixture.refusal(publishing: numbered(1, ["b"]), to: partition) == .sequenceGap)
        let first = try fixture.publish(numbered(0, ["a", "b"]), to: partition)
        #expect(first.flags == 0)
        let again = try fixture.publish(numbered(0, ["a", "b"]), to: partition)
        #expect(again.flags == ConfirmEntry.duplicateFlag)
        #expect(again.baseOffset == first.baseOffset)
        #expect(try fixture.refusal(publishing: numbered(3, ["d"]), to: partition) == .sequenceGap)
        #expect(
            try fixture.refusal(publishing: numbered(1, ["b", "c"]), to: partition)
                == .batchInvalid)
        #expect(
            try fixture.refusal(publishing: numbered(2, ["c"], epoch: 2), to: partition)
                == .producerFenced)
        #expect(try open().epoch == 2)
        #expect(
            try fixture.refusal(publishing: numbered(2, ["c"], epoch: 1), to: partition)
                == .producerFenced)
        #expect(
            try fixture.refusal(publishing: numbered(0, ["c"], epoch: 2), to: partition) == .ok)
        let unknown = batch(["x"], producer: 999, epoch: 1)
        let correlation = fixture.client.publish(unknown, partition: partition)
        fixture.shard.run { fixture.client.isAnswered(correlation) }
        #expect(fixture.client.status(of: correlation) == .producerUnknown)
        #expect(
            fixture.client.refusal(of: correlation)?.errorClass
                == StatusCode.Class.outcomeUnknown.rawValue)
        #expect(try fixture.readBack("orders", records: 3).map(\.text) == ["a", "b", "c"])
    }

    @Test("a fenced epoch stays fenced over a crash, also where segments tell of it")
    func fencedAfterCrash() throws {
        let before = try Fixture()
        let partition = try before.create("ticks", level: .memory)[0]
        func open(_ fixture: Fixture) throws -> ProducerOpenReply {
            try #require(
                fixture.client.ask(
                    .producerOpen, ProducerOpenRequest(name: "gateway"),
                    reply: ProducerOpenReply.self))
        }
        let id = try open(before).producerID
        try before.publish(batch(["a"], producer: id, epoch: 1), to: partition)
        before.shard.pass(milliseconds: 300)
        #expect(before.counters.chunksWritten > 0)
        #expect(try open(before).epoch == 2)
        var random = SeededRandom(seed: 1)
        let after = try Fixture(disk: before.shard.disk.afterPowerCut(.all, &random))
        let late = batch(["late"], producer: id, epoch: 1, sequence: 1)
        #expect(try after.refusal(publishing: late, to: partition) == .producerFenced)
        let lawful = batch(["b"], producer: id, epoch: 2)
        #expect(try after.refusal(publishing: lawful, to: partition) == .ok)
    }

    // MARK: deadlines

    @Test("a parked publish whose deadline passes is refused and not stored")
    func deadline() throws {
        let fixture = try Fixture { $0.latencyMax = 50_000_000 }
        let partition = try fixture.create("ticks", level: .memory)[0]
        let client = fixture.client
        // The first publish of a memory partition waits for its reservation.
        let correlation = client.publish(batch(["late"]), partition: partition, deadline: 1)
        #expect(fixture.counters.parks == 1)
        fixture.shard.run { client.isAnswered(correlation) }
        #expect(client.status(of: correlation) == .deadlineExceeded)
        #expect(fixture.counters.publishedRecords == 0)
        #expect(try fixture.refusal(publishing: batch(["next"]), to: partition) == .ok)
        #expect(try fixture.readBack("ticks", records: 1).map(\.text) == ["next"])
    }

    @Test("a deadline counts from the arrival, however often what is in front parks")
    func deadlineBehindOthers() throws {
        let fixture = try Fixture { $0.latencyMax = 200_000 }
        let partitions = try fixture.create("ticks", partitions: 40, level: .memory)
        let client = fixture.client
        let began = fixture.shard.time
        var frames: [UInt8] = []
        for (place, partition) in partitions.enumerated() {
            frames += FrameHeader(
                opcode: .publish, correlation: 1000 + UInt64(place), stream: partition,
                argument: 400
            ).frame(body: batch(["x"]))
        }
        client.send(frames)
        let last = 1000 + UInt64(partitions.count - 1)
        var answeredLate = 0
        fixture.shard.run {
            let isLate = fixture.shard.time.since(began) > .microseconds(400)
            if isLate, answeredLate == 0 { answeredLate = client.confirms.count + 1 }
            return client.isAnswered(last)
        }
        #expect(answeredLate > 0)
        #expect(client.confirms.count < answeredLate)
        #expect(client.status(of: last) == .deadlineExceeded)
    }

    // MARK: queues

    @Test("deleting a queue ends its subscriptions, and its name can be used again")
    func deletion() throws {
        let fixture = try Fixture()
        let partition = try fixture.create("orders")[0]
        _ = try fixture.create("ticks")
        try fixture.publish(2, to: partition)
        let client = try fixture.connect()
        _ = try #require(client.subscribe("orders", group: "desk", stream: 1))
        _ = try #require(client.subscribe("orders", stream: 2))
        _ = try #require(client.subscribe("ticks", stream: 3))
        #expect(try fixture.refusal(.queueDelete, QueueNameRequest(name: "orders")) == .ok)
        #expect(client.pushes.count == 2)
        for push in client.pushes {
            #expect(push.header.opcode == Opcode.ended.rawValue)
            #expect(StatusCode(rawValue: push.header.status) == .queueNotFound)
        }
        #expect(Set(client.pushes.map(\.header.stream)) == [1, 2])
        #expect(
            try fixture.refusal(publishing: batch(["x"]), to: partition) == .partitionNotFound)
        #expect(
            try fixture.refusal(.queueDelete, QueueNameRequest(name: "orders")) == .queueNotFound)
        let renewed = try fixture.create("orders")[0]
        #expect(renewed > partition)
        try fixture.publish(1, to: renewed)
        #expect(try fixture.readBack("orders", records: 1).count == 1)
        #expect(fixture.shard.machine.subscriptions.indices.count == 2)
    }

    @Test(
        "a queue's name is 1 to 255 of the lawful characters",
        arguments: [
            ("", false), ("orders", true), (".hidden", false), ("-x", false), ("a b", false),
            ("a/b", false), ("größe", false), ("a\0b", false), ("$sys", true), ("_x.y-z", true),
            (String(repeating: "n", count: 255), true),
            (String(repeating: "n", count: 256), false),
        ])
    func names(name: String, isLawful: Bool) throws {
        let fixture = try Fixture()
        let create = QueueCreateRequest(name: name, partitions: 1, level: .synced)
        #expect(try fixture.refusal(.queueCreate, create) == (isLawful ? .ok : .nameInvalid))
        _ = isLawful ? [] : try fixture.create("orders")
        let subscribe = SubscribeRequest(
            queue: isLawful ? name : "orders", group: name, creditRecords: 1, creditBytes: 1)
        if !name.isEmpty {
            #expect(
                try fixture.refusal(.subscribe, subscribe, stream: 1)
                    == (isLawful ? .ok : .nameInvalid))
        }
    }

    @Test("a queue is refused with no partition, too many, a level not offered, or a taken name")
    func creation() throws {
        let fixture = try Fixture()
        func create(_ partitions: UInt32, _ level: DurabilityLevel) throws -> StatusCode {
            try fixture.refusal(
                .queueCreate,
                QueueCreateRequest(name: "orders", partitions: partitions, level: level))
        }
        #expect(try create(0, .synced) == .tooManyPartitions)
        #expect(try create(1025, .synced) == .tooManyPartitions)
        #expect(try create(2, .synced) == .ok)
        #expect(try create(2, .synced) == .queueExists)
    }

    // MARK: a disk that fails

    @Test("after a failed journal write nothing is confirmed any more, and everybody hears why")
    func failedWrite() throws {
        let fixture = try Fixture()
        let partition = try fixture.create("orders")[0]
        let ticks = try fixture.create("ticks", level: .memory)[0]
        try fixture.publish(2, to: partition)
        try fixture.publish(1, to: ticks)
        let client = fixture.client
        fixture.shard.override = { name, _ in name == "synced write" ? -5 : nil }
        let lost = client.publish(batch(["lost"]), partition: partition)
        client.request(
            .queueCreate, QueueCreateRequest(name: "late", partitions: 1, level: .synced))
        fixture.shard.run { fixture.counters.storageFailure != nil }
        fixture.shard.pass(milliseconds: 50)
        #expect(fixture.shard.overridesFired > 0)
        #expect(fixture.counters.storageFailure?.contains("journal/") == true)
        fixture.shard.override = nil
        let confirmed = client.confirms.count
        for partition in [partition, ticks] {
            #expect(
                try fixture.refusal(publishing: batch(["more"]), to: partition) == .storageFailed)
        }
        fixture.shard.pass(milliseconds: 12_000)
        #expect(client.confirm(of: lost) == nil)
        #expect(client.status(of: lost) == .storageFailed)
        #expect(client.confirms.count == confirmed)
        // What was not stored is not shown, and who asks is answered.
        #expect(
            client.ask(.serverDescribe, Empty(), reply: ServerDescription.self)?.facts
                .first { $0.name == "storage" }?.value != "ok")
        #expect(client.ask(.ping, Empty(), reply: Empty.self) != nil)
        let create = QueueCreateRequest(name: "later", partitions: 1, level: .synced)
        #expect(try fixture.refusal(.queueCreate, create) == .storageFailed)
        #expect(
            try fixture.refusal(.queueDescribe, QueueNameRequest(name: "late")) == .storageFailed)
        #expect(try fixture.connect().ask(.ping, Empty(), reply: Empty.self) != nil)
    }

    // MARK: clocks

    @Test("when the wall clock steps back an hour append times stand still and timers go on")
    func wallStepsBack() throws {
        let fixture = try Fixture()
        let partition = try fixture.create("orders")[0]
        let ticks = try fixture.create("ticks", level: .memory)[0]
        func appended(_ id: UInt32) throws -> [UInt64] {
            let place = fixture.shard.machine.state.index(ofPartition: id)
            let index = try #require(place)
            var times: [UInt64] = []
            var chunk = fixture.shard.machine.state.partitions[index].pointee.log.oldest
            while let current = chunk {
                var at = ChunkHeader.byteCount
                while at < current.pointee.used {
                    times.append(StoredBatch.appendTime(at: current.pointee.bytes + at))
                    at += StoredBatch.bytes(at: current.pointee.bytes + at)
                }
                chunk = current.pointee.next
            }
            return times
        }
        for id in [partition, ticks] { try fixture.publish(3, to: id) }
        fixture.shard.stepWall(by: -3_600_000_000_000)
        let checkpoints = fixture.counters.checkpoints
        let silent = try fixture.shard.connectSilently()
        for id in [partition, ticks] {
            try fixture.publish(3, to: id, from: 3)
            let times = try appended(id)
            #expect(times.count == 6)
            #expect(times == times.sorted())
            #expect(times.last == times[2])
        }
        fixture.shard.pass(milliseconds: 21_000)
        #expect(silent.isClosed)
        #expect(fixture.counters.checkpoints > checkpoints)
        #expect(fixture.counters.chunksWritten > 0)
        #expect(try fixture.readBack("orders", records: 6).count == 6)
    }
}
