internal import BrokerBasics
internal import BrokerCore
internal import LogStorage
internal import WireProtocol

// How it works. A pass goes over the segments of all partitions as far as they are on stable storage, one after the
// other, through the memory of old records and by the walk that `--check-only` takes. It may read so many bytes per
// second, and reads nothing while the disk has better to do: while the journal is more than half full, segments are
// being written, or readers wait for memory. What is damaged is named once, in the log, and remembered: who reads
// there is told at once, without the disk. After a restart it is found again, by a reader or by the next pass.
//
// What can't be read (EIO) is named too, and the rest of that segment left to the next pass: it may be read then.
//
// A check that somebody asks for comes before the pass that comes by itself, which goes on behind it with the segment
// that it was at; a check of everything takes its place. Those that are asked for go one after the other.

/// The check of segments that goes on while the shard serves.
package struct Scrubber {
    /// A check from its beginning to its end.
    fileprivate struct Round {
        /// From 1; 0: it came by itself.
        var number: UInt64 = 0
        /// `nil`: all.
        var queue: UInt32?
        /// Bytes per second.
        var bandwidth: UInt64
        var hasBegun = false
        /// Those that are left; the last one is next, or under way.
        var partitions: [UInt32] = []
        /// Of the last one, segments below this offset are done; `nil`: it has not begun.
        var from: UInt64?
        /// Of the last one: what was read, and segments that could not be to their end.
        var partitionBytes: UInt64 = 0
        var unreadSegments: UInt32 = 0
        /// Of the segment under way.
        var segmentBytes: UInt64 = 0
        /// What was checked of what there was when it began.
        var passedBytes: UInt64 = 0
        var passBytes: UInt64 = 0
    }

    /// When the last check of a partition came to its end, and what it read.
    struct Verified {
        /// Nanoseconds since 1970.
        var at: UInt64
        var bytes: UInt64
        var unreadSegments: UInt32
    }

    /// Checks that wait for those before them; more are refused.
    static let askedMax = 16

    /// The first of them is under way.
    fileprivate var asked: [Round] = []
    fileprivate var own: Round?
    fileprivate var lastNumber: UInt64 = 0
    /// Of the checks that were asked for, the last that began, and the last that came to its end.
    fileprivate var begun: UInt64 = 0
    fileprivate var done: UInt64 = 0
    fileprivate var verified: [UInt32: Verified] = [:]

    fileprivate var walk: SegmentWalk?
    fileprivate var isHeaderChecked = false
    fileprivate var stretch: Int32 = -1
    /// What must lie in the stretch at the walk's place.
    fileprivate var bytesMin = ChunkHeader.byteCount
    fileprivate var named = 0
    fileprivate var nextPass = MonotonicTime.zero

    // What may be read now, in bytes.
    fileprivate var allowance = 0
    fileprivate var allowanceAt = MonotonicTime.zero

    /// Of the check that goes on, or else of the last: what was checked of what there was when it began.
    package fileprivate(set) var passedBytes: UInt64 = 0
    package fileprivate(set) var passBytes: UInt64 = 0
    /// Checks of everything.
    package fileprivate(set) var passes: UInt64 = 0
    /// Nanoseconds since 1970; 0: no pass has come to its end.
    package fileprivate(set) var lastPass: UInt64 = 0

    fileprivate var isRunning: Bool { !asked.isEmpty || own != nil }

    /// The check that goes on.
    fileprivate var round: Round? {
        get { asked.first ?? own }
        set {
            guard let newValue else { return }
            if asked.isEmpty { own = newValue } else { asked[0] = newValue }
            passedBytes = newValue.passedBytes
            passBytes = newValue.passBytes
        }
    }

    /// Takes in a check that somebody asks for.
    ///
    /// - Returns: its number; that of one which waits and checks the same; `nil` when too many wait.
    mutating func ask(queue: UInt32?, bandwidth: UInt64) -> UInt64? {
        if let last = asked.last, !last.hasBegun, last.queue == queue, last.bandwidth == bandwidth {
            return last.number
        }
        guard asked.count < Self.askedMax else { return nil }
        if asked.isEmpty { setAside() }
        lastNumber += 1
        asked.append(Round(number: lastNumber, queue: queue, bandwidth: bandwidth))
        return lastNumber
    }

    /// The pass that goes on by itself begins its segment anew when it goes on.
    private mutating func setAside() {
        guard let walk, var round = own else { return }
        round.from = walk.base
        round.passedBytes -= round.segmentBytes
        round.partitionBytes -= round.segmentBytes
        round.segmentBytes = 0
        own = round
        self.walk = nil
    }

    fileprivate mutating func checked(_ bytes: UInt64) {
        round?.segmentBytes += bytes
        round?.partitionBytes += bytes
        round?.passedBytes += bytes
    }

    func verification(ofPartition id: UInt32) -> Verified? { verified[id] }
    var numbers: (begun: UInt64, done: UInt64) { (begun, done) }

    package var progressPercent: UInt64 {
        guard isRunning else { return 100 }
        return passBytes == 0 ? 0 : min(100, passedBytes * 100 / passBytes)
    }
}

/// What is known to be damaged. It is served never.
struct Quarantine {
    private var flaws: [SegmentKey: [SegmentFlaw]] = [:]

    var isEmpty: Bool { flaws.isEmpty }
    var count: Int { flaws.values.reduce(0) { $0 + $1.count } }
    var bytes: UInt64 {
        flaws.values.reduce(0) { sum, known in
            known.reduce(sum) { $0 + $1.bytes.upperBound - $1.bytes.lowerBound }
        }
    }

    /// In the order of their place in the file.
    func flaws(of segment: SegmentKey) -> [SegmentFlaw] {
        (flaws[segment] ?? []).sorted { $0.bytes.lowerBound < $1.bytes.lowerBound }
    }

    /// - Returns: false when it is known.
    mutating func add(_ flaw: SegmentFlaw, in segment: SegmentKey) -> Bool {
        var known = flaws[segment] ?? []
        guard !known.contains(where: { Self.covers($0.bytes, flaw.bytes) }) else { return false }
        known.removeAll { Self.covers(flaw.bytes, $0.bytes) }
        flaws[segment] = known + [flaw]
        return true
    }

    private static func covers(_ outer: Range<UInt64>, _ inner: Range<UInt64>) -> Bool {
        outer.lowerBound <= inner.lowerBound && inner.upperBound <= outer.upperBound
    }

    func isDamaged(_ bytes: Range<UInt64>, of segment: SegmentKey) -> Bool {
        guard !flaws.isEmpty, let known = flaws[segment] else { return false }
        return known.contains { $0.bytes.overlaps(bytes) }
    }

    /// Forgets segments that are not kept any more.
    mutating func keep(where isKept: (SegmentKey) -> Bool) {
        flaws = flaws.filter { isKept($0.key) }
    }
}

extension ShardMachine {
    /// Takes the steps of the check that its bandwidth allows by now.
    mutating func advanceScrub() {
        let bandwidth = scrubBandwidth
        guard bandwidth > 0 else { return }
        let microseconds = min(now.monotonic.since(scrubber.allowanceAt) / 1000, 100_000)
        scrubber.allowanceAt = now.monotonic
        // Never more than a tenth of a second's worth, or one read: what was not used is gone.
        let most = max(limits.coldPieceBytes, Int(bandwidth / 10))
        scrubber.allowance = min(
            scrubber.allowance + Int(bandwidth * microseconds / 1_000_000), most)
        guard stage == .ready, !hasFailed else { return leaveScrubStretch() }
        guard coldReader.waiting.isEmpty else { return leaveScrubStretch() }
        guard !isDiskPressed else { return }
        if !scrubber.isRunning {
            guard now.monotonic >= scrubber.nextPass else { return }
            scrubber.own = Scrubber.Round(queue: nil, bandwidth: limits.scrubBytesPerSecond)
        }
        if scrubber.round?.hasBegun == false { beginScrubRound() }
        while scrubber.isRunning, scrubStep() {}
    }

    /// Of the check that goes on or may begin by itself, in bytes per second.
    var scrubBandwidth: UInt64 { scrubber.round?.bandwidth ?? limits.scrubBytesPerSecond }

    /// What the check does now, for `storage-describe`.
    var scrubState: ShardStorage.State {
        if hasFailed { return .stopped }
        guard scrubber.isRunning else { return .idle }
        return isDiskPressed || !coldReader.waiting.isEmpty ? .waiting : .checking
    }

    private var isDiskPressed: Bool {
        journal.usedBytes > journal.geometry.capacity / 2 || !hold.isIdle
            || writeBehind.writesInFlight > 0 || checkpointer.awaitedChunks > 0
    }

    /// A check that was asked for takes the stretch from the pass that goes on by itself.
    mutating func askForScrub(queue: UInt32?, bandwidth: UInt64) -> UInt64? {
        let number = scrubber.ask(queue: queue, bandwidth: bandwidth)
        if scrubber.walk == nil { leaveScrubStretch() }
        return number
    }

    private mutating func beginScrubRound() {
        guard var round = scrubber.round else { return }
        round.hasBegun = true
        if round.number > 0 {
            scrubber.begun = round.number
            if round.queue == nil { scrubber.own = nil }
        }
        let chosen = round.queue.map { Set(state.queues[$0]?.partitions ?? []) }
        for index in state.partitions.indices where !state.partitions[index].pointee.isDeleted {
            let partition = state.partitions[index]
            guard chosen?.contains(partition.pointee.id) ?? true else { continue }
            round.partitions.append(partition.pointee.id)
            for segment in partition.pointee.log.segments {
                round.passBytes += segment.syncedBytes
            }
        }
        round.partitions.sort(by: >)
        scrubber.round = round
    }

    private mutating func endScrubRound(_ round: Scrubber.Round) {
        if round.number > 0 {
            scrubber.asked.removeFirst()
            scrubber.done = round.number
        } else {
            scrubber.own = nil
        }
        guard round.queue == nil else { return }
        scrubber.passes += 1
        scrubber.lastPass = now.wall.nanoseconds
        scrubber.nextPass = now.monotonic + limits.scrubIntervalNanoseconds
        var kept: Set<SegmentKey> = []
        for index in state.partitions.indices {
            let partition = state.partitions[index]
            for segment in partition.pointee.log.segments {
                kept.insert(
                    SegmentKey(
                        partition: partition.pointee.id, base: segment.baseOffset,
                        term: segment.term))
            }
        }
        quarantine.keep { kept.contains($0) }
        scrubber.verified = scrubber.verified.filter { state.index(ofPartition: $0.key) != nil }
    }

    /// - Returns: true when another step may follow at once.
    private mutating func scrubStep() -> Bool {
        guard let walk = scrubber.walk else { return beginScrubSegment() }
        let segment = SegmentKey(partition: walk.partition, base: walk.base, term: walk.term)
        guard let place = state.index(ofPartition: walk.partition),
            !state.partitions[place].pointee.isDeleted,
            let info = state.partitions[place].pointee.log.segments.first(where: {
                $0.baseOffset == walk.base && $0.term == walk.term
            })
        else {
            endScrubSegment()
            return true
        }
        guard !walk.isDone else {
            scrubber.walk?.finish()
            nameFlaws(segment)
            endScrubSegment()
            return true
        }
        guard scrubber.stretch >= 0 else { return takeScrubStretch(segment, info, walk) }
        return look(segment, info, walk)
    }

    private mutating func beginScrubSegment() -> Bool {
        guard var round = scrubber.round else { return false }
        while let id = round.partitions.last {
            if let place = state.index(ofPartition: id),
                let segment = state.partitions[place].pointee.log.segments.first(where: {
                    $0.syncedBytes > 0 && $0.baseOffset >= round.from ?? 0
                        && $0.syncedEndOffset > $0.baseOffset
                })
            {
                round.from = segment.syncedEndOffset
                round.segmentBytes = 0
                scrubber.round = round
                scrubber.walk = SegmentWalk(segment, partition: id)
                scrubber.isHeaderChecked = false
                scrubber.named = 0
                return true
            }
            scrubber.verified[id] = Scrubber.Verified(
                at: now.wall.nanoseconds, bytes: round.partitionBytes,
                unreadSegments: round.unreadSegments)
            round.partitions.removeLast()
            round.from = nil
            round.partitionBytes = 0
            round.unreadSegments = 0
        }
        endScrubRound(round)
        return false
    }

    private mutating func endScrubSegment() {
        leaveScrubStretch()
        scrubber.walk = nil
    }

    private mutating func leaveScrubStretch() {
        guard scrubber.stretch >= 0 else { return }
        releaseColdStretch(scrubber.stretch)
        scrubber.stretch = -1
    }

    private mutating func takeScrubStretch(
        _ segment: SegmentKey, _ info: SegmentInfo, _ walk: SegmentWalk
    ) -> Bool {
        let position = scrubber.isHeaderChecked ? walk.at : 0
        let least = scrubber.isHeaderChecked ? scrubber.bytesMin : SegmentHeader.byteCount
        // Behind the chunks lies the seal.
        let end =
            position < info.chunksEnd
            ? info.stretchEnd(from: max(position, UInt64(SegmentHeader.byteCount))) : walk.end
        let bytes =
            position == 0 ? SegmentHeader.byteCount : max(Int(end - min(end, position)), least)
        // Memory of its own: what a reader had read is not what lies on the disk now.
        guard
            let stretch = coldReader.cache.take(
                segment, at: position, bytes: min(bytes, coldReader.cache.stretchBytesMax))
        else { return false }
        coldReader.cache.hold(stretch)
        scrubber.stretch = stretch
        return true
    }

    /// Looks at what lies at the walk's place, or asks for it.
    private mutating func look(
        _ segment: SegmentKey, _ info: SegmentInfo, _ walk: SegmentWalk
    ) -> Bool {
        let stretch = scrubber.stretch
        let (position, bytes, filled) = (
            coldReader.cache[stretch].position, coldReader.cache[stretch].bytes,
            coldReader.cache[stretch].filled
        )
        let place = scrubber.isHeaderChecked ? walk.at : 0
        guard place >= position, place < position + UInt64(bytes) else {
            leaveScrubStretch()
            return true
        }
        let at = Int(place - position)
        let isBroken =
            coldReader.cache[stretch].isBroken && filled >= coldReader.cache[stretch].brokenAt
        if isBroken, coldReader.cache[stretch].errno != 0 {
            let errno = coldReader.cache[stretch].errno
            counters.scrubErrors += 1
            scrubber.round?.unreadSegments += 1
            events.append(
                .dataDamaged(
                    "the check of \(segment.file.path) can't read it at byte "
                        + "\(position + UInt64(filled)) (errno \(errno))"))
            endScrubSegment()
            return true
        }
        guard let memory = coldReader.cache[stretch].memory else { return false }
        let here = UnsafeRawPointer(memory) + at
        guard scrubber.isHeaderChecked else {
            guard filled >= at + SegmentHeader.byteCount || isBroken else {
                return askForScrub(at + SegmentHeader.byteCount)
            }
            if filled < at + SegmentHeader.byteCount
                || !SegmentHeader.verify(
                    here, partition: segment.partition, baseOffset: segment.base,
                    term: segment.term)
            {
                let flaw = SegmentFlaw(
                    bytes: 0..<UInt64(SegmentHeader.byteCount),
                    offsets: info.baseOffset..<info.baseOffset)
                if quarantine.add(flaw, in: segment) {
                    counters.damagedRanges += 1
                    events.append(
                        .dataDamaged(
                            "\(segment.file.path): "
                                + SegmentWalk.noHeader(info, partition: segment.partition)))
                }
            }
            scrubber.isHeaderChecked = true
            scrubber.bytesMin = ChunkHeader.byteCount
            scrubber.checked(UInt64(SegmentHeader.byteCount))
            counters.scrubbedBytes += UInt64(SegmentHeader.byteCount)
            return true
        }
        let available = max(0, filled - at)
        guard
            case .needs(let needed)? = scrubber.walk?.step(
                here, available: available, isAll: isBroken)
        else {
            let went = (scrubber.walk?.at ?? place) - place
            scrubber.checked(went)
            counters.scrubbedBytes += went
            scrubber.bytesMin = ChunkHeader.byteCount
            nameFlaws(segment)
            return true
        }
        if at + needed > bytes {
            // It ends behind the stretch: one of its own, unless it says more than a chunk can have.
            if needed <= coldReader.cache.stretchBytesMax, bytes < needed || at > 0 {
                scrubber.bytesMin = needed
                leaveScrubStretch()
            } else {
                _ = scrubber.walk?.passBlock()
            }
            return true
        }
        return askForScrub(at + needed)
    }

    /// - Returns: false: it has to come first, or there is no allowance for it.
    private mutating func askForScrub(_ bytes: Int) -> Bool {
        let before = coldReader.cache[scrubber.stretch].wanted
        guard bytes > before, scrubber.allowance >= min(limits.coldPieceBytes, bytes - before)
        else { return false }
        wantCold(scrubber.stretch, upTo: bytes)
        scrubber.allowance -= coldReader.cache[scrubber.stretch].wanted - before
        return false
    }

    private mutating func nameFlaws(_ segment: SegmentKey) {
        guard let flaws = scrubber.walk?.flaws, flaws.count > scrubber.named else { return }
        for flaw in flaws[scrubber.named...] where quarantine.add(flaw, in: segment) {
            counters.damagedRanges += 1
            events.append(
                .dataDamaged(
                    "\(segment.file.path), bytes \(flaw.bytes): "
                        + flaw.what(partition: segment.partition)))
        }
        scrubber.named = flaws.count
    }
}
