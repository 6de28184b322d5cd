import BlockingClient
import ChildProcess
import Foundation
import ReplayHarness
import ShardRuntime
import Testing
import WireProtocol

/// A real bit on a real disk, while the broker serves.
@Suite(.serialized) struct SegmentScrubTests {
    private static let batches = 100
    private static let batchBytes = 100_000
    /// In the fifth of the chunks of two batches.
    private static let damagedByte: UInt64 = 1_000_000

    @Test(
        "a flipped bit in a segment is found without a reader, logged, counted, and not served",
        arguments: LoopKind.allCases
    )
    func flippedBit(loop: LoopKind) throws {
        let broker = try LiveBroker(loop)
        try broker.create("orders", .synced, partitions: 1)
        let place = broker.place
        let stream = try PublishStream(queue: "orders") { (timeout) throws(ClientError) in
            try place.connect(clientName: "test", timeoutMilliseconds: timeout)
        }
        for number in 0..<Self.batches {
            var batch = BatchBuilder()
            let first = UInt8(truncatingIfNeeded: number)
            _ = batch.append(Record(value: [UInt8](repeating: first, count: Self.batchBytes)))
            try stream.publish(batch, to: 0)
        }
        _ = try stream.finish()
        stream.disconnect()
        #expect(broker.child.stop(timeoutMilliseconds: 30_000) == .exited(0))
        try flip(in: broker.path + "/data/segments")
        _ = try broker.restart()

        let limit = ContinuousClock().now + .seconds(120)
        while try fact(broker, "scrub_passes") == "0" {
            try #require(ContinuousClock().now < limit, "\(broker.child.lastWords)")
            usleep(20_000)
        }
        #expect(try fact(broker, "damaged_ranges") == "1")
        #expect(broker.child.log.contains("of partition 1 can't be read"))
        let window = SubscriptionState.Window(records: 1 << 20, bytes: 1 << 30)
        let reader = try Subscription(on: broker.connect(), queue: "orders", window: window)
        var next: UInt64 = 0
        reading: while true {
            switch try #require(try reader.next(timeoutMilliseconds: 30_000)) {
            case .records(let batch):
                for entry in batch.entries {
                    #expect(entry.offset == next)
                    #expect(entry.record.value.first == UInt8(truncatingIfNeeded: next))
                    next += 1
                }
            case .ended(let refused):
                #expect(refused.code == StatusCode.dataDamaged.rawValue)
                break reading
            case let event:
                Issue.record("\(event)")
                break reading
            }
        }
        #expect(next > 0)
        #expect(next < UInt64(Self.batches))
        #expect(broker.child.stop(timeoutMilliseconds: 30_000) == .exited(0))
    }

    private func flip(in directory: String) throws {
        let names = try FileManager.default.contentsOfDirectory(atPath: directory)
        let file = try #require(names.sorted().first)
        let handle = try #require(FileHandle(forUpdatingAtPath: directory + "/" + file))
        defer { try? handle.close() }
        try handle.seek(toOffset: Self.damagedByte)
        var byte = try #require(try handle.read(upToCount: 1))
        byte[byte.startIndex] ^= 0x10
        try handle.seek(toOffset: Self.damagedByte)
        try handle.write(contentsOf: byte)
    }

    private func fact(_ broker: LiveBroker, _ name: String) throws -> String {
        let description = try broker.connect().request(
            .serverDescribe,
            Empty(),
            reply: ServerDescription.self
        )
        return try #require(description.facts.first { $0.name == name }).value
    }
}
