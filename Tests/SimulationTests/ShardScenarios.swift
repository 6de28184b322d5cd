internal import BrokerBasics
internal import BrokerCore
internal import BrokerShard
internal import BrokerTestSupport
internal import LogStorage
internal import WireProtocol

// Stories of several shards. Every crash of them is recovered with another number of shards now and then:
// whoever starts the broker may choose.
extension Scenario {
    static let sharded: [Scenario] = [
        shardsPublish, shardsControl, shardsGroups, shardsChanged, shardsMoveLevels, shardsMove,
        shardsMoveRead,
    ]

    private static func shards(_ count: Int) -> SimulatedShard.Settings {
        var settings = SimulatedShard.Settings()
        settings.shards = count
        return settings
    }

    private static func clients(_ runner: ScenarioRunner) throws -> [SimulatedClient] {
        guard runner.start() else { throw Violation("the broker does not start") }
        return try (0..<runner.settings.shards).map { shard in
            guard let client = runner.connect("client \(shard)", to: shard) else {
                throw Violation("shard \(shard) takes no client")
            }
            return client
        }
    }

    /// Waits until what any of them sent is confirmed.
    private static func settle(
        _ runner: ScenarioRunner, _ clients: [SimulatedClient], _ partitions: [UInt32]
    ) {
        runner.run {
            for client in clients { runner.note(client) }
            return clients.contains(where: \.isClosed)
                || partitions.allSatisfy { partition in
                    (runner.history.sent[partition] ?? []).allSatisfy { $0.confirmedAt != nil }
                }
        }
        for client in clients { runner.note(client) }
        runner.shard.pass(milliseconds: 1)
    }

    static let shardsPublish = Scenario(
        name: "two shards: publish at every front", settings: shards(2), changesShards: true
    ) { runner in
        let clients = try clients(runner)
        let orders = runner.createQueue(clients[1], "orders", partitions: 4)
        let ticks = runner.createQueue(clients[0], "ticks", partitions: 2, level: .memory)
        _ = clients[0].subscribe("orders", stream: 1)
        let producers = clients.compactMap { runner.openProducer($0) }
        for round in 0..<14 {
            for (client, producer) in zip(clients, producers) {
                for partition in orders {
                    runner.publish(client, producer, partition, records: 1 + round % 3)
                }
                for partition in ticks {
                    runner.publish(client, producer, partition, records: 3, bytes: 300)
                }
            }
            if round % 5 == 4 { settle(runner, clients, orders + ticks) }
        }
        settle(runner, clients, orders + ticks)
    }

    static let shardsControl = Scenario(
        name: "three shards: queues come, change and go", settings: shards(3), changesShards: true
    ) { runner in
        let clients = try clients(runner)
        guard let producer = runner.openProducer(clients[1], name: "gateway") else { return }
        for round in 0..<5 {
            let client = clients[round % 3]
            let queue = runner.createQueue(client, "q\(round)", partitions: 4)
            for partition in queue { runner.publish(client, producer, partition, records: 2) }
            settle(runner, clients, queue)
            runner.alter(
                clients[(round + 1) % 3], "q\(round)",
                labels: [Pair(name: "round", value: "\(round)")])
            if round % 2 == 1 { runner.deleteQueue(clients[(round + 2) % 3], "q\(round - 1)") }
        }
    }

    static let shardsGroups = Scenario(
        name: "three shards: a group's acks at every owner", settings: shards(3),
        changesShards: true
    ) { runner in
        let clients = try clients(runner)
        let queue = runner.createQueue(clients[0], "orders", partitions: 6)
        guard let producer = runner.openProducer(clients[0]) else { return }
        _ = clients[1].subscribe("orders", group: "desk", stream: 1)
        for round in 0..<4 {
            for partition in queue {
                runner.publish(clients[round % 3], producer, partition, records: 2)
            }
            settle(runner, clients, queue)
            runner.shard.pass(milliseconds: 2)
            runner.note(clients[1])
            for partition in queue {
                runner.ack(
                    clients[1], queue: "orders", group: "desk", stream: 1, partition: partition,
                    offset: UInt64(round * 2 + 1))
            }
        }
    }

    static let shardsChanged = Scenario(
        name: "the number of shards changes: 1, 2, 1, 3", settings: shards(1), changesShards: true
    ) { runner in
        var clients = try clients(runner)
        let orders = runner.createQueue(clients[0], "orders", partitions: 6)
        guard let producer = runner.openProducer(clients[0]) else { return }
        for (life, count) in [2, 1, 3, 2].enumerated() {
            for partition in orders {
                runner.publish(clients[0], producer, partition, records: 1 + life, bytes: 400)
            }
            if life % 2 == 0 { settle(runner, clients, orders) }
            for client in clients { runner.note(client) }
            if runner.violation != nil { return }
            try runner.crash(life % 2 == 0 ? .some : nil, shards: count)
            clients = try Self.clients(runner)
            for partition in orders { runner.retry(clients[0], partition) }
            settle(runner, clients, orders)
        }
        try runner.shard.retire()
        runner.shard.pass(milliseconds: 20)
    }

    static let shardsMove = Scenario(
        name: "two shards: partitions move there and back while they are written",
        settings: shards(2), changesShards: true
    ) { runner in
        let clients = try clients(runner)
        let orders = runner.createQueue(clients[0], "orders", partitions: 2)
        let ticks = runner.createQueue(clients[0], "ticks", partitions: 1, level: .memory)
        let fills = runner.createQueue(clients[1], "fills", partitions: 1, level: .written)
        let all = orders + ticks + fills
        let producers = clients.compactMap { runner.openProducer($0) }
        for round in 0..<6 {
            let mover = clients[round % 2]
            let moved = all[round % all.count]
            for (client, producer) in zip(clients, producers) {
                for partition in all { runner.publish(client, producer, partition, bytes: 300) }
            }
            runner.beginMove(mover, moved, to: UInt16((round / 2 + 1) % 2))
            for _ in 0..<4 {
                for (client, producer) in zip(clients, producers) {
                    for partition in all { runner.publish(client, producer, partition) }
                }
                runner.shard.pass(milliseconds: 1)
            }
            settle(runner, clients, all)
            if round % 3 == 2 { runner.shard.pass(milliseconds: 60) }
        }
        try requireMoves(3, clients)
    }

    /// The story is of moves: some of them must have come to their end.
    private static func requireMoves(_ count: Int, _ clients: [SimulatedClient]) throws {
        let done = clients.flatMap(\.replies.values).filter {
            $0.header.opcode == Opcode.queueMove.rawValue && $0.header.status == 0
        }.count
        if done < count { throw Violation("only \(done) partitions moved") }
    }

    static let shardsMoveRead = Scenario(
        name: "three shards: partitions move under groups and readers", settings: shards(3),
        changesShards: true
    ) { runner in
        let clients = try clients(runner)
        let queue = runner.createQueue(clients[0], "orders", partitions: 3)
        guard let producer = runner.openProducer(clients[0]) else { return }
        _ = clients[1].subscribe("orders", group: "desk", stream: 1)
        _ = clients[2].subscribe("orders", stream: 2)
        for round in 0..<4 {
            for partition in queue { runner.publish(clients[0], producer, partition, records: 2) }
            runner.beginMove(clients[round % 3], queue[round % 3], to: UInt16((round + 2) % 3))
            settle(runner, clients, queue)
            runner.shard.pass(milliseconds: 20)
            runner.note(clients[1])
            for partition in queue {
                runner.ack(
                    clients[1], queue: "orders", group: "desk", stream: 1, partition: partition,
                    offset: UInt64(round * 2 + 1))
            }
        }
        try requireMoves(3, clients)
    }

    static let shardsMoveLevels = Scenario(
        name: "the number of shards changes under queues of every level", settings: shards(2),
        changesShards: true
    ) { runner in
        var clients = try clients(runner)
        let orders = runner.createQueue(clients[0], "orders", partitions: 2)
        let ticks = runner.createQueue(clients[0], "ticks", partitions: 2, level: .memory)
        let fills = runner.createQueue(clients[1], "fills", partitions: 2, level: .written)
        let all = orders + ticks + fills
        guard let producer = runner.openProducer(clients[0], name: "gateway") else { return }
        for (life, count) in [1, 3, 2].enumerated() {
            for round in 0..<6 {
                for partition in all {
                    runner.publish(
                        clients[round % clients.count], producer, partition, bytes: 500)
                }
                settle(runner, clients, all)
            }
            if life == 1 { runner.shard.pass(milliseconds: 120) }
            if runner.violation != nil { return }
            try runner.crash(life == 1 ? .some : nil, shards: count)
            clients = try Self.clients(runner)
            for partition in all { runner.retry(clients[0], partition) }
            settle(runner, clients, all)
        }
    }
}
