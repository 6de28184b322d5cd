import BrokerBasics
import LogStorage
import Testing

@Suite("Journal groups")
struct JournalGroupTests {
    private let now = Instant(
        monotonic: MonotonicTime(nanoseconds: 1), wall: WallTime(nanoseconds: 1))

    private func makeJournal() -> Journal {
        Journal(
            geometry: JournalGeometry(fileBytes: 1 << 20, fileCount: 4),
            limits: Journal.Limits(entryBytesMax: 64 * 1024, stagingBytes: 1 << 20),
            journalID: 1, term: 1, position: 0, recycleBound: 0)
    }

    private func stage(_ bytes: Int, in journal: inout Journal) throws {
        let room = journal.stage(.batch, object: 1, payloadBytes: bytes, reserve: 0)
        try #require(room != nil)
    }

    private func write(
        _ journal: inout Journal
    ) throws -> (number: UInt64, operation: StorageOperation) {
        let next = journal.nextWrite(now: now)
        return try #require(next)
    }

    private func expect(
        _ journal: borrowing Journal, writes wanted: Bool,
        at location: SourceLocation = #_sourceLocation
    ) {
        let canWrite = journal.canWrite
        #expect(canWrite == wanted, sourceLocation: location)
    }

    private func bytes(of operation: StorageOperation) -> Int32 {
        if case .write(_, _, let bytes, _, _) = operation { Int32(bytes) } else { 0 }
    }

    @Test("with nothing in flight the smallest group is written at once")
    func alone() throws {
        var journal = makeJournal()
        expect(journal, writes: false)
        try stage(100, in: &journal)
        expect(journal, writes: true)
        let first = journal.nextWrite(now: now)
        #expect(first.map { bytes(of: $0.operation) } == 4096)
    }

    @Test("beside a write in flight a group waits for half of its bytes")
    func besideAnother() throws {
        var journal = makeJournal()
        try stage(40_000, in: &journal)
        let first = try write(&journal)
        try stage(19_000, in: &journal)
        expect(journal, writes: false)
        let early = journal.nextWrite(now: now)
        #expect(early == nil)
        try stage(1500, in: &journal)
        expect(journal, writes: true)
        let second = try write(&journal)
        // Both slots are taken.
        try stage(60_000, in: &journal)
        expect(journal, writes: false)
        _ = journal.writeCompleted(
            number: second.number, result: bytes(of: second.operation), now: now.monotonic)
        expect(journal, writes: true)
        _ = journal.writeCompleted(
            number: first.number, result: bytes(of: first.operation), now: now.monotonic)
        let durable = journal.durableGroup
        #expect(durable == 2)
    }

    @Test("it waits for no longer than that write")
    func isBounded() throws {
        var journal = makeJournal()
        try stage(40_000, in: &journal)
        let first = try write(&journal)
        try stage(100, in: &journal)
        expect(journal, writes: false)
        _ = journal.writeCompleted(
            number: first.number, result: bytes(of: first.operation), now: now.monotonic)
        expect(journal, writes: true)
        let next = journal.nextWrite(now: now)
        #expect(next != nil)
    }

    @Test("while groups wait four writes are in flight, and two when few wait")
    func backlog() throws {
        var limits = Journal.Limits(entryBytesMax: 64 * 1024, stagingBytes: 1 << 20)
        limits.groupBytes = 32 * 1024
        var journal = Journal(
            geometry: JournalGeometry(fileBytes: 1 << 20, fileCount: 4), limits: limits,
            journalID: 1, term: 1, position: 0, recycleBound: 0)
        // Each of them fills a group: eleven are closed.
        for _ in 0..<12 { try stage(30_000, in: &journal) }
        var inFlight = try (0..<4).map { _ in try write(&journal) }
        expect(journal, writes: false)
        var most: [Int] = []
        while !inFlight.isEmpty {
            // The last to be asked for is done first.
            let done = inFlight.removeLast()
            _ = journal.writeCompleted(
                number: done.number, result: bytes(of: done.operation), now: now.monotonic)
            while let next = journal.nextWrite(now: now) { inFlight.append(next) }
            most.append(inFlight.count)
        }
        #expect(most == [4, 4, 4, 4, 3, 2, 2, 2, 2, 2, 1, 0])
        let durable = journal.durableGroup
        #expect(durable == 12)
    }
}
