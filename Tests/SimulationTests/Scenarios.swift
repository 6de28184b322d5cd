internal import BrokerBasics
internal import BrokerCore
internal import BrokerShard
internal import BrokerTestSupport
internal import LogStorage
internal import WireProtocol

/// One story that is crashed at every disk operation. A scenario ends early when a check failed.
struct Scenario: Sendable, CustomStringConvertible {
    let name: String
    var settings = SimulatedShard.Settings()
    /// Who recovers may choose another number of shards.
    var changesShards = false
    /// Whether a crash may also be a killed process followed by a power cut.
    let play: @Sendable (ScenarioRunner) throws -> Void
    var description: String { name }

    static let all: [Scenario] =
        [
            publishSynced, publishMemory, mixedLevels, acks, segmentRoll, recycling,
            createAndDelete,
            alter, producerRetry, fullJournal, crashInRecovery, killThenPowerCut, namedProducer,
            quietPartition, orderlyStop, coldReads, deleteBusy, forcedOut, fewFiles,
            publishWritten, writtenAndSynced, writtenKillAndCut, downgraded, retention, purge,
            purgeInCheckpoint, alterRetention,
        ] + sharded

    private static func client(_ runner: ScenarioRunner) throws -> SimulatedClient {
        guard runner.start(), let client = runner.connect() else {
            throw Violation("the broker does not start")
        }
        return client
    }
    private static func producer(
        _ runner: ScenarioRunner, _ client: SimulatedClient, name: String = ""
    ) throws -> ProducerOpenReply {
        guard let producer = runner.openProducer(client, name: name) else {
            throw runner.violation ?? Violation("no producer id")
        }
        return producer
    }

    static let publishSynced = Scenario(name: "publish at synced") { runner in
        let client = try client(runner)
        let queue = runner.createQueue(client, "orders", partitions: 2)
        _ = client.subscribe("orders", stream: 1)
        let producer = try producer(runner, client)
        for round in 0..<24 {
            for partition in queue {
                runner.publish(client, producer, partition, records: 1 + round % 3)
            }
            if round % 4 == 3 { runner.settle(client, queue) }
        }
        runner.settle(client, queue)
    }

    static let publishMemory = Scenario(name: "publish at memory") { runner in
        let client = try client(runner)
        let queue = runner.createQueue(client, "ticks", level: .memory)
        let producer = try producer(runner, client)
        for round in 0..<60 {
            runner.publish(client, producer, queue[0], records: 4, bytes: 200)
            if round % 10 == 9 {
                runner.settle(client, queue)
                runner.shard.pass(milliseconds: 120)
            }
        }
        runner.settle(client, queue)
        runner.shard.pass(milliseconds: 300)
    }

    static let mixedLevels = Scenario(name: "memory and synced side by side") { runner in
        let client = try client(runner)
        let orders = runner.createQueue(client, "orders")
        let ticks = runner.createQueue(client, "ticks", level: .memory)
        let producer = try producer(runner, client)
        for round in 0..<30 {
            runner.publish(client, producer, orders[0])
            runner.publish(client, producer, ticks[0], records: 3, bytes: 300)
            if round % 6 == 5 { runner.settle(client, orders + ticks) }
            if round % 15 == 14 { runner.shard.pass(milliseconds: 110) }
        }
        runner.settle(client, orders + ticks)
    }

    static let publishWritten = Scenario(name: "publish at written") { runner in
        let client = try client(runner)
        let queue = runner.createQueue(client, "fills", partitions: 2, level: .written)
        _ = client.subscribe("fills", stream: 1)
        let producer = try producer(runner, client)
        for round in 0..<40 {
            for partition in queue {
                runner.publish(client, producer, partition, records: 1 + round % 3, bytes: 300)
            }
            if round % 4 == 3 { runner.settle(client, queue) }
            if round % 16 == 15 { runner.shard.pass(milliseconds: 30) }
        }
        runner.settle(client, queue)
        runner.shard.pass(milliseconds: 300)
    }

    static let writtenAndSynced = Scenario(name: "written and synced side by side") { runner in
        let client = try client(runner)
        let fills = runner.createQueue(client, "fills", level: .written)
        let orders = runner.createQueue(client, "orders")
        _ = client.subscribe("orders", stream: 1)
        _ = client.subscribe("fills", stream: 2)
        let producer = try producer(runner, client)
        for round in 0..<60 {
            // Sometimes one beside the other in a group, sometimes one behind the other.
            runner.publish(client, producer, fills[0], records: 2, bytes: 700)
            if round % 3 == 0 { runner.shard.step() }
            if round % 2 == 0 { runner.publish(client, producer, orders[0], bytes: 400) }
            if round % 5 == 4 { runner.settle(client, orders + fills) }
        }
        runner.settle(client, orders + fills)
        runner.shard.pass(milliseconds: 30)
    }

    static let writtenKillAndCut = Scenario(name: "written: killed, then a power cut") { runner in
        var client = try client(runner)
        let fills = runner.createQueue(client, "fills", level: .written)
        let orders = runner.createQueue(client, "orders")
        let producer = try producer(runner, client)
        for life in 0..<10 {
            for round in 0..<3 + life % 3 {
                runner.publish(client, producer, fills[0], records: 3, bytes: 600)
                if round % 2 == 0 { runner.publish(client, producer, orders[0]) }
            }
            if life % 4 == 1 { runner.settle(client, fills + orders) }
            if life % 4 == 2 { runner.shard.pass(milliseconds: 40) }
            runner.note(client)
            if runner.violation != nil { return }
            try runner.crash(
                life % 2 == 0 ? nil : life % 4 == 1 ? SimulatedDisk.Survival.none : .some)
            guard runner.start(), let next = runner.connect("after crash \(life)") else { return }
            client = next
            _ = client.subscribe("fills", stream: 3)
            for partition in fills + orders { runner.retry(client, partition) }
            // What nobody publishes to after a crash must not wait for a publish.
            if life % 3 == 2 { runner.shard.pass(milliseconds: 11_000) }
            runner.settle(client, fills + orders)
        }
    }

    static let downgraded = Scenario(name: "publishes that ask for less") { runner in
        let client = try client(runner)
        let orders = runner.createQueue(client, "orders")
        let fills = runner.createQueue(client, "fills", level: .written)
        _ = client.subscribe("orders", stream: 1)
        let producer = try producer(runner, client)
        for round in 0..<30 {
            let asked: DurabilityLevel? = round % 3 == 0 ? nil : round % 3 == 1 ? .memory : .written
            runner.publish(client, producer, orders[0], asked: asked)
            runner.publish(client, producer, fills[0], records: 2, asked: asked)
            if round % 5 == 4 { runner.settle(client, orders + fills) }
        }
        runner.settle(client, orders + fills)
    }

    static let acks = Scenario(name: "acks of a group") { runner in
        let client = try client(runner)
        let queue = runner.createQueue(client, "orders", partitions: 2)
        let producer = try producer(runner, client)
        for _ in 0..<10 {
            for partition in queue { runner.publish(client, producer, partition, records: 2) }
        }
        runner.settle(client, queue)
        guard client.subscribe("orders", group: "desk", stream: 9) != nil else { return }
        for offset in stride(from: UInt64(2), through: 20, by: 3) {
            for partition in queue {
                runner.run {
                    client.delivered.contains {
                        $0.partition == partition && $0.offset + 1 >= offset
                    }
                }
                runner.ack(
                    client, queue: "orders", group: "desk", stream: 9, partition: partition,
                    offset: offset)
            }
        }
        runner.shard.pass(milliseconds: 12_000)
    }

    static let segmentRoll = Scenario(name: "segment roll and seal") { runner in
        let client = try client(runner)
        let queue = runner.createQueue(client, "orders")
        let producer = try producer(runner, client)
        for _ in 0..<80 {
            for _ in 0..<4 { runner.publish(client, producer, queue[0], records: 2, bytes: 500) }
            runner.settle(client, queue)
        }
    }

    static let recycling = Scenario(name: "journal recycling") { runner in
        let client = try client(runner)
        let queue = runner.createQueue(client, "orders", partitions: 3)
        let producer = try producer(runner, client)
        for round in 0..<140 {
            runner.publish(client, producer, queue[round % 3], records: 3, bytes: 700)
            runner.publish(client, producer, queue[(round + 1) % 3], records: 3, bytes: 700)
            runner.settle(client, queue)
        }
    }

    static let createAndDelete = Scenario(name: "queue create and delete") { runner in
        let client = try client(runner)
        for round in 0..<6 {
            let name = "queue-\(round)"
            let queue = runner.createQueue(client, name, partitions: 2)
            let producer = try producer(runner, client)
            for partition in queue { runner.publish(client, producer, partition, records: 2) }
            runner.settle(client, queue)
            if round % 2 == 1 { runner.deleteQueue(client, "queue-\(round - 1)") }
        }
        runner.shard.pass(milliseconds: 11_000)
    }

    static let alter = Scenario(name: "queue alter") { runner in
        let client = try client(runner)
        _ = runner.createQueue(client, "orders")
        for round in 0..<10 {
            runner.alter(
                client, "orders",
                labels: [
                    Pair(name: "owner", value: "desk-\(round)"),
                    Pair(name: "tier", value: round % 2 == 0 ? "order" : ""),
                ])
        }
        runner.shard.pass(milliseconds: 11_000)
        runner.alter(client, "orders", labels: [Pair(name: "owner", value: "last")])
    }

    static let producerRetry = Scenario(name: "producer retry after a crash") { runner in
        var client = try client(runner)
        let queue = runner.createQueue(client, "orders", partitions: 2)
        let producer = try producer(runner, client)
        for life in 0..<3 {
            for _ in 0..<8 {
                for partition in queue { runner.publish(client, producer, partition, records: 2) }
            }
            for _ in 0..<5 { runner.shard.step() }
            runner.note(client)
            if runner.violation != nil { return }
            try runner.crash(life % 2 == 0 ? .some : SimulatedDisk.Survival.none)
            guard runner.start(), let next = runner.connect() else { return }
            client = next
            for partition in queue { runner.retry(client, partition) }
            runner.settle(client, queue)
        }
    }

    static let fullJournal = Scenario(
        name: "a full journal",
        settings: {
            var settings = SimulatedShard.Settings()
            settings.latencyMax = 2_000_000
            return settings
        }()
    ) { runner in
        let client = try client(runner)
        let queue = runner.createQueue(client, "orders", partitions: 2)
        let producer = try producer(runner, client)
        for _ in 0..<120 {
            for partition in queue {
                runner.publish(client, producer, partition, records: 4, bytes: 1200)
            }
        }
        runner.settle(client, queue)
    }

    static let crashInRecovery = Scenario(name: "crash during recovery") { runner in
        var client = try client(runner)
        let queue = runner.createQueue(client, "orders", partitions: 2)
        let ticks = runner.createQueue(client, "ticks", level: .memory)
        let producer = try producer(runner, client)
        for life in 0..<5 {
            for _ in 0..<6 {
                for partition in queue { runner.publish(client, producer, partition, records: 3) }
                runner.publish(client, producer, ticks[0], records: 2)
            }
            runner.settle(client, queue)
            runner.shard.pass(milliseconds: UInt64(life) * 60)
            if runner.violation != nil { return }
            try runner.crash([.some, .all, SimulatedDisk.Survival.none, .latest, nil][life % 5])
            guard runner.start(), let next = runner.connect() else { return }
            client = next
        }
    }

    static let killThenPowerCut = Scenario(name: "a killed process, then a power cut") { runner in
        var client = try client(runner)
        let queue = runner.createQueue(client, "orders", partitions: 2)
        let producer = try producer(runner, client)
        for life in 0..<8 {
            // Two writes are in flight when the process dies: whole in the device's cache, or not.
            for _ in 0..<1 + life % 3 {
                runner.publish(client, producer, queue[0], records: 2)
                runner.publish(client, producer, queue[1], records: 3)
            }
            if life % 4 == 3 { runner.shard.step() }
            runner.note(client)
            if runner.violation != nil { return }
            try runner.crash(nil)
            guard runner.start(), let next = runner.connect("after kill") else { return }
            client = next
            _ = client.subscribe("orders", stream: 3)
            runner.shard.pass(milliseconds: 3)
            runner.note(client)
            if runner.violation != nil { return }
            try runner.crash(SimulatedDisk.Survival.none)
            guard runner.start(), let again = runner.connect("after cut \(life)") else { return }
            client = again
            for partition in queue { runner.retry(client, partition) }
            runner.settle(client, queue)
        }
    }

    static let namedProducer = Scenario(name: "a named producer and its next epoch") { runner in
        let client = try client(runner)
        let queue = runner.createQueue(client, "orders")
        for _ in 0..<5 {
            let producer = try producer(runner, client, name: "gateway")
            let anonymous = try Scenario.producer(runner, client)
            for _ in 0..<3 {
                runner.publish(client, anonymous, queue[0], records: 2)
                runner.settle(client, queue)
            }
            _ = producer
        }
        runner.shard.pass(milliseconds: 11_000)
    }

    static let quietPartition = Scenario(name: "a quiet partition beside a busy one") { runner in
        let client = try client(runner)
        let queue = runner.createQueue(client, "orders", partitions: 2)
        let producer = try producer(runner, client)
        runner.publish(client, producer, queue[0], records: 2)
        runner.settle(client, queue)
        for round in 0..<100 {
            runner.publish(client, producer, queue[1], records: 4, bytes: 900)
            runner.settle(client, queue)
            if round == 60 { runner.publish(client, producer, queue[0]) }
        }
    }

    static let forcedOut = Scenario(
        name: "many partitions that no checkpoint finds full",
        settings: {
            var settings = SimulatedShard.Settings()
            settings.limits.carryBytesMax = 1024
            return settings
        }()
    ) { runner in
        let client = try client(runner)
        let queue = runner.createQueue(client, "orders", partitions: 12)
        let producer = try producer(runner, client)
        for round in 0..<36 {
            for partition in queue {
                runner.publish(client, producer, partition, bytes: 500 + 10 * round)
            }
            runner.settle(client, queue)
        }
    }

    static let orderlyStop = Scenario(name: "an orderly stop") { runner in
        let client = try client(runner)
        let orders = runner.createQueue(client, "orders")
        let ticks = runner.createQueue(client, "ticks", level: .memory)
        let producer = try producer(runner, client)
        for _ in 0..<12 {
            runner.publish(client, producer, orders[0], records: 2)
            runner.publish(client, producer, ticks[0], records: 2)
        }
        runner.settle(client, orders + ticks)
        runner.stop()
    }

    static let fewFiles = Scenario(
        name: "more partitions than files",
        settings: {
            var settings = SimulatedShard.Settings()
            settings.limits.filesMax = 5
            settings.limits.carryBytesMax = 256
            return settings
        }()
    ) { runner in
        let client = try client(runner)
        let queue = runner.createQueue(client, "orders", partitions: 9)
        let producer = try producer(runner, client)
        for round in 0..<30 {
            for partition in queue {
                runner.publish(client, producer, partition, bytes: 400 + 20 * round)
            }
            runner.settle(client, queue)
        }
        runner.stop()
    }

    static let retention = Scenario(
        name: "retention removes segments below a slow group",
        settings: smallSegments
    ) { runner in
        let client = try client(runner)
        let orders = runner.createQueue(client, "orders", keepRecords: 30)
        let ticks = runner.createQueue(client, "ticks", level: .memory, keepRecords: 40)
        _ = client.subscribe("orders", group: "slow", stream: 5, credit: 4)
        let producer = try producer(runner, client)
        for round in 0..<36 {
            for partition in orders + ticks {
                runner.publish(client, producer, partition, records: 3, bytes: 800)
                runner.publish(client, producer, partition, records: 2, bytes: 500)
            }
            runner.settle(client, orders + ticks)
            if round % 4 == 3 { runner.look(client, "orders") }
            if round % 12 == 11 { runner.shard.pass(milliseconds: 10_500) }
        }
        runner.look(client, "ticks")
        guard runner.shard.machine.counters.removedSegments > 6 else {
            throw Violation("retention removed nothing to speak of")
        }
    }

    static let purge = Scenario(
        name: "purge of a tail, of segments, and in the middle", settings: smallSegments
    ) { runner in
        var client = try client(runner)
        let orders = runner.createQueue(client, "orders", partitions: 2)
        let ticks = runner.createQueue(client, "ticks", level: .memory)
        _ = client.subscribe("orders", group: "desk", stream: 5, credit: 3)
        let producer = try producer(runner, client)
        for round in 0..<16 {
            for partition in orders + ticks {
                runner.publish(client, producer, partition, records: 3, bytes: 900)
                runner.publish(client, producer, partition, records: 3, bytes: 700)
            }
            if round % 3 != 1 { runner.settle(client, orders + ticks) }
            switch round {
            case 1: runner.purge(client, "orders")
            case 4: runner.purge(client, "orders", partition: orders[0], before: 20)
            case 7: runner.purge(client, "orders", partition: orders[1], before: 31)
            case 8: runner.purge(client, "ticks")
            case 10:
                runner.shard.pass(milliseconds: 10_500)
                runner.purge(client, "ticks", before: 61)
                runner.purge(client, "orders")
                // Nothing is new when the next checkpoint comes.
                runner.shard.pass(milliseconds: 10_500)
            case 13:
                runner.settle(client, orders + ticks)
                if runner.violation != nil { return }
                try runner.crash(.some)
                guard runner.start(), let next = runner.connect() else { return }
                client = next
                runner.purge(client, "orders", partition: orders[0])
            default: break
            }
        }
        runner.settle(client, orders)
        runner.purge(client, "ticks")
        guard runner.shard.machine.counters.removedSegments > 0 else {
            throw Violation("no purge removed a segment")
        }
    }

    static let purgeInCheckpoint = Scenario(
        name: "purge during a checkpoint",
        settings: {
            var settings = smallSegments
            settings.latencyMax = 1_000_000
            return settings
        }()
    ) { runner in
        let client = try client(runner)
        let orders = runner.createQueue(client, "orders", partitions: 2)
        let producer = try producer(runner, client)
        var purges = 0
        for round in 0..<60 where purges < 6 {
            for partition in orders {
                runner.publish(client, producer, partition, records: 3, bytes: 900)
            }
            if round % 2 == 1 { runner.settle(client, orders) }
            for _ in 0..<6 where runner.shard.machine.checkpointer.phase == .idle {
                runner.shard.step()
            }
            // Not always in the same phase.
            for _ in 0..<purges { runner.shard.step() }
            guard runner.shard.machine.checkpointer.phase != .idle else { continue }
            purges += 1
            runner.purge(client, "orders", partition: orders[purges % 2])
        }
        runner.settle(client, orders)
        guard purges == 6 || runner.violation != nil else {
            throw Violation("only \(purges) purges met a checkpoint")
        }
    }

    static let alterRetention = Scenario(
        name: "retention that changes", settings: smallSegments
    ) { runner in
        let client = try client(runner)
        let orders = runner.createQueue(client, "orders", partitions: 2)
        let producer = try producer(runner, client)
        for round in 0..<30 {
            for partition in orders {
                runner.publish(client, producer, partition, records: 4, bytes: 800)
            }
            runner.settle(client, orders)
            switch round {
            case 14: runner.alter(client, "orders", keepRecords: 35)
            case 18: runner.alter(client, "orders", keepRecords: 0)
            case 24: runner.alter(client, "orders", keepRecords: 20)
            default: break
            }
            if round % 6 == 5 { runner.look(client, "orders") }
        }
        runner.shard.pass(milliseconds: 11_000)
        guard runner.shard.machine.counters.removedSegments > 2 else {
            throw Violation("the changed retention removed nothing to speak of")
        }
    }

    private static var smallSegments: SimulatedShard.Settings {
        var settings = SimulatedShard.Settings()
        settings.limits.segmentBytes = 32 * 1024
        return settings
    }

    static let coldReads = Scenario(name: "reading old records while new ones come") { runner in
        var client = try client(runner)
        let queue = runner.createQueue(client, "orders")
        let producer = try producer(runner, client)
        for _ in 0..<40 {
            for _ in 0..<3 { runner.publish(client, producer, queue[0], records: 2, bytes: 600) }
            runner.settle(client, queue)
        }
        if runner.violation != nil { return }
        try runner.crash(.some)
        guard runner.start(), let next = runner.connect() else { return }
        client = next
        _ = client.subscribe("orders", stream: 4)
        for _ in 0..<10 {
            runner.publish(client, producer, queue[0], records: 2, bytes: 600)
            runner.settle(client, queue)
        }
    }

    static let deleteBusy = Scenario(name: "busy queues deleted while others go on") { runner in
        let client = try client(runner)
        let orders = runner.createQueue(client, "orders")
        let producer = try producer(runner, client)
        for round in 0..<12 {
            let name = "busy-\(round)"
            let busy = runner.createQueue(client, name, partitions: 3)
            for _ in 0..<6 {
                for partition in busy {
                    runner.publish(client, producer, partition, records: 3, bytes: 900)
                }
            }
            runner.publish(client, producer, orders[0], records: 3, bytes: 900)
            runner.settle(client, orders)
            runner.deleteQueue(client, name)
        }
        runner.settle(client, orders)
    }
}
