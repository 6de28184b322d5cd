public import BrokerBasics
public import LogStorage
internal import WireProtocol

// How it works, in order:
//  1. The identity says what the directory is. A directory without one was never in use: it is made.
//  2. The latest whole checkpoint gives the state at one journal position.
//  3. The journal is read from where the checkpoint still needs it. Batches rebuild the tails;
//     entries at or above the checkpoint's position are applied.
//  4. Partitions at `memory` are not in the journal: their segments are followed past what the
//     checkpoint knows. What was reserved above their end may have been given out: it becomes a
//     `lost` range under a new epoch. So with partitions at `written`, if the machine was started
//     anew in between: what was written in this run of the machine is still there.
//  5. What was read but is not known to be on stable storage is synced, so that nobody is shown what
//     the next power cut takes away: identity and checkpoint, too, which a process may have written right
//     before it was killed. On them rests what other shards give up for good.
//
// It writes nothing else. The machine's first act is a checkpoint under a new term; only then is
// anybody served. Running recovery again, after a crash in the middle of it, therefore gives the same.

/// How far recovery is, for `/readyz`; called on the thread that recovers.
public struct RecoveryProgress: Sendable, Equatable {
    public var stage: String
    public var journalBytesRead: UInt64 = 0
    public var entries: UInt64 = 0
    public init(stage: String) { self.stage = stage }
}

/// What recovery found, in numbers for a person.
public struct RecoveryReport: Sendable, Equatable {
    public var isNewDirectory = false
    public var wasClean = false
    public var term: UInt64 = 0
    public var journalGroups = 0
    public var journalEntries = 0
    public var journalBytesRead: UInt64 = 0
    public var tornBytes: UInt64 = 0
    public var recordsReplayed: UInt64 = 0
    public var lostRanges: [String] = []
    public var removedFiles = 0
}

public struct RecoveryOptions: Sendable {
    /// Which shard's journal and checkpoints are read.
    public var shard: UInt16 = 0
    /// By partition id, what shard 0 says; `nil` for shard 0 itself, which knows.
    public var placements: [UInt16]?
    /// For a new directory only.
    public var geometry: JournalGeometry
    public var limits: Journal.Limits
    public var chunkBytesMax: Int
    public var tailBudgetBytes: Int
    /// For a new directory only: two random numbers.
    public var serverID: UInt64
    public var journalID: UInt64
    public var now: WallTime
    /// Tells this run of the machine from others; 0 when that can't be known. What was written in this
    /// run can't be lost by now, synced or not.
    public var boot: UInt64 = 0
    public var faults = StorageFaults()

    public init(
        geometry: JournalGeometry, limits: Journal.Limits, chunkBytesMax: Int,
        tailBudgetBytes: Int, serverID: UInt64, journalID: UInt64, now: WallTime
    ) {
        self.geometry = geometry
        self.limits = limits
        self.chunkBytesMax = chunkBytesMax
        self.tailBudgetBytes = tailBudgetBytes
        self.serverID = serverID
        self.journalID = journalID
        self.now = now
    }
}

/// A shard's state as recovery leaves it.
public struct RecoveredShard: ~Copyable {
    public var identity: Identity
    public var state: DurableState
    public var position: DurableState.Position
    /// Of the checkpoint that was used; 0 when there was none.
    public var checkpointSequence: UInt64
    /// Files that nothing refers to: leftovers of a crash. Segments among them are found when all shards
    /// are recovered (`ShardAssembly`).
    public var orphans: [FileName]
    public var turn = StartTurn.first
    public var report: RecoveryReport

    public consuming func takeState() -> DurableState { state }
}

public struct Recovery {
    public let storage: any RecoveryStorage
    public let options: RecoveryOptions

    public init(storage: any RecoveryStorage, options: RecoveryOptions) {
        self.storage = storage
        self.options = options
    }

    /// Where the shard's own files are: damage is named by its path below the data directory.
    private var folder: ShardFolder { ShardFolder(shard: options.shard) }

    public func run(
        progress: (RecoveryProgress) -> Void = { _ in }
    ) throws(RecoveryError) -> RecoveredShard {
        var report = RecoveryReport()
        progress(RecoveryProgress(stage: "identity"))
        let identity = try openDirectory(&report)
        var state = DurableState(
            chunkBytesMax: options.chunkBytesMax, tailBudgetBytes: options.tailBudgetBytes,
            shard: options.shard)

        progress(RecoveryProgress(stage: "checkpoint"))
        let (sequence, payload, stale) = try latestCheckpoint()
        var position = DurableState.Position(
            term: 0, termStart: 0, journal: 0, replayFrom: 0, wallTime: 0, isClean: true)
        var ends: [UInt32: UInt64] = [:]
        if let payload {
            let file = folder.path(.checkpoint(sequence))
            do throws(ByteParserError) {
                let buffer = payload
                var restored: (position: DurableState.Position, ends: [UInt32: UInt64])?
                var failure: ByteParserError?
                buffer.withUnsafeBytes { bytes in
                    do throws(ByteParserError) { restored = try state.restore(bytes) } catch {
                        failure = error
                    }
                }
                if let failure { throw failure }
                guard let restored else { throw .invalid }
                (position, ends) = restored
            } catch {
                throw .damaged(
                    file: file, offset: UInt64(CheckpointFile.headerBytes),
                    what: "its checksum holds but its contents can't be read (\(error))")
            }
        } else {
            try requireUnused(identity)
        }

        let scan = try replay(&state, identity, position, &ends, &report, progress)
        try finishPartitions(&state, position, scan, ends, &report, progress)
        try syncRecovered(identity, scan, position)

        report.term = position.term + 1
        report.wasClean = position.isClean && payload != nil
        position.journal = scan.end
        position.wallTime = max(position.wallTime, scan.lastWallTime)
        position.boot = options.boot
        return RecoveredShard(
            identity: identity, state: state, position: position, checkpointSequence: sequence,
            orphans: stale, report: report)
    }

    private func storing<T>(
        _ body: () throws(StorageFailure) -> T
    ) throws(RecoveryError) -> T {
        do throws(StorageFailure) { return try body() } catch { throw .storage(error) }
    }

    // MARK: 1. the directory

    private func openDirectory(_ report: inout RecoveryReport) throws(RecoveryError) -> Identity {
        if try storing({ () throws(StorageFailure) in try storage.size(.identity) }) != nil {
            let memory = AlignedMemory(byteCount: Identity.byteCount)
            let count = try storing { () throws(StorageFailure) in
                try storage.read(.identity, at: 0, into: memory.buffer)
            }
            let bytes = UnsafeRawBufferPointer(
                rebasing: UnsafeRawBufferPointer(memory.buffer)[..<count])
            var found: Identity?
            do throws(StorageFailure) { found = try Identity.decode(bytes, in: folder) } catch {
                // Written last when the directory is made: torn, in whatever way, it means "never in use",
                // unless something else says otherwise.
                let used = try storing { () throws(StorageFailure) in
                    try storage.list(.checkpoints).count
                        + (options.shard == 0 ? storage.list(.segments).count : 0)
                }
                guard used == 0, !Identity.isNewer(bytes) else { throw .storage(error) }
            }
            if let found {
                try storing { () throws(StorageFailure) in try syncFound(.identity) }
                return found
            }
        }
        report.isNewDirectory = true
        let identity = Identity(
            serverID: options.serverID, journalID: options.journalID, geometry: options.geometry,
            madeAt: options.now.nanoseconds)
        try storing { () throws(StorageFailure) in
            for directory in StorageDirectory.allCases
            where directory != .root || options.shard > 0 {
                try storage.makeDirectory(directory)
            }
            if options.shard > 0 { try removeLeftovers() }
            for index in 0..<identity.geometry.fileCount {
                try storage.makeZeroed(.journal(index), bytes: identity.geometry.fileBytes)
                try storage.sync(.journal(index))
            }
            try storage.syncDirectory(.journal)
            try storage.syncDirectory(.root)
            let encoded = identity.encoded
            var failure: StorageFailure?
            encoded.withUnsafeBytes { bytes in
                do throws(StorageFailure) { try storage.write(.identity, at: 0, bytes) } catch {
                    failure = error
                }
            }
            if let failure { throw failure }
            try storage.sync(.identity)
            try storage.syncDirectory(.root)
        }
        return identity
    }

    /// A shard that was retired, and not to its end, has left checkpoints: they say nothing about the one
    /// that is made now. What was removed already may come back until that is durable; the identity first,
    /// for with it the others would be missed.
    private func removeLeftovers() throws(StorageFailure) {
        try storage.syncDirectory(.root)
        for name in try storage.list(.checkpoints) {
            if let file = FileName(directory: .checkpoints, name: name) {
                try storage.remove(file)
            }
        }
        try storage.syncDirectory(.checkpoints)
    }

    // MARK: 2. the checkpoint

    private func latestCheckpoint() throws(RecoveryError) -> (UInt64, [UInt8]?, [FileName]) {
        let names = try storing { () throws(StorageFailure) in try storage.list(.checkpoints) }
        var sequences: [UInt64] = []
        for name in names {
            if case .checkpoint(let sequence)? = FileName(directory: .checkpoints, name: name),
                sequence < DurableState.countMax
            {
                sequences.append(sequence)
            }
        }
        sequences.sort(by: >)
        var stale: [FileName] = []
        for (place, sequence) in sequences.enumerated() {
            switch try storing({ () throws(StorageFailure) in
                try CheckpointFile.read(sequence, from: storage)
            }) {
            case .whole(let payload):
                try storing { () throws(StorageFailure) in
                    try syncFound(.checkpoint(sequence))
                }
                stale += sequences[(place + 1)...].map { .checkpoint($0) }
                // The next one is numbered above every name that is there: one that is torn is removed,
                // and must not take the new one with it.
                if sequence != sequences[0] { stale.append(.checkpoint(sequence)) }
                return (sequences[0], payload, stale)
            case .torn:
                stale.append(.checkpoint(sequence))
            case .newerFormat(let format):
                throw .storage(
                    StorageFailure(
                        "\(folder.path(.checkpoint(sequence))) has format \(format); this brokerd "
                            + "knows formats up to \(Identity.format). Use a newer brokerd"))
            }
        }
        return (sequences.first ?? 0, nil, stale)
    }

    /// Without a checkpoint nothing may have been confirmed: the first one comes before anybody is
    /// served.
    private func requireUnused(_ identity: Identity) throws(RecoveryError) {
        let segments = try storing { () throws(StorageFailure) in try storage.list(.segments) }
        let scanner = JournalScanner(
            storage: storage, identity: identity, limits: options.limits, folder: folder)
        // Of a shard that joins, the folder of segments is used by others.
        var isUsed = !segments.isEmpty && options.shard == 0
        do throws(RecoveryError) {
            let scan = try scanner.scan(
                from: 0, durable: 0, termStart: .init(position: 0, term: .max), progress: { _ in }
            ) { _ throws(RecoveryError) in }
            if scan.tornBytes > 0 { isUsed = true }
        } catch {
            // Groups that attest others: it is the checkpoint that is missing, not they.
            guard case .journal = error else { throw error }
            isUsed = true
        }
        guard !isUsed else {
            throw .damaged(
                file: folder.path(.checkpoints), offset: 0,
                what:
                    "the directory was in use, but no whole checkpoint is left. Restore it from a "
                    + "copy, or start on a backup")
        }
    }

    // MARK: 3. the journal

    private func replay(
        _ state: inout DurableState, _ identity: Identity, _ position: DurableState.Position,
        _ ends: inout [UInt32: UInt64], _ report: inout RecoveryReport,
        _ progress: (RecoveryProgress) -> Void
    ) throws(RecoveryError) -> JournalScan {
        var scanner = JournalScanner(
            storage: storage, identity: identity, limits: options.limits, folder: folder)
        scanner.faults = options.faults
        var step = RecoveryProgress(stage: "journal")
        progress(step)
        var entries: UInt64 = 0
        var records: UInt64 = 0
        let scan = try scanner.scan(
            from: position.replayFrom, durable: position.journal,
            termStart: .init(position: position.termStart, term: position.term),
            progress: { bytes in
                guard bytes - step.journalBytesRead >= 1 << 24 else { return }
                step.journalBytesRead = bytes
                step.entries = entries
                progress(step)
            },
            { entry throws(RecoveryError) in
                entries += 1
                let isNew = entry.position >= position.journal
                if entry.kind == .batch {
                    records += try replayBatch(&state, entry, isNew: isNew, &ends)
                    return
                }
                guard isNew else { return }
                do throws(ByteParserError) {
                    if let change = try StateChange(kind: entry.kind, payload: entry.payload) {
                        guard state.isLawful(change) else { throw .invalid }
                        let gone = partitions(thatGoWith: change, state)
                        state.apply(change)
                        for index in gone { state.forget(partition: index) }
                    }
                } catch {
                    throw .damaged(
                        file: folder.path(.journal(identity.geometry.file(of: entry.position))),
                        offset: identity.geometry.offset(of: entry.position),
                        what: "an entry of kind \(entry.kind) can't be read (\(error))")
                }
            })
        report.journalGroups = scan.groups
        report.journalEntries = scan.entries
        report.journalBytesRead = scan.bytesRead
        report.tornBytes = scan.tornBytes
        report.recordsReplayed = records
        return scan
    }

    /// The places of the partitions that nobody reads or writes once `change` is applied.
    private func partitions(
        thatGoWith change: StateChange, _ state: borrowing DurableState
    ) -> [Int32] {
        guard case .queueDeleted(let id) = change else { return [] }
        return (state.queues[id]?.partitions ?? []).compactMap { state.index(ofPartition: $0) }
    }

    /// - Returns: how many records it added.
    private func replayBatch(
        _ state: inout DurableState, _ entry: JournalEntry, isNew: Bool,
        _ ends: inout [UInt32: UInt64]
    ) throws(RecoveryError) -> UInt64 {
        // A batch of a queue that was deleted later has nowhere to go.
        guard let index = state.index(ofPartition: entry.object),
            let base = entry.payload.baseAddress
        else { return 0 }
        let partition = state.partitions[index]
        guard
            let storedBytes = StoredBatch.verify(
                base, available: entry.payload.count, partition: PartitionID(rawValue: entry.object)
            )
        else {
            throw .storage(
                StorageFailure(
                    "a batch of partition \(entry.object) in the journal at position "
                        + "\(entry.position) does not verify though its group does"))
        }
        let baseOffset = StoredBatch.baseOffset(at: base)
        let endOffset = StoredBatch.endOffset(at: base)
        guard partition.pointee.level != .memory, endOffset < DurableState.countMax else {
            throw .storage(
                StorageFailure(
                    "the journal has offsets \(baseOffset) ..< \(endOffset) of partition "
                        + "\(entry.object) at position \(entry.position): no batch that can be there"
                ))
        }
        ends[entry.object] = max(ends[entry.object] ?? 0, endOffset)
        if isNew, entry.flags & JournalEntry.carriedFlag == 0, !options.faults.sequenceNotPersisted
        {
            note(batch: base, baseOffset: baseOffset, partition: entry.object, &state)
        }
        // Below the end: it is in a segment, or was copied forward and came before. Above: its
        // predecessors were copied forward and come later; the check at the end tells if not.
        let isNext = baseOffset == partition.pointee.log.endOffset
        guard isNext else { return 0 }
        guard
            let room = partition.pointee.log.reserve(
                storedBytes: storedBytes, pool: &state.pool, now: .zero)
        else {
            throw .storage(
                StorageFailure(
                    "the tails need more than four times the \(options.tailBudgetBytes) bytes of tail "
                        + "memory; start with more"))
        }
        room.copyMemory(from: base, byteCount: storedBytes)
        partition.pointee.log.appended(
            storedBytes: storedBytes, end: endOffset,
            appendTime: StoredBatch.appendTime(at: base), journalPosition: entry.position)
        guard !BatchHeader(at: base + StoredBatch.stampBytes).isLost else {
            // Behind the segments that the checkpoint knows, so not counted in it.
            partition.pointee.lostRecords += endOffset - baseOffset
            partition.pointee.declaredLost.append(baseOffset..<endOffset)
            partition.pointee.lostIsUnjournalled = false
            if endOffset > partition.pointee.log.startOffset {
                partition.pointee.lostRanges.append(baseOffset..<endOffset)
            }
            return 0
        }
        return endOffset - baseOffset
    }

    private func note(
        batch base: UnsafeRawPointer, baseOffset: UInt64, partition: UInt32,
        _ state: inout DurableState
    ) {
        let header = BatchHeader(at: base + StoredBatch.stampBytes)
        // Segments are read after the journal: an epoch that was fenced since, or a producer that
        // expired, does not come back.
        guard header.producerID != 0, !header.isLost,
            state.producers.producers[header.producerID]?.epoch == header.producerEpoch
        else { return }
        let progress = state.producers.insert(
            header.producerID, partition, epoch: header.producerEpoch)
        progress.pointee.epoch = header.producerEpoch
        progress.pointee.stored(
            sequence: header.baseSequence, count: UInt64(header.recordCount), offset: baseOffset,
            at: StoredBatch.appendTime(at: base))
    }

    // MARK: 4. the partitions

    private func finishPartitions(
        _ state: inout DurableState, _ position: DurableState.Position, _ scan: JournalScan,
        _ ends: [UInt32: UInt64], _ report: inout RecoveryReport,
        _ progress: (RecoveryProgress) -> Void
    ) throws(RecoveryError) {
        progress(RecoveryProgress(stage: "segments"))
        let isSameRun =
            (options.boot != 0 && options.boot == position.boot)
            || options.faults.machineCrashIgnored
        let names = try storing { () throws(StorageFailure) in try storage.list(.segments) }
        var files: [UInt32: [(base: UInt64, term: UInt64)]] = [:]
        for name in names {
            if case .segment(let partition, let base, let term)? = FileName(
                directory: .segments, name: name)
            {
                files[partition, default: []].append((base, term))
            }
        }
        // For all segments: a start may read tens of thousands.
        let memory = AlignedMemory(byteCount: 1 << 16)
        for index in state.partitions.indices {
            let partition = state.partitions[index]
            let id = partition.pointee.id
            guard isHere(id, state) else {
                state.release(partition: id)
                continue
            }
            try giveUpSegments(partition, position.term, files[id] ?? [])
            for place in partition.pointee.log.segments.indices {
                try loadIndex(&partition.pointee.log.segments[place], of: partition, memory)
            }
            let level = partition.pointee.level
            if level == .memory {
                try followSegments(partition, position.term, files[id] ?? [], &state)
            }
            let start = partition.pointee.log.startOffset
            if level != .synced, partition.pointee.log.endOffset < start {
                // What a crash took had been removed before.
                partition.pointee.log.segments = []
                partition.pointee.log.dropAll(pool: &state.pool)
                partition.pointee.log.restore(endOffset: start)
                partition.pointee.lostIsUnjournalled = false
            }
            let endBefore = max(ends[id] ?? 0, start)
            if level != .memory, partition.pointee.log.endOffset < endBefore {
                let missing = partition.pointee.log.endOffset..<endBefore
                throw .damaged(
                    file: StorageDirectory.segments.rawValue, offset: 0,
                    what: "offsets \(missing) of partition \(id) are in no segment and not in the "
                        + "journal, though they were on stable storage")
            }
            let end = partition.pointee.log.endOffset
            let mayHaveLost =
                level == .memory
                || (level == .written && (!isSameRun || partition.pointee.lostIsUnjournalled))
            if mayHaveLost, try declareLost(partition, &state.pool, &report) {
                state.producers.cut(partition: id, at: end)
                partition.pointee.lostIsUnjournalled = level == .written
            }
            // What is reserved still holds, and nothing above it is on its way to the journal.
            partition.pointee.reservingEnd = partition.pointee.reservedEnd
            while partition.pointee.log.dropSegment({ _ in }) != nil {}
            partition.pointee.commit(upTo: partition.pointee.log.endOffset)
        }
    }

    /// False for what another shard has: it was on its way when the crash came, or this shard has written
    /// no checkpoint since. Its segments are the other's, who may have removed some.
    private func isHere(_ id: UInt32, _ state: borrowing DurableState) -> Bool {
        guard let placements = options.placements else {
            return state.placement(ofPartition: id) == options.shard
        }
        return Int(id) < placements.count && placements[Int(id)] == options.shard
    }

    /// Drops the segments that end at the start or below; their files may be gone already.
    ///
    /// Of a `memory` partition the checkpoint may know less than was written: the search for the rest
    /// then begins at the last file that can hold the start.
    private func giveUpSegments(
        _ partition: UnsafeMutablePointer<Partition>, _ term: UInt64,
        _ files: [(base: UInt64, term: UInt64)]
    ) throws(RecoveryError) {
        let start = partition.pointee.log.startOffset
        guard partition.pointee.level == .memory, partition.pointee.log.endOffset <= start else {
            while partition.pointee.log.dropSegment({ _ in }) != nil {}
            return
        }
        let last = partition.pointee.log.segments.last
        let next = files.filter { $0.term == term && $0.base <= start }.map(\.base).max()
        if let next, next > last?.baseOffset ?? 0 || last == nil {
            partition.pointee.log.segments = []
            partition.pointee.log.restore(endOffset: next)
            return
        }
        var kept: [SegmentInfo] = []
        if let last, last.term == term,
            let size = try storing({ () throws(StorageFailure) in
                try storage.size(last.file(partition: partition.pointee.id))
            }), size >= last.syncedBytes
        {
            kept = [last]
        }
        partition.pointee.log.segments = kept
    }

    /// Rebuilds a segment's index: from its seal, or by going from chunk header to chunk header.
    private func loadIndex(
        _ segment: inout SegmentInfo, of owner: UnsafeMutablePointer<Partition>,
        _ memory: borrowing AlignedMemory
    ) throws(RecoveryError) {
        let partition = owner.pointee.id
        let file = segment.file(partition: partition)
        guard let size = try storing({ () throws(StorageFailure) in try storage.size(file) }),
            size >= segment.syncedBytes
        else {
            throw .damaged(
                file: file.path, offset: 0,
                what: "offsets \(segment.baseOffset) ..< \(segment.syncedEndOffset) are gone: the "
                    + "file is missing or shorter than the \(segment.syncedBytes) bytes that were on "
                    + "stable storage")
        }
        if segment.isSealed, segment.isCounted,
            let header = try chunk(segment, partition, segment.sealPosition, memory),
            header.isSeal
        {
            let count = (header.bytes - ChunkHeader.byteCount) / SegmentIndexEntry.byteCount
            let base = UnsafeRawPointer(memory.base) + ChunkHeader.byteCount
            let index = (0..<count).map { place in
                let at = place * SegmentIndexEntry.byteCount
                return SegmentIndexEntry(
                    baseOffset: base.u64(at), position: base.u64(at + 8), time: base.u64(at + 16))
            }
            if segment.canHave(index: index) {
                segment.index = index
                return
            }
        }
        // Headers only: a wrong hint sends a reader to a place where it finds out.
        var at = UInt64(SegmentHeader.byteCount)
        let end = segment.syncedBytes
        while at < end {
            let block = UnsafeMutableRawBufferPointer(
                start: memory.base, count: ChunkHeader.blockBytes)
            let count = try storing { () throws(StorageFailure) in
                try storage.read(file, at: at, into: block)
            }
            let base = UnsafeRawPointer(memory.base)
            let claimed = ChunkHeader.claimedBytes(base)
            guard count == ChunkHeader.blockBytes, claimed >= ChunkHeader.byteCount,
                base.u64(48) == at
            else { return }
            let offset = base.u64(16)
            guard offset >= segment.index.last?.baseOffset ?? segment.baseOffset,
                offset < segment.endOffset
            else { return }
            if !segment.isCounted { countBatches(base, claimed, &segment, owner) }
            if base.u32(12) & ChunkHeader.sealFlag == 0 {
                let last = segment.index.last?.position ?? 0
                if segment.index.isEmpty || at - last >= SegmentIndexEntry.spacingBytes {
                    segment.index.append(
                        .init(baseOffset: offset, position: at, time: base.u64(32)))
                }
            }
            at += UInt64(claimed.roundedUp(to: ChunkHeader.blockBytes))
        }
    }

    /// What format 1 did not keep: the bytes of a segment's batches, and the lost ranges. Of those each
    /// began the tail of its term, so it is the first batch of a chunk, in the block of its header.
    private func countBatches(
        _ header: UnsafeRawPointer, _ bytes: Int, _ segment: inout SegmentInfo,
        _ partition: UnsafeMutablePointer<Partition>
    ) {
        guard header.u32(12) & ChunkHeader.sealFlag == 0 else { return }
        segment.batchBytes += UInt64(bytes - ChunkHeader.byteCount)
        segment.syncedBatchBytes = segment.batchBytes
        let batch = header + ChunkHeader.byteCount
        guard bytes > ChunkHeader.byteCount + StoredBatch.headerBytes,
            BatchHeader(at: batch + StoredBatch.stampBytes).isLost
        else { return }
        let (base, end) = (StoredBatch.baseOffset(at: batch), StoredBatch.endOffset(at: batch))
        // Of the header's bytes nothing has vouched for these.
        if base < end, end <= segment.endOffset,
            base >= partition.pointee.lostRanges.last?.upperBound ?? segment.baseOffset
        {
            partition.pointee.lostRanges.append(base..<end)
        }
    }

    /// The whole chunk at `position`, read into `memory`; `nil` when there is none, or it is larger.
    private func chunk(
        _ segment: SegmentInfo, _ partition: UInt32, _ position: UInt64,
        _ memory: borrowing AlignedMemory
    ) throws(RecoveryError) -> ChunkHeader? {
        let file = segment.file(partition: partition)
        let buffer = memory.buffer
        let count = try storing { () throws(StorageFailure) in
            try storage.read(file, at: position, into: buffer)
        }
        return ChunkHeader.decode(
            UnsafeRawPointer(memory.base), available: count, partition: partition,
            segmentBase: segment.baseOffset, term: segment.term, position: position)
    }

    /// Takes in what write-behind wrote for a `memory` partition after the checkpoint.
    private func followSegments(
        _ partition: UnsafeMutablePointer<Partition>, _ term: UInt64,
        _ files: [(base: UInt64, term: UInt64)], _ state: inout DurableState
    ) throws(RecoveryError) {
        let id = partition.pointee.id
        var memory = AlignedMemory(byteCount: options.chunkBytesMax)
        var isContinuing = true
        while true {
            let end = partition.pointee.log.endOffset
            let last = partition.pointee.log.segments.last
            var segment: SegmentInfo
            let isContinued: Bool
            if isContinuing, let last, !last.isSealed, last.term == term {
                segment = last
                isContinued = true
            } else if let next = files.first(where: { $0.base == end && $0.term == term }),
                last?.baseOffset != next.base || last?.term != next.term
            {
                segment = SegmentInfo(baseOffset: next.base, term: next.term)
                isContinued = false
                guard try hasHeader(segment, id, memory) else { return }
            } else {
                return
            }
            let before = segment.endOffset
            var at = segment.bytes
            var bytes: UInt64 = 0
            while true {
                let block = UnsafeMutableRawBufferPointer(
                    start: memory.base, count: ChunkHeader.blockBytes)
                let file = segment.file(partition: id)
                let position = at
                let size = try storing { () throws(StorageFailure) in
                    try storage.size(file) ?? 0
                }
                let count = try storing { () throws(StorageFailure) in
                    size > position ? try storage.read(file, at: position, into: block) : 0
                }
                let claimed =
                    count < ChunkHeader.byteCount
                    ? 0 : ChunkHeader.claimedBytes(UnsafeRawPointer(memory.base))
                guard claimed >= ChunkHeader.byteCount, claimed <= options.limits.groupBytesMax * 2
                else { break }
                if claimed > memory.byteCount {
                    memory = AlignedMemory(
                        byteCount: claimed.roundedUp(to: ChunkHeader.blockBytes))
                }
                // Whole with its padding: the next recovery counts on so much of the file.
                guard let header = try chunk(segment, id, at, memory),
                    size >= at + UInt64(header.paddedBytes),
                    header.isSeal
                        || header.baseOffset == segment.endOffset
                            && header.endOffset < DurableState.countMax
                            && header.isFilled(at: UnsafeRawPointer(memory.base))
                else { break }
                if !header.isSeal {
                    bytes += noteBatches(memory.base, header, partition, &state)
                    partition.pointee.log.lastAppendTime = max(
                        partition.pointee.log.lastAppendTime, header.lastTime)
                }
                segment.wrote(header)
                at = segment.bytes
                if header.isSeal { break }
            }
            segment.noteSynced()
            if segment.bytes > UInt64(SegmentHeader.byteCount) {
                let file = segment.file(partition: id)
                if !options.faults.recoveredTailNotSynced {
                    try storing { () throws(StorageFailure) in try storage.sync(file) }
                }
            }
            if isContinued {
                partition.pointee.log.segments[partition.pointee.log.segments.count - 1] = segment
            } else if segment.endOffset > segment.baseOffset {
                partition.pointee.log.segments.append(segment)
                try storing { () throws(StorageFailure) in try storage.syncDirectory(.segments) }
            }
            partition.pointee.log.restore(endOffset: max(end, segment.endOffset))
            partition.pointee.log.bytes += bytes
            // A file may have been closed without a seal: then, too, the next one begins at its end.
            let reached = segment.endOffset
            guard
                files.contains(where: {
                    $0.base == reached && $0.term == term
                        && ($0.base, $0.term) != (segment.baseOffset, segment.term)
                }), reached > before || isContinued
            else { return }
            isContinuing = false
        }
    }

    private func hasHeader(
        _ segment: SegmentInfo, _ partition: UInt32, _ memory: borrowing AlignedMemory
    ) throws(RecoveryError) -> Bool {
        let file = segment.file(partition: partition)
        let block = UnsafeMutableRawBufferPointer(
            start: memory.base, count: SegmentHeader.byteCount)
        let count = try storing { () throws(StorageFailure) in
            try storage.read(file, at: 0, into: block)
        }
        return count == SegmentHeader.byteCount
            && SegmentHeader.verify(
                UnsafeRawPointer(memory.base), partition: partition,
                baseOffset: segment.baseOffset, term: segment.term)
    }

    /// - Returns: the bytes of the batches that are kept.
    private func noteBatches(
        _ chunk: UnsafeMutableRawPointer, _ header: ChunkHeader,
        _ partition: UnsafeMutablePointer<Partition>, _ state: inout DurableState
    ) -> UInt64 {
        var bytes: UInt64 = 0
        let base = UnsafeRawPointer(chunk)
        var at = ChunkHeader.byteCount
        while at < header.bytes {
            let offset = StoredBatch.baseOffset(at: base + at)
            note(batch: base + at, baseOffset: offset, partition: partition.pointee.id, &state)
            let end = StoredBatch.endOffset(at: base + at)
            let isKept = end > partition.pointee.log.startOffset
            // Written after the checkpoint, so not counted in it.
            if BatchHeader(at: base + at + StoredBatch.stampBytes).isLost {
                partition.pointee.lostRecords += end - offset
                if isKept { partition.pointee.lostRanges.append(offset..<end) }
            }
            if isKept { bytes += UInt64(StoredBatch.bytes(at: base + at)) }
            at += StoredBatch.bytes(at: base + at)
        }
        return bytes
    }

    /// Offsets between the recovered end and the reservation may have been given to records that are
    /// gone. They become a `lost` range, and the epoch rises.
    ///
    /// - Returns: true when there is such a range; it is then the only batch of the tail.
    private func declareLost(
        _ partition: UnsafeMutablePointer<Partition>, _ pool: inout ChunkPool,
        _ report: inout RecoveryReport
    ) throws(RecoveryError) -> Bool {
        let end = partition.pointee.log.endOffset
        let reserved = partition.pointee.reservedEnd
        guard reserved > end, !options.faults.reservationIgnored else {
            partition.pointee.reservedEnd = end
            partition.pointee.reservingEnd = end
            return false
        }
        let id = partition.pointee.id
        partition.pointee.log.epoch += 1
        partition.pointee.lostRecords += reserved - end
        partition.pointee.declaredLost.append(end..<reserved)
        partition.pointee.lostRanges.append(end..<reserved)
        let time = max(partition.pointee.log.lastAppendTime, options.now.nanoseconds)
        let lost = StoredBatch.lost(
            end..<reserved, partition: PartitionID(rawValue: id),
            epoch: partition.pointee.log.epoch, appendTime: time)
        guard
            let room = partition.pointee.log.reserve(
                storedBytes: lost.count, pool: &pool, now: .zero)
        else {
            throw .storage(StorageFailure("tail memory is too small for partition \(id)"))
        }
        lost.withUnsafeBytes { bytes in
            UnsafeMutableRawBufferPointer(start: room, count: lost.count).copyMemory(from: bytes)
        }
        partition.pointee.log.appended(
            storedBytes: lost.count, end: reserved, appendTime: time, journalPosition: .max)
        partition.pointee.reservingEnd = reserved
        report.lostRanges.append(
            "partition \(id): offsets \(end) ..< \(reserved) may have been given out and are gone; "
                + "epoch \(partition.pointee.log.epoch)")
        return true
    }

    // MARK: 5. stable storage

    private func syncFound(_ file: FileName) throws(StorageFailure) {
        guard !options.faults.foundFilesNotSynced else { return }
        try storage.sync(file)
        try storage.syncDirectory(file.directory)
    }

    /// After a crash of the process alone, a write may be complete in the device's cache and not on
    /// stable storage. What recovery shows must survive the next crash too.
    private func syncRecovered(
        _ identity: Identity, _ scan: JournalScan, _ position: DurableState.Position
    ) throws(RecoveryError) {
        guard scan.end > position.journal, !options.faults.recoveredTailNotSynced else { return }
        var files: Set<Int> = []
        var at = position.journal
        while at < scan.end {
            files.insert(identity.geometry.file(of: at))
            at = identity.geometry.nextFile(after: at)
        }
        for file in files.sorted() {
            try storing { () throws(StorageFailure) in try storage.sync(.journal(file)) }
        }
    }
}
