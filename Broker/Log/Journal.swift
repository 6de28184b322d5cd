public import BrokerBasics

// How it works. Entries are staged into one open group in aligned memory. A group is closed and
// written as soon as one of two write slots is free, so whatever arrives while writes are in
// flight forms the next write; no timer is involved. Beside a write that is in flight, a group waits
// until it has half of its bytes: the first few records of a burst would otherwise take the second
// slot, and the rest of the burst a whole write longer (a write takes the disk as long with 4 KiB as
// with 128 KiB). A group that reaches its target size is closed early and waits. While several wait,
// more than two writes are in flight. Completions may come in any order and are applied in order:
// `durableGroup` is the number of the first group that is not yet known to be on stable storage.
//
// A group in which every entry is content with the kernel's word (level `written`) is written without
// a sync; `writtenGroup` counts it, `durableGroup` does not. A synced write vouches for its own bytes
// only: a device may put it on stable storage past others that wait in its cache, and a hole in front
// of it would hide it from recovery. So behind a plain write all groups are written plainly, and those
// that must be durable are followed by a sync of the file, which covers all that was complete when it
// began. A sync also comes when much is unsynced, and when the journal is idle.
//
// What bounds it: the staging memory (then `stage` answers nil and the caller waits) and the room
// between the write position and the recycle bound (the same). It never rewrites a block that holds
// durable data, and after a failed write it never confirms again.

/// The shard's append stream of everything that must survive. Pure: it asks for writes and is told
/// the results. Owned by one shard's machine.
public struct Journal: ~Copyable {
    public struct Limits: Sendable {
        /// A group is closed when it has this many bytes. Measured knee: 128 KiB.
        public var groupBytes = 128 * 1024
        /// The largest entry, header included.
        public var entryBytesMax: Int
        public var stagingBytes: Int
        /// Two writes in flight is the measured knee; four gains 4 to 10 %.
        public var inFlightMax = 2
        /// While `backlogGroups` closed groups or more wait: publishers are faster than the disk, input is
        /// parked, and what a shard takes in at a completion takes so long that the disk would be idle.
        public var backlogInFlightMax = 4
        public var backlogGroups: UInt64 = 4

        public init(entryBytesMax: Int, stagingBytes: Int) {
            self.entryBytesMax = entryBytesMax.roundedUp(to: 8)
            self.stagingBytes = stagingBytes.roundedUp(to: JournalGeometry.blockBytes)
        }
        /// The largest group, padded.
        public var groupBytesMax: Int {
            max(groupBytes, JournalGroupHeader.byteCount + entryBytesMax)
                .roundedUp(to: JournalGeometry.blockBytes)
        }
    }

    private enum SlotState { case waiting, inFlight, done }
    private struct Group {
        var number: UInt64 = 0
        var memoryOffset = 0
        var bytes = 0
        var position: UInt64 = 0
        var issuedAt = MonotonicTime.zero
        var attempts = 0
        var state = SlotState.waiting
        var needsSync = true
        var isSynced = true
    }

    /// A sync of the groups below `group`, file by file.
    private struct Sync {
        var group: UInt64
        var end: UInt64
        /// The files from here on are not asked for yet.
        var next: UInt64
        var begunAt: MonotonicTime
        var inFlight = 0
    }

    public let geometry: JournalGeometry
    public let limits: Limits
    public let term: UInt64
    private let journalID: UInt64
    private let staging: AlignedMemory
    private let groups: UnsafeMutablePointer<Group>
    private static let groupSlots = 64

    // The open group.
    private var openOffset = 0
    private var openBytes = JournalGroupHeader.byteCount
    private var openEntries = 0
    private var openNeedsSync = false
    /// The number of the open group; groups are numbered from 0 in this term.
    public private(set) var openGroup: UInt64 = 0
    // Closed groups, oldest first.
    private var firstClosed: UInt64 = 0
    private var firstWaiting: UInt64 = 0
    private var inFlight = 0
    private var inFlightBytes = 0

    // Groups that were written without a sync and that none covered since.
    private var firstPlain: UInt64?
    private var lastPlain: UInt64 = 0
    /// Of those, the ones that must be durable before they count.
    private var firstNeedingSync: UInt64?
    private var lastNeedingSync: UInt64 = 0
    private var sync: Sync?

    /// Every group below this number is written: it survives a crash of the process.
    public private(set) var writtenGroup: UInt64 = 0
    private var writtenPosition: UInt64
    /// Every group below this number is on stable storage.
    public private(set) var durableGroup: UInt64 = 0
    /// Where the next group begins.
    public private(set) var writePosition: UInt64
    /// Every position below it is on stable storage.
    public private(set) var durablePosition: UInt64
    /// The durable position that the last group with entries was followed by, on disk.
    private var attestedPosition: UInt64
    private var lastEntryEnd: UInt64
    /// Positions below it may be written over.
    public private(set) var recycleBound: UInt64
    /// Set by the first failed write; never cleared.
    public private(set) var failure: StorageFailure?

    public private(set) var bytesWritten: UInt64 = 0
    public private(set) var writes: UInt64 = 0
    /// Syncs that covered plain writes; a synced write is none.
    public private(set) var syncs: UInt64 = 0
    public var latency = LatencyHistogram()
    /// Switched on in tests only, to show that tests catch it.
    public var faults = StorageFaults()

    /// - Parameters:
    ///   - position: where recovery ended; block aligned.
    ///   - recycleBound: the first position that recovery still needs.
    public init(
        geometry: JournalGeometry, limits: Limits, journalID: UInt64, term: UInt64,
        position: UInt64, recycleBound: UInt64
    ) {
        invariant(
            UInt64(limits.groupBytesMax) <= geometry.fileBytes,
            "a group of \(limits.groupBytesMax) bytes must fit in a file of \(geometry.fileBytes)")
        invariant(
            limits.stagingBytes >= 2 * limits.groupBytesMax,
            "staging of \(limits.stagingBytes) holds two groups of \(limits.groupBytesMax)")
        self.geometry = geometry
        self.limits = limits
        self.term = term
        self.journalID = journalID
        staging = AlignedMemory(byteCount: limits.stagingBytes)
        groups = .allocate(capacity: Self.groupSlots)
        groups.initialize(repeating: Group(), count: Self.groupSlots)
        writePosition = position
        writtenPosition = position
        durablePosition = position
        attestedPosition = position
        lastEntryEnd = position
        self.recycleBound = recycleBound
    }

    deinit { groups.deallocate() }

    @inline(__always)
    private func slot(_ number: UInt64) -> UnsafeMutablePointer<Group> {
        groups + Int(number % UInt64(Self.groupSlots))
    }

    /// The memory that groups are written from, for registering with the kernel.
    public var memory: UnsafeMutableRawBufferPointer { staging.buffer }

    // MARK: staging

    /// Bytes between the recycle bound and the write position, the open group included.
    public var usedBytes: UInt64 {
        writePosition - recycleBound + UInt64(openBytes.roundedUp(to: JournalGeometry.blockBytes))
    }

    /// Makes room for an entry in the open group.
    ///
    /// - Parameters:
    ///   - reserve: journal bytes that must stay free after it: publishes leave room for acks, copies
    ///     and deletes.
    ///   - synced: false when it is enough that it is written.
    /// - Returns: where to put the payload, or `nil` when staging or journal is full for now.
    @inline(__always)
    public mutating func stage(
        _ kind: JournalEntryKind, flags: UInt8 = 0, object: UInt32, payloadBytes: Int,
        reserve: UInt64, synced: Bool = true
    ) -> UnsafeMutableRawPointer? {
        let entryBytes =
            (JournalGroupHeader.entryHeaderBytes &+ payloadBytes).roundedUp(to: 8)
        if openBytes &+ entryBytes > limits.groupBytes, openEntries > 0 {
            guard closeOpenGroup() else { return nil }
        }
        guard journalFits(entryBytes: entryBytes, reserve: reserve) else { return nil }
        if !stagingFits(entryBytes: entryBytes) {
            guard openEntries > 0, closeOpenGroup(), stagingFits(entryBytes: entryBytes) else {
                return nil
            }
        }
        let entry = staging.base + (openOffset &+ openBytes)
        entry.put(UInt32(truncatingIfNeeded: payloadBytes), 0)
        entry.put(UInt32(kind.rawValue) | UInt32(flags) << 8, 4)
        entry.put(object, 8)
        entry.put(UInt32(0), 12)
        openBytes &+= entryBytes
        openEntries &+= 1
        if synced { openNeedsSync = true }
        return entry + JournalGroupHeader.entryHeaderBytes
    }

    /// False when `stage` has nothing for such a payload until the journal is recycled; staging empties
    /// by itself.
    public func hasRoom(payloadBytes: Int, reserve: UInt64) -> Bool {
        journalFits(
            entryBytes: (JournalGroupHeader.entryHeaderBytes &+ payloadBytes).roundedUp(to: 8),
            reserve: reserve)
    }

    /// True when the open group with one more entry ends below the recycled region.
    @inline(__always)
    private func journalFits(entryBytes: Int, reserve: UInt64) -> Bool {
        let padded = (openBytes &+ entryBytes).roundedUp(to: JournalGeometry.blockBytes)
        // The rest of a file that a group does not fit into is skipped: it counts as used.
        var end = writePosition &+ UInt64(padded)
        if geometry.offset(of: writePosition) &+ UInt64(padded) > geometry.fileBytes {
            end = geometry.nextFile(after: writePosition) &+ UInt64(padded)
        }
        return end &- recycleBound &+ reserve <= geometry.capacity
    }

    /// True when the staging memory has room for the open group with one more entry. An empty open
    /// group moves to the front of the memory when it does not fit behind.
    @inline(__always)
    private mutating func stagingFits(entryBytes: Int) -> Bool {
        let padded = (openBytes &+ entryBytes).roundedUp(to: JournalGeometry.blockBytes)
        guard firstClosed < openGroup else {
            if openOffset &+ padded <= limits.stagingBytes { return true }
            guard openEntries == 0 else { return false }
            openOffset = 0
            return padded <= limits.stagingBytes
        }
        let oldest = slot(firstClosed).pointee.memoryOffset
        guard oldest < openOffset else { return openOffset &+ padded <= oldest }
        // Free: from openOffset to the end of the memory, and from its front to the oldest group.
        if openOffset &+ padded <= limits.stagingBytes { return true }
        guard openEntries == 0, padded <= oldest else { return false }
        openOffset = 0
        return true
    }

    /// Closes the open group: header, checksum, position. It then waits for a write slot.
    ///
    /// - Returns: false when the table of closed groups is full.
    private mutating func closeOpenGroup() -> Bool {
        guard openGroup - firstClosed < UInt64(Self.groupSlots - 1) else { return false }
        let padded = openBytes.roundedUp(to: JournalGeometry.blockBytes)
        let previousEnd = writePosition
        var position = writePosition
        if geometry.offset(of: position) + UInt64(padded) > geometry.fileBytes {
            position = geometry.nextFile(after: position)
        }
        slot(openGroup).initialize(
            to: Group(
                number: openGroup, memoryOffset: openOffset, bytes: openBytes, position: position,
                needsSync: openNeedsSync || openEntries == 0))
        let base = staging.base + openOffset
        // Old bytes of the staging memory must not look like data behind the group's end.
        (base + openBytes).initializeMemory(as: UInt8.self, repeating: 0, count: padded - openBytes)
        base.put(previousEnd, 24)
        base.put(UInt32(openEntries), 12)
        writePosition = position + UInt64(padded)
        if openEntries > 0 { lastEntryEnd = writePosition }
        openOffset += padded
        if openOffset + JournalGeometry.blockBytes > limits.stagingBytes { openOffset = 0 }
        openGroup += 1
        openBytes = JournalGroupHeader.byteCount
        openEntries = 0
        openNeedsSync = false
        return true
    }

    /// The group of the entry staged last.
    public var lastStagedGroup: UInt64 {
        openEntries > 0 || openGroup == 0 ? openGroup : openGroup - 1
    }

    /// Ends the open group, so that `openPosition` splits the entries staged before from those after.
    /// All groups so far become durable without anything more being staged.
    ///
    /// - Returns: false when it can't be closed now.
    public mutating func closeForSnapshot() -> Bool {
        requireSync()
        return openEntries == 0 || closeOpenGroup()
    }

    /// Somebody waits until what is staged so far is on stable storage, whoever staged it.
    public mutating func requireSync() {
        if openEntries > 0 {
            openNeedsSync = true
        } else if firstWaiting < openGroup {
            slot(openGroup - 1).pointee.needsSync = true
        } else if firstPlain != nil {
            needSync(openGroup - 1)
        }
    }

    private mutating func needSync(_ group: UInt64) {
        firstNeedingSync = min(firstNeedingSync ?? group, group)
        lastNeedingSync = max(lastNeedingSync, group)
    }

    // MARK: writing

    /// The position below which an entry staged now can't lie: what pins the journal.
    public var openPosition: UInt64 { writePosition }
    /// True when an entry is staged that is not on stable storage yet.
    public var isDirty: Bool { openEntries > 0 || durableGroup < openGroup }
    /// True when the last entries are durable but nothing on disk says so.
    public var needsSeal: Bool { !isDirty && attestedPosition < lastEntryEnd && failure == nil }

    /// True when a write or a sync is under way.
    public var awaitsDisk: Bool { inFlight > 0 || (sync?.inFlight ?? 0) > 0 }

    /// Since when the oldest write or sync is under way; `nil` when none is, or none counts any more.
    public var awaitsDiskSince: MonotonicTime? {
        guard failure == nil else { return nil }
        let syncing = sync.flatMap { $0.inFlight > 0 ? $0.begunAt : nil }
        // The oldest group that is not known to be written is one in flight, if any is.
        guard inFlight > 0 else { return syncing }
        let writing = slot(firstClosed).pointee.issuedAt
        return syncing.map { min($0, writing) } ?? writing
    }

    /// True when `nextWrite` has one without sealing.
    public var canWrite: Bool {
        failure == nil && inFlight < writesMax
            && (firstWaiting < openGroup || (openEntries > 0 && isWorthWriting))
    }

    private var writesMax: Int {
        openGroup - firstWaiting < limits.backlogGroups
            ? limits.inFlightMax : limits.backlogInFlightMax
    }

    /// True when the open group deserves a slot of its own now. Bounded: without a write in flight it
    /// always does.
    private var isWorthWriting: Bool { inFlight == 0 || openBytes &* 2 >= inFlightBytes }

    /// The next write to issue, if a slot is free and something waits.
    ///
    /// - Parameter sealing: write the open group even when it is empty, to attest what is durable.
    /// - Returns: the group's number (the caller's token) and the write.
    public mutating func nextWrite(
        now: Instant, sealing: Bool = false
    ) -> (number: UInt64, operation: StorageOperation)? {
        guard failure == nil, inFlight < writesMax else { return nil }
        if firstWaiting == openGroup {
            guard openEntries > 0 ? isWorthWriting : sealing else { return nil }
            if openEntries == 0 {
                guard journalFits(entryBytes: 0, reserve: 0), stagingFits(entryBytes: 0) else {
                    return nil
                }
            }
            guard closeOpenGroup() else { return nil }
        }
        let group = slot(firstWaiting)
        let base = staging.base + group.pointee.memoryOffset
        JournalGroupHeader(
            bytes: group.pointee.bytes, entries: Int(UnsafeRawPointer(base).u32(12)),
            position: group.pointee.position, previousEnd: UnsafeRawPointer(base).u64(24),
            attested: durablePosition, term: term, wallTime: now.wall.nanoseconds
        ).encode(at: base, journalID: journalID, seeded: !faults.checksumNotSeeded)
        let isBehindPlain = firstPlain != nil && !faults.plainWriteOvertaken
        if isBehindPlain || !group.pointee.needsSync {
            group.pointee.isSynced = false
            firstPlain = firstPlain ?? group.pointee.number
            lastPlain = group.pointee.number
            if group.pointee.needsSync { needSync(group.pointee.number) }
        }
        group.pointee.state = .inFlight
        group.pointee.issuedAt = now.monotonic
        group.pointee.attempts += 1
        let number = firstWaiting
        firstWaiting += 1
        inFlight += 1
        inFlightBytes += group.pointee.bytes
        return (number, operation(of: group))
    }

    private func operation(of group: UnsafeMutablePointer<Group>) -> StorageOperation {
        let padded = group.pointee.bytes.roundedUp(to: JournalGeometry.blockBytes)
        return .write(
            slot: FileSlot(geometry.file(of: group.pointee.position)),
            from: UnsafeRawPointer(staging.base + group.pointee.memoryOffset),
            bytes: padded,
            position: geometry.offset(of: group.pointee.position),
            synced: group.pointee.isSynced && !faults.journalNotSynced)
    }

    // MARK: syncing

    /// True when a sync is worth its while now: a group waits for it, or much is unsynced.
    private var syncIsDue: Bool {
        guard let plain = firstPlain, writtenGroup > plain else { return false }
        if let needing = firstNeedingSync, needing < writtenGroup { return true }
        return writtenPosition - durablePosition > geometry.capacity / Self.unsyncedShare
    }

    /// Plain writes are synced at the latest when so much of the journal is: a checkpoint must not wait
    /// for more.
    private static let unsyncedShare: UInt64 = 16

    /// True when everything is written, something of it is not on stable storage, and no sync is under
    /// way.
    public var isWrittenOnly: Bool {
        firstPlain != nil && openEntries == 0 && writtenGroup == openGroup && sync == nil
            && failure == nil
    }

    /// True when `nextSync` has one.
    public var canSync: Bool {
        guard failure == nil else { return false }
        guard let sync else { return syncIsDue }
        return sync.next < sync.end
    }

    /// The next file to sync, if a sync is due; the caller says so to `syncCompleted`.
    ///
    /// - Parameter isIdle: nothing came for a while: what is only written is synced too.
    public mutating func nextSync(now: MonotonicTime, isIdle: Bool = false) -> StorageOperation? {
        guard failure == nil else { return nil }
        if sync == nil {
            guard syncIsDue || (isIdle && isWrittenOnly) else { return nil }
            sync = Sync(
                group: writtenGroup, end: writtenPosition, next: durablePosition, begunAt: now)
        }
        guard var sync, sync.next < sync.end else { return nil }
        let file = geometry.file(of: sync.next)
        sync.next = geometry.nextFile(after: sync.next)
        sync.inFlight += 1
        self.sync = sync
        return .sync(slot: FileSlot(file))
    }

    /// Takes the result of a sync: 0 or a negative errno.
    ///
    /// - Returns: why the journal stops here for good, if it does.
    public mutating func syncCompleted(result: Int32) -> StorageFailure? {
        guard var sync else { return nil }
        sync.inFlight -= 1
        self.sync = sync
        guard failure == nil else { return nil }
        guard result >= 0 else {
            let failure = StorageFailure("syncing the journal failed", errno: -result)
            self.failure = failure
            return failure
        }
        guard sync.inFlight == 0, sync.next >= sync.end else { return nil }
        self.sync = nil
        syncs += 1
        durableGroup = max(durableGroup, sync.group)
        durablePosition = max(durablePosition, sync.end)
        firstPlain = lastPlain >= sync.group ? sync.group : nil
        if firstNeedingSync != nil {
            firstNeedingSync = lastNeedingSync >= sync.group ? sync.group : nil
        }
        return nil
    }

    // MARK: completions

    /// What a completion led to.
    public enum WriteResult {
        /// `durableGroup` may have moved.
        case applied
        /// A short write: the same bytes once more. They are not durable yet, so no durable block is
        /// rewritten.
        case again(StorageOperation)
        /// The journal stops here for good.
        case failed(StorageFailure)
    }

    /// Takes the result of group `number`'s write: bytes or a negative errno.
    public mutating func writeCompleted(
        number: UInt64, result: Int32, now: MonotonicTime
    ) -> WriteResult {
        let group = slot(number)
        invariant(
            group.pointee.number == number && group.pointee.state == .inFlight,
            "completion of group \(number), which is not in flight")
        let padded = group.pointee.bytes.roundedUp(to: JournalGeometry.blockBytes)
        if failure != nil {
            inFlight -= 1
            return .applied
        }
        guard result == padded else {
            if result >= 0, group.pointee.attempts < 4 {
                group.pointee.attempts += 1
                return .again(operation(of: group))
            }
            let place =
                "\(padded) bytes at \(geometry.offset(of: group.pointee.position)) of "
                + FileName.journal(geometry.file(of: group.pointee.position)).path
            let failure = StorageFailure(
                "writing \(place) failed", errno: result < 0 ? -result : 5)
            self.failure = failure
            inFlight -= 1
            return .failed(failure)
        }
        inFlight -= 1
        inFlightBytes -= group.pointee.bytes
        group.pointee.state = .done
        latency.record(now.since(group.pointee.issuedAt))
        bytesWritten += UInt64(padded)
        writes += 1
        while firstClosed < firstWaiting, slot(firstClosed).pointee.state == .done {
            let oldest = slot(firstClosed)
            let base = UnsafeRawPointer(staging.base + oldest.pointee.memoryOffset)
            attestedPosition = max(attestedPosition, base.u64(32))
            writtenPosition =
                oldest.pointee.position
                + UInt64(oldest.pointee.bytes.roundedUp(to: JournalGeometry.blockBytes))
            firstClosed += 1
            writtenGroup = max(writtenGroup, firstClosed)
            if oldest.pointee.isSynced {
                durablePosition = writtenPosition
                durableGroup = max(durableGroup, firstClosed)
            }
        }
        if faults.outOfOrderCompletion { durableGroup = max(durableGroup, number + 1) }
        return .applied
    }

    /// Frees what lies below `bound`: a durable checkpoint no longer needs it.
    public mutating func recycle(below bound: UInt64) {
        invariant(
            bound >= recycleBound && bound <= durablePosition,
            "recycle bound \(bound) outside \(recycleBound) ... \(durablePosition)")
        recycleBound = bound
    }
}

/// Ways of being wrong, each switched on by one test to show that some test catches it. All off in
/// production; see `Tests/SimulationTests/BrokenOnPurposeTests.swift`.
public struct StorageFaults: Sendable, Equatable {
    /// Journal writes complete without being on stable storage.
    public var journalNotSynced = false
    /// A recycled block's old group verifies at its old place.
    public var checksumNotSeeded = false
    /// A completion makes groups before it count as durable.
    public var outOfOrderCompletion = false
    /// Confirms leave before their group is durable.
    public var confirmBeforeSync = false
    /// Deliveries leave before their batch is committed.
    public var deliverBeforeSync = false
    /// Ack replies leave before the cursor is durable.
    public var ackBeforeSync = false
    /// Sequences are not rebuilt from the journal.
    public var sequenceNotPersisted = false
    /// The scan accepts groups of an older term behind the end of that term.
    public var oldTermAccepted = false
    /// The scan drops the last whole group.
    public var truncationOffByOne = false
    /// A new checkpoint's or segment's name is not synced.
    public var directoryNotSynced = false
    /// Segments are not synced before the checkpoint that relies on them.
    public var segmentNotSynced = false
    /// A chunk that is forced out counts as durable though its write was not synced.
    public var forcedChunkNotSynced = false
    /// The journal is recycled when a checkpoint is begun, not when it is durable.
    public var recycleBeforeCheckpoint = false
    /// The recovered tail is served without being synced first.
    public var recoveredTailNotSynced = false
    /// The identity and the checkpoint that recovery finds are taken for durable.
    public var foundFilesNotSynced = false
    /// A `memory` partition restarts at its recovered end instead of above its reservation.
    public var reservationIgnored = false
    /// A group's cursor is left out of checkpoints.
    public var cursorNotCheckpointed = false
    /// A synced write goes past plain ones that no sync covered.
    public var plainWriteOvertaken = false
    /// A batch of a `written` queue counts before its write is complete.
    public var writtenBeforeWrite = false
    /// After a crash of the machine nothing of a `written` queue is taken for lost.
    public var machineCrashIgnored = false
    /// A removed segment's file goes before the change of the start offset is durable.
    public var removedBeforeDurable = false
    /// The start offset is left out of checkpoints.
    public var startNotCheckpointed = false
    /// Other shards hear of a change before it is durable on shard 0.
    public var broadcastBeforeDurable = false
    /// A new placement counts before the new owner's checkpoint has the partition.
    public var placementBeforeAdoption = false
    /// A start takes the term of one that left files and did not end.
    public var termUsedAgain = false
    /// A partition moves without what only its tail held.
    public var movedTailNotFlushed = false
    /// When the number of shards changes, what a moved tail held is written and not synced.
    public var movedTailNotSynced = false
    /// A shard that is gone loses its identity behind its checkpoints.
    public var identityRetiredLast = false
    /// Publishes and acks go on to the old owner while a partition moves.
    public var moveNotFenced = false
    /// A move is committed before the new owner's copy is durable.
    public var adoptedBeforeDurable = false
    /// The new owner does not learn where subscriptions stood.
    public var movedReadersForgotten = false

    public init() {}
}
