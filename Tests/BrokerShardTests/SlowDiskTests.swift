import BrokerBasics
import BrokerCore
import BrokerShard
import BrokerTestSupport
import LogStorage
import Testing
import WireProtocol

@Suite("A slow disk")
struct SlowDiskTests {
    @Test(
        "with operations of seconds publishers wait within their bounds, all else is answered, nothing is lost",
        arguments: [UInt64(50), 500, 5000])
    func slow(milliseconds: UInt64) throws {
        let fixture = try Fixture {
            $0.limits.tailBytesMax = 256 * 1024
            $0.latencyMax = milliseconds * 1_000_000
        }
        let orders = try fixture.create("orders")[0]
        let ticks = try fixture.create("ticks", level: .memory)[0]
        let publisher = try fixture.connect("publisher")
        fixture.shard.run { !publisher.replies.isEmpty }
        var sent: [UInt64] = []
        var longest: UInt64 = 0
        var tail = 0
        for number in 0..<300 {
            sent.append(
                publisher.publish(
                    batch(["\(number)"], bytes: 900), partition: number % 4 == 0 ? ticks : orders))
            // Who asks nothing of the disk does not wait for it.
            let asked = fixture.shard.time
            #expect(fixture.client.ask(.ping, Empty(), reply: Empty.self) != nil)
            longest = max(longest, fixture.shard.time.since(asked))
            tail = max(tail, fixture.shard.machine.state.pool.usedBytes)
        }
        let input = fixture.shard.machine.inputMemoryBytes
        #expect(longest == 0, "PING took \(longest) ns")
        #expect(tail <= fixture.shard.settings.limits.tailBytesMax)
        #expect(input <= fixture.shard.settings.limits.inputBytesMax)
        #expect(!publisher.isClosed)
        #expect(fixture.shard.run(steps: 60_000) { sent.allSatisfy { publisher.isAnswered($0) } })
        #expect(sent.allSatisfy { publisher.confirm(of: $0) != nil })
        #expect(fixture.counters.storageFailure == nil)
        #expect(try fixture.readBack("orders", records: 225).map(\.offset) == Array(0..<225))
    }
}
