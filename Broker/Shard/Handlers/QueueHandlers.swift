internal import BrokerBasics
internal import BrokerCore
internal import LogStorage
internal import WireProtocol

extension ShardMachine {
    mutating func queueCreate(_ request: Request) -> Outcome {
        guard let create = try? QueueCreateRequest(body: request.body) else {
            return refuse(request, .badRequest, "the body of queue-create can't be read")
        }
        guard Queue.isValid(name: create.name) else {
            return refuse(
                request, .nameInvalid,
                "\"\(create.name)\" is no name for a queue: 1 to 255 of a-z A-Z 0-9 . _ - $, not "
                    + "beginning with . or -")
        }
        guard let level = DurabilityLevel(rawValue: create.level) else {
            return refuse(
                request, .levelNotOffered,
                "durability level \(create.level) is not offered; memory (0), written (1) and "
                    + "synced (2) are")
        }
        guard create.partitions >= 1, create.partitions <= UInt32(limits.partitionsPerQueueMax)
        else {
            return refuse(
                request, .tooManyPartitions,
                "\(create.partitions) partitions; 1 to \(limits.partitionsPerQueueMax) are possible"
            )
        }
        guard create.retention.isValid else {
            return refuse(request, .badRequest, Self.retentionRefusal)
        }
        guard state.queue(named: create.name) == nil else {
            return refuse(request, .queueExists, "queue \(create.name) exists")
        }
        guard state.queues.count < limits.queuesMax else {
            return refuse(
                request, .tooManyQueues, "there are \(state.queues.count) queues, and no more fit")
        }
        let partitions = state.partitionsByShard.reduce(0, +)
        guard partitions + Int(create.partitions) <= limits.partitionsMax,
            create.partitions <= DurableState.partitionIDsMax - state.nextPartition
        else {
            return refuse(
                request, .tooManyPartitions,
                "there are \(partitions) partitions, and \(create.partitions) more do not fit: "
                    + "--partitions-max is \(limits.partitionsMax)")
        }
        let first = state.nextPartition
        var placement = Placement(shards: peers.count, loads: state.partitionsByShard)
        let queue = Queue(
            id: state.nextQueue, name: create.name, level: level,
            createdAt: now.wall.nanoseconds, labels: create.labels,
            partitions: (0..<create.partitions).map { first + $0 },
            shards: placement.choose(
                partitions: Int(create.partitions), labels: create.labels,
                others: state.queues.values),
            retention: create.retention)
        if let refused = refuseTooLarge(request, planned(queue)) { return refused }
        guard change(.queueCreated(queue)) else { return .park }
        guard peers.isAlone else {
            return broadcast(request, .queueCreated(queue), .changed(queue: queue.id))
        }
        return reply(request, info(of: queue, withPartitions: true))
    }

    mutating func queueAlter(_ request: Request) -> Outcome {
        guard let alter = try? QueueAlterRequest(body: request.body) else {
            return refuse(request, .badRequest, "the body of queue-alter can't be read")
        }
        guard var queue = state.queue(named: alter.name) else {
            return refuse(request, .queueNotFound, "no queue \(alter.name)")
        }
        guard alter.level == QueueAlterRequest.unchanged || alter.level == queue.level.rawValue
        else {
            return refuse(
                request, .changeNotOffered, "the durability level of a queue does not change")
        }
        guard !isHeldByMove(queue: queue.id) else { return .park }
        if let refused = refuseParting(request, queue, alter.labels) { return refused }
        queue.merge(labels: alter.labels)
        queue.retention = queue.retention.changed(by: alter.retention)
        guard queue.retention.isValid else {
            return refuse(request, .badRequest, Self.retentionRefusal)
        }
        if let refused = refuseTooLarge(request, info(of: queue, withPartitions: true)) {
            return refused
        }
        guard change(.queueAltered(queue)) else { return .park }
        guard peers.isAlone else {
            return broadcast(request, .queueAltered(queue), .changed(queue: queue.id))
        }
        return reply(request, info(of: queue, withPartitions: true))
    }

    /// Queues with the same value of `colocate` live on one shard: none gets it that lives elsewhere.
    private mutating func refuseParting(
        _ request: Request, _ queue: Queue, _ labels: [Pair]
    ) -> Outcome? {
        guard let value = labels.last(where: { $0.name == Placement.colocateLabel })?.value,
            !value.isEmpty
        else { return nil }
        let others = state.queues.values.filter {
            $0.id != queue.id && Placement.colocation($0.labels) == value
        }
        if let move = peers.move, move.queue == queue.id {
            return refuse(
                request, .busy,
                "partition \(move.partition) of queue \(queue.name) is on its way to shard "
                    + "\(move.to): when it is there, all may live together or not")
        }
        let shards = Set((others + [queue]).flatMap(\.shards))
        guard shards.count > 1 else { return nil }
        return refuse(
            request, .changeNotOffered,
            "queue \(queue.name) and those with colocate=\(value) live on \(shards.count) shards: move "
                + "its partitions to one shard first")
    }

    mutating func queueDelete(_ request: Request) -> Outcome {
        guard let delete = try? QueueNameRequest(body: request.body) else {
            return refuse(request, .badRequest, "the body of queue-delete can't be read")
        }
        guard let queue = state.queue(named: delete.name) else {
            return refuse(request, .queueNotFound, "no queue \(delete.name)")
        }
        guard !isHeldByMove(queue: queue.id), remove(queue) else { return .park }
        guard peers.isAlone else {
            return broadcast(request, .queueDeleted(queue.id), .done([]))
        }
        return reply(request, Empty())
    }

    /// - Returns: false when the journal is full for now.
    mutating func remove(_ queue: Queue) -> Bool {
        let places = queue.partitions.compactMap { state.index(ofPartition: $0) }
        guard change(.queueDeleted(queue.id)) else { return false }
        for index in subscriptions.indices where subscriptions[index].pointee.queue == queue.id {
            endings.append(
                Ending(
                    subscription: index, status: .queueNotFound,
                    message: "queue \(queue.name) was deleted"))
        }
        endSubscriptions()
        for place in places { stopAwaiting(state.partitions[place]) }
        dyingPartitions += places
        let gone = Set(queue.partitions)
        peers.attachedGenerations = peers.attachedGenerations.filter {
            !gone.contains(UInt32(truncatingIfNeeded: $0.key))
        }
        return true
    }

    mutating func queueDescribe(_ request: Request) -> Outcome {
        guard let describe = try? QueueNameRequest(body: request.body) else {
            return refuse(request, .badRequest, "the body of queue-describe can't be read")
        }
        guard let queue = state.queue(named: describe.name) else {
            return refuse(request, .queueNotFound, "no queue \(describe.name)")
        }
        return reply(request, info(of: queue, withPartitions: true))
    }

    mutating func queueList(_ request: Request) -> Outcome {
        guard let list = try? QueueListRequest(body: request.body) else {
            return refuse(request, .badRequest, "the body of queue-list can't be read")
        }
        let names = state.queuesByName.keys.filter { $0 > list.after }.sorted()
        var queues: [QueueInfo] = []
        var bytes = 0
        for name in names.prefix(Int(min(list.limit, 1000))) {
            guard let queue = state.queue(named: name) else { continue }
            let info = info(of: queue, withPartitions: false)
            bytes += info.encoded.count
            // The first goes alone if need be: an empty page would hide all that come behind it.
            guard queues.isEmpty || bytes <= replyBytesMax(request) else { break }
            queues.append(info)
        }
        return reply(request, QueueListReply(queues: queues, more: queues.count < names.count))
    }

    private static let retentionRefusal =
        "retention by age takes 1 s to 36500 d, by bytes and records any number; 0 is no limit"

    /// What a page of a list may hold, so that the frame fits what the client takes.
    func replyBytesMax(_ request: Request) -> Int {
        min(60_000, Int(connections[request.connection].pointee.frameBytesMax) - 256)
    }

    /// What `info` will say of a queue that is not made yet: for its size.
    func planned(_ queue: Queue) -> QueueInfo {
        QueueInfo(
            id: queue.id, name: queue.name, level: queue.level.rawValue,
            partitionCount: UInt32(queue.partitions.count), createdAt: queue.createdAt,
            labels: queue.labels, records: 0, bytes: 0,
            partitions: queue.partitions.enumerated().map { index, id in
                PartitionInfo(
                    id: id, index: UInt32(index), shard: queue.shards[index], epoch: 1,
                    startOffset: 0,
                    committedOffset: 0, endOffset: 0, bytes: 0, segmentOffset: 0, segments: 0,
                    records: 0, lostRecords: 0)
            }, retention: queue.retention)
    }

    func info(of queue: Queue, withPartitions: Bool) -> QueueInfo {
        var partitions: [PartitionInfo] = []
        var records: UInt64 = 0
        var bytes: UInt64 = 0
        for id in queue.partitions {
            guard let index = state.index(ofPartition: id),
                withPartitions || !state.partitions[index].pointee.isArriving
            else { continue }
            let partition = state.partitions[index]
            let kept = partition.pointee.records
            records &+= kept
            bytes &+= partition.pointee.log.bytes
            guard withPartitions else { continue }
            partitions.append(
                PartitionInfo(
                    id: id, index: partition.pointee.index, shard: state.shard,
                    epoch: partition.pointee.log.epoch,
                    startOffset: partition.pointee.log.startOffset,
                    committedOffset: partition.pointee.committed,
                    endOffset: partition.pointee.log.endOffset,
                    bytes: partition.pointee.log.bytes,
                    segmentOffset: partition.pointee.log.segmentEnd,
                    segments: UInt32(partition.pointee.log.segments.count), records: kept,
                    lostRecords: partition.pointee.lostRecords))
        }
        return QueueInfo(
            id: queue.id, name: queue.name, level: queue.level.rawValue,
            partitionCount: UInt32(queue.partitions.count), createdAt: queue.createdAt,
            labels: queue.labels, records: records, bytes: bytes, partitions: partitions,
            retention: queue.retention)
    }
}
