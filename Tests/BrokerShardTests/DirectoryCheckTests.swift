import BrokerBasics
import BrokerCore
import BrokerShard
import BrokerTestSupport
import LogStorage
import Testing
import WireProtocol

@Suite("A check of a data directory")
struct DirectoryCheckTests {
    private static func settings(_ settings: inout SimulatedShard.Settings) {
        settings.limits.segmentBytes = 32 * 1024
    }

    /// A directory with sealed and open segments, a journal in use, and a memory queue.
    private static func used() throws -> SimulatedDisk {
        let fixture = try Fixture(settings: settings)
        let orders = try fixture.create("orders")[0]
        let ticks = try fixture.create("ticks", level: .memory)[0]
        for _ in 0..<6 {
            for partition in [orders, ticks] {
                try fixture.publish(10, to: partition, bytes: 1500)
            }
            fixture.shard.pass(milliseconds: 11_000)
        }
        try fixture.publish(5, to: orders)
        fixture.shard.pass(milliseconds: 300)
        return fixture.shard.disk.copy()
    }

    private static func check(_ disk: SimulatedDisk) throws -> DirectoryReport {
        var settings = SimulatedShard.Settings()
        Self.settings(&settings)
        var options = RecoveryOptions(
            geometry: settings.geometry, limits: settings.limits.journal,
            chunkBytesMax: settings.limits.chunkBytes,
            tailBudgetBytes: settings.limits.tailBytesMax, serverID: 7, journalID: 11,
            now: WallTime(nanoseconds: 1_700_000_100_000_000_000))
        options.boot = disk.boot
        return try DirectoryCheck(options: options) { disk.folder($0) }.run()
    }

    @Test("a whole directory has nothing damaged, and is as it was")
    func whole() throws {
        let disk = try Self.used()
        let before = disk.allNames.map { disk.bytes($0, at: 0, count: disk.length($0)) }
        let report = try Self.check(disk)
        #expect(report.damages.isEmpty, "\(report.damages)")
        #expect(!report.recoveries.isEmpty)
        #expect(report.queues == 2 && report.partitions == 2)
        #expect(report.segments >= 4 && report.chunks > report.segments)
        #expect(report.batches >= 100)
        #expect(disk.operations == 0)
        #expect(disk.allNames.map { disk.bytes($0, at: 0, count: disk.length($0)) } == before)
    }

    @Test("each flipped bit of a segment is found, in its file, with what it takes")
    func flipped() throws {
        let disk = try Self.used()
        var random = SeededRandom(seed: 0x5EED_0077)
        let segments = disk.allNames.filter { $0.directory == .segments }
        var found = 0
        var lost = 0
        for _ in 0..<400 {
            let file = segments[random.below(segments.count)]
            let bit = random.below(disk.length(file) * 8)
            let copy = disk.copy()
            copy.flip(file, bit: bit)
            let damages = try Self.check(copy).damages
            guard !damages.isEmpty else { continue }
            found += 1
            #expect(damages.count == 1, "\(damages), bit \(bit)")
            #expect(damages[0].file == file.path)
            let bytes = damages[0].bytes
            #expect(bytes.contains(UInt64(bit / 8)), "\(damages), bit \(bit)")
            if damages[0].what.contains("can't be read") { lost += 1 }
        }
        // The others fell into padding, or behind what was on stable storage.
        #expect(found > 200, "\(found) of 400 were found")
        #expect(lost > 150, "\(lost) of \(found) took offsets")
    }

    @Test("two damages are two findings when something whole lies between; a seal takes no offset")
    func two() throws {
        let disk = try Self.used()
        let file = try #require(
            disk.allNames.first { $0.directory == .segments && disk.length($0) >= 24 * 1024 })
        disk.flip(file, bit: (4096 + 100) * 8)
        // Two chunks of 8 KiB, then the seal.
        disk.flip(file, bit: (4096 + 2 * 8192 + 70) * 8)
        let damages = try Self.check(disk).damages
        try #require(damages.count == 2, "\(damages)")
        #expect(damages.allSatisfy { $0.file == file.path })
        #expect(damages[0].what == "offsets 0 ..< 5 of partition 1 can't be read")
        #expect(damages[1].what == "no offset is lost with it")
    }

    @Test("a damaged journal or a missing segment is named, and a start would say the same")
    func refused() throws {
        let disk = try Self.used()
        disk.flip(.journal(0), bit: (4096 + 80) * 8)
        let journal = try Self.check(disk)
        #expect(journal.recoveries.isEmpty || journal.damages.isEmpty)
        let other = try Self.used()
        let file = try #require(other.allNames.first { $0.directory == .segments })
        other.unlink(file)
        let missing = try Self.check(other)
        #expect(missing.recoveries.isEmpty)
        #expect(missing.damages.count == 1)
        #expect(missing.damages[0].file == file.path)
    }

    @Test("a directory that is none is not made")
    func none() throws {
        let disk = SimulatedDisk()
        #expect(throws: StorageFailure.self) { try Self.check(disk) }
        #expect(disk.allNames.isEmpty)
    }
}
