internal import BrokerBasics
internal import BrokerShard
internal import BrokerTestSupport
internal import Testing

@Suite("Deleting a queue")
struct DeleteDuringCheckpointTests {
    @Test("a checkpoint does not wait for the chunks of a deleted queue", arguments: [1, 2, 3])
    func doesNotWait(seed: UInt64) throws {
        var settings = SimulatedShard.Settings()
        settings.latencyMax = 2_000_000
        settings.limits.writesBehindMax = 1
        let runner = try ScenarioRunner(settings: settings, seed: seed)
        #expect(runner.start())
        let client = try #require(runner.connect())
        let busy = runner.createQueue(client, "busy", partitions: 4)
        let orders = runner.createQueue(client, "orders")
        let producer = try #require(runner.openProducer(client))
        var isWaiting = false
        for _ in 0..<400 where !isWaiting {
            for partition in busy {
                runner.publish(client, producer, partition, records: 2, bytes: 900)
            }
            runner.shard.step()
            isWaiting = runner.shard.machine.checkpointer.phase == .flushing
        }
        #expect(isWaiting, "the test needs a checkpoint that waits")
        runner.deleteQueue(client, "busy")
        let done = runner.shard.machine.counters.checkpoints
        for _ in 0..<60 {
            runner.publish(client, producer, orders[0], records: 4, bytes: 1500)
        }
        runner.settle(client, orders)
        #expect(runner.violation == nil)
        #expect(
            runner.shard.machine.counters.checkpoints > done, "no checkpoint after the deletion")
        #expect(runner.shard.run(until: { runner.shard.machine.checkpointer.phase == .idle }))
    }
}
