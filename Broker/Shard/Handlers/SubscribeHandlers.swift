internal import BrokerBasics
internal import BrokerCore
internal import LogStorage
internal import WireProtocol

extension ShardMachine {
    mutating func subscribe(_ request: Request) -> Outcome {
        guard let subscribe = try? SubscribeRequest(body: request.body) else {
            return refuse(request, .badRequest, "the body of subscribe can't be read")
        }
        let connection = connections[request.connection]
        guard subscription(request.connection, id: request.header.stream) == nil else {
            return refuse(
                request, .subscriptionExists,
                "subscription \(request.header.stream) is in use on this connection")
        }
        guard connection.pointee.subscriptionCount < limits.subscriptionsPerConnectionMax else {
            return refuse(
                request, .tooManySubscriptions,
                "a connection may have \(limits.subscriptionsPerConnectionMax) subscriptions")
        }
        guard let queue = state.queue(named: subscribe.queue) else {
            return refuse(request, .queueNotFound, "no queue \(subscribe.queue)")
        }
        var places: [Int32] = []
        for id in queue.partitions {
            guard let index = state.index(ofPartition: id) else { continue }
            if subscribe.partition == PartitionID.all.rawValue || subscribe.partition == id {
                places.append(index)
            }
        }
        guard !places.isEmpty else {
            return refuse(
                request, .partitionNotFound,
                "queue \(queue.name) has no partition \(subscribe.partition)")
        }
        // Of a group any member may come to read every partition.
        let widest = Assignment(
            generation: 0,
            partitions: places.map { _ in
                AssignedPartition(partition: 0, index: 0, epoch: 0, nextOffset: 0)
            })
        if let refused = refuseTooLarge(request, widest) { return refused }
        if case .offset(let offset) = subscribe.start, subscribe.group.isEmpty {
            for place in places where offset > state.partitions[place].pointee.log.endOffset {
                return refuse(
                    request, .offsetOutOfRange,
                    Self.beyondTheEnd(offset, state.partitions[place]))
            }
        }
        var group: UInt32 = 0
        if !subscribe.group.isEmpty {
            guard subscribe.partition == PartitionID.all.rawValue else {
                return refuse(
                    request, .badRequest, "a group's members are assigned their partitions")
            }
            switch findOrMakeGroup(request, subscribe, queue, places) {
            case .failure(let stop): return stop.outcome
            case .success(let id): group = id
            }
        }
        guard
            let index = insertSubscription(
                request, queue: queue.id, group: group, creditRecords: subscribe.creditRecords,
                creditBytes: subscribe.creditBytes)
        else {
            return refuse(request, .limitReached, "the server holds no more subscriptions")
        }
        if group != 0 {
            let member = ConsumerGroup.Member(
                subscription: index, name: memberName(request.connection))
            state.groups[group]?.join(member)
            applyAssignments(group, except: index)
        } else {
            for place in places {
                let (offset, notBefore) = start(subscribe.start, state.partitions[place])
                guard
                    addReader(
                        subscription: index, partition: place, offset: offset,
                        notBefore: notBefore)
                else {
                    dropSubscription(index)
                    return refuse(request, .limitReached, "the server holds no more readers")
                }
            }
        }
        let outcome = reply(request, assignment(of: index))
        var reader = subscriptions[index].pointee.firstReader
        while reader >= 0 {
            // Forced: what is committed already is delivered without waiting for the next commit.
            let partition = readers[reader].pointee.partition
            markDirty(partition, state.partitions[partition])
            reader = readers[reader].pointee.nextInSubscription
        }
        return outcome
    }

    static func beyondTheEnd(
        _ offset: UInt64, _ partition: UnsafeMutablePointer<Partition>
    ) -> String {
        "offset \(offset) is beyond the end \(partition.pointee.log.endOffset) of partition "
            + "\(partition.pointee.id)"
    }

    mutating func insertSubscription(
        _ request: Request, queue: UInt32, group: UInt32, creditRecords: UInt64,
        creditBytes: UInt64
    ) -> Int32? {
        let connection = connections[request.connection]
        guard
            let index = subscriptions.insert(
                Subscription(
                    id: request.header.stream, connection: request.connection, queue: queue,
                    group: group, creditRecords: creditRecords, creditBytes: creditBytes))
        else { return nil }
        subscriptions[index].pointee.nextInConnection = connection.pointee.firstSubscription
        connection.pointee.firstSubscription = index
        connection.pointee.subscriptionCount += 1
        return index
    }

    private struct Stop: Error { var outcome: Outcome }

    /// A group begins where the request says, in every partition, when it is first named.
    private mutating func findOrMakeGroup(
        _ request: Request, _ subscribe: SubscribeRequest, _ queue: Queue, _ places: [Int32]
    ) -> Result<UInt32, Stop> {
        if let known = state.group(queue: queue.id, name: subscribe.group) {
            return .success(known)
        }
        guard Queue.isValid(name: subscribe.group) else {
            return .failure(
                Stop(
                    outcome: refuse(
                        request, .nameInvalid, "\"\(subscribe.group)\" is no name for a group")))
        }
        guard state.groups.count < limits.groupsMax else {
            return .failure(Stop(outcome: refuse(request, .limitReached, tooManyGroups)))
        }
        if let failure = counters.storageFailure {
            return .failure(
                Stop(
                    outcome: refuse(
                        request, .storageFailed, "this shard stopped confirming: \(failure)")))
        }
        let cursors = places.map { place in
            let partition = state.partitions[place]
            // A cursor lies below what is committed: an offset beyond it could be taken back.
            return min(start(subscribe.start, partition).offset, partition.pointee.committed)
        }
        let id = state.nextGroup
        guard
            change(
                .groupCreated(id: id, queue: queue.id, name: subscribe.group, cursors: cursors))
        else { return .failure(Stop(outcome: .park)) }
        return .success(id)
    }

    var tooManyGroups: String {
        "there are \(state.groups.count) groups, and --groups-max is \(limits.groupsMax)"
    }

    /// Where a subscription begins in one partition.
    func start(
        _ position: StartPosition, _ partition: UnsafeMutablePointer<Partition>
    ) -> (offset: UInt64, notBefore: UInt64) {
        switch position {
        case .start: (partition.pointee.log.startOffset, 0)
        case .end: (partition.pointee.committed, 0)
        case .offset(let offset): (max(offset, partition.pointee.log.startOffset), 0)
        case .time(let time):
            (max(offset(ofTime: time, partition), partition.pointee.log.startOffset), time)
        }
    }

    /// An offset at or before the first batch appended at `time` or later: the reader passes over
    /// the rest.
    private func offset(
        ofTime time: UInt64, _ partition: UnsafeMutablePointer<Partition>
    ) -> UInt64 {
        for segment in partition.pointee.log.segments where segment.lastTime >= time {
            var offset = segment.baseOffset
            for entry in segment.index where entry.time < time { offset = entry.baseOffset }
            return offset
        }
        var chunk = partition.pointee.log.oldest
        while let current = chunk {
            if current.pointee.lastTime >= time { return current.pointee.baseOffset }
            chunk = current.pointee.next
        }
        return partition.pointee.committed
    }

    func memberName(_ connection: Int32) -> String {
        let name = connections[connection].pointee.clientName
        return "\(name.isEmpty ? "client" : name)@\(connections[connection].pointee.peer)"
    }

    func assignment(of index: Int32) -> Assignment {
        let subscription = subscriptions[index]
        var assigned: [AssignedPartition] = []
        var reader = subscription.pointee.firstReader
        while reader >= 0 {
            let partition = state.partitions[readers[reader].pointee.partition]
            assigned.append(
                AssignedPartition(
                    partition: partition.pointee.id, index: partition.pointee.index,
                    epoch: partition.pointee.log.epoch,
                    nextOffset: readers[reader].pointee.nextOffset))
            reader = readers[reader].pointee.nextInSubscription
        }
        return Assignment(
            generation: state.groups[subscription.pointee.group]?.generation ?? 0,
            partitions: assigned.sorted { $0.index < $1.index })
    }

    /// Gives the members' readers the partitions that the group says, and tells those who changed.
    mutating func applyAssignments(_ id: UInt32, except quiet: Int32 = -1) {
        guard let group = state.groups[id], let queue = state.queues[group.queue] else { return }
        events.append(
            .groupChanged(
                "group \(group.name) of queue \(queue.name): \(group.members.count) members, "
                    + "generation \(group.generation)"))
        var changed: Set<Int32> = []
        // First take away, so that no partition has two readers of the group.
        for member in group.members {
            for (index, partition) in queue.partitions.enumerated()
            where group.owners[index] != member.subscription {
                guard let place = state.index(ofPartition: partition) else { continue }
                if let reader = readerIndex(member.subscription, place) {
                    removeReader(reader)
                    changed.insert(member.subscription)
                }
            }
        }
        for (index, partition) in queue.partitions.enumerated() {
            let owner = group.owners[index]
            guard owner >= 0, let place = state.index(ofPartition: partition),
                reader(subscription: owner, partition: place) == nil
            else { continue }
            if addReader(
                subscription: owner, partition: place, offset: group.cursors[index])
            {
                changed.insert(owner)
                markDirty(place, state.partitions[place])
            }
        }
        for subscription in changed.sorted() where subscription != quiet {
            push(
                .assignment, stream: subscriptions[subscription].pointee.id,
                assignment(of: subscription), to: subscriptions[subscription].pointee.connection)
        }
    }

    private func readerIndex(_ subscription: Int32, _ partition: Int32) -> Int32? {
        var at = subscriptions[subscription].pointee.firstReader
        while at >= 0 {
            if readers[at].pointee.partition == partition { return at }
            at = readers[at].pointee.nextInSubscription
        }
        return nil
    }

    mutating func leaveGroup(_ id: UInt32, subscription: Int32) {
        guard state.groups[id] != nil else { return }
        guard peers.isAlone else {
            // On other shards than the first it was only attached.
            if state.groups[id]?.has(subscription) == true {
                state.groups[id]?.leave(subscription: subscription)
                assign(id)
            }
            return
        }
        state.groups[id]?.leave(subscription: subscription)
        applyAssignments(id)
    }

    mutating func unsubscribe(_ request: Request) -> Outcome {
        guard let index = subscription(request.connection, id: request.header.stream) else {
            return refuse(
                request, .subscriptionNotFound,
                "no subscription \(request.header.stream) on this connection")
        }
        dropSubscription(index)
        return reply(request, Empty())
    }

    /// Absolute credit: never answered, never goes back.
    mutating func credit(_ request: Request) -> Outcome {
        guard request.body.count >= Credit.byteCount, let base = request.body.baseAddress else {
            return refuse(request, .badRequest, "the body of credit can't be read")
        }
        // A subscription that ended crosses with its client's credit: nothing to say.
        guard let index = subscription(request.connection, id: request.header.stream) else {
            return .done
        }
        let subscription = subscriptions[index]
        subscription.pointee.creditRecords = max(
            subscription.pointee.creditRecords, base.u64(0))
        subscription.pointee.creditBytes = max(subscription.pointee.creditBytes, base.u64(8))
        dispatch(subscription: index)
        return .done
    }

    /// `change` of a cursor, without an allocation: one comes with every ack.
    ///
    /// - Returns: false when the journal is full for now.
    private mutating func advanceCursor(group: UInt32, index: Int, to offset: UInt64) -> Bool {
        guard
            let room = journal.stage(
                .cursor, object: 0, payloadBytes: StateChange.cursorBytes, reserve: 0)
        else { return false }
        StateChange.putCursor(room, group: group, partitionIndex: UInt32(index), offset: offset)
        lastChangeGroup = journal.openGroup
        state.advanceCursor(group: group, index: index, to: offset)
        return true
    }

    /// A cumulative ack: the group's floor moves in the journal, and the reply follows it.
    mutating func ack(_ request: Request) -> Outcome {
        guard let ack = try? Ack(body: request.body) else {
            return refuse(request, .badRequest, "the body of ack can't be read")
        }
        guard let index = subscription(request.connection, id: request.header.stream) else {
            return refuse(
                request, .subscriptionNotFound,
                "no subscription \(request.header.stream) on this connection")
        }
        let groupID = subscriptions[index].pointee.group
        guard groupID != 0, let place = state.index(ofPartition: ack.partition),
            let reader = reader(subscription: index, partition: place),
            let floorBefore = state.cursor(
                group: groupID, index: Int(state.partitions[place].pointee.index))
        else {
            return refuse(
                request, .notAssigned,
                "partition \(ack.partition) is not assigned to this subscription")
        }
        let partition = state.partitions[place]
        let isStale =
            ack.epoch < reader.pointee.epoch && ack.offset > reader.pointee.epochFrom
        guard ack.epoch <= partition.pointee.log.epoch, ack.epoch > 0, !isStale else {
            return refuse(
                request, .epochFenced,
                "epoch \(ack.epoch), but partition \(ack.partition) is at "
                    + "\(partition.pointee.log.epoch)")
        }
        guard ack.offset <= reader.pointee.nextOffset else {
            return refuse(
                request, .ackOutOfRange,
                "offset \(ack.offset) is beyond what was delivered, \(reader.pointee.nextOffset)")
        }
        if let failure = counters.storageFailure {
            return refuse(request, .storageFailed, "this shard stopped confirming: \(failure)")
        }
        let at = Int(partition.pointee.index)
        if ack.offset > floorBefore {
            guard advanceCursor(group: groupID, index: at, to: ack.offset) else { return .park }
        }
        counters.acks += 1
        let connection = connections[request.connection]
        let floor = max(ack.offset, floorBefore)
        let entry = ConfirmEntry(
            correlation: request.header.correlation, requests: 1, partition: ack.partition,
            epoch: partition.pointee.log.epoch, records: 0, baseOffset: floor, level: 0, flags: 0)
        let answer = PendingAnswer(
            entry: entry, group: journal.lastStagedGroup, kind: .ack,
            stream: request.header.stream)
        if journal.isDirty, !faults.ackBeforeSync {
            journal.requireSync()
            _ = connection.pointee.waiting.add(answer, runsMax: .max)
            if !connection.pointee.isWaitingListed {
                connection.pointee.isWaitingListed = true
                waitingList.append(request.connection)
            }
        } else {
            _ = connection.pointee.immediate.add(answer, runsMax: .max)
            if !connection.pointee.isImmediateListed {
                connection.pointee.isImmediateListed = true
                immediateList.append(request.connection)
            }
        }
        return .done
    }
}
