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

    @Test(
        "so with several shards, another number of them after each kill, and moves between",
        arguments: LoopKind.allCases
    )
    func killsOfShards(loop: LoopKind) throws {
        let again = "again: MILLRACE_SEED=\(Self.seed) swift test -c release --filter Torture"
        do {
            try torture(loop, [2, 2, 3, 1, 3], again)
        } catch {
            Issue.record("\(error) (\(again))")
        }
    }

    private func torture(_ loop: LoopKind, _ shards: [Int], _ again: String) throws {
        let broker = try LiveBroker(loop, shards: shards)
        let queues = [
            try TortureQueue.make(
                "orders",
                .synced,
                partitions: 3,
                producerNames: ["", "gateway-3", ""],
                firstProducer: 1,
                seed: Self.seed,
                on: broker
            ),
            try TortureQueue.make(
                "fills",
                .written,
                partitions: 1,
                producerNames: [""],
                firstProducer: 21,
                seed: Self.seed,
                on: broker
            ),
            try TortureQueue.make(
                "ticks",
                .memory,
                partitions: 2,
                producerNames: ["", "feed"],
                firstProducer: 11,
                seed: Self.seed,
                on: broker
            ),
        ]
        defer { Torture.end(broker, queues) }
        Torture.start(queues)
        let producers = queues.flatMap(\.producers)
        try Torture.wait("for the first confirms", broker, queues) {
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
            try Torture.wait("for the moment", broker, queues) { ContinuousClock().now >= moment }
            for producer in producers { producer.burst() }
            let last = ContinuousClock().now + .microseconds(random.below(30_000))
            try Torture.wait("for the moment", broker, queues) { ContinuousClock().now >= last }
            #expect(broker.kill() == .signalled(SIGKILL), "kill \(number), \(again)")
            for queue in queues { queue.recorder.crash() }
            for producer in producers { producer.pace() }
            recoveries.append(try broker.restart())
        }

        if let mover {
            try Torture.wait("for a move", broker, queues) { mover.moved > 0 }
        }
        if let moved = mover?.stop() {
            print("torture: \(moved) partitions moved to another shard between the kills")
            #expect(moved > 0, "\(again)")
        }
        let histories = try Torture.finish(broker, queues)
        let verdicts = try Torture.judge(broker, queues, histories, again: again)
        for (queue, verdict) in zip(queues, verdicts) {
            #expect(verdict.crashes == Self.kills)
            // The faults must have met something, or nothing was shown.
            #expect(verdict.unanswered > 0, "no publish of \(queue.name) was in flight (\(again))")
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
