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
        var file: FileName
        var range: Range<Int>
        var description: String { "\(kind) \(file.path) \(range)" }
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

    /// A used directory and all that was confirmed in it.
    private struct Used {
        var disk: SimulatedDisk
        var values: [UInt32: [String]] = [:]
        var synced: Set<UInt32> = []
        var regions: [Region] = []
    }

    private static func settings(_ settings: inout SimulatedShard.Settings) {
        settings.limits.segmentBytes = 32 * 1024
    }

    /// - Parameter stops: an orderly stop, else a power cut.
    private func used(stops: Bool) throws -> Used {
        let fixture = try Fixture(settings: Self.settings)
        let shard = fixture.shard
        let orders = try fixture.create("orders")[0]
        let ticks = try fixture.create("ticks", level: .memory)[0]
        let fills = try fixture.create("fills", level: .written)[0]
        var used = Used(
            disk: shard.disk, values: [orders: [], ticks: [], fills: []], synced: [orders])
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
        shard.pass(milliseconds: 12_000)
        // Less than a checkpoint's worth: the journal holds them alone.
        try publish(15)
        // The idle journal says what is durable, and the memory queue is written behind.
        shard.pass(milliseconds: 300)
        if stops {
            shard.machine.beginStop()
            shard.run { shard.machine.stage == .stopped }
        }
        var random = SeededRandom(seed: 2)
        // What completed is on the platter: flips, not losses, are looked at here.
        used.disk = shard.disk.afterPowerCut(.all, &random)
        let checkpoint = shard.machine.checkpointer.lastPosition
        used.regions = regions(of: used.disk, journalFrom: stops ? 0 : checkpoint)
        return used
    }

    /// - Parameter journalFrom: the journal position below which nothing is flipped.
    private func regions(of disk: SimulatedDisk, journalFrom: UInt64) -> [Region] {
        var found: [Region] = []
        let block = JournalGeometry.blockBytes
        func u32(_ bytes: [UInt8], _ at: Int) -> Int {
            bytes.withUnsafeBytes { Int($0.loadUnaligned(fromByteOffset: at, as: UInt32.self)) }
        }
        for file in disk.allNames {
            let length = disk.length(file)
            switch file {
            case .identity: found.append(Region(kind: .identity, file: file, range: 0..<length))
            case .reserve: break
            case .checkpoint:
                found.append(Region(kind: .checkpointHeader, file: file, range: 0..<64))
                found.append(Region(kind: .checkpointPayload, file: file, range: 64..<length))
            case .segment:
                found.append(Region(kind: .segmentHeader, file: file, range: 0..<48))
                found.append(Region(kind: .segmentHeader, file: file, range: 4080..<4096))
                var at = 4096
                while at + 64 <= length {
                    let header = disk.bytes(file, at: at, count: 64)
                    let bytes = header.withUnsafeBytes {
                        $0.baseAddress.map { ChunkHeader.claimedBytes($0) } ?? 0
                    }
                    guard bytes >= 64 else { break }
                    if UInt32(u32(header, 12)) & ChunkHeader.sealFlag != 0 {
                        found.append(Region(kind: .seal, file: file, range: at..<at + bytes))
                    } else {
                        found.append(Region(kind: .chunkHeader, file: file, range: at..<at + 64))
                        found.append(
                            Region(kind: .chunkBatches, file: file, range: at + 64..<at + bytes))
                    }
                    at += bytes.roundedUp(to: block)
                }
            case .journal:
                for at in stride(from: 0, to: length, by: block) {
                    let header = disk.bytes(file, at: at, count: 64)
                    let bytes = header.withUnsafeBytes {
                        $0.baseAddress.map { JournalGroupHeader.claimedBytes($0) } ?? 0
                    }
                    let position = header.withUnsafeBytes {
                        $0.loadUnaligned(fromByteOffset: 16, as: UInt64.self)
                    }
                    guard bytes >= JournalGroupHeader.byteCount, at + bytes <= length,
                        position >= journalFrom
                    else { continue }
                    found.append(
                        Region(
                            kind: .journalHeader, file: file,
                            range: at..<at + JournalGroupHeader.byteCount))
                    if bytes > JournalGroupHeader.byteCount {
                        found.append(
                            Region(
                                kind: .journalEntries, file: file,
                                range: at + JournalGroupHeader.byteCount..<at + bytes))
                    }
                }
            }
        }
        return found
    }

    /// Starts a flipped directory and reads all of it.
    private func outcome(_ used: Used, _ region: Region, bit: Int) throws -> Outcome {
        let disk = used.disk.copy()
        disk.flip(region.file, bit: bit)
        let fixture: Fixture
        do {
            fixture = try Fixture(disk: disk, settings: Self.settings)
        } catch let error as RecoveryError {
            let text = error.description
            guard text.contains(region.file.path) || text.contains(region.file.directory.rawValue)
            else {
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
        fixture.shard.run(steps: 300) {
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
            guard message.contains(region.file.path) else {
                throw Violation("\"\(message)\" does not name \(region.file.path)")
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
        let flips = (isLong ? 100_000 : 10_000) / (2 * Region.Kind.allCases.count) + 1
        var tally: [Region.Kind: [Outcome: Int]] = [:]
        var random = SeededRandom(seed: 42)
        var places = 0
        for stops in [false, true] {
            let used = try used(stops: stops)
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
                        tally[kind, default: [:]][
                            try outcome(used, region, bit: bit), default: 0] += 1
                    } catch {
                        throw Violation("\(region), bit \(bit), stops \(stops): \(error)")
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
        print("bit flips: \(places) places")
        #expect(places == 2 * flips * Region.Kind.allCases.count)
        // Detected where it matters, so that "harmless" is not all that was seen.
        #expect(tally[.journalHeader]?[.refused] ?? 0 > 15)
        #expect(tally[.journalEntries]?[.refused] ?? 0 > 15)
        #expect(tally[.chunkHeader]?[.ended] ?? 0 > 15)
        #expect(tally[.chunkBatches]?[.ended] ?? 0 > 15)
        #expect(tally[.checkpointPayload]?[.refused] ?? 0 > 15)
        #expect(tally[.identity]?[.refused] ?? 0 > 15)
        // A seal's index is a hint: it is rebuilt from the chunks.
        #expect(tally[.seal]?[.harmless] ?? 0 > 15)
    }
}
