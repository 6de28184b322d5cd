public import BrokerBasics

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
    public var partition: UInt32
    public var next: UnsafeMutablePointer<TailChunk>?
    /// The next in the shard's list of durable chunks, oldest first.
    public var nextDurable: UnsafeMutablePointer<TailChunk>?

    public var bytes: UnsafeRawPointer { UnsafeRawPointer(memory) }
    public var batchBytes: Int { used - ChunkHeader.byteCount }
    public var header: ChunkHeader {
        ChunkHeader(
            bytes: used, baseOffset: baseOffset, endOffset: endOffset, firstTime: firstTime,
            lastTime: lastTime, position: segmentPosition)
    }
}

/// Lends the memory of tails from a fixed budget, in four sizes, so that a partition with one small
/// record does not hold what a busy one needs.
///
/// Owned by one shard. What is given back is kept for the next use; growth is up to the budget.
public struct ChunkPool: ~Copyable {
    public typealias Chunk = UnsafeMutablePointer<TailChunk>

    /// The largest ordinary chunk: what write-behind writes at once. A larger batch gets a chunk of
    /// its own.
    public let chunkBytesMax: Int
    public let budgetBytes: Int
    /// Memory taken from the system, lent or kept.
    public private(set) var reservedBytes = 0
    /// Memory in chunks that are in use.
    public private(set) var usedBytes = 0

    private static let classCount = 4
    private static let oversized = 4
    private var free: InlineArray<4, UnsafeMutableRawPointer?> = .init(repeating: nil)
    private var freeDescriptors: Chunk?

    public init(chunkBytesMax: Int, budgetBytes: Int) {
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
    public mutating func take(
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
    public mutating func grow(_ chunk: Chunk, toHold batchBytes: Int) -> Bool {
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

    public mutating func give(_ chunk: Chunk) {
        giveMemory(
            chunk.pointee.memory, capacity: chunk.pointee.capacity,
            sizeClass: chunk.pointee.sizeClass)
        chunk.pointee.next = freeDescriptors
        freeDescriptors = chunk
    }
}
