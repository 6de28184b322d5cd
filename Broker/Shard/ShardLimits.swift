internal import BrokerBasics
internal import BrokerCore
package import LogStorage

/// Every bound of a shard, by name. Those that clients run into are shown by `server status`.
package struct ShardLimits: Sendable, Equatable {
    package var connectionsMax = 16_384
    /// The largest frame that is accepted; HELLO may agree on less.
    package var frameBytesMax: UInt32 = 1 << 20
    /// What waits to be sent on one connection; a single larger frame is let through alone.
    package var sendBytesMax = 256 * 1024
    /// Memory of all send buffers together.
    package var sendMemoryBytesMax = 1 << 30
    /// Bytes received and not yet worked on, per connection, before it is closed as hostile.
    package var inputBytesMax = 8 << 20
    /// Memory of all that was received in part, or waits behind a parked frame.
    package var inputMemoryBytesMax = 1 << 30
    /// Runs of publishes waiting for their confirm, per connection.
    package var confirmRunsMax = 65_536
    package var subscriptionsPerConnectionMax = 1024
    package var queuesMax = 100_000
    package var partitionsPerQueueMax = 1024
    /// Of all queues together.
    package var partitionsMax = DurableState.partitionsMax
    /// Producers that are known, and groups, of all queues together.
    package var producersMax = 100_000
    package var groupsMax = 100_000
    /// One record of a batch, and its headers, as they are encoded. A batch ends both by itself.
    package var recordBytesMax: UInt32 = 64 << 20
    package var recordHeadersBytesMax: UInt32 = 64 << 20
    /// A journal group is closed when it has this many bytes. Measured knee: 128 KiB.
    package var groupBytes = 128 * 1024
    /// While so many closed groups wait, four writes are in flight instead of two.
    package var backlogGroups: UInt64 = 4
    /// Journal entries staged and not yet durable.
    package var stagingBytes = 8 << 20
    /// Memory of all tails together.
    package var tailBytesMax = 512 << 20
    /// What write-behind writes at once.
    package var chunkBytes = 256 * 1024
    package var segmentBytes: UInt64 = 256 << 20
    /// Segment writes in flight. More take the disk from the journal: with 256 B records, 1000 in
    /// flight, two gave a few per cent more confirms than four, and kept up with them.
    package var writesBehindMax = 2
    /// Segment syncs in flight: a filesystem journal commits those that wait together at once.
    package var syncsMax = 16
    /// Segment syncs begun per millisecond, as long as the journal is less than five eighths full. Each
    /// costs some core of the machine 45 µs in the kernel, and a kernel without preemption gives that
    /// core to nobody else while they come in a row.
    package var syncsPerSpan = 4
    /// A partition's remainder up to this is copied forward in the journal instead of written.
    package var carryBytesMax = 16 * 1024
    /// Reads of segments in flight, for readers behind the tail. Each is up to `coldPieceBytes`, and stands in
    /// the way of the journal's next write.
    package var coldReadsMax = 16
    /// The same while the journal is in use. It was, for as long as nobody wrote for this long:
    package var coldReadsBesideMax = 1
    package static let journalQuietNanoseconds: UInt64 = .milliseconds(100)
    /// Room in a new segment for a partition of which little is to be written.
    package static let reservedBytesMin = 64 * 1024
    /// What is delivered from segments in one cycle: nobody else is served meanwhile.
    package var coldBytesPerCycle = 64 * 1024
    /// Memory of all that is read from segments.
    package var coldBytesMax = 32 << 20
    /// What one read of a segment asks for.
    package var coldPieceBytes = 64 * 1024
    /// How far ahead of what it delivers a reader asks at most.
    package var coldAheadBytes = 1 << 20
    /// What the check of segments may read per second; 0: there is none.
    package var scrubBytesPerSecond: UInt64 = 8 << 20
    /// From the end of one pass of it to the next.
    package var scrubIntervalNanoseconds: UInt64 = .seconds(24 * 3600)
    package var filesMax = 4096
    /// Offsets that a `memory` partition reserves in the journal at once.
    package var reservationStep: UInt64 = 1 << 20
    package var producerExpirySeconds: UInt32 = 7 * 24 * 3600
    /// An idle journal says on disk what is durable after this long.
    package var sealAfterNanoseconds: UInt64 = .milliseconds(10)
    /// A quiet `memory` partition is written behind after this long.
    package var memoryFlushNanoseconds: UInt64 = .milliseconds(100)
    package var checkpointAfterNanoseconds: UInt64 = .seconds(10)
    /// A connection that has not said HELLO by then is closed.
    package var helloNanoseconds: UInt64 = .seconds(10)
    /// A frame that began to come and is not whole by then closes its connection.
    package var frameNanoseconds: UInt64 = .seconds(30)
    /// A peer that takes nothing of what waits for it, or less than a send buffer, in this time is closed.
    package var peerNanoseconds: UInt64 = .seconds(120)
    /// A connection that is to close and takes nothing of what waits for it is closed after this.
    package var drainNanoseconds: UInt64 = .seconds(10)
    /// What a partition that is to move is given to become ready for it.
    package var movePrepareNanoseconds: UInt64 = .seconds(60)
    /// For how long its publishes are held back at most before the move is given up.
    package var moveFenceNanoseconds: UInt64 = .seconds(1)
    /// For how long publishes may wait for room in the journal because of a backup.
    package var backupPressureNanoseconds: UInt64 = .seconds(10)
    /// A journal write or sync that is under way for longer is logged.
    package var diskSlowNanoseconds: UInt64 = .seconds(1)
    package var effectsMax = 4096
    package var diskMarks = DiskMarks()
    /// Room on the disk that is kept for what was accepted before it was full; 0: none.
    package var reserveBytes: UInt64 = 32 << 20

    package init() {}

    /// Batches up to this many bytes need no look at their records' sizes.
    @inline(__always)
    var recordBytesChecked: Int { Int(min(recordBytesMax, recordHeadersBytesMax)) }

    /// The largest stored batch: what a frame can carry, with the broker's stamp.
    package var storedBatchBytesMax: Int { Int(frameBytesMax) }

    /// What an index entry leads to, or all of a small segment.
    package var coldStretchBytes: Int {
        let spaced = Int(SegmentIndexEntry.spacingBytes) + chunkBytes
        return Int(min(UInt64(spaced), segmentBytes + UInt64(chunkBytes)))
            .roundedUp(to: ChunkHeader.blockBytes)
    }
    /// The same, or the largest chunk.
    package var coldStretchBytesMax: Int {
        max(coldStretchBytes, storedBatchBytesMax + chunkBytes + 2 * ChunkHeader.blockBytes)
            .roundedUp(to: ChunkHeader.blockBytes)
    }

    package var journal: Journal.Limits {
        var limits = Journal.Limits(
            entryBytesMax: storedBatchBytesMax + JournalGroupHeader.entryHeaderBytes,
            stagingBytes: stagingBytes)
        limits.groupBytes = groupBytes
        limits.backlogGroups = backlogGroups
        return limits
    }

    /// The limits of one of `shards` shards: memory and the reserve are the broker's, and divided.
    package func divided(among shards: Int) -> ShardLimits {
        guard shards > 1 else { return self }
        var limits = self
        limits.sendMemoryBytesMax /= shards
        limits.inputMemoryBytesMax /= shards
        limits.tailBytesMax = max(
            tailBytesMax / shards, 4 * max(chunkBytes, Int(frameBytesMax)))
        let block = UInt64(JournalGeometry.blockBytes)
        limits.reserveBytes = reserveBytes / UInt64(shards) / block * block
        return limits
    }

    /// Says which limits don't fit together; `nil` when all do.
    package func conflict(geometry: JournalGeometry) -> LimitConflict? {
        let group = journal.groupBytesMax
        if UInt64(group) * 4 > geometry.capacity {
            return LimitConflict(
                .journal,
                "the journal (\(geometry.capacity) bytes) must hold four of the largest groups "
                    + "(\(group) bytes, from the largest frame)")
        }
        if UInt64(group) > geometry.fileBytes {
            return LimitConflict(
                .journalFile,
                "a journal file (\(geometry.fileBytes) bytes) must hold the largest group (\(group))"
            )
        }
        if stagingBytes < 2 * group {
            return LimitConflict(
                .staging,
                "staging (\(stagingBytes) bytes) must hold two of the largest groups (\(group))")
        }
        if tailBytesMax < 4 * max(chunkBytes, Int(frameBytesMax)) {
            return LimitConflict(
                .tail, "tail memory (\(tailBytesMax) bytes) must hold four chunks (\(chunkBytes))")
        }
        if segmentBytes < UInt64(4 * max(chunkBytes, Int(frameBytesMax))) {
            return LimitConflict(
                .segment, "a segment (\(segmentBytes) bytes) must hold four chunks (\(chunkBytes))")
        }
        if coldBytesMax < 2 * coldStretchBytesMax {
            return LimitConflict(
                .coldMemory,
                "memory for old records (\(coldBytesMax) bytes) must hold two of the largest stretches "
                    + "(\(coldStretchBytesMax) bytes)")
        }
        return nil
    }
}

/// Two limits that don't fit together.
package struct LimitConflict: Sendable, Equatable, CustomStringConvertible {
    /// Which bound is too small.
    package enum Cause: Sendable, CaseIterable {
        case journal
        case journalFile
        case staging
        case tail
        case segment
        case coldMemory
    }
    package var cause: Cause
    package var description: String

    init(_ cause: Cause, _ description: String) {
        self.cause = cause
        self.description = description
    }
}
