package import BrokerBasics

/// What a shard counts, since the start of the broker. One writer; read by copying.
package struct ShardCounters: Sendable {
    package var connectionsOpened: UInt64 = 0
    package var connectionsClosed: UInt64 = 0
    package var connectionsRefused: UInt64 = 0
    /// Closed since they took longer than a limit, for HELLO, a frame, or what was left for them.
    package var connectionsTimedOut: UInt64 = 0
    /// Closed with an error that says which limit they met.
    package var connectionsTurnedAway: UInt64 = 0
    /// Times that a listener found no descriptor or memory for a connection; it is asked again.
    package var acceptFailures: UInt64 = 0
    /// Opens of segments and checkpoints that found no descriptor, and waited for one.
    package var awaitedDescriptors: UInt64 = 0
    package var receivedBytes: UInt64 = 0
    package var sentBytes: UInt64 = 0
    package var frames: UInt64 = 0
    /// Publishes whose partition lives on another shard.
    package var forwardedFrames: UInt64 = 0
    package var badFrames: UInt64 = 0
    package var refusals: UInt64 = 0
    package var publishedRecords: UInt64 = 0
    package var publishedBytes: UInt64 = 0
    package var duplicateBatches: UInt64 = 0
    /// Records whose producer was content with a confirm below the queue's level.
    package var downgradedRecords: UInt64 = 0
    package var confirmedRecords: UInt64 = 0
    package var deliveredRecords: UInt64 = 0
    package var deliveredBytes: UInt64 = 0
    package var acks: UInt64 = 0
    package var parks: UInt64 = 0
    package var coldReads: UInt64 = 0
    package var coldReadBytes: UInt64 = 0
    package var checkpoints: UInt64 = 0
    package var checkpointBytes: UInt64 = 0
    package var chunksWritten: UInt64 = 0
    package var chunkBytesWritten: UInt64 = 0
    package var carriedBatches: UInt64 = 0
    package var syncedChunks: UInt64 = 0
    package var awaitedChunks: UInt64 = 0
    package var evictedChunks: UInt64 = 0
    package var damagedChunks: UInt64 = 0
    /// By the check of segments, since the start of the broker.
    package var scrubbedBytes: UInt64 = 0
    package var scrubErrors: UInt64 = 0
    /// Ranges found damaged by it, or by a reader.
    package var damagedRanges: UInt64 = 0
    /// Segment and checkpoint operations that found no room on the disk, and waited for some.
    package var heldOperations: UInt64 = 0
    /// By retention and purges, since the start of the broker.
    package var removedRecords: UInt64 = 0
    package var removedBytes: UInt64 = 0
    package var removedSegments: UInt64 = 0
    /// Offsets that subscriptions would have got, had they not been removed.
    package var skippedRecords: UInt64 = 0
    /// By shard 0.
    package var partitionMoves: UInt64 = 0
    package var movePauseNanoseconds: UInt64 = 0
    package var movePauseNanosecondsMax: UInt64 = 0
    package var storageFailure: String?

    package init() {}
}

/// Something worth a line in the log.
package enum ShardEvent: Sendable, Equatable {
    case storageFailed(String)
    case badFrame(peer: String, what: String)
    case dataDamaged(String)
    case checkpoint(sequence: UInt64, bytes: Int)
    case groupChanged(String)
    /// A group's records were removed before it had acked them.
    case groupSkipped(String)
    case clockStepped(String)
    /// The disk is fuller or emptier than one of its marks.
    case diskLevel(DiskLevel, String)
    /// An operation found no room; it is tried again.
    case spaceAwaited(String)
    case spaceFound
    /// The journal waits for the disk longer than it should, or does so no more.
    case diskSlow(String)
    case diskSteady(String)
    /// A partition moved to another shard, or did not.
    case partitionMove(String)
    /// Connections can't be accepted for want of descriptors or memory: the errno.
    case acceptStopped(errno: Int32)
    case acceptResumed
    /// A file can't be opened for want of descriptors; it is tried again.
    case descriptorsAwaited(String)
    case descriptorsFound
}

/// Why a connection was closed.
package enum CloseReason: String, Sendable {
    case peer
    case protocolError
    case drained
    /// It took nothing of what was sent to it, or too little, for too long.
    case stalled
    case overflow
    case stopping
}

/// One partition in a report.
package struct PartitionReport: Sendable {
    package var queue: String
    package var partition: UInt32
    package var index: UInt32
    package var level: String
    package var startOffset: UInt64
    package var committedOffset: UInt64
    package var endOffset: UInt64
    package var bytes: UInt64
    package var lostRecords: UInt64
    package var publishedRecords: UInt64
    package var publishedBytes: UInt64
    package var deliveredRecords: UInt64
    package var deliveredBytes: UInt64
    package var segments: Int
    package var epoch: UInt32
    // What it keeps at least; 0: no limit.
    package var retentionBytes: UInt64
    package var retentionMilliseconds: UInt64
    package var retentionRecords: UInt64
}

/// One group's place in one partition in a report.
package struct CursorReport: Sendable {
    package var queue: String
    package var group: String
    package var index: UInt32
    package var members: Int
    package var ackFloor: UInt64
    package var lagRecords: UInt64
    package var lagBytes: UInt64
    package var lagSeconds: Double
    package var skippedRecords: UInt64
    package var state: String
    package var stateSeconds: Double
}

/// A shard at one instant, for metrics and `server describe`.
package struct ShardReport: Sendable {
    package var stage: ShardMachine.Stage
    package var term: UInt64
    package var counters: ShardCounters
    package var connections: Int
    package var subscriptions: Int
    package var partitions: [PartitionReport]
    package var cursors: [CursorReport]
    package var journalLatency: LatencyHistogram
    /// For how long the oldest journal write or sync is under way; 0: none is.
    package var journalWaitNanoseconds: UInt64
    package var journalUsedBytes: UInt64
    package var journalCapacityBytes: UInt64
    package var journalBytesWritten: UInt64
    package var journalWrites: UInt64
    package var tailUsedBytes: Int
    package var tailLimitBytes: Int
    package var coldUsedBytes: Int
    package var scrubPercent: UInt64
    package var scrubPasses: UInt64
    /// Nanoseconds since 1970; 0: none has come to its end.
    package var scrubLastPass: UInt64
    /// Known now.
    package var damagedRanges: Int
    /// `nil` before the loop has looked.
    package var disk: DiskSpace?
    package var diskLevel: DiskLevel
    package var awaitsSpace: Bool
}
