internal import BrokerBasics
internal import BrokerCore
internal import LogStorage
internal import WireProtocol

// How it works. A reader older than its partition's tail borrows one of a few buffers. A buffer holds
// a stretch of one segment, read in one go; its chunks are verified, then their batches delivered like
// those of a tail. A reader that stops for credit, or reaches the tail, gives the buffer back; the
// next one waiting gets it. What does not verify is damage: the subscription ends and says where.

/// The buffers through which old records are read.
package struct ColdReader {
    enum Phase: UInt8 {
        case free
        case locating
        case opening
        case reading
        case loaded
    }
    struct Slot {
        var reader: Int32 = -1
        var phase = Phase.free
        var memory: UnsafeMutableRawPointer?
        var capacity = 0
        var file: FileSlot = -1
        var partition: UInt32 = 0
        var base: UInt64 = 0
        var term: UInt64 = 0
        /// Of the first byte in memory, in the file.
        var position: UInt64 = 0
        var count = 0
        // The chunk that is being delivered.
        var chunkAt = 0
        var chunkBytes = 0
        var batchAt = 0
    }

    var slots: [Slot]
    var waiting = Fifo<Int32>(capacity: 16)
    var requests: [StorageRequest] = []
    var ready: [Int32] = []
    private let bufferBytes: Int

    init(slots: Int, bufferBytes: Int) {
        self.slots = Array(repeating: Slot(), count: max(1, slots))
        self.bufferBytes = bufferBytes.roundedUp(to: ChunkHeader.blockBytes)
    }

    /// A buffer for `reader`, or `nil` when all are lent.
    mutating func lend(to reader: Int32) -> Int32? {
        guard let free = slots.firstIndex(where: { $0.phase == .free }) else { return nil }
        if slots[free].memory == nil {
            slots[free].memory = .allocate(
                byteCount: bufferBytes, alignment: AlignedMemory.alignment)
            slots[free].capacity = bufferBytes
        }
        slots[free].reader = reader
        slots[free].phase = .locating
        return Int32(free)
    }

    /// Makes a buffer hold at least `bytes`.
    mutating func grow(_ slot: Int, to bytes: Int) {
        guard bytes > slots[slot].capacity else { return }
        slots[slot].memory?.deallocate()
        slots[slot].memory = .allocate(byteCount: bytes, alignment: AlignedMemory.alignment)
        slots[slot].capacity = bytes
    }

    mutating func forget(reader: Int32) {
        guard !waiting.isEmpty else { return }
        for _ in 0..<waiting.count {
            guard let first = waiting.first else { return }
            waiting.removeFirst()
            if first != reader { waiting.append(first) }
        }
    }

    func free() { for slot in slots { slot.memory?.deallocate() } }
}

extension ShardMachine {
    /// Delivers from segments, or takes a step towards it.
    ///
    /// - Returns: true when the reader should be tried again at once.
    mutating func deliverCold(
        _ index: Int32, _ reader: UnsafeMutablePointer<Reader>,
        _ partition: UnsafeMutablePointer<Partition>,
        _ subscription: UnsafeMutablePointer<Subscription>,
        _ connection: UnsafeMutablePointer<Connection>
    ) -> Bool {
        if reader.pointee.coldRead < 0 {
            guard let lent = coldReader.lend(to: index) else {
                reader.pointee.enter(.waitRead, now: now.monotonic)
                if !reader.pointee.isQueuedForColdRead {
                    reader.pointee.isQueuedForColdRead = true
                    coldReader.waiting.append(index)
                }
                return false
            }
            reader.pointee.coldRead = lent
        }
        let slot = Int(reader.pointee.coldRead)
        switch coldReader.slots[slot].phase {
        case .free, .opening, .reading:
            reader.pointee.enter(.reading, now: now.monotonic)
            return false
        case .locating:
            reader.pointee.enter(.reading, now: now.monotonic)
            return locate(slot, reader, partition)
        case .loaded:
            return deliverLoaded(slot, reader, partition, subscription, connection)
        }
    }

    /// Finds the segment and place of the reader's next offset, and begins to read there.
    private mutating func locate(
        _ slot: Int, _ reader: UnsafeMutablePointer<Reader>,
        _ partition: UnsafeMutablePointer<Partition>, fromStart: Bool = false
    ) -> Bool {
        let offset = reader.pointee.nextOffset
        guard
            let segment = partition.pointee.log.segments.first(where: { $0.endOffset > offset })
        else {
            // Written, but its completion is not applied yet: the tail has it.
            return damaged(
                reader, partition, "offset \(offset) is in no segment and not in memory")
        }
        let position =
            fromStart ? UInt64(SegmentHeader.byteCount) : segment.position(of: offset)
        coldReader.slots[slot].position = position
        coldReader.slots[slot].count = 0
        let held = coldReader.slots[slot]
        if held.file >= 0, held.partition == partition.pointee.id,
            held.base == segment.baseOffset, held.term == segment.term
        {
            read(slot, bytes: held.capacity)
            return false
        }
        closeFile(slot)
        guard let file = writeBehind.freeSlots.popLast() else {
            closeIdleFiles()
            coldReader.ready.append(coldReader.slots[slot].reader)
            return false
        }
        coldReader.slots[slot].file = file
        coldReader.slots[slot].partition = partition.pointee.id
        coldReader.slots[slot].base = segment.baseOffset
        coldReader.slots[slot].term = segment.term
        coldReader.slots[slot].phase = .opening
        coldReader.requests.append(
            StorageRequest(
                token: Token.make(.cold, UInt64(slot)),
                operation: .open(
                    slot: file, name: segment.file(partition: partition.pointee.id),
                    create: false)))
        return false
    }

    private mutating func read(_ slot: Int, bytes: Int) {
        coldReader.grow(slot, to: bytes)
        guard let memory = coldReader.slots[slot].memory else { return }
        coldReader.slots[slot].phase = .reading
        coldReader.slots[slot].chunkAt = 0
        coldReader.slots[slot].chunkBytes = 0
        coldReader.slots[slot].batchAt = 0
        counters.coldReads += 1
        coldReader.requests.append(
            StorageRequest(
                token: Token.make(.cold, UInt64(slot)),
                operation: .read(
                    slot: coldReader.slots[slot].file, into: memory, bytes: bytes,
                    position: coldReader.slots[slot].position)))
    }

    private mutating func closeFile(_ slot: Int) {
        if coldReader.slots[slot].file >= 0 {
            writeBehind.closes.append(coldReader.slots[slot].file)
            coldReader.slots[slot].file = -1
        }
    }

    private mutating func deliverLoaded(
        _ slot: Int, _ reader: UnsafeMutablePointer<Reader>,
        _ partition: UnsafeMutablePointer<Partition>,
        _ subscription: UnsafeMutablePointer<Subscription>,
        _ connection: UnsafeMutablePointer<Connection>
    ) -> Bool {
        let held = coldReader.slots[slot]
        guard let memory = held.memory else { return false }
        let base = UnsafeRawPointer(memory)
        let chunkEnd = held.chunkAt + held.chunkBytes
        var at = held.batchAt
        while at < chunkEnd,
            StoredBatch.endOffset(at: base + at) <= reader.pointee.nextOffset
        {
            at += StoredBatch.bytes(at: base + at)
        }
        coldReader.slots[slot].batchAt = at
        guard at < chunkEnd else { return nextChunk(slot, reader, partition) }
        let taken = deliverRun(
            reader, partition, subscription, connection, from: base + at, count: chunkEnd - at)
        coldReader.slots[slot].batchAt = at + taken
        if taken == 0 {
            waitForSend(reader, subscription, connection)
            if !coldReader.waiting.isEmpty { releaseColdRead(reader) }
            return false
        }
        return true
    }

    /// Goes to the chunk behind the delivered one: in memory, in the file, or in the next segment.
    private mutating func nextChunk(
        _ slot: Int, _ reader: UnsafeMutablePointer<Reader>,
        _ partition: UnsafeMutablePointer<Partition>
    ) -> Bool {
        let held = coldReader.slots[slot]
        guard let memory = held.memory else { return false }
        guard
            let segment = partition.pointee.log.segments.first(where: {
                $0.baseOffset == held.base && $0.term == held.term
            })
        else {
            // It was removed when the reader had come to its end.
            coldReader.slots[slot].phase = .locating
            return true
        }
        let chunkAt = held.chunkAt + held.chunkBytes.roundedUp(to: ChunkHeader.blockBytes)
        let position = held.position + UInt64(chunkAt)
        if reader.pointee.nextOffset >= segment.endOffset {
            coldReader.slots[slot].phase = .locating
            return true
        }
        // Its last chunk ends before the segment does: looking again would not find more.
        guard position < segment.bytes else {
            return damagedChunk(reader, partition, segment, position)
        }
        let available = held.count - chunkAt
        let claimed =
            available >= ChunkHeader.byteCount
            ? ChunkHeader.claimedBytes(UnsafeRawPointer(memory) + chunkAt) : 0
        if available < ChunkHeader.byteCount || (claimed > available && chunkAt > 0)
            || claimed > held.capacity
        {
            let isWhole = claimed <= limits.storedBatchBytesMax + limits.chunkBytes + 8192
            guard isWhole else {
                return damagedChunk(reader, partition, segment, position)
            }
            coldReader.slots[slot].position = position
            read(
                slot,
                bytes: max(
                    held.capacity, claimed.roundedUp(to: ChunkHeader.blockBytes)))
            return false
        }
        guard
            let header = ChunkHeader.decode(
                UnsafeRawPointer(memory) + chunkAt, available: available,
                partition: partition.pointee.id, segmentBase: segment.baseOffset,
                term: segment.term, position: position)
        else { return damagedChunk(reader, partition, segment, position) }
        if header.isSeal {
            coldReader.slots[slot].phase = .locating
            return reader.pointee.nextOffset >= segment.endOffset
                || damagedChunk(reader, partition, segment, position)
        }
        if header.baseOffset > reader.pointee.nextOffset {
            // The index is a hint: a wrong one is found out here, and the file is read from its start.
            guard segment.position(of: reader.pointee.nextOffset) > UInt64(SegmentHeader.byteCount),
                position != UInt64(SegmentHeader.byteCount), chunkAt == 0
            else { return damagedChunk(reader, partition, segment, position) }
            return locate(slot, reader, partition, fromStart: true)
        }
        guard header.isFilled(at: UnsafeRawPointer(memory) + chunkAt) else {
            return damagedChunk(reader, partition, segment, position)
        }
        coldReader.slots[slot].chunkAt = chunkAt
        coldReader.slots[slot].chunkBytes = header.bytes
        coldReader.slots[slot].batchAt = chunkAt + ChunkHeader.byteCount
        return true
    }

    private mutating func damagedChunk(
        _ reader: UnsafeMutablePointer<Reader>, _ partition: UnsafeMutablePointer<Partition>,
        _ segment: SegmentInfo, _ position: UInt64
    ) -> Bool {
        damaged(
            reader, partition,
            "\(segment.file(partition: partition.pointee.id).path) is damaged at byte \(position): "
                + "offset \(reader.pointee.nextOffset) of partition \(partition.pointee.id) can't "
                + "be read")
    }

    /// Damage is named and never served: the subscription ends.
    private mutating func damaged(
        _ reader: UnsafeMutablePointer<Reader>, _ partition: UnsafeMutablePointer<Partition>,
        _ what: String
    ) -> Bool {
        counters.damagedChunks += 1
        events.append(.dataDamaged(what))
        endings.append(
            Ending(
                subscription: reader.pointee.subscription, status: .dataDamaged, message: what))
        return false
    }

    /// Gives the reader's buffer back; an operation under way is waited for first.
    mutating func releaseColdRead(_ reader: UnsafeMutablePointer<Reader>) {
        guard reader.pointee.coldRead >= 0 else { return }
        let slot = Int(reader.pointee.coldRead)
        reader.pointee.coldRead = -1
        coldReader.slots[slot].reader = -1
        switch coldReader.slots[slot].phase {
        case .opening, .reading: break
        case .free, .locating, .loaded: freeSlot(slot)
        }
    }

    private mutating func freeSlot(_ slot: Int) {
        closeFile(slot)
        coldReader.slots[slot].phase = .free
        wakeWaitingColdRead()
    }

    mutating func coldReadCompleted(token: UInt64, result: Int32) {
        let slot = Int(Token.value(token))
        let held = coldReader.slots[slot]
        guard held.reader >= 0, readers.contains(held.reader) else {
            if result < 0, held.phase == .opening {
                writeBehind.freeSlots.append(held.file)
                coldReader.slots[slot].file = -1
            }
            freeSlot(slot)
            return
        }
        let reader = readers[held.reader]
        let partition = state.partitions[reader.pointee.partition]
        guard result >= 0 else {
            if held.phase == .opening {
                writeBehind.freeSlots.append(held.file)
                coldReader.slots[slot].file = -1
            }
            coldReader.slots[slot].phase = .locating
            let name = FileName.segment(
                partition: held.partition, baseOffset: held.base, term: held.term)
            _ = damaged(
                reader, partition,
                "reading \(name.path) at byte \(held.position) failed (errno \(-result))")
            return
        }
        if held.phase == .opening {
            read(slot, bytes: held.capacity)
            return
        }
        coldReader.slots[slot].count = Int(result)
        coldReader.slots[slot].phase = .loaded
        // An empty chunk in front: `nextChunk` finds the first real one.
        coldReader.slots[slot].chunkAt = 0
        coldReader.slots[slot].chunkBytes = 0
        coldReader.slots[slot].batchAt = 0
        coldReader.ready.append(held.reader)
    }

    /// Tries the readers whose buffer was filled, or who got one.
    mutating func advanceColdReads() {
        while !coldReader.ready.isEmpty || hasUnusedColdRead {
            if coldReader.ready.isEmpty { wakeWaitingColdRead() }
            let ready = coldReader.ready
            coldReader.ready = []
            for index in ready where readers.contains(index) { deliver(index) }
            // Without a place for a file, a reader is ready again at once.
            if !coldReader.ready.isEmpty, writeBehind.freeSlots.isEmpty { return }
        }
    }

    /// True when a buffer is free and somebody waits for one: who was woken last may have got another
    /// buffer in the meantime, or need none any more.
    private var hasUnusedColdRead: Bool {
        !coldReader.waiting.isEmpty && coldReader.slots.contains { $0.phase == .free }
    }

    private mutating func wakeWaitingColdRead() {
        while let next = coldReader.waiting.first {
            coldReader.waiting.removeFirst()
            guard readers.contains(next) else { continue }
            readers[next].pointee.isQueuedForColdRead = false
            coldReader.ready.append(next)
            return
        }
    }

    mutating func emitColdReads(into effects: inout EffectBuffer) {
        while !effects.isFull, !coldReader.requests.isEmpty {
            effects.append(.storage(coldReader.requests.removeFirst()))
        }
    }
}
