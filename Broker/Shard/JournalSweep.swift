internal import BrokerBasics
internal import BrokerCore
internal import LogStorage
internal import WireProtocol

// How it works. The journal can be recycled up to the oldest batch that is on stable storage nowhere
// else. A partition whose chunk fills soon is no trouble; one whose chunk does not pins the journal. So a
// hand goes over the partitions, round once while the journal grows by not quite half of its size, and
// gets what is old out of the way: a few bytes are copied to the front of the journal, more are written
// behind as they are. A thousand busy partitions leave the journal one after the other, instead of all
// of them before a checkpoint.
//
//     recycled ...... oldest batch ............................. young ..... write position
//                     |<-- `JournalMarks.sweepPeriod`: once round -->|

/// Keeps partitions that fill their chunks slowly from pinning the journal.
struct JournalSweep {
    /// How far the journal was when the hand moved last.
    fileprivate var position: UInt64
    /// Where the hand is in the table of partitions.
    fileprivate var hand: Int32 = 0
    /// Bytes copied forward in this round. They move the hand too: without a bound, many small
    /// remainders would keep each other going round.
    fileprivate var carriedBytes: UInt64 = 0

    init(position: UInt64) { self.position = position }
}

extension ShardMachine {
    /// Moves the hand as far as the journal has grown.
    mutating func sweepJournal() {
        let limit = UInt64(state.partitions.limit)
        guard stage == .ready, !hasFailed, limit > 0 else { return }
        let period = marks.sweepPeriod
        // More than once round is of no use.
        sweep.position = max(
            sweep.position, journal.openPosition - min(journal.openPosition, period))
        let steps = (journal.openPosition - sweep.position) * limit / period
        guard steps > 0 else { return }
        sweep.position += steps * period / limit
        let bound = journal.openPosition - min(journal.openPosition, marks.young)
        for _ in 0..<steps {
            sweep.hand += 1
            if sweep.hand >= state.partitions.limit {
                sweep.hand = 0
                sweep.carriedBytes = 0
            }
            release(sweep.hand, below: bound)
        }
    }

    /// Gets what a partition has below `bound` out of the journal, unless it is on its way already: a
    /// few bytes are copied forward, more are written behind.
    private mutating func release(_ index: Int32, below bound: UInt64) {
        guard state.partitions.contains(index) else { return }
        let partition = state.partitions[index]
        guard !partition.pointee.isDeleted, let chunk = partition.pointee.log.newest,
            chunk.pointee.state == .open, chunk.pointee.journalPin < bound
        else { return }
        if let bytes = partition.pointee.log.openBytesOnly, bytes <= limits.carryBytesMax,
            sweep.carriedBytes + UInt64(bytes) <= marks.carriedMax, carryForward(partition)
        {
            sweep.carriedBytes += UInt64(bytes)
            return  // Its pin is now at the front of the journal.
        }
        partition.pointee.log.sealNewest()
        queueForWriting(index)
    }

    /// Before a checkpoint: waits for what the hand did not get out of the journal in time, for the disk
    /// is late. A journal that is nearly full waits for more, and so does a stop for everything.
    mutating func unpin() {
        let isHurried = journal.usedBytes > marks.hurriedUse || checkpointer.isPressed
        checkpointer.isPressed = false
        let kept = isHurried ? marks.awaitedInHurry : marks.awaited
        let bound = journal.openPosition - min(journal.openPosition, kept)
        for place in 0..<state.partitions.limit {
            let index = Int32(place)
            guard state.partitions.contains(index) else { continue }
            let partition = state.partitions[index]
            guard !partition.pointee.isDeleted, partition.pointee.log.oldest != nil else {
                continue
            }
            if checkpointer.isFinal {
                partition.pointee.log.sealNewest()
            } else {
                release(index, below: bound)
            }
            queueForWriting(index)
            var chunk = partition.pointee.log.oldest
            while let current = chunk {
                let isPending =
                    current.pointee.state == .sealed || current.pointee.state == .writing
                if isPending, checkpointer.isFinal || current.pointee.journalPin < bound {
                    current.pointee.isAwaited = true
                    checkpointer.awaitedChunks += 1
                    counters.awaitedChunks += 1
                }
                chunk = current.pointee.next
            }
        }
    }

    /// Copies a quiet partition's few unwritten batches to the front of the journal, all of them, so
    /// that in replay they come in order. A block that holds durable data is never rewritten.
    private mutating func carryForward(_ partition: UnsafeMutablePointer<Partition>) -> Bool {
        guard let chunk = partition.pointee.log.unwritten else { return false }
        let position = journal.openPosition
        var at = ChunkHeader.byteCount
        while at < chunk.pointee.used {
            let batch = chunk.pointee.bytes + at
            let bytes = StoredBatch.bytes(at: batch)
            guard
                let room = journal.stage(
                    .batch, flags: JournalEntry.carriedFlag, object: partition.pointee.id,
                    payloadBytes: bytes, reserve: 0)
            else { return false }
            room.copyMemory(from: batch, byteCount: bytes)
            at += bytes
            counters.carriedBatches += 1
        }
        chunk.pointee.journalPin = position
        return true
    }
}
