internal import BrokerBasics
internal import BrokerCore
internal import LogStorage
internal import WireProtocol

// How it works. A segment or checkpoint that finds no room (ENOSPC, EDQUOT) is not a failure of the disk:
// nothing of it counts yet, and what was confirmed is in the journal, which has its room since the
// directory was made. So the operation is held back and tried again, twice a second and whenever there is
// more room; until it succeeds publishes are refused, and everything else goes on. A reserve file, made
// when there is room, is given up with the first operation that finds none: what was accepted before can
// then be brought to disk, and a checkpoint written.
//
// An open that finds no descriptor (EMFILE, ENFILE) is held back in the same way, but refuses nobody: what
// is accepted waits in tail and journal, and publishers wait when those are full.
//
// Only what is asked for anew is tried again. A sync that finds no room is a failed sync like others: what it
// was to bring to disk may be gone from the cache, and confirms stop for good.

/// Operations that wait for room on the disk.
struct SpaceHold {
    static let retryNanoseconds: UInt64 = .milliseconds(500)
    /// What a publisher that is refused waits at least.
    static let retryAfterMilliseconds: UInt32 = 1000

    /// Operations that found no room, by token: they wait, or are being tried again.
    fileprivate(set) var tokens: Set<UInt64> = []
    /// The same for opens that found no descriptor.
    fileprivate(set) var openTokens: Set<UInt64> = []
    fileprivate var requests: [StorageRequest] = []
    fileprivate var retryAt = MonotonicTime.zero
    /// What found no room first, for a person.
    fileprivate(set) var what = ""

    /// Nothing waits for room.
    var isEmpty: Bool { tokens.isEmpty }
    /// Nor for a descriptor.
    var isIdle: Bool { tokens.isEmpty && openTokens.isEmpty }
}

/// A file that keeps room for bad times.
struct SpaceReserve {
    enum State: UInt8 {
        case absent
        case opening
        case allocating
        case made
    }
    fileprivate(set) var state = State.absent
    fileprivate var slot: FileSlot = -1
    fileprivate var tryAt = MonotonicTime.zero
}

extension ShardMachine {
    /// What the loop saw of the disk.
    package mutating func observed(_ space: DiskSpace) {
        if space.availableBytes > disk.space?.availableBytes ?? .max { hold.retryAt = .zero }
        let isOther = disk.observe(space, limits.diskMarks)
        refusesPublishes = diskLevel >= .refuse
        guard isOther else { return }
        wakesParked = true
        events.append(
            .diskLevel(
                disk.level,
                "the disk is \(space.usedPercent) % full (\(space.availableBytes) bytes left): "
                    + Self.meaning(of: disk.level)))
    }

    private static func meaning(of level: DiskLevel) -> String {
        switch level {
        case .ok: "all is served"
        case .warn: "all is served still"
        case .refuse: "new records are refused"
        case .readsOnly: "new records, queues and producers are refused"
        }
    }

    /// By the marks, or by an operation that found no room.
    package var diskLevel: DiskLevel { hold.isEmpty ? disk.level : .readsOnly }

    /// The answer to what the disk has no room for.
    mutating func refuseForSpace(_ request: Request) -> Outcome {
        let used = disk.space.map { "the disk is \($0.usedPercent) % full" } ?? "the disk is full"
        return refuse(
            request, .diskFull,
            hold.isEmpty
                ? "\(used); nothing was done. Delete or purge, or give it more room"
                : "the disk has no room: \(hold.what); nothing was done",
            retryAfterMilliseconds: SpaceHold.retryAfterMilliseconds)
    }

    // MARK: what finds no room

    static func isOutOfSpace(_ result: Int32) -> Bool { result == -28 || result == -122 }

    /// This process, or the system, has no descriptor left.
    static func isOutOfDescriptors(_ result: Int32) -> Bool { result == -24 || result == -23 }

    /// Keeps an open that found no descriptor, to try it again.
    mutating func awaitDescriptor(_ request: StorageRequest, _ what: String) {
        if hold.isIdle { hold.what = what }
        if hold.openTokens.isEmpty { events.append(.descriptorsAwaited(what)) }
        hold.openTokens.insert(request.token)
        hold.requests.append(request)
        hold.retryAt = now.monotonic + SpaceHold.retryNanoseconds
        counters.awaitedDescriptors &+= 1
        // A reader's file that nobody reads now gives its descriptor to another.
        closeUnusedFiles(after: 0)
    }

    /// Keeps an operation that found no room, to try it again.
    mutating func holdBack(_ request: StorageRequest, _ what: String) {
        if hold.isEmpty {
            hold.what = what
            events.append(.spaceAwaited(what))
            releaseReserve()
        }
        hold.tokens.insert(request.token)
        hold.requests.append(request)
        hold.retryAt = now.monotonic + SpaceHold.retryNanoseconds
        counters.heldOperations &+= 1
        refusesPublishes = true
    }

    /// An operation succeeded, or is not needed any more.
    mutating func foundSpace(_ token: UInt64) {
        if hold.openTokens.remove(token) != nil, hold.openTokens.isEmpty {
            events.append(.descriptorsFound)
            wakesParked = true
        }
        guard hold.tokens.remove(token) != nil, hold.isEmpty else { return }
        events.append(.spaceFound)
        refusesPublishes = diskLevel >= .refuse
        wakesParked = true
        reserve.tryAt = now.monotonic + .seconds(10)
    }

    /// Tries again what was held back, when it is time.
    mutating func retryHeld() {
        guard !hold.isIdle else { return keepReserve() }
        if stage == .stopping, now.monotonic >= stopDeadline {
            let missed = hold.isEmpty ? "no descriptor" : "no room on the disk"
            return storageFailed(StorageFailure("the stop found \(missed): \(hold.what)"))
        }
        guard !hold.requests.isEmpty, now.monotonic >= hold.retryAt, !hasFailed else { return }
        let requests = hold.requests
        hold.requests = []
        hold.retryAt = now.monotonic + SpaceHold.retryNanoseconds
        for request in requests {
            if abandonWrite(request.token) {
                foundSpace(request.token)
            } else {
                writeBehind.retries.append(request)
            }
        }
    }

    // MARK: the reserve

    private mutating func releaseReserve() {
        guard limits.reserveBytes > 0 else { return }
        // Also when it is not known to be there: it may be from an earlier start.
        writeBehind.retries.append(
            StorageRequest(token: Token.make(.reserve, 0), operation: .remove(.reserve)))
    }

    /// Makes the reserve when there is none, and room for one.
    private mutating func keepReserve() {
        guard limits.reserveBytes > 0, reserve.state == .absent, stage == .ready, !hasFailed,
            disk.level < .refuse, now.monotonic >= reserve.tryAt,
            let slot = writeBehind.freeSlots.popLast()
        else { return }
        reserve.slot = slot
        reserve.state = .opening
        reserve.tryAt = now.monotonic + .seconds(10)
        writeBehind.retries.append(
            StorageRequest(
                token: Token.make(.reserve, 1),
                operation: .open(slot: slot, name: .reserve, create: true)))
    }

    mutating func reserveCompleted(token: UInt64, result: Int32) {
        guard Token.value(token) == 1 else {
            if reserve.state == .made { reserve.state = .absent }
            hold.retryAt = now.monotonic
            return
        }
        switch reserve.state {
        case .opening where result >= 0:
            reserve.state = .allocating
            writeBehind.retries.append(
                StorageRequest(
                    token: token,
                    operation: .allocate(
                        slot: reserve.slot, position: 0, bytes: limits.reserveBytes)))
        case .opening:
            writeBehind.freeSlots.append(reserve.slot)
            reserve.state = .absent
        case .allocating:
            writeBehind.closes.append(reserve.slot)
            reserve.state = result >= 0 ? .made : .absent
            // Part of a reserve would only be in the way.
            if result < 0 || !hold.isEmpty { releaseReserve() }
        case .absent, .made: break
        }
    }
}
