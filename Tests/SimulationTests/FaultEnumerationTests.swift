internal import BrokerBasics
internal import BrokerCore
internal import BrokerShard
internal import BrokerTestSupport
internal import Glibc
internal import LogStorage
internal import Testing
internal import WireProtocol

// How it works. One story uses every kind of storage operation, on one shard or on two. It is played again
// and again; in the nth run the nth operation fails, either that one alone or it and all after it that need
// room. The story then goes on until every client has its answer, and the disk is crashed in every way: what
// was confirmed must be there, and the broker must serve again.

/// How storage fails in one run.
enum FaultMode: CaseIterable, CustomStringConvertible {
    /// One operation, with an errno: whatever comes after it would work.
    case once
    /// From one operation on, everything that writes or syncs: the disk is gone.
    case dead
    /// From one operation on, everything that needs new room, for a while: the disk is full.
    case full
    /// One write does half of what it was asked for, once.
    case short
    /// From one operation on, everything that opens a file, for a while: there is no descriptor.
    case opens

    var description: String {
        switch self {
        case .once: "an errno once"
        case .dead: "EIO from here on"
        case .full: "no room from here on, for a second"
        case .short: "a short write"
        case .opens: "no descriptor from here on, for a second"
        }
    }

    /// What a kernel may say of an operation on a file: EIO, ENOSPC, EDQUOT, ENOMEM, EAGAIN, EINTR, EROFS,
    /// ECANCELED, EMFILE, ENFILE, EBADF.
    static let errnos: [Int32] = [5, 28, 122, 12, 11, 4, 30, 125, 24, 23, 9]
}

/// One run of the story.
final class FaultRun {
    typealias Asked = SimulatedShard.Asked

    let runner: ScenarioRunner
    private var client: SimulatedClient?
    private var queues: [UInt32] = []
    private(set) var fired: [Asked] = []
    private var fullSince: MonotonicTime?
    private var errno: Int32 = 5
    let seed: UInt64
    let settings: SimulatedShard.Settings

    static func settings(shards: Int) -> SimulatedShard.Settings {
        var settings = SimulatedShard.Settings()
        settings.shards = shards
        // Less memory than is published, so that old records are read from segments, and more than
        // the journal can bring back.
        settings.geometry = JournalGeometry(fileBytes: 64 * 1024, fileCount: 2)
        settings.limits.tailBytesMax = 192 * 1024
        settings.limits.segmentBytes = 32 * 1024
        return settings
    }

    init(seed: UInt64, shards: Int) throws {
        self.seed = seed
        settings = Self.settings(shards: shards)
        runner = try ScenarioRunner(settings: settings, seed: seed)
    }

    /// Of the first shard that has stopped confirming.
    var machineFailure: String? {
        (0..<settings.shards).lazy.compactMap { self.failure(of: $0) }.first
    }
    private func failure(of shard: Int) -> String? {
        runner.shard.withMachine(shard) { $0.counters.storageFailure }
    }
    var operations: Int { runner.shard.operationNumber }

    /// Plays the story with operation `number` failing.
    func play(_ mode: FaultMode, at number: Int, errno: Int32 = 5) throws {
        self.errno = errno
        runner.shard.fault = { [unowned self] asked in
            guard asked.number >= number else { return nil }
            switch mode {
            case .once: guard asked.number == number else { return nil }
            case .dead: guard Self.stops(asked) else { return nil }
            case .full, .opens:
                guard mode == .full ? Self.needsRoom(asked) : Self.opens(asked) else { return nil }
                let since = fullSince ?? runner.shard.time
                fullSince = since
                guard runner.shard.time.since(since) < .seconds(1) else { return nil }
            case .short:
                guard asked.number == number, Self.isWrite(asked) else { return nil }
            }
            fired.append(asked)
            switch mode {
            case .once: return -errno
            case .dead: return -5
            case .full: return -28
            case .short: return 512
            case .opens: return -24
            }
        }
        try story()
        runner.shard.fault = nil
    }

    /// The journal has its room since the directory was made.
    static func needsRoom(_ asked: Asked) -> Bool {
        switch asked.kind {
        case .make, .allocate, .write, .syncedWrite: asked.directory != .journal
        case .open, .read, .remove, .sync, .syncNames: false
        }
    }
    static func opens(_ asked: Asked) -> Bool { asked.kind == .make || asked.kind == .open }
    static func isWrite(_ asked: Asked) -> Bool {
        asked.kind == .write || asked.kind == .syncedWrite
    }

    /// True when `asked` is tried again after `errno`: for want of room, or of a descriptor.
    static func isHeld(_ asked: Asked, _ errno: Int32) -> Bool {
        switch errno {
        case 28, 122: needsRoom(asked)
        case 24, 23: opens(asked)
        default: false
        }
    }

    /// True when the failure of `asked` must stop the confirms: what only reads ends a subscription,
    /// and what only tidies up is done again at the next start.
    static func stops(_ asked: Asked) -> Bool {
        switch asked.kind {
        case .make, .allocate, .write, .syncedWrite, .sync, .syncNames: true
        case .open, .read, .remove: false
        }
    }

    private func story() throws {
        let shard = runner.shard
        shard.run(until: { shard.isReady || machineFailure != nil })
        guard shard.isReady else { return }
        // At the last shard: what concerns the control plane, and half of the partitions, goes to another.
        let client = try client(named: "client", at: settings.shards - 1)
        self.client = client
        queues = runner.createQueue(client, "orders", partitions: 2)
        let ticks = runner.createQueue(client, "ticks", level: .memory)
        let producer = runner.openProducer(client)
        guard let producer, queues.count == 2, ticks.count == 1 else { return }
        queues += ticks
        _ = client.subscribe("orders", group: "desk", stream: 1)
        for round in 1...24 {
            for partition in queues {
                // As much for each shard, so that old records leave its memory.
                runner.publish(
                    client, producer, partition, records: 4 + 4 * (settings.shards - 1), bytes: 700)
            }
            guard machineFailure == nil else { return }
            if round % 3 == 0 {
                runner.awaitAnswers(client, queues)
                for partition in queues.prefix(2) {
                    runner.ack(
                        client, queue: "orders", group: "desk", stream: 1, partition: partition,
                        offset: UInt64(round))
                }
            }
            if round == 8 {
                let brief = runner.createQueue(client, "brief")
                guard let partition = brief.first else { return }
                queues.append(partition)
                for _ in 0..<6 {
                    runner.publish(client, producer, partition, records: 4, bytes: 700)
                }
                runner.awaitAnswers(client, [partition])
                shard.pass(milliseconds: 11_000)
                queues.removeLast()
                runner.deleteQueue(client, "brief")
            }
            if round == 16 {
                // What left memory is read from segments.
                shard.pass(milliseconds: 11_000)
                let late = try self.client(named: "late", at: 0)
                _ = late.subscribe("orders", stream: 2)
                shard.pass(milliseconds: 20)
                runner.note(late)
                shard.disconnect(late.index)
            }
        }
        runner.awaitAnswers(client, queues)
        shard.pass(milliseconds: 11_000)
        shard.beginStop()
        shard.run(until: { shard.isStopped })
    }

    private func client(named name: String, at shard: Int) throws -> SimulatedClient {
        guard let client = runner.connect(name, to: shard) else {
            throw Violation("no connection for \(name)")
        }
        return client
    }

    // MARK: what must hold

    func check(_ mode: FaultMode) throws {
        let shard = runner.shard
        // A short write is done again, and all is well; a checkpoint is rather given up.
        let stopping = fired.first {
            switch mode {
            case .once: Self.stops($0) && !Self.isHeld($0, errno)
            case .dead: Self.stops($0)
            case .full, .opens: false
            case .short: $0.directory == .checkpoints
            }
        }
        if let stopping {
            guard let failure = failure(of: Int(stopping.shard)) else {
                throw Violation("\(stopping.kind) failed and nobody noticed")
            }
            let place = stopping.file?.path ?? stopping.directory.rawValue
            guard failure.contains(place), failure.contains("errno") else {
                throw Violation("\"\(failure)\" does not say what failed: \(place)")
            }
        } else if let machineFailure {
            throw Violation("\(fired.first?.kind.rawValue ?? "nothing") failed: \(machineFailure)")
        }
        if let client { try checkAnswers(client, shard) }
        try checkRestarts()
    }

    private func checkAnswers(_ client: SimulatedClient, _ shard: SimulatedShard) throws {
        shard.run(steps: 500) {
            runner.note(client)
            return client.isClosed
                || (client.unanswered.isEmpty && runner.unanswered(client, queues) == 0)
        }
        runner.note(client)
        guard !client.isClosed else { return }
        guard client.unanswered.isEmpty, runner.unanswered(client, queues) == 0 else {
            throw Violation(
                "\(client.unanswered.count) requests and \(runner.unanswered(client, queues)) "
                    + "publishes are never answered")
        }
        guard machineFailure != nil else { return }
        guard client.ask(.ping, Empty(), reply: Empty.self) != nil else {
            throw Violation("after the failure PING is not answered")
        }
        let create = client.request(
            .queueCreate, QueueCreateRequest(name: "late", partitions: 1, level: .synced))
        shard.run(steps: 200) { client.status(of: create) != nil }
        // Of several shards the one that has the say may not have failed: it stops, as it was asked to.
        let stage = shard.machine.stage
        guard
            client.status(of: create) == .storageFailed
                || (settings.shards > 1 && stage != .ready
                    && client.status(of: create) == .shuttingDown)
        else {
            throw Violation(
                "after the failure a change is answered with \(client.replies[create]?.header.status ?? 0)"
            )
        }
    }

    private func checkRestarts() throws {
        var random = SeededRandom(seed: seed)
        let disks = [SimulatedDisk.Survival.none, .all, .latest, .some].map {
            runner.shard.disk.afterPowerCut($0, &random)
        }
        for (place, disk) in (disks + [runner.shard.disk.afterKill(&random)]).enumerated() {
            // Another number of shards may be what it is started with next.
            let shards = settings.shards > 1 && place % 2 == 1 ? 1 : settings.shards
            let shard = try SimulatedShard(
                disk: disk, settings: Self.settings(shards: shards), seed: random.next(),
                wall: runner.shard.wall)
            let found = try ReadBack(from: shard)
            try runner.history.check(found)
            guard let client = shard.connect("after"),
                client.ask(
                    .queueCreate,
                    QueueCreateRequest(name: "after", partitions: 1, level: .synced),
                    reply: QueueInfo.self) != nil
            else { throw Violation("the restarted broker does not serve") }
        }
    }
}

@Suite("Fault enumeration", .serialized)
struct FaultEnumerationTests {
    private static var isLong: Bool { getenv("MILLRACE_TORTURE") != nil }

    @Test(
        "whichever storage operation fails, confirms stop or room is waited for, and nothing is lost",
        arguments: FaultMode.allCases, [1, 2])
    func everyOperation(mode: FaultMode, shards: Int) throws {
        let whole = try FaultRun(seed: 3, shards: shards)
        try whole.play(.once, at: .max)
        try whole.check(.once)
        #expect(whole.fired.isEmpty)
        let operations = whole.operations
        #expect(operations > 200)
        var fired = 0
        var kinds: [String: Int] = [:]
        var syncedChunks = 0
        // Each operation with an errno in its turn; in the long version with all of them.
        let all = mode == .once && Self.isLong ? FaultMode.errnos : [0]
        for (number, turn) in (1...operations).flatMap({ number in all.map { (number, $0) } }) {
            let errno =
                turn != 0 ? turn : FaultMode.errnos[(number + shards) % FaultMode.errnos.count]
            let run = try FaultRun(seed: 3, shards: shards)
            do {
                try run.play(mode, at: number, errno: errno)
                try run.check(mode)
            } catch {
                throw Violation(
                    "operation \(number), \(mode), errno \(errno), "
                        + "\(run.fired.first?.kind.rawValue ?? ""): \(error)")
            }
            guard let first = run.fired.first else { continue }
            fired += 1
            kinds[first.kind.rawValue, default: 0] += 1
            if first.kind == .syncedWrite, first.directory == .segments { syncedChunks += 1 }
        }
        print(
            "fault enumeration: \(mode), \(shards) shards: \(fired) of \(operations) operations failed, \(kinds), "
                + "\(syncedChunks) synced writes of chunks among them")
        // Without its fault the run would go on as the whole one: each number is an operation.
        if mode == .once { #expect(fired == operations * all.count) }
        let expected: [SimulatedShard.Asked.Kind] =
            switch mode {
            case .once:
                [.open, .make, .allocate, .write, .syncedWrite, .read, .sync, .syncNames, .remove]
            case .dead: [.make, .allocate, .write, .syncedWrite, .sync, .syncNames]
            case .full: [.make, .allocate, .write, .syncedWrite]
            case .short: [.write, .syncedWrite]
            case .opens: [.open, .make]
            }
        for kind in expected { #expect(kinds[kind.rawValue] ?? 0 > 0, "no \(kind) failed") }
        if mode != .opens { #expect(syncedChunks > 0) }
    }

    @Test(
        "whichever operation of a recovery fails, it says which, and the next one finds everything")
    func everyOperationOfRecovery() throws {
        let before = try FaultRun(seed: 5, shards: 1)
        try before.play(.once, at: 220)
        var random = SeededRandom(seed: 5)
        let crashed = before.runner.shard.disk.afterKill(&random)
        var failures = 0
        for number in 1...10_000 {
            let disk = crashed.afterKill(&random)
            disk.fail((number, number % 2 == 0 ? 28 : 5))
            do throws(RecoveryError) {
                _ = try SimulatedShard(
                    disk: disk, settings: FaultRun.settings(shards: 1), seed: 1,
                    wall: before.runner.shard.wall
                )
                #expect(disk.failures == 0, "operation \(number) failed and nobody noticed")
            } catch {
                guard case .storage(let failure) = error else {
                    Issue.record("operation \(number): \(error)")
                    continue
                }
                #expect(failure.errno == (number % 2 == 0 ? 28 : 5))
            }
            guard disk.failures > 0 else { break }
            failures += 1
            disk.fail(nil)
            let shard = try SimulatedShard(
                disk: disk, settings: FaultRun.settings(shards: 1), seed: 1,
                wall: before.runner.shard.wall)
            try before.runner.history.check(try ReadBack(from: shard))
        }
        print("fault enumeration: \(failures) operations of a recovery failed")
        #expect(failures > 20)
    }

    @Test("whichever operation of a directory's making fails, the next start makes it")
    func everyOperationOfMaking() throws {
        var failures = 0
        for number in 1...1000 {
            let disk = SimulatedDisk()
            disk.fail((number, 28))
            let first = try? SimulatedShard(
                disk: disk, settings: FaultRun.settings(shards: 1), seed: 1)
            guard disk.failures > 0 else { break }
            #expect(first == nil, "operation \(number) failed and nobody noticed")
            failures += 1
            disk.fail(nil)
            let shard = try SimulatedShard(
                disk: disk, settings: FaultRun.settings(shards: 1), seed: 1)
            #expect(shard.run(until: { shard.machine.isReady }))
        }
        #expect(failures > 10)
    }
}
