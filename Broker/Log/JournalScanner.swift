internal import BrokerBasics

// How it works. Groups follow each other; where one does not fit into the rest of a file the next
// file's start is tried. The first place where no lawful group follows is the end. What is above the
// attested position there is a torn tail: it was never confirmed, and is dropped. What is at or below
// it is damage: it was durable once, and recovery stops and names it.
//
// Two things tell the cases apart: the checkpoint names a position that was durable when it was made,
// and any whole group further on names what was durable when it was issued. The rest of the journal
// is searched for such groups.

/// What the scan found.
public struct JournalScan: Sendable {
    /// Where the next group goes.
    public var end: UInt64
    public var groups = 0
    public var entries = 0
    public var bytesRead: UInt64 = 0
    /// Bytes of groups behind the end that were written in part: a torn tail, not confirmed to
    /// anybody.
    public var tornBytes: UInt64 = 0
    /// The wall time of the last group: append times must not retreat below it.
    public var lastWallTime: UInt64 = 0
}

/// Damage where data was known to be durable.
public struct JournalDamage: Error, Equatable, Sendable, CustomStringConvertible {
    public var file: String
    public var offset: UInt64
    /// Positions from the damage to the end of what was attested.
    public var lost: Range<UInt64>
    public var description: String {
        "\(file) is damaged at byte \(offset): \(lost.upperBound - lost.lowerBound) bytes of the "
            + "journal that were on stable storage can't be read. Nothing was changed. Restore the "
            + "file from a copy, or start on a backup"
    }
}

public enum RecoveryError: Error, Sendable, CustomStringConvertible {
    case storage(StorageFailure)
    case journal(JournalDamage)
    /// A segment or checkpoint that was durable and is not what it was.
    case damaged(file: String, offset: UInt64, what: String)

    public var description: String {
        switch self {
        case .storage(let failure): failure.description
        case .journal(let damage): damage.description
        case .damaged(let file, let offset, let what):
            "\(file) is damaged at byte \(offset): \(what)"
        }
    }
}

public struct JournalScanner {
    public let storage: any RecoveryStorage
    public let identity: Identity
    public let limits: Journal.Limits
    /// Whose journal it is: damage is named by its path below the data directory.
    public let folder: ShardFolder
    public var faults = StorageFaults()

    public init(
        storage: any RecoveryStorage, identity: Identity, limits: Journal.Limits,
        folder: ShardFolder = ShardFolder(shard: 0)
    ) {
        self.storage = storage
        self.identity = identity
        self.limits = limits
        self.folder = folder
    }

    /// Where terms changed: groups below `position` have lower terms, from it on exactly `term`.
    public struct TermStart: Equatable, Sendable {
        public var position: UInt64
        public var term: UInt64
        public init(position: UInt64, term: UInt64) {
            self.position = position
            self.term = term
        }
    }

    /// Reads the journal from `start`, handing each entry to `body` in order.
    ///
    /// - Parameters:
    ///   - durable: a position known durable from elsewhere; the scan must reach it.
    ///   - termStart: where the last known term began.
    ///   - progress: called now and then with the bytes read.
    public func scan(
        from start: UInt64, durable: UInt64, termStart: TermStart,
        progress: (UInt64) -> Void,
        _ body: (JournalEntry) throws(RecoveryError) -> Void
    ) throws(RecoveryError) -> JournalScan {
        var scan = JournalScan(end: start)
        var window = Window(storage: storage, geometry: identity.geometry, limits: limits)
        while let header = try next(at: scan.end, start, termStart, &window) {
            if faults.truncationOffByOne, header.end >= durable,
                try next(at: header.end, start, termStart, &window) == nil
            {
                break
            }
            let base = try window.group(at: header.position, bytes: header.bytes)
            try entries(of: header, at: base, body)
            scan.end = header.end
            scan.groups += 1
            scan.entries += header.entries
            scan.lastWallTime = max(scan.lastWallTime, header.wallTime)
            progress(window.bytesRead)
        }
        if scan.end < durable, !faults.truncationOffByOne {
            throw .journal(damage(at: scan.end, upTo: durable))
        }
        try searchBehind(&scan, start: start, &window)
        scan.bytesRead = window.bytesRead
        return scan
    }

    /// The lawful group that follows `end`, if there is one.
    private func next(
        at end: UInt64, _ start: UInt64, _ termStart: TermStart, _ window: inout Window
    ) throws(RecoveryError) -> JournalGroupHeader? {
        let geometry = identity.geometry
        var candidates = [end]
        if geometry.offset(of: end) != 0 { candidates.append(geometry.nextFile(after: end)) }
        for position in candidates {
            guard position - start < geometry.capacity,
                let header = try window.header(
                    at: position, journalID: identity.journalID, seeded: !faults.checksumNotSeeded)
            else { continue }
            // A group before the last start has a lower term; one from there on has exactly its term,
            // so what an earlier life left behind the end of the tail can't come back.
            let termIsLawful =
                position < termStart.position
                ? header.term < termStart.term || faults.oldTermAccepted
                : header.term == termStart.term || faults.oldTermAccepted
            // A scan may begin at a group in front of which the rest of a file was skipped: the group
            // before it ends in that file.
            let isFirst =
                position == start && geometry.offset(of: start) == 0 && header.previousEnd < start
                && start - header.previousEnd < geometry.fileBytes
            let placeIsLawful =
                (header.position == position || faults.checksumNotSeeded)
                && (header.previousEnd == end || isFirst || faults.oldTermAccepted
                    || faults.checksumNotSeeded)
            if placeIsLawful, termIsLawful {
                var found = header
                found.position = position
                return found
            }
        }
        return nil
    }

    private func entries(
        of header: JournalGroupHeader, at base: UnsafeRawPointer,
        _ body: (JournalEntry) throws(RecoveryError) -> Void
    ) throws(RecoveryError) {
        var at = JournalGroupHeader.byteCount
        for _ in 0..<header.entries {
            guard header.bytes - at >= JournalGroupHeader.entryHeaderBytes,
                let kind = JournalEntryKind(rawValue: base.u8(at + 4))
            else { throw unreadable(header, at) }
            let payloadBytes = Int(base.u32(at))
            let payload = at + JournalGroupHeader.entryHeaderBytes
            guard payloadBytes <= header.bytes - payload else { throw unreadable(header, at) }
            try body(
                JournalEntry(
                    kind: kind, flags: base.u8(at + 5), object: base.u32(at + 8),
                    payload: UnsafeRawBufferPointer(start: base + payload, count: payloadBytes),
                    position: header.position))
            at = payload + payloadBytes.roundedUp(to: 8)
        }
    }

    private func unreadable(_ header: JournalGroupHeader, _ at: Int) -> RecoveryError {
        let geometry = identity.geometry
        return .damaged(
            file: folder.path(.journal(geometry.file(of: header.position))),
            offset: geometry.offset(of: header.position) + UInt64(at),
            what: "an entry of a group whose checksum holds has a kind or length that this version "
                + "does not know")
    }

    private func damage(at position: UInt64, upTo durable: UInt64) -> JournalDamage {
        JournalDamage(
            file: folder.path(.journal(identity.geometry.file(of: position))),
            offset: identity.geometry.offset(of: position),
            lost: position..<durable)
    }

    /// Looks for whole groups behind the end. One that attests a position above the end proves
    /// damage; one that does not is part of a torn tail.
    private func searchBehind(
        _ scan: inout JournalScan, start: UInt64, _ window: inout Window
    ) throws(RecoveryError) {
        let geometry = identity.geometry
        let block = UInt64(JournalGeometry.blockBytes)
        var position = scan.end
        let limit = start + geometry.capacity
        while position < limit {
            // A file may end before the identity says so; going on block by block where there is
            // nothing would take years for the largest geometry that is lawful.
            guard try window.hasBlock(at: position) else {
                position = geometry.nextFile(after: position)
                continue
            }
            if let header = try window.header(
                at: position, journalID: identity.journalID, seeded: true),
                header.position == position
            {
                if header.attested > scan.end {
                    throw .journal(damage(at: scan.end, upTo: header.attested))
                }
                scan.tornBytes += UInt64(header.bytes)
                position = header.end
            } else {
                if try window.claimsGroup(at: position) { scan.tornBytes += block }
                position += block
            }
        }
    }
}

extension JournalScanner {
    /// A stretch of the journal in memory, read ahead.
    private struct Window: ~Copyable {
        static let readBytes = 1 << 20
        let storage: any RecoveryStorage
        let geometry: JournalGeometry
        let groupBytesMax: Int
        let memory: AlignedMemory
        var start: UInt64 = 0
        var count = 0
        var bytesRead: UInt64 = 0

        init(storage: any RecoveryStorage, geometry: JournalGeometry, limits: Journal.Limits) {
            self.storage = storage
            self.geometry = geometry
            groupBytesMax = limits.groupBytesMax
            memory = AlignedMemory(
                byteCount: max(
                    min(Self.readBytes, Int(geometry.fileBytes)), limits.groupBytesMax
                )
                .roundedUp(to: JournalGeometry.blockBytes))
        }

        /// Makes `bytes` from `position` present; fewer when the file ends before.
        mutating func load(_ position: UInt64, _ bytes: Int) throws(RecoveryError) -> Int {
            let fileRest = Int(geometry.fileBytes - geometry.offset(of: position))
            let wanted = min(bytes, fileRest)
            if position >= start, position + UInt64(wanted) <= start + UInt64(count) {
                return wanted
            }
            let length = min(memory.byteCount, fileRest)
            let buffer = UnsafeMutableRawBufferPointer(start: memory.base, count: length)
            do throws(StorageFailure) {
                count = try storage.read(
                    .journal(geometry.file(of: position)), at: geometry.offset(of: position),
                    into: buffer)
            } catch {
                throw .storage(error)
            }
            start = position
            bytesRead += UInt64(count)
            return min(wanted, count)
        }

        func pointer(_ position: UInt64) -> UnsafeRawPointer {
            UnsafeRawPointer(memory.base) + Int(position - start)
        }

        mutating func header(
            at position: UInt64, journalID: UInt64, seeded: Bool
        ) throws(RecoveryError) -> JournalGroupHeader? {
            let block = JournalGeometry.blockBytes
            guard try load(position, block) == block else { return nil }
            let claimed = JournalGroupHeader.claimedBytes(pointer(position))
            guard claimed >= JournalGroupHeader.byteCount, claimed <= groupBytesMax else {
                return nil
            }
            guard try load(position, claimed) == claimed else { return nil }
            return JournalGroupHeader.decode(
                pointer(position), available: claimed, journalID: journalID, seeded: seeded)
        }

        mutating func group(
            at position: UInt64, bytes: Int
        ) throws(RecoveryError)
            -> UnsafeRawPointer
        {
            _ = try load(position, bytes)
            return pointer(position)
        }

        mutating func hasBlock(at position: UInt64) throws(RecoveryError) -> Bool {
            try load(position, JournalGeometry.blockBytes) == JournalGeometry.blockBytes
        }

        mutating func claimsGroup(at position: UInt64) throws(RecoveryError) -> Bool {
            guard try hasBlock(at: position) else { return false }
            let base = pointer(position)
            return JournalGroupHeader.claimedBytes(base) > 0 && base.u64(16) == position
        }
    }
}
