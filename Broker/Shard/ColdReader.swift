internal import BrokerBasics
internal import BrokerCore
internal import LogStorage
internal import WireProtocol

// How it works. A reader older than its partition's tail stands in a stretch of a segment: ColdCache. It waits
// until the chunk at its place is there, verifies it if nobody did before, and delivers its batches like those
// of a tail. Each chunk that it opens lets it ask further ahead, from one read up to `coldAheadBytes`, so that
// the disk works while it delivers; a reader that reads one record asks for no more than that. What does not
// verify is damage: the subscription ends and says where.
//
// Who holds a stretch keeps its memory. A reader without memory waits for its turn (`wait-read`). One that has
// memory gives it up at the end of a stretch when others wait, at once when it stops for credit or reaches the
// tail, and after `stallNanoseconds` when its consumer takes nothing and others wait. So nobody waits for a
// consumer, and nobody waits for ever.

/// Where a reader stands in segments.
package struct ColdPlace {
    /// The stretch it reads; -1: it has to be found.
    var stretch: Int32 = -1
    /// The one behind, held while it is read ahead.
    var next: Int32 = -1
    // The chunk that is being delivered, in the stretch; 0 bytes: it is not opened yet.
    var chunkAt = 0
    var chunkBytes = 0
    var batchAt = 0
    /// How far ahead it asks.
    var window = 0
    /// Where it goes on in the segment; `nil`: where the index says.
    var position: (segment: SegmentKey, at: UInt64, bytes: Int)?
    /// True until its first chunk is opened, when the index, a hint, brought it there.
    var isHinted = false
}

/// What is being read from segments, and who waits.
package struct ColdReader {
    /// A segment file that is open for reading.
    struct File {
        var slot: FileSlot
        var segment: SegmentKey
        var isOpen = false
        var uses = 0
        var unusedSince = MonotonicTime.zero
    }
    /// How long a consumer that takes nothing keeps memory that others wait for.
    static let stallNanoseconds: UInt64 = .milliseconds(10)
    /// How long a file that nobody reads stays open: the next stretch may want it.
    static let unusedNanoseconds: UInt64 = .milliseconds(1)

    var cache: ColdCache
    var files: [File?] = []
    /// Files to be opened.
    var opens: [StorageRequest] = []
    /// Stretches that need a file while as many are open as may be.
    var fileless: [Int32] = []
    /// Readers that wait for memory.
    var waiting = Fifo<Int32>(capacity: 16)
    /// The one of them whose turn it is.
    var turn: Int32?
    var ready: [Int32] = []
    var lastStallScan = MonotonicTime.zero
    /// When the journal was last seen to wait for the disk.
    var journalSeen = MonotonicTime.zero
    /// What may still be delivered in this cycle.
    var bytesLeft = 0

    init(limits: ShardLimits) {
        cache = ColdCache(
            budgetBytes: limits.coldBytesMax, stretchBytes: limits.coldStretchBytes,
            stretchBytesMax: limits.coldStretchBytesMax, pieceBytes: limits.coldPieceBytes)
    }

    /// True when there is something to ask of the disk, or a reader to be tried.
    func hasWork(_ limits: ShardLimits, now: MonotonicTime, hasFileSlots: Bool) -> Bool {
        !opens.isEmpty || cache.canRead(inFlightMax: inFlightMax(limits, now: now))
            || !ready.isEmpty
            || (!fileless.isEmpty && hasFileSlots) || (!waiting.isEmpty && cache.hasRoom)
    }

    /// Reads that are under way when the journal's next write comes stand before it.
    func inFlightMax(_ limits: ShardLimits, now: MonotonicTime) -> Int {
        now.since(journalSeen) < ShardLimits.journalQuietNanoseconds
            ? min(limits.coldReadsBesideMax, limits.coldReadsMax) : limits.coldReadsMax
    }

    mutating func forget(reader: Int32) {
        guard !waiting.isEmpty else { return }
        for _ in 0..<waiting.count {
            guard let first = waiting.first else { return }
            waiting.removeFirst()
            if first != reader { waiting.append(first) }
        }
    }

    /// Memory that is taken, held or not.
    package var usedBytes: Int { cache.usedBytes }
    package var readsInFlight: Int { cache.readsInFlight }

    func free() { cache.free() }
}

extension ShardMachine {
    /// Delivers from segments, or takes a step towards it.
    ///
    /// - Returns: true when the reader should be tried again at once.
    mutating func deliverCold(
        _ index: Int32, _ reader: UnsafeMutablePointer<Reader>,
        _ partition: UnsafeMutablePointer<Partition>,
        _ subscription: UnsafeMutablePointer<Subscription>,
        _ connection: UnsafeMutablePointer<Connection>
    ) -> Bool {
        guard reader.pointee.cold.stretch >= 0 else { return locate(index, reader, partition) }
        guard reader.pointee.cold.chunkBytes > 0 else { return openChunk(index, reader, partition) }
        let held = reader.pointee.cold
        guard let memory = coldReader.cache[held.stretch].memory else { return false }
        let base = UnsafeRawPointer(memory)
        let chunkEnd = held.chunkAt + held.chunkBytes
        var at = held.batchAt
        while at < chunkEnd,
            StoredBatch.endOffset(at: base + at) <= reader.pointee.nextOffset
        {
            at += StoredBatch.bytes(at: base + at)
        }
        reader.pointee.cold.batchAt = at
        guard at < chunkEnd else {
            reader.pointee.cold.chunkAt += held.chunkBytes.roundedUp(to: ChunkHeader.blockBytes)
            reader.pointee.cold.chunkBytes = 0
            return true
        }
        guard coldReader.bytesLeft > 0 else {
            // It goes on in the next cycle.
            if !reader.pointee.isReadyForColdRead {
                reader.pointee.isReadyForColdRead = true
                coldReader.ready.append(index)
            }
            return false
        }
        let taken = deliverRun(
            reader, partition, subscription, connection, from: base + at,
            count: min(chunkEnd - at, coldReader.bytesLeft))
        coldReader.bytesLeft -= taken
        reader.pointee.cold.batchAt = at + taken
        if taken == 0 {
            waitForSend(reader, subscription, connection)
            return false
        }
        return true
    }

    // MARK: finding the place

    /// Finds the segment and place of the reader's next offset, and memory for what lies there.
    private mutating func locate(
        _ index: Int32, _ reader: UnsafeMutablePointer<Reader>,
        _ partition: UnsafeMutablePointer<Partition>
    ) -> Bool {
        let offset = reader.pointee.nextOffset
        let segments = partition.pointee.log.segments
        guard let found = segments.firstIndex(where: { $0.endOffset > offset }) else {
            // Written, but its completion is not applied yet: the tail has it.
            return damaged(
                reader, partition, "offset \(offset) is in no segment and not in memory")
        }
        let segment = key(of: segments[found], partition)
        var position = segments[found].position(of: offset)
        var chunkBytes = ChunkHeader.byteCount
        var isHinted = true
        if let known = reader.pointee.cold.position, known.segment == segment {
            (position, chunkBytes, isHinted) = (known.at, known.bytes, false)
        }
        guard
            let stretch = coldReader.cache.find(segment, at: position, bytes: chunkBytes)
                ?? take(index, segments[found], segment, position, chunkBytes)
        else {
            waitForMemory(index, reader)
            return false
        }
        coldReader.cache.hold(stretch)
        reader.pointee.cold.stretch = stretch
        reader.pointee.cold.chunkAt = Int(position - coldReader.cache[stretch].position)
        reader.pointee.cold.chunkBytes = 0
        reader.pointee.cold.position = nil
        reader.pointee.cold.isHinted = isHinted
        return true
    }

    private func key(
        of segment: SegmentInfo, _ partition: UnsafeMutablePointer<Partition>
    ) -> SegmentKey {
        SegmentKey(
            partition: partition.pointee.id, base: segment.baseOffset, term: segment.term)
    }

    /// Memory for the stretch at `position`; `nil` when there is none, or others wait for it and it is
    /// not the reader's turn.
    private mutating func take(
        _ index: Int32?, _ segment: SegmentInfo, _ key: SegmentKey, _ position: UInt64,
        _ chunkBytes: Int
    ) -> Int32? {
        let isTurn = index.map { $0 == coldReader.turn } ?? false
        guard coldReader.waiting.isEmpty || isTurn else { return nil }
        let bytes = max(segment.stretchEnd(from: position) - position, UInt64(chunkBytes))
        return coldReader.cache.take(
            key, at: position,
            bytes: Int(min(bytes, UInt64(coldReader.cache.stretchBytesMax))))
    }

    private mutating func waitForMemory(_ index: Int32, _ reader: UnsafeMutablePointer<Reader>) {
        reader.pointee.enter(.waitRead, now: now.monotonic)
        guard !reader.pointee.isQueuedForColdRead else { return }
        reader.pointee.isQueuedForColdRead = true
        coldReader.waiting.append(index)
    }

    // MARK: chunks

    /// Opens the chunk at the reader's place, when it is there; goes on where it is not.
    private mutating func openChunk(
        _ index: Int32, _ reader: UnsafeMutablePointer<Reader>,
        _ partition: UnsafeMutablePointer<Partition>
    ) -> Bool {
        let stretch = reader.pointee.cold.stretch
        let at = reader.pointee.cold.chunkAt
        let held = coldReader.cache[stretch].segment
        let position = coldReader.cache[stretch].position + UInt64(at)
        let bytes = coldReader.cache[stretch].bytes
        let segments = partition.pointee.log.segments
        guard
            let found = segments.firstIndex(where: {
                $0.baseOffset == held.base && $0.term == held.term
            }), reader.pointee.nextOffset < segments[found].endOffset
        else {
            // The segment was removed when the reader had come to its end, or ends here.
            leave(reader)
            return true
        }
        // Its last chunk ends before the segment does: looking again would not find more.
        guard position < segments[found].chunksEnd else {
            return damagedChunk(reader, partition, held, position, isItself: false)
        }
        guard at < bytes else {
            goOn(reader, held, at: position, chunkBytes: ChunkHeader.byteCount)
            return true
        }
        // What is known to be damaged is not read again.
        guard !quarantine.isDamaged(position..<position + 1, of: held) else {
            return damagedChunk(reader, partition, held, position)
        }
        guard let memory = coldReader.cache[stretch].memory else { return false }
        let chunk = UnsafeRawPointer(memory) + at
        guard coldReader.cache[stretch].filled >= at + ChunkHeader.byteCount else {
            return waitForBytes(index, reader, partition, at + ChunkHeader.byteCount)
        }
        let claimed = ChunkHeader.claimedBytes(chunk)
        if claimed > bytes - at {
            // The index is wrong, or a limit was higher once: the chunk gets a stretch of its own.
            guard claimed <= coldReader.cache.stretchBytesMax,
                UInt64(claimed) <= segments[found].chunksEnd - position,
                at > 0 || bytes < claimed
            else { return damagedChunk(reader, partition, held, position) }
            goOn(reader, held, at: position, chunkBytes: claimed)
            return true
        }
        guard coldReader.cache[stretch].filled >= at + claimed else {
            return waitForBytes(index, reader, partition, at + claimed)
        }
        guard !quarantine.isDamaged(position..<position + UInt64(claimed), of: held) else {
            return damagedChunk(reader, partition, held, position)
        }
        if !coldReader.cache[stretch].isVerified(at: at) {
            guard
                let header = ChunkHeader.decode(
                    chunk, available: bytes - at, partition: held.partition,
                    segmentBase: held.base, term: held.term, position: position),
                !header.isSeal
            else { return damagedChunk(reader, partition, held, position) }
            if header.baseOffset > reader.pointee.nextOffset {
                // The index is a hint: a wrong one is found out here, and the file is read from its start.
                let first = UInt64(SegmentHeader.byteCount)
                guard reader.pointee.cold.isHinted, position != first else {
                    return damagedChunk(reader, partition, held, position, isItself: false)
                }
                goOn(reader, held, at: first, chunkBytes: ChunkHeader.byteCount)
                return true
            }
            guard header.isFilled(at: chunk) else {
                return damagedChunk(reader, partition, held, position)
            }
            coldReader.cache[stretch].noteVerified(at: at)
        }
        reader.pointee.cold.isHinted = false
        reader.pointee.cold.chunkBytes = claimed
        reader.pointee.cold.batchAt = at + ChunkHeader.byteCount
        readAhead(reader, partition, found)
        return true
    }

    /// Gives the stretch up, and goes on where the reader's next offset lies.
    private mutating func leave(_ reader: UnsafeMutablePointer<Reader>) {
        let window = reader.pointee.cold.window
        releaseColdRead(reader)
        reader.pointee.cold.window = window
    }

    /// Gives the stretch up, and goes on at a place of the segment that is known.
    private mutating func goOn(
        _ reader: UnsafeMutablePointer<Reader>, _ segment: SegmentKey, at position: UInt64,
        chunkBytes: Int
    ) {
        leave(reader)
        reader.pointee.cold.position = (segment, position, chunkBytes)
    }

    /// Asks for what lies behind the chunk that was opened, twice as far each time.
    private mutating func readAhead(
        _ reader: UnsafeMutablePointer<Reader>, _ partition: UnsafeMutablePointer<Partition>,
        _ found: Int
    ) {
        let stretch = reader.pointee.cold.stretch
        let window = min(
            max(2 * reader.pointee.cold.window, limits.coldPieceBytes), limits.coldAheadBytes)
        reader.pointee.cold.window = window
        let reach =
            reader.pointee.cold.chunkAt + reader.pointee.cold.chunkBytes + window
        wantCold(stretch, upTo: reach)
        let bytes = coldReader.cache[stretch].bytes
        guard reach > bytes else { return }
        if reader.pointee.cold.next < 0 { holdNext(reader, partition, found) }
        if reader.pointee.cold.next >= 0 {
            wantCold(reader.pointee.cold.next, upTo: reach - bytes)
        }
    }

    /// Holds the stretch behind the reader's, in the same segment or the next one, if there is memory
    /// that nobody waits for.
    private mutating func holdNext(
        _ reader: UnsafeMutablePointer<Reader>, _ partition: UnsafeMutablePointer<Partition>,
        _ found: Int
    ) {
        let stretch = reader.pointee.cold.stretch
        var at = found
        var position =
            coldReader.cache[stretch].position + UInt64(coldReader.cache[stretch].bytes)
        if position >= partition.pointee.log.segments[at].chunksEnd {
            at += 1
            position = UInt64(SegmentHeader.byteCount)
        }
        guard at < partition.pointee.log.segments.count,
            position < partition.pointee.log.segments[at].chunksEnd
        else { return }
        let segment = partition.pointee.log.segments[at]
        let key = key(of: segment, partition)
        guard
            let next = coldReader.cache.find(key, at: position, bytes: ChunkHeader.byteCount)
                ?? take(nil, segment, key, position, ChunkHeader.byteCount)
        else { return }
        coldReader.cache.hold(next)
        reader.pointee.cold.next = next
    }

    /// Waits until the stretch's front has `bytes`, unless they can't be read.
    private mutating func waitForBytes(
        _ index: Int32, _ reader: UnsafeMutablePointer<Reader>,
        _ partition: UnsafeMutablePointer<Partition>, _ bytes: Int
    ) -> Bool {
        let stretch = reader.pointee.cold.stretch
        let held = coldReader.cache[stretch]
        if held.isBroken, held.filled >= held.brokenAt {
            guard held.errno != 0 else {
                return damagedChunk(
                    reader, partition, held.segment,
                    held.position + UInt64(reader.pointee.cold.chunkAt))
            }
            return damaged(
                reader, partition,
                "reading \(held.segment.file.path) at byte "
                    + "\(held.position + UInt64(held.brokenAt)) failed (errno \(held.errno))")
        }
        reader.pointee.enter(.reading, now: now.monotonic)
        wantCold(stretch, upTo: bytes)
        if !coldReader.cache[stretch].waiters.contains(index) {
            coldReader.cache[stretch].waiters.append(index)
        }
        return false
    }

    /// - Parameter isItself: false when what lies there may be whole, and what should lie before it is not.
    private mutating func damagedChunk(
        _ reader: UnsafeMutablePointer<Reader>, _ partition: UnsafeMutablePointer<Partition>,
        _ segment: SegmentKey, _ position: UInt64, isItself: Bool = true
    ) -> Bool {
        let offset = reader.pointee.nextOffset
        let bytes = position..<position + UInt64(ChunkHeader.blockBytes)
        if isItself, !quarantine.isDamaged(bytes, of: segment),
            quarantine.add(SegmentFlaw(bytes: bytes, offsets: offset..<offset + 1), in: segment)
        {
            counters.damagedRanges += 1
        }
        return damaged(
            reader, partition,
            "\(segment.file.path) is damaged at byte \(position): "
                + "offset \(reader.pointee.nextOffset) of partition \(partition.pointee.id) can't "
                + "be read")
    }

    /// Damage is named and never served: the subscription ends.
    private mutating func damaged(
        _ reader: UnsafeMutablePointer<Reader>, _ partition: UnsafeMutablePointer<Partition>,
        _ what: String
    ) -> Bool {
        counters.damagedChunks += 1
        events.append(.dataDamaged(what))
        endings.append(
            Ending(
                subscription: reader.pointee.subscription, status: .dataDamaged, message: what))
        return false
    }

    // MARK: what is held

    /// Gives up what the reader holds; what is being read of it is waited for first.
    mutating func releaseColdRead(_ reader: UnsafeMutablePointer<Reader>) {
        let (stretch, next) = (reader.pointee.cold.stretch, reader.pointee.cold.next)
        reader.pointee.cold = ColdPlace()
        if stretch >= 0 { releaseColdStretch(stretch) }
        if next >= 0 { releaseColdStretch(next) }
    }

    mutating func releaseColdStretch(_ stretch: Int32) {
        if coldReader.cache.release(stretch) { giveFile(stretch) }
    }

    /// Takes memory from readers whose consumers take nothing, while others wait for it.
    private mutating func releaseStalled() {
        guard now.monotonic.since(coldReader.lastStallScan) >= ColdReader.stallNanoseconds else {
            return
        }
        coldReader.lastStallScan = now.monotonic
        for place in 0..<readers.limit {
            let index = Int32(place)
            guard readers.contains(index) else { continue }
            let reader = readers[index]
            guard reader.pointee.cold.stretch >= 0, reader.pointee.state == .waitSend,
                now.monotonic.since(reader.pointee.stateSince) >= ColdReader.stallNanoseconds
            else { continue }
            releaseColdRead(reader)
        }
    }

    // MARK: the disk

    /// Memory that the kernel may still write to: the machine has to outlive that.
    package var hasReadsInFlight: Bool { coldReader.readsInFlight > 0 }

    mutating func wantCold(_ stretch: Int32, upTo bytes: Int) {
        coldReader.cache.want(stretch, upTo: bytes)
        if coldReader.cache[stretch].needsFile { takeFile(stretch) }
    }

    /// Opens the file of a stretch, unless it is open.
    private mutating func takeFile(_ stretch: Int32) {
        let segment = coldReader.cache[stretch].segment
        if let open = coldReader.files.firstIndex(where: { $0?.segment == segment }) {
            coldReader.files[open]?.uses += 1
            coldReader.cache[stretch].file = open
            coldReader.cache.list(stretch)
            return
        }
        if writeBehind.freeSlots.isEmpty { closeUnusedFiles(after: 0) }
        guard let slot = writeBehind.freeSlots.popLast() else {
            guard !coldReader.fileless.contains(stretch) else { return }
            if coldReader.fileless.isEmpty { closeIdleFiles() }
            coldReader.fileless.append(stretch)
            return
        }
        let file = ColdReader.File(slot: slot, segment: segment, uses: 1)
        let place = coldReader.files.firstIndex { $0 == nil } ?? coldReader.files.count
        if place == coldReader.files.count { coldReader.files.append(nil) }
        coldReader.files[place] = file
        coldReader.cache[stretch].file = place
        coldReader.opens.append(
            StorageRequest(
                token: Token.make(.coldOpen, UInt64(place)),
                operation: .open(slot: slot, name: segment.file, create: false)))
    }

    /// The stretch needs its file no more, for now.
    private mutating func giveFile(_ stretch: Int32) {
        let file = coldReader.cache[stretch].file
        guard file >= 0 else { return }
        coldReader.cache[stretch].file = -1
        coldReader.files[file]?.uses -= 1
        coldReader.files[file]?.unusedSince = now.monotonic
    }

    mutating func closeUnusedFiles(after nanoseconds: UInt64) {
        for place in coldReader.files.indices {
            guard let file = coldReader.files[place], file.isOpen, file.uses == 0,
                now.monotonic.since(file.unusedSince) >= nanoseconds
            else { continue }
            writeBehind.closes.append(file.slot)
            coldReader.files[place] = nil
        }
    }

    mutating func coldOpenCompleted(token: UInt64, result: Int32) {
        let place = Int(Token.value(token))
        guard let file = coldReader.files[place] else { return }
        if Self.isOutOfDescriptors(result) {
            return awaitDescriptor(
                StorageRequest(
                    token: token,
                    operation: .open(slot: file.slot, name: file.segment.file, create: false)),
                StorageFailure("opening \(file.segment.file.path) failed", errno: -result)
                    .description)
        }
        foundSpace(token)
        if result >= 0 {
            coldReader.files[place]?.isOpen = true
        } else {
            writeBehind.freeSlots.append(file.slot)
            coldReader.files[place] = nil
        }
        for stretch in coldReader.cache.stretches.indices.map({ Int32($0) })
        where coldReader.cache[stretch].file == place {
            if result >= 0 {
                coldReader.cache.list(stretch)
            } else {
                coldReader.cache[stretch].file = -1
                coldReader.cache.fail(stretch, errno: -result)
                wakeWaiters(of: stretch)
            }
        }
    }

    mutating func coldReadCompleted(token: UInt64, result: Int32) {
        let coldFiles = coldReader.files
        guard
            let stretch = coldReader.cache.completed(
                Token.value(token), result: result,
                slot: { file in coldFiles[file].flatMap { $0.isOpen ? $0.slot : nil } })
        else { return }
        let held = coldReader.cache[stretch]
        if held.inFlight == 0, held.users == 0 || held.filled == held.bytes || held.isBroken {
            giveFile(stretch)
        }
        wakeWaiters(of: stretch)
    }

    private mutating func wakeWaiters(of stretch: Int32) {
        coldReader.ready += coldReader.cache[stretch].waiters
        coldReader.cache[stretch].waiters.removeAll(keepingCapacity: true)
    }

    /// Tries the readers for whom something came, and those who wait for memory in their turn.
    mutating func advanceColdReads() {
        if journal.awaitsDisk { coldReader.journalSeen = now.monotonic }
        if !coldReader.fileless.isEmpty, !writeBehind.freeSlots.isEmpty {
            let fileless = coldReader.fileless
            coldReader.fileless = []
            for stretch in fileless where coldReader.cache[stretch].needsFile { takeFile(stretch) }
        }
        serveReady()
        if !coldReader.waiting.isEmpty { releaseStalled() }
        for _ in 0..<coldReader.waiting.count {
            guard coldReader.cache.hasRoom, let next = coldReader.waiting.first else { break }
            coldReader.waiting.removeFirst()
            guard readers.contains(next) else { continue }
            readers[next].pointee.isQueuedForColdRead = false
            coldReader.turn = next
            deliver(next)
            coldReader.turn = nil
        }
        if !coldReader.files.isEmpty {
            closeUnusedFiles(after: ColdReader.unusedNanoseconds)
        }
    }

    private mutating func serveReady() {
        guard !coldReader.ready.isEmpty else { return }
        let ready = coldReader.ready
        coldReader.ready.removeAll(keepingCapacity: true)
        for index in ready where readers.contains(index) {
            readers[index].pointee.isReadyForColdRead = false
            deliver(index)
        }
    }

    mutating func emitColdReads(into effects: inout EffectBuffer) {
        while !effects.isFull, !coldReader.opens.isEmpty {
            effects.append(.storage(coldReader.opens.removeFirst()))
        }
        let inFlightMax = coldReader.inFlightMax(limits, now: now.monotonic)
        guard stage != .stopped, coldReader.cache.canRead(inFlightMax: inFlightMax) else { return }
        let coldFiles = coldReader.files
        while !effects.isFull,
            let request = coldReader.cache.nextRead(
                inFlightMax: inFlightMax,
                slot: { file in coldFiles[file].flatMap { $0.isOpen ? $0.slot : nil } })
        {
            counters.coldReads += 1
            if case .read(_, _, let bytes, _) = request.operation {
                counters.coldReadBytes += UInt64(bytes)
            }
            effects.append(.storage(request))
        }
    }
}

extension SegmentInfo {
    /// Where its chunks end; behind is the seal, or nothing that counts.
    var chunksEnd: UInt64 { isSealed ? sealPosition : bytes }

    /// Where the stretch that begins at `position` ends: where the index points next.
    func stretchEnd(from position: UInt64) -> UInt64 {
        min(index.first { $0.position > position }?.position ?? chunksEnd, chunksEnd)
    }
}
