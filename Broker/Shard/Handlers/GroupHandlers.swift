internal import BrokerBasics
internal import BrokerCore
internal import LogStorage
internal import WireProtocol

extension ShardMachine {
    mutating func groupDescribe(_ request: Request) -> Outcome {
        guard let describe = try? GroupDescribeRequest(body: request.body) else {
            return refuse(request, .badRequest, "the body of group-describe can't be read")
        }
        guard let queue = state.queue(named: describe.queue) else {
            return refuse(request, .queueNotFound, "no queue \(describe.queue)")
        }
        guard let id = state.group(queue: queue.id, name: describe.group),
            let group = state.groups[id]
        else {
            return refuse(
                request, .groupNotFound, "queue \(queue.name) has no group \(describe.group)")
        }
        return reply(request, info(of: group, queue, withCursors: true))
    }

    mutating func groupList(_ request: Request) -> Outcome {
        guard let list = try? GroupListRequest(body: request.body) else {
            return refuse(request, .badRequest, "the body of group-list can't be read")
        }
        if !list.queue.isEmpty, state.queue(named: list.queue) == nil {
            return refuse(request, .queueNotFound, "no queue \(list.queue)")
        }
        var named: [(name: String, group: ConsumerGroup, queue: Queue)] = []
        for group in state.groups.values {
            guard let queue = state.queues[group.queue],
                list.queue.isEmpty || queue.name == list.queue
            else { continue }
            let name = "\(queue.name)/\(group.name)"
            if name > list.after { named.append((name, group, queue)) }
        }
        named.sort { $0.name < $1.name }
        var groups: [GroupInfo] = []
        var bytes = 0
        for item in named.prefix(Int(min(list.limit, 1000))) {
            let info = info(of: item.group, item.queue, withCursors: false)
            bytes += info.encoded.count
            guard groups.isEmpty || bytes <= replyBytesMax(request) else { break }
            groups.append(info)
        }
        return reply(request, GroupListReply(groups: groups, more: groups.count < named.count))
    }

    func info(of group: ConsumerGroup, _ queue: Queue, withCursors: Bool) -> GroupInfo {
        var cursors: [GroupCursor] = []
        var skipped: [UInt64] = []
        var lag: UInt64 = 0
        for (index, partition) in queue.partitions.enumerated() {
            guard let place = state.index(ofPartition: partition),
                !state.partitions[place].pointee.isArriving
            else { continue }
            let cursor = cursor(of: group, index, place)
            lag &+= cursor.lagRecords
            guard withCursors else { continue }
            cursors.append(cursor)
            skipped.append(group.skipped[index])
        }
        return GroupInfo(
            id: group.id, queue: queue.name, name: group.name, mode: "ordered",
            generation: group.generation, members: group.members.map(\.name), lagRecords: lag,
            cursors: cursors,
            skippedRecords: skipped.contains { $0 > 0 } ? skipped : [])
    }

    /// A group's place in one partition. Lag is told also when nobody is connected.
    func cursor(of group: ConsumerGroup, _ index: Int, _ place: Int32) -> GroupCursor {
        let partition = state.partitions[place]
        let floor = group.cursors[index]
        let committed = partition.pointee.committed
        let owner = group.owners[index]
        var reader = owner >= 0 ? reader(subscription: owner, partition: place) : nil
        var member = group.members.first { $0.subscription == owner }?.name ?? ""
        if !peers.isAlone {
            let attached = groupReader(group.id, place)
            reader = attached.map { readers[$0.reader] }
            member = attached?.member ?? ""
        }
        let lag = lagBytesAndTime(partition, from: floor)
        var stateName = "unassigned"
        var since: UInt64 = 0
        if let reader {
            // All delivered and not all acked: it is the consumer that is awaited.
            let awaitsAck = reader.pointee.state == .idle && floor < committed
            stateName = awaitsAck ? "wait-ack" : reader.pointee.state.name
            since = now.monotonic.since(reader.pointee.stateSince) / .milliseconds(1)
        }
        return GroupCursor(
            partition: partition.pointee.id, index: UInt32(index), ackFloor: floor,
            highWatermark: committed, lagRecords: committed > floor ? committed - floor : 0,
            lagBytes: lag.bytes,
            lagMilliseconds: lag.time == 0 || lag.time > now.wall.nanoseconds
                ? 0 : (now.wall.nanoseconds - lag.time) / .milliseconds(1),
            member: member,
            state: stateName, stateMilliseconds: since)
    }

    /// Bytes from `offset` to the end, and the append time of the batch there. Exact in the tail;
    /// from segments by their index, so within about a MiB.
    private func lagBytesAndTime(
        _ partition: UnsafeMutablePointer<Partition>, from offset: UInt64
    ) -> (bytes: UInt64, time: UInt64) {
        guard offset < partition.pointee.committed else { return (0, 0) }
        var bytes: UInt64 = 0
        var time: UInt64 = 0
        if offset < partition.pointee.log.tailStart {
            for segment in partition.pointee.log.segments where segment.endOffset > offset {
                let from = offset > segment.baseOffset ? segment.position(of: offset) : 4096
                bytes &+= segment.bytes > from ? segment.bytes - from : 0
                if time == 0 {
                    time = segment.index.last { $0.baseOffset <= offset }?.time ?? 0
                }
            }
        }
        var chunk = partition.pointee.log.oldest
        while let current = chunk {
            chunk = current.pointee.next
            guard current.pointee.endOffset > offset else { continue }
            if current.pointee.baseOffset >= offset {
                // In a segment too, and counted there.
                if offset >= partition.pointee.log.tailStart
                    || current.pointee.state.rawValue < TailChunk.State.written.rawValue
                {
                    bytes += UInt64(current.pointee.batchBytes)
                }
                if time == 0 { time = current.pointee.firstTime }
                continue
            }
            var at = ChunkHeader.byteCount
            while at < current.pointee.used {
                let batch = current.pointee.bytes + at
                if StoredBatch.endOffset(at: batch) > offset {
                    if time == 0 { time = StoredBatch.appendTime(at: batch) }
                    bytes += UInt64(current.pointee.used - at)
                    break
                }
                at += StoredBatch.bytes(at: batch)
            }
        }
        return (bytes, time)
    }

    // MARK: the report for metrics

    /// Everything of the shard at this instant, copied.
    package func report() -> ShardReport {
        var partitions: [PartitionReport] = []
        var cursors: [CursorReport] = []
        for queue in state.queues.values.sorted(by: { $0.name < $1.name }) {
            for id in queue.partitions {
                guard let index = state.index(ofPartition: id),
                    !state.partitions[index].pointee.isArriving
                else { continue }
                let partition = state.partitions[index]
                partitions.append(
                    PartitionReport(
                        queue: queue.name, partition: id, index: partition.pointee.index,
                        level: queue.level.name,
                        startOffset: partition.pointee.log.startOffset,
                        committedOffset: partition.pointee.committed,
                        endOffset: partition.pointee.log.endOffset,
                        bytes: partition.pointee.log.bytes,
                        lostRecords: partition.pointee.lostRecords,
                        publishedRecords: partition.pointee.publishedRecords,
                        publishedBytes: partition.pointee.publishedBytes,
                        deliveredRecords: partition.pointee.deliveredRecords,
                        deliveredBytes: partition.pointee.deliveredBytes,
                        segments: partition.pointee.log.segments.count,
                        epoch: partition.pointee.log.epoch,
                        retentionBytes: queue.retention.bytes,
                        retentionMilliseconds: queue.retention.ageMilliseconds,
                        retentionRecords: queue.retention.records))
            }
        }
        for group in state.groups.values.sorted(by: { $0.id < $1.id }) {
            guard let queue = state.queues[group.queue] else { continue }
            for (index, id) in queue.partitions.enumerated() {
                guard let place = state.index(ofPartition: id),
                    !state.partitions[place].pointee.isArriving
                else { continue }
                let cursor = cursor(of: group, index, place)
                cursors.append(
                    CursorReport(
                        queue: queue.name, group: group.name, index: UInt32(index),
                        members: group.members.count, ackFloor: cursor.ackFloor,
                        lagRecords: cursor.lagRecords, lagBytes: cursor.lagBytes,
                        lagSeconds: Double(cursor.lagMilliseconds) / 1000,
                        skippedRecords: group.skipped[index], state: cursor.state,
                        stateSeconds: Double(cursor.stateMilliseconds) / 1000))
            }
        }
        return ShardReport(
            stage: stage, term: term, counters: counters,
            connections: socketCount,
            subscriptions: subscriptions.indices.count, partitions: partitions,
            cursors: cursors, journalLatency: journal.latency,
            journalWaitNanoseconds: journalWaitNanoseconds,
            journalUsedBytes: journal.usedBytes,
            journalCapacityBytes: journal.geometry.capacity,
            journalBytesWritten: journal.bytesWritten, journalWrites: journal.writes,
            tailUsedBytes: state.pool.usedBytes, tailLimitBytes: limits.tailBytesMax,
            coldUsedBytes: coldReader.cache.usedBytes,
            scrubPercent: scrubber.progressPercent, scrubPasses: scrubber.passes,
            scrubLastPass: scrubber.lastPass, damagedRanges: quarantine.count,
            disk: disk.space, diskLevel: diskLevel, awaitsSpace: !hold.isEmpty)
    }
}
