import BlockingClient
import BrokerBasics
import ChildProcess
import Foundation
import LogChecker
import ReplayHarness
import ShardRuntime
import Testing
import WireProtocol

/// Images of a real broker's data directory, made under load, and brokers that are started on them.
@Suite(.serialized) struct ImageTests {
    private static func lines(seed: UInt64) -> [ReplayLine] {
        var generator = OrderGenerator(seed: seed)
        return (0..<5_000).map { _ in
            let line = Array(generator.line().utf8)
            let parsed = RecordingFormat.orders.parse(line)
            return ReplayLine(
                value: line,
                key: parsed?.key ?? [],
                timestamp: parsed?.timestamp ?? 0
            )
        }
    }

    private static func producer(
        _ id: UInt32,
        _ queue: String,
        partitions: Int,
        on broker: LiveBroker
    ) -> ReplayProducer {
        let stream = ReplayStream(
            producer: id,
            lines: lines(seed: UInt64(id)),
            partitionCount: partitions,
            traceEvery: 7
        )
        var settings = ReplayProducer.Settings(queue: queue, stream: stream)
        settings.options.window = 32
        settings.recordsPerSecond = 5_000
        settings.seed = UInt64(id)
        return ReplayProducer(settings, to: broker.place)
    }

    private func wait(_ what: String, until isDone: () throws -> Bool) throws {
        let limit = ContinuousClock().now + .seconds(120)
        while try !isDone() {
            try #require(ContinuousClock().now < limit, "waited 120 s \(what)")
            usleep(2_000)
        }
    }

    private func tool(
        _ arguments: [String], _ broker: LiveBroker, _ name: String
    ) throws
        -> (child: SpawnedChild, errors: String)
    {
        let base = broker.path + "/" + name
        let child = try SpawnedChild(
            try #require(Executable.beside("brokerctl")),
            arguments: arguments + ["--server", "\(broker.address)", "-o", "json"],
            input: nil,
            output: .file(base + ".out"),
            errors: .file(base + ".err")
        )
        return (child, base + ".err")
    }

    @Test(
        "an image made under load holds what was confirmed before it, and nothing that was not sent",
        arguments: [
            (LoopKind.uring, 1, 1), (.epoll, 1, 1), (.uring, 2, 2), (.uring, 2, 1), (.epoll, 2, 2),
        ]
    )
    func underLoad(loop: LoopKind, shards: Int, after: Int) throws {
        let images = try TemporaryDirectory(prefix: "millrace-images")
        let broker = try LiveBroker(
            loop,
            shards: [shards],
            more: [
                "--backup-dir", images.path, "--segment-size", "4MiB", "--checkpoint-interval",
                "300ms",
            ]
        )
        try broker.create("orders", .synced, partitions: 3)
        _ = try broker.connect().request(
            .queueCreate,
            QueueCreateRequest(
                name: "kept",
                partitions: 2,
                level: .synced,
                retention: Retention(records: 5_000)
            ),
            reply: QueueInfo.self
        )
        let orders = [1, 2].map { Self.producer($0, "orders", partitions: 3, on: broker) }
        let kept = Self.producer(3, "kept", partitions: 2, on: broker)
        let all = orders + [kept]
        defer {
            for producer in all { producer.abort() }
            for producer in all { _ = producer.join() }
        }
        for producer in all { producer.start() }
        try wait("for confirms") { all.allSatisfy { $0.progress.confirmed > 10_000 } }

        let before = try broker.describe("orders").partitions.sorted { $0.index < $1.index }
        let ends = before.map(\.committedOffset)
        #expect(ends.allSatisfy { $0 > 1_000 })
        // The journals alone take seconds at this rate.
        let first = try tool(["backup", "first", "--bandwidth", "32MiB"], broker, "first")
        try wait("for the first to begin") {
            try FileManager.default.contentsOfDirectory(atPath: images.path)
                .contains(".first.partial")
        }
        var refusedAsSecond = 0
        var rounds = 0
        while first.child.wait(timeoutMilliseconds: 1) == nil {
            rounds += 1
            try #require(rounds < 2_000)
            let name = "doomed-\(rounds)"
            try broker.create(name, .synced, partitions: 2)
            let second = try tool(["backup", "second"], broker, "second")
            if second.child.wait(timeoutMilliseconds: 600_000) == .exited(1),
                try String(contentsOfFile: second.errors, encoding: .utf8).contains("busy")
            {
                refusedAsSecond += 1
            }
            _ = try broker.connect().request(
                .queueDelete,
                QueueNameRequest(name: name),
                reply: Empty.self
            )
        }
        let said = try String(contentsOfFile: first.errors, encoding: .utf8)
        #expect(first.child.wait(timeoutMilliseconds: 1) == .exited(0), "\(said)")
        #expect(refusedAsSecond > 0)
        let again = try tool(["backup", "first"], broker, "again")
        #expect(again.child.wait(timeoutMilliseconds: 600_000) == .exited(1))
        let names = try FileManager.default.contentsOfDirectory(atPath: images.path)
        #expect(names.contains("first"))
        #expect(!names.contains { $0.hasSuffix(".partial") })

        for producer in all { producer.finish() }
        try wait("for the last confirms") { all.allSatisfy { $0.progress.inFlight == 0 } }
        let histories = orders.map { $0.join() }
        let recorder = try HistoryRecorder(
            broker.describe("orders"),
            path: broker.path + "/orders.history"
        )
        let live = try broker.describe("orders").partitions.map(\.committedOffset)
        #expect(broker.child.stop(timeoutMilliseconds: 30_000) == .exited(0))

        let image = images.path + "/first"
        let check = try SpawnedChild(
            try Executable.named("brokerd"),
            arguments: ["--data-dir", image, "--check-only"],
            input: nil,
            output: .file(broker.path + "/check.out"),
            errors: .file(broker.path + "/check.err")
        )
        let found = check.wait(timeoutMilliseconds: 600_000)
        let report = try String(contentsOfFile: broker.path + "/check.out", encoding: .utf8)
        #expect(found == .exited(0), "\(report)")

        let restored = try LiveBroker(loop, shards: [after], data: image)
        let partitions = try restored.describe("orders").partitions.sorted { $0.index < $1.index }
        for (partition, (end, last)) in zip(partitions, zip(ends, live)) {
            #expect(partition.committedOffset >= end)
            #expect(partition.committedOffset <= last)
        }
        recorder.began("restored", at: partitions.map(\.startOffset))
        _ = try QueueReader.check(
            "orders",
            on: restored.connect(),
            histories: histories,
            observe: { recorder.got($0, "restored") }
        )
        recorder.end("restored", at: partitions.map(\.committedOffset))
        for history in histories { recorder.published(history, confirmedBelow: ends) }
        recorder.flush()
        let verdict = try LogChecker.check(LogHistory(path: recorder.path))
        let faults = verdict.faults.map(\.description).joined(separator: "\n")
        #expect(verdict.isGood, "\(faults)")
        #expect(verdict.confirmed == Int(ends.reduce(0, +)))
        #expect(verdict.delivered >= verdict.confirmed)
        // It goes on where it was.
        let stream = try PublishStream(queue: "orders") { (timeout) throws(ClientError) in
            try restored.place.connect(clientName: "test", timeoutMilliseconds: timeout)
        }
        var batch = BatchBuilder()
        _ = batch.append(Record(value: Array("on".utf8)))
        try stream.publish(batch, to: 0)
        #expect(try stream.finish().map(\.offset) == [partitions[0].committedOffset])
        #expect(restored.child.stop(timeoutMilliseconds: 30_000) == .exited(0))
    }
}
