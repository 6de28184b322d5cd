import BrokerBasics
import BrokerCore
import BrokerShard
import BrokerTestSupport
import Testing
import WireProtocol

/// The wall clock is set, by hand or by NTP: what was promised for a time is kept for that time. Append times
/// and timers: `SemanticsTests`; retention by age: `RetentionTests`.
@Suite("Steps of the wall clock")
struct ClockStepTests {
    private static let day: Int64 = 86_400_000_000_000

    private func fixture(expirySeconds: UInt32, shards: Int) throws -> Fixture {
        let fixture = try Fixture {
            $0.limits.producerExpirySeconds = expirySeconds
            $0.shards = shards
        }
        fixture.shard.run { fixture.shard.isReady }
        return fixture
    }

    /// Publishes the next record of a producer.
    private func publish(
        _ fixture: Fixture, _ producer: ProducerOpenReply, _ sequence: UInt64, to partition: UInt32
    ) throws -> StatusCode {
        try fixture.refusal(
            publishing: batch(
                ["\(sequence)"], producer: producer.producerID, epoch: producer.epoch,
                sequence: sequence), to: partition)
    }

    @Test("a silent producer is forgotten after its time", arguments: [1, 2])
    func expires(shards: Int) throws {
        let fixture = try fixture(expirySeconds: 120, shards: shards)
        let partition = try fixture.create("orders", partitions: 2)[1]
        let producer = try #require(
            fixture.client.ask(
                .producerOpen, ProducerOpenRequest(), reply: ProducerOpenReply.self))
        #expect(try publish(fixture, producer, 0, to: partition) == .ok)
        fixture.shard.pass(milliseconds: 250_000)
        #expect(try publish(fixture, producer, 1, to: partition) == .producerUnknown)
    }

    @Test(
        "no step of the wall clock forgets a producer that was here a moment ago",
        arguments: [1, 2], [day, -day, 365 * day])
    func steps(shards: Int, by step: Int64) throws {
        let fixture = try fixture(expirySeconds: 4 * 3600, shards: shards)
        let partition = try fixture.create("orders", partitions: 2)[1]
        let producer = try #require(
            fixture.client.ask(
                .producerOpen, ProducerOpenRequest(), reply: ProducerOpenReply.self))
        #expect(try publish(fixture, producer, 0, to: partition) == .ok)
        fixture.shard.stepWall(by: step)
        // Producers are looked at once a minute.
        fixture.shard.pass(milliseconds: 150_000)
        #expect(try publish(fixture, producer, 1, to: partition) == .ok)
        fixture.shard.stepWall(by: -step)
        fixture.shard.pass(milliseconds: 70_000)
        #expect(try publish(fixture, producer, 2, to: partition) == .ok)
        // Sent again it is known, and stored once.
        #expect(try publish(fixture, producer, 2, to: partition) == .ok)
        #expect(fixture.counters.duplicateBatches == (shards == 1 ? 1 : 0))
        #expect(try fixture.readBack("orders", records: 3).count == 3)
    }
}
