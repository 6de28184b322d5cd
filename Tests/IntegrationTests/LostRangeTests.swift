import BlockingClient
import BrokerBasics
import ChildProcess
import Glibc
import ReplayHarness
import ShardRuntime
import Testing
import WireProtocol

/// The gaps of a memory queue over several kills.
@Suite(.serialized) struct LostRangeTests {
    @Test(
        "a gap is counted once, whether or not it was written before the next kill",
        arguments: LoopKind.allCases
    )
    func countedOnce(loop: LoopKind) throws {
        let broker = try LiveBroker(loop)
        let partitions = 16
        try broker.create("ticks", .memory, partitions: partitions)
        let place = broker.place
        let stream = try PublishStream(queue: "ticks") { (timeout) throws(ClientError) in
            try place.connect(clientName: "test", timeoutMilliseconds: timeout)
        }
        for index in 0..<partitions {
            var batch = BatchBuilder()
            _ = batch.append(Record(value: [UInt8(index)]))
            try stream.publish(batch, to: index)
        }
        _ = try stream.finish()
        stream.disconnect()
        #expect(broker.kill() == .signalled(SIGKILL))
        // Each time a little later: between recovery and the end of what it makes durable.
        for delay in stride(from: UInt32(0), to: 10_000, by: 1_000) {
            _ = try broker.restart()
            usleep(delay)
            #expect(broker.kill() == .signalled(SIGKILL))
        }
        _ = try broker.restart()
        let (_, summary) = try QueueReader.check("ticks", on: broker.connect(), histories: [])
        let counted = summary.queue.partitions.reduce(0) { $0 + $1.lostRecords }
        #expect(summary.lostOffsets > 0)
        #expect(counted == summary.lostOffsets)
        for partition in summary.queue.partitions {
            let offsets = partition.endOffset - partition.startOffset
            #expect(offsets == partition.records + partition.lostRecords)
        }
    }
}
