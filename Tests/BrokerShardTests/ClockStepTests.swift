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
        "silent producers are forgotten however many publish to other shards only",
        arguments: [1, 2])
    func expiresBehindOthers(shards: Int) throws {
        let fixture = try fixture(expirySeconds: 120, shards: shards)
        let partitions = try fixture.create("orders", partitions: UInt32(shards))
        let far = try #require(partitions.last)
        let producers = try (0..<400).map { _ in
            try #require(
                fixture.client.ask(
                    .producerOpen, ProducerOpenRequest(), reply: ProducerOpenReply.self))
        }
        // All but the last go on, on the last shard.
        for round in UInt64(0)..<5 {
            for producer in producers.dropLast() {
                #expect(try publish(fixture, producer, round, to: far) == .ok)
            }
            fixture.shard.pass(milliseconds: 60_000)
        }
        let last = try #require(producers.last)
        #expect(try publish(fixture, last, 0, to: far) == .producerUnknown)
        for producer in producers.prefix(3) {
            #expect(try publish(fixture, producer, 5, to: far) == .ok)
        }
        let known = fixture.shard.machine.state.producers.producers.count
        #expect(known == 399)
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
