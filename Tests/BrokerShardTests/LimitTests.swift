import BrokerBasics
import BrokerCore
import BrokerShard
import BrokerTestSupport
import LogStorage
import Testing
import WireProtocol

@Suite("At a limit")
struct LimitTests {
    // MARK: a peer that takes nothing

    /// A connection that broke the protocol while what was sent to it is not read.
    private func drainingPeer(_ fixture: Fixture) throws -> SimulatedClient {
        let partition = try fixture.create("orders")[0]
        let slow = try fixture.connect("slow")
        _ = try #require(slow.subscribe("orders", stream: 1))
        slow.isReading = false
        try fixture.publish(2, to: partition, bytes: 900)
        slow.send([UInt8](repeating: 0xFF, count: 64))
        let state = fixture.shard.machine.connections[slow.index].pointee.state
        #expect(state == .draining)
        return slow
    }

    @Test("a connection that is to close is closed after a while when its peer does not read")
    func drainingForEver() throws {
        let fixture = try Fixture()
        let slow = try drainingPeer(fixture)
        let wait = fixture.shard.settings.limits.drainNanoseconds / .milliseconds(1)
        fixture.shard.pass(milliseconds: wait - 100)
        #expect(!slow.isClosed)
        fixture.shard.pass(milliseconds: 200)
        #expect(slow.isClosed)
        #expect(fixture.isServing())
    }

    @Test("a connection that is to close and goes on reading gets all that was left for it")
    func drainingSlowly() throws {
        let fixture = try Fixture()
        let slow = try drainingPeer(fixture)
        fixture.shard.pass(milliseconds: 9_000)
        #expect(!slow.isClosed)
        fixture.shard.readAgain(slow)
        fixture.shard.pass(milliseconds: 5)
        #expect(slow.isClosed)
        #expect(slow.delivered.count == 2)
        #expect(slow.pushes.contains { $0.header.opcode == Opcode.error.rawValue })
    }
}
