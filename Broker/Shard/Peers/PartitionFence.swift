internal import BrokerBasics
internal import BrokerCore
internal import LogStorage
internal import WireProtocol

// What a front does while a partition goes from one owner to another. See PartitionMove.swift.

/// Publishes and acks of one partition are held back here.
struct PartitionFence {
    let partition: UInt32
    let from: UInt16
    let to: UInt16
    /// Shard 0's request, answered when the owner has worked on all that was sent to it before.
    var request: LateRequest?
    /// Nobody knows whether it moved: it is refused instead.
    var isUnknown = false
}

extension ShardMachine {
    mutating func updateHold() { holdsPublishes = refusesPublishes || peers.fence != nil }

    /// Where a front finds a partition: on shard 0 a new placement is not durable as long as there is a fence.
    func placement(forFronts partition: UInt32) -> UInt16? {
        if let fence = peers.fence, fence.partition == partition,
            state.placement(ofPartition: partition) != nil
        {
            return fence.from
        }
        return state.placement(ofPartition: partition)
    }

    /// What becomes of a publish or ack of a client of this shard; `nil`: it goes on.
    mutating func fenced(_ request: Request, partition: UInt32) -> Outcome? {
        guard let fence = peers.fence, fence.partition == partition, !faults.moveNotFenced,
            connections[request.connection].pointee.relay == nil
        else { return nil }
        guard !fence.isUnknown else {
            return refuse(
                request, .storageFailed,
                "partition \(partition) was on its way to another shard when shard 0 failed: start "
                    + "the server again")
        }
        guard stage == .ready else {
            return refuse(
                request, .shuttingDown, "the server is stopping; nothing was stored")
        }
        return .park
    }

    mutating func moveFence(_ request: Request) -> Outcome {
        guard let message = try? MoveMessage(body: request.body) else {
            return refuse(request, .badRequest, "a move that can't be read")
        }
        peers.fence = PartitionFence(
            partition: message.partition, from: message.from, to: message.to,
            request: late(request))
        updateHold()
        for link in peers.uplinks.indices where peers.uplinks[link].pointee.shard == message.from {
            peers.uplinks[link].pointee.drainsTo = peers.uplinks[link].pointee.enqueuedBytes
        }
        advanceFence()
        return .done
    }

    /// Answers when nothing that was sent to the owner is on its way any more.
    mutating func advanceFence() {
        guard let request = peers.fence?.request else { return }
        for link in peers.uplinks.indices where peers.uplinks[link].pointee.isDraining { return }
        peers.fence?.request = nil
        answerLate(request, [])
    }

    /// The placement of a queue is another: what was held back goes on, and what another shard has now is
    /// given up.
    mutating func placementChanged(queue id: UInt32) {
        guard let queue = state.queues[id] else { return }
        for partition in queue.partitions {
            let shard = state.placement(ofPartition: partition)
            if let fence = peers.fence, fence.partition == partition, fence.to == shard {
                noteLeft(partition, from: fence.from)
                liftFence()
            }
            guard let index = state.index(ofPartition: partition) else { continue }
            if shard == peers.own {
                state.partitions[index].pointee.isMoving = false
                state.partitions[index].pointee.isArriving = false
            } else {
                giveUp(index)
            }
        }
        peers.placementChanges &+= 1
        for index in peers.routed.indices where peers.routed[index].pointee.queue == id {
            continueRound(index)
        }
    }

    /// Subscriptions that read it at its old owner are about to hear from there.
    private mutating func noteLeft(_ partition: UInt32, from shard: UInt16) {
        for index in peers.routed.indices
        where peers.routed[index].pointee.owners[partition] == shard {
            peers.routed[index].pointee.left.insert(partition)
        }
    }

    /// True for a partition that a subscription reads, and that no shard knows it to read now.
    func isBetweenOwners(_ index: Int32, _ partition: UInt32) -> Bool {
        let routed = peers.routed[index]
        guard routed.pointee.ending == nil, routed.pointee.reads.contains(partition) else {
            return false
        }
        return routed.pointee.left.contains(partition)
            || routed.pointee.owners[partition] != placement(forFronts: partition)
    }

    private mutating func liftFence() {
        if let request = peers.fence?.request {
            refuseLate(request, .busy, "the move is over")
        }
        peers.fence = nil
        updateHold()
        wakesParked = true
    }

    /// The move is over, and the partition stays where it was.
    mutating func moveEnd(_ request: Request) -> Outcome {
        guard let message = try? MoveMessage(body: request.body) else {
            return refuse(request, .badRequest, "a move that can't be read")
        }
        cancelHandOver()
        if message.flag {
            peers.fence?.isUnknown = true
            wakesParked = true
            return reply(request, Empty())
        }
        if peers.fence?.partition == message.partition { liftFence() }
        if let index = state.index(ofPartition: message.partition) {
            state.partitions[index].pointee.isMoving = false
            if peers.own == message.to { giveUp(index) }
        }
        return reply(request, Empty())
    }
}

extension Uplink {
    /// Something that was put in before the fence is not worked on yet.
    fileprivate var isDraining: Bool {
        guard takenBytes < drainsTo else { return false }
        // What its client left behind, and is not on its way, never leaves.
        return connection != Uplink.gone || send.isInFlight
    }
}
