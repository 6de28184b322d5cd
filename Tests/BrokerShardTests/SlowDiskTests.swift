import BrokerBasics
import BrokerCore
import BrokerShard
import BrokerTestSupport
import LogStorage
import Testing
import WireProtocol

@Suite("A slow disk")
struct SlowDiskTests {
    @Test("a slow disk is said once, with how long is waited, and again when it is over")
    func said() throws {
        let fixture = try Fixture {
            $0.limits.diskSlowNanoseconds = .milliseconds(10)
            $0.latencyMax = 900_000_000
        }
        let orders = try fixture.create("orders")[0]
        func lines() -> [ShardEvent] {
            fixture.shard.machine.events.filter {
                switch $0 {
                case .diskSlow, .diskSteady: true
                default: false
                }
            }
        }
        fixture.shard.pass(milliseconds: 30_000)
        let before = lines().count
        let sent = fixture.client.publish(batch(["x"]), partition: orders)
        let began = fixture.shard.time
        /// The machine's next cycle comes so much later, and nothing has completed.
        func waited(_ milliseconds: UInt64) -> UInt64 {
            let now = Instant(
                monotonic: began + .milliseconds(milliseconds),
                wall: WallTime(nanoseconds: fixture.shard.wall))
            return fixture.shard.withMachine(0) { machine in
                machine.begin(now: now)
                machine.advance()
                return machine.journalWaitNanoseconds
            }
        }
        #expect(waited(0) == 0)
        #expect(waited(9) == .milliseconds(9))
        #expect(lines().count == before)
        for milliseconds in UInt64(11)...14 {
            #expect(waited(milliseconds) == .milliseconds(milliseconds))
        }
        #expect(lines().count == before + 1)
        guard case .diskSlow(let what)? = lines().last else {
            Issue.record("\(lines())")
            return
        }
        #expect(what.contains("11 ms"))
        fixture.shard.run { fixture.client.isAnswered(sent) }
        // Nothing is asked of it any more.
        fixture.shard.pass(milliseconds: 30_000)
        let left = fixture.shard.machine.journalWaitNanoseconds
        #expect(left == 0)
        guard case .diskSteady? = lines().last else {
            Issue.record("\(lines())")
            return
        }
    }

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
        // What takes more than a second is said while it is waited for.
        let slow = fixture.shard.machine.events.count {
            if case .diskSlow = $0 { true } else { false }
        }
        #expect((slow > 0) == (milliseconds > 1000))
        #expect(try fixture.readBack("orders", records: 225).map(\.offset) == Array(0..<225))
    }
}
