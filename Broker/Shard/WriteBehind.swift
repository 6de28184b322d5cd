internal import BrokerBasics
internal import BrokerCore
internal import LogStorage
internal import WireProtocol

// How it works. A partition with a sealed chunk stands in a queue. Its file is made (opened, room
// reserved, header written) when there is none; a chunk goes out as one direct write, a few of all
// partitions in flight. Completions are applied in the order of the chunks. A file that is full gets
// a seal with its index and is handed to the checkpointer, which syncs and closes it.

/// What a shard is writing to segments.
package struct WriteBehind {
    struct Operation {
        var token: Token.Kind
        var partition: Int32
        var chunk: UnsafeMutablePointer<TailChunk>?
        /// Of a header or a seal; freed when it is written.
        var memory: UnsafeMutableRawPointer?
        var request: StorageOperation
        var attempts = 1
        var wanted: Int

        /// What it was to do, up to the name of the file, for a person.
        var attempt: String {
            switch request {
            case .open: "making"
            case .allocate(_, let position, let bytes): "reserving \(bytes) bytes at \(position) of"
            case .write(_, _, let bytes, let position, _):
                "writing \(bytes) bytes at \(position) of"
            case .read, .sync, .close, .syncDirectory, .remove: "working on"
            }
        }
    }
    /// A full file that waits for its sync.
    struct RolledFile {
        var partition: Int32
        var partitionID: UInt32
        var slot: FileSlot
        var base: UInt64
        var term: UInt64
    }

    let term: UInt64
    var freeSlots: [FileSlot]
    var queue = Fifo<Int32>(capacity: 256)
    /// Partitions whose file has just been made or given room. Their chunks are written before another
    /// file gets room: that costs a kernel thread 60 µs without a wait, and a thousand in a row keep
    /// the journal's completions from their processor.
    var advanced: [Int32] = []
    /// Partitions that need a file while as many are open as may be.
    var starved = Fifo<Int32>(capacity: 16)
    var operations: [Operation?] = []
    var freeOperations: [Int] = []
    var writesInFlight = 0
    var retries: [StorageRequest] = []
    var closes: [FileSlot] = []
    var rolled: [RolledFile] = []
    var needsDirectorySync = false
    var unsyncedBytes = 0
    var lastWall: UInt64 = 0
    // Chunks whose segment is on stable storage, oldest first.
    var firstDurable: UnsafeMutablePointer<TailChunk>?
    var lastDurable: UnsafeMutablePointer<TailChunk>?
    /// What publishes may still add while the journal is under pressure: what was written behind.
    private var paceBytes = 0
    static let paceBytesMax = 8 << 20

    init(firstSlot: FileSlot, slotCount: Int, term: UInt64) {
        freeSlots = (0..<Int32(slotCount)).reversed().map { firstSlot + $0 }
        self.term = term
    }

    /// Gives up the memory of headers and seals that are being written.
    func free() { for operation in operations { operation?.memory?.deallocate() } }

    /// True when nothing goes on until files are closed.
    var isStuck: Bool {
        !starved.isEmpty && freeSlots.isEmpty && closes.isEmpty && queue.isEmpty && advanced.isEmpty
            && retries.isEmpty && writesInFlight == 0
    }

    mutating func takeSlotForGood() -> FileSlot { freeSlots.removeLast() }

    /// Takes `bytes` from what write-behind has freed.
    @inline(__always)
    mutating func takePace(_ bytes: Int) -> Bool {
        guard paceBytes > 0 else { return false }
        paceBytes -= bytes
        return true
    }
    mutating func givePace(_ bytes: Int) {
        paceBytes = min(paceBytes + bytes, Self.paceBytesMax)
    }

    mutating func start(_ operation: Operation) -> UInt64 {
        let index: Int
        if let free = freeOperations.popLast() {
            index = free
            operations[index] = operation
        } else {
            index = operations.count
            operations.append(operation)
        }
        writesInFlight += 1
        return Token.make(operation.token, UInt64(index))
    }

    mutating func finish(_ index: Int) -> Operation? {
        guard index < operations.count, let operation = operations[index] else { return nil }
        operations[index] = nil
        freeOperations.append(index)
        writesInFlight -= 1
        return operation
    }

    mutating func listDurable(_ chunk: UnsafeMutablePointer<TailChunk>) {
        chunk.pointee.nextDurable = nil
        if let lastDurable {
            lastDurable.pointee.nextDurable = chunk
        } else {
            firstDurable = chunk
        }
        lastDurable = chunk
    }

    /// Takes a partition's chunks out of the list: their memory is given back another way.
    mutating func unlistDurable(partition: UInt32) {
        var kept: UnsafeMutablePointer<TailChunk>?
        var chunk = firstDurable
        firstDurable = nil
        lastDurable = nil
        while let current = chunk {
            chunk = current.pointee.nextDurable
            guard current.pointee.partition != partition else { continue }
            current.pointee.nextDurable = nil
            if let kept { kept.pointee.nextDurable = current } else { firstDurable = current }
            kept = current
        }
        lastDurable = kept
    }
}

extension ShardMachine {
    /// Notes that a partition has something to write behind.
    @inline(__always)
    mutating func queueForWriting(_ index: Int32) {
        let partition = state.partitions[index]
        guard !partition.pointee.isQueuedForWriting, partition.pointee.log.hasSealedChunk else {
            return
        }
        partition.pointee.isQueuedForWriting = true
        writeBehind.queue.append(index)
    }

    /// Twice the limit while a checkpoint waits for chunks: they are synced writes that mostly wait for
    /// a flush, and the journal fills until the last of them is done.
    var writesBehindMax: Int {
        checkpointer.awaitedChunks > 0 ? limits.writesBehindMax * 2 : limits.writesBehindMax
    }

    mutating func emitWriteBehind(into effects: inout EffectBuffer) {
        while !effects.isFull, let request = writeBehind.retries.popLast() {
            effects.append(.storage(request))
        }
        while !effects.isFull, let slot = writeBehind.closes.popLast() {
            writeBehind.freeSlots.append(slot)
            effects.append(
                .storage(
                    StorageRequest(token: Token.make(.ignored, 0), operation: .close(slot: slot))))
        }
        guard !hasFailed else { return }
        for _ in 0..<min(writeBehind.starved.count, writeBehind.freeSlots.count) {
            guard let index = writeBehind.starved.first else { break }
            writeBehind.starved.removeFirst()
            writeBehind.queue.append(index)
        }
        while !effects.isFull, writeBehind.writesInFlight < writesBehindMax,
            let index = writeBehind.advanced.popLast()
        {
            guard state.partitions.contains(index), !state.partitions[index].pointee.isDeleted,
                let request = nextWrite(index, state.partitions[index])
            else { continue }
            effects.append(.storage(request))
        }
        while !effects.isFull, writeBehind.writesInFlight < writesBehindMax,
            let index = writeBehind.queue.first
        {
            if isWithoutFile(index), writeBehind.freeSlots.isEmpty {
                writeBehind.queue.removeFirst()
                if writeBehind.starved.isEmpty { closeIdleFiles() }
                writeBehind.starved.append(index)
                continue
            }
            guard state.partitions.contains(index), !state.partitions[index].pointee.isDeleted,
                let request = nextWrite(index, state.partitions[index])
            else {
                writeBehind.queue.removeFirst()
                if state.partitions.contains(index) {
                    state.partitions[index].pointee.isQueuedForWriting = false
                }
                continue
            }
            effects.append(.storage(request))
        }
    }

    private func isWithoutFile(_ index: Int32) -> Bool {
        guard state.partitions.contains(index) else { return false }
        let partition = state.partitions[index]
        return !partition.pointee.isDeleted && partition.pointee.file.state == .none
            && partition.pointee.log.hasSealedChunk
    }

    /// The partition's next step towards having its sealed chunks written; `nil` when it waits for
    /// one that is under way.
    private mutating func nextWrite(
        _ index: Int32, _ partition: UnsafeMutablePointer<Partition>
    ) -> StorageRequest? {
        guard partition.pointee.log.hasSealedChunk, let chunk = partition.pointee.log.unwritten
        else { return nil }
        let padded = UInt64(chunk.pointee.used.roundedUp(to: ChunkHeader.blockBytes))
        switch partition.pointee.file.state {
        case .opening, .allocating, .writingHeader: return nil
        case .none:
            guard let slot = writeBehind.freeSlots.popLast() else { return nil }
            partition.pointee.file = PartitionFile()
            partition.pointee.file.slot = slot
            partition.pointee.file.state = .opening
            partition.pointee.file.nextOffset = chunk.pointee.baseOffset
            return start(
                .segment, index,
                .open(
                    slot: slot,
                    name: .segment(
                        partition: partition.pointee.id, baseOffset: chunk.pointee.baseOffset,
                        term: writeBehind.term),
                    create: true),
                wanted: 0)
        case .ready:
            let position = partition.pointee.file.nextPosition
            let isFull =
                position + padded + 8192 > limits.segmentBytes
                && position > UInt64(SegmentHeader.byteCount)
            if isFull {
                // The seal is the last thing in the file: what is in flight comes first.
                guard partition.pointee.file.writesInFlight == 0 else { return nil }
                partition.pointee.file.state = .writingHeader
                return sealSegment(index, partition)
            }
            if position + padded > partition.pointee.file.allocatedBytes {
                partition.pointee.file.state = .allocating
                return allocate(index, partition, atLeast: position + padded)
            }
            return writeChunk(index, partition)
        }
    }

    private mutating func start(
        _ kind: Token.Kind, _ index: Int32, _ operation: StorageOperation, wanted: Int,
        chunk: UnsafeMutablePointer<TailChunk>? = nil, memory: UnsafeMutableRawPointer? = nil
    ) -> StorageRequest {
        let token = writeBehind.start(
            WriteBehind.Operation(
                token: kind, partition: index, chunk: chunk, memory: memory, request: operation,
                wanted: wanted))
        state.partitions[index].pointee.file.writesInFlight += 1
        return StorageRequest(token: token, operation: operation)
    }

    /// Reserves room in doubling steps, the first by the size of what there is to write: the files of
    /// many quiet partitions stay small, and a busy one has room for four chunks at once.
    private mutating func allocate(
        _ index: Int32, _ partition: UnsafeMutablePointer<Partition>, atLeast needed: UInt64
    ) -> StorageRequest {
        let allocated = partition.pointee.file.allocatedBytes
        let chunkBytes = partition.pointee.log.unwritten?.pointee.capacity ?? 0
        let step = UInt64(max(ShardLimits.reservedBytesMin, 4 * chunkBytes))
        let wanted = max(needed, min(limits.segmentBytes, max(allocated * 2, step)))
        let end = wanted.roundedUp(to: UInt64(ChunkHeader.blockBytes))
        partition.pointee.file.allocatedBytes = end
        return start(
            .segment, index,
            .allocate(
                slot: partition.pointee.file.slot, position: allocated, bytes: end - allocated),
            wanted: 0)
    }

    private mutating func writeHeader(
        _ index: Int32, _ partition: UnsafeMutablePointer<Partition>
    ) -> StorageRequest {
        let memory = UnsafeMutableRawPointer.allocate(
            byteCount: SegmentHeader.byteCount, alignment: AlignedMemory.alignment)
        SegmentHeader.encode(
            memory, partition: partition.pointee.id,
            baseOffset: partition.pointee.file.nextOffset, term: writeBehind.term,
            madeAt: now.wall.nanoseconds)
        return start(
            .segment, index,
            .write(
                slot: partition.pointee.file.slot, from: UnsafeRawPointer(memory),
                bytes: SegmentHeader.byteCount, position: 0, synced: false),
            wanted: SegmentHeader.byteCount, memory: memory)
    }

    private mutating func writeChunk(
        _ index: Int32, _ partition: UnsafeMutablePointer<Partition>
    ) -> StorageRequest? {
        guard let segment = partition.pointee.log.segments.last,
            let chunk = partition.pointee.log.takeSealed()
        else { return nil }
        let padded = chunk.pointee.used.roundedUp(to: ChunkHeader.blockBytes)
        (chunk.pointee.memory + chunk.pointee.used).initializeMemory(
            as: UInt8.self, repeating: 0, count: padded - chunk.pointee.used)
        chunk.pointee.segmentBase = segment.baseOffset
        chunk.pointee.segmentTerm = segment.term
        chunk.pointee.segmentPosition = partition.pointee.file.nextPosition
        chunk.pointee.header.encode(
            at: chunk.pointee.memory, partition: partition.pointee.id,
            segmentBase: segment.baseOffset, term: segment.term)
        // What took long to fill is, with many partitions, all that the file gets until the next
        // checkpoint: a synced write spares it the sync. Only where all before it in the file is durable.
        let isOld =
            chunk.pointee.journalPin
            < journal.openPosition - min(journal.openPosition, marks.young)
        chunk.pointee.isWriteSynced =
            (chunk.pointee.isAwaited || isOld)
            && segment.syncedBytes == partition.pointee.file.nextPosition
        partition.pointee.file.nextPosition += UInt64(padded)
        if !chunk.pointee.isWriteSynced { partition.pointee.file.isUnsynced = true }
        return start(
            .chunk, index,
            .write(
                slot: partition.pointee.file.slot, from: chunk.pointee.bytes, bytes: padded,
                position: chunk.pointee.segmentPosition,
                synced: chunk.pointee.isWriteSynced && !faults.segmentNotSynced
                    && !faults.forcedChunkNotSynced),
            wanted: padded, chunk: chunk)
    }

    private mutating func sealSegment(
        _ index: Int32, _ partition: UnsafeMutablePointer<Partition>
    ) -> StorageRequest? {
        guard let segment = partition.pointee.log.segments.last else { return nil }
        let bytes = ChunkHeader.byteCount + segment.index.count * SegmentIndexEntry.byteCount
        let padded = bytes.roundedUp(to: ChunkHeader.blockBytes)
        let memory = UnsafeMutableRawPointer.allocate(
            byteCount: padded, alignment: AlignedMemory.alignment)
        memory.initializeMemory(as: UInt8.self, repeating: 0, count: padded)
        for (place, entry) in segment.index.enumerated() {
            let at = ChunkHeader.byteCount + place * SegmentIndexEntry.byteCount
            memory.put(entry.baseOffset, at)
            memory.put(entry.position, at + 8)
            memory.put(entry.time, at + 16)
        }
        ChunkHeader(
            bytes: bytes, flags: ChunkHeader.sealFlag, baseOffset: segment.endOffset,
            endOffset: segment.endOffset, firstTime: segment.lastTime,
            lastTime: segment.lastTime, position: partition.pointee.file.nextPosition
        ).encode(
            at: memory, partition: partition.pointee.id, segmentBase: segment.baseOffset,
            term: segment.term)
        return start(
            .seal, index,
            .write(
                slot: partition.pointee.file.slot, from: UnsafeRawPointer(memory),
                bytes: padded, position: partition.pointee.file.nextPosition, synced: false),
            wanted: padded, memory: memory)
    }

    // MARK: completions

    mutating func writeBehindCompleted(token: UInt64, result: Int32) {
        let place = Int(Token.value(token))
        guard place < writeBehind.operations.count, let started = writeBehind.operations[place]
        else { return }
        if result >= 0, result < started.wanted, started.attempts < 4 {
            // A short write: the same bytes again, at the same place; nothing relies on them yet.
            writeBehind.operations[place]?.attempts += 1
            writeBehind.retries.append(
                StorageRequest(token: token, operation: started.request))
            return
        }
        if Self.isOutOfDescriptors(result), case .open = started.request {
            if abandonWrite(token) { return foundSpace(token) }
            return awaitDescriptor(
                StorageRequest(token: token, operation: started.request),
                failure(of: started, result).description)
        }
        if Self.isOutOfSpace(result) {
            if abandonWrite(token) { return foundSpace(token) }
            return holdBack(
                StorageRequest(token: token, operation: started.request),
                failure(of: started, result).description)
        }
        guard let operation = writeBehind.finish(place) else { return }
        foundSpace(token)
        operation.memory?.deallocate()
        let partition = state.partitions[operation.partition]
        partition.pointee.file.writesInFlight -= 1
        guard result >= operation.wanted else {
            return storageFailed(failure(of: operation, result))
        }
        switch operation.token {
        case .chunk: chunkWritten(operation, partition)
        case .seal: segmentSealed(operation.partition, partition)
        default: fileAdvanced(operation, partition)
        }
        guard !partition.pointee.isDeleted else { return }
        queueForWriting(operation.partition)
        if operation.token == .segment { writeBehind.advanced.append(operation.partition) }
    }

    private func failure(of operation: WriteBehind.Operation, _ result: Int32) -> StorageFailure {
        let partition = state.partitions[operation.partition]
        let name = FileName.segment(
            partition: partition.pointee.id, baseOffset: partition.pointee.file.nextOffset,
            term: writeBehind.term)
        return StorageFailure(
            "\(operation.attempt) \(name.path) failed", errno: result < 0 ? -result : 5)
    }

    /// A write of a partition that was deleted meanwhile is not tried again: its files go, and make room.
    ///
    /// - Returns: false when it is needed still.
    mutating func abandonWrite(_ token: UInt64) -> Bool {
        let place = Int(Token.value(token))
        switch Token.kind(token) {
        case .chunk, .segment, .seal: break
        default: return false
        }
        guard place < writeBehind.operations.count, let held = writeBehind.operations[place],
            state.partitions[held.partition].pointee.isDeleted,
            let operation = writeBehind.finish(place)
        else { return false }
        let partition = state.partitions[operation.partition]
        operation.memory?.deallocate()
        partition.pointee.file.writesInFlight -= 1
        operation.chunk?.pointee.isWriteDone = true
        while let chunk = partition.pointee.log.applyWritten() {
            guard chunk.pointee.isAwaited else { continue }
            chunk.pointee.isAwaited = false
            checkpointer.awaitedChunks -= 1
        }
        return true
    }

    /// Open, allocate and header are done one after the other.
    private mutating func fileAdvanced(
        _ operation: WriteBehind.Operation, _ partition: UnsafeMutablePointer<Partition>
    ) {
        switch partition.pointee.file.state {
        case .opening:
            writeBehind.needsDirectorySync = true
            partition.pointee.file.state = .allocating
            writeBehind.retries.append(
                allocate(operation.partition, partition, atLeast: UInt64(SegmentHeader.byteCount)))
        case .allocating:
            guard partition.pointee.file.nextPosition == 0 else {
                partition.pointee.file.state = .ready
                return
            }
            partition.pointee.file.state = .writingHeader
            writeBehind.retries.append(writeHeader(operation.partition, partition))
        case .writingHeader:
            partition.pointee.log.segments.append(
                SegmentInfo(
                    baseOffset: partition.pointee.file.nextOffset, term: writeBehind.term))
            partition.pointee.file.nextPosition = UInt64(SegmentHeader.byteCount)
            partition.pointee.file.isUnsynced = true
            partition.pointee.file.state = .ready
        case .none, .ready: break
        }
    }

    private mutating func chunkWritten(
        _ operation: WriteBehind.Operation, _ partition: UnsafeMutablePointer<Partition>
    ) {
        operation.chunk?.pointee.isWriteDone = true
        let last = partition.pointee.log.segments.count - 1
        while let current = partition.pointee.log.applyWritten() {
            partition.pointee.log.segments[last].wrote(current.pointee.header)
            let padded = current.pointee.used.roundedUp(to: ChunkHeader.blockBytes)
            counters.chunksWritten += 1
            counters.chunkBytesWritten += UInt64(padded)
            writeBehind.givePace(current.pointee.batchBytes)
            if current.pointee.isWriteSynced {
                counters.syncedChunks += 1
                partition.pointee.log.segments[last].noteSynced()
                current.pointee.state = .durable
                if !partition.pointee.isDeleted { writeBehind.listDurable(current) }
            } else {
                writeBehind.unsyncedBytes += padded
            }
            if current.pointee.isAwaited {
                current.pointee.isAwaited = false
                checkpointer.awaitedChunks -= 1
            }
        }
    }

    private mutating func segmentSealed(
        _ index: Int32, _ partition: UnsafeMutablePointer<Partition>
    ) {
        let last = partition.pointee.log.segments.count - 1
        let segment = partition.pointee.log.segments[last]
        let bytes = ChunkHeader.byteCount + segment.index.count * SegmentIndexEntry.byteCount
        partition.pointee.log.segments[last].wrote(
            ChunkHeader(
                bytes: bytes, flags: ChunkHeader.sealFlag, baseOffset: segment.endOffset,
                endOffset: segment.endOffset, firstTime: 0, lastTime: 0,
                position: partition.pointee.file.nextPosition))
        writeBehind.rolled.append(
            .init(
                partition: index, partitionID: partition.pointee.id,
                slot: partition.pointee.file.slot, base: segment.baseOffset,
                term: segment.term))
        partition.pointee.file = PartitionFile()
    }

    // MARK: what is quiet, what is full

    /// Seals what a quiet partition holds and the journal does not, so that a crash takes little of it.
    mutating func flushQuietPartitions() {
        guard now.monotonic.since(lastFlushScan) >= limits.memoryFlushNanoseconds / 2 else {
            return
        }
        lastFlushScan = now.monotonic
        for place in 0..<state.partitions.limit {
            let index = Int32(place)
            guard state.partitions.contains(index) else { continue }
            let partition = state.partitions[index]
            guard partition.pointee.level == .memory || partition.pointee.lostIsUnjournalled,
                !partition.pointee.isDeleted,
                let chunk = partition.pointee.log.newest, chunk.pointee.state == .open,
                now.monotonic.since(chunk.pointee.openedAt) >= limits.memoryFlushNanoseconds
            else { continue }
            partition.pointee.log.sealNewest()
            queueForWriting(index)
        }
    }

    /// Drops durable chunks, oldest first, while the tails use more than three quarters of their
    /// memory.
    ///
    /// - Parameter force: a publish found no memory. When there should be some, it was for a batch
    ///   larger than a chunk, which needs chunks that lie side by side: half of all makes room.
    mutating func evictIfNeeded(force: Bool = false) {
        let goal = min(limits.tailBytesMax / 4 * 3, force ? state.pool.usedBytes / 2 : .max)
        while state.pool.usedBytes > goal, let chunk = writeBehind.firstDurable {
            guard let index = state.index(ofPartition: chunk.pointee.partition) else { break }
            let partition = state.partitions[index]
            guard partition.pointee.log.oldest == chunk else { break }
            writeBehind.firstDurable = chunk.pointee.nextDurable
            if writeBehind.firstDurable == nil { writeBehind.lastDurable = nil }
            forgetChunk(chunk, of: partition)
            partition.pointee.log.dropOldest(pool: &state.pool)
            counters.evictedChunks += 1
            wakesParked = true
        }
        guard force || state.pool.usedBytes > goal, writeBehind.firstDurable == nil else { return }
        let isIdle = writeBehind.queue.isEmpty && writeBehind.writesInFlight == 0
        // A checkpoint makes what is written droppable; one that finds little costs as much as any.
        if writeBehind.unsyncedBytes > (isIdle ? 0 : limits.tailBytesMax / 16) {
            checkpointer.isDue = true
        }
        guard force, isIdle else { return }
        // All memory is in chunks that are not full: give some of it to the disk.
        for index in state.partitions.indices where !state.partitions[index].pointee.isDeleted {
            state.partitions[index].pointee.log.sealNewest()
            queueForWriting(index)
        }
    }

    /// Closes files that were synced and are not being written to, when descriptors run out.
    mutating func closeIdleFiles() {
        checkpointer.isDue = true
        for index in state.partitions.indices {
            let partition = state.partitions[index]
            guard partition.pointee.file.state == .ready, !partition.pointee.file.isUnsynced,
                partition.pointee.file.writesInFlight == 0
            else { continue }
            // The segment stays as it is, unsealed; the next chunk begins another.
            writeBehind.closes.append(partition.pointee.file.slot)
            partition.pointee.file = PartitionFile()
        }
    }

    /// A deleted partition's chunks are not written any more: no checkpoint may wait for them. What is
    /// being written is still waited for.
    mutating func stopAwaiting(_ partition: UnsafeMutablePointer<Partition>) {
        var chunk = partition.pointee.log.unwritten
        while let current = chunk {
            if current.pointee.isAwaited {
                current.pointee.isAwaited = false
                checkpointer.awaitedChunks -= 1
            }
            chunk = current.pointee.next
        }
    }

    /// The disk has no room for what a checkpoint waits for: it goes on without, and the journal keeps
    /// what is needed.
    mutating func stopAwaitingAll() {
        for index in state.partitions.indices {
            var chunk = state.partitions[index].pointee.log.oldest
            while let current = chunk {
                current.pointee.isAwaited = false
                chunk = current.pointee.next
            }
        }
        checkpointer.awaitedChunks = 0
    }

    /// Frees deleted partitions once nothing touches them, and removes their files once the deletion
    /// is durable.
    mutating func buryPartitions() {
        guard !dyingPartitions.isEmpty, checkpointer.phase == .idle,
            (lastChangeGroup ?? 0) < journal.durableGroup
        else { return }
        var left: [Int32] = []
        for index in dyingPartitions {
            let partition = state.partitions[index]
            guard partition.pointee.file.writesInFlight == 0, !partition.pointee.log.isWriting,
                partition.pointee.firstReader < 0,
                !writeBehind.rolled.contains(where: { $0.partition == index })
            else {
                left.append(index)
                continue
            }
            if partition.pointee.file.slot >= 0 {
                writeBehind.closes.append(partition.pointee.file.slot)
            }
            if partition.pointee.file.slot >= 0, !partition.pointee.keepsFiles {
                checkpointer.removals.append(
                    .segment(
                        partition: partition.pointee.id,
                        baseOffset: partition.pointee.file.nextOffset, term: writeBehind.term))
            }
            for segment in partition.pointee.log.segments where !partition.pointee.keepsFiles {
                checkpointer.removals.append(segment.file(partition: partition.pointee.id))
            }
            if !partition.pointee.keepsFiles {
                writeBehind.unlistDurable(partition: partition.pointee.id)
            }
            state.forget(partition: index)
        }
        dyingPartitions = left
    }
}
