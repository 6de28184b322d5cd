internal import BrokerBasics

/// The shape of the journal: `fileCount` files of `fileBytes`, used round and round.
///
/// A *position* is a byte place in the endless stream; it never repeats. Position p lies in file
/// `(p / fileBytes) % fileCount` at `p % fileBytes`.
public struct JournalGeometry: Equatable, Sendable {
    /// What one group is padded to. Not the disk's 512: a disk with 4,096-byte sectors would rewrite
    /// durable neighbours.
    @inlinable public static var blockBytes: Int { 4096 }

    public var fileBytes: UInt64
    public var fileCount: Int

    public init(fileBytes: UInt64, fileCount: Int) {
        self.fileBytes = fileBytes
        self.fileCount = fileCount
    }

    public var isValid: Bool {
        fileCount >= 2 && fileCount <= 1024 && fileBytes >= 16 * UInt64(Self.blockBytes)
            && fileBytes % UInt64(Self.blockBytes) == 0 && fileBytes <= 1 << 40
    }
    public var capacity: UInt64 { fileBytes * UInt64(fileCount) }
    @inline(__always) public func file(of position: UInt64) -> Int {
        Int((position / fileBytes) % UInt64(fileCount))
    }
    @inline(__always) public func offset(of position: UInt64) -> UInt64 { position % fileBytes }
    /// The first position of the file after the one that holds `position`.
    @inline(__always) public func nextFile(after position: UInt64) -> UInt64 {
        (position / fileBytes + 1) * fileBytes
    }
}

/// What one journal entry is about. Numbers are never reused.
public enum JournalEntryKind: UInt8, Sendable, CaseIterable {
    /// A stored batch; the entry's object is the partition.
    case batch = 1
    case queueCreated = 2
    case queueAltered = 3
    case queueDeleted = 4
    case producerOpened = 5
    case producerExpired = 6
    case groupCreated = 7
    /// A group's ack floor in one partition.
    case cursor = 8
    /// Offsets of a `memory` partition below the value may have been given out.
    case reservation = 9
    /// Records of a partition below the value are removed. Since format 2.
    case startMoved = 10
    /// A partition came from another shard, or went to one. Since format 3.
    case partitionAdopted = 11
    case partitionReleased = 12
}

/// The header of a group: what one write puts into the journal (64 bytes, little-endian).
///
/// ```
///  0 u32 magic "MRJG"
///  4 u32 checksum       CRC32C of bytes 8 ..< bytes, seeded with journal id, term and position
///  8 u32 bytes          header and entries, without the padding to 4,096
/// 12 u32 entries
/// 16 u64 position
/// 24 u64 previous_end   where the group before ended: equal to position, or a file's rest is skipped
/// 32 u64 attested       everything below was known durable when this was issued
/// 40 u64 term           one higher at each start of the broker
/// 48 u64 wall_time      ns since 1970
/// 56 u64 reserved
/// ```
///
/// An entry is `payload_bytes u32 | kind u8 | flags u8 | 0 u16 | object u32 | 0 u32`, the payload,
/// and padding to 8 bytes.
public struct JournalGroupHeader: Equatable, Sendable {
    @inlinable public static var byteCount: Int { 64 }
    @inlinable public static var entryHeaderBytes: Int { 16 }
    public static let magic: UInt32 = 0x474A_524D

    public var bytes: Int
    public var entries: Int
    public var position: UInt64
    public var previousEnd: UInt64
    public var attested: UInt64
    public var term: UInt64
    public var wallTime: UInt64

    public init(
        bytes: Int, entries: Int, position: UInt64, previousEnd: UInt64, attested: UInt64,
        term: UInt64, wallTime: UInt64
    ) {
        self.bytes = bytes
        self.entries = entries
        self.position = position
        self.previousEnd = previousEnd
        self.attested = attested
        self.term = term
        self.wallTime = wallTime
    }

    public var paddedBytes: Int { bytes.roundedUp(to: JournalGeometry.blockBytes) }
    public var end: UInt64 { position + UInt64(paddedBytes) }

    /// The seed binds a group to its place: a recycled block's old group does not verify here.
    @inline(__always)
    private static func seed(
        journalID: UInt64, term: UInt64, position: UInt64, seeded: Bool
    ) -> UInt32 {
        guard seeded else { return 0 }
        return CRC32C.extend(CRC32C.extend(CRC32C.extend(0, journalID), term), position)
    }

    /// Writes the header in front of entries that are in place, with the checksum over all.
    public func encode(at base: UnsafeMutableRawPointer, journalID: UInt64, seeded: Bool = true) {
        base.put(Self.magic, 0)
        base.put(UInt32(bytes), 8)
        base.put(UInt32(entries), 12)
        base.put(position, 16)
        base.put(previousEnd, 24)
        base.put(attested, 32)
        base.put(term, 40)
        base.put(wallTime, 48)
        base.put(UInt64(0), 56)
        let seed = Self.seed(
            journalID: journalID, term: term, position: position, seeded: seeded)
        base.put(CRC32C.extend(seed, UnsafeRawPointer(base) + 8, count: bytes - 8), 4)
    }

    /// The group at `base` if one of `journalID` is there whole, at any position and term.
    public static func decode(
        _ base: UnsafeRawPointer, available: Int, journalID: UInt64, seeded: Bool = true
    ) -> JournalGroupHeader? {
        guard available >= byteCount, base.u32(0) == magic else { return nil }
        let bytes = Int(base.u32(8))
        guard bytes >= byteCount, bytes <= available else { return nil }
        let header = JournalGroupHeader(
            bytes: bytes, entries: Int(base.u32(12)), position: base.u64(16),
            previousEnd: base.u64(24), attested: base.u64(32), term: base.u64(40),
            wallTime: base.u64(48))
        let seed = seed(
            journalID: journalID, term: header.term, position: header.position, seeded: seeded)
        guard CRC32C.extend(seed, base + 8, count: bytes - 8) == base.u32(4) else { return nil }
        return header
    }

    /// How many bytes the group at `base` says it has; 0 when there is no header.
    public static func claimedBytes(_ base: UnsafeRawPointer) -> Int {
        base.u32(0) == magic ? Int(base.u32(8)) : 0
    }
}

/// One entry as recovery reads it. `payload` is valid during the call only.
public struct JournalEntry {
    public var kind: JournalEntryKind
    public var flags: UInt8
    public var object: UInt32
    public var payload: UnsafeRawBufferPointer
    /// Of the group that holds it.
    public var position: UInt64

    /// The batch was in the journal before and was copied forward; its data counts, not its effects.
    public static let carriedFlag: UInt8 = 1
}
