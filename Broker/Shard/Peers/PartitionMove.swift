internal import BrokerBasics
internal import BrokerCore
internal import LogStorage
internal import WireProtocol

// How it works. A partition goes to another shard while clients publish to it and read it. Shard 0 leads,
// over its own links, one step after the other; one move at a time.
//
//  1. prepare    The owner takes a checkpoint, so that little is left to be written later.
//  2. fence      Every front holds back publishes and acks of the partition, and answers when the owner
//                has worked on those that it had sent before: none is on its way any more.
//  3. hand over  The owner brings the rest to segments on stable storage, and answers with the image.
//  4. adopt      The new owner journals the image; it answers when that is durable.
//  5. commit     Shard 0 changes the placement. When that is durable the partition has moved: it tells all,
//                who let go what they held back, to the new owner. The old one tells the fronts where their
//                subscriptions stood, and gives the partition up; its segments stay where they are.
//
//     publishes  ------>| held back                                |------>
//     owner      ------ fence ---- hand over ---- adopt ---- commit
//
// Until 5 is durable, the owner is the old one: after a crash the copy of the new one is given up, and what
// goes wrong ends the move (`moveEnd`) with nothing changed. Where nobody knows whether it is durable, the
// partition is refused until the next start knows.

/// A partition on its way, as shard 0 sees it.
struct PartitionMove {
    enum Step {
        case prepare, fence, handOver, adopt, commit, end

        /// What is waited for, for a person.
        func delay(_ move: PartitionMove) -> String {
            switch self {
            case .prepare: "the checkpoint of shard \(move.from)"
            case .fence:
                "what clients had sent to shard \(move.from) before (one that does not read its "
                    + "replies holds up what it sent)"
            case .handOver: "bringing the partition's tail to disk on shard \(move.from)"
            case .adopt: "taking the partition in on shard \(move.to)"
            case .commit, .end: "the change of the placement"
            }
        }
    }

    let request: LateRequest

    let queue: UInt32
    let partition: UInt32
    let from: UInt16
    let to: UInt16

    var step = Step.prepare
    /// The gathering of this step; `nil`: it is to begin.
    var gathering: UInt64?
    var beganAt: MonotonicTime
    var fencedAt: MonotonicTime?
    var image: [UInt8] = []
    /// Changes of before the hand-over are told with gatherings below it.
    var changesEnd: UInt64?
    /// Why it ended.
    var refusal: (status: StatusCode, message: String)?
    /// The new placement is on stable storage.
    var isDurable = false
    /// Whether it is, is not known.
    var isUnknown = false

    /// True while what it takes along must not change.
    var holdsChanges: Bool { step == .handOver || step == .adopt || step == .commit }
}

/// What shard 0 tells of a move.
struct MoveMessage: WireMessage {
    var partition: UInt32
    var from: UInt16
    var to: UInt16
    /// To the owner: only make ready. At the end: whether it moved is not known.
    var flag: Bool

    init(partition: UInt32, from: UInt16, to: UInt16, flag: Bool = false) {
        self.partition = partition
        self.from = from
        self.to = to
        self.flag = flag
    }
    func encode(into builder: inout ByteBuilder) {
        builder.put(partition)
        builder.put(from)
        builder.put(to)
        builder.put(flag)
    }
    init(from parser: inout ByteParser) throws(ByteParserError) {
        partition = try parser.u32()
        from = try parser.u16()
        to = try parser.u16()
        flag = try parser.bool()
    }
}

extension ShardMachine {
    mutating func advanceMoves() {
        advanceFence()
        advanceHandOver()
        advanceMove()
    }

    mutating func queueMove(_ request: Request) -> Outcome {
        guard let move = try? QueueMoveRequest(body: request.body) else {
            return refuse(request, .badRequest, "the body of queue-move can't be read")
        }
        guard
            let queue = state.queues.values.first(where: { $0.partitions.contains(move.partition) }
            ), let from = state.placement(ofPartition: move.partition)
        else {
            return refuse(request, .partitionNotFound, "no partition \(move.partition)")
        }
        guard Int(move.shard) < peers.count else {
            return refuse(
                request, .badRequest, "no shard \(move.shard): there are 0 to \(peers.count - 1)")
        }
        guard from != move.shard else {
            return reply(
                request,
                QueueMoveReply(
                    partition: move.partition, from: from, to: from, pauseNanoseconds: 0))
        }
        if let label = Placement.colocation(queue.labels) {
            return refuse(
                request, .changeNotOffered,
                "queue \(queue.name) lives with others of \(Placement.colocateLabel)=\(label): "
                    + "take the label away first")
        }
        if let other = peers.move {
            return refuse(
                request, .busy, "partition \(other.partition) is on its way; one at a time")
        }
        peers.move = PartitionMove(
            request: late(request), queue: queue.id, partition: move.partition, from: from,
            to: move.shard, beganAt: now.monotonic)
        return .done
    }

    /// True for a queue that may not change now: it would not be in what the move takes along.
    func isHeldByMove(queue: UInt32) -> Bool {
        peers.move.map { $0.holdsChanges && $0.queue == queue } ?? false
    }

    // MARK: the steps

    mutating func advanceMove() {
        guard var move = peers.move else { return }
        if let refusal = interruption(move) {
            (move.refusal, move.step, move.gathering) = (refusal, .end, nil)
        }
        if move.gathering == nil { begin(&move) }
        peers.move = move
    }

    /// Why the move ends here; `nil`: it goes on.
    private func interruption(
        _ move: PartitionMove
    ) -> (status: StatusCode, message: String)? {
        // Once the change of the placement is staged, only what becomes of it counts.
        guard move.step != .end, move.step != .commit || move.gathering == nil else { return nil }
        if stage != .ready {
            return (.shuttingDown, "the server is stopping; the partition stays where it is")
        }
        if let failure = counters.storageFailure {
            return (.storageFailed, "this shard stopped confirming: \(failure)")
        }
        guard state.queues[move.queue] != nil else {
            return (.queueNotFound, "the queue was deleted meanwhile")
        }
        let limit =
            move.fencedAt == nil ? limits.movePrepareNanoseconds : limits.moveFenceNanoseconds
        guard now.monotonic.since(move.fencedAt ?? move.beganAt) > limit else { return nil }
        return (
            .busy,
            "\(move.step.delay(move)) took longer than \(limit / .milliseconds(1)) ms; the partition "
                + "stays where it is"
        )
    }

    private mutating func begin(_ move: inout PartitionMove) {
        let message = MoveMessage(partition: move.partition, from: move.from, to: move.to)
        let everybody = (0..<UInt16(peers.count)).map { $0 }
        switch move.step {
        case .prepare:
            var prepares = message
            prepares.flag = true
            move.gathering = ask(.moveHandOver, prepares.encoded, of: [move.from])
        case .fence:
            move.fencedAt = move.fencedAt ?? now.monotonic
            move.gathering = ask(.moveFence, message.encoded, of: everybody)
        case .handOver:
            // A change that is on its way to the others would come behind the image.
            let end = move.changesEnd ?? peers.nextGathering
            move.changesEnd = end
            guard !hasChangesUnderWay(below: end) else { return }
            move.gathering = ask(.moveHandOver, message.encoded, of: [move.from])
        case .adopt:
            move.gathering = ask(
                .moveAdopt, message.encoded + move.image, of: [move.to])
        case .commit:
            commitPlacement(&move)
        case .end:
            var end = message
            end.flag = move.isUnknown
            move.gathering = ask(.moveEnd, end.encoded, of: everybody)
        }
    }

    private mutating func ask(
        _ opcode: PeerOpcode, _ body: [UInt8], of shards: [UInt16]
    ) -> UInt64? {
        let number = peers.nextGathering
        let request = Request(
            connection: -1, header: opcode.header,
            body: UnsafeRawBufferPointer(start: nil, count: 0))
        guard case .done = gather(request, body: body, from: shards, .move) else { return nil }
        return number
    }

    private func hasChangesUnderWay(below end: UInt64) -> Bool {
        peers.gatherings.contains { number, gathering in
            switch gathering.purpose {
            case .changed, .done, .groupBegun: number < end
            default: false
            }
        }
    }

    private mutating func commitPlacement(_ move: inout PartitionMove) {
        guard var queue = state.queues[move.queue],
            let place = queue.partitions.firstIndex(of: move.partition), !hasFailed
        else {
            move.refusal = (.storageFailed, "shard 0 can't change the placement")
            move.step = .end
            return
        }
        queue.shards[place] = move.to
        guard change(.queueAltered(queue)) else { return }
        move.image = []
        move.gathering = peers.nextGathering
        _ = broadcast(
            Request(
                connection: -1, header: PeerOpcode.changeApply.header,
                body: UnsafeRawBufferPointer(start: nil, count: 0)),
            .queueAltered(queue), .move)
    }

    /// The new placement is on stable storage here, and on its way to the others.
    mutating func placementIsDurable(_ gathering: UInt64) {
        guard let move = peers.move, move.gathering == gathering, move.step == .commit else {
            return
        }
        peers.move?.isDurable = true
        placementChanged(queue: move.queue)
    }

    /// The shards that were asked have answered.
    mutating func moveAnswered(_ number: UInt64, _ gathering: Gathering) {
        guard var move = peers.move, move.gathering == number else { return }
        move.gathering = nil
        let refusal = gathering.refusal.map { status, body in
            (status: status, message: (try? Refusal(body: body))?.message ?? "")
        }
        switch move.step {
        case .commit where move.isDurable: return moved(move)
        case .commit:
            move.refusal = (
                .storageFailed,
                "shard 0 failed while the placement changed: partition \(move.partition) is refused "
                    + "until the next start knows where it is"
            )
            move.isUnknown = true
            move.step = .end
        case .end:
            peers.move = nil
            wakesParked = true
            let said = move.refusal ?? (.busy, "the move ended")
            events.append(
                .partitionMove(
                    "partition \(move.partition) stays on shard \(move.from): \(said.message)"))
            return refuseLate(move.request, said.status, said.message)
        case _ where refusal != nil:
            move.refusal = refusal
            move.step = .end
        case .prepare: move.step = .fence
        case .fence: move.step = .handOver
        case .handOver:
            move.image = gathering.parts.first?.body ?? []
            move.step = .adopt
        case .adopt: move.step = .commit
        }
        peers.move = move
    }

    private mutating func moved(_ move: PartitionMove) {
        peers.move = nil
        wakesParked = true
        // From the first front that held back to the last that goes on, and has that in its journal.
        let pause = now.monotonic.since(move.fencedAt ?? now.monotonic)
        counters.partitionMoves &+= 1
        counters.movePauseNanoseconds &+= pause
        counters.movePauseNanosecondsMax = max(counters.movePauseNanosecondsMax, pause)
        let queue = state.queues[move.queue]?.name ?? ""
        events.append(
            .partitionMove(
                "partition \(move.partition) of queue \(queue) moved from shard \(move.from) to "
                    + "\(move.to), held back for \(pause / .microseconds(1)) µs"))
        let reply = QueueMoveReply(
            partition: move.partition, from: move.from, to: move.to, pauseNanoseconds: pause)
        answerLate(move.request, reply.encoded)
    }
}
