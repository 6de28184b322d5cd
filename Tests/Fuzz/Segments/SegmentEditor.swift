internal import BrokerBasics
internal import BrokerTestSupport
internal import FuzzInput
internal import LogStorage

/// Edits of segment files, and the checksums that they make wrong.
struct SegmentEditor {
    private var image: DirectoryImage
    private let sealsChunks: Bool
    private let sealsBatches: Bool
    private var edited: Set<Int> = []
    private var editedHeaders: Set<FileName> = []

    init(image: DirectoryImage, sealsChunks: Bool, sealsBatches: Bool) {
        self.image = image
        self.sealsChunks = sealsChunks
        self.sealsBatches = sealsBatches
    }

    /// Makes what was edited right again, as far as asked for.
    mutating func finish() -> DirectoryImage {
        guard sealsChunks else { return image }
        for chunk in edited.sorted() {
            image.sealChunk(image.chunks[chunk], withBatches: sealsBatches)
        }
        for file in editedHeaders { image.sealSegmentHeader(file) }
        return image
    }

    /// Up to four bytes in a row become others.
    mutating func damage(_ input: inout InputReader) {
        let chunk = image.chunks[input.choice(image.chunks.count)]
        image.put(input.bytes(max: 4), at: chunk.at + input.place(chunk.bytes), in: chunk.file)
    }

    /// A number of `count` bytes, any or near the one that is there.
    private mutating func putNumber(
        _ input: inout InputReader, _ count: Int, at: Int, in file: FileName
    ) {
        var value = input.number()
        if input.choice(2) == 0 {
            let old = image.files[file]?.withUnsafeBytes { bytes in
                at + 8 <= bytes.count ? bytes.loadUnaligned(fromByteOffset: at, as: UInt64.self) : 0
            }
            value = (old ?? 0) &+ value
        }
        image.put(
            (0..<count).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) }, at: at,
            in: file)
    }

    mutating func edit(_ input: inout InputReader) {
        let segments = image.segments
        switch input.choice(8) {
        case 0:
            let file = segments[input.choice(segments.count)]
            image.put(input.bytes(), at: input.place(image.files[file]?.count ?? 0), in: file)
        case 1:
            let number = input.choice(image.chunks.count)
            let chunk = image.chunks[number]
            edited.insert(number)
            // bytes, flags, base offset, end offset, first time, last time, position
            let (at, count) = [(8, 4), (12, 4), (16, 8), (24, 8), (32, 8), (40, 8), (48, 8)][
                input.choice(7)]
            putNumber(&input, count, at: chunk.at + at, in: chunk.file)
        case 2:
            let number = input.choice(image.chunks.count)
            let chunk = image.chunks[number]
            edited.insert(number)
            editBatch(&input, chunk)
        case 3:
            let number = input.choice(image.chunks.count)
            let chunk = image.chunks[number]
            edited.insert(number)
            let room = chunk.bytes - ChunkHeader.byteCount
            image.put(
                input.bytes(), at: chunk.at + ChunkHeader.byteCount + input.place(room),
                in: chunk.file)
        case 4:
            let (from, to) = (
                segments[input.choice(segments.count)], segments[input.choice(segments.count)]
            )
            let (source, target) = (input.choice(8), input.choice(8))
            let block = ChunkHeader.blockBytes
            guard let bytes = image.files[from], bytes.count >= (source + 1) * block else { return }
            image.put(
                Array(bytes[source * block..<(source + 1) * block]), at: target * block, in: to)
        case 5:
            let file = segments[input.choice(segments.count)]
            let count = image.files[file]?.count ?? 0
            let wanted = input.place(count + 2)
            image.files[file] =
                wanted > count ? nil : image.files[file].map { Array($0[..<wanted]) }
        case 6:
            let (from, to) = (
                segments[input.choice(segments.count)], segments[input.choice(segments.count)]
            )
            image.files[to] = image.files[from]
        default:
            let file = segments[input.choice(segments.count)]
            editedHeaders.insert(file)
            let (at, count) = [(8, 4), (12, 4), (16, 8), (24, 8), (32, 8)][input.choice(5)]
            putNumber(&input, count, at: at, in: file)
        }
    }

    /// A field of the batch that is so many batches behind the chunk's header. In a seal the same
    /// places are those of its index.
    private mutating func editBatch(_ input: inout InputReader, _ chunk: DirectoryImage.Part) {
        var at = chunk.at + ChunkHeader.byteCount
        guard let bytes = image.files[chunk.file], chunk.at + chunk.bytes <= bytes.count else {
            return
        }
        bytes.withUnsafeBytes { content in
            guard let base = content.baseAddress else { return }
            for _ in 0..<input.choice(8) {
                // Stamp (24 bytes), then the length of the producer's part.
                guard at + 28 <= chunk.at + chunk.bytes else { return }
                let next = at + 24 + Int((base + at).u32(24))
                guard next < chunk.at + chunk.bytes else { return }
                at = next
            }
        }
        // base offset, append time, epoch, length, attributes, records, producer epoch, producer,
        // sequence, end of a lost range
        let (place, count) = [
            (0, 8), (8, 8), (16, 4), (24, 4), (33, 1), (34, 2), (36, 2), (40, 8), (48, 8), (64, 8),
        ][input.choice(10)]
        putNumber(&input, count, at: at + place, in: chunk.file)
    }
}
