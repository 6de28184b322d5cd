import BrokerBasics
import BrokerCore
import BrokerShard
import BrokerTestSupport
import LogStorage
import Testing
import WireProtocol

// Checksums are right in all of these: what is tried is what they vouch for.
@Suite("Forged directories")
struct ForgedDirectoryTests {
    private func used() throws -> DirectoryImage { try #require(DirectoryImage.used()) }

    private func start(_ image: DirectoryImage) throws(RecoveryError) -> SimulatedShard {
        try SimulatedShard(
            disk: SimulatedDisk(files: image.files), settings: DirectoryImage.settings, seed: 1,
            wall: 1_700_000_100_000_000_000)
    }

    /// - Returns: why recovery stops, `nil` when it does not.
    private func refusal(_ image: DirectoryImage) -> String? {
        do throws(RecoveryError) {
            _ = try start(image)
            return nil
        } catch {
            return error.description
        }
    }

    private static func littleEndian(_ value: UInt64, _ count: Int = 8) -> [UInt8] {
        (0..<count).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) }
    }

    @Test("the directory that the others forge is read back whole")
    func untouched() throws {
        let image = try used()
        #expect(image.groups.count > 5)
        #expect(image.chunks.count > 5)
        let shard = try start(image)
        shard.run { shard.machine.isReady }
        let client = try #require(shard.connect())
        for (stream, name) in ["orders", "ticks", "fills", "trades"].enumerated() {
            _ = try #require(client.subscribe(name, stream: UInt32(stream)))
        }
        let published = image.values.values.reduce(0) { $0 + $1.count }
        shard.run(steps: 3000) { client.delivered.count >= published - 8 }
        shard.pass(milliseconds: 5)
        for record in client.delivered {
            #expect(record.value == image.values[record.partition]?[Int(record.offset)])
        }
        let synced = client.delivered.count { image.synced.contains($0.partition) }
        #expect(synced == image.synced.reduce(0) { $0 + (image.values[$1]?.count ?? 0) })
    }

    /// Places in the payload of the used directory's checkpoint, as `DurableState.snapshot` lays
    /// it out, and numbers that no broker writes there.
    private static let checkpointLies: [(what: String, at: Int, bytes: [UInt8])] = [
        ("term", 4, littleEndian(.max)),
        ("start of the term", 12, littleEndian(.max)),
        ("journal position", 20, littleEndian(.max - 4095)),
        ("replay position", 28, littleEndian(.max - 4095)),
        ("replay position inside of a block", 28, littleEndian(1)),
        ("next queue", 53, littleEndian(.max, 4)),
        ("next partition", 57, littleEndian(.max, 4)),
        ("next producer", 61, littleEndian(.max)),
        ("next group", 69, littleEndian(.max, 4)),
        ("queue id", 77, littleEndian(.max, 4)),
        ("partition of a queue", 120, littleEndian(.max, 4)),
        ("partition id", 154, littleEndian(0xFFFF_FF00, 4)),
        ("epoch", 158, littleEndian(.max, 4)),
        ("start offset", 162, littleEndian(.max)),
        ("end offset", 170, littleEndian(.max)),
        ("reservation", 178, littleEndian(.max)),
        ("lost records", 186, littleEndian(.max)),
        ("bytes", 203, littleEndian(.max)),
        ("end of the segments", 211, littleEndian(.max)),
        ("base of a segment", 227, littleEndian(.max)),
        ("term of a segment", 235, littleEndian(.max)),
        ("end of a segment", 243, littleEndian(.max)),
        ("bytes of a segment", 251, littleEndian(4097)),
        ("seal", 259, littleEndian(.max)),
        ("bytes of a segment's batches", 275, littleEndian(.max)),
    ]

    @Test(
        "a checkpoint that no broker wrote is refused by name, whatever its checksum says",
        arguments: checkpointLies.indices)
    func checkpoint(number: Int) throws {
        let lie = Self.checkpointLies[number]
        var image = try used()
        image.put(lie.bytes, at: CheckpointFile.headerBytes + lie.at, in: image.checkpoint)
        image.sealCheckpoint()
        let reason = try #require(refusal(image), "\(lie.what)")
        #expect(reason.contains(image.checkpoint.path), "\(lie.what): \(reason)")
    }

    /// The bytes of one journal entry.
    private static func entry(
        _ kind: JournalEntryKind, object: UInt32 = 0, _ payload: [UInt8]
    ) -> [UInt8] {
        var builder = ByteBuilder()
        builder.put(UInt32(payload.count))
        builder.put(kind.rawValue)
        builder.put(UInt8(0))
        builder.put(UInt16(0))
        builder.put(object)
        builder.put(UInt32(0))
        payload.withUnsafeBytes { builder.put(raw: $0) }
        for _ in payload.count..<payload.count.roundedUp(to: 8) { builder.put(UInt8(0)) }
        return builder.bytes
    }

    private static func entry(_ change: StateChange) -> [UInt8] {
        entry(change.kind, change.payload)
    }

    private static func queue(
        _ id: UInt32, _ partitions: [UInt32], named name: String = "new"
    ) -> Queue {
        Queue(
            id: id, name: name, level: .synced, createdAt: 1, labels: [], partitions: partitions)
    }

    private static let changes: [StateChange] = [
        .queueCreated(queue(.max, [5])), .queueCreated(queue(5, [.max])),
        .queueCreated(queue(5, [0xFFFF_FF00])), .queueCreated(queue(5, [])),
        .queueCreated(queue(5, [6, 6])), .queueCreated(queue(5, [1])),
        .queueCreated(queue(1, [5])), .queueCreated(queue(5, [5], named: "orders")),
        .queueAltered(queue(9, [5])), .queueAltered(queue(1, [5], named: "orders")),
        .producerOpened(Producer(id: .max, epoch: 1, name: "", lastSeen: 1)),
        .producerOpened(Producer(id: 0, epoch: 1, name: "", lastSeen: 1)),
        .groupCreated(id: .max, queue: 1, name: "other", cursors: [0]),
        .groupCreated(id: 5, queue: 1, name: "other", cursors: []),
        .groupCreated(id: 5, queue: 1, name: "other", cursors: [0, 0]),
        .groupCreated(id: 5, queue: 9, name: "other", cursors: [0]),
        .groupCreated(id: 5, queue: 1, name: "other", cursors: [.max]),
        .groupCreated(id: 5, queue: 1, name: "desk", cursors: [0]),
        .cursor(group: 1, partitionIndex: 0, offset: .max),
        .reservation(partition: 2, end: .max), .startMoved(partition: 1, offset: .max),
    ]

    @Test(
        "a change in the journal that no broker made is refused by name",
        arguments: changes.indices)
    func journal(number: Int) throws {
        let change = Self.changes[number]
        var image = try used()
        image.appendGroup(Self.entry(change), count: 1)
        let reason = try #require(refusal(image), "\(change)")
        #expect(reason.contains("journal/0"), "\(change): \(reason)")
    }

    @Test("a start that lies beyond all that was published to a synced queue is refused")
    func startBeyondEnd() throws {
        var image = try used()
        image.appendGroup(
            Self.entry(StateChange.startMoved(partition: 1, offset: 1 << 40)), count: 1)
        let reason = try #require(refusal(image))
        #expect(reason.contains("partition 1 are in no segment and not in the journal"))
    }

    @Test(
        "a partition on a shard that there is not is refused by name",
        arguments: [1, 2, 9] as [UInt16])
    func placedNowhere(shard: UInt16) throws {
        var image = try used()
        let queue = Queue(
            id: 5, name: "new", level: .synced, createdAt: 1, labels: [], partitions: [5],
            shards: [shard])
        image.appendGroup(Self.entry(StateChange.queueCreated(queue)), count: 1)
        let reason = try #require(refusal(image))
        #expect(reason.contains("partition 5 lives on shard \(shard), and there are 1"), "\(reason)")
    }

    @Test("a lawful change behind the journal's end is taken in")
    func lawfulChange() throws {
        var image = try used()
        let lawful: [StateChange] = [
            .queueCreated(Self.queue(5, [5, 6])),
            .queueAltered(Self.queue(5, [5, 6])),
            .producerOpened(Producer(id: 9, epoch: 1, name: "p", lastSeen: 1)),
            .groupCreated(id: 5, queue: 5, name: "desk", cursors: [0, 0]),
            .cursor(group: 5, partitionIndex: 1, offset: 0),
            .cursor(group: 99, partitionIndex: 7, offset: 3), .producerExpired(77),
            .queueDeleted(5), .queueDeleted(5),
        ]
        image.appendGroup(lawful.flatMap { Self.entry($0) }, count: lawful.count)
        #expect(refusal(image) == nil)
    }

    @Test("a batch in the journal of a memory queue, or to the end of all numbers, is refused")
    func journalBatch() throws {
        for (partition, range) in [(UInt32(2), UInt64(52)..<60), (1, 52 ..< .max)] {
            var image = try used()
            let lost = StoredBatch.lost(
                range, partition: PartitionID(rawValue: partition), epoch: 1, appendTime: 1)
            image.appendGroup(Self.entry(.batch, object: partition, lost), count: 1)
            let reason = try #require(refusal(image), "partition \(partition)")
            #expect(reason.contains("partition \(partition) at position"), "\(reason)")
        }
    }

    /// Places in the first batch of a chunk, and what makes it reach out of its chunk.
    private static let batchLies: [(what: String, at: Int, bytes: [UInt8])] = [
        ("length beyond the chunk", 24, littleEndian(1 << 30, 4)),
        ("length of nothing", 24, littleEndian(0, 4)),
        ("a lost range without an end", 33, [1]),
        ("base offset", 0, littleEndian(7)),
        ("records", 34, littleEndian(9, 2)),
    ]

    @Test(
        "a chunk that batches do not fill ends the subscription, and nothing of it is served",
        arguments: batchLies.indices)
    func chunk(number: Int) throws {
        let lie = Self.batchLies[number]
        var image = try used()
        let first = try #require(
            image.chunks.first {
                if case .segment(1, 0, _) = $0.file { $0.at == 4096 } else { false }
            })
        image.put(lie.bytes, at: first.at + ChunkHeader.byteCount + lie.at, in: first.file)
        image.sealChunk(first, withBatches: false)
        let shard = try start(image)
        shard.run { shard.machine.isReady }
        let client = try #require(shard.connect())
        _ = try #require(client.subscribe("orders", stream: 1))
        shard.run(steps: 1000) { !client.pushes.isEmpty }
        let push = try #require(client.pushes.first, "\(lie.what)")
        #expect(StatusCode(rawValue: push.header.status) == .dataDamaged)
        #expect(try Refusal(body: push.body).message.contains(first.file.path))
        #expect(client.delivered.isEmpty)
        #expect(client.ask(.ping, Empty(), reply: Empty.self) != nil)
    }

    @Test("of a memory queue what a chunk that batches do not fill holds is lost, and said to be")
    func followedChunk() throws {
        for lie in Self.batchLies {
            var image = try used()
            // The last chunk was written after the checkpoint.
            let last = try #require(
                image.chunks.last { if case .segment(2, _, _) = $0.file { true } else { false } })
            image.put(lie.bytes, at: last.at + ChunkHeader.byteCount + lie.at, in: last.file)
            image.sealChunk(last, withBatches: false)
            let shard = try start(image)
            #expect(
                shard.report.lostRanges.count { $0.contains("partition 2:") } == 1, "\(lie.what)")
        }
    }

    @Test("an index that points out of its segment is not used: every record is there")
    func seal() throws {
        var image = try used()
        let seals = image.chunks.filter { chunk in
            image.files[chunk.file]?[chunk.at + 12] == UInt8(ChunkHeader.sealFlag)
        }
        try #require(!seals.isEmpty)
        for seal in seals {
            for place in [0, 8] {
                image.put(
                    Self.littleEndian(.max - 7), at: seal.at + ChunkHeader.byteCount + place,
                    in: seal.file)
            }
            image.sealChunk(seal, withBatches: false)
        }
        let shard = try start(image)
        shard.run { shard.machine.isReady }
        let client = try #require(shard.connect())
        _ = try #require(client.subscribe("orders", start: .time(1), stream: 1))
        let count = try #require(image.values[1]?.count)
        shard.run(steps: 2000) { client.delivered.count == count }
        #expect(client.delivered.map(\.offset) == (0..<UInt64(count)).map { $0 })
        #expect(client.pushes.isEmpty)
    }
}
