internal import BrokerBasics
internal import BrokerCore
internal import LogStorage
internal import WireProtocol

// How it works. A checkpoint lets the journal be recycled. In order: what pins the journal is written
// behind or copied forward; the segments that were written to are synced, then their names; the
// state is taken at a group boundary; when the journal is durable up to there, the state goes to a new
// file, is synced, and its name too; then, and only then, the journal is recycled and the checkpoint
// before is removed.

/// The shard's checkpoint in the making.
package struct Checkpointer {
    package enum Phase: UInt8, Sendable {
        case idle
        case flushing
        case syncing
        case syncingNames
        case waitingForJournal
        case opening
        case writing
        case syncingFile
        case syncingItsName
    }
    struct Sync {
        var partition: Int32
        var partitionID: UInt32
        var slot: FileSlot
        var base: UInt64
        var term: UInt64
        var endOffset: UInt64
        var bytes: UInt64
        var batchBytes: UInt64
        var closes: Bool
    }

    static let pieceBytes = 1 << 20
    /// How long `ShardLimits.syncsPerSpan` syncs have to do.
    static let syncSpanNanoseconds: UInt64 = .milliseconds(1)

    let term: UInt64
    let termStart: UInt64
    package private(set) var phase = Phase.idle
    package var isDue = false
    /// A publish found no room: the next one waits for all that is old.
    var isPressed = false
    /// The last one found partitions with a reservation that were not quiet yet: another comes.
    fileprivate var reservationsRemain = false
    package fileprivate(set) var sequence: UInt64
    var awaitedChunks = 0
    var removals: [FileName] = []
    fileprivate var syncs: [Sync] = []
    fileprivate var syncing: [Sync?] = []
    fileprivate var syncsLeft = 0
    fileprivate var syncsInFlight = 0
    /// Syncs may begin again then, when those of this span are used up.
    private var syncSpanEnd = MonotonicTime.zero
    private var syncsLeftInSpan = 0
    /// The journal fills up: syncs come as fast as they go.
    fileprivate var isHurried = false
    fileprivate var requests: [StorageRequest] = []
    /// The step of the checkpoint's file that is under way.
    fileprivate var lastStep: StorageRequest?
    fileprivate var memory: UnsafeMutableRawPointer?
    fileprivate var memoryBytes = 0
    fileprivate var writtenBytes = 0
    /// Its own, for good: a checkpoint may be what gives others theirs.
    fileprivate let slot: FileSlot
    fileprivate var neededGroup: UInt64 = 0
    fileprivate var replayFrom: UInt64 = 0
    fileprivate var takenAt: UInt64 = 0
    fileprivate(set) var isFinal = false
    package fileprivate(set) var lastPosition: UInt64
    fileprivate var lastAt: MonotonicTime
    package fileprivate(set) var finalIsDone = false

    init(
        term: UInt64, termStart: UInt64, sequence: UInt64, lastPosition: UInt64,
        now: MonotonicTime, slot: FileSlot
    ) {
        self.slot = slot
        self.term = term
        self.termStart = termStart
        self.sequence = sequence
        self.lastPosition = lastPosition
        lastAt = now
    }

    fileprivate mutating func enter(_ next: Phase) { phase = next }

    /// True when one is under way, and what it will say is settled.
    var hasSnapshot: Bool {
        switch phase {
        case .waitingForJournal, .opening, .writing, .syncingFile, .syncingItsName: true
        case .idle, .flushing, .syncing, .syncingNames: false
        }
    }

    /// Gives up the memory of a checkpoint that is under way.
    func free() { memory?.deallocate() }

    /// True when `emitCheckpoint` would have something to say; files to remove are not counted.
    func hasRequests(_ limits: ShardLimits, now: MonotonicTime) -> Bool {
        !requests.isEmpty
            || (syncsAreWaiting(limits) && (isHurried || syncsLeftInSpan > 0 || now >= syncSpanEnd))
    }

    /// When syncs that wait for their time may begin; `never` when there are none.
    func syncsResumeAt(_ limits: ShardLimits) -> MonotonicTime {
        syncsAreWaiting(limits) ? syncSpanEnd : .never
    }

    private func syncsAreWaiting(_ limits: ShardLimits) -> Bool {
        phase == .syncing && !syncs.isEmpty && syncsInFlight < limits.syncsMax
    }

    /// The next sync to begin, if one may.
    fileprivate mutating func takeSync(_ limits: ShardLimits, now: MonotonicTime) -> Sync? {
        guard syncsAreWaiting(limits) else { return nil }
        if now >= syncSpanEnd {
            syncSpanEnd = now + Self.syncSpanNanoseconds
            syncsLeftInSpan = limits.syncsPerSpan
        }
        guard isHurried || syncsLeftInSpan > 0 else { return nil }
        syncsLeftInSpan = max(0, syncsLeftInSpan - 1)
        return syncs.popLast()
    }
}

extension ShardMachine {
    /// Takes the checkpoint a step further when what it waits for has come.
    mutating func advanceCheckpoint() {
        guard !hasFailed else { return }
        switch checkpointer.phase {
        case .idle:
            if checkpointIsDue { beginCheckpoint() }
        case .flushing:
            if checkpointer.awaitedChunks > 0, writeBehind.isStuck { giveUpWaiting() }
            if checkpointer.awaitedChunks > 0, !hold.isIdle, !checkpointer.isFinal {
                stopAwaitingAll()
            }
            if checkpointer.awaitedChunks == 0 { beginSyncs() }
        case .syncing:
            if checkpointer.syncsLeft == 0 { syncSegmentNames() }
        case .waitingForJournal:
            if journal.durableGroup >= checkpointer.neededGroup { openCheckpoint() }
        case .syncingNames, .opening, .writing, .syncingFile, .syncingItsName: break
        }
    }

    private var checkpointIsDue: Bool {
        if stage == .starting { return mayBeginFirstCheckpoint }
        if stage == .stopped { return false }
        if stage == .stopping { return stopMayFinish && !checkpointer.finalIsDone }
        if backup.holdsCheckpoints { return false }
        if checkpointer.isDue { return true }
        let grown = journal.openPosition - checkpointer.lastPosition
        if grown > marks.checkpointGrowth { return true }
        if journal.usedBytes > marks.checkpointUse, grown > marks.checkpointGrowthMin {
            return true
        }
        // Publishes wait for it, and nothing may be new: it waits for all that is old, so one is enough.
        if isUnderPressure { return true }
        if writeBehind.unsyncedBytes > limits.tailBytesMax / 4 { return true }
        return (grown > 0 || writeBehind.unsyncedBytes > 0 || checkpointer.reservationsRemain)
            && now.monotonic.since(checkpointer.lastAt) > limits.checkpointAfterNanoseconds
    }

    private mutating func beginCheckpoint() {
        checkpointer.isDue = false
        checkpointer.awaitedChunks = 0
        checkpointer.isFinal = stage == .stopping
        if stage != .starting { unpin() }
        checkpointer.enter(.flushing)
        advanceCheckpoint()
    }

    /// More partitions have something to write than files can be open: those that are open are synced
    /// first, which lets them be closed, and the next checkpoint goes on from there.
    private mutating func giveUpWaiting() {
        checkpointer.isFinal = false
        for index in state.partitions.indices { stopAwaiting(state.partitions[index]) }
    }

    /// What was written and is not synced, of one partition or of all; the caller syncs it.
    mutating func takeSyncs(of only: Int32? = nil) -> [Checkpointer.Sync] {
        let taken = writeBehind.rolled.filter { only == nil || $0.partition == only }
        var syncs = taken.map { rolled in
            guard let index = state.index(ofPartition: rolled.partitionID) else {
                // Deleted in between: close it, its file is removed.
                return Checkpointer.Sync(
                    partition: -1, partitionID: rolled.partitionID, slot: rolled.slot, base: 0,
                    term: 0, endOffset: 0, bytes: 0, batchBytes: 0, closes: true)
            }
            let segment = state.partitions[index].pointee.log.segments.first {
                $0.baseOffset == rolled.base && $0.term == rolled.term
            }
            return Checkpointer.Sync(
                partition: index, partitionID: rolled.partitionID, slot: rolled.slot,
                base: rolled.base, term: rolled.term, endOffset: segment?.endOffset ?? 0,
                bytes: segment?.bytes ?? 0, batchBytes: segment?.batchBytes ?? 0, closes: true)
        }
        writeBehind.rolled.removeAll { only == nil || $0.partition == only }
        let places = only.map { Int($0)..<Int($0) + 1 } ?? 0..<state.partitions.limit
        for place in places {
            let index = Int32(place)
            guard state.partitions.contains(index) else { continue }
            let partition = state.partitions[index]
            guard partition.pointee.file.isUnsynced, !partition.pointee.isDeleted,
                partition.pointee.file.state == .ready,
                let segment = partition.pointee.log.segments.last
            else { continue }
            // What is in flight now is synced by the next checkpoint.
            partition.pointee.file.isUnsynced = partition.pointee.file.writesInFlight > 0
            syncs.append(
                Checkpointer.Sync(
                    partition: index, partitionID: partition.pointee.id,
                    slot: partition.pointee.file.slot, base: segment.baseOffset,
                    term: segment.term, endOffset: segment.endOffset, bytes: segment.bytes,
                    batchBytes: segment.batchBytes, closes: false))
            // Until this one is done, nothing closes the file.
            partition.pointee.file.writesInFlight += 1
        }
        return syncs
    }

    private mutating func beginSyncs() {
        checkpointer.syncs = takeSyncs()
        writeBehind.unsyncedBytes = 0
        checkpointer.syncsLeft = checkpointer.syncs.count
        checkpointer.syncing = []
        checkpointer.enter(.syncing)
        if faults.segmentNotSynced {
            for sync in checkpointer.syncs { synced(sync) }
            checkpointer.syncs = []
            checkpointer.syncsLeft = 0
        }
        if checkpointer.syncsLeft == 0 { syncSegmentNames() }
    }

    /// A segment is on stable storage up to what a sync covered.
    mutating func synced(_ sync: Checkpointer.Sync) {
        if sync.closes { writeBehind.closes.append(sync.slot) }
        guard sync.partition >= 0, state.partitions.contains(sync.partition),
            state.partitions[sync.partition].pointee.id == sync.partitionID
        else { return }
        let partition = state.partitions[sync.partition]
        if !sync.closes {
            partition.pointee.file.writesInFlight -= 1
            // A full file was not sealed as long as this was under way.
            queueForWriting(sync.partition)
        }
        guard
            let place = partition.pointee.log.segments.lastIndex(where: {
                $0.baseOffset == sync.base && $0.term == sync.term
            })
        else { return }
        let segment = partition.pointee.log.segments[place]
        partition.pointee.log.segments[place].syncedEndOffset = max(
            segment.syncedEndOffset, sync.endOffset)
        partition.pointee.log.segments[place].syncedBytes = max(segment.syncedBytes, sync.bytes)
        partition.pointee.log.segments[place].syncedBatchBytes = max(
            segment.syncedBatchBytes, sync.batchBytes)
        var chunk = partition.pointee.log.oldest
        while let current = chunk {
            chunk = current.pointee.next
            if current.pointee.state == .durable { continue }
            guard current.pointee.state == .written, current.pointee.endOffset <= sync.endOffset
            else { break }
            current.pointee.state = .durable
            if !partition.pointee.isDeleted { writeBehind.listDurable(current) }
        }
    }

    private mutating func syncSegmentNames() {
        guard writeBehind.needsDirectorySync, !faults.directoryNotSynced else {
            return takeSnapshot()
        }
        writeBehind.needsDirectorySync = false
        checkpointer.enter(.syncingNames)
        checkpointer.requests.append(
            StorageRequest(
                token: Token.make(.syncDirectory, 0), operation: .syncDirectory(.segments)))
    }

    private mutating func takeSnapshot() {
        // A move syncs what it found; what this checkpoint did not has to be there as well.
        guard peers.handOverSyncs.isEmpty, !peers.syncsNames, journal.closeForSnapshot() else {
            checkpointer.enter(.syncing)
            return
        }
        let position = journal.openPosition
        var replayFrom = position
        checkpointer.reservationsRemain = false
        for place in 0..<state.partitions.limit {
            let index = Int32(place)
            guard state.partitions.contains(index), !state.partitions[index].pointee.isDeleted
            else { continue }
            let partition = state.partitions[index]
            replayFrom = min(replayFrom, partition.pointee.log.journalPin)
            giveReservationBack(partition)
        }
        let payload = state.snapshot(
            at: DurableState.Position(
                term: checkpointer.term, termStart: checkpointer.termStart, journal: position,
                replayFrom: replayFrom,
                wallTime: max(now.wall.nanoseconds, writeBehind.lastWall),
                isClean: checkpointer.isFinal, boot: boot),
            faults: faults)
        checkpointer.sequence += 1
        let file = CheckpointFile.encode(payload: payload, sequence: checkpointer.sequence)
        checkpointer.memoryBytes = file.byteCount
        let memory = UnsafeMutableRawPointer.allocate(
            byteCount: file.byteCount, alignment: AlignedMemory.alignment)
        memory.copyMemory(from: file.base, byteCount: file.byteCount)
        checkpointer.memory = memory
        checkpointer.writtenBytes = 0
        checkpointer.neededGroup = journal.openGroup
        checkpointer.replayFrom = replayFrom
        checkpointer.takenAt = position
        checkpointer.enter(.waitingForJournal)
        if faults.recycleBeforeCheckpoint, replayFrom <= journal.durablePosition {
            journal.recycle(below: max(replayFrom, journal.recycleBound))
        }
        advanceCheckpoint()
    }

    /// A quiet partition gives its reservation back: a crash then takes nothing. What it has is durable
    /// when this checkpoint counts: in synced segments, or, at `written`, in the journal below.
    private mutating func giveReservationBack(_ partition: UnsafeMutablePointer<Partition>) {
        let end = partition.pointee.log.endOffset
        let isQuiet =
            partition.pointee.log.durableEnd == end
            || (partition.pointee.level == .written && partition.pointee.checkpointedEnd == end)
        partition.pointee.checkpointedEnd = end
        guard partition.pointee.level != .synced, partition.pointee.reservedEnd > end else {
            return
        }
        guard isQuiet, partition.pointee.reservedEnd == partition.pointee.reservingEnd else {
            checkpointer.reservationsRemain = true
            return
        }
        partition.pointee.reservedEnd = end
        partition.pointee.reservingEnd = end
    }

    private mutating func openCheckpoint() {
        checkpointer.enter(.opening)
        checkpointer.requests.append(
            StorageRequest(
                token: Token.make(.checkpoint, 0),
                operation: .open(
                    slot: checkpointer.slot, name: .checkpoint(checkpointer.sequence), create: true)
            ))
    }

    mutating func emitCheckpoint(into effects: inout EffectBuffer) {
        checkpointer.isHurried =
            stage != .ready || journal.usedBytes > marks.hurriedUse
        while !effects.isFull, let sync = checkpointer.takeSync(limits, now: now.monotonic) {
            checkpointer.syncing.append(sync)
            checkpointer.syncsInFlight += 1
            effects.append(
                .storage(
                    StorageRequest(
                        token: Token.make(.sync, UInt64(checkpointer.syncing.count - 1)),
                        operation: .sync(slot: sync.slot))))
        }
        while !effects.isFull, !checkpointer.requests.isEmpty {
            let request = checkpointer.requests.removeFirst()
            if Token.kind(request.token) == .checkpoint { checkpointer.lastStep = request }
            effects.append(.storage(request))
        }
        // What nothing refers to any more, a few at a time.
        var removals = 0
        while stage != .starting, !effects.isFull, removals < 4, let name = takeRemoval() {
            removals += 1
            effects.append(
                .storage(
                    StorageRequest(token: Token.make(.ignored, 0), operation: .remove(name))))
        }
    }

    /// True when a file may be removed now. A backup holds those that it has not copied; old checkpoints,
    /// which it has, would fill the disk.
    var mayRemove: Bool {
        guard backup.holdsFiles else { return !checkpointer.removals.isEmpty }
        return !backup.holdsAllFiles && checkpointer.removals.last?.directory == .checkpoints
    }

    private mutating func takeRemoval() -> FileName? {
        guard mayRemove else { return nil }
        return checkpointer.removals.popLast()
    }

    /// What the operation with `token` was to do, for a person.
    private func attempt(_ token: UInt64) -> String {
        let file = FileName.checkpoint(checkpointer.sequence).path
        switch Token.kind(token) {
        case .sync:
            let place = Int(Token.value(token))
            guard place < checkpointer.syncing.count, let sync = checkpointer.syncing[place] else {
                return "syncing a segment"
            }
            let name = FileName.segment(
                partition: sync.partitionID, baseOffset: sync.base, term: sync.term)
            return "syncing \(name.path)"
        case .syncDirectory: return "syncing the names in segments"
        default:
            switch checkpointer.phase {
            case .opening: return "making \(file)"
            case .writing: return "writing at byte \(checkpointer.writtenBytes) of \(file)"
            case .syncingItsName: return "syncing the names in checkpoints"
            default: return "syncing \(file)"
            }
        }
    }

    mutating func checkpointCompleted(token: UInt64, result: Int32) {
        if Self.isOutOfSpace(result), Token.kind(token) == .checkpoint,
            checkpointer.phase == .opening || checkpointer.phase == .writing,
            let step = checkpointer.lastStep
        {
            let what = StorageFailure("\(attempt(token)) failed", errno: -result)
            return holdBack(step, what.description)
        }
        if Self.isOutOfDescriptors(result), Token.kind(token) == .checkpoint,
            checkpointer.phase == .opening, let step = checkpointer.lastStep
        {
            let what = StorageFailure("\(attempt(token)) failed", errno: -result)
            return awaitDescriptor(step, what.description)
        }
        guard result >= 0 else {
            return storageFailed(StorageFailure("\(attempt(token)) failed", errno: -result))
        }
        switch Token.kind(token) {
        case .sync:
            let place = Int(Token.value(token))
            guard place < checkpointer.syncing.count, let sync = checkpointer.syncing[place] else {
                return
            }
            checkpointer.syncing[place] = nil
            checkpointer.syncsInFlight -= 1
            checkpointer.syncsLeft -= 1
            synced(sync)
        case .syncDirectory:
            takeSnapshot()
        default:
            foundSpace(token)
            checkpointStep(result)
        }
    }

    private mutating func checkpointStep(_ result: Int32) {
        let token = Token.make(.checkpoint, 0)
        switch checkpointer.phase {
        case .opening, .writing:
            if checkpointer.phase == .writing { checkpointer.writtenBytes += Int(result) }
            checkpointer.enter(.writing)
            let left = checkpointer.memoryBytes - checkpointer.writtenBytes
            guard left > 0, let memory = checkpointer.memory else {
                checkpointer.enter(.syncingFile)
                checkpointer.requests.append(
                    StorageRequest(token: token, operation: .sync(slot: checkpointer.slot)))
                return
            }
            guard checkpointer.writtenBytes % JournalGeometry.blockBytes == 0 else {
                return storageFailed(
                    StorageFailure(
                        "writing \(FileName.checkpoint(checkpointer.sequence).path) failed: it was "
                            + "written to byte \(checkpointer.writtenBytes) only", errno: 5))
            }
            checkpointer.requests.append(
                StorageRequest(
                    token: token,
                    operation: .write(
                        slot: checkpointer.slot,
                        from: UnsafeRawPointer(memory) + checkpointer.writtenBytes,
                        bytes: min(left, Checkpointer.pieceBytes),
                        position: UInt64(checkpointer.writtenBytes), synced: false)))
        case .syncingFile:
            checkpointer.requests.append(
                StorageRequest(
                    token: Token.make(.ignored, 0), operation: .close(slot: checkpointer.slot)))
            checkpointer.memory?.deallocate()
            checkpointer.memory = nil
            if faults.directoryNotSynced { return checkpointDone() }
            checkpointer.enter(.syncingItsName)
            checkpointer.requests.append(
                StorageRequest(token: token, operation: .syncDirectory(.checkpoints)))
        case .syncingItsName: checkpointDone()
        case .idle, .flushing, .syncing, .syncingNames, .waitingForJournal: break
        }
    }

    private mutating func checkpointDone() {
        counters.checkpoints += 1
        counters.checkpointBytes += UInt64(checkpointer.memoryBytes)
        if checkpointer.replayFrom > journal.recycleBound {
            journal.recycle(below: checkpointer.replayFrom)
        }
        checkpointer.lastPosition = checkpointer.takenAt
        checkpointer.lastAt = now.monotonic
        if checkpointer.sequence > 1 {
            checkpointer.removals.append(.checkpoint(checkpointer.sequence - 1))
        }
        checkpointer.enter(.idle)
        if checkpointer.isFinal { checkpointer.finalIsDone = true }
        if stage == .starting { firstCheckpointIsDone() }
        if !writeBehind.starved.isEmpty { closeIdleFiles() }
        wakesParked = true
    }

    // MARK: the end

    /// Begins an orderly stop: no new work; what is promised is brought to disk.
    package mutating func beginStop() {
        // Of several shards, none may write its checkpoint out of turn: a stop waits for the start.
        guard stage == .ready || (stage == .starting && (peers.isAlone || hasFailed)) else {
            return
        }
        stage = .stopping
        stopDeadline = now.monotonic + .seconds(5)
        for index in connections.indices where connections[index].pointee.state == .ready {
            let refusal = Refusal(
                errorClass: StatusCode.shuttingDown.errorClass.rawValue,
                message: "the server is stopping")
            push(.goodbye, stream: 0, status: .shuttingDown, refusal, to: index)
        }
    }

    /// True when every promised answer is out, or the time for it is over.
    private var stopMayFinish: Bool {
        (waitingList.isEmpty && immediateList.isEmpty && !journal.isDirty && sendList.isEmpty
            && peers.isQuiet)
            || now.monotonic >= stopDeadline
    }

    mutating func advanceStop() {
        guard stage == .stopping, checkpointer.finalIsDone || hasFailed else { return }
        stage = .stopped
        if peers.isAlone { closeSockets() }
    }

    /// Nothing more comes for anybody: of several shards, when all have stopped. Their links stay, for
    /// what is on its way over them.
    package mutating func closeSockets() {
        for index in connections.indices where connections[index].pointee.relay == nil {
            close(index, reason: .stopping)
        }
    }
}
