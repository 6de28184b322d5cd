import BrokerBasics
import BrokerCore
import BrokerShard
import BrokerTestSupport
import LogStorage
import Testing
import WireProtocol

@Suite("Retention")
struct RetentionTests {
    private static func small(_ settings: inout SimulatedShard.Settings) {
        settings.limits.segmentBytes = 32 * 1024
    }

    private func create(
        _ fixture: Fixture, _ name: String = "orders", keeping retention: Retention,
        level: DurabilityLevel = .synced
    ) throws -> UInt32 {
        let request = QueueCreateRequest(
            name: name, partitions: 1, level: level, retention: retention)
        let info = try #require(
            fixture.client.ask(.queueCreate, request, reply: QueueInfo.self))
        #expect(info.retention == retention)
        return try #require(info.partitions.first).id
    }

    private func describe(_ fixture: Fixture, _ name: String = "orders") throws -> QueueInfo {
        try #require(
            fixture.client.ask(.queueDescribe, QueueNameRequest(name: name), reply: QueueInfo.self))
    }
    private func partition(_ fixture: Fixture, _ name: String = "orders") throws -> PartitionInfo {
        try #require(describe(fixture, name).partitions.first)
    }

    /// What a reader gets from the start on, held against what `queue info` says.
    private func checkCounts(_ fixture: Fixture, _ name: String = "orders") throws {
        let info = try partition(fixture, name)
        let reader = try fixture.connect("counter")
        _ = try #require(reader.subscribe(name, stream: 1))
        fixture.shard.run(steps: 2000) {
            reader.delivered.last.map { $0.offset + 1 == info.endOffset } ?? (info.records == 0)
        }
        let read = reader.delivered.filter { $0.offset >= info.startOffset }
        #expect(read.count == Int(info.records))
        #expect(reader.batchBytes[info.id] ?? 0 == info.bytes)
        fixture.shard.disconnect(reader.index)
    }

    // MARK: the rule, at its edges

    /// Four segments of 10 records and 1,000 bytes, and a tail of 5 and 500; times 100, 200, 300, 400.
    private func partition(_ retention: Retention) -> Partition {
        var log = PartitionLog(partition: 1, startOffset: 0, endOffset: 45, epoch: 1)
        for number in UInt64(0)..<4 {
            var segment = SegmentInfo(baseOffset: number * 10, term: 1)
            segment.endOffset = number * 10 + 10
            segment.batchBytes = 1000
            segment.lastTime = (number + 1) * .seconds(100)
            log.segments.append(segment)
        }
        log.bytes = 4500
        log.lastAppendTime = .seconds(450)
        var partition = Partition(log: log, queue: 1, index: 0, level: .synced)
        partition.retention = retention
        return partition
    }

    private func start(_ retention: Retention, at seconds: UInt64 = 450) -> UInt64 {
        partition(retention).retainedStart(
            time: WallTime(nanoseconds: .seconds(seconds)), term: 9)
    }

    @Test("by bytes a segment goes when what is left reaches the limit still")
    func bytes() {
        for (limit, expected) in [
            (UInt64(0), UInt64(0)), (1, 40), (500, 40), (501, 30), (1500, 30), (1501, 20),
            (3500, 10), (3501, 0), (4500, 0), (.max - 1, 0),
        ] {
            #expect(start(Retention(bytes: limit)) == expected, "\(limit)")
        }
    }

    @Test("by records a segment goes when as many as the limit are left")
    func records() {
        for (limit, expected) in [
            (UInt64(0), UInt64(0)), (1, 40), (5, 40), (6, 30), (15, 30), (16, 20), (35, 10),
            (36, 0),
            (.max - 1, 0),
        ] {
            #expect(start(Retention(records: limit)) == expected, "\(limit)")
        }
    }

    @Test("by age a segment goes when its last record is older, and all when the newest is")
    func age() {
        let hundred = Retention(ageMilliseconds: 100_000)
        for (time, expected) in [
            (UInt64(200), UInt64(0)), (201, 10), (300, 10), (301, 20), (500, 30), (501, 40),
            (550, 40), (551, 45),
        ] {
            #expect(start(hundred, at: time) == expected, "\(time)")
        }
        // The longest age there is does not wrap.
        let longest = Retention(ageMilliseconds: 3_153_600_000_000)
        #expect(start(longest, at: 3_153_600_100) == 0)
        #expect(start(longest, at: 3_153_600_101) == 10)
    }

    @Test("of several limits the first that is exceeded counts")
    func several() {
        #expect(start(Retention(bytes: 3501, records: 16)) == 20)
        #expect(start(Retention(bytes: 1501, ageMilliseconds: 100_000, records: 36), at: 301) == 20)
        #expect(start(Retention(bytes: 3501, ageMilliseconds: 100_000, records: 36), at: 501) == 40)
    }

    @Test("the active segment stays, and so does what is not committed")
    func active() {
        var busy = partition(Retention(records: 1))
        busy.file.state = .ready
        busy.file.nextOffset = 30
        #expect(busy.retainedStart(time: WallTime(nanoseconds: 0), term: 1) == 30)
        // A file of another term is not the one that is open.
        #expect(busy.retainedStart(time: WallTime(nanoseconds: 0), term: 2) == 40)
    }

    @Test("lost offsets are no records")
    func lost() {
        var partition = partition(Retention(records: 5))
        partition.lostRanges = [32..<45]
        #expect(partition.records == 32)
        // Without the first three segments two records are left: too few.
        #expect(partition.retainedStart(time: WallTime(nanoseconds: 0), term: 9) == 20)
        partition.moveStart(to: 35)
        #expect(partition.records == 0)
        #expect(partition.lostRecords(in: 0..<45) == 13)
        partition.moveStart(to: 45)
        #expect(partition.lostRanges.isEmpty)
    }

    // MARK: the clock

    private func instant(_ monotonic: UInt64, _ wall: UInt64) -> Instant {
        Instant(
            monotonic: MonotonicTime(nanoseconds: .seconds(monotonic)),
            wall: WallTime(nanoseconds: .seconds(wall)))
    }

    @Test("a step forward of a day is taken in within an hour, a step back at once")
    func clockSteps() {
        let day: UInt64 = 86_400
        var clock = RetentionClock(
            time: WallTime(nanoseconds: .seconds(1000)), now: instant(10, 1000))
        clock.advance(to: instant(20, 1010))
        #expect(clock.time.nanoseconds == .seconds(1010))
        // A step of a day: a second later the time is 24 s later, not a day.
        clock.advance(to: instant(21, 1011 + day))
        #expect(clock.time.nanoseconds == .seconds(1034))
        #expect(clock.behind(instant(21, 1011 + day)) == .seconds(day - 23))
        var passed: UInt64 = 21
        while clock.behind(instant(passed, 990 + passed + day)) > 0 {
            passed += 1
            clock.advance(to: instant(passed, 990 + passed + day))
        }
        #expect(passed > 3600 && passed < 3800)
        clock.advance(to: instant(passed + 1, 500))
        #expect(clock.time.nanoseconds == .seconds(500))
        // No time passes: nothing is gained.
        clock.advance(to: instant(passed + 1, 5000))
        #expect(clock.time.nanoseconds == .seconds(500))
    }

    @Test("after a long rest a broker's records do not all expire at once")
    func rest() {
        let clock = RetentionClock(
            time: WallTime(nanoseconds: .seconds(1000)), now: instant(5, 1_000_000))
        #expect(clock.time.nanoseconds == .seconds(1000))
        let ahead = RetentionClock(
            time: WallTime(nanoseconds: .seconds(9000)), now: instant(5, 1000))
        #expect(ahead.time.nanoseconds == .seconds(1000))
    }

    @Test("a step of the wall clock is spoken of, and removes nothing at once")
    func stepUnderLoad() throws {
        let fixture = try Fixture(settings: Self.small)
        let partition = try create(fixture, keeping: Retention(ageMilliseconds: 3_600_000))
        for round in 0..<12 {
            try fixture.publish(8, to: partition, bytes: 900, from: 8 * round)
            fixture.shard.pass(milliseconds: 200)
        }
        fixture.shard.pass(milliseconds: 12_000)
        let before = try self.partition(fixture)
        #expect(before.segments >= 2 && before.startOffset == 0)
        fixture.shard.stepWall(by: 2 * 3_600_000_000_000)
        fixture.shard.pass(milliseconds: 20_000)
        #expect(try self.partition(fixture).startOffset == 0)
        #expect(
            fixture.shard.machine.events.contains {
                if case .clockStepped = $0 { true } else { false }
            })
        // Two hours are taken in within five minutes.
        fixture.shard.pass(milliseconds: 300_000)
        let after = try self.partition(fixture)
        #expect(after.startOffset == after.endOffset && after.records == 0 && after.bytes == 0)
    }

    // MARK: on a broker

    @Test("old segments go, what is kept is at least the limit, and the counts are exact")
    func live() throws {
        let fixture = try Fixture(settings: Self.small)
        let orders = try create(fixture, keeping: Retention(records: 50))
        let ticks = try create(fixture, "ticks", keeping: Retention(bytes: 60_000), level: .memory)
        for number in 0..<240 {
            try fixture.publish(batch(["\(number)"], bytes: 900), to: orders)
            try fixture.publish(batch(["\(number)"], bytes: 900), to: ticks)
        }
        fixture.shard.pass(milliseconds: 500)
        let kept = try partition(fixture)
        #expect(kept.startOffset > 100 && kept.endOffset == 240)
        #expect(kept.records >= 50 && kept.records == 240 - kept.startOffset)
        let bytes = try partition(fixture, "ticks")
        #expect(bytes.startOffset > 50 && bytes.bytes >= 60_000 && bytes.bytes < 130_000)
        try checkCounts(fixture)
        try checkCounts(fixture, "ticks")
        let names = fixture.shard.disk.allNames.filter { $0.directory == .segments }
        #expect(names.count == Int(kept.segments + bytes.segments))
        #expect(fixture.counters.removedSegments > 4)
        #expect(fixture.counters.removedRecords == kept.startOffset + bytes.startOffset)
        var random = SeededRandom(seed: 3)
        for disk in [
            fixture.shard.disk.afterPowerCut(.none, &random), fixture.shard.disk.afterKill(&random),
        ] {
            let after = try Fixture(disk: disk, settings: Self.small)
            #expect(try partition(after).startOffset == kept.startOffset)
            #expect(try describe(after).retention == Retention(records: 50))
            try checkCounts(after)
        }
    }

    @Test("a slow partition's records go by age too, though nothing is ever full")
    func quietByAge() throws {
        let fixture = try Fixture(settings: Self.small)
        let orders = try create(fixture, keeping: Retention(ageMilliseconds: 60_000))
        try fixture.publish(3, to: orders)
        fixture.shard.pass(milliseconds: 50_000)
        #expect(try partition(fixture).records == 3)
        // One record every 5 s: nothing is ever full.
        for number in 0..<40 {
            try fixture.publish(batch(["\(number)"]), to: orders)
            fixture.shard.pass(milliseconds: 5_000)
        }
        let kept = try partition(fixture)
        #expect(kept.records >= 12 && kept.records <= 20, "\(kept.records) of 12 to 18")
        try checkCounts(fixture)
        fixture.shard.pass(milliseconds: 62_000)
        let gone = try partition(fixture)
        #expect(gone.startOffset == 43 && gone.records == 0 && gone.bytes == 0)
        fixture.shard.pass(milliseconds: 12_000)
        #expect(fixture.shard.disk.allNames.filter { $0.directory == .segments }.isEmpty)
        try fixture.publish(batch(["on"]), to: orders)
        try checkCounts(fixture)
    }

    @Test("alter changes one limit alone; what is too much then goes soon")
    func alter() throws {
        let fixture = try Fixture(settings: Self.small)
        let orders = try create(fixture, keeping: .keepAll)
        try fixture.publish(120, to: orders, bytes: 900)
        fixture.shard.pass(milliseconds: 500)
        #expect(try partition(fixture).startOffset == 0)
        func alter(_ retention: Retention) throws -> StatusCode {
            try fixture.refusal(
                .queueAlter, QueueAlterRequest(name: "orders", labels: [], retention: retention))
        }
        #expect(try alter(Retention(bytes: .max, ageMilliseconds: .max, records: 20)) == .ok)
        #expect(try describe(fixture).retention == Retention(records: 20))
        fixture.shard.pass(milliseconds: 10)
        let start = try partition(fixture).startOffset
        #expect(start > 40 && start <= 100)
        #expect(try alter(Retention(bytes: 5, ageMilliseconds: .max, records: .max)) == .ok)
        #expect(try describe(fixture).retention == Retention(bytes: 5, records: 20))
        #expect(
            try alter(Retention(bytes: .max, ageMilliseconds: 999, records: .max)) == .badRequest)
        #expect(try alter(.unchanged) == .ok)
        #expect(try describe(fixture).retention == Retention(bytes: 5, records: 20))
        let wrong = QueueCreateRequest(
            name: "wrong", partitions: 1, level: .synced, retention: Retention(bytes: .max))
        #expect(try fixture.refusal(.queueCreate, wrong) == .badRequest)
        let list = try #require(
            fixture.client.ask(.queueList, QueueListRequest(), reply: QueueListReply.self))
        #expect(list.queues.map(\.retention) == [Retention(bytes: 5, records: 20)])
    }

    @Test("a group that is too slow goes on at the start; what it missed is counted")
    func slowGroup() throws {
        let fixture = try Fixture(settings: Self.small)
        let orders = try create(fixture, keeping: Retention(records: 20))
        let slow = try fixture.connect("slow")
        _ = try #require(slow.subscribe("orders", group: "desk", stream: 1, credit: 2))
        try fixture.publish(200, to: orders, bytes: 900)
        fixture.shard.pass(milliseconds: 20)
        let start = try partition(fixture).startOffset
        #expect(start > 100)
        let first = try #require(slow.skipped.first)
        #expect(first.from == 2 && slow.skipped.last?.to == start)
        func group(_ fixture: Fixture) throws -> GroupInfo {
            try #require(
                fixture.client.ask(
                    .groupDescribe, GroupDescribeRequest(queue: "orders", group: "desk"),
                    reply: GroupInfo.self))
        }
        let info = try group(fixture)
        #expect(info.cursors.first?.ackFloor == start)
        #expect(info.skippedRecords == [start])
        #expect(
            fixture.shard.machine.events.contains {
                if case .groupSkipped(let what) = $0 {
                    what.contains("group desk of queue orders") && what.contains("partition 0")
                } else {
                    false
                }
            })
        // An ack for what it had got changes nothing, and is answered.
        let ack = slow.ask(
            .ack, Ack(partition: orders, epoch: 1, offset: 2), stream: 1, reply: Ack.self)
        #expect(ack?.offset == start)
        slow.request(.credit, Credit(records: .max, bytes: .max), stream: 1)
        fixture.shard.run(steps: 500) { slow.delivered.last?.offset == 199 }
        #expect(slow.delivered.map(\.offset) == [0, 1] + Array(start..<200))
        let report = fixture.shard.machine.report()
        #expect(report.cursors.first?.skippedRecords == start)
        #expect(report.counters.skippedRecords == start - 2)
        fixture.shard.pass(milliseconds: 11_000)
        var random = SeededRandom(seed: 5)
        let after = try Fixture(
            disk: fixture.shard.disk.afterPowerCut(.none, &random), settings: Self.small)
        #expect(try group(after).skippedRecords == [start])
    }

    @Test("readers in removed records go on at the start, and new ones begin there")
    func readers() throws {
        let fixture = try Fixture {
            Self.small(&$0)
            $0.limits.tailBytesMax = 64 * 1024
        }
        let orders = try create(fixture, keeping: .keepAll)
        try fixture.publish(150, to: orders, bytes: 900)
        let stands = try fixture.connect("stands")
        _ = try #require(stands.subscribe("orders", stream: 1, credit: 3))
        let ahead = try fixture.connect("ahead")
        _ = try #require(ahead.subscribe("orders", start: .offset(149), stream: 1))
        fixture.shard.run(steps: 500) { stands.delivered.count == 3 && ahead.delivered.count == 1 }
        #expect(
            try fixture.refusal(.queuePurge, QueuePurgeRequest(name: "orders", before: 120)) == .ok)
        #expect(stands.skipped == [Skipped(partition: orders, from: 3, to: 120)])
        #expect(ahead.skipped.isEmpty)
        stands.request(.credit, Credit(records: .max, bytes: .max), stream: 1)
        let early = try fixture.connect("early")
        let assigned = early.subscribe("orders", start: .offset(5), stream: 1)
        #expect(assigned?.partitions.map(\.nextOffset) == [120])
        let timed = try fixture.connect("timed")
        #expect(
            timed.subscribe("orders", start: .time(1), stream: 1)?.partitions.map(\.nextOffset)
                == [120])
        fixture.shard.run(steps: 1000) {
            [stands, early, timed].allSatisfy { $0.delivered.last?.offset == 149 }
        }
        #expect(stands.delivered.map(\.offset) == [0, 1, 2] + Array(120..<150))
        #expect(early.delivered.map(\.offset) == Array(120..<150))
        #expect(timed.delivered.map(\.offset) == Array(120..<150))
        #expect(fixture.counters.damagedChunks == 0)
    }

    // MARK: purge

    @Test("a purge removes what is committed, at once and for good; its journal is free again")
    func purge() throws {
        let fixture = try Fixture(settings: Self.small)
        let partitions = try fixture.create("orders", partitions: 2)
        for partition in partitions { try fixture.publish(60, to: partition, bytes: 900) }
        let before = try describe(fixture)
        let request = QueuePurgeRequest(
            name: "orders", partition: PartitionID(rawValue: partitions[1]))
        let info = try #require(
            fixture.client.ask(.queuePurge, request, reply: QueueInfo.self))
        #expect(info.partitions[0] == before.partitions[0])
        #expect(info.partitions[1].startOffset == 60 && info.partitions[1].records == 0)
        #expect(info.partitions[1].bytes == 0)
        #expect(info.records == 60 && info.bytes == before.partitions[0].bytes)
        fixture.shard.pass(milliseconds: 30)
        let left = try describe(fixture).partitions[1]
        #expect(left.segments == 0 && left.segmentOffset == 60)
        #expect(
            !fixture.shard.disk.allNames.contains {
                if case .segment(partitions[1], _, _) = $0 { true } else { false }
            })
        // Again, and beyond the end: nothing more to do.
        let again = fixture.client.ask(
            .queuePurge, QueuePurgeRequest(name: "orders", before: 0), reply: QueueInfo.self)
        #expect(again?.records == 60)
        try fixture.publish(batch(["61"]), to: partitions[1])
        var random = SeededRandom(seed: 3)
        for survival in [SimulatedDisk.Survival.none, .all] {
            let after = try Fixture(
                disk: fixture.shard.disk.afterPowerCut(survival, &random), settings: Self.small)
            let found = try describe(after)
            #expect(found.partitions.map(\.startOffset) == [0, 60])
            #expect(found.partitions.map(\.records) == [60, 1])
            #expect(try after.publish(batch(["62"]), to: partitions[1]).baseOffset == 61)
        }
    }

    @Test("a purge is refused by name, and needs a queue and its partition")
    func purgeRefusals() throws {
        let fixture = try Fixture()
        let orders = try fixture.create("orders")[0]
        let others = try fixture.create("others")[0]
        #expect(
            try fixture.refusal(.queuePurge, QueuePurgeRequest(name: "nothing")) == .queueNotFound)
        #expect(
            try fixture.refusal(
                .queuePurge,
                QueuePurgeRequest(name: "orders", partition: PartitionID(rawValue: others)))
                == .partitionNotFound)
        #expect(try fixture.refusal(.queuePurge, Empty()) == .badRequest)
        // Of an empty queue: nothing to do.
        #expect(try fixture.refusal(.queuePurge, QueuePurgeRequest(name: "orders")) == .ok)
        try fixture.publish(1, to: orders)
    }

    @Test("a purge in the middle of a batch moves the start there; a retry is still known")
    func purgeInBatch() throws {
        let fixture = try Fixture(settings: Self.small)
        let orders = try fixture.create("orders")[0]
        let producer = try #require(
            fixture.client.ask(
                .producerOpen, ProducerOpenRequest(name: ""), reply: ProducerOpenReply.self))
        let sent = batch(
            ["a", "b", "c", "d"], producer: producer.producerID, epoch: producer.epoch)
        try fixture.publish(sent, to: orders)
        let whole = try partition(fixture).bytes
        #expect(
            try fixture.refusal(.queuePurge, QueuePurgeRequest(name: "orders", before: 3)) == .ok)
        let info = try partition(fixture)
        #expect(info.startOffset == 3 && info.records == 1 && info.bytes == whole)
        let reader = try fixture.connect("reader")
        let assigned = reader.subscribe("orders", stream: 1)
        #expect(assigned?.partitions.map(\.nextOffset) == [3])
        fixture.shard.pass(milliseconds: 5)
        #expect(reader.delivered.map(\.offset) == [0, 1, 2, 3])
        #expect(try fixture.refusal(.queuePurge, QueuePurgeRequest(name: "orders")) == .ok)
        let retry = try fixture.publish(sent, to: orders)
        #expect(retry.flags & ConfirmEntry.duplicateFlag != 0)
        #expect(try partition(fixture).records == 0)
    }

    @Test("a purge does not wait for the disk, nor take what is not committed")
    func purgeBusy() throws {
        let fixture = try Fixture {
            Self.small(&$0)
            $0.segmentDelay = 50_000_000
        }
        let orders = try fixture.create("orders")[0]
        try fixture.publish(30, to: orders, bytes: 900)
        #expect(fixture.shard.machine.counters.chunksWritten == 0)
        // Its chunks are being written, and one publish is on its way.
        let late = fixture.client.publish(batch(["late"]), partition: orders)
        let info = try #require(
            fixture.client.ask(
                .queuePurge, QueuePurgeRequest(name: "orders"), reply: QueueInfo.self))
        #expect(info.partitions[0].startOffset == 30)
        #expect(fixture.client.confirm(of: late)?.baseOffset == 30)
        fixture.shard.pass(milliseconds: 12_000)
        try checkCounts(fixture)
        #expect(try partition(fixture).records == 1)
        #expect(try fixture.refusal(.queuePurge, QueuePurgeRequest(name: "orders")) == .ok)
        fixture.shard.pass(milliseconds: 2_000)
        #expect(try partition(fixture).segments == 0)
    }
}
