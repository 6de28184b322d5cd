internal import BrokerBasics
public import LogStorage
public import WireProtocol

/// An ordered log owned by one shard, with what the shard knows about serving it.
///
/// Lives at a fixed address in the shard's pool; only the shard's thread touches it.
public struct Partition {
    public var log: PartitionLog
    public let queue: UInt32
    /// The place in its queue, from 0.
    public let index: UInt32
    public let level: DurabilityLevel
    public var isDeleted = false
    /// It goes to another shard, or came and is not placed here yet: its files are not removed.
    public var isMoving = false
    /// It is not placed here yet.
    public var isArriving = false
    /// Deleted here only.
    public var keepsFiles = false

    /// Every offset below it meets the queue's durability level, and may be delivered: on one node
    /// the high watermark is the same.
    public private(set) var committed: UInt64
    /// Below `synced`: offsets below it may be given out; the journal says so.
    public var reservedEnd: UInt64
    /// A reservation is staged up to here.
    public var reservingEnd: UInt64
    /// The end that the last checkpoint saw.
    public var checkpointedEnd: UInt64 = 0
    public var lostRecords: UInt64 = 0
    /// The ranges of them that are kept, ascending: each was delivered as a batch that holds no record.
    public var lostRanges: [Range<UInt64>] = []
    public var retention = Retention.keepAll
    /// Ranges that a recovery found lost, and counted, whose batches may still be in the tail only.
    public var declaredLost: [Range<UInt64>] = []
    /// `written`: the last of them is in the tail and not in the journal.
    public var lostIsUnjournalled = false

    /// The first of the readers here, an index into the shard's pool; -1 when there is none.
    public var firstReader: Int32 = -1
    public var isDirty = false
    /// The journal group of the last batch, and where the shard notes its end.
    public var touchedGroup = UInt64.max
    public var touchIndex: UInt64 = 0

    // Write-behind.
    public var file = PartitionFile()
    public var isQueuedForWriting = false

    // Counted since the start of the broker.
    public var publishedRecords: UInt64 = 0
    public var publishedBytes: UInt64 = 0
    public var deliveredRecords: UInt64 = 0
    public var deliveredBytes: UInt64 = 0

    public init(log: PartitionLog, queue: UInt32, index: UInt32, level: DurabilityLevel) {
        self.log = log
        self.queue = queue
        self.index = index
        self.level = level
        committed = log.endOffset
        reservedEnd = log.endOffset
        reservingEnd = log.endOffset
    }

    @inline(__always) public var id: UInt32 { log.partition }

    /// Gives up the records below `offset`.
    public mutating func moveStart(to offset: UInt64) {
        log.moveStart(to: offset)
        lostRanges.removeAll { $0.upperBound <= offset }
    }

    /// Offsets of `range` that a crash took.
    public func lostRecords(in range: Range<UInt64>) -> UInt64 {
        lostRanges.reduce(0) { $0 + UInt64($1.clamped(to: range).count) }
    }

    /// Records that are kept.
    public var records: UInt64 {
        // In the middle of a replay the end may be below the start.
        let end = max(log.startOffset, log.endOffset)
        return end - log.startOffset - lostRecords(in: log.startOffset..<end)
    }

    /// The one setter through which the committed offset moves.
    @inline(__always)
    public mutating func commit(upTo offset: UInt64) {
        invariant(
            offset >= committed && offset <= log.endOffset,
            "partition \(id): committed \(committed) can't become \(offset), end \(log.endOffset)")
        committed = offset
    }
}

/// The file that a partition's chunks are written to, as far as the loop has it open.
public struct PartitionFile {
    public enum State: UInt8 {
        case none
        case opening
        case allocating
        case writingHeader
        case ready
    }
    public var state = State.none
    public var slot: FileSlot = -1
    public var allocatedBytes: UInt64 = 0
    /// Where the next chunk goes; ahead of the segment's `bytes` by what is in flight.
    public var nextPosition: UInt64 = 0
    /// The end offset behind what is in flight.
    public var nextOffset: UInt64 = 0
    public var writesInFlight = 0
    /// Written to since the last sync.
    public var isUnsynced = false
    /// The last checkpoint that found it written to.
    public var lastWritten: UInt64 = 0

    public init() {}
}
