package import BrokerBasics

/// A stretch of a partition's tail in memory, in the very form in which it is written to a segment:
/// room for a `ChunkHeader`, then stored batches back to back.
///
/// Made by `ChunkPool`, owned by one `PartitionLog`, used by the shard's thread only.
package struct TailChunk {
    package enum State: UInt8 {
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

    package var memory: UnsafeMutableRawPointer
    package var capacity: Int
    /// Bytes in use, the header's room included.
    package var used = ChunkHeader.byteCount
    package var baseOffset: UInt64
    package var endOffset: UInt64
    package var firstTime: UInt64 = 0
    package var lastTime: UInt64 = 0
    /// The lowest journal position that holds one of its batches; `UInt64.max`: none does.
    package var journalPin = UInt64.max
    package var state = State.open
    package var sizeClass: Int
    /// When its first batch came, for flushing what is quiet.
    package var openedAt = MonotonicTime.zero
    /// The segment it was written to, by base offset and term, and where.
    package var segmentBase: UInt64 = 0
    package var segmentTerm: UInt64 = 0
    package var segmentPosition: UInt64 = 0
    package var isWriteDone = false
    /// A checkpoint waits for it to be written.
    package var isAwaited = false
    package var partition: UInt32
    package var next: UnsafeMutablePointer<TailChunk>?
    /// The next in the shard's list of durable chunks, oldest first.
    package var nextDurable: UnsafeMutablePointer<TailChunk>?

    package var bytes: UnsafeRawPointer { UnsafeRawPointer(memory) }
    package var batchBytes: Int { used - ChunkHeader.byteCount }
    package var header: ChunkHeader {
        ChunkHeader(
            bytes: used, baseOffset: baseOffset, endOffset: endOffset, firstTime: firstTime,
            lastTime: lastTime, position: segmentPosition)
    }
}

/// Lends the memory of tails from a fixed budget, in four sizes, so that a partition with one small
/// record does not hold what a busy one needs.
///
/// Owned by one shard. What is given back is kept for the next use; growth is up to the budget.
package struct ChunkPool: ~Copyable {
    package typealias Chunk = UnsafeMutablePointer<TailChunk>

    /// The largest ordinary chunk: what write-behind writes at once. A larger batch gets a chunk of
    /// its own.
    package let chunkBytesMax: Int
    package let budgetBytes: Int
    /// Memory taken from the system, lent or kept.
    package private(set) var reservedBytes = 0
    /// Memory in chunks that are in use.
    package private(set) var usedBytes = 0

    private static let classCount = 4
    private static let oversized = 4
    private var free: InlineArray<4, UnsafeMutableRawPointer?> = .init(repeating: nil)
    private var freeDescriptors: Chunk?

    package init(chunkBytesMax: Int, budgetBytes: Int) {
        invariant(
            chunkBytesMax % ChunkHeader.blockBytes == 0, "a chunk of \(chunkBytesMax) is no blocks")
        self.chunkBytesMax = chunkBytesMax
        self.budgetBytes = budgetBytes
    }

    deinit {
        for sizeClass in 0 ..< Self.classCount {
            var kept = free[sizeClass]
            while let memory = kept {
                kept = memory.load(as: UnsafeMutableRawPointer?.self)
                memory.deallocate()
            }
        }
        var kept = freeDescriptors
        while let descriptor = kept {
            kept = descriptor.pointee.next
            descriptor.deallocate()
        }
    }

    /// Class 3 is the largest; each below is a quarter, but no less than a block.
    private func classBytes(_ sizeClass: Int) -> Int {
        max(ChunkHeader.blockBytes, chunkBytesMax >> (2 * (Self.classCount - 1 - sizeClass)))
    }

    private mutating func takeMemory(
        _ bytes: Int, atLeastClass: Int
    ) -> (UnsafeMutableRawPointer, Int, Int)? {
        var sizeClass = atLeastClass
        while sizeClass < Self.classCount, classBytes(sizeClass) < bytes { sizeClass += 1 }
        if sizeClass < Self.classCount {
            let capacity = classBytes(sizeClass)
            if let memory = free[sizeClass] {
                free[sizeClass] = memory.load(as: UnsafeMutableRawPointer?.self)
                usedBytes += capacity
                return (memory, capacity, sizeClass)
            }
            guard reservedBytes + capacity <= budgetBytes || releaseKept(capacity) else {
                return nil
            }
            reservedBytes += capacity
            usedBytes += capacity
            return (
                .allocate(byteCount: capacity, alignment: ChunkHeader.blockBytes), capacity,
                sizeClass
            )
        }
        let capacity = bytes.roundedUp(to: ChunkHeader.blockBytes)
        guard reservedBytes + capacity <= budgetBytes || releaseKept(capacity) else { return nil }
        reservedBytes += capacity
        usedBytes += capacity
        return (
            .allocate(byteCount: capacity, alignment: ChunkHeader.blockBytes), capacity,
            Self.oversized
        )
    }

    /// Frees kept memory of any class until `bytes` fit into the budget.
    private mutating func releaseKept(_ bytes: Int) -> Bool {
        for sizeClass in (0 ..< Self.classCount).reversed() {
            while reservedBytes + bytes > budgetBytes, let memory = free[sizeClass] {
                free[sizeClass] = memory.load(as: UnsafeMutableRawPointer?.self)
                memory.deallocate()
                reservedBytes -= classBytes(sizeClass)
            }
        }
        return reservedBytes + bytes <= budgetBytes
    }

    private mutating func giveMemory(
        _ memory: UnsafeMutableRawPointer, capacity: Int, sizeClass: Int
    ) {
        usedBytes -= capacity
        if sizeClass == Self.oversized {
            memory.deallocate()
            reservedBytes -= capacity
        } else {
            memory.storeBytes(of: free[sizeClass], as: UnsafeMutableRawPointer?.self)
            free[sizeClass] = memory
        }
    }

    /// A chunk with room for `batchBytes`; `busy` partitions begin with the largest size.
    ///
    /// - Returns: `nil` when the budget is used up.
    package mutating func take(
        partition: UInt32, baseOffset: UInt64, batchBytes: Int, busy: Bool
    ) -> Chunk? {
        guard
            let (memory, capacity, sizeClass) = takeMemory(
                ChunkHeader.byteCount + batchBytes, atLeastClass: busy ? Self.classCount - 1 : 0)
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
    package mutating func grow(_ chunk: Chunk, toHold batchBytes: Int) -> Bool {
        let needed = chunk.pointee.used + batchBytes
        guard needed <= chunkBytesMax, chunk.pointee.sizeClass < Self.classCount - 1,
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

    package mutating func give(_ chunk: Chunk) {
        giveMemory(
            chunk.pointee.memory, capacity: chunk.pointee.capacity,
            sizeClass: chunk.pointee.sizeClass)
        chunk.pointee.next = freeDescriptors
        freeDescriptors = chunk
    }
}
