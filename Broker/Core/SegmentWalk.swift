internal import BrokerBasics
public import LogStorage
internal import WireProtocol

/// A stretch of a segment that is not what was written, and the offsets that it took.
public struct SegmentFlaw: Sendable, Equatable {
    /// Of the file.
    public var bytes: Range<UInt64>
    public var offsets: Range<UInt64>

    public init(bytes: Range<UInt64>, offsets: Range<UInt64>) {
        self.bytes = bytes
        self.offsets = offsets
    }

    public func what(partition: UInt32) -> String {
        offsets.isEmpty
            ? "no offset is lost with it"
            : "offsets \(offsets.lowerBound) ..< \(offsets.upperBound) of partition \(partition) "
                + "can't be read"
    }
}

/// Goes over the chunks of a segment in order and believes nothing: each chunk's and each batch's
/// checksums, and that offsets follow each other without a gap. Whoever has the bytes hands them in.
///
/// Behind a damaged chunk it looks for the next whole one, block by block, so that one damage is one
/// flaw and names the offsets that it took.
public struct SegmentWalk {
    public enum Step: Equatable {
        /// `at` moved.
        case went
        /// So many bytes from `at` on are needed.
        case needs(Int)
    }

    public let partition: UInt32
    public let base: UInt64
    public let term: UInt64
    /// Where the walk ends: in the file, and in offsets.
    public let end: UInt64
    public let endOffset: UInt64

    /// The place in the file that comes next.
    public private(set) var at = UInt64(SegmentHeader.byteCount)
    public private(set) var chunks = 0
    public private(set) var batches = 0
    public private(set) var flaws: [SegmentFlaw] = []
    private var expected: UInt64
    /// Where the damage began that has not ended yet.
    private var damagedFrom: UInt64?

    /// - Parameter segment: checked as far as it was on stable storage.
    public init(_ segment: SegmentInfo, partition: UInt32) {
        self.partition = partition
        base = segment.baseOffset
        term = segment.term
        end = segment.syncedBytes
        endOffset = segment.syncedEndOffset
        expected = segment.baseOffset
    }

    public var isDone: Bool { at >= end }

    /// What a segment whose first block is not its header is told of.
    public static func noHeader(_ segment: SegmentInfo, partition: UInt32) -> String {
        "this is not the header of a segment of partition \(partition) from offset "
            + "\(segment.baseOffset); its chunks vouch for themselves"
    }

    /// Looks at what lies at `at`.
    ///
    /// - Parameters:
    ///   - available: how many bytes of it there are.
    ///   - isAll: no more can be had: a chunk that claims more is none.
    public mutating func step(
        _ bytes: UnsafeRawPointer, available: Int, isAll: Bool
    ) -> Step {
        guard available >= ChunkHeader.byteCount || isAll else {
            return .needs(ChunkHeader.blockBytes)
        }
        let claimed =
            available >= ChunkHeader.byteCount ? ChunkHeader.claimedBytes(bytes) : 0
        let padded = claimed.roundedUp(to: ChunkHeader.blockBytes)
        guard claimed >= ChunkHeader.byteCount, at + UInt64(padded) <= end else {
            return passBlock()
        }
        guard available >= padded || isAll else { return .needs(padded) }
        guard
            let chunk = ChunkHeader.decode(
                bytes, available: available, partition: partition, segmentBase: base, term: term,
                position: at)
        else { return passBlock() }
        if let from = damagedFrom {
            let next = chunk.isSeal ? endOffset : chunk.baseOffset
            report(from..<at, next)
            damagedFrom = nil
            expected = next
        }
        if !chunk.isSeal { check(bytes, chunk) }
        chunks += 1
        at += UInt64(chunk.paddedBytes)
        return .went
    }

    /// What could not be read is as good as damaged.
    public mutating func passBlock() -> Step {
        damagedFrom = damagedFrom ?? at
        at += UInt64(ChunkHeader.blockBytes)
        return .went
    }

    /// The walk is over: names what is missing at its end.
    public mutating func finish() {
        if let from = damagedFrom {
            report(from..<end, endOffset)
        } else if expected != endOffset {
            report(end..<end, endOffset)
        }
        damagedFrom = nil
        expected = endOffset
    }

    /// The batches of a chunk whose checksum holds: what it does not cover is whether the bytes were
    /// right when they were written.
    private mutating func check(_ bytes: UnsafeRawPointer, _ chunk: ChunkHeader) {
        var place = ChunkHeader.byteCount
        while place < chunk.bytes {
            guard
                let length = StoredBatch.verify(
                    bytes + place, available: chunk.bytes - place,
                    partition: PartitionID(rawValue: partition)),
                StoredBatch.baseOffset(at: bytes + place) == expected
            else {
                report(
                    (chunk.position + UInt64(place))..<(chunk.position + UInt64(chunk.bytes)),
                    chunk.endOffset)
                expected = chunk.endOffset
                return
            }
            expected = StoredBatch.endOffset(at: bytes + place)
            batches += 1
            place += length
        }
        if expected != chunk.endOffset {
            let last = chunk.position + UInt64(chunk.bytes)
            report(last..<last, chunk.endOffset)
        }
        expected = chunk.endOffset
    }

    private mutating func report(_ bytes: Range<UInt64>, _ next: UInt64) {
        flaws.append(SegmentFlaw(bytes: bytes, offsets: min(expected, next)..<next))
    }
}
