internal import BrokerBasics
internal import BrokerCore
internal import LogStorage
internal import WireProtocol

// How it works. Queues, producers and groups are known to every shard, and shard 0 has the say. It
// changes its own state first; when that is durable it tells the others, over its own links and so in
// order; each takes the change over and answers when it is durable there. Then the client is answered.
// After a crash in between the others are brought up to shard 0 (`ShardAssembly`).
extension ShardMachine {
    /// Tells the others of a change that was just made here, and answers when all have it.
    mutating func broadcast(
        _ request: Request, _ change: StateChange, _ purpose: Gathering.Purpose
    ) -> Outcome {
        var builder = ByteBuilder()
        builder.put(change.kind.rawValue)
        return broadcast(
            request, opcode: .changeApply, body: builder.bytes + change.payload, purpose)
    }

    mutating func broadcast(
        _ request: Request, opcode: PeerOpcode, body: [UInt8], _ purpose: Gathering.Purpose
    ) -> Outcome {
        let number = beginGathering(request, awaited: peers.count - 1, purpose)
        peers.broadcasts.append(
            Broadcast(
                group: journal.openGroup, gathering: number,
                frame: opcode.frame(correlation: number, body: body),
                next: 1))
        return .done
    }

    /// Lets out what is durable here, in order, as far as links have room.
    mutating func advanceBroadcasts() {
        while let broadcast = peers.broadcasts.first {
            guard
                broadcast.group < journal.durableGroup || faults.confirmBeforeSync
                    || faults.broadcastBeforeDurable
            else { return }
            var next = broadcast.next
            while Int(next) < peers.count {
                guard let link = ownLink(to: next),
                    broadcast.frame.withUnsafeBytes({ bytes in
                        bytes.baseAddress.map { put($0, bytes.count, on: link) } ?? false
                    })
                else {
                    peers.broadcasts.updateFirst { $0.next = next }
                    return
                }
                next += 1
            }
            peers.broadcasts.removeFirst()
            placementIsDurable(broadcast.gathering)
        }
    }

    /// A change that shard 0 has made.
    mutating func changeApply(_ request: Request) -> Outcome {
        guard request.body.count >= 1, let base = request.body.baseAddress,
            let kind = JournalEntryKind(rawValue: base.u8(0)),
            let decoded = try? StateChange(
                kind: kind,
                payload: UnsafeRawBufferPointer(rebasing: request.body[1...]))
        else { return refuse(request, .badRequest, "a change that can't be read") }
        switch decoded {
        case .queueDeleted(let id):
            guard let queue = state.queues[id] else { return reply(request, Empty()) }
            guard remove(queue) else { return .park }
            return reply(request, Empty())
        case .queueCreated(let queue), .queueAltered(let queue):
            guard change(decoded) else { return .park }
            placementChanged(queue: queue.id)
            return reply(request, info(of: queue, withPartitions: true))
        default:
            guard change(decoded) else { return .park }
            return reply(request, Empty())
        }
    }

    /// A shard that failed is still told where partitions are: what it forwards, others store.
    mutating func placeUnjournalled(_ request: Request) {
        guard let base = request.body.baseAddress, request.body.count >= 1,
            let kind = JournalEntryKind(rawValue: base.u8(0)),
            case .queueAltered(let queue)? = try? StateChange(
                kind: kind, payload: UnsafeRawBufferPointer(rebasing: request.body[1...]))
        else { return }
        state.apply(.queueAltered(queue))
        placementChanged(queue: queue.id)
    }

    // MARK: the start

    /// True when this shard may write its first checkpoint.
    var mayBeginFirstCheckpoint: Bool {
        guard !peers.firstCheckpointIsDone else { return false }
        // The giver forgets, and placement says so, before the taker has it.
        if faults.placementBeforeAdoption {
            return peers.turn != .first || peers.own == 0 || peers.mayCheckpoint
        }
        switch peers.turn {
        case .first: return true
        case .afterOthers(let count): return peers.othersCheckpointed >= count
        case .afterTheFirst: return peers.mayCheckpoint
        }
    }

    /// The first checkpoint is on stable storage.
    mutating func firstCheckpointIsDone() {
        peers.firstCheckpointIsDone = true
        guard !peers.isAlone else {
            stage = .ready
            return
        }
        guard peers.own == 0 else {
            return peers.post(PeerMessage(.checkpointed), to: 0, .control)
        }
        for shard in 1..<UInt16(peers.count) {
            peers.post(PeerMessage(.checkpointNow), to: shard, .control)
        }
        serveWhenAllAreReady()
    }

    mutating func serveWhenAllAreReady() {
        guard peers.own == 0, stage == .starting, peers.firstCheckpointIsDone,
            peers.othersCheckpointed == peers.count - 1
        else { return }
        for shard in 1..<UInt16(peers.count) {
            peers.post(PeerMessage(.serve), to: shard, .control)
        }
        stage = .ready
    }
}

/// A body that is bytes already.
struct RawMessage: WireMessage {
    var bytes: [UInt8]
    init(bytes: [UInt8]) { self.bytes = bytes }
    func encode(into builder: inout ByteBuilder) {
        bytes.withUnsafeBytes { builder.put(raw: $0) }
    }
    init(from parser: inout ByteParser) throws(ByteParserError) { throw .invalid }
}
