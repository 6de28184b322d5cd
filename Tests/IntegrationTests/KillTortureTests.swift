import BlockingClient
import BrokerBasics
import ChildProcess
import Foundation
import LogChecker
import ReplayHarness
import ShardRuntime
import Testing
import WireProtocol

/// A real broker under replay, killed again and again at moments that a seed chooses.
///
/// Ten kills as a rule, 200 with `MILLRACE_TORTURE=1`; `MILLRACE_SEED=N` repeats a run's choices.
@Suite(.serialized) struct KillTortureTests {
    private static let environment = ProcessInfo.processInfo.environment
    private static let seed =
        environment["MILLRACE_SEED"].flatMap(UInt64.init) ?? UInt64.random(in: 1...999_999)
    private static let kills = (environment["MILLRACE_TORTURE"] ?? "").isEmpty ? 10 : 200
    private static let group = "booking"

    private struct Queue {
        var name: String
        var level: DurabilityLevel
        var partitions: Int
        var producers: [ReplayProducer]
        var alone: LiveReader
        var member: LiveReader
        var recorder: HistoryRecorder

        var readers: [LiveReader] { [alone, member] }
    }

    private static func orders(seed: UInt64) -> [ReplayLine] {
        var generator = OrderGenerator(seed: seed)
        return lines(.orders) { generator.line() }
    }
    private static func feed(seed: UInt64) -> [ReplayLine] {
        var generator = FeedGenerator(seed: seed)
        return lines(.feed) { generator.line() }
    }
    private static func lines(
        _ format: RecordingFormat,
        _ next: () -> String
    ) -> [ReplayLine] {
        (0..<5_000).map { _ in
            let line = Array(next().utf8)
            let parsed = format.parse(line)
            return ReplayLine(
                value: line,
                key: parsed?.key ?? [],
                timestamp: parsed?.timestamp ?? 0
            )
        }
    }

    private static func make(
        _ name: String,
        _ level: DurabilityLevel,
        partitions: Int,
        producerNames: [String],
        firstProducer: UInt32,
        on broker: LiveBroker
    ) throws -> Queue {
        try broker.create(name, level, partitions: partitions)
        var producers: [ReplayProducer] = []
        var streams: [ReplayStream] = []
        for (number, producerName) in producerNames.enumerated() {
            let id = firstProducer + UInt32(number)
            let lines =
                level > .memory ? orders(seed: UInt64(id)) : feed(seed: UInt64(id))
            let stream = ReplayStream(
                producer: id,
                lines: lines,
                partitionCount: partitions,
                traceEvery: 7
            )
            var settings = ReplayProducer.Settings(queue: name, stream: stream)
            settings.options.producerName = producerName
            settings.options.window = 32
            settings.recordsPerSecond = 4_000
            settings.seed = seed &+ UInt64(id)
            streams.append(stream)
            producers.append(ReplayProducer(settings, to: broker.place))
        }
        let recorder = try HistoryRecorder(
            broker.describe(name),
            path: "\(broker.path)/\(name).history"
        )
        recorder.began("alone", at: [UInt64](repeating: 0, count: partitions))
        var alone = LiveReader.Settings(queue: name, streams: streams)
        alone.observe = { recorder.got($0, "alone") }
        var member = LiveReader.Settings(queue: name, streams: streams)
        member.group = group
        return Queue(
            name: name,
            level: level,
            partitions: partitions,
            producers: producers,
            alone: LiveReader(alone, from: broker.place),
            member: LiveReader(member, from: broker.place),
            recorder: recorder
        )
    }

    /// Asks again and again; it is other processes that are waited for.
    private func wait(
        _ what: String,
        _ broker: LiveBroker,
        _ queues: [Queue],
        until isDone: () throws -> Bool
    ) throws {
        let limit = ContinuousClock().now + .seconds(60)
        while try !isDone() {
            if let end = broker.child.end {
                throw TortureError("the broker ended with \(end):\n\(broker.child.lastWords)")
            }
            for queue in queues {
                let failures =
                    queue.producers.map(\.progress.failure) + queue.readers.map(\.progress.failure)
                if let failure = failures.compactMap({ $0 }).first { throw TortureError(failure) }
            }
            guard ContinuousClock().now < limit else {
                throw TortureError("waited 60 s \(what)")
            }
            usleep(500)
        }
    }

    private struct TortureError: Error, CustomStringConvertible {
        let description: String
        init(_ description: String) { self.description = description }
    }

    @Test(
        "killed again and again under replay, it loses, repeats and reorders nothing it confirmed",
        arguments: LoopKind.allCases
    )
    func kills(loop: LoopKind) throws {
        let again = "again: MILLRACE_SEED=\(Self.seed) swift test -c release --filter Torture"
        do {
            try torture(loop, [1], again)
        } catch {
            Issue.record("\(error) (\(again))")
        }
    }

    @Test("so with several shards, another number of them after each kill, and moves between")
    func killsOfShards() throws {
        let again = "again: MILLRACE_SEED=\(Self.seed) swift test -c release --filter Torture"
        do {
            try torture(.uring, [2, 2, 3, 1, 3], again)
        } catch {
            Issue.record("\(error) (\(again))")
        }
    }

    private func torture(_ loop: LoopKind, _ shards: [Int], _ again: String) throws {
        let broker = try LiveBroker(loop, shards: shards)
        let queues = [
            try Self.make(
                "orders",
                .synced,
                partitions: 3,
                producerNames: ["", "gateway-3", ""],
                firstProducer: 1,
                on: broker
            ),
            try Self.make(
                "fills",
                .written,
                partitions: 1,
                producerNames: [""],
                firstProducer: 21,
                on: broker
            ),
            try Self.make(
                "ticks",
                .memory,
                partitions: 2,
                producerNames: ["", "feed"],
                firstProducer: 11,
                on: broker
            ),
        ]
        defer {
            broker.place.current = nil
            for queue in queues {
                for producer in queue.producers { producer.abort() }
                for reader in queue.readers { reader.stop() }
                for producer in queue.producers { _ = producer.join() }
                for reader in queue.readers { _ = reader.join() }
            }
        }
        for queue in queues {
            for reader in queue.readers { reader.start() }
            for producer in queue.producers { producer.start() }
        }
        let producers = queues.flatMap(\.producers)
        try wait("for the first confirms", broker, queues) {
            producers.allSatisfy { $0.progress.confirmed > 0 }
        }

        let mover = shards.count > 1 ? PartitionMover(broker.place, queues.map(\.name)) : nil
        defer { mover?.stop() }
        var random = SeededRandom(seed: Self.seed)
        var recoveries: [Duration] = []
        for number in 1...Self.kills {
            // Some live for long enough to write segments and checkpoints, some die while those who
            // were cut off are still coming back.
            let quiet = random.chance(1, in: 5) ? random.below(5) : random.below(400)
            let moment = ContinuousClock().now + .milliseconds(quiet)
            try wait("for the moment", broker, queues) { ContinuousClock().now >= moment }
            for producer in producers { producer.burst() }
            let last = ContinuousClock().now + .microseconds(random.below(30_000))
            try wait("for the moment", broker, queues) { ContinuousClock().now >= last }
            #expect(broker.kill() == .signalled(SIGKILL), "kill \(number), \(again)")
            for queue in queues { queue.recorder.crash() }
            for producer in producers { producer.pace() }
            recoveries.append(try broker.restart())
        }

        if let mover {
            try wait("for a move", broker, queues) { mover.moved > 0 }
        }
        if let moved = mover?.stop() {
            print("torture: \(moved) partitions moved to another shard between the kills")
            #expect(moved > 0, "\(again)")
        }
        try wait("for confirms after the last kill", broker, queues) {
            producers.allSatisfy { $0.progress.inFlight < 32 * 16 }
        }
        for producer in producers { producer.finish() }
        try wait("for the last confirms", broker, queues) {
            producers.allSatisfy { $0.progress.inFlight == 0 }
        }
        let histories = queues.map { $0.producers.map { $0.join() } }
        for queue in queues {
            let ends = try broker.describe(queue.name).partitions.sorted { $0.index < $1.index }
                .map(\.committedOffset)
            try wait("for the readers of \(queue.name)", broker, queues) {
                queue.readers.allSatisfy { reader in
                    let offsets = reader.progress.offsets
                    return offsets.count == ends.count && zip(offsets, ends).allSatisfy(>=)
                }
            }
        }
        for queue in queues { for reader in queue.readers { reader.stop() } }

        let connection = try broker.connect()
        for (place, queue) in queues.enumerated() {
            let ends = try broker.describe(queue.name).partitions.sorted { $0.index < $1.index }
            queue.recorder.began("afterwards", at: ends.map(\.startOffset))
            var (checker, summary) = try QueueReader.check(
                queue.name,
                on: connection,
                histories: histories[place],
                observe: { queue.recorder.got($0, "afterwards") }
            )
            for reader in ["alone", "afterwards"] {
                queue.recorder.end(reader, at: ends.map(\.committedOffset))
            }
            checker.delivered(queue.alone.join(), isComplete: true)
            checker.delivered(queue.member.join(), isComplete: true)
            let report = checker.finish()
            let examples = report.examples.map { "\($0.violation): \($0.text)" }
                .joined(separator: "\n")
            #expect(report.counts.isEmpty, "\(queue.name): \(again)\n\(examples)")
            #expect(report.confirmed == report.sent)
            let said = summary.queue.partitions.reduce(0) { $0 + $1.lostRecords }
            #expect(said == report.lostOffsets, "\(again)")

            // Judged once more, by what shares no code with the broker, its client or this harness.
            for history in histories[place] { queue.recorder.published(history) }
            queue.recorder.flush()
            let second = try LogChecker.check(LogHistory(path: queue.recorder.path))
            #expect(
                second.isGood,
                "\(queue.name): \(again)\n\(second.faults.map(\.description).joined(separator: "\n"))"
            )
            #expect(second.published == report.sent)
            #expect(second.confirmed == report.confirmed)
            #expect(second.delivered >= 2 * report.read)
            #expect(second.lostAsSaid == report.lostConfirmed)
            #expect(second.crashes == Self.kills)

            // The faults must have met something, or nothing was shown.
            let unanswered = queue.producers.reduce(0) {
                $0 + $1.progress.inFlightAtBreak.reduce(0, +)
            }
            let repeated = queue.producers.reduce(0) { $0 + $1.progress.duplicates }
            #expect(unanswered > 0, "no publish of \(queue.name) was in flight (\(again))")
            let member = queue.member.progress
            #expect(member.acksConfirmed > 0)
            #expect(queue.alone.progress.connections > 1)
            let info = try connection.request(
                .groupDescribe,
                GroupDescribeRequest(queue: queue.name, group: Self.group),
                reply: GroupInfo.self
            )
            #expect(info.lagRecords == 0, "\(queue.name), \(again)")
            print(
                "torture, \(queue.name): \(report.sent) records confirmed and \(report.read) read "
                    + "back, \(unanswered) unanswered at the kills, \(repeated) of them stored "
                    + "before, \(report.lostConfirmed) lost as said, \(member.acksConfirmed) acks, "
                    + "\(member.delivered) delivered to the group"
            )
        }
        let sorted = recoveries.sorted()
        let times = (sorted.first, sorted[sorted.count / 2], sorted.last)
        print(
            "torture on \(loop.rawValue), shards \(shards): \(Self.kills) kills, seed \(Self.seed), recovery from \(times.0 ?? .zero) over "
                + "\(times.1) (median) to \(times.2 ?? .zero)"
        )
        if Self.kills <= 10 { print("torture: recoveries \(recoveries)") }
        #expect(broker.child.stop(timeoutMilliseconds: 10_000) == .exited(0))
    }

    @Test(
        "a producer's name fences whoever published under it before, also over a kill",
        arguments: LoopKind.allCases
    )
    func fencing(loop: LoopKind) throws {
        let broker = try LiveBroker(loop)
        try broker.create("orders", .synced, partitions: 1)
        let place = broker.place
        func open() throws -> PublishStream {
            var options = PublishStream.Options()
            options.producerName = "gateway-3"
            return try PublishStream(queue: "orders", options: options) {
                (timeout) throws(ClientError) in
                try place.connect(clientName: "test", timeoutMilliseconds: timeout)
            }
        }
        func batch(_ text: String) -> BatchBuilder {
            var batch = BatchBuilder()
            _ = batch.append(Record(value: Array(text.utf8)))
            return batch
        }
        let first = try open()
        try first.publish(batch("a"), to: 0)
        #expect(try first.finish().map(\.offset) == [0])
        let second = try open()
        #expect(broker.kill() == .signalled(SIGKILL))
        _ = try broker.restart()
        try first.publish(batch("b"), to: 0)
        let fenced = #expect(throws: ClientError.self) { try first.finish() }
        guard case .refused(let refused) = fenced else {
            Issue.record("not refused: \(String(describing: fenced))")
            return
        }
        #expect(refused.status == .producerFenced)
        try second.publish(batch("c"), to: 0)
        #expect(try second.finish().map(\.offset) == [1])
    }
}
