import BrokerBasics
import BrokerCore
import BrokerShard
import BrokerTestSupport
import Glibc
import LogStorage
import Testing
import WireProtocol

// How it works. A directory that was used is flipped in one bit and started. Allowed is: recovery stops
// and names the file; or every record that comes is the one that was published, and what does not come
// is announced, by the end of the subscription as damaged, or, below `synced`, as a lost range. So no
// flip may change a byte that is delivered, or take a record in silence.

@Suite("Bit flips")
struct BitFlipTests {
    /// Where a bit may flip.
    struct Region: Hashable, CustomStringConvertible {
        enum Kind: String, CaseIterable {
            case journalHeader, journalEntries, segmentHeader, chunkHeader, chunkBatches, seal
            case checkpointHeader, checkpointPayload, identity
        }
        var kind: Kind
        var shard: UInt16
        var file: FileName
        var range: Range<Int>
        private var folder: ShardFolder { ShardFolder(shard: shard) }
        /// Below the data directory, as it has to be named.
        var path: String { folder.path(file) }
        var directory: String { folder.path(file.directory) }
        var description: String { "\(kind) \(path) \(range)" }
    }

    /// What became of a flip.
    enum Outcome: String, CaseIterable {
        /// The start stops and names a file.
        case refused
        /// Every record is there, as it was.
        case harmless
        /// A subscription ended as damaged; all that came before was right.
        case ended
        /// A memory or written queue declares a range lost.
        case lost
    }

    /// How a directory came to its end.
    private enum Ending: CaseIterable {
        case powerCut, stop
        /// A power cut of two shards, after a partition of each went to the other.
        case movesAndPowerCut

        var shards: Int { self == .movesAndPowerCut ? 2 : 1 }
    }

    /// A used directory and all that was confirmed in it.
    private struct Used {
        var disk: SimulatedDisk
        var shards: Int
        /// Partitions that went to another shard.
        var moved: Set<UInt32> = []
        var values: [UInt32: [String]] = [:]
        var synced: Set<UInt32> = []
        var regions: [Region] = []
    }

    private static func fixture(
        disk: SimulatedDisk = SimulatedDisk(), shards: Int
    ) throws -> Fixture {
        try Fixture(disk: disk) { settings in
            settings.limits.segmentBytes = 32 * 1024
            settings.shards = shards
        }
    }

    private func used(_ ending: Ending) throws -> Used {
        let fixture = try Self.fixture(shards: ending.shards)
        let shard = fixture.shard
        let orders = try fixture.create("orders")[0]
        let ticks = try fixture.create("ticks", level: .memory)[0]
        let fills = try fixture.create("fills", level: .written)[0]
        var used = Used(
            disk: shard.disk, shards: ending.shards,
            values: [orders: [], ticks: [], fills: []], synced: [orders])
        func publish(_ count: Int) throws {
            for _ in 0..<count {
                for partition in [orders, ticks, fills] {
                    let number = used.values[partition]?.count ?? 0
                    // Seven batches of ten are small.
                    let bytes = number % 10 < 7 ? 40 : 2500
                    try fixture.publish(
                        batch(["\(partition)/\(number)"], bytes: bytes), to: partition)
                    used.values[partition]?.append("\(partition)/\(number)")
                }
            }
        }
        try publish(60)
        if ending == .movesAndPowerCut {
            for (queue, partition) in [("orders", orders), ("ticks", ticks)] {
                try move(partition, of: queue, fixture)
                used.moved.insert(partition)
            }
            // What is adopted grows on at its new shard.
            try publish(20)
        }
        shard.pass(milliseconds: 12_000)
        // Less than a checkpoint's worth: the journal holds them alone.
        try publish(15)
        // The idle journal says what is durable, and the memory queue is written behind.
        shard.pass(milliseconds: 300)
        if ending == .stop {
            shard.machine.beginStop()
            shard.run { shard.machine.stage == .stopped }
        }
        var random = SeededRandom(seed: 2)
        // What completed is on the platter: flips, not losses, are looked at here.
        used.disk = shard.disk.afterPowerCut(.all, &random)
        for number in 0..<ending.shards {
            let checkpoint = shard.withMachine(number) { $0.checkpointer.lastPosition }
            used.regions += regions(
                of: used.disk, shard: UInt16(number),
                journalFrom: ending == .stop ? 0 : checkpoint)
        }
        return used
    }

    /// Moves a partition to the other of two shards.
    private func move(_ partition: UInt32, of queue: String, _ fixture: Fixture) throws {
        let info = try #require(
            fixture.client.ask(
                .queueDescribe, QueueNameRequest(name: queue), reply: QueueInfo.self))
        let from = try #require(info.partitions.first { $0.id == partition }).shard
        let moved = try #require(
            fixture.client.ask(
                .queueMove, QueueMoveRequest(partition: partition, shard: 1 - from),
                reply: QueueMoveReply.self))
        try #require(moved.from == from && moved.to == 1 - from)
    }

    /// - Parameters:
    ///   - shard: whose files; segments are among those of the first.
    ///   - journalFrom: the journal position below which nothing is flipped.
    private func regions(
        of disk: SimulatedDisk, shard: UInt16, journalFrom: UInt64
    ) -> [Region] {
        var found: [Region] = []
        func add(_ kind: Region.Kind, _ file: FileName, _ range: Range<Int>) {
            found.append(Region(kind: kind, shard: shard, file: file, range: range))
        }
        let block = JournalGeometry.blockBytes
        func u32(_ bytes: [UInt8], _ at: Int) -> Int {
            bytes.withUnsafeBytes { Int($0.loadUnaligned(fromByteOffset: at, as: UInt32.self)) }
        }
        for file in disk.names(ofShard: shard) {
            let length = disk.length(file, shard: shard)
            switch file {
            case .identity: add(.identity, file, 0..<length)
            case .reserve: break
            case .checkpoint:
                add(.checkpointHeader, file, 0..<64)
                add(.checkpointPayload, file, 64..<length)
            case .segment:
                add(.segmentHeader, file, 0..<48)
                add(.segmentHeader, file, 4080..<4096)
                var at = 4096
                while at + 64 <= length {
                    let header = disk.bytes(file, at: at, count: 64)
                    let bytes = header.withUnsafeBytes {
                        $0.baseAddress.map { ChunkHeader.claimedBytes($0) } ?? 0
                    }
                    guard bytes >= 64 else { break }
                    if UInt32(u32(header, 12)) & ChunkHeader.sealFlag != 0 {
                        add(.seal, file, at..<at + bytes)
                    } else {
                        add(.chunkHeader, file, at..<at + 64)
                        add(.chunkBatches, file, at + 64..<at + bytes)
                    }
                    at += bytes.roundedUp(to: block)
                }
            case .journal:
                for at in stride(from: 0, to: length, by: block) {
                    let header = disk.bytes(file, at: at, count: 64, shard: shard)
                    let bytes = header.withUnsafeBytes {
                        $0.baseAddress.map { JournalGroupHeader.claimedBytes($0) } ?? 0
                    }
                    let position = header.withUnsafeBytes {
                        $0.loadUnaligned(fromByteOffset: 16, as: UInt64.self)
                    }
                    guard bytes >= JournalGroupHeader.byteCount, at + bytes <= length,
                        position >= journalFrom
                    else { continue }
                    let entries = at + JournalGroupHeader.byteCount
                    add(.journalHeader, file, at..<entries)
                    if at + bytes > entries { add(.journalEntries, file, entries..<at + bytes) }
                }
            }
        }
        return found
    }

    /// Starts a flipped directory and reads all of it.
    private func outcome(_ used: Used, _ region: Region, bit: Int) throws -> Outcome {
        let disk = used.disk.copy()
        disk.flip(region.file, bit: bit, shard: region.shard)
        let fixture: Fixture
        do {
            fixture = try Self.fixture(disk: disk, shards: used.shards)
        } catch let error as RecoveryError {
            let text = error.description
            guard text.contains(region.path) || text.contains(region.directory) else {
                throw Violation("the start stops with \"\(text)\", which does not name the file")
            }
            return .refused
        }
        let client = fixture.client
        var ends: [UInt32: UInt64] = [:]
        for (stream, name) in ["orders", "ticks", "fills"].enumerated() {
            guard client.subscribe(name, stream: UInt32(stream + 1)) != nil,
                let info = client.ask(
                    .queueDescribe, QueueNameRequest(name: name), reply: QueueInfo.self)
            else { throw Violation("queue \(name) is gone") }
            for partition in info.partitions { ends[partition.id] = partition.committedOffset }
        }
        func missing() -> [UInt32: [UInt64]] {
            used.values.reduce(into: [:]) { result, item in
                let had = Set(
                    client.delivered.lazy.filter { $0.partition == item.key }.map(\.offset))
                let lost = client.lost.filter { $0.partition == item.key }.map(\.range)
                result[item.key] = (0..<UInt64(item.value.count)).filter { offset in
                    !had.contains(offset) && !lost.contains { $0.contains(offset) }
                }
            }
        }
        // Between shards each message is a step.
        fixture.shard.run(steps: used.shards > 1 ? 1500 : 300) {
            var reached: [UInt32: UInt64] = [:]
            for record in client.delivered { reached[record.partition] = record.offset + 1 }
            for lost in client.lost {
                reached[lost.partition] = max(reached[lost.partition] ?? 0, lost.range.upperBound)
            }
            return !client.pushes.isEmpty || ends.allSatisfy { reached[$0.key] ?? 0 >= $0.value }
        }
        if !client.pushes.isEmpty { fixture.shard.pass(milliseconds: 3) }
        guard client.badBatches == 0 else { throw Violation("a delivered batch does not verify") }
        for record in client.delivered {
            let values = used.values[record.partition] ?? []
            guard record.offset < UInt64(values.count),
                record.text == values[Int(record.offset)]
            else {
                throw Violation(
                    "offset \(record.offset) of partition \(record.partition) is delivered as "
                        + "\"\(record.text.prefix(40))\"")
            }
        }
        if let lost = client.lost.first(where: { used.synced.contains($0.partition) }) {
            throw Violation("a synced partition lost \(lost.range)")
        }
        let ended = Set(
            client.pushes.filter { StatusCode(rawValue: $0.header.status) == .dataDamaged }
                .map(\.header.stream))
        for push in client.pushes {
            let message = try Refusal(body: push.body).message
            guard message.contains(region.path) else {
                throw Violation("\"\(message)\" does not name \(region.path)")
            }
        }
        for (stream, partition) in used.values.keys.sorted().enumerated()
        where !ended.contains(UInt32(stream + 1)) {
            guard let first = missing()[partition]?.first else { continue }
            throw Violation("offset \(first) of partition \(partition) is missing without a word")
        }
        if !ended.isEmpty { return .ended }
        let lostOffsets = client.lost.contains { lost in
            lost.range.lowerBound < UInt64(used.values[lost.partition]?.count ?? 0)
        }
        return lostOffsets ? .lost : .harmless
    }

    @Test(
        "no flipped bit on disk changes what is delivered, or takes a confirmed record in silence")
    func everywhere() throws {
        // In all at least 10,000 places, in `make torture` 100,000.
        let isLong = getenv("MILLRACE_TORTURE") != nil
        let kinds = Ending.allCases.count * Region.Kind.allCases.count
        let flips = (isLong ? 100_000 : 10_000) / kinds + 1
        var tally: [Region.Kind: [Outcome: Int]] = [:]
        var random = SeededRandom(seed: 42)
        var places = 0
        // In files of the second shard, and in segments of partitions that moved.
        var (ofSecond, ofMoved): ([Outcome: Int], [Outcome: Int]) = ([:], [:])
        for ending in Ending.allCases {
            let used = try used(ending)
            for kind in Region.Kind.allCases {
                let regions = used.regions.filter { $0.kind == kind }
                #expect(!regions.isEmpty, "there is no \(kind)")
                guard !regions.isEmpty else { continue }
                for _ in 0..<flips {
                    let region = regions[random.below(regions.count)]
                    let bit =
                        (region.range.lowerBound + random.below(region.range.count)) * 8
                        + random.below(8)
                    places += 1
                    do {
                        let outcome = try outcome(used, region, bit: bit)
                        tally[kind, default: [:]][outcome, default: 0] += 1
                        if region.shard > 0 { ofSecond[outcome, default: 0] += 1 }
                        if case .segment(let partition, _, _) = region.file,
                            used.moved.contains(partition)
                        {
                            ofMoved[outcome, default: 0] += 1
                        }
                    } catch {
                        throw Violation("\(region), bit \(bit), \(ending): \(error)")
                    }
                }
            }
        }
        for (kind, outcomes) in tally.sorted(by: { $0.key.rawValue < $1.key.rawValue }) {
            let text = Outcome.allCases.compactMap { outcome in
                outcomes[outcome].map { "\($0) \(outcome)" }
            }
            print("bit flips: \(kind): \(text.joined(separator: ", "))")
        }
        print("bit flips: \(places) places; of the second shard \(ofSecond), moved \(ofMoved)")
        #expect(places == flips * kinds)
        // Detected where it matters, so that "harmless" is not all that was seen.
        #expect(tally[.journalHeader]?[.refused] ?? 0 > 15)
        #expect(tally[.journalEntries]?[.refused] ?? 0 > 15)
        #expect(tally[.chunkHeader]?[.ended] ?? 0 > 15)
        #expect(tally[.chunkBatches]?[.ended] ?? 0 > 15)
        #expect(tally[.checkpointPayload]?[.refused] ?? 0 > 15)
        #expect(tally[.identity]?[.refused] ?? 0 > 15)
        #expect(ofSecond[.refused] ?? 0 > 15)
        #expect(ofMoved[.ended] ?? 0 > 15)
        // A seal's index is a hint: it is rebuilt from the chunks.
        #expect(tally[.seal]?[.harmless] ?? 0 > 15)
    }
}
