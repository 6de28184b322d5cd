package import BlockingClient
internal import BrokerBasics
internal import Synchronization
package import WireProtocol

/// The least that answers like a broker, in memory: what a client's tests can be run against.
///
/// It knows queues, numbered publishing and reading what is there. It delivers nothing live, has
/// no groups beyond their acks, and takes credit for granted.
package final class TinyBroker: Sendable {
    private struct Partition {
        var id: UInt32
        var batches: [(base: UInt64, stored: [UInt8])] = []
        var end: UInt64 = 0
        var nextSequences: [UInt64: UInt64] = [:]
    }
    private struct State {
        var queues: [String: QueueInfo] = [:]
        var partitions: [UInt32: Partition] = [:]
        var nextID: UInt32 = 9
        var producers: UInt64 = 0
        var publishes = 0
        var acks: [UInt32: UInt64] = [:]
        var skips: [UInt32: Range<UInt64>] = [:]
    }
    private let state = Mutex(State())
    private let fault: @Sendable (_ publish: Int) -> Fault

    /// What happens to a publish, counted from 0.
    package enum Fault: Sendable {
        case none
        case refuse(StatusCode)
        /// Stored, and the connection is closed before the confirm.
        case storeAndClose
        case close
    }

    package init(fault: @escaping @Sendable (_ publish: Int) -> Fault = { _ in .none }) {
        self.fault = fault
    }

    /// A server that speaks for this broker.
    package func serve() -> ScriptServer { ScriptServer { self.answer($1) } }

    package func addLost(_ range: Range<UInt64>, to partition: UInt32) {
        state.withLock { state in
            state.partitions[partition]?.batches.append(
                (
                    range.lowerBound,
                    StoredBatch.lost(
                        range,
                        partition: PartitionID(rawValue: partition),
                        epoch: 2,
                        appendTime: 9
                    )
                )
            )
            state.partitions[partition]?.end = range.upperBound
        }
    }

    /// Subscriptions are told that these offsets, which begin and end with a batch, were removed.
    package func skip(_ range: Range<UInt64>, of partition: UInt32) {
        state.withLock { $0.skips[partition] = range }
    }

    /// The highest acked offset by partition.
    package var acks: [UInt32: UInt64] { state.withLock { $0.acks } }

    package func answer(_ frame: Frame) -> [ScriptServer.Action] {
        state.withLock { state in
            switch frame.opcode {
            case .queueCreate: create(frame, &state)
            case .queueAlter: alter(frame, &state)
            case .queuePurge:
                with(frame, QueuePurgeRequest.self, \.name, &state) { queue, state in
                    let before = (try? frame.message(QueuePurgeRequest.self))?.before ?? 0
                    var queue = described(queue, &state)
                    for index in queue.partitions.indices {
                        queue.partitions[index].startOffset = min(
                            before, queue.partitions[index].endOffset)
                    }
                    state.queues[queue.name] = queue
                    return queue
                }
            case .queueDescribe:
                with(frame, QueueNameRequest.self, \.name, &state) { described($0, &$1) }
            case .queueDelete:
                with(frame, QueueNameRequest.self, \.name, &state) { queue, state in
                    state.queues[queue.name] = nil
                    return Empty()
                }
            case .queueList:
                [
                    .send(
                        Scripts.reply(
                            to: frame,
                            QueueListReply(
                                queues: state.queues.values.sorted { $0.name < $1.name },
                                more: false
                            )
                        )
                    )
                ]
            case .groupList:
                [.send(Scripts.reply(to: frame, GroupListReply(groups: [], more: false)))]
            case .groupDescribe: [.send(Scripts.refuse(frame, .groupNotFound))]
            case .serverDescribe:
                [
                    .send(
                        Scripts.reply(
                            to: frame,
                            ServerDescription(facts: [Pair(name: "kernel", value: "tiny")])
                        )
                    )
                ]
            case .producerOpen:
                open(frame, &state)
            case .publish: publish(frame, &state)
            case .subscribe: subscribe(frame, &state)
            case .ack: ack(frame, &state)
            case .credit: []
            default: [.send(Scripts.refuse(frame, .unknownOpcode))]
            }
        }
    }

    private func with<Request: WireMessage>(
        _ frame: Frame,
        _: Request.Type,
        _ name: (Request) -> String,
        _ state: inout State,
        _ work: (QueueInfo, inout State) -> some WireMessage
    ) -> [ScriptServer.Action] {
        guard let request = try? frame.message(Request.self) else {
            return [.send(Scripts.refuse(frame, .badRequest))]
        }
        guard let queue = state.queues[name(request)] else {
            return [
                .send(
                    Scripts.refuse(
                        frame,
                        .queueNotFound,
                        message: "there is no queue \(name(request))"
                    )
                )
            ]
        }
        return [.send(Scripts.reply(to: frame, work(queue, &state)))]
    }

    private func described(_ queue: QueueInfo, _ state: inout State) -> QueueInfo {
        var queue = queue
        for index in queue.partitions.indices {
            let end = state.partitions[queue.partitions[index].id]?.end ?? 0
            queue.partitions[index].committedOffset = end
            queue.partitions[index].endOffset = end
        }
        return queue
    }

    private func create(_ frame: Frame, _ state: inout State) -> [ScriptServer.Action] {
        guard let request = try? frame.message(QueueCreateRequest.self),
            let level = DurabilityLevel(rawValue: request.level)
        else { return [.send(Scripts.refuse(frame, .badRequest))] }
        guard state.queues[request.name] == nil else {
            return [
                .send(
                    Scripts.refuse(
                        frame,
                        .queueExists,
                        message: "queue \(request.name) exists"
                    )
                )
            ]
        }
        let ids = (0..<request.partitions).map { state.nextID + $0 }
        state.nextID += request.partitions
        var queue = Scripts.queue(request.name, ids: ids, level: level)
        queue.labels = request.labels
        queue.retention = request.retention
        state.queues[request.name] = queue
        for id in ids { state.partitions[id] = Partition(id: id) }
        return [.send(Scripts.reply(to: frame, queue))]
    }

    private func alter(_ frame: Frame, _ state: inout State) -> [ScriptServer.Action] {
        let request = try? frame.message(QueueAlterRequest.self)
        let labels = request?.labels ?? []
        return with(frame, QueueAlterRequest.self, \.name, &state) { queue, state in
            var queue = queue
            queue.retention = queue.retention.changed(by: request?.retention ?? .unchanged)
            for label in labels {
                queue.labels.removeAll { $0.name == label.name }
                if !label.value.isEmpty { queue.labels.append(label) }
            }
            state.queues[queue.name] = queue
            return queue
        }
    }

    private func open(_ frame: Frame, _ state: inout State) -> [ScriptServer.Action] {
        state.producers += 1
        let reply = ProducerOpenReply(producerID: state.producers, epoch: 0, expirySeconds: 60)
        return [.send(Scripts.reply(to: frame, reply))]
    }

    private func publish(_ frame: Frame, _ state: inout State) -> [ScriptServer.Action] {
        let fault = fault(state.publishes)
        state.publishes += 1
        if case .close = fault { return [.close] }
        if case .refuse(let status) = fault { return [.send(Scripts.refuse(frame, status))] }
        let id = frame.header.stream
        let status = frame.body.withUnsafeBytes { body in
            body.baseAddress.map { BatchHeader.check($0, count: body.count) } ?? .batchInvalid
        }
        guard status == .ok, var partition = state.partitions[id] else {
            return [.send(Scripts.refuse(frame, status == .ok ? .partitionNotFound : status))]
        }
        let header = frame.body.withUnsafeBytes { body in
            body.baseAddress.map { BatchHeader(at: $0) }
        }
        guard let header else { return [.close] }
        let next = partition.nextSequences[header.producerID] ?? 0
        guard header.baseSequence <= next else {
            return [.send(Scripts.refuse(frame, .sequenceGap))]
        }
        var entry = ConfirmEntry(
            correlation: frame.header.correlation,
            requests: 1,
            partition: id,
            epoch: 1,
            records: UInt32(header.recordCount),
            baseOffset: partition.end,
            level: 2,
            flags: 0
        )
        if header.baseSequence < next {
            entry.flags = ConfirmEntry.duplicateFlag
            entry.baseOffset = Offset.unknown.rawValue
        } else {
            partition.batches.append(
                (
                    partition.end,
                    Scripts.stored(
                        frame.body,
                        partition: id,
                        offset: partition.end,
                        appendTime: 1_000 + partition.end
                    )
                )
            )
            partition.end += UInt64(header.recordCount)
            partition.nextSequences[header.producerID] = next + UInt64(header.recordCount)
            state.partitions[id] = partition
        }
        if case .storeAndClose = fault { return [.close] }
        return [.send(Scripts.confirm([entry]))]
    }

    private func subscribe(_ frame: Frame, _ state: inout State) -> [ScriptServer.Action] {
        guard let request = try? frame.message(SubscribeRequest.self),
            let queue = state.queues[request.queue]
        else { return [.send(Scripts.refuse(frame, .queueNotFound))] }
        var assigned: [AssignedPartition] = []
        var deliveries: [ScriptServer.Action] = []
        var delivered: UInt64 = 0
        for info in queue.partitions {
            guard let partition = state.partitions[info.id] else { continue }
            let from: UInt64
            switch request.start {
            case .start, .time: from = state.acks[info.id] ?? 0
            case .end: from = partition.end
            case .offset(let offset): from = offset
            }
            assigned.append(
                AssignedPartition(
                    partition: info.id,
                    index: info.index,
                    epoch: 1,
                    nextOffset: from
                )
            )
            for batch in partition.batches {
                let end = batch.stored.withUnsafeBytes { bytes in
                    bytes.baseAddress.map { StoredBatch.endOffset(at: $0) } ?? 0
                }
                guard end > from else { continue }
                if let skip = state.skips[info.id], skip.contains(batch.base) {
                    guard batch.base == skip.lowerBound else { continue }
                    let push = Skipped(
                        partition: info.id, from: skip.lowerBound, to: skip.upperBound)
                    deliveries.append(
                        .send(
                            FrameHeader(
                                opcode: .skipped,
                                flags: FrameHeader.pushFlag,
                                stream: frame.header.stream
                            ).frame(body: push.encoded)
                        )
                    )
                    continue
                }
                delivered += end - batch.base
                deliveries.append(
                    .send(
                        Scripts.deliver(
                            stream: frame.header.stream,
                            partition: info.id,
                            delivered: delivered,
                            [batch.stored]
                        )
                    )
                )
            }
        }
        let reply = Assignment(
            generation: request.group.isEmpty ? 0 : 1,
            partitions: assigned
        )
        return [.send(Scripts.reply(to: frame, reply))] + deliveries
    }

    private func ack(_ frame: Frame, _ state: inout State) -> [ScriptServer.Action] {
        guard let ack = try? frame.message(Ack.self) else {
            return [.send(Scripts.refuse(frame, .badRequest))]
        }
        state.acks[ack.partition] = max(state.acks[ack.partition] ?? 0, ack.offset)
        return [.send(Scripts.reply(to: frame, ack))]
    }
}
