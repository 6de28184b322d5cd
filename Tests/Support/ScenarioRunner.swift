package import BrokerBasics
internal import BrokerCore
internal import BrokerShard
internal import LogStorage
package import WireProtocol

/// A scenario's hands: a broker in the simulator, clients, and the history that every crash is held
/// against.
package final class ScenarioRunner {
    package private(set) var shard: SimulatedShard
    package let history = History()
    package private(set) var settings: SimulatedShard.Settings
    package var random: SeededRandom
    private let seed: UInt64
    private var lives = 0
    /// Called around completions of every life.
    package var aroundCompletion: ((_ runner: ScenarioRunner, _ operation: String) throws -> Void)?
    package private(set) var violation: (any Error)?
    private var sequences: [[UInt64]: UInt64] = [:]

    package init(settings: SimulatedShard.Settings, seed: UInt64) throws {
        self.settings = settings
        self.seed = seed
        random = SeededRandom(seed: seed)
        shard = try SimulatedShard(disk: SimulatedDisk(), settings: settings, seed: seed)
    }

    package func watch() {
        shard.aroundCompletion = { [unowned self] operation, isAfter in
            guard violation == nil, let aroundCompletion else { return }
            do {
                try aroundCompletion(self, (isAfter ? "after " : "before ") + operation)
            } catch {
                violation = error
            }
        }
    }

    /// - Returns: false when the broker does not become ready, which is a violation.
    package func start() -> Bool {
        watch()
        shard.run(until: { shard.isReady || violation != nil })
        if violation == nil, !shard.isReady {
            violation = Violation("the broker does not become ready")
        }
        return violation == nil
    }

    /// An orderly stop, to its end.
    package func stop() {
        shard.beginStop()
        run { shard.isStopped }
        if violation == nil, !shard.isStopped {
            violation = Violation("the broker does not stop")
        }
    }

    /// A crash in the middle of the scenario; what follows happens on what it left.
    ///
    /// - Parameter shards: how many run from then on; `nil`: as many as before.
    package func crash(_ kind: SimulatedDisk.Survival?, shards: Int? = nil) throws {
        if let shards { settings.shards = shards }
        let disk: SimulatedDisk
        if let kind {
            disk = shard.disk.afterPowerCut(kind, &random)
            history.powerCuts += 1
        } else {
            disk = shard.disk.afterKill(&random)
        }
        lives += 1
        shard.aroundCompletion = nil
        shard = try SimulatedShard(
            disk: disk, settings: settings, seed: seed &+ UInt64(lives), wall: shard.wall)
        watch()
    }

    package func connect(_ name: String = "client", to number: Int = 0) -> SimulatedClient? {
        shard.connect(name, to: number)
    }

    package func run(until condition: () -> Bool) {
        shard.run(until: { violation != nil || condition() })
    }

    // MARK: what clients do, noted before it is asked and when it is answered

    package func createQueue(
        _ client: SimulatedClient, _ name: String, partitions: UInt32 = 1,
        level: DurabilityLevel = .synced, keepRecords: UInt64 = 0
    ) -> [UInt32] {
        let first = shard.machine.state.nextPartition
        history.queues[name] = History.QueueFacts(
            name: name, level: level, partitions: (0..<partitions).map { first + $0 })
        let retention = Retention(records: keepRecords)
        history.queues[name]?.retention = retention
        history.queues[name]?.recordsKeptMin = keepRecords
        let info = client.ask(
            .queueCreate,
            QueueCreateRequest(
                name: name, partitions: partitions, level: level, retention: retention),
            reply: QueueInfo.self)
        if let info {
            history.queues[name]?.isConfirmed = true
            return info.partitions.map(\.id)
        }
        return []
    }

    package func alter(_ client: SimulatedClient, _ name: String, labels: [Pair]) {
        var asked = history.queues[name]?.labels ?? []
        for label in labels {
            asked.removeAll { $0.name == label.name }
            if !label.value.isEmpty { asked.append(label) }
        }
        asked.sort { $0.name < $1.name }
        history.queues[name]?.labelsAsked = asked
        if client.ask(
            .queueAlter, QueueAlterRequest(name: name, labels: labels), reply: QueueInfo.self)
            != nil
        {
            history.queues[name]?.labels = asked
            history.queues[name]?.labelsAsked = nil
        }
    }

    /// Changes how many records each partition keeps; 0: all.
    package func alter(_ client: SimulatedClient, _ name: String, keepRecords: UInt64) {
        let retention = Retention(records: keepRecords)
        history.queues[name]?.retentionAsked = retention
        let before = history.queues[name]?.recordsKeptMin ?? 0
        if keepRecords > 0, before == 0 || keepRecords < before {
            history.queues[name]?.recordsKeptMin = keepRecords
        }
        let request = QueueAlterRequest(name: name, labels: [], retention: retention)
        if client.ask(.queueAlter, request, reply: QueueInfo.self) != nil {
            history.queues[name]?.retention = retention
            history.queues[name]?.retentionAsked = nil
        }
    }

    /// - Parameter partition: `nil` for all.
    package func purge(
        _ client: SimulatedClient, _ name: String, partition: UInt32? = nil,
        before: UInt64 = QueuePurgeRequest.toTheEnd
    ) {
        for id in history.queues[name]?.partitions ?? [] where partition == nil || partition == id {
            let sent = UInt64((history.sent[id] ?? []).reduce(0) { $0 + $1.values.count })
            // A `memory` queue counts lost offsets as well.
            let end = history.queues[name]?.level == .synced ? sent : .max
            history.purgeAsked[id] = max(history.purgeAsked[id] ?? 0, min(before, end))
        }
        let request = QueuePurgeRequest(
            name: name, partition: partition.map { PartitionID(rawValue: $0) } ?? .all,
            before: before)
        if let info = client.ask(.queuePurge, request, reply: QueueInfo.self) { noteStarts(info) }
    }

    /// Takes in where a queue's partitions start, as anybody may see it.
    package func look(_ client: SimulatedClient, _ name: String) {
        let info = client.ask(.queueDescribe, QueueNameRequest(name: name), reply: QueueInfo.self)
        if let info { noteStarts(info) }
    }

    private func noteStarts(_ info: QueueInfo) {
        for partition in info.partitions {
            history.sawStart(partition.startOffset, of: partition.id)
        }
    }

    /// Asks for a partition to move, and does not wait for it.
    package func beginMove(_ client: SimulatedClient, _ partition: UInt32, to shard: UInt16) {
        client.request(.queueMove, QueueMoveRequest(partition: partition, shard: shard))
    }

    package func deleteQueue(_ client: SimulatedClient, _ name: String) {
        history.queues[name]?.deletionAsked = true
        if client.ask(.queueDelete, QueueNameRequest(name: name), reply: Empty.self) != nil {
            history.queues[name]?.deletionConfirmed = true
        }
    }

    package func openProducer(
        _ client: SimulatedClient, name: String = ""
    ) -> ProducerOpenReply? {
        client.ask(
            .producerOpen, ProducerOpenRequest(name: name), reply: ProducerOpenReply.self)
    }

    /// Publishes a batch of `records` records; not waited for.
    ///
    /// - Parameter asked: the level at which it is to be confirmed, if not the queue's.
    package func publish(
        _ client: SimulatedClient, _ producer: ProducerOpenReply, _ partition: UInt32,
        records: Int = 1, bytes: Int = 120, asked: DurabilityLevel? = nil
    ) {
        let key = [producer.producerID, UInt64(producer.epoch), UInt64(partition)]
        let sequence = sequences[key] ?? 0
        sequences[key] = sequence + UInt64(records)
        var builder = BatchBuilder()
        var values: [[UInt8]] = []
        for place in 0..<UInt64(records) {
            let value = History.value(
                producer: producer.producerID, sequence: sequence + place, partition: partition,
                bytes: bytes)
            values.append(value)
            _ = builder.append(Record(value: value, timestamp: 1))
        }
        let batch = builder.finish(
            producer: ProducerID(rawValue: producer.producerID), epoch: producer.epoch,
            sequence: sequence)
        nextCorrelation += 1
        history.sent[partition, default: []].append(
            History.Sent(
                producer: producer.producerID, epoch: producer.epoch, sequence: sequence,
                values: values, correlation: nextCorrelation))
        let field = asked.map {
            OptionalFields.encode(OptionalFields.confirmLevel, isMandatory: true, [$0.rawValue])
        }
        client.send(
            FrameHeader(
                opcode: .publish, correlation: nextCorrelation, stream: partition,
                tlvBytes: UInt16(field?.count ?? 0)
            ).frame(body: (field ?? []) + batch))
    }
    private var nextCorrelation: UInt64 = 1 << 32

    /// Sends everything that is not confirmed again, with the same sequences.
    package func retry(_ client: SimulatedClient, _ partition: UInt32) {
        for sent in history.sent[partition] ?? [] where sent.confirmedAt == nil {
            var builder = BatchBuilder()
            for value in sent.values { _ = builder.append(Record(value: value, timestamp: 1)) }
            let batch = builder.finish(
                producer: ProducerID(rawValue: sent.producer), epoch: sent.epoch,
                sequence: sent.sequence)
            client.send(
                FrameHeader(opcode: .publish, correlation: sent.correlation, stream: partition)
                    .frame(body: batch))
        }
    }

    /// Moves confirms and deliveries of a client into the history.
    package func note(_ client: SimulatedClient) {
        history.confirm(client.confirms)
        client.confirms = []
        for record in client.delivered[client.notedDeliveries...] {
            history.delivered[record.partition, default: [:]][record.offset] = (
                record.value, history.powerCuts
            )
        }
        client.notedDeliveries = client.delivered.count
        for push in client.skipped { history.sawStart(push.to, of: push.partition) }
        client.skipped = []
    }

    /// Waits until everything sent to `partitions` is confirmed.
    package func settle(_ client: SimulatedClient, _ partitions: [UInt32]) {
        run {
            note(client)
            return client.isClosed
                || partitions.allSatisfy { partition in
                    (history.sent[partition] ?? []).allSatisfy { $0.confirmedAt != nil }
                }
        }
        note(client)
        let isSettled = partitions.allSatisfy { partition in
            (history.sent[partition] ?? []).allSatisfy { $0.confirmedAt != nil }
        }
        if violation == nil, !client.isClosed, !isSettled {
            let refused = client.replies.values.first { $0.header.status != 0 }
            violation = Violation(
                "what was sent is never confirmed; refused with \(refused?.header.status ?? 0)")
        }
        // What was confirmed must also survive the crashes that come right after.
        shard.pass(milliseconds: 1)
    }

    /// Publishes to `partitions` that `client` has no answer to, neither a confirm nor a refusal.
    package func unanswered(_ client: SimulatedClient, _ partitions: [UInt32]) -> Int {
        partitions.reduce(0) { count, partition in
            count
                + (history.sent[partition] ?? []).count {
                    $0.confirmedAt == nil && client.replies[$0.correlation] == nil
                }
        }
    }

    /// Waits until everything sent to `partitions` is answered.
    package func awaitAnswers(_ client: SimulatedClient, _ partitions: [UInt32]) {
        run {
            note(client)
            return client.isClosed || unanswered(client, partitions) == 0
        }
        note(client)
    }

    package func ack(
        _ client: SimulatedClient, queue: String, group: String, stream: UInt32,
        partition: UInt32, offset: UInt64
    ) {
        let key = History.CursorKey(queue: queue, group: group, partition: partition)
        history.acksAsked[key] = max(history.acksAsked[key] ?? 0, offset)
        let reply = client.ask(
            .ack, Ack(partition: partition, epoch: 1, offset: offset), stream: stream,
            reply: Ack.self)
        if let reply {
            history.acksConfirmed[key] = max(history.acksConfirmed[key] ?? 0, reply.offset)
        }
    }
}
