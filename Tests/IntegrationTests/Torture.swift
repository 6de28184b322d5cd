import BlockingClient
import BrokerBasics
import ChildProcess
import Foundation
import LogChecker
import ReplayHarness
import Testing
import WireProtocol

struct TortureError: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
}

/// What all runs against a broker that is killed have in common.
enum Torture {
    /// What is known of one queue at the end, when nothing was wrong.
    struct Verdict {
        /// That the clients' history tells of.
        var crashes: Int
        /// Records whose producer had no answer when a connection broke.
        var unanswered: Int
        var sent: Int
        var delivered: Int
    }

    static func start(_ queues: [TortureQueue]) {
        for queue in queues {
            for reader in queue.readers { reader.start() }
            for producer in queue.producers { producer.start() }
        }
    }

    /// Ends all threads, however far they are.
    static func end(_ broker: LiveBroker, _ queues: [TortureQueue]) {
        broker.place.current = nil
        for queue in queues {
            for producer in queue.producers { producer.abort() }
            for reader in queue.readers { reader.stop() }
            for producer in queue.producers { _ = producer.join() }
            for reader in queue.readers { _ = reader.join() }
        }
    }

    /// Asks again and again; it is other processes that are waited for.
    static func wait(
        _ what: String,
        _ broker: LiveBroker,
        _ queues: [TortureQueue],
        until isDone: () throws -> Bool
    ) throws {
        let limit = ContinuousClock().now + .seconds(240)
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
                throw TortureError("waited 240 s \(what)\n\(state(of: queues))")
            }
            usleep(500)
        }
    }

    /// How far everybody is: what a wait that is given up has to say.
    private static func state(of queues: [TortureQueue]) -> String {
        queues.flatMap { queue in
            queue.producers.map { "\(queue.name), producer: \($0.progress.inFlight) in flight" }
                + queue.readers.map { "\(queue.name), reader: \($0.progress)" }
        }
        .joined(separator: "\n")
    }

    /// Lets the producers come to their end, and the readers to the end of what is there.
    static func finish(
        _ broker: LiveBroker,
        _ queues: [TortureQueue]
    ) throws -> [[SentHistory]] {
        let producers = queues.flatMap(\.producers)
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
            try wait("for the readers of \(queue.name), up to \(ends)", broker, queues) {
                queue.readers.allSatisfy { reader in
                    let offsets = reader.progress.offsets
                    return offsets.count == ends.count && zip(offsets, ends).allSatisfy(>=)
                }
            }
        }
        for queue in queues { for reader in queue.readers { reader.stop() } }
        return histories
    }

    /// Reads all back, and holds it against what the clients saw.
    static func judge(
        _ broker: LiveBroker,
        _ queues: [TortureQueue],
        _ histories: [[SentHistory]],
        again: String
    ) throws -> [Verdict] {
        let connection = try broker.connect()
        var verdicts: [Verdict] = []
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

            let unanswered = queue.producers.reduce(0) {
                $0 + $1.progress.inFlightAtBreak.reduce(0, +)
            }
            let repeated = queue.producers.reduce(0) { $0 + $1.progress.duplicates }
            let member = queue.member.progress
            #expect(member.acksConfirmed > 0)
            #expect(queue.alone.progress.connections > 1)
            let info = try connection.request(
                .groupDescribe,
                GroupDescribeRequest(queue: queue.name, group: TortureQueue.group),
                reply: GroupInfo.self
            )
            #expect(info.lagRecords == 0, "\(queue.name), \(again)")
            print(
                "torture, \(queue.name): \(report.sent) records confirmed and \(report.read) read "
                    + "back, \(unanswered) unanswered at the kills, \(repeated) of them stored "
                    + "before, \(report.lostConfirmed) lost as said, \(member.acksConfirmed) acks, "
                    + "\(member.delivered) delivered to the group"
            )
            verdicts.append(
                Verdict(
                    crashes: second.crashes,
                    unanswered: unanswered,
                    sent: report.sent,
                    delivered: second.delivered
                )
            )
        }
        return verdicts
    }
}
