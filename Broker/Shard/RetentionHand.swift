internal import BrokerBasics
internal import BrokerCore
internal import LogStorage
internal import WireProtocol

// How it works. A hand goes over the partitions of queues that do not keep everything, a few at each turn
// of the housekeeping, once a millisecond: ten thousand partitions are visited six times a second. What
// exceeds a limit is removed by moving the start (`Removal.swift`). A chunk or segment that fills slowly
// is closed when its first record has a quarter of the age: a record goes between one and one and a
// half times its age after it came.

/// Looks for what retention says is to go.
struct RetentionHand {
    static let stepsPerTurn = 64
    /// A clock that is further behind is spoken of.
    static let behindMax: UInt64 = .seconds(60)

    fileprivate var place: Int32 = 0
    fileprivate var isBehindTold = false
    private(set) var clock: RetentionClock

    /// - Parameter lastWall: the last time that the data directory knows, in ns since 1970; 0 for a new one.
    init(lastWall: UInt64, now: Instant) {
        clock = RetentionClock(
            time: lastWall > 0 ? WallTime(nanoseconds: lastWall) : now.wall, now: now)
    }

    fileprivate mutating func advance(to now: Instant) { clock.advance(to: now) }
}

extension ShardMachine {
    mutating func retainPartitions() {
        if !untrimmed.isEmpty { trimAgain() }
        retention.advance(to: now)
        guard state.retainingQueues > 0, stage == .ready, !hasFailed else { return }
        tellClock()
        let limit = state.partitions.limit
        for _ in 0..<min(limit, RetentionHand.stepsPerTurn) {
            retention.place += 1
            if Int(retention.place) >= limit { retention.place = 0 }
            guard retain(retention.place) else { return }
        }
    }

    /// - Returns: false when the journal is full for now.
    private mutating func retain(_ index: Int32) -> Bool {
        guard state.partitions.contains(index) else { return true }
        let partition = state.partitions[index]
        guard !partition.pointee.isDeleted, !partition.pointee.isMoving,
            partition.pointee.retention != .keepAll
        else {
            return true
        }
        let time = retention.clock.time
        let start = partition.pointee.retainedStart(time: time, term: writeBehind.term)
        if start > partition.pointee.log.startOffset { return moveStart(index, to: start) }
        if let chunk = partition.pointee.log.newest, chunk.pointee.state == .open,
            chunk.pointee.used > ChunkHeader.byteCount,
            partition.pointee.isRollDue(firstTime: chunk.pointee.firstTime, time: time)
        {
            partition.pointee.log.sealNewest()
            queueForWriting(index)
        }
        guard let segment = partition.pointee.log.segments.last,
            partition.pointee.isActive(segment, term: writeBehind.term),
            partition.pointee.file.state == .ready, partition.pointee.file.writesInFlight == 0,
            !partition.pointee.file.isUnsynced, let first = segment.index.first,
            partition.pointee.isRollDue(firstTime: first.time, time: time)
        else { return true }
        closeFile(partition)
        return true
    }

    /// Says once that the wall clock stepped, and what follows from it.
    private mutating func tellClock() {
        let behind = retention.clock.behind(now)
        if behind == 0 { retention.isBehindTold = false }
        guard behind > RetentionHand.behindMax, !retention.isBehindTold else { return }
        retention.isBehindTold = true
        events.append(
            .clockStepped(
                "the wall clock is \(behind / .seconds(1)) s further than time has passed: retention by "
                    + "age takes that in at \(RetentionClock.paceMax) times the real pace"))
    }
}
