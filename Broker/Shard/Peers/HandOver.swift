internal import BrokerBasics
internal import BrokerCore
internal import LogStorage
internal import WireProtocol

// The owner's side of a move: giving a partition up, and taking one in. See PartitionMove.swift.

/// A partition that is about to be given up.
struct HandOver {
    let partition: UInt32
    let to: UInt16
    /// Shard 0's request, answered when it is ready, or with the image.
    var request: LateRequest
    /// The checkpoint that makes it ready; `nil`: it is given up now.
    var awaitedCheckpoint: UInt64?
}

extension ShardMachine {
    mutating func moveHandOver(_ request: Request) -> Outcome {
        guard let message = try? MoveMessage(body: request.body) else {
            return refuse(request, .badRequest, "a move that can't be read")
        }
        guard let index = state.index(ofPartition: message.partition) else {
            return refuse(request, .partitionNotFound, "no partition \(message.partition) here")
        }
        peers.handOver = HandOver(
            partition: message.partition, to: message.to, request: late(request))
        if message.flag {
            // One that is under way may have passed what was written since.
            peers.handOver?.awaitedCheckpoint =
                checkpointer.sequence + (checkpointer.phase == .idle ? 1 : 2)
            checkpointer.isDue = true
        } else {
            state.partitions[index].pointee.isMoving = true
        }
        advanceHandOver()
        return .done
    }

    mutating func advanceHandOver() {
        guard let handOver = peers.handOver else { return }
        if let failure = counters.storageFailure {
            return cancelHandOver(.storageFailed, "this shard stopped confirming: \(failure)")
        }
        guard let index = state.index(ofPartition: handOver.partition) else {
            return cancelHandOver(.partitionNotFound, "no partition \(handOver.partition) here")
        }
        if let awaited = handOver.awaitedCheckpoint {
            guard checkpointer.sequence >= awaited, checkpointer.phase == .idle else {
                if checkpointer.phase == .idle { checkpointer.isDue = true }
                return
            }
            peers.handOver = nil
            return answerLate(handOver.request, [])
        }
        guard isFlushed(index) || faults.movedTailNotFlushed else { return }
        sendImage(index, handOver)
    }

    /// The move ended otherwise.
    mutating func cancelHandOver(
        _ status: StatusCode = .busy, _ message: String = "the move is over"
    ) {
        guard let handOver = peers.handOver else { return }
        peers.handOver = nil
        if let index = state.index(ofPartition: handOver.partition) {
            state.partitions[index].pointee.isMoving = false
        }
        refuseLate(handOver.request, status, message)
    }

    // MARK: what only memory and journal hold

    /// True when all of a partition lies in segments on stable storage; else the next step towards it
    /// is taken.
    private mutating func isFlushed(_ index: Int32) -> Bool {
        let partition = state.partitions[index]
        partition.pointee.log.sealNewest()
        queueForWriting(index)
        guard partition.pointee.committed == partition.pointee.log.endOffset,
            partition.pointee.log.isWritten,
            partition.pointee.file.state == .none || partition.pointee.file.state == .ready,
            !startMoves.contains(where: { $0.partitionID == partition.pointee.id }),
            !untrimmed.contains(index)
        else { return false }
        for sync in peers.handOverSyncs.isEmpty ? takeSyncs(of: index) : [] {
            peers.handOverRequests.append(
                StorageRequest(
                    token: Token.make(.handOver, UInt64(peers.handOverSyncs.count)),
                    operation: .sync(slot: sync.slot)))
            peers.handOverSyncs.append(sync)
        }
        guard partition.pointee.log.segments.allSatisfy({ $0.syncedBytes == $0.bytes }),
            partition.pointee.log.isDurable, partition.pointee.file.writesInFlight == 0,
            checkpointer.phase != .syncingNames
        else { return false }
        guard !writeBehind.needsDirectorySync, !peers.syncsNames else {
            guard !peers.syncsNames else { return false }
            writeBehind.needsDirectorySync = false
            peers.syncsNames = true
            peers.handOverRequests.append(
                StorageRequest(
                    token: Token.make(.handOver, Self.namesToken),
                    operation: .syncDirectory(.segments)))
            return false
        }
        return true
    }

    private static let namesToken: UInt64 = 1 << 40

    mutating func emitHandOver(into effects: inout EffectBuffer) {
        guard !peers.isAlone else { return }
        while !effects.isFull, let request = peers.handOverRequests.popLast() {
            effects.append(.storage(request))
        }
    }

    mutating func handOverCompleted(token: UInt64, result: Int32) {
        let value = Token.value(token)
        guard result >= 0 else {
            return storageFailed(
                StorageFailure("syncing a segment that is to move failed", errno: -result))
        }
        guard value != Self.namesToken else {
            peers.syncsNames = false
            return
        }
        guard Int(value) < peers.handOverSyncs.count, let sync = peers.handOverSyncs[Int(value)]
        else { return }
        peers.handOverSyncs[Int(value)] = nil
        if peers.handOverSyncs.allSatisfy({ $0 == nil }) { peers.handOverSyncs = [] }
        synced(sync)
    }

    // MARK: giving and taking

    private mutating func sendImage(_ index: Int32, _ handOver: HandOver) {
        let partition = state.partitions[index]
        peers.handOver = nil
        if partition.pointee.file.state == .ready { closeFile(partition) }
        let room = Int(limits.frameBytesMax) - FrameHeader.byteCount - MoveMessage.byteCount
        guard let image = state.image(ofPartition: handOver.partition),
            let handed = PartitionHandedOver(
                image: image, indexes: partition.pointee.log.segments.map(\.index)
            ).fitting(room)
        else {
            partition.pointee.isMoving = false
            return refuseLate(
                handOver.request, .limitReached,
                "what is known of the partition's segments and producers is larger than a frame")
        }
        answerLate(handOver.request, handed.encoded)
    }

    mutating func moveAdopt(_ request: Request) -> Outcome {
        guard let message = try? MoveMessage(body: request.body) else {
            return refuse(request, .badRequest, "a move that can't be read")
        }
        guard
            let handed = try? PartitionHandedOver(
                body: UnsafeRawBufferPointer(rebasing: request.body[MoveMessage.byteCount...]))
        else { return refuse(request, .badRequest, "a partition that can't be read") }
        let image = handed.image
        if let index = state.index(ofPartition: message.partition) { giveUp(index) }
        guard state.canAdopt(image), state.partitions.count < DurableState.partitionsMax else {
            return refuse(request, .limitReached, "this shard can't take the partition in")
        }
        if let failure = counters.storageFailure {
            return refuse(request, .storageFailed, "this shard stopped confirming: \(failure)")
        }
        guard journal.hasRoom(payloadBytes: image.count, reserve: 0) else {
            return refuse(request, .busy, "the journal of shard \(peers.own) is full for now")
        }
        // Staging empties by itself.
        guard change(.partitionAdopted(image)) else { return .park }
        if let index = state.index(ofPartition: message.partition) {
            state.partitions[index].pointee.isMoving = true
            state.partitions[index].pointee.isArriving = true
            handed.putIndexes(&state.partitions[index].pointee.log.segments)
        }
        if faults.adoptedBeforeDurable {
            answerLate(late(request), [])
            return .done
        }
        return reply(request, Empty())
    }

    /// A partition is another shard's from now on. Whoever reads it is told where it stood.
    mutating func giveUp(_ index: Int32) {
        let partition = state.partitions[index]
        let id = partition.pointee.id
        while partition.pointee.firstReader >= 0 { sendOn(partition.pointee.firstReader, id) }
        stopAwaiting(partition)
        peers.attachedGenerations = peers.attachedGenerations.filter {
            UInt32(truncatingIfNeeded: $0.key) != id
        }
        guard state.giveUp(partition: id) != nil else { return }
        partition.pointee.isDeleted = true
        partition.pointee.keepsFiles = true
        // By its id: it may come back before this is buried.
        writeBehind.unlistDurable(partition: id)
        dyingPartitions.append(index)
        wakesParked = true
    }

    private mutating func sendOn(_ index: Int32, _ partition: UInt32) {
        let reader = readers[index]
        let place = ReaderPlace(
            partition: partition,
            nextOffset: faults.movedReadersForgotten ? 0 : reader.pointee.nextOffset,
            notBefore: reader.pointee.notBefore)
        let subscription = reader.pointee.subscription
        let connection = subscriptions[subscription].pointee.connection
        guard connections[connection].pointee.relay != nil else {
            return becomeRouted(subscription)
        }
        let frame = PeerOpcode.readerMoved.frame(
            stream: subscriptions[subscription].pointee.id, body: place.encoded)
        removeReader(index)
        replyInOrder(frame, to: connection)
    }
}

extension MoveMessage {
    static let byteCount = 9
}

/// A partition as its old owner gives it: the image that is journalled, and what only memory has.
struct PartitionHandedOver: WireMessage {
    var image: [UInt8]
    /// Of each segment.
    var indexes: [[SegmentIndexEntry]]

    init(image: [UInt8], indexes: [[SegmentIndexEntry]]) {
        self.image = image
        self.indexes = indexes
    }
    func encode(into builder: inout ByteBuilder) {
        builder.put(UInt32(image.count))
        image.withUnsafeBytes { builder.put(raw: $0) }
        builder.put(UInt32(indexes.count))
        for index in indexes {
            builder.put(UInt32(index.count))
            for entry in index {
                builder.put(entry.baseOffset)
                builder.put(entry.position)
                builder.put(entry.time)
            }
        }
    }
    init(from parser: inout ByteParser) throws(ByteParserError) {
        image = []
        for _ in 0..<(try parser.count(itemBytesMin: 1)) { image.append(try parser.u8()) }
        indexes = []
        for _ in 0..<(try parser.count(itemBytesMin: 4)) {
            var index: [SegmentIndexEntry] = []
            for _ in 0..<(try parser.count(itemBytesMin: SegmentIndexEntry.byteCount)) {
                index.append(
                    SegmentIndexEntry(
                        baseOffset: try parser.u64(), position: try parser.u64(),
                        time: try parser.u64()))
            }
            indexes.append(index)
        }
    }

    /// With every second, fourth, ... entry of the indexes only, until it has at most `bytes`: they are
    /// hints, and a reader goes on from the one before. `nil` when the image alone has more.
    consuming func fitting(_ bytes: Int) -> Self? {
        while true {
            let entries = indexes.reduce(0) { $0 + $1.count }
            let size = 8 + image.count + 4 * indexes.count + SegmentIndexEntry.byteCount * entries
            if size <= bytes { return self }
            guard entries > indexes.count else { return nil }
            indexes = indexes.map { index in
                stride(from: 0, to: index.count, by: 2).map { index[$0] }
            }
        }
    }

    func putIndexes(_ segments: inout [SegmentInfo]) {
        guard segments.count == indexes.count else { return }
        for place in segments.indices where segments[place].canHave(index: indexes[place]) {
            segments[place].index = indexes[place]
        }
    }
}
