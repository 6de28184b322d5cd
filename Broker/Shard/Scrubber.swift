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

/// The check of segments that goes on while the shard serves.
package struct Scrubber {
    fileprivate var partitions: [UInt32] = []
    fileprivate var walk: SegmentWalk?
    fileprivate var isHeaderChecked = false
    fileprivate var stretch: Int32 = -1
    /// What must lie in the stretch at the walk's place.
    fileprivate var bytesMin = ChunkHeader.byteCount
    fileprivate var named = 0
    /// Of the pass that goes on.
    fileprivate var lastBase: UInt64?
    fileprivate var isRunning = false
    fileprivate var nextPass = MonotonicTime.zero

    // What may be read now, in bytes.
    fileprivate var allowance = 0
    fileprivate var allowanceAt = MonotonicTime.zero

    /// Of this pass: what was checked of what there was when it began.
    package fileprivate(set) var passedBytes: UInt64 = 0
    package fileprivate(set) var passBytes: UInt64 = 0
    package fileprivate(set) var passes: UInt64 = 0
    /// Nanoseconds since 1970; 0: no pass has come to its end.
    package fileprivate(set) var lastPass: UInt64 = 0

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
        let bandwidth = limits.scrubBytesPerSecond
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
            beginScrubPass()
        }
        while scrubber.isRunning, scrubStep() {}
    }

    private var isDiskPressed: Bool {
        journal.usedBytes > journal.geometry.capacity / 2 || !hold.isEmpty
            || writeBehind.writesInFlight > 0 || checkpointer.awaitedChunks > 0
    }

    private mutating func beginScrubPass() {
        scrubber.isRunning = true
        scrubber.passedBytes = 0
        scrubber.passBytes = 0
        scrubber.partitions = []
        for index in state.partitions.indices where !state.partitions[index].pointee.isDeleted {
            scrubber.partitions.append(state.partitions[index].pointee.id)
            for segment in state.partitions[index].pointee.log.segments {
                scrubber.passBytes += segment.syncedBytes
            }
        }
        scrubber.partitions.sort(by: >)
        scrubber.lastBase = nil
    }

    private mutating func endScrubPass() {
        scrubber.isRunning = false
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
        while let id = scrubber.partitions.last {
            if let place = state.index(ofPartition: id),
                let segment = state.partitions[place].pointee.log.segments.first(where: {
                    $0.syncedBytes > 0 && $0.baseOffset >= scrubber.lastBase ?? 0
                        && $0.syncedEndOffset > $0.baseOffset
                })
            {
                scrubber.lastBase = segment.syncedEndOffset
                scrubber.walk = SegmentWalk(segment, partition: id)
                scrubber.isHeaderChecked = false
                scrubber.named = 0
                return true
            }
            scrubber.partitions.removeLast()
            scrubber.lastBase = nil
        }
        endScrubPass()
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
        guard
            let stretch = coldReader.cache.find(segment, at: position, bytes: least)
                ?? coldReader.cache.take(
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
                events.append(
                    .dataDamaged(
                        "\(segment.file.path): "
                            + SegmentWalk.noHeader(info, partition: segment.partition)))
            }
            scrubber.isHeaderChecked = true
            scrubber.bytesMin = ChunkHeader.byteCount
            scrubber.passedBytes += UInt64(SegmentHeader.byteCount)
            counters.scrubbedBytes += UInt64(SegmentHeader.byteCount)
            return true
        }
        let available = max(0, filled - at)
        guard
            case .needs(let needed)? = scrubber.walk?.step(
                here, available: available, isAll: isBroken)
        else {
            let went = (scrubber.walk?.at ?? place) - place
            scrubber.passedBytes += went
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
