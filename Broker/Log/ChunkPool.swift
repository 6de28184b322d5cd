public import BrokerBasics
internal import WireProtocol

/// A stretch of a partition's tail in memory, in the very form in which it is written to a segment:
/// room for a `ChunkHeader`, then stored batches back to back.
///
/// Made by `ChunkPool`, owned by one `PartitionLog`, used by the shard's thread only.
public struct TailChunk {
    public enum State: UInt8 {
        /// Batches are appended.
        case open
        /// Complete, waiting to be written behind.
        case sealed
        case writing
        /// In the segment, but not known to be on stable storage.
        case written
        /// Its segment is on stable storage: the memory is a cache and may be dropped.
        case durable
    }

    public var memory: UnsafeMutableRawPointer
    public var capacity: Int
    /// Bytes in use, the header's room included.
    public var used = ChunkHeader.byteCount
    public var baseOffset: UInt64
    public var endOffset: UInt64
    public var firstTime: UInt64 = 0
    public var lastTime: UInt64 = 0
    /// The lowest journal position that holds one of its batches; `UInt64.max`: none does.
    public var journalPin = UInt64.max
    public var state = State.open
    public var sizeClass: Int
    /// When its first batch came, for flushing what is quiet.
    public var openedAt = MonotonicTime.zero
    /// The segment it was written to, by base offset and term, and where.
    public var segmentBase: UInt64 = 0
    public var segmentTerm: UInt64 = 0
    public var segmentPosition: UInt64 = 0
    public var isWriteDone = false
    /// A checkpoint waits for it to be written.
    public var isAwaited = false
    /// Its write puts it on stable storage by itself, with all that lies before it in the file.
    public var isWriteSynced = false
    public var partition: UInt32
    public var next: UnsafeMutablePointer<TailChunk>?
    /// The next in the shard's list of durable chunks, oldest first.
    public var nextDurable: UnsafeMutablePointer<TailChunk>?

    public var bytes: UnsafeRawPointer { UnsafeRawPointer(memory) }
    public var batchBytes: Int { used - ChunkHeader.byteCount }

    /// Bytes of the batches that end above `offset`.
    public func batchBytes(above offset: UInt64) -> Int {
        if baseOffset >= offset { return batchBytes }
        if endOffset <= offset { return 0 }
        var at = ChunkHeader.byteCount
        while at < used, StoredBatch.endOffset(at: bytes + at) <= offset {
            at += StoredBatch.bytes(at: bytes + at)
        }
        return used - at
    }
    public var header: ChunkHeader {
        ChunkHeader(
            bytes: used, baseOffset: baseOffset, endOffset: endOffset, firstTime: firstTime,
            lastTime: lastTime, position: segmentPosition)
    }
}

// How it works. The budget is one stretch of memory, cut into slabs of the largest chunk's size. A
// slab is free, lent whole, part of a run of slabs that is lent to one oversized chunk, or split into
// pieces of one smaller size; it is free again with the last of its pieces. Two kinds of doubly
// linked lists, by index: the free slabs, and per size the split slabs that have room.

/// Lends the memory of tails from a fixed budget, in four sizes, so that a partition with one small
/// record does not hold what a busy one needs.
///
/// Owned by one shard. The memory is mapped once, in huge pages where there are any.
public struct ChunkPool: ~Copyable {
    public typealias Chunk = UnsafeMutablePointer<TailChunk>

    private struct Slab {
        var previous: Int32 = -1
        var next: Int32 = -1
        /// The size it is split into, or `free` or `oversized`.
        var sizeClass = ChunkPool.free
        var usedPieces: Int32 = 0
        /// Pieces that were lent at least once; the rest lie behind them.
        var madePieces: Int32 = 0
        /// Pieces that came back, linked through their first bytes.
        var freePieces: UnsafeMutableRawPointer?
    }

    /// The largest ordinary chunk: what write-behind writes at once. A larger batch gets a chunk of
    /// its own.
    public let chunkBytesMax: Int
    /// Memory of the slabs that are not free.
    public private(set) var usedBytes = 0

    private static let classCount = 4
    private static let largest = 3
    private static let oversized = 4
    private static let free = -1
    private static let recoveryBudgets = 4
    private let memory: AlignedMemory
    private let slabs: UnsafeMutablePointer<Slab>
    private let slabCount: Int
    private let budgetSlabs: Int
    private var isServing = false
    /// Per size, the first slab with room; of the largest size, the first free slab.
    private var firstWithRoom: InlineArray<4, Int32> = .init(repeating: -1)
    private var freeDescriptors: Chunk?

    /// - Parameters:
    ///   - chunkBytesMax: whole blocks.
    ///   - budgetBytes: used as far as it holds whole chunks.
    public init(chunkBytesMax: Int, budgetBytes: Int) {
        invariant(
            chunkBytesMax % ChunkHeader.blockBytes == 0, "a chunk of \(chunkBytesMax) is no blocks")
        self.chunkBytesMax = chunkBytesMax
        budgetSlabs = budgetBytes / chunkBytesMax
        let wanted = budgetSlabs * Self.recoveryBudgets
        if let reserved = AlignedMemory(reserving: wanted * chunkBytesMax) {
            memory = reserved
            slabCount = wanted
        } else {
            memory = AlignedMemory(byteCount: budgetSlabs * chunkBytesMax)
            slabCount = budgetSlabs
        }
        slabs = .allocate(capacity: slabCount)
        slabs.initialize(repeating: Slab(), count: slabCount)
        for slab in (0..<slabCount).reversed() { link(slab, Self.largest) }
    }

    deinit {
        slabs.deallocate()
        var kept = freeDescriptors
        while let descriptor = kept {
            kept = descriptor.pointee.next
            descriptor.deallocate()
        }
    }

    /// The memory of the budget.
    public var budget: UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(rebasing: memory.buffer[..<(budgetSlabs * chunkBytesMax)])
    }

    /// Recovery is over: from here on the budget holds.
    public mutating func beginServing() {
        isServing = true
        for slab in budgetSlabs..<slabCount where slabs[slab].sizeClass == Self.free {
            unlink(slab, Self.largest)
        }
    }

    // MARK: slabs

    /// Class 3 is the largest; each below is a quarter, in blocks.
    private func classBytes(_ sizeClass: Int) -> Int {
        let block = ChunkHeader.blockBytes
        return max(block, chunkBytesMax >> (2 * (Self.largest - sizeClass)) / block * block)
    }

    private mutating func link(_ slab: Int, _ list: Int) {
        let head = firstWithRoom[list]
        slabs[slab].previous = -1
        slabs[slab].next = head
        if head >= 0 { slabs[Int(head)].previous = Int32(slab) }
        firstWithRoom[list] = Int32(slab)
    }

    private mutating func unlink(_ slab: Int, _ list: Int) {
        let (previous, next) = (slabs[slab].previous, slabs[slab].next)
        if previous >= 0 { slabs[Int(previous)].next = next } else { firstWithRoom[list] = next }
        if next >= 0 { slabs[Int(next)].previous = previous }
    }

    private mutating func claim(_ slab: Int, as sizeClass: Int) {
        unlink(slab, Self.largest)
        slabs[slab] = Slab(sizeClass: sizeClass)
        usedBytes += chunkBytesMax
    }

    private mutating func setFree(_ slab: Int) {
        slabs[slab] = Slab()
        usedBytes -= chunkBytesMax
        guard isServing, slab >= budgetSlabs else { return link(slab, Self.largest) }
        memory.release(slab * chunkBytesMax..<(slab + 1) * chunkBytesMax)
    }

    private func start(of slab: Int) -> UnsafeMutableRawPointer {
        memory.base + slab * chunkBytesMax
    }

    private mutating func takePiece(_ sizeClass: Int) -> UnsafeMutableRawPointer? {
        if firstWithRoom[sizeClass] < 0 {
            let slab = Int(firstWithRoom[Self.largest])
            guard slab >= 0 else { return nil }
            claim(slab, as: sizeClass)
            link(slab, sizeClass)
        }
        let index = Int(firstWithRoom[sizeClass])
        let slab = slabs + index
        let bytes = classBytes(sizeClass)
        let piece: UnsafeMutableRawPointer
        if let kept = slab.pointee.freePieces {
            piece = kept
            slab.pointee.freePieces = kept.load(as: UnsafeMutableRawPointer?.self)
        } else {
            piece = start(of: index) + Int(slab.pointee.madePieces) * bytes
            slab.pointee.madePieces += 1
        }
        slab.pointee.usedPieces += 1
        if Int(slab.pointee.usedPieces) == chunkBytesMax / bytes { unlink(index, sizeClass) }
        return piece
    }

    private mutating func givePiece(_ piece: UnsafeMutableRawPointer, _ sizeClass: Int) {
        let index = (piece - memory.base) / chunkBytesMax
        let slab = slabs + index
        let wasFull = Int(slab.pointee.usedPieces) == chunkBytesMax / classBytes(sizeClass)
        slab.pointee.usedPieces -= 1
        if slab.pointee.usedPieces == 0 {
            if !wasFull { unlink(index, sizeClass) }
            setFree(index)
            return
        }
        piece.storeBytes(of: slab.pointee.freePieces, as: UnsafeMutableRawPointer?.self)
        slab.pointee.freePieces = piece
        if wasFull { link(index, sizeClass) }
    }

    /// The first run of free slabs that holds `bytes`.
    private mutating func takeRun(_ bytes: Int) -> UnsafeMutableRawPointer? {
        let wanted = (bytes + chunkBytesMax - 1) / chunkBytesMax
        var found = 0
        for slab in 0..<(isServing ? budgetSlabs : slabCount) {
            found = slabs[slab].sizeClass == Self.free ? found + 1 : 0
            guard found == wanted else { continue }
            for index in slab + 1 - wanted...slab { claim(index, as: Self.oversized) }
            return start(of: slab + 1 - wanted)
        }
        return nil
    }

    // MARK: memory of chunks

    private mutating func takeMemory(
        _ bytes: Int, atLeastClass: Int
    ) -> (UnsafeMutableRawPointer, Int, Int)? {
        var sizeClass = atLeastClass
        while sizeClass < Self.classCount, classBytes(sizeClass) < bytes { sizeClass += 1 }
        if sizeClass < Self.largest {
            return takePiece(sizeClass).map { ($0, classBytes(sizeClass), sizeClass) }
        }
        if sizeClass == Self.largest {
            let slab = Int(firstWithRoom[Self.largest])
            guard slab >= 0 else { return nil }
            claim(slab, as: Self.largest)
            return (start(of: slab), chunkBytesMax, Self.largest)
        }
        let capacity = bytes.roundedUp(to: ChunkHeader.blockBytes)
        return takeRun(capacity).map { ($0, capacity, Self.oversized) }
    }

    private mutating func giveMemory(
        _ memory: UnsafeMutableRawPointer, capacity: Int, sizeClass: Int
    ) {
        if sizeClass < Self.largest {
            givePiece(memory, sizeClass)
            return
        }
        let first = (memory - self.memory.base) / chunkBytesMax
        for slab in first..<first + (capacity + chunkBytesMax - 1) / chunkBytesMax {
            setFree(slab)
        }
    }

    /// A chunk with room for `batchBytes`; `busy` partitions begin with the largest size.
    ///
    /// - Returns: `nil` when the budget is used up.
    public mutating func take(
        partition: UInt32, baseOffset: UInt64, batchBytes: Int, busy: Bool
    ) -> Chunk? {
        guard
            let (memory, capacity, sizeClass) = takeMemory(
                ChunkHeader.byteCount + batchBytes, atLeastClass: busy ? Self.largest : 0)
        else { return nil }
        let chunk: Chunk
        if let kept = freeDescriptors {
            freeDescriptors = kept.pointee.next
            chunk = kept
        } else {
            chunk = .allocate(capacity: 1)
        }
        chunk.initialize(
            to: TailChunk(
                memory: memory, capacity: capacity, baseOffset: baseOffset, endOffset: baseOffset,
                sizeClass: sizeClass, partition: partition))
        return chunk
    }

    /// Gives an open chunk more room, up to the largest size.
    ///
    /// - Returns: false when it can't grow that far; it is then as it was.
    public mutating func grow(_ chunk: Chunk, toHold batchBytes: Int) -> Bool {
        let needed = chunk.pointee.used + batchBytes
        guard needed <= chunkBytesMax, chunk.pointee.sizeClass < Self.largest,
            let (memory, capacity, sizeClass) = takeMemory(
                needed, atLeastClass: chunk.pointee.sizeClass + 1)
        else { return false }
        memory.copyMemory(from: chunk.pointee.memory, byteCount: chunk.pointee.used)
        giveMemory(
            chunk.pointee.memory, capacity: chunk.pointee.capacity,
            sizeClass: chunk.pointee.sizeClass)
        chunk.pointee.memory = memory
        chunk.pointee.capacity = capacity
        chunk.pointee.sizeClass = sizeClass
        return true
    }

    public mutating func give(_ chunk: Chunk) {
        giveMemory(
            chunk.pointee.memory, capacity: chunk.pointee.capacity,
            sizeClass: chunk.pointee.sizeClass)
        chunk.pointee.next = freeDescriptors
        freeDescriptors = chunk
    }
}
