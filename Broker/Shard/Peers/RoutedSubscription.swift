internal import BrokerBasics
internal import BrokerCore
internal import LogStorage
internal import WireProtocol

// How it works. A subscription whose partitions live on several shards, or whose group shard 0 keeps, is
// held by its front. Each owner has a part of it: a subscription of its own, on the link of the client, with
// readers for the partitions that the front **attaches**. What owners deliver goes on to the client under
// one count and one credit.
//
//  - Credit: each owner is granted a window out of what the client has left. Together they may have more;
//    what comes above the client's credit is held by the front, a window per owner at most.
//  - A change of the set (`round`): the front says each owner its partitions, and tells the client when all
//    have answered. Deliveries of a partition that is on its way in are held until then; those of one that
//    is on its way out are dropped, for its next reader gets them again.
//  - A partition that moves to another shard: its owner says where the subscription stood, and the front
//    attaches it there, in a round that the client hears nothing of.

/// A client's subscription as its front has it.
package struct RoutedSubscription {
    struct Part {
        let shard: UInt16
        // Absolute, on the owner's count:
        var grantedRecords: UInt64 = 0
        var grantedBytes: UInt64 = 0
        var seenRecords: UInt64 = 0
        var seenBytes: UInt64 = 0
    }
    struct Held {
        var partition: UInt32
        var batches: [UInt8]
        var at = 0
        /// A frame as it is: something that the owner said of the partition.
        var isFrame = false
    }

    let id: UInt32
    let connection: Int32
    let queue: UInt32
    /// 0: no group, or not known yet.
    var group: UInt32 = 0
    var nextInConnection: Int32 = -1

    var creditRecords: UInt64
    var creditBytes: UInt64
    var deliveredRecords: UInt64 = 0
    var deliveredBytes: UInt64 = 0

    var parts: [Part] = []
    /// What the client was told that it reads, and what it is about to.
    var reads: Set<UInt32> = []
    var comes: Set<UInt32> = []
    var held: [Held] = []
    /// In the shard's list of those whose deliveries wait for memory.
    var isStarved = false
    /// Where a subscription without a group begins.
    var start = StartPosition.start
    var generation: UInt64 = 0
    var round: UInt32 = 0
    var awaited = 0
    /// By partition: the shard that reads it for this subscription.
    var owners: [UInt32: UInt16] = [:]
    /// Partitions that went elsewhere; their owner has not said yet where the subscription stood.
    var left: Set<UInt32> = []
    /// By partition that went elsewhere: where it goes on.
    var places: [UInt32: ReaderPlace] = [:]
    /// An owner did not have a partition any more; how often placements had changed when it was asked.
    var isIncomplete = false
    var placementChanges: UInt64 = 0
    /// A round is to follow.
    var isOutdated = false
    /// The client knows what this round brings, or was told.
    var isQuiet = false
    var collected: [AssignedPartition] = []
    var refusal: (status: StatusCode, message: String)?
    /// The client's subscribe, which is answered when the round is over.
    var request: FrameHeader?
    /// Shard 0 was asked to let it join its group, and has not answered.
    var isJoining = false
    /// A later set of the group, which waits for this round's end.
    var nextAssignment: Assignment?
    /// It ends when the round is over, and this is the last that the client hears of it.
    var ending: [UInt8]?

    init(
        id: UInt32, connection: Int32, queue: UInt32, creditRecords: UInt64, creditBytes: UInt64
    ) {
        self.id = id
        self.connection = connection
        self.queue = queue
        self.creditRecords = creditRecords
        self.creditBytes = creditBytes
    }

    /// Bytes that an owner may be ahead of the client's credit.
    static let windowBytes: UInt64 = 256 << 10
}

// MARK: the front's side

extension ShardMachine {
    func routedSubscription(_ connection: Int32, id: UInt32) -> Int32? {
        guard !peers.isAlone else { return nil }
        var at = connections[connection].pointee.firstRouted
        while at >= 0 {
            if peers.routed[at].pointee.id == id { return at }
            at = peers.routed[at].pointee.nextInConnection
        }
        return nil
    }

    /// Begins a subscription that this shard can't serve by itself.
    mutating func subscribeRouted(
        _ request: Request, _ subscribe: SubscribeRequest, _ queue: Queue, _ partitions: [UInt32]
    ) -> Outcome {
        let connection = connections[request.connection]
        guard
            let index = peers.routed.insert(
                RoutedSubscription(
                    id: request.header.stream, connection: request.connection, queue: queue.id,
                    creditRecords: subscribe.creditRecords, creditBytes: subscribe.creditBytes))
        else { return refuse(request, .limitReached, "the server holds no more subscriptions") }
        let routed = peers.routed[index]
        routed.pointee.request = request.header
        routed.pointee.start = subscribe.start
        routed.pointee.nextInConnection = connection.pointee.firstRouted
        connection.pointee.firstRouted = index
        connection.pointee.subscriptionCount += 1
        guard subscribe.group.isEmpty else {
            // Shard 0 says which partitions it gets.
            routed.pointee.isJoining = true
            putLater(
                PeerOpcode.groupJoin.frame(
                    stream: routed.pointee.id, body: [UInt8](request.body)), of: request.connection,
                to: 0)
            return .done
        }
        beginRound(index, partitions, generation: 0)
        return .done
    }

    /// Tells every owner what the subscription reads there.
    mutating func beginRound(
        _ index: Int32, _ partitions: [UInt32], generation: UInt64, leaves: Bool = false,
        isQuiet: Bool = false
    ) {
        let routed = peers.routed[index]
        var byShard: [UInt16: [UInt32]] = [:]
        for part in routed.pointee.parts { byShard[part.shard] = [] }
        // Its place in the group is with shard 0.
        if leaves, routed.pointee.group != 0 { byShard[0] = [] }
        for partition in partitions {
            guard
                let shard = routed.pointee.owners[partition]
                    ?? placement(forFronts: partition)
            else { continue }
            byShard[shard, default: []].append(partition)
        }
        for shard in byShard.keys.sorted()
        where !routed.pointee.parts.contains(where: { $0.shard == shard }) {
            routed.pointee.parts.append(RoutedSubscription.Part(shard: shard))
        }
        routed.pointee.comes = Set(partitions)
        routed.pointee.reads.formIntersection(routed.pointee.comes)
        let comes = routed.pointee.comes
        routed.pointee.held.removeAll { !comes.contains($0.partition) }
        routed.pointee.owners = routed.pointee.owners.filter { comes.contains($0.key) }
        routed.pointee.places = routed.pointee.places.filter { comes.contains($0.key) }
        routed.pointee.left.formIntersection(comes)
        routed.pointee.isQuiet = isQuiet
        routed.pointee.isOutdated = false
        routed.pointee.isIncomplete = false
        routed.pointee.placementChanges = peers.placementChanges
        routed.pointee.generation = generation
        routed.pointee.round &+= 1
        routed.pointee.collected = []
        routed.pointee.refusal = nil
        routed.pointee.awaited = byShard.count
        for (shard, wanted) in byShard.sorted(by: { $0.key < $1.key }) {
            let attach = AttachRequest(
                round: routed.pointee.round, leaves: leaves, queue: routed.pointee.queue,
                group: routed.pointee.group, generation: generation, start: routed.pointee.start,
                partitions: wanted, places: wanted.compactMap { routed.pointee.places[$0] })
            putLater(
                PeerOpcode.groupAttach.frame(stream: routed.pointee.id, body: attach.encoded),
                of: routed.pointee.connection, to: shard)
        }
        if byShard.isEmpty { finishRound(index) }
    }

    /// An owner's or shard 0's word on a subscription of this front.
    mutating func routedAnswer(
        _ connection: Int32, _ header: FrameHeader, _ body: UnsafeRawBufferPointer,
        from shard: UInt16
    ) {
        guard let index = routedSubscription(connection, id: header.stream) else { return }
        let routed = peers.routed[index]
        if let opcode = PeerOpcode(rawValue: header.opcode) {
            return answered(index, routed, opcode, body, from: shard)
        }
        guard routed.pointee.ending == nil else { return }
        switch Opcode(rawValue: header.opcode) {
        case .assignment:
            guard let assignment = try? Assignment(body: body) else { return }
            // Before the answer to its joining, or in the middle of a round: the latest counts.
            if assignment.generation > routed.pointee.nextAssignment?.generation ?? 0 {
                routed.pointee.nextAssignment = assignment
            }
            if !routed.pointee.isJoining, routed.pointee.awaited == 0 { beginNext(index) }
        case .ended:
            var ended = header
            ended.frameBytes = UInt32(FrameHeader.byteCount + body.count)
            leave(index, saying: ended.frame(body: [UInt8](body)))
        default: return
        }
    }

    private mutating func answered(
        _ index: Int32, _ routed: UnsafeMutablePointer<RoutedSubscription>, _ opcode: PeerOpcode,
        _ body: UnsafeRawBufferPointer, from shard: UInt16
    ) {
        if opcode == .readerMoved {
            if let place = try? ReaderPlace(body: body) { moved(index, place, from: shard) }
            return
        }
        guard let answer = try? AttachReply(body: body) else { return }
        let status = StatusCode(rawValue: answer.status) ?? .ok
        switch opcode {
        case .groupJoin:
            routed.pointee.isJoining = false
            if status != .ok {
                routed.pointee.refusal = (status, answer.message)
                return finishRound(index)
            }
            routed.pointee.group = answer.group
            if let ending = routed.pointee.ending { return leave(index, saying: ending) }
            if answer.assignment.generation > routed.pointee.nextAssignment?.generation ?? 0 {
                routed.pointee.nextAssignment = answer.assignment
            }
            beginNext(index)
        case .groupAttach:
            guard answer.round == routed.pointee.round else { return }
            if status != .ok { routed.pointee.refusal = (status, answer.message) }
            for attached in answer.assignment.partitions
            where routed.pointee.comes.contains(attached.partition) {
                routed.pointee.collected.append(attached)
                routed.pointee.owners[attached.partition] = shard
                routed.pointee.places[attached.partition] = nil
                if shard == placement(forFronts: attached.partition) {
                    routed.pointee.left.remove(attached.partition)
                }
            }
            // Acks may have waited for it.
            wakesParked = true
            routed.pointee.awaited -= 1
            if routed.pointee.awaited == 0 { finishRound(index) }
        default: return
        }
    }

    /// Goes on with the latest set of its group.
    private mutating func beginNext(_ index: Int32) {
        guard let next = peers.routed[index].pointee.nextAssignment else { return }
        peers.routed[index].pointee.nextAssignment = nil
        beginRound(index, next.partitions.map(\.partition), generation: next.generation)
    }

    /// All owners have answered.
    private mutating func finishRound(_ index: Int32) {
        let routed = peers.routed[index]
        let connection = routed.pointee.connection
        if let ending = routed.pointee.ending {
            let unanswered = routed.pointee.request
            removeRouted(index)
            if let unanswered {
                refuseLate(
                    connection, correlation: unanswered.correlation, stream: unanswered.stream,
                    .subscriptionNotFound, "the subscription ended before it began")
            }
            return tell(ending, to: connection)
        }
        if routed.pointee.refusal == nil, routed.pointee.nextAssignment != nil {
            return beginNext(index)
        }
        if let (status, message) = routed.pointee.refusal {
            guard let request = routed.pointee.request else {
                // A group's new set that an owner can't serve: the member is told, and asks again.
                let refusal = Refusal(errorClass: status.errorClass.rawValue, message: message)
                return leave(
                    index,
                    saying: FrameHeader(
                        opcode: .ended, flags: FrameHeader.pushFlag, stream: routed.pointee.id,
                        status: status
                    ).frame(body: refusal.encoded))
            }
            let refusal = Refusal(errorClass: status.errorClass.rawValue, message: message)
            counters.refusals &+= 1
            routed.pointee.request = nil
            return leave(
                index,
                saying: FrameHeader(
                    opcode: .error, flags: FrameHeader.replyFlag | FrameHeader.errorFlag,
                    correlation: request.correlation, stream: request.stream, status: status
                ).frame(body: refusal.encoded))
        }
        let attached = Set(routed.pointee.collected.map(\.partition))
        let missing = routed.pointee.comes.subtracting(attached)
        if routed.pointee.isOutdated || !missing.isEmpty {
            for partition in missing {
                // Known to be elsewhere already: there will be no more news.
                if let asked = routed.pointee.owners[partition],
                    asked != placement(forFronts: partition)
                {
                    routed.pointee.isOutdated = true
                }
                routed.pointee.owners[partition] = nil
            }
            routed.pointee.isIncomplete = !missing.isEmpty
            return continueRound(index)
        }
        routed.pointee.reads = routed.pointee.comes
        let assignment = Assignment(
            generation: routed.pointee.generation,
            partitions: routed.pointee.collected.sorted { $0.index < $1.index })
        if let request = routed.pointee.request {
            routed.pointee.request = nil
            tell(
                FrameHeader(
                    opcode: .subscribe, flags: FrameHeader.replyFlag,
                    correlation: request.correlation, stream: request.stream
                ).frame(body: assignment.encoded), to: connection)
        } else if !routed.pointee.isQuiet {
            tell(
                FrameHeader(
                    opcode: .assignment, flags: FrameHeader.pushFlag, stream: routed.pointee.id
                ).frame(body: assignment.encoded), to: connection)
        }
        routed.pointee.isQuiet = true
        deliverHeld(index)
        grant(index)
    }

    /// A partition went to another shard, and was delivered up to there.
    private mutating func moved(_ index: Int32, _ place: ReaderPlace, from shard: UInt16) {
        let routed = peers.routed[index]
        guard routed.pointee.comes.contains(place.partition) else { return }
        if routed.pointee.owners[place.partition] == shard {
            routed.pointee.owners[place.partition] = nil
        }
        routed.pointee.left.remove(place.partition)
        routed.pointee.places[place.partition] = place
        routed.pointee.isOutdated = true
        continueRound(index)
    }

    /// Attaches what is attached nowhere, when this round is over and there is news of where it is.
    mutating func continueRound(_ index: Int32) {
        let routed = peers.routed[index]
        guard routed.pointee.ending == nil, !routed.pointee.isJoining,
            routed.pointee.awaited == 0,
            routed.pointee.isOutdated
                || (routed.pointee.isIncomplete
                    && routed.pointee.placementChanges != peers.placementChanges)
        else { return }
        beginRound(
            index, routed.pointee.comes.sorted(), generation: routed.pointee.generation,
            isQuiet: routed.pointee.isQuiet)
    }

    /// A subscription of a client of this shard that this shard can't serve alone any more.
    mutating func becomeRouted(_ subscription: Int32) {
        let local = subscriptions[subscription]
        let connection = local.pointee.connection
        var places: [ReaderPlace] = []
        var at = local.pointee.firstReader
        while at >= 0 {
            let reader = readers[at]
            places.append(
                ReaderPlace(
                    partition: state.partitions[reader.pointee.partition].pointee.id,
                    nextOffset: reader.pointee.nextOffset, notBefore: reader.pointee.notBefore))
            at = reader.pointee.nextInSubscription
        }
        var routed = RoutedSubscription(
            id: local.pointee.id, connection: connection, queue: local.pointee.queue,
            creditRecords: local.pointee.creditRecords, creditBytes: local.pointee.creditBytes)
        routed.deliveredRecords = local.pointee.deliveredRecords
        routed.deliveredBytes = local.pointee.deliveredBytes
        routed.reads = Set(places.map(\.partition))
        for place in places { routed.places[place.partition] = place }
        guard let index = peers.routed.insert(routed) else {
            endings.append(
                Ending(
                    subscription: subscription, status: .limitReached,
                    message: "a partition moved, and the server holds no more subscriptions"))
            return endSubscriptions()
        }
        dropSubscription(subscription)
        peers.routed[index].pointee.nextInConnection = connections[connection].pointee.firstRouted
        connections[connection].pointee.firstRouted = index
        connections[connection].pointee.subscriptionCount += 1
        beginRound(index, places.map(\.partition), generation: 0, isQuiet: true)
    }

    private mutating func tell(_ frame: [UInt8], to connection: Int32) {
        deliver(
            deferredReply: DeferredReply(
                group: 0, connection: connection,
                generation: connections[connection].pointee.generation, frame: frame))
    }

    /// Ends a subscription at its owners, then tells the client.
    private mutating func leave(_ index: Int32, saying ending: [UInt8]) {
        let routed = peers.routed[index]
        routed.pointee.ending = ending
        routed.pointee.held = []
        // Shard 0 still lets it join: it leaves when that is answered.
        guard !routed.pointee.isJoining else { return }
        beginRound(index, [], generation: routed.pointee.generation, leaves: true)
    }

    mutating func unsubscribeRouted(_ request: Request, _ index: Int32) -> Outcome {
        guard peers.routed[index].pointee.ending == nil else {
            return refuse(
                request, .subscriptionNotFound,
                "no subscription \(request.header.stream) on this connection")
        }
        leave(
            index,
            saying: FrameHeader(
                opcode: .unsubscribe, flags: FrameHeader.replyFlag,
                correlation: request.header.correlation, stream: request.header.stream
            ).frame(body: []))
        return .done
    }

    private mutating func removeRouted(_ index: Int32) {
        let routed = peers.routed[index]
        let connection = connections[routed.pointee.connection]
        if connection.pointee.firstRouted == index {
            connection.pointee.firstRouted = routed.pointee.nextInConnection
        } else {
            var at = connection.pointee.firstRouted
            while at >= 0 {
                if peers.routed[at].pointee.nextInConnection == index {
                    peers.routed[at].pointee.nextInConnection = routed.pointee.nextInConnection
                    break
                }
                at = peers.routed[at].pointee.nextInConnection
            }
        }
        connection.pointee.subscriptionCount -= 1
        peers.routed.remove(index)
    }

    /// The client is gone: owners hear of it by their links.
    mutating func dropRouted(of connection: Int32) {
        while connections[connection].pointee.firstRouted >= 0 {
            removeRouted(connections[connection].pointee.firstRouted)
        }
    }

    // MARK: credit

    mutating func creditRouted(_ index: Int32, records: UInt64, bytes: UInt64) {
        let routed = peers.routed[index]
        routed.pointee.creditRecords = max(routed.pointee.creditRecords, records)
        routed.pointee.creditBytes = max(routed.pointee.creditBytes, bytes)
        deliverHeld(index)
        grant(index)
    }

    /// Grants every owner a window out of what the client has left.
    mutating func grant(_ index: Int32) {
        let routed = peers.routed[index]
        guard routed.pointee.ending == nil, routed.pointee.request == nil else { return }
        for place in routed.pointee.parts.indices { grant(routed, place) }
    }

    private mutating func grant(_ routed: UnsafeMutablePointer<RoutedSubscription>, _ place: Int) {
        // What is held goes first; an owner that is granted more would fill this shard's memory.
        guard routed.pointee.held.isEmpty else { return }
        let part = routed.pointee.parts[place]
        func wanted(_ seen: UInt64, _ credit: UInt64, _ used: UInt64, _ window: UInt64) -> UInt64 {
            guard credit > used else { return seen }
            let left = credit == .max ? .max : credit - used
            let (sum, overflow) = seen.addingReportingOverflow(min(left, window))
            return overflow ? .max : sum
        }
        let records = wanted(
            part.seenRecords, routed.pointee.creditRecords, routed.pointee.deliveredRecords, .max)
        let bytes = wanted(
            part.seenBytes, routed.pointee.creditBytes, routed.pointee.deliveredBytes,
            RoutedSubscription.windowBytes)
        // Half a window at a time, or what is left of the client's.
        let isShort =
            part.grantedBytes < part.seenBytes &+ RoutedSubscription.windowBytes / 2
            || part.grantedRecords <= part.seenRecords
        guard records > part.grantedRecords || bytes > part.grantedBytes,
            isShort || records > part.grantedRecords
        else { return }
        let frame = FrameHeader(opcode: .credit, stream: routed.pointee.id)
            .frame(body: Credit(records: records, bytes: bytes).encoded)
        // Behind an attach that waits for room: an owner drops credit for what it does not know.
        guard let link = uplink(of: routed.pointee.connection, to: part.shard),
            peers.uplinks[link].pointee.later.isEmpty,
            frame.withUnsafeBytes({ bytes in
                bytes.baseAddress.map { put($0, bytes.count, on: link) } ?? false
            })
        else {
            peers.hasRefusedGrants = true
            return
        }
        routed.pointee.parts[place].grantedRecords = max(part.grantedRecords, records)
        routed.pointee.parts[place].grantedBytes = max(part.grantedBytes, bytes)
    }

    // MARK: deliveries

    /// Takes batches that an owner delivered.
    ///
    /// - Returns: false when the client has no room for them now.
    mutating func routedDeliver(
        _ connectionIndex: Int32, _ connection: UnsafeMutablePointer<Connection>,
        _ header: FrameHeader, _ body: UnsafeRawBufferPointer, from shard: UInt16
    ) -> Bool {
        guard let index = routedSubscription(connectionIndex, id: header.stream),
            let base = body.baseAddress
        else { return true }
        let routed = peers.routed[index]
        guard let place = routed.pointee.parts.firstIndex(where: { $0.shard == shard }) else {
            return true
        }
        let records = header.correlation &- routed.pointee.parts[place].seenRecords
        let isRead = routed.pointee.reads.contains(header.argument)
        if routed.pointee.ending == nil, isRead || routed.pointee.comes.contains(header.argument) {
            var taken = 0
            if isRead, routed.pointee.held.isEmpty {
                taken = forward(
                    routed, connectionIndex, connection, header.argument, base, body.count,
                    records: records)
                if taken == 0, hasCredit(routed) { return false }
            }
            if taken < body.count {
                routed.pointee.held.append(
                    RoutedSubscription.Held(
                        partition: header.argument,
                        batches: [UInt8](UnsafeRawBufferPointer(rebasing: body[taken...]))))
            }
        }
        routed.pointee.parts[place].seenRecords = header.correlation
        routed.pointee.parts[place].seenBytes &+= UInt64(body.count)
        grant(routed, place)
        return true
    }

    private func hasCredit(_ routed: UnsafeMutablePointer<RoutedSubscription>) -> Bool {
        routed.pointee.deliveredRecords < routed.pointee.creditRecords
            && routed.pointee.deliveredBytes < routed.pointee.creditBytes
    }

    /// Sends whole batches on, as far as credit and room go.
    ///
    /// - Parameter records: of all the batches, when known.
    /// - Returns: the bytes that went; 0 when there is no credit or no room.
    private mutating func forward(
        _ routed: UnsafeMutablePointer<RoutedSubscription>, _ index: Int32,
        _ connection: UnsafeMutablePointer<Connection>, _ partition: UInt32,
        _ base: UnsafeRawPointer, _ count: Int, records: UInt64?
    ) -> Int {
        guard hasCredit(routed), connection.pointee.blockedCount == 0 else { return 0 }
        let recordsLeft = routed.pointee.creditRecords &- routed.pointee.deliveredRecords
        let bytesLeft = routed.pointee.creditBytes &- routed.pointee.deliveredBytes
        let free = connection.pointee.send.free(pool: sendPool)
        let room = min(free, Int(connection.pointee.frameBytesMax)) - FrameHeader.byteCount
        var run = 0
        var sum: UInt64 = 0
        if let records, records <= recordsLeft, UInt64(count) <= bytesLeft, count <= room {
            run = count
            sum = records
        } else {
            while run < count {
                let batch = base + run
                let bytes = StoredBatch.bytes(at: batch)
                // One batch larger than what is free goes alone, in a buffer of its own size.
                if run + bytes > room, run > 0 || connection.pointee.send.activeCount > 0 { break }
                run += bytes
                sum &+= UInt64((batch + StoredBatch.stampBytes).u16(10))
                if sum >= recordsLeft || UInt64(run) >= bytesLeft || run > room { break }
            }
            guard run > 0 else { return 0 }
        }
        let frameBytes = FrameHeader.byteCount + run
        guard
            let memory = connection.pointee.send.reserve(
                frameBytes, pool: &sendPool, isDelivery: true)
        else {
            return 0
        }
        (memory + FrameHeader.byteCount).copyMemory(from: base, byteCount: run)
        routed.pointee.deliveredRecords &+= sum
        routed.pointee.deliveredBytes &+= UInt64(run)
        FrameHeader(
            opcode: .deliver, bodyBytes: run, flags: FrameHeader.pushFlag,
            correlation: routed.pointee.deliveredRecords, stream: routed.pointee.id,
            argument: partition
        ).encode(at: memory)
        connection.pointee.send.commit(frameBytes)
        listForSending(index)
        return run
    }

    /// Sends on what was held for want of credit, of room, or of the client's knowledge.
    mutating func deliverHeld(_ index: Int32) {
        let routed = peers.routed[index]
        let connection = connections[routed.pointee.connection]
        while let held = routed.pointee.held.first {
            guard routed.pointee.reads.contains(held.partition) else {
                if routed.pointee.comes.contains(held.partition) { return }
                routed.pointee.held.removeFirst()
                continue
            }
            if held.isFrame {
                guard connection.pointee.blockedCount == 0 else { return }
                routed.pointee.held.removeFirst()
                tell(held.batches, to: routed.pointee.connection)
                continue
            }
            let taken = held.batches.withUnsafeBytes { bytes in
                bytes.baseAddress.map {
                    forward(
                        routed, routed.pointee.connection, connection, held.partition,
                        $0 + held.at, bytes.count - held.at, records: nil)
                } ?? 0
            }
            guard taken > 0 else {
                // With nothing in flight it lacked memory, and no send of this connection wakes it.
                if hasCredit(routed), connection.pointee.send.isEmpty, !routed.pointee.isStarved {
                    routed.pointee.isStarved = true
                    peers.starved.append(index)
                }
                return
            }
            routed.pointee.held[0].at += taken
            if held.at + taken == held.batches.count { routed.pointee.held.removeFirst() }
        }
    }

    /// What an owner says of a partition, in its place among what it delivered.
    ///
    /// - Returns: true when it is to go to the client at once.
    mutating func passesAtOnce(_ connection: Int32, _ stream: UInt32, _ frame: [UInt8]) -> Bool {
        guard let index = routedSubscription(connection, id: stream),
            let told = try? Skipped(body: Array(frame[FrameHeader.byteCount...]))
        else { return false }
        let routed = peers.routed[index]
        guard routed.pointee.ending == nil, routed.pointee.comes.contains(told.partition) else {
            return false
        }
        if routed.pointee.held.isEmpty, routed.pointee.reads.contains(told.partition) {
            return true
        }
        routed.pointee.held.append(
            RoutedSubscription.Held(partition: told.partition, batches: frame, isFrame: true))
        return false
    }

    /// A connection has room again.
    mutating func wakeRouted(_ connection: Int32) {
        var at = connections[connection].pointee.firstRouted
        while at >= 0 {
            let next = peers.routed[at].pointee.nextInConnection
            if !peers.routed[at].pointee.held.isEmpty { deliverHeld(at) }
            grant(at)
            at = next
        }
    }

    /// Puts a frame of the front's own making on a client's link, now or when there is room. There are few
    /// of them: rounds, not records.
    private mutating func putLater(_ frame: [UInt8], of connection: Int32, to shard: UInt16) {
        guard let link = uplink(of: connection, to: shard) else {
            // Whoever is being told of this still works on the connection: it closes with the cycle.
            peers.toClose.append((connection, connections[connection].pointee.generation))
            return
        }
        let isPut =
            peers.uplinks[link].pointee.later.isEmpty
            && frame.withUnsafeBytes { bytes in
                bytes.baseAddress.map { put($0, bytes.count, on: link) } ?? false
            }
        guard !isPut else { return }
        peers.uplinks[link].pointee.later.append(frame)
        peers.waitsForRoom = true
    }

    /// Tries again what found no memory for a buffer, and has nothing in flight that would wake it.
    mutating func retryPeers() {
        guard !peers.isAlone else { return }
        if peers.waitsForRoom {
            peers.waitsForRoom = false
            for link in peers.uplinks.indices
            where peers.uplinks[link].pointee.connection != Uplink.gone {
                putWaiting(on: link)
                if !peers.uplinks[link].pointee.later.isEmpty { peers.waitsForRoom = true }
            }
        }
        if peers.hasRefusedGrants {
            peers.hasRefusedGrants = false
            for index in peers.routed.indices { grant(index) }
        }
        // In turn, until one still finds none.
        for _ in 0..<peers.starved.count {
            guard let index = peers.starved.first else { break }
            peers.starved.removeFirst()
            guard peers.routed.contains(index) else { continue }
            peers.routed[index].pointee.isStarved = false
            deliverHeld(index)
            grant(index)
            if peers.routed[index].pointee.isStarved { break }
        }
    }

    mutating func closeOverflowed() {
        while let (connection, generation) = peers.toClose.popLast() {
            guard connections.contains(connection),
                connections[connection].pointee.generation == generation
            else { continue }
            close(connection, reason: .overflow)
        }
    }

    /// Puts what waited for room on a link.
    mutating func putWaiting(on link: Int32) {
        while let frame = peers.uplinks[link].pointee.later.first {
            let isPut = frame.withUnsafeBytes { bytes in
                bytes.baseAddress.map { put($0, bytes.count, on: link) } ?? false
            }
            guard isPut else { return }
            peers.uplinks[link].pointee.later.removeFirst()
        }
    }
}
