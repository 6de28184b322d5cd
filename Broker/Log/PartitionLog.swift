public import BrokerBasics
internal import WireProtocol

// How it works. New batches go to the newest chunk of the tail. A full chunk is sealed and written
// behind, in order, to the active segment; several writes of one partition may be in flight. A
// chunk's memory may be dropped only when its segment is on stable storage; until then the tail is
// the only place that live readers need.
//
//   offsets   start ......... segmentEnd ............ end
//             | segments      | tail only             |
//             |        tailStart (older chunks were dropped)
//
// The start moves up when records are removed. From then on nobody reads below it; the segments that end
// there or below are given up whole, later, so the first segment may begin below the start.

/// One partition's log: the tail in memory and the segments on disk. Pure; owned by its shard.
public struct PartitionLog {
    public typealias Chunk = UnsafeMutablePointer<TailChunk>

    public let partition: UInt32
    public private(set) var startOffset: UInt64
    public private(set) var endOffset: UInt64
    public var epoch: UInt32
    /// Append times never retreat, whatever the wall clock does.
    public var lastAppendTime: UInt64 = 0
    /// Bytes of the stored batches that end above the start. Where a purge cut a segment that is not in
    /// memory any more, those in front of the cut count until the segment goes.
    public var bytes: UInt64 = 0

    // The tail, oldest chunk first.
    public private(set) var oldest: Chunk?
    public private(set) var newest: Chunk?
    /// The first chunk that is not handed to a write yet.
    public private(set) var unwritten: Chunk?
    /// The first chunk whose write is not applied yet.
    public private(set) var unapplied: Chunk?
    private var wasBusy = false

    /// Oldest first; the last one is active unless it is sealed.
    public var segments: [SegmentInfo] = []

    public init(partition: UInt32, startOffset: UInt64, endOffset: UInt64, epoch: UInt32) {
        self.partition = partition
        self.startOffset = startOffset
        self.endOffset = endOffset
        self.epoch = epoch
    }

    /// The first offset that the tail holds; the end when it is empty.
    @inline(__always)
    public var tailStart: UInt64 { oldest?.pointee.baseOffset ?? endOffset }

    /// Offsets below it can be read from segments.
    public var segmentEnd: UInt64 { segments.last?.endOffset ?? startOffset }

    /// Where the log stands after recovery, before the tail is rebuilt.
    public mutating func restore(endOffset: UInt64) {
        invariant(oldest == nil, "a tail is rebuilt from its start")
        self.endOffset = endOffset
    }

    // MARK: removing

    /// Gives up the records below `offset`; those who read there have to be told.
    public mutating func moveStart(to offset: UInt64) {
        invariant(
            offset >= startOffset,
            "partition \(partition): start \(startOffset) can't become \(offset)")
        startOffset = offset
        bytes = 0
        var chunk = oldest
        while let current = chunk {
            chunk = current.pointee.next
            // What is written is counted with its segment, unless all that is kept is in the tail.
            let isInSegment =
                current.pointee.state.rawValue >= TailChunk.State.written.rawValue
            guard offset >= tailStart || !isInSegment else { continue }
            bytes += UInt64(current.pointee.batchBytes(above: offset))
        }
        guard offset < tailStart else { return }
        for segment in segments where segment.endOffset > offset { bytes += segment.batchBytes }
    }

    /// Gives up the oldest segment, which ends at the start or below. Its chunks in the tail are needed by
    /// nobody: `forEach` gets those that did not wait for anything but the segment's sync.
    public mutating func dropSegment(_ forEach: (Chunk) -> Void) -> SegmentInfo? {
        guard let segment = segments.first, segment.endOffset <= startOffset else { return nil }
        segments.removeFirst()
        var chunk = oldest
        while let current = chunk, current.pointee.endOffset <= segment.endOffset {
            chunk = current.pointee.next
            guard current.pointee.state == .written else { continue }
            current.pointee.state = .durable
            forEach(current)
        }
        return segment
    }

    /// Where the log that a checkpoint of now restores ends: what follows is replayed.
    public var durableEnd: UInt64 {
        if let last = segments.last(where: { $0.syncedBytes > 0 }) { return last.syncedEndOffset }
        if let first = segments.first { return first.baseOffset }
        var chunk = oldest
        while let current = chunk, current.pointee.state == .durable {
            chunk = current.pointee.next
        }
        return chunk?.pointee.baseOffset ?? endOffset
    }

    // MARK: appending

    /// Room for a stored batch of `storedBytes` at the end of the tail, or `nil` when the memory
    /// budget is used up. `appended` must follow.
    @inline(__always)
    public mutating func reserve(
        storedBytes: Int, pool: inout ChunkPool, now: MonotonicTime
    ) -> UnsafeMutableRawPointer? {
        if let chunk = newest, chunk.pointee.state == .open,
            chunk.pointee.used &+ storedBytes <= chunk.pointee.capacity
        {
            return chunk.pointee.memory + chunk.pointee.used
        }
        return reserveSlow(storedBytes: storedBytes, pool: &pool, now: now)
    }

    @inline(never)
    private mutating func reserveSlow(
        storedBytes: Int, pool: inout ChunkPool, now: MonotonicTime
    ) -> UnsafeMutableRawPointer? {
        if let chunk = newest, chunk.pointee.state == .open {
            if pool.grow(chunk, toHold: storedBytes) {
                return chunk.pointee.memory + chunk.pointee.used
            }
        }
        guard
            let chunk = pool.take(
                partition: partition, baseOffset: endOffset, batchBytes: storedBytes, busy: wasBusy)
        else { return nil }
        chunk.pointee.openedAt = now
        if let newest {
            wasBusy = newest.pointee.state == .open
            if newest.pointee.state == .open { newest.pointee.state = .sealed }
            newest.pointee.next = chunk
        } else {
            oldest = chunk
        }
        newest = chunk
        if unwritten == nil { unwritten = chunk }
        if unapplied == nil { unapplied = chunk }
        return chunk.pointee.memory + chunk.pointee.used
    }

    /// Takes in the batch that was put where `reserve` said.
    ///
    /// - Parameter journalPosition: below which the batch does not lie in the journal; `UInt64.max`
    ///   when it is not there.
    @inline(__always)
    public mutating func appended(
        storedBytes: Int, end: UInt64, appendTime: UInt64, journalPosition: UInt64
    ) {
        guard let chunk = newest else { return }
        invariant(end > endOffset, "partition \(partition): end \(endOffset) can't become \(end)")
        if chunk.pointee.used == ChunkHeader.byteCount { chunk.pointee.firstTime = appendTime }
        chunk.pointee.used &+= storedBytes
        chunk.pointee.endOffset = end
        chunk.pointee.lastTime = appendTime
        chunk.pointee.journalPin = min(chunk.pointee.journalPin, journalPosition)
        endOffset = end
        lastAppendTime = appendTime
        // In replay alone a batch may lie below the start.
        if end > startOffset { bytes &+= UInt64(storedBytes) }
    }

    // MARK: writing behind

    /// True when a chunk waits to be written.
    @inline(__always)
    public var hasSealedChunk: Bool {
        guard let chunk = unwritten else { return false }
        return chunk.pointee.state == .sealed
    }

    /// Closes the newest chunk so that it is written, full or not.
    public mutating func sealNewest() {
        guard let chunk = newest, chunk.pointee.state == .open,
            chunk.pointee.used > ChunkHeader.byteCount
        else { return }
        chunk.pointee.state = .sealed
    }

    /// The next sealed chunk, now the caller's to write.
    public mutating func takeSealed() -> Chunk? {
        guard let chunk = unwritten, chunk.pointee.state == .sealed else { return nil }
        chunk.pointee.state = .writing
        unwritten = chunk.pointee.next
        return chunk
    }

    /// Bytes of stored batches that are in segments on stable storage.
    public var durableBytes: UInt64 {
        var bytes = bytes
        var chunk = oldest
        while let current = chunk {
            if current.pointee.state != .durable {
                bytes -= UInt64(current.pointee.batchBytes(above: startOffset))
            }
            chunk = current.pointee.next
        }
        return bytes
    }

    /// Takes the chunk whose write is done, if it is the next in order.
    public mutating func applyWritten() -> Chunk? {
        guard let chunk = unapplied, chunk.pointee.state == .writing, chunk.pointee.isWriteDone
        else { return nil }
        chunk.pointee.state = .written
        unapplied = chunk.pointee.next
        return chunk
    }

    /// The lowest journal position that the tail still needs; `UInt64.max` when none.
    public var journalPin: UInt64 {
        var pin = UInt64.max
        var chunk = oldest
        while let current = chunk {
            if current.pointee.state != .durable { pin = min(pin, current.pointee.journalPin) }
            chunk = current.pointee.next
        }
        return pin
    }

    /// Bytes of batches that are in no segment yet, if all of them lie in one open chunk: then they
    /// can be copied forward instead of written.
    public var openBytesOnly: Int? {
        guard let chunk = unwritten, chunk.pointee.state == .open, chunk == newest else {
            return nil
        }
        return chunk.pointee.batchBytes
    }

    /// Gives up the oldest chunk, which is durable.
    public mutating func dropOldest(pool: inout ChunkPool) {
        guard let chunk = oldest else { return }
        invariant(chunk.pointee.state == .durable, "only a durable chunk may leave the tail")
        oldest = chunk.pointee.next
        if oldest == nil { newest = nil }
        pool.give(chunk)
    }

    /// Gives up the whole tail: the queue is deleted and none of it is being written.
    public mutating func dropAll(pool: inout ChunkPool) {
        while let chunk = oldest {
            oldest = chunk.pointee.next
            pool.give(chunk)
        }
        newest = nil
        unwritten = nil
        unapplied = nil
    }

    /// True when a chunk is being written.
    public var isWriting: Bool {
        var chunk = oldest
        while let current = chunk {
            if current.pointee.state == .writing { return true }
            chunk = current.pointee.next
        }
        return false
    }

    /// True when no chunk waits to be written, or for its write.
    public var isWritten: Bool { hasOnly(.written) }
    /// True when all of the tail is in segments on stable storage.
    public var isDurable: Bool { hasOnly(.durable) }

    private func hasOnly(_ state: TailChunk.State) -> Bool {
        var chunk = oldest
        while let current = chunk {
            chunk = current.pointee.next
            // Room was made in it for a batch that was not taken.
            let isEmpty = current.pointee.used == ChunkHeader.byteCount
            if current.pointee.state.rawValue < state.rawValue, !isEmpty { return false }
        }
        return true
    }

    /// The chunk that holds `offset`, which is in the tail.
    public func chunk(holding offset: UInt64) -> Chunk? {
        var chunk = oldest
        while let current = chunk {
            if offset < current.pointee.endOffset { return current }
            chunk = current.pointee.next
        }
        return nil
    }
}
