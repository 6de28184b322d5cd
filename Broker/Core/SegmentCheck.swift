internal import BrokerBasics
internal import LogStorage

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

/// Reads a whole segment as far as it was on stable storage, and hands it to a walk.
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
        var walk = SegmentWalk(segment, partition: partition)
        while !walk.isDone {
            let count = try read(at: walk.at, ChunkHeader.blockBytes, &memory)
            guard
                case .needs(let bytes) = walk.step(
                    UnsafeRawPointer(memory.base), available: count, isAll: false)
            else { continue }
            let all = try read(at: walk.at, bytes, &memory)
            _ = walk.step(UnsafeRawPointer(memory.base), available: all, isAll: true)
        }
        walk.finish()
        chunks = walk.chunks
        batches = walk.batches
        for flaw in walk.flaws {
            damages.append(
                Damage(
                    file: file.path, bytes: flaw.bytes, what: flaw.what(partition: partition)))
        }
    }

    private mutating func read(
        at position: UInt64, _ bytes: Int, _ memory: inout AlignedMemory
    ) throws(StorageFailure) -> Int {
        if bytes > memory.byteCount { memory = AlignedMemory(byteCount: bytes) }
        let count = try storage.read(
            file, at: position,
            into: UnsafeMutableRawBufferPointer(start: memory.base, count: bytes))
        bytesRead += UInt64(count)
        return count
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
                what: SegmentWalk.noHeader(segment, partition: partition)))
    }
}
