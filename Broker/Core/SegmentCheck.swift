internal import BrokerBasics
internal import LogStorage
internal import WireProtocol

/// A stretch of a file that is not what was written, and what it held.
public struct Damage: Sendable, Equatable, CustomStringConvertible {
    public var file: String
    /// Bytes of the file.
    public var bytes: Range<UInt64>
    public var what: String

    public init(file: String, bytes: Range<UInt64>, what: String) {
        self.file = file
        self.bytes = bytes
        self.what = what
    }
    public var description: String { "\(file), bytes \(bytes): \(what)" }
}

/// Reads a whole segment as far as it was on stable storage, and believes nothing: each chunk's and
/// each batch's checksums, and that offsets follow each other without a gap.
///
/// Behind a damaged chunk it looks for the next whole one, block by block, so that one damage is one
/// finding and names the offsets that it took.
struct SegmentCheck {
    let storage: any RecoveryStorage
    let partition: UInt32
    let segment: SegmentInfo
    /// The largest chunk to be expected, padded.
    let chunkBytesMax: Int

    private(set) var chunks = 0
    private(set) var batches = 0
    private(set) var bytesRead: UInt64 = 0
    private(set) var damages: [Damage] = []

    init(
        storage: any RecoveryStorage, partition: UInt32, segment: SegmentInfo, chunkBytesMax: Int
    ) {
        self.storage = storage
        self.partition = partition
        self.segment = segment
        self.chunkBytesMax = chunkBytesMax
    }

    private var file: FileName { segment.file(partition: partition) }

    mutating func run() throws(StorageFailure) {
        var memory = AlignedMemory(byteCount: chunkBytesMax.roundedUp(to: ChunkHeader.blockBytes))
        try checkHeader(memory)
        var at = UInt64(SegmentHeader.byteCount)
        var expected = segment.baseOffset
        /// Where the damage began that has not ended yet.
        var damagedFrom: UInt64?
        while at < segment.syncedBytes {
            let (chunk, found) = try readChunk(at: at, &memory)
            guard let chunk else {
                damagedFrom = damagedFrom ?? at
                at += UInt64(ChunkHeader.blockBytes)
                continue
            }
            if let from = damagedFrom {
                let next = chunk.isSeal ? segment.syncedEndOffset : chunk.baseOffset
                report(from..<at, expected, next)
                damagedFrom = nil
                expected = next
            }
            if !chunk.isSeal {
                check(memory.base, chunk, found, &expected)
            }
            chunks += 1
            at += UInt64(chunk.paddedBytes)
        }
        if let from = damagedFrom {
            report(from..<segment.syncedBytes, expected, segment.syncedEndOffset)
        } else if expected != segment.syncedEndOffset {
            report(
                segment.syncedBytes..<segment.syncedBytes, expected, segment.syncedEndOffset)
        }
    }

    private mutating func checkHeader(_ memory: borrowing AlignedMemory) throws(StorageFailure) {
        let block = UnsafeMutableRawBufferPointer(
            start: memory.base, count: SegmentHeader.byteCount)
        let count = try storage.read(file, at: 0, into: block)
        bytesRead += UInt64(count)
        guard
            count < SegmentHeader.byteCount
                || !SegmentHeader.verify(
                    UnsafeRawPointer(memory.base), partition: partition,
                    baseOffset: segment.baseOffset, term: segment.term)
        else { return }
        damages.append(
            Damage(
                file: file.path, bytes: 0..<UInt64(SegmentHeader.byteCount),
                what: "this is not the header of a segment of partition \(partition) from offset "
                    + "\(segment.baseOffset); its chunks vouch for themselves"))
    }

    /// The whole chunk at `at`, if one is there, and the bytes read.
    private mutating func readChunk(
        at position: UInt64, _ memory: inout AlignedMemory
    ) throws(StorageFailure) -> (ChunkHeader?, Int) {
        let block = UnsafeMutableRawBufferPointer(start: memory.base, count: ChunkHeader.blockBytes)
        let first = try storage.read(file, at: position, into: block)
        bytesRead += UInt64(first)
        let claimed =
            first < ChunkHeader.byteCount
            ? 0 : ChunkHeader.claimedBytes(UnsafeRawPointer(memory.base))
        let padded = claimed.roundedUp(to: ChunkHeader.blockBytes)
        guard claimed >= ChunkHeader.byteCount, position + UInt64(padded) <= segment.syncedBytes
        else { return (nil, first) }
        var count = first
        if padded > ChunkHeader.blockBytes {
            if padded > memory.byteCount { memory = AlignedMemory(byteCount: padded) }
            count = try storage.read(
                file, at: position,
                into: UnsafeMutableRawBufferPointer(start: memory.base, count: padded))
            bytesRead += UInt64(count)
        }
        return (
            ChunkHeader.decode(
                UnsafeRawPointer(memory.base), available: count, partition: partition,
                segmentBase: segment.baseOffset, term: segment.term, position: position), count
        )
    }

    /// The batches of a chunk whose checksum holds: what it does not cover is whether the bytes were
    /// right when they were written.
    private mutating func check(
        _ base: UnsafeMutableRawPointer, _ chunk: ChunkHeader, _ count: Int,
        _ expected: inout UInt64
    ) {
        let bytes = UnsafeRawPointer(base)
        var at = ChunkHeader.byteCount
        var isWhole = true
        while at < chunk.bytes {
            guard
                let length = StoredBatch.verify(
                    bytes + at, available: chunk.bytes - at,
                    partition: PartitionID(rawValue: partition)),
                StoredBatch.baseOffset(at: bytes + at) == expected
            else {
                report(
                    (chunk.position + UInt64(at))..<(chunk.position + UInt64(chunk.bytes)),
                    expected,
                    chunk.endOffset)
                isWhole = false
                break
            }
            expected = StoredBatch.endOffset(at: bytes + at)
            batches += 1
            at += length
        }
        if isWhole, expected != chunk.endOffset {
            let end = chunk.position + UInt64(chunk.bytes)
            report(end..<end, expected, chunk.endOffset)
        }
        expected = chunk.endOffset
    }

    private mutating func report(_ bytes: Range<UInt64>, _ from: UInt64, _ to: UInt64) {
        let what =
            from < to
            ? "offsets \(from) ..< \(to) of partition \(partition) can't be read"
            : "no offset is lost with it"
        damages.append(Damage(file: file.path, bytes: bytes, what: what))
    }
}
