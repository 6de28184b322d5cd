import BlockingClient
import ChildProcess
import Glibc
import ReplayHarness
import ShardRuntime
import Testing
import WireProtocol

/// Sockets that are full: what a broker does when a peer takes its time.
@Suite(.serialized) struct SlowReaderTests {
    private static let batches = 400
    private static let batchBytes = 100_000

    @Test(
        "a reader that takes its time holds nobody up, and gets everything in order",
        arguments: LoopKind.allCases
    )
    func slowReader(loop: LoopKind) throws {
        let broker = try LiveBroker(loop)
        try broker.create("ticks", .memory, partitions: 1)
        // Credit for all of it: what stops the broker is the socket.
        let window = SubscriptionState.Window(records: 1 << 20, bytes: 1 << 30)
        let reader = try Subscription(on: broker.connect(), queue: "ticks", window: window)

        let place = broker.place
        let stream = try PublishStream(queue: "ticks") { (timeout) throws(ClientError) in
            try place.connect(clientName: "test", timeoutMilliseconds: timeout)
        }
        for number in 0..<Self.batches {
            var batch = BatchBuilder()
            let first = UInt8(truncatingIfNeeded: number)
            _ = batch.append(Record(value: [UInt8](repeating: first, count: Self.batchBytes)))
            try stream.publish(batch, to: 0)
        }
        // The publisher is done, and others are served, while the reader has not read.
        #expect(try stream.finish().count > 0)
        #expect(try broker.describe("ticks").partitions.first?.committedOffset == 400)

        var next: UInt64 = 0
        while next < UInt64(Self.batches) {
            let event = try #require(try reader.next(timeoutMilliseconds: 10_000))
            guard case .records(let batch) = event else {
                Issue.record("\(event)")
                return
            }
            for entry in batch.entries {
                #expect(entry.offset == next)
                #expect(entry.record.value.count == Self.batchBytes)
                #expect(entry.record.value.first == UInt8(truncatingIfNeeded: next))
                next += 1
            }
        }
        #expect(broker.child.stop(timeoutMilliseconds: 10_000) == .exited(0))
    }

    @Test(
        "a reader that goes away with its socket full is forgotten",
        arguments: LoopKind.allCases
    )
    func goneReader(loop: LoopKind) throws {
        let broker = try LiveBroker(loop)
        try broker.create("ticks", .memory, partitions: 1)
        let place = broker.place
        let stream = try PublishStream(queue: "ticks") { (timeout) throws(ClientError) in
            try place.connect(clientName: "test", timeoutMilliseconds: timeout)
        }
        for _ in 0..<Self.batches {
            var batch = BatchBuilder()
            _ = batch.append(Record(value: [UInt8](repeating: 1, count: Self.batchBytes)))
            try stream.publish(batch, to: 0)
        }
        _ = try stream.finish()
        stream.disconnect()
        let window = SubscriptionState.Window(records: 1 << 20, bytes: 1 << 30)
        for _ in 0..<4 {
            let connection = try broker.connect()
            _ = try Subscription(on: connection, queue: "ticks", window: window)
        }
        // Only the connection that asks is left, and it has no subscription.
        let limit = ContinuousClock().now + .seconds(10)
        while try facts(broker, "connections") != "1" {
            try #require(ContinuousClock().now < limit, "\(broker.child.lastWords)")
            usleep(5_000)
        }
        #expect(try facts(broker, "subscriptions") == "0")
        #expect(broker.child.stop(timeoutMilliseconds: 10_000) == .exited(0))
    }

    private func facts(_ broker: LiveBroker, _ name: String) throws -> String? {
        try broker.connect().request(.serverDescribe, Empty(), reply: ServerDescription.self)
            .facts.first { $0.name == name }?.value
    }
}
