internal import BrokerBasics
internal import WireProtocol

/// The first block of a segment file (4,096 bytes): magic "MRSEGMNT" | format u32 | partition u32 |
/// base_offset u64 | term u64 | made_at u64 | zeros | CRC32C u32 in the last four bytes.
public enum SegmentHeader {
    @inlinable public static var byteCount: Int { 4096 }

    public static func encode(
        _ base: UnsafeMutableRawPointer, partition: UInt32, baseOffset: UInt64, term: UInt64,
        madeAt: UInt64
    ) {
        base.initializeMemory(as: UInt8.self, repeating: 0, count: byteCount)
        for (at, byte) in "MRSEGMNT".utf8.enumerated() { base.put(byte, at) }
        base.put(Identity.format, 8)
        base.put(partition, 12)
        base.put(baseOffset, 16)
        base.put(term, 24)
        base.put(madeAt, 32)
        base.put(CRC32C.extend(0, UnsafeRawPointer(base), count: byteCount - 4), byteCount - 4)
    }

    public static func verify(
        _ base: UnsafeRawPointer, partition: UInt32, baseOffset: UInt64, term: UInt64
    ) -> Bool {
        CRC32C.extend(0, base, count: byteCount - 4) == base.u32(byteCount - 4)
            && base.u32(8) <= Identity.format && base.u32(12) == partition
            && base.u64(16) == baseOffset && base.u64(24) == term
    }
}

/// The header of a chunk: what one write puts into a segment (64 bytes, little-endian).
///
/// ```
///  0 u32 magic "MRCK"
///  4 u32 checksum      CRC32C of bytes 8 ..< bytes, seeded with partition, base offset and term of
///                      the segment
///  8 u32 bytes         header and batches (or the index, in a seal), without the padding to 4,096
/// 12 u32 flags         bit 0 seal: the segment ends here
/// 16 u64 base_offset   of the first batch
/// 24 u64 end_offset
/// 32 u64 first_time    append time of the first batch
/// 40 u64 last_time
/// 48 u64 position      in the file
/// 56 u64 reserved
/// ```
///
/// A partition's tail in memory is kept in this very form, so that writing behind copies nothing.
public struct ChunkHeader: Equatable, Sendable {
    @inlinable public static var byteCount: Int { 64 }
    @inlinable public static var blockBytes: Int { 4096 }
    public static let magic: UInt32 = 0x4B43_524D
    public static let sealFlag: UInt32 = 1

    public var bytes: Int
    public var flags: UInt32
    public var baseOffset: UInt64
    public var endOffset: UInt64
    public var firstTime: UInt64
    public var lastTime: UInt64
    public var position: UInt64

    public init(
        bytes: Int, flags: UInt32 = 0, baseOffset: UInt64, endOffset: UInt64, firstTime: UInt64,
        lastTime: UInt64, position: UInt64
    ) {
        self.bytes = bytes
        self.flags = flags
        self.baseOffset = baseOffset
        self.endOffset = endOffset
        self.firstTime = firstTime
        self.lastTime = lastTime
        self.position = position
    }

    public var isSeal: Bool { flags & Self.sealFlag != 0 }
    public var paddedBytes: Int { bytes.roundedUp(to: Self.blockBytes) }

    @inline(__always)
    private static func seed(partition: UInt32, segmentBase: UInt64, term: UInt64) -> UInt32 {
        CRC32C.extend(
            CRC32C.extend(CRC32C.extend(0, UInt64(partition)), segmentBase), term)
    }

    public func encode(
        at base: UnsafeMutableRawPointer, partition: UInt32, segmentBase: UInt64, term: UInt64
    ) {
        base.put(Self.magic, 0)
        base.put(UInt32(bytes), 8)
        base.put(flags, 12)
        base.put(baseOffset, 16)
        base.put(endOffset, 24)
        base.put(firstTime, 32)
        base.put(lastTime, 40)
        base.put(position, 48)
        base.put(UInt64(0), 56)
        let seed = Self.seed(partition: partition, segmentBase: segmentBase, term: term)
        base.put(CRC32C.extend(seed, UnsafeRawPointer(base) + 8, count: bytes - 8), 4)
    }

    /// How many bytes the chunk at `base` says it has; 0 when there is no header.
    public static func claimedBytes(_ base: UnsafeRawPointer) -> Int {
        base.u32(0) == magic ? Int(base.u32(8)) : 0
    }

    /// The chunk at `base` if it is whole and belongs at `position` of this segment.
    public static func decode(
        _ base: UnsafeRawPointer, available: Int, partition: UInt32, segmentBase: UInt64,
        term: UInt64, position: UInt64
    ) -> ChunkHeader? {
        guard available >= byteCount else { return nil }
        let bytes = claimedBytes(base)
        guard bytes >= byteCount, bytes <= available, base.u64(48) == position else { return nil }
        let seed = seed(partition: partition, segmentBase: segmentBase, term: term)
        guard CRC32C.extend(seed, base + 8, count: bytes - 8) == base.u32(4) else { return nil }
        return ChunkHeader(
            bytes: bytes, flags: base.u32(12), baseOffset: base.u64(16), endOffset: base.u64(24),
            firstTime: base.u64(32), lastTime: base.u64(40), position: position)
    }

    /// Whether batches fill the chunk at `base`, each beginning where the one before ends, from the
    /// header's base offset to its end offset. Their checksums are not looked at: the chunk's covers
    /// them.
    ///
    /// Whoever walks the batches of a chunk that was read counts on it.
    public func isFilled(at base: UnsafeRawPointer) -> Bool {
        var at = Self.byteCount
        var offset = baseOffset
        while at < bytes {
            guard let batchBytes = StoredBatch.layout(base + at, available: bytes - at),
                StoredBatch.baseOffset(at: base + at) == offset
            else { return false }
            offset = StoredBatch.endOffset(at: base + at)
            at += batchBytes
        }
        return offset == endOffset && offset > baseOffset
    }
}

/// Where in a segment an offset lies, about once per MiB. A hint: rebuilt from the chunks, never
/// synced; its only copy on disk is the one inside the seal.
public struct SegmentIndexEntry: Equatable, Sendable {
    public static let byteCount = 24
    public static let spacingBytes: UInt64 = 1 << 20
    public var baseOffset: UInt64
    public var position: UInt64
    /// Append time of the first batch there.
    public var time: UInt64
    public init(baseOffset: UInt64, position: UInt64, time: UInt64) {
        self.baseOffset = baseOffset
        self.position = position
        self.time = time
    }
}

/// One file of a partition's log.
public struct SegmentInfo: Sendable {
    public var baseOffset: UInt64
    public var term: UInt64
    /// Below it the chunks are written.
    public var endOffset: UInt64
    /// The file position after the last written chunk.
    public var bytes: UInt64
    /// Of its stored batches.
    public var batchBytes: UInt64 = 0
    /// The same three, as far as they are on stable storage.
    public var syncedEndOffset: UInt64
    public var syncedBytes: UInt64
    public var syncedBatchBytes: UInt64 = 0
    /// False when a checkpoint of format 1 told of it, which does not have `batchBytes`.
    public var isCounted = true
    /// Where the seal lies; 0 while there is none.
    public var sealPosition: UInt64 = 0
    public var lastTime: UInt64
    public var index: [SegmentIndexEntry] = []

    public init(baseOffset: UInt64, term: UInt64) {
        self.baseOffset = baseOffset
        self.term = term
        endOffset = baseOffset
        bytes = UInt64(SegmentHeader.byteCount)
        syncedEndOffset = baseOffset
        syncedBytes = 0
        lastTime = 0
    }

    public var isSealed: Bool { sealPosition > 0 }

    /// Whether `index` can be this segment's: in order, and nothing in it outside of the segment.
    public func canHave(index: [SegmentIndexEntry]) -> Bool {
        var last: SegmentIndexEntry?
        for entry in index {
            guard entry.baseOffset >= last?.baseOffset ?? baseOffset, entry.baseOffset < endOffset,
                entry.position > last?.position ?? 0, entry.position < bytes,
                entry.position % UInt64(ChunkHeader.blockBytes) == 0
            else { return false }
            last = entry
        }
        return true
    }

    public func file(partition: UInt32) -> FileName {
        .segment(partition: partition, baseOffset: baseOffset, term: term)
    }

    /// All that is written is on stable storage.
    public mutating func noteSynced() {
        syncedEndOffset = endOffset
        syncedBytes = bytes
        syncedBatchBytes = batchBytes
    }

    /// Notes that a chunk was written.
    public mutating func wrote(_ chunk: ChunkHeader) {
        bytes = max(bytes, chunk.position + UInt64(chunk.paddedBytes))
        if chunk.isSeal {
            sealPosition = chunk.position
            return
        }
        let spaced =
            index.last.map { chunk.position - $0.position >= SegmentIndexEntry.spacingBytes }
            ?? true
        if spaced {
            index.append(
                .init(
                    baseOffset: chunk.baseOffset, position: chunk.position, time: chunk.firstTime))
        }
        batchBytes += UInt64(chunk.bytes - ChunkHeader.byteCount)
        endOffset = max(endOffset, chunk.endOffset)
        lastTime = max(lastTime, chunk.lastTime)
    }

    /// A file position at or before the chunk that holds `offset`.
    public func position(of offset: UInt64) -> UInt64 {
        position { $0.baseOffset <= offset }
    }
    /// A file position at or before the first chunk with an append time of `time` or later.
    public func position(ofTime time: UInt64) -> UInt64 {
        position { $0.time < time }
    }
    private func position(_ isBefore: (SegmentIndexEntry) -> Bool) -> UInt64 {
        var low = 0
        var high = index.count
        while low < high {
            let middle = (low + high) / 2
            if isBefore(index[middle]) { low = middle + 1 } else { high = middle }
        }
        return low == 0 ? UInt64(SegmentHeader.byteCount) : index[low - 1].position
    }
}
