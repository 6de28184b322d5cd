internal import BrokerBasics
internal import BrokerCore
internal import LogStorage
internal import WireProtocol

// How it works. A reader stands somewhere in a partition's tail, or reads segments. When the
// committed offset moves, when credit comes, or when a send made room, its partition's readers are
// tried: a run of whole batches is copied into the connection's send buffer behind one frame header.
// What stops a reader is its dispatch state.
extension ShardMachine {
    /// Serves what became deliverable.
    mutating func dispatch() {
        if wakesStarved { wakeStarved() }
        for _ in 0..<dispatchList.count {
            guard let index = dispatchList.first else { break }
            dispatchList.removeFirst()
            guard connections.contains(index) else { continue }
            let connection = connections[index]
            connection.pointee.isDispatchListed = false
            connection.pointee.isDispatchBlocked = false
            guard connection.pointee.state == .ready else { continue }
            var subscription = connection.pointee.firstSubscription
            while subscription >= 0 {
                dispatch(subscription: subscription)
                subscription = subscriptions[subscription].pointee.nextInConnection
            }
        }
        for _ in 0..<dirtyPartitions.count {
            guard let index = dirtyPartitions.first else { break }
            dirtyPartitions.removeFirst()
            guard state.partitions.contains(index) else { continue }
            let partition = state.partitions[index]
            partition.pointee.isDirty = false
            var reader = partition.pointee.firstReader
            while reader >= 0 {
                let next = readers[reader].pointee.nextInPartition
                deliver(reader)
                reader = next
            }
        }
    }

    /// Ends subscriptions that can't go on, outside any walk over readers.
    mutating func endSubscriptions() {
        while let ending = endings.popLast() {
            guard subscriptions.contains(ending.subscription) else { continue }
            let subscription = subscriptions[ending.subscription]
            let connection = subscription.pointee.connection
            let refusal = Refusal(
                errorClass: ending.status.errorClass.rawValue, message: ending.message)
            push(
                .ended, stream: subscription.pointee.id, status: ending.status, refusal,
                to: connection)
            dropSubscription(ending.subscription)
        }
    }

    mutating func dispatch(subscription index: Int32) {
        var reader = subscriptions[index].pointee.firstReader
        while reader >= 0 {
            let next = readers[reader].pointee.nextInSubscription
            deliver(reader)
            reader = next
        }
    }

    /// Delivers to one reader until something stops it.
    mutating func deliver(_ index: Int32) {
        let reader = readers[index]
        let partition = state.partitions[reader.pointee.partition]
        let subscription = subscriptions[reader.pointee.subscription]
        let connection = connections[subscription.pointee.connection]
        guard connection.pointee.state == .ready else { return }
        guard connection.pointee.blockedCount == 0 else {
            return waitForSend(reader, subscription, connection)
        }
        while true {
            guard reader.pointee.nextOffset < partition.pointee.committed else {
                reader.pointee.enter(.idle, now: now.monotonic)
                releaseColdRead(reader)
                return
            }
            guard subscription.pointee.deliveredRecords < subscription.pointee.creditRecords,
                subscription.pointee.deliveredBytes < subscription.pointee.creditBytes
            else {
                reader.pointee.enter(.waitCredit, now: now.monotonic)
                releaseColdRead(reader)
                return
            }
            guard reader.pointee.chunk != nil || findInTail(reader, partition) else {
                guard deliverCold(index, reader, partition, subscription, connection) else {
                    return
                }
                continue
            }
            guard let chunk = reader.pointee.chunk else { return }
            if reader.pointee.byteInChunk >= chunk.pointee.used {
                guard let next = chunk.pointee.next else {
                    reader.pointee.enter(.idle, now: now.monotonic)
                    return
                }
                reader.pointee.chunk = next
                reader.pointee.byteInChunk = ChunkHeader.byteCount
                continue
            }
            let taken = deliverRun(
                reader, partition, subscription, connection,
                from: chunk.pointee.bytes + reader.pointee.byteInChunk,
                count: chunk.pointee.used - reader.pointee.byteInChunk)
            reader.pointee.byteInChunk += taken
            if taken == 0 {
                waitForSend(reader, subscription, connection)
                return
            }
        }
    }

    /// The reader goes on when a send of its connection is done; if none is under way it lacked
    /// memory, and goes on when another connection gives some back.
    mutating func waitForSend(
        _ reader: UnsafeMutablePointer<Reader>,
        _ subscription: UnsafeMutablePointer<Subscription>,
        _ connection: UnsafeMutablePointer<Connection>
    ) {
        reader.pointee.enter(.waitSend, now: now.monotonic)
        connection.pointee.isDispatchBlocked = true
        guard connection.pointee.send.isEmpty, !connection.pointee.isStarved else { return }
        connection.pointee.isStarved = true
        starved.append(subscription.pointee.connection)
    }

    private mutating func wakeStarved() {
        wakesStarved = false
        while let index = starved.first {
            starved.removeFirst()
            guard connections.contains(index) else { continue }
            let connection = connections[index]
            connection.pointee.isStarved = false
            guard connection.pointee.isDispatchBlocked, !connection.pointee.isDispatchListed else {
                continue
            }
            connection.pointee.isDispatchListed = true
            dispatchList.append(index)
        }
    }

    /// Places a reader in the tail; false when its next offset is older than the tail.
    private func findInTail(
        _ reader: UnsafeMutablePointer<Reader>, _ partition: UnsafeMutablePointer<Partition>
    ) -> Bool {
        guard reader.pointee.nextOffset >= partition.pointee.log.tailStart,
            let chunk = partition.pointee.log.chunk(holding: reader.pointee.nextOffset)
        else { return false }
        var at = ChunkHeader.byteCount
        while at < chunk.pointee.used,
            StoredBatch.endOffset(at: chunk.pointee.bytes + at) <= reader.pointee.nextOffset
        {
            at += StoredBatch.bytes(at: chunk.pointee.bytes + at)
        }
        reader.pointee.chunk = chunk
        reader.pointee.byteInChunk = at
        return true
    }

    /// Copies a run of batches into the send buffer: as many as are committed, covered by credit and
    /// fit. The first may begin below the reader's offset; it is delivered whole.
    ///
    /// - Returns: the bytes passed; 0 when the send buffer is full.
    mutating func deliverRun(
        _ reader: UnsafeMutablePointer<Reader>, _ partition: UnsafeMutablePointer<Partition>,
        _ subscription: UnsafeMutablePointer<Subscription>,
        _ connection: UnsafeMutablePointer<Connection>, from base: UnsafeRawPointer, count: Int
    ) -> Int {
        let committed = partition.pointee.committed
        let recordsLeft =
            subscription.pointee.creditRecords &- subscription.pointee.deliveredRecords
        let bytesLeft = subscription.pointee.creditBytes &- subscription.pointee.deliveredBytes
        let free = connection.pointee.send.free(pool: sendPool)
        let runMax = min(free, Int(connection.pointee.frameBytesMax)) - FrameHeader.byteCount
        var run = 0
        var last = base
        var records: UInt64 = 0
        var next = reader.pointee.nextOffset
        if reader.pointee.notBefore > 0 {
            guard StoredBatch.appendTime(at: base) >= reader.pointee.notBefore else {
                reader.pointee.nextOffset = StoredBatch.endOffset(at: base)
                return StoredBatch.bytes(at: base)
            }
            reader.pointee.notBefore = 0
        }
        while run < count {
            let batch = base + run
            let bytes = StoredBatch.bytes(at: batch)
            let end = StoredBatch.endOffset(at: batch)
            if end > committed { break }
            if run &+ bytes > runMax { break }
            run &+= bytes
            last = batch
            records &+= UInt64((batch + StoredBatch.stampBytes).u16(10))
            next = end
            if records >= recordsLeft || UInt64(run) >= bytesLeft { break }
        }
        if run == 0 {
            // One batch larger than what is free: alone in a buffer of its own size, if it is first.
            let bytes = StoredBatch.bytes(at: base)
            guard FrameHeader.byteCount + bytes <= Int(connection.pointee.frameBytesMax) else {
                endings.append(
                    Ending(
                        subscription: reader.pointee.subscription, status: .frameTooLarge,
                        message: "the batch at offset \(next) has \(bytes) bytes; the connection "
                            + "agreed on frames of \(connection.pointee.frameBytesMax)"))
                return 0
            }
            guard connection.pointee.send.activeCount == 0,
                StoredBatch.endOffset(at: base) <= committed
            else { return 0 }
            run = bytes
            records = UInt64((base + StoredBatch.stampBytes).u16(10))
            next = StoredBatch.endOffset(at: base)
        }
        let frameBytes = FrameHeader.byteCount &+ run
        guard
            let room = connection.pointee.send.reserve(
                frameBytes, pool: &sendPool, isDelivery: true)
        else {
            return 0
        }
        (room + FrameHeader.byteCount).copyMemory(from: base, byteCount: run)
        subscription.pointee.deliveredRecords &+= records
        subscription.pointee.deliveredBytes &+= UInt64(run)
        FrameHeader(
            opcode: .deliver, bodyBytes: run, flags: FrameHeader.pushFlag,
            correlation: subscription.pointee.deliveredRecords, stream: subscription.pointee.id,
            argument: partition.pointee.id
        ).encode(at: room)
        connection.pointee.send.commit(frameBytes)
        listForSending(subscription.pointee.connection)
        reader.pointee.nextOffset = next
        if StoredBatch.epoch(at: last) != reader.pointee.epoch {
            var first = base
            while StoredBatch.epoch(at: first) != StoredBatch.epoch(at: last) {
                first += StoredBatch.bytes(at: first)
            }
            reader.pointee.epoch = StoredBatch.epoch(at: last)
            reader.pointee.epochFrom = StoredBatch.baseOffset(at: first)
        }
        reader.pointee.enter(.delivering, now: now.monotonic)
        partition.pointee.deliveredRecords &+= records
        partition.pointee.deliveredBytes &+= UInt64(run)
        counters.deliveredRecords &+= records
        counters.deliveredBytes &+= UInt64(run)
        return run
    }

    // MARK: readers

    /// Puts a reader of `subscription` at `offset` of a partition.
    mutating func addReader(
        subscription: Int32, partition index: Int32, offset: UInt64, notBefore: UInt64 = 0
    ) -> Bool {
        var reader = Reader(
            subscription: subscription, partition: index, nextOffset: offset,
            notBefore: notBefore, now: now.monotonic)
        let partition = state.partitions[index]
        reader.nextInPartition = partition.pointee.firstReader
        reader.nextInSubscription = subscriptions[subscription].pointee.firstReader
        guard let place = readers.insert(reader) else { return false }
        partition.pointee.firstReader = place
        subscriptions[subscription].pointee.firstReader = place
        return true
    }

    mutating func removeReader(_ index: Int32) {
        let reader = readers[index]
        releaseColdRead(reader)
        coldReader.forget(reader: index)
        let partition = state.partitions[reader.pointee.partition]
        if partition.pointee.firstReader == index {
            partition.pointee.firstReader = reader.pointee.nextInPartition
        } else {
            var at = partition.pointee.firstReader
            while at >= 0 {
                if readers[at].pointee.nextInPartition == index {
                    readers[at].pointee.nextInPartition = reader.pointee.nextInPartition
                    break
                }
                at = readers[at].pointee.nextInPartition
            }
        }
        let subscription = subscriptions[reader.pointee.subscription]
        if subscription.pointee.firstReader == index {
            subscription.pointee.firstReader = reader.pointee.nextInSubscription
        } else {
            var at = subscription.pointee.firstReader
            while at >= 0 {
                if readers[at].pointee.nextInSubscription == index {
                    readers[at].pointee.nextInSubscription = reader.pointee.nextInSubscription
                    break
                }
                at = readers[at].pointee.nextInSubscription
            }
        }
        readers.remove(index)
    }

    /// The reader of `subscription` in the partition, if it has one there.
    func reader(subscription: Int32, partition: Int32) -> UnsafeMutablePointer<Reader>? {
        var at = subscriptions[subscription].pointee.firstReader
        while at >= 0 {
            if readers[at].pointee.partition == partition { return readers[at] }
            at = readers[at].pointee.nextInSubscription
        }
        return nil
    }

    func subscription(_ connection: Int32, id: UInt32) -> Int32? {
        var at = connections[connection].pointee.firstSubscription
        while at >= 0 {
            if subscriptions[at].pointee.id == id { return at }
            at = subscriptions[at].pointee.nextInConnection
        }
        return nil
    }

    mutating func dropSubscriptions(of connection: Int32) {
        while connections[connection].pointee.firstSubscription >= 0 {
            dropSubscription(connections[connection].pointee.firstSubscription)
        }
    }

    mutating func dropSubscription(_ index: Int32) {
        // Its number may be another's before the ending is told.
        endings.removeAll { $0.subscription == index }
        let subscription = subscriptions[index]
        while subscription.pointee.firstReader >= 0 {
            removeReader(subscription.pointee.firstReader)
        }
        let connection = connections[subscription.pointee.connection]
        if connection.pointee.firstSubscription == index {
            connection.pointee.firstSubscription = subscription.pointee.nextInConnection
        } else {
            var at = connection.pointee.firstSubscription
            while at >= 0 {
                if subscriptions[at].pointee.nextInConnection == index {
                    subscriptions[at].pointee.nextInConnection =
                        subscription.pointee.nextInConnection
                    break
                }
                at = subscriptions[at].pointee.nextInConnection
            }
        }
        connection.pointee.subscriptionCount -= 1
        let group = subscription.pointee.group
        subscriptions.remove(index)
        if group != 0 { leaveGroup(group, subscription: index) }
    }

    /// A chunk leaves memory: readers that stand in it look their place up again.
    mutating func forgetChunk(
        _ chunk: UnsafeMutablePointer<TailChunk>, of partition: UnsafeMutablePointer<Partition>
    ) {
        var at = partition.pointee.firstReader
        while at >= 0 {
            if readers[at].pointee.chunk == chunk { readers[at].pointee.chunk = nil }
            at = readers[at].pointee.nextInPartition
        }
    }
}
