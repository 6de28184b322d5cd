import BlockingClient
import BrokerBasics
import ChildProcess
import Foundation
import ReplayHarness
import ShardRuntime
import Testing
import WireProtocol

/// A real broker for long, under everything at once: `make soak MINUTES=30`.
///
/// Lives of up to a minute, each with another number of shards than the one before, each ended by SIGKILL in
/// the middle of a burst; every third one after its disk was full for a while. Meanwhile publishers of every
/// level, a group and a subscription on each queue, partitions that move, queues that come and go, and one that
/// is kept short by retention. Memory, descriptors and latency stay flat in each life (`SoakMeter`), and what the clients saw
/// is judged as after the kills of `KillTortureTests`.
@Suite(.serialized) struct SoakTests {
    private static let environment = ProcessInfo.processInfo.environment
    private static let minutes = environment["MILLRACE_SOAK"].flatMap(Double.init)
    private static let seed =
        environment["MILLRACE_SEED"].flatMap(UInt64.init) ?? UInt64.random(in: 1...999_999)
    private static let shards = [2, 1, 2, 3]
    private static let sampleMicroseconds: useconds_t = 100_000

    /// What happened beside the load; each must have.
    private struct Counts {
        var kills = 0
        var fullDisks = 0
        var refusedPublishes = 0
        var queuesMade = 0
        var queuesDeleted = 0
    }

    /// The one that asks: a connection, and a queue whose publishes are timed.
    private final class Probe {
        private let connection: Connection
        private let partition: UInt32
        private var brief: [String] = []

        init(_ broker: LiveBroker) throws {
            connection = try broker.connect()
            partition = try #require(try broker.describe("probe").partitions.first).id
        }

        /// - Returns: how the publish was answered, and after how long, in µs.
        func publish() throws -> (status: StatusCode, microseconds: Double) {
            var batch = BatchBuilder()
            _ = batch.append(Record(value: [UInt8](repeating: 7, count: 256)))
            let correlation = connection.nextCorrelation()
            let clock = ContinuousClock()
            let began = clock.now
            try connection.send(
                FrameHeader(opcode: .publish, correlation: correlation, stream: partition)
                    .frame(body: batch.finish()))
            let frame = try #require(try connection.receive(timeoutMilliseconds: 60_000))
            let elapsed = clock.now - began
            let microseconds =
                Double(elapsed.components.attoseconds) / 1e12
                + Double(elapsed.components.seconds) * 1e6
            return (StatusCode(rawValue: frame.header.status) ?? .badFrame, microseconds)
        }

        /// Makes a queue, and deletes the one before the last.
        func churn(_ counts: inout Counts) throws {
            let name = "brief-\(counts.queuesMade)"
            _ = try connection.request(
                .queueCreate,
                QueueCreateRequest(name: name, partitions: 2, level: .synced),
                reply: QueueInfo.self
            )
            counts.queuesMade += 1
            brief.append(name)
            guard brief.count > 2 else { return }
            _ = try connection.request(
                .queueDelete,
                QueueNameRequest(name: brief.removeFirst()),
                reply: Empty.self
            )
            counts.queuesDeleted += 1
        }

        func fact(_ name: String) throws -> String? {
            try connection.request(.serverDescribe, Empty(), reply: ServerDescription.self)
                .facts.first { $0.name == name }?.value
        }
    }

    @Test(
        "for as long as it is wanted nothing is lost, and memory, descriptors and latency stay flat",
        .enabled(if: minutes != nil, "it takes long: make soak MINUTES=30")
    )
    func soak() throws {
        let again = "again: MILLRACE_SEED=\(Self.seed) make soak"
        let seconds = try #require(Self.minutes) * 60
        let life = min(60, max(12, seconds / 4))
        let directory = try TemporaryDirectory(prefix: "millrace-soak")
        defer { directory.remove() }
        let disk =
            LoopDisk.obstacle == nil ? try LoopDisk(in: directory.path, bytes: 6 << 30) : nil
        if let obstacle = LoopDisk.obstacle { print("soak: without a full disk: \(obstacle)") }
        let broker = try LiveBroker(
            .uring,
            shards: Self.shards,
            data: disk.map { $0.path + "/data" },
            more: [
                "--tail-memory", "64MiB", "--segment-size", "8MiB", "--checkpoint-interval", "2s",
            ]
        )
        let queues = try load(broker)
        defer { Torture.end(broker, queues) }
        Torture.start(queues)
        let rolled = try roll(on: broker)
        rolled.start()
        defer {
            rolled.abort()
            _ = rolled.join()
        }

        let mover = PartitionMover(broker.place, queues.map(\.name))
        defer { mover.stop() }

        var counts = Counts()
        let end = ContinuousClock().now + .seconds(seconds)
        while ContinuousClock().now < end {
            let meter = try live(for: life, broker, queues, &counts)
            for rule in SoakMeter.rules {
                let (second, last) = meter.quarters(rule)
                print(
                    "soak: life \(counts.kills + 1), \(rule.name): \(Int(second)) in the second "
                        + "quarter, \(Int(last)) in the last, of \(meter.samples.count) samples"
                )
            }
            #expect(meter.complaints.isEmpty, "life \(counts.kills + 1): \(meter.complaints)")
            if counts.kills % 3 == 0, let disk { try fill(disk, broker, queues, &counts) }
            try kill(broker, queues, &counts)
        }

        let moved = mover.stop()
        rolled.finish()
        let histories = try Torture.finish(broker, queues)
        let verdicts = try Torture.judge(broker, queues, histories, again: again)
        for (queue, verdict) in zip(queues, verdicts) {
            #expect(verdict.crashes == counts.kills)
            #expect(verdict.unanswered > 0, "no publish of \(queue.name) was in flight (\(again))")
            print("soak: \(queue.name): \(verdict.sent) sent, \(verdict.delivered) delivered")
        }
        // What was to happen has happened.
        #expect(counts.kills >= 2)
        #expect(counts.queuesDeleted > 0)
        if disk != nil { #expect(counts.fullDisks > 0 && counts.refusedPublishes > 0) }
        let kept = try broker.describe("rolled").partitions
        #expect(kept.contains { $0.startOffset > 0 }, "retention has removed nothing")
        #expect(moved > 0)
        print("soak: \(counts), \(moved) partitions moved, seed \(Self.seed)")
        #expect(broker.child.stop(timeoutMilliseconds: 30_000) == .exited(0))
    }

    /// Little per second, so that hours of it can be kept and judged.
    private func load(_ broker: LiveBroker) throws -> [TortureQueue] {
        let levels: [(String, DurabilityLevel, Int, [String])] = [
            ("orders", .synced, 3, ["", "gateway-3"]), ("fills", .written, 2, [""]),
            ("ticks", .memory, 2, ["feed"]),
        ]
        return try levels.enumerated().map { place, level in
            try TortureQueue.make(
                level.0,
                level.1,
                partitions: level.2,
                producerNames: level.3,
                firstProducer: UInt32(place) * 10 + 1,
                recordsPerSecond: 300,
                seed: Self.seed,
                on: broker
            )
        }
    }

    /// A producer to a queue that retention keeps short, and the probe's queue.
    private func roll(on broker: LiveBroker) throws -> ReplayProducer {
        for name in ["rolled", "probe"] {
            _ = try broker.connect().request(
                .queueCreate,
                QueueCreateRequest(
                    name: name,
                    partitions: 1,
                    level: .synced,
                    retention: Retention(records: 10_000)
                ),
                reply: QueueInfo.self
            )
        }
        var generator = OrderGenerator(seed: Self.seed)
        let lines = (0..<1000).map { _ in
            ReplayLine(value: Array(generator.line().utf8), key: [], timestamp: 0)
        }
        var settings = ReplayProducer.Settings(
            queue: "rolled",
            stream: ReplayStream(producer: 91, lines: lines, partitionCount: 1)
        )
        settings.recordsPerSecond = 20_000
        settings.seed = Self.seed
        return ReplayProducer(settings, to: broker.place)
    }

    private func live(
        for seconds: Double,
        _ broker: LiveBroker,
        _ queues: [TortureQueue],
        _ counts: inout Counts
    ) throws -> SoakMeter {
        let probe = try Probe(broker)
        var meter = SoakMeter()
        let process = broker.child.processID
        let end = ContinuousClock().now + .seconds(seconds)
        while ContinuousClock().now < end {
            try Torture.wait("for nothing", broker, queues) { true }
            let answer = try probe.publish()
            #expect(answer.status == .ok)
            meter.samples.append(
                SoakSample(
                    residentKiB: try SoakSample.residentKiB(of: process),
                    descriptors: try SoakSample.descriptors(of: process),
                    publishMicroseconds: answer.microseconds
                )
            )
            if meter.samples.count % 5 == 0 { try probe.churn(&counts) }
            usleep(Self.sampleMicroseconds)
        }
        return meter
    }

    /// Another program takes all of the disk, for a few seconds.
    private func fill(
        _ disk: LoopDisk,
        _ broker: LiveBroker,
        _ queues: [TortureQueue],
        _ counts: inout Counts
    ) throws {
        let probe = try Probe(broker)
        defer { disk.unfill() }
        try Torture.wait("for a publish to be refused on a full disk", broker, queues) {
            disk.fill()
            let status = try probe.publish().status
            if status == .diskFull { counts.refusedPublishes += 1 }
            return status == .diskFull
        }
        // A while in which all retry, and nothing that was accepted is given up.
        usleep(3_000_000)
        #expect(try probe.fact("disk_level") == "reads-only")
        disk.unfill()
        try Torture.wait("for a publish after the disk was full", broker, queues) {
            try probe.publish().status == .ok
        }
        counts.fullDisks += 1
    }

    private func kill(
        _ broker: LiveBroker,
        _ queues: [TortureQueue],
        _ counts: inout Counts
    ) throws {
        let producers = queues.flatMap(\.producers)
        for producer in producers { producer.burst() }
        usleep(20_000)
        #expect(broker.kill() == .signalled(SIGKILL))
        for queue in queues { queue.recorder.crash() }
        for producer in producers { producer.pace() }
        _ = try broker.restart()
        counts.kills += 1
    }
}
