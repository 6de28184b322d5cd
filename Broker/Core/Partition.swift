internal import BrokerBasics
package import LogStorage
package import WireProtocol

/// An ordered log owned by one shard, with what the shard knows about serving it.
///
/// Lives at a fixed address in the shard's pool; only the shard's thread touches it.
package struct Partition {
    package var log: PartitionLog
    package let queue: UInt32
    /// The place in its queue, from 0.
    package let index: UInt32
    package let level: DurabilityLevel
    package var isDeleted = false

    /// Every offset below it meets the queue's durability level, and may be delivered: on one node
    /// the high watermark is the same.
    package private(set) var committed: UInt64
    /// `memory`: offsets below it may be given out; the journal says so.
    package var reservedEnd: UInt64
    /// A reservation is staged up to here.
    package var reservingEnd: UInt64
    package var lostRecords: UInt64 = 0
    /// The range that the last recovery found lost, and counted; its batch begins this term's tail.
    package var declaredLost: Range<UInt64> = 0 ..< 0
    package var records: UInt64 = 0

    /// The first of the readers here, an index into the shard's pool; -1 when there is none.
    package var firstReader: Int32 = -1
    package var isDirty = false
    /// The journal group of the last batch, and where the shard notes its end.
    package var touchedGroup = UInt64.max
    package var touchIndex: UInt64 = 0

    // Write-behind.
    package var file = PartitionFile()
    package var isQueuedForWriting = false

    // Counted since the start of the broker.
    package var publishedRecords: UInt64 = 0
    package var publishedBytes: UInt64 = 0
    package var deliveredRecords: UInt64 = 0
    package var deliveredBytes: UInt64 = 0

    package init(log: PartitionLog, queue: UInt32, index: UInt32, level: DurabilityLevel) {
        self.log = log
        self.queue = queue
        self.index = index
        self.level = level
        committed = log.endOffset
        reservedEnd = log.endOffset
        reservingEnd = log.endOffset
    }

    @inline(__always) package var id: UInt32 { log.partition }

    /// The one setter through which the committed offset moves.
    @inline(__always)
    package mutating func commit(upTo offset: UInt64) {
        invariant(
            offset >= committed && offset <= log.endOffset,
            "partition \(id): committed \(committed) can't become \(offset), end \(log.endOffset)")
        committed = offset
    }
}

/// The file that a partition's chunks are written to, as far as the loop has it open.
package struct PartitionFile {
    package enum State: UInt8 {
        case none
        case opening
        case allocating
        case writingHeader
        case ready
    }
    package var state = State.none
    package var slot: FileSlot = -1
    package var allocatedBytes: UInt64 = 0
    /// Where the next chunk goes; ahead of the segment's `bytes` by what is in flight.
    package var nextPosition: UInt64 = 0
    /// The end offset behind what is in flight.
    package var nextOffset: UInt64 = 0
    package var writesInFlight = 0
    /// Written to since the last sync.
    package var isUnsynced = false
    /// The last checkpoint that found it written to.
    package var lastWritten: UInt64 = 0

    package init() {}
}
