internal import BrokerBasics
internal import BrokerCore
internal import LogStorage
internal import WireProtocol

// Which shard does what of a client's requests. What comes over a link was routed by its front: here it
// is done, as far as it concerns this shard.
extension ShardMachine {
    /// Sends a request where it belongs; `nil` when that is here.
    mutating func route(
        _ request: Request, _ opcode: Opcode, _ frame: UnsafeRawPointer
    ) -> Outcome? {
        // Acks and credit come through here too: they allocate nothing.
        var everybody: [UInt16] { (0..<UInt16(peers.count)).map { $0 } }
        var body: [UInt8] { [UInt8](request.body) }
        switch opcode {
        case .queueCreate, .queueAlter, .queueDelete, .queueMove, .producerOpen:
            guard peers.own != 0 else { return nil }
            return gather(request, body: body, from: [0], .pass)
        case .backup:
            guard peers.own != 0 else { return nil }
            // Over the client's link, which closes when the client leaves: then the image is given up.
            return forward(
                request.connection, frame, Int(request.header.frameBytes), to: 0,
                otherwise: request)
        case .queueDescribe:
            return gather(request, body: body, from: everybody, .queue)
        case .queuePurge:
            guard let purge = try? QueuePurgeRequest(body: request.body),
                let queue = state.queue(named: purge.name),
                purge.partition == PartitionID.all.rawValue
                    || queue.partitions.contains(purge.partition)
            else { return nil }
            if let refused = refuseTooLarge(request, planned(queue)) { return refused }
            return gather(request, body: body, from: everybody, .queue)
        case .queueList:
            guard let list = try? QueueListRequest(body: request.body) else { return nil }
            return gather(
                request, body: body, from: everybody,
                .queues(limit: pageLimit(request, list.limit)))
        case .groupDescribe:
            return gather(request, body: body, from: everybody, .group)
        case .groupList:
            guard let list = try? GroupListRequest(body: request.body) else { return nil }
            return gather(
                request, body: body, from: everybody,
                .groups(limit: pageLimit(request, list.limit)))
        case .serverDescribe:
            return gather(request, body: body, from: everybody, .server)
        case .shardList:
            return gather(request, body: body, from: everybody, .shards)
        case .storageDescribe:
            return gather(
                request, body: body, from: everybody, .storage(bytesMax: replyBytesMax(request)))
        case .storageVerify:
            return gather(request, body: body, from: everybody, .storageChecks)
        case .subscribe: return routeSubscribe(request)
        case .unsubscribe:
            return routedSubscription(request.connection, id: request.header.stream).map {
                unsubscribeRouted(request, $0)
            }
        case .credit:
            guard request.body.count >= Credit.byteCount, let base = request.body.baseAddress,
                let index = routedSubscription(request.connection, id: request.header.stream)
            else { return nil }
            creditRouted(index, records: base.u64(0), bytes: base.u64(8))
            return .done
        case .ack: return routeAck(request, frame)
        default: return nil
        }
    }

    /// What a page may hold so that a client which takes small frames gets it.
    private func pageLimit(_ request: Request, _ asked: UInt32) -> Int {
        let frameBytes = Int(connections[request.connection].pointee.frameBytesMax)
        // A list's item has at most some 600 bytes without labels; with many, the merged page is refused.
        return min(Int(asked), max(1, min(1000, frameBytes / 640)))
    }

    private mutating func routeSubscribe(_ request: Request) -> Outcome? {
        guard let subscribe = try? SubscribeRequest(body: request.body),
            let queue = state.queue(named: subscribe.queue)
        else { return nil }
        let all = subscribe.partition == PartitionID.all.rawValue
        let wanted = queue.partitions.filter { all || $0 == subscribe.partition }
        guard !wanted.isEmpty, all || subscribe.group.isEmpty else { return nil }
        if subscribe.group.isEmpty,
            wanted.allSatisfy({ state.placement(ofPartition: $0) == peers.own })
        {
            return routedSubscription(request.connection, id: request.header.stream) == nil
                ? nil : subscriptionInUse(request)
        }
        guard routedSubscription(request.connection, id: request.header.stream) == nil,
            subscription(request.connection, id: request.header.stream) == nil
        else { return subscriptionInUse(request) }
        guard
            connections[request.connection].pointee.subscriptionCount
                < limits.subscriptionsPerConnectionMax
        else { return nil }
        // Of a group any member may come to read every partition.
        let widest = Assignment(
            generation: 0,
            partitions: wanted.map { _ in
                AssignedPartition(partition: 0, index: 0, epoch: 0, nextOffset: 0)
            })
        if let refused = refuseTooLarge(request, widest) { return refused }
        return subscribeRouted(request, subscribe, queue, wanted)
    }

    private mutating func subscriptionInUse(_ request: Request) -> Outcome {
        refuse(
            request, .subscriptionExists,
            "subscription \(request.header.stream) is in use on this connection")
    }

    /// An ack goes to the owner of its partition, where the reader and the cursor are.
    private mutating func routeAck(_ request: Request, _ frame: UnsafeRawPointer) -> Outcome? {
        guard let index = routedSubscription(request.connection, id: request.header.stream),
            let ack = try? Ack(body: request.body)
        else { return nil }
        if let fenced = fenced(request, partition: ack.partition) { return fenced }
        // It reads on at another shard, which does not know it yet.
        guard !isBetweenOwners(index, ack.partition) else { return .park }
        guard let shard = state.placement(ofPartition: ack.partition) else {
            return refuse(
                request, .notAssigned,
                "partition \(ack.partition) is not assigned to this subscription")
        }
        return forward(
            request.connection, frame, Int(request.header.frameBytes), to: shard,
            otherwise: request)
    }

    /// A publish to a partition that does not live here.
    @inline(never)
    mutating func publishElsewhere(
        _ index: Int32, _ header: FrameHeader, _ frame: UnsafeRawPointer
    ) -> Outcome {
        let request = Request(
            connection: index, header: header, body: UnsafeRawBufferPointer(start: nil, count: 0))
        if let fenced = fenced(request, partition: header.stream) { return fenced }
        if header.argument != 0, isPastDeadline(connections[index], header) {
            return refuse(
                request, .deadlineExceeded,
                "the deadline of \(header.argument) µs passed; nothing was stored")
        }
        guard let shard = state.placement(ofPartition: header.stream), shard != peers.own else {
            return refuse(request, .partitionNotFound, "no partition \(header.stream)")
        }
        guard stage == .ready else {
            return refuse(
                request, .shuttingDown, "the server is stopping; nothing was stored")
        }
        counters.forwardedFrames &+= 1
        return forward(index, frame, Int(header.frameBytes), to: shard, otherwise: request)
    }

    private mutating func forward(
        _ index: Int32, _ frame: UnsafeRawPointer, _ count: Int, to shard: UInt16,
        otherwise request: Request
    ) -> Outcome {
        guard let link = uplink(of: index, to: shard) else {
            return refuse(request, .busy, "the shard of this partition takes no more links")
        }
        guard peers.uplinks[link].pointee.later.isEmpty, put(frame, count, on: link) else {
            return .park
        }
        return .done
    }
}
