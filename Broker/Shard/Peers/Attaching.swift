internal import BrokerBasics
internal import BrokerCore
internal import LogStorage
internal import WireProtocol

// The owner's side of routed subscriptions, and shard 0's side of their groups. See RoutedSubscription.swift.
extension ShardMachine {
    // MARK: the owner

    /// A front says which partitions a subscription reads here. Never refused by an error frame.
    mutating func groupAttach(_ request: Request) -> Outcome {
        guard let attach = try? AttachRequest(body: request.body) else {
            return refuse(request, .badRequest, "an attach that can't be read")
        }
        let known = subscription(request.connection, id: request.header.stream)
        if attach.leaves {
            if let known { dropSubscription(known) }
            return reply(request, AttachReply(round: attach.round))
        }
        // Shard 0 told this shard of queue and group before it told the front, but on another way.
        if state.queues[attach.queue] == nil {
            guard attach.queue < state.nextQueue else { return .park }
            if let known { dropSubscription(known) }
            return reply(
                request,
                AttachReply(
                    round: attach.round, status: .queueNotFound, message: "the queue was deleted"))
        }
        if attach.group != 0, state.groups[attach.group] == nil, attach.group >= state.nextGroup {
            return .park
        }
        var places: [Int32] = []
        for id in attach.partitions {
            if let place = state.index(ofPartition: id) { places.append(place) }
        }
        if attach.group == 0, case .offset(let offset) = attach.start {
            for place in places where offset > state.partitions[place].pointee.log.endOffset {
                return reply(
                    request,
                    AttachReply(
                        round: attach.round, status: .offsetOutOfRange,
                        message: Self.beyondTheEnd(offset, state.partitions[place])))
            }
        }
        let made =
            known
            ?? insertSubscription(
                request, queue: attach.queue, group: attach.group, creditRecords: 0, creditBytes: 0)
        guard let index = made else {
            return reply(
                request,
                AttachReply(
                    round: attach.round, status: .limitReached,
                    message: "a shard holds no more subscriptions"))
        }
        var at = subscriptions[index].pointee.firstReader
        while at >= 0 {
            let next = readers[at].pointee.nextInSubscription
            if !places.contains(readers[at].pointee.partition) { removeReader(at) }
            at = next
        }
        for place in places where reader(subscription: index, partition: place) == nil {
            guard attach.group == 0 || fence(attach, place, for: index) else { continue }
            let partition = state.partitions[place]
            let left = attach.places.first { $0.partition == partition.pointee.id }
            let from =
                left.map { (offset: $0.nextOffset, notBefore: $0.notBefore) }
                ?? (attach.group == 0
                    ? start(attach.start, partition)
                    : (
                        offset: state.cursor(
                            group: attach.group, index: Int(partition.pointee.index)) ?? 0,
                        notBefore: 0
                    ))
            guard
                addReader(
                    subscription: index, partition: place, offset: from.offset,
                    notBefore: from.notBefore)
            else {
                return reply(
                    request,
                    AttachReply(
                        round: attach.round, status: .limitReached,
                        message: "a shard holds no more readers"))
            }
            if left != nil, let added = reader(subscription: index, partition: place) {
                skipRemoved(added, partition)
            }
        }
        let outcome = reply(
            request, AttachReply(round: attach.round, assignment: assignment(of: index)))
        for place in places { markDirty(place, state.partitions[place]) }
        return outcome
    }

    /// Takes a partition of a group from whoever reads it in an earlier generation.
    ///
    /// - Returns: false when a later generation has it: this attach comes late.
    private mutating func fence(
        _ attach: AttachRequest, _ place: Int32, for subscription: Int32
    ) -> Bool {
        let partition = state.partitions[place]
        let key = UInt64(attach.group) << 32 | UInt64(partition.pointee.id)
        guard attach.generation >= peers.attachedGenerations[key] ?? 0 else { return false }
        peers.attachedGenerations[key] = attach.generation
        var at = partition.pointee.firstReader
        while at >= 0 {
            let next = readers[at].pointee.nextInPartition
            let other = readers[at].pointee.subscription
            if other != subscription, subscriptions[other].pointee.group == attach.group {
                removeReader(at)
            }
            at = next
        }
        return true
    }

    /// The reader that a group has in a partition, and whose it is.
    func groupReader(_ group: UInt32, _ place: Int32) -> (reader: Int32, member: String)? {
        var at = state.partitions[place].pointee.firstReader
        while at >= 0 {
            let subscription = subscriptions[readers[at].pointee.subscription]
            if subscription.pointee.group == group {
                return (at, memberName(subscription.pointee.connection))
            }
            at = readers[at].pointee.nextInPartition
        }
        return nil
    }

    // MARK: shard 0

    /// A member joins a group; the group comes into being when it is first named.
    mutating func groupJoin(_ request: Request) -> Outcome {
        guard let subscribe = try? SubscribeRequest(body: request.body),
            let queue = state.queue(named: subscribe.queue)
        else { return joinRefused(request, .queueNotFound, "no such queue") }
        if let known = state.group(queue: queue.id, name: subscribe.group) {
            return join(request, known)
        }
        guard Queue.isValid(name: subscribe.group) else {
            return joinRefused(
                request, .nameInvalid, "\"\(subscribe.group)\" is no name for a group")
        }
        guard state.groups.count < limits.groupsMax else {
            return joinRefused(request, .limitReached, tooManyGroups)
        }
        if let failure = counters.storageFailure {
            return joinRefused(
                request, .storageFailed, "this shard stopped confirming: \(failure)")
        }
        guard !isHeldByMove(queue: queue.id) else { return .park }
        let id = state.nextGroup
        let begin = GroupBegin(
            id: id, queue: queue.id, name: subscribe.group, start: subscribe.start)
        guard change(groupCreated(begin, queue)) else { return .park }
        return broadcast(
            request, opcode: .groupBegin, body: begin.encoded,
            .groupBegun(subscribe: [UInt8](request.body)))
    }

    private mutating func joinRefused(
        _ request: Request, _ status: StatusCode, _ message: String
    ) -> Outcome {
        reply(request, AttachReply(round: 0, status: status, message: message))
    }

    /// Every shard knows the group: its first member goes on.
    mutating func groupBegun(_ gathering: Gathering, _ subscribe: [UInt8]) {
        let asked = DeferredReply(
            group: 0, connection: gathering.connection, generation: gathering.generation,
            frame: [])
        guard isOpen(asked) else { return }
        if let (status, body) = gathering.refusal {
            let message = (try? Refusal(body: body))?.message ?? ""
            var header = gathering.header
            header.flags = FrameHeader.replyFlag
            var reply = asked
            reply.frame = header.frame(
                body: AttachReply(round: 0, status: status, message: message).encoded)
            return deliver(deferredReply: reply)
        }
        subscribe.withUnsafeBytes { body in
            _ = groupJoin(
                Request(connection: gathering.connection, header: gathering.header, body: body))
        }
    }

    private mutating func join(_ request: Request, _ group: UInt32) -> Outcome {
        guard let queue = state.groups[group]?.queue else {
            return joinRefused(request, .groupNotFound, "the group is gone")
        }
        let known = subscription(request.connection, id: request.header.stream)
        guard
            let index = known
                ?? insertSubscription(
                    request, queue: queue, group: group, creditRecords: 0, creditBytes: 0)
        else {
            return joinRefused(request, .limitReached, "the server holds no more subscriptions")
        }
        let member = ConsumerGroup.Member(
            subscription: index, name: memberName(request.connection))
        state.groups[group]?.join(member)
        assign(group, except: index)
        return reply(
            request,
            AttachReply(round: 0, group: group, assignment: coordinated(group, member: index)))
    }

    /// Tells the members of a group their sets; their fronts attach them.
    mutating func assign(_ id: UInt32, except quiet: Int32 = -1) {
        guard let group = state.groups[id], let queue = state.queues[group.queue] else { return }
        events.append(
            .groupChanged(
                "group \(group.name) of queue \(queue.name): \(group.members.count) members, "
                    + "generation \(group.generation)"))
        for member in group.members where member.subscription != quiet {
            push(
                .assignment, stream: subscriptions[member.subscription].pointee.id,
                coordinated(id, member: member.subscription),
                to: subscriptions[member.subscription].pointee.connection)
        }
    }

    /// A member's set: only which partitions; where they stand their owners say.
    private func coordinated(_ id: UInt32, member: Int32) -> Assignment {
        guard let group = state.groups[id], let queue = state.queues[group.queue] else {
            return Assignment(generation: 0, partitions: [])
        }
        return Assignment(
            generation: group.generation,
            partitions: group.partitions(of: member).map {
                AssignedPartition(
                    partition: queue.partitions[$0], index: UInt32($0), epoch: 0, nextOffset: 0)
            })
    }

    // MARK: a group begins

    /// A group begins where it was asked to, in the partitions that live here; others say theirs.
    private func groupCreated(_ begin: GroupBegin, _ queue: Queue) -> StateChange {
        let cursors = queue.partitions.map { id -> UInt64 in
            guard let place = state.index(ofPartition: id) else { return 0 }
            let partition = state.partitions[place]
            // A cursor lies below what is committed: an offset beyond it could be taken back.
            return min(start(begin.start, partition).offset, partition.pointee.committed)
        }
        return .groupCreated(
            id: begin.id, queue: begin.queue, name: begin.name, cursors: cursors)
    }

    mutating func groupBegin(_ request: Request) -> Outcome {
        guard let begin = try? GroupBegin(body: request.body) else {
            return refuse(request, .badRequest, "a group that can't be read")
        }
        guard let queue = state.queues[begin.queue], state.groups[begin.id] == nil else {
            return reply(request, Empty())
        }
        guard change(groupCreated(begin, queue)) else { return .park }
        return reply(request, Empty())
    }
}

/// A group that shard 0 has made.
struct GroupBegin: WireMessage {
    var id: UInt32
    var queue: UInt32
    var name: String
    var start: StartPosition

    init(id: UInt32, queue: UInt32, name: String, start: StartPosition) {
        self.id = id
        self.queue = queue
        self.name = name
        self.start = start
    }
    func encode(into builder: inout ByteBuilder) {
        builder.put(id)
        builder.put(queue)
        SubscribeRequest(queue: name, start: start, creditRecords: 0, creditBytes: 0)
            .encode(into: &builder)
    }
    init(from parser: inout ByteParser) throws(ByteParserError) {
        id = try parser.u32()
        queue = try parser.u32()
        let subscribe = try SubscribeRequest(from: &parser)
        name = subscribe.queue
        start = subscribe.start
    }
}
