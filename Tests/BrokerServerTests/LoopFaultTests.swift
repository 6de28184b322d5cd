import BlockingClient
import BrokerBasics
import BrokerCore
import BrokerServer
import BrokerShard
import ChildProcess
import Foundation
import Glibc
import LogStorage
import ShardRuntime
import Synchronization
import Testing
import WireProtocol

/// A shard on a real loop, real sockets and real files, of which one storage operation fails; what the
/// simulator sweeps for the machine (`FaultEnumerationTests`), for what is around it.
@Suite("Storage faults on both loops", .serialized)
struct LoopFaultTests {
    /// How a run ended, as its client saw it.
    private struct Story {
        /// By offset.
        var confirmed: [UInt64: [UInt8]] = [:]
        var failure: String?
        var isServed = false
    }
    private struct Refused: Error {
        var status: StatusCode
    }

    private static let batches = 40
    private static var limits: ShardLimits {
        var limits = ShardLimits()
        limits.frameBytesMax = 16 << 10
        limits.groupBytes = 16 << 10
        limits.stagingBytes = 256 << 10
        limits.tailBytesMax = 256 << 10
        limits.chunkBytes = 16 << 10
        limits.segmentBytes = 64 << 10
        limits.coldBytesMax = 1 << 20
        limits.coldPieceBytes = 16 << 10
        limits.filesMax = 64
        limits.reserveBytes = 0
        limits.scrubBytesPerSecond = 0
        limits.checkpointAfterNanoseconds = .milliseconds(5)
        return limits
    }

    /// Runs one shard on a directory to its end, on a thread of its own, beside `body`.
    private func run(
        _ loop: LoopKind, _ directory: String,
        _ body: (ServerAddress, ShardControl) throws -> Void
    ) throws {
        let control = ShardControl()
        let listener = try Listener(.tcp(host: "127.0.0.1", port: 0))
        let limits = Self.limits
        let descriptor = listener.descriptor
        let ended = DispatchSemaphore(value: 0)
        let failure = Mutex<String?>(nil)
        let report = Report(failure)
        try DetachedThread.start("faulty", stackBytes: 8 << 20) {
            do {
                switch loop {
                case .uring:
                    try Self.serve(
                        FaultyPort<RingPort>.self, directory, limits, descriptor, control)
                case .epoll:
                    try Self.serve(
                        FaultyPort<EpollPort>.self, directory, limits, descriptor, control)
                }
            } catch {
                report.note("\(error)")
            }
            ended.signal()
        }
        defer {
            control.stop()
            #expect(ended.wait(timeout: .now() + 120) == .success, "the shard does not end")
            #expect(report.text == nil)
        }
        try body(listener.address, control)
    }

    private final class Report: Sendable {
        private let failure: Mutex<String?>
        init(_ failure: consuming Mutex<String?>) { self.failure = failure }
        func note(_ what: String) { failure.withLock { $0 = what } }
        var text: String? { failure.withLock { $0 } }
    }

    private static func serve<Port: ShardPort & ~Copyable>(
        _: Port.Type, _ directory: String, _ limits: ShardLimits, _ listener: Int32,
        _ control: ShardControl
    ) throws {
        var options = RecoveryOptions(
            geometry: JournalGeometry(fileBytes: 256 << 10, fileCount: 2), limits: limits.journal,
            chunkBytesMax: limits.chunkBytes, tailBudgetBytes: limits.tailBytesMax, serverID: 7,
            journalID: 11, now: Clock.wall)
        options.boot = 1
        let outcome = try BrokerRecovery(options: options, segmentBytes: limits.segmentBytes) {
            PosixStorage(root: directory, folder: ShardFolder(shard: $0))
        }.run(shards: 1)
        guard let recovered = outcome.shards[0].take() else { return }
        let machine = ShardMachine(
            recovered: recovered, limits: limits, addresses: [], now: Clock.now)
        var shard = try Shard<Port>(
            machine: machine,
            configuration: ShardConfiguration(
                dataDirectory: directory, limits: limits,
                geometry: JournalGeometry(fileBytes: 256 << 10, fileCount: 2), idle: .block,
                loop: .epoll, listeners: [listener], ownListeners: [], addresses: [],
                usesDirectIO: true, hostFacts: [], takesMemory: false),
            control: control
        ) { event in
            if case .storageFailed(let what) = event { control.publish { $0.failure = what } }
        }
        shard.run()
    }

    // MARK: the story

    private func story(_ address: ServerAddress, _ control: ShardControl) throws -> Story {
        var story = Story()
        while control.current.stage != "ready", control.current.failure == nil { usleep(500) }
        guard control.current.failure == nil else {
            story.failure = control.current.failure
            return story
        }
        let client = try BlockingClient.Connection(to: address, clientName: "test")
        story.isServed = true
        do {
            let queue = try client.request(
                .queueCreate, QueueCreateRequest(name: "orders", partitions: 1, level: .synced),
                reply: QueueInfo.self)
            let partition = try #require(queue.partitions.first).id
            for number in 0..<Self.batches {
                let value = [UInt8](repeating: UInt8(number), count: 4000)
                let offset = try publish(value, to: partition, on: client)
                story.confirmed[offset] = value
                // Checkpoints come in between.
                if number % 8 == 7 { usleep(8_000) }
            }
        } catch let error as Refused {
            #expect(error.status == .storageFailed)
        } catch ClientError.refused(let refused) {
            #expect(refused.status == .storageFailed)
        }
        // The loop runs on, whatever failed.
        _ = try client.request(.ping, Empty(), reply: Empty.self)
        return story
    }

    private func publish(
        _ value: [UInt8], to partition: UInt32, on client: BlockingClient.Connection
    ) throws -> UInt64 {
        var batch = BatchBuilder()
        _ = batch.append(Record(value: value))
        while true {
            try client.send(
                FrameHeader(
                    opcode: .publish, correlation: client.nextCorrelation(), stream: partition
                ).frame(body: batch.finish()))
            let frame = try #require(try client.receive(timeoutMilliseconds: 60_000))
            guard frame.header.flags & FrameHeader.errorFlag != 0 else {
                return try frame.body.withUnsafeBytes { bytes in
                    try ConfirmEntry(at: #require(bytes.baseAddress)).baseOffset
                }
            }
            let status = try #require(StatusCode(rawValue: frame.header.status))
            // There is room again in half a second.
            guard status == .diskFull else { throw Refused(status: status) }
            usleep(50_000)
        }
    }

    /// Everything that is there, by offset.
    private func readBack(_ loop: LoopKind, _ directory: String) throws -> [UInt64: [UInt8]] {
        FaultPlan.current.begin(number: 0, .short)
        var found: [UInt64: [UInt8]] = [:]
        try run(loop, directory) { address, control in
            while control.current.stage != "ready" {
                try #require(control.current.failure == nil)
                usleep(500)
            }
            let client = try BlockingClient.Connection(to: address, clientName: "test")
            let info: QueueInfo
            do {
                info = try client.request(
                    .queueDescribe, QueueNameRequest(name: "orders"), reply: QueueInfo.self)
            } catch ClientError.refused(let refused) {
                #expect(refused.status == .queueNotFound)
                return
            }
            let end = info.partitions.first?.committedOffset ?? 0
            let reader = try Subscription(on: client, queue: "orders")
            while UInt64(found.count) < end {
                guard case .records(let got)? = try reader.next(timeoutMilliseconds: 60_000) else {
                    Issue.record("nothing more after \(found.count) of \(end)")
                    return
                }
                for entry in got.entries { found[entry.offset] = entry.record.value }
            }
        }
        return found
    }

    /// What a kernel may say of an operation on a file: EIO, ENOSPC, EDQUOT, ENOMEM, EAGAIN, EINTR, EROFS,
    /// ECANCELED, EMFILE, ENFILE, EBADF; and a write that is short.
    private static let faults: [PortFault] =
        [5, 28, 122, 12, 11, 4, 30, 125, 24, 23, 9].map { .errno($0) } + [.short]
    private static let isLong = getenv("MILLRACE_TORTURE") != nil

    /// What came of one run.
    private struct Outcome {
        /// The story had so many operations that the one to fail was among them.
        var isReached = false
        var hasFired = false
        var hasStopped = false
    }

    /// Plays the story with one operation failing, and reads back what was confirmed.
    private func play(_ loop: LoopKind, _ number: Int, _ fault: PortFault) throws -> Outcome {
        let directory = try TemporaryDirectory(prefix: "millrace-test")
        FaultPlan.current.begin(number: number, fault)
        var story = Story()
        var failure: String?
        try run(loop, directory.path) { address, control in
            story = try self.story(address, control)
            failure = control.current.failure
        }
        let outcome = Outcome(
            isReached: FaultPlan.current.asked >= number, hasFired: FaultPlan.current.fired == 1,
            hasStopped: failure != nil)
        if let failure { #expect(failure.contains(fault.trace), "operation \(number), \(fault)") }
        if failure == nil { #expect(story.confirmed.count == Self.batches) }
        let found = try readBack(loop, directory.path)
        for (offset, value) in story.confirmed {
            #expect(found[offset] == value, "operation \(number), \(fault): \(offset)")
        }
        return outcome
    }

    @Test(
        "whichever operation fails, everybody is answered, the loop runs on, and nothing is lost",
        arguments: LoopKind.allCases)
    func everyOperation(loop: LoopKind) throws {
        var fired = 0
        var stopped = 0
        func note(_ outcome: Outcome) {
            fired += outcome.hasFired ? 1 : 0
            stopped += outcome.hasStopped ? 1 : 0
        }
        if Self.isLong {
            for fault in Self.faults {
                let before = (fired, stopped)
                var number = 1
                while true {
                    let outcome = try play(loop, number, fault)
                    note(outcome)
                    guard outcome.isReached else { break }
                    number += 1
                }
                #expect(fired > before.0)
                print(
                    "loop faults, \(loop.rawValue), \(fault): \(number - 1) operations, "
                        + "\(fired - before.0) failed, \(stopped - before.1) stopped confirms")
            }
        } else {
            // In CI some of them, each with another fault; the operations of one run are not those of
            // another anyway.
            var number = 1
            while true {
                let outcome = try play(loop, number, Self.faults[number / 3 % Self.faults.count])
                note(outcome)
                guard outcome.isReached else { break }
                number += 3
            }
        }
        print(
            "loop faults, \(loop.rawValue): \(fired) operations failed, \(stopped) stopped confirms"
        )
        #expect(fired > 15)
        #expect(stopped > 5)
        #expect(stopped < fired)
    }
}
