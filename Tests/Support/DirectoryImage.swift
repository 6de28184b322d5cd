internal import BrokerBasics
internal import BrokerShard
package import LogStorage
internal import WireProtocol

/// The files of a data directory in memory, and where in them lies what has a checksum.
package struct DirectoryImage {
    /// A group of the journal, a chunk or seal of a segment.
    package struct Part {
        package var file: FileName
        package var at: Int
        package var bytes: Int
    }

    package var files: [FileName: [UInt8]] = [:]
    /// In the order of their positions.
    package private(set) var groups: [Part] = []
    package private(set) var chunks: [Part] = []
    package private(set) var segments: [FileName] = []
    /// As they were: an edit may take one away.
    package private(set) var journals: [FileName] = []
    package private(set) var checkpoint = FileName.checkpoint(0)
    /// What was published, by partition; the place is the offset.
    package private(set) var values: [UInt32: [[UInt8]]] = [:]
    /// Partitions of queues at `synced`: nothing of theirs may be lost.
    package private(set) var synced: Set<UInt32> = []

    /// A broker that was used and lost its power, everything that it wrote being on stable storage.
    ///
    /// Two queues at `synced`, one at `memory` and one at `written`, a named producer that numbers its batches, a group
    /// with cursors, a checkpoint, segments that are sealed and one that is not, and records that only
    /// the journal has.
    package static func used() -> DirectoryImage? {
        var image = DirectoryImage()
        var settings = Self.settings
        settings.latencyMax = 50_000
        guard let shard = try? SimulatedShard(disk: SimulatedDisk(), settings: settings, seed: 1),
            shard.run(until: { shard.machine.isReady }), let client = shard.connect()
        else { return nil }
        for (name, level) in [
            ("orders", DurabilityLevel.synced), ("ticks", .memory), ("fills", .synced),
            ("trades", .written),
        ] {
            let queue = client.ask(
                .queueCreate,
                QueueCreateRequest(
                    name: name, partitions: 1, level: level,
                    labels: [Pair(name: "desk", value: name)]),
                reply: QueueInfo.self)
            guard let partition = queue?.partitions.first?.id else { return nil }
            image.values[partition] = []
            if level == .synced { image.synced.insert(partition) }
        }
        let opened = client.ask(
            .producerOpen, ProducerOpenRequest(name: "gateway"), reply: ProducerOpenReply.self)
        guard let producer = opened,
            client.subscribe("orders", group: "desk", stream: 1, credit: 5) != nil
        else { return nil }

        func publish(_ count: Int) {
            for _ in 0..<count {
                for partition in image.values.keys.sorted() {
                    let number = image.values[partition]?.count ?? 0
                    let value = [UInt8](
                        repeating: UInt8(truncatingIfNeeded: number),
                        count: number % 8 == 7 ? 1500 : 20)
                    var builder = BatchBuilder()
                    _ = builder.append(Record(value: value, timestamp: 1))
                    // The other partitions are published to without numbers.
                    let isNumbered = partition == 1 || partition == 2
                    client.publish(
                        builder.finish(
                            producer: ProducerID(rawValue: isNumbered ? producer.producerID : 0),
                            epoch: isNumbered ? producer.epoch : 0,
                            sequence: isNumbered ? UInt64(number) : 0),
                        partition: partition)
                    image.values[partition]?.append(value)
                }
                shard.pass(milliseconds: 1)
            }
        }
        publish(40)
        client.request(.ack, Ack(partition: 1, epoch: 1, offset: 3), stream: 1)
        shard.pass(milliseconds: 12_000)
        publish(10)
        shard.pass(milliseconds: 300)
        publish(2)
        shard.pass(milliseconds: 50)

        var random = SeededRandom(seed: 2)
        let disk = shard.disk.afterPowerCut(.all, &random)
        for name in disk.allNames {
            image.files[name] = disk.bytes(name, at: 0, count: disk.length(name))
        }
        image.findParts()
        return image
    }

    /// Small, so that an input is soon done with.
    package static var settings: SimulatedShard.Settings {
        var settings = SimulatedShard.Settings()
        settings.limits.connectionsMax = 4
        settings.limits.frameBytesMax = 4096
        settings.limits.sendBytesMax = 16 * 1024
        settings.limits.groupBytes = 8192
        settings.limits.stagingBytes = 32 * 1024
        settings.limits.chunkBytes = 4096
        settings.limits.tailBytesMax = 128 * 1024
        settings.limits.segmentBytes = 16 * 1024
        settings.limits.filesMax = 16
        settings.limits.reservationStep = 64
        settings.geometry = JournalGeometry(fileBytes: 64 * 1024, fileCount: 4)
        return settings
    }

    mutating func addGroup(_ part: Part) { groups.append(part) }

    private mutating func findParts() {
        var found: [(position: UInt64, part: Part)] = []
        for name in files.keys.sorted(by: { $0.path < $1.path }) {
            let bytes = files[name] ?? []
            bytes.withUnsafeBytes { buffer in
                guard let base = buffer.baseAddress else { return }
                switch name {
                case .identity, .reserve: break
                case .checkpoint: checkpoint = name
                case .journal:
                    journals.append(name)
                    for at in stride(from: 0, to: buffer.count, by: JournalGeometry.blockBytes) {
                        let claimed = JournalGroupHeader.claimedBytes(base + at)
                        guard claimed >= JournalGroupHeader.byteCount,
                            claimed <= buffer.count - at
                        else { continue }
                        found.append(
                            ((base + at).u64(16), Part(file: name, at: at, bytes: claimed)))
                    }
                case .segment:
                    segments.append(name)
                    var at = SegmentHeader.byteCount
                    while at + ChunkHeader.byteCount <= buffer.count {
                        let claimed = ChunkHeader.claimedBytes(base + at)
                        guard claimed >= ChunkHeader.byteCount, claimed <= buffer.count - at
                        else { break }
                        chunks.append(Part(file: name, at: at, bytes: claimed))
                        at += claimed.roundedUp(to: ChunkHeader.blockBytes)
                    }
                }
            }
        }
        groups = found.sorted { $0.position < $1.position }.map(\.part)
    }
}
