import BrokerBasics
import BrokerCore
import BrokerShard
import BrokerTestSupport
import Foundation
import LogStorage
import Testing
import WireProtocol

// How it works. `Tests/Golden/format-N.txt` is a data directory that a broker of format N was killed on.
// Every broker since must read it, record for record. After a change of a format on disk, and of
// `Identity.format` with it, a new one is made, and the old ones stay:
//
//     MILLRACE_GOLDEN=write swift test -c release --filter GoldenDirectory
//
// A golden directory that exists is never written over.

/// What every golden directory holds: the same story, told by the broker of its time.
private enum GoldenStory {
    static let folder = URL(fileURLWithPath: #filePath)
        .deletingLastPathComponent().deletingLastPathComponent().appendingPathComponent("Golden")
    static func path(_ format: UInt32) -> String {
        folder.appendingPathComponent("format-\(format).txt").path
    }

    static let ordersPerPartition = 40
    static let ticksBefore = 30
    static let ticksAfter = 6
    static let floors: [UInt64] = [25, 7]
    static let labels = [Pair(name: "owner", value: "desk-7"), Pair(name: "tier", value: "gold")]

    static func order(_ partition: Int, _ number: Int) -> Record {
        // Some are large, so that segments roll; zeros cost nothing in the listing.
        var value = Array("order \(partition)/\(number)".utf8)
        if number % 5 == 0 { value += [UInt8](repeating: 0, count: 6000) }
        return Record(
            value: value, key: number % 2 == 0 ? Array("k\(number % 3)".utf8) : nil,
            headers: number % 7 == 0 ? [.init(name: "side", value: Array("buy".utf8))] : [],
            trace: number % 11 == 0 ? TraceContext(bytes: (1...25).map { UInt8($0) }) : nil,
            timestamp: 1_700_000_000_000_000_000 + UInt64(number))
    }
    static func tick(_ number: Int) -> Record {
        Record(value: Array("tick \(number)".utf8) + [UInt8](repeating: 0, count: 1000))
    }

    static func settings(_ settings: inout SimulatedShard.Settings) {
        settings.geometry = JournalGeometry(fileBytes: 256 * 1024, fileCount: 2)
        settings.limits.segmentBytes = 32 * 1024
    }

    static func batch(
        _ records: [Record], _ producer: ProducerOpenReply? = nil, sequence: UInt64 = 0
    ) -> [UInt8] {
        var builder = BatchBuilder()
        for record in records { _ = builder.append(record) }
        return builder.finish(
            producer: ProducerID(rawValue: producer?.producerID ?? 0), epoch: producer?.epoch ?? 0,
            sequence: sequence)
    }

    /// The last batch of the named producer, which a retry repeats.
    static func lastOfGateway(_ producer: ProducerOpenReply) -> [UInt8] {
        let last = ordersPerPartition - 1
        return batch([order(0, last)], producer, sequence: UInt64(last))
    }

    static func tell() throws -> SimulatedDisk {
        var random = SeededRandom(seed: 11)
        let first = try Fixture(settings: settings)
        let orders = try first.create("orders", partitions: 2)
        let ticks = try first.create("ticks", level: .memory)[0]
        let gone = try first.create("gone")[0]
        _ = first.client.ask(
            .queueAlter, QueueAlterRequest(name: "orders", labels: labels), reply: QueueInfo.self)
        try first.publish(batch([order(9, 9)]), to: gone)
        _ = first.client.ask(.queueDelete, QueueNameRequest(name: "gone"), reply: Empty.self)
        func open(_ fixture: Fixture) throws -> ProducerOpenReply {
            try #require(
                fixture.client.ask(
                    .producerOpen, ProducerOpenRequest(name: "gateway"),
                    reply: ProducerOpenReply.self))
        }
        // Its second epoch is the one that publishes.
        _ = try open(first)
        let gateway = try open(first)
        _ = first.client.subscribe("orders", group: "desk", stream: 1)
        func publish(_ fixture: Fixture, _ range: Range<Int>) throws {
            for number in range {
                try fixture.publish(
                    batch([order(0, number)], gateway, sequence: UInt64(number)), to: orders[0])
                try fixture.publish(batch([order(1, number)]), to: orders[1])
            }
        }
        try publish(first, 0..<30)
        for number in 0..<ticksBefore { try first.publish(batch([tick(number)]), to: ticks) }
        for (place, floor) in floors.enumerated() {
            let ack = first.client.ask(
                .ack, Ack(partition: orders[place], epoch: 1, offset: floor), stream: 1,
                reply: Ack.self)
            try #require(ack != nil)
        }
        // Segments and a checkpoint; what comes after it is in the journal only.
        first.shard.pass(milliseconds: 11_000)
        try publish(first, 30..<36)
        first.shard.pass(milliseconds: 30)
        // A kill takes this one, and the rest of the memory queue's reservation.
        try first.publish(batch([tick(ticksBefore)]), to: ticks)
        let second = try Fixture(disk: first.shard.disk.afterKill(&random), settings: settings)
        try publish(second, 36..<ordersPerPartition)
        for number in 0..<ticksAfter {
            try second.publish(batch([tick(ticksBefore + number)]), to: ticks)
        }
        second.shard.pass(milliseconds: 300)
        return second.shard.disk.afterPowerCut(.all, &random)
    }
}

@Suite("Golden directories", .serialized)
struct GoldenDirectoryTests {
    @Test("there is a golden directory of the present format; it is made when asked for")
    func exists() throws {
        let path = GoldenStory.path(Identity.format)
        if ProcessInfo.processInfo.environment["MILLRACE_GOLDEN"] == "write",
            !FileManager.default.fileExists(atPath: path)
        {
            let listing = DirectoryListing(of: try GoldenStory.tell())
            let text =
                "# A data directory of format \(Identity.format) after a kill; see "
                + "GoldenDirectoryTests.swift. Not to be changed.\n" + listing.text
            try FileManager.default.createDirectory(
                at: GoldenStory.folder, withIntermediateDirectories: true)
            try text.write(toFile: path, atomically: true, encoding: .utf8)
        }
        #expect(
            FileManager.default.fileExists(atPath: path),
            "format \(Identity.format) has no golden directory: MILLRACE_GOLDEN=write makes it")
    }

    @Test(
        "a directory of every format is read back record for record", arguments: 1...Identity.format
    )
    func readsBack(format: UInt32) throws {
        let text = try String(contentsOfFile: GoldenStory.path(format), encoding: .utf8)
        try check(try DirectoryListing(parsing: text).disk())
    }

    @Test("what today's broker writes is what the golden directory's check expects")
    func today() throws { try check(try GoldenStory.tell()) }

    @Test("a listing is the directory, byte for byte")
    func listing() throws {
        let disk = try GoldenStory.tell()
        let listing = DirectoryListing(of: disk)
        let again = DirectoryListing(of: try DirectoryListing(parsing: listing.text).disk())
        #expect(again.text == listing.text)
        #expect(listing.files.count > 8)
        #expect(again.files.map(\.bytes) == listing.files.map(\.bytes))
    }

    private func check(_ disk: SimulatedDisk) throws {
        let fixture = try Fixture(disk: disk, settings: GoldenStory.settings)
        let report = fixture.shard.report
        // All three places are read: checkpoint, journal, segments.
        #expect(!report.isNewDirectory && !report.wasClean)
        #expect(report.journalEntries > 10)
        #expect(report.recordsReplayed >= 8)
        let client = fixture.client
        let list = client.ask(.queueList, QueueListRequest(), reply: QueueListReply.self)
        #expect(list?.queues.map(\.name) == ["orders", "ticks"])
        let orders = try #require(
            client.ask(.queueDescribe, QueueNameRequest(name: "orders"), reply: QueueInfo.self))
        #expect(orders.labels == GoldenStory.labels)
        #expect(orders.level == DurabilityLevel.synced.rawValue)
        #expect(orders.partitions.count == 2)
        #expect(orders.partitions.allSatisfy { $0.segments >= 2 })
        let wanted = 2 * GoldenStory.ordersPerPartition
        let found = try fixture.readBack("orders", records: wanted)
        #expect(found.count == wanted)
        for partition in orders.partitions {
            let records = found.filter { $0.partition == partition.id }
            #expect(records.map(\.offset) == Array(0..<UInt64(GoldenStory.ordersPerPartition)))
            for record in records {
                #expect(
                    record.record
                        == GoldenStory.order(Int(partition.index), Int(record.offset)),
                    "offset \(record.offset) of partition \(partition.index)")
            }
        }

        // The memory queue: what came before the kill, what the kill took, what came after.
        let reader = try fixture.connect("ticks")
        let ticks = try #require(
            client.ask(.queueDescribe, QueueNameRequest(name: "ticks"), reply: QueueInfo.self))
        let partition = try #require(ticks.partitions.first)
        #expect(ticks.level == DurabilityLevel.memory.rawValue)
        #expect(partition.epoch == 2 || partition.epoch == 3)
        _ = try #require(reader.subscribe("ticks", stream: 1))
        fixture.shard.run(steps: 500) {
            reader.delivered.count == GoldenStory.ticksBefore + GoldenStory.ticksAfter
        }
        fixture.shard.pass(milliseconds: 3)
        #expect(
            reader.delivered.map(\.record)
                == (0..<GoldenStory.ticksBefore + GoldenStory.ticksAfter).map(GoldenStory.tick))
        let lost = try #require(reader.lost.first)
        #expect(lost.range.lowerBound == UInt64(GoldenStory.ticksBefore))
        #expect(reader.delivered[GoldenStory.ticksBefore].offset == lost.range.upperBound)
        #expect(partition.lostRecords == reader.lost.reduce(0) { $0 + UInt64($1.range.count) })

        // The group goes on where it was, and the producer is known.
        let group = try #require(
            client.ask(
                .groupDescribe, GroupDescribeRequest(queue: "orders", group: "desk"),
                reply: GroupInfo.self))
        #expect(group.cursors.sorted { $0.index < $1.index }.map(\.ackFloor) == GoldenStory.floors)
        let gateway = ProducerOpenReply(producerID: 1, epoch: 2, expirySeconds: 0)
        let retry = try fixture.publish(
            GoldenStory.lastOfGateway(gateway), to: orders.partitions[0].id)
        #expect(retry.flags & ConfirmEntry.duplicateFlag != 0)
        #expect(retry.baseOffset == UInt64(GoldenStory.ordersPerPartition - 1))
        let fenced = ProducerOpenReply(producerID: 1, epoch: 1, expirySeconds: 0)
        #expect(
            try fixture.refusal(
                publishing: GoldenStory.lastOfGateway(fenced), to: orders.partitions[0].id)
                == .producerFenced)
        let next = try #require(
            client.ask(
                .producerOpen, ProducerOpenRequest(name: "gateway"), reply: ProducerOpenReply.self))
        #expect(next.producerID == 1 && next.epoch == 3)
    }
}
