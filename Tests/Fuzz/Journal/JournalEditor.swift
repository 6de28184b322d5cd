internal import BrokerBasics
internal import BrokerTestSupport
internal import FuzzInput
internal import LogStorage

/// Edits of journal, checkpoint and identity, and the checksums that they make wrong.
struct JournalEditor {
    private var image: DirectoryImage
    private let isSealed: Bool
    private let files: [FileName]
    private var edited: Set<Int> = []
    private var isCheckpointEdited = false
    private var isIdentityEdited = false

    init(image: DirectoryImage, isSealed: Bool) {
        self.image = image
        self.isSealed = isSealed
        files = image.journals
    }

    /// Makes what was edited right again, as far as asked for.
    mutating func finish() -> DirectoryImage {
        guard isSealed else { return image }
        // First the identity: the others' checksums are seeded with what it says.
        if isIdentityEdited { image.sealIdentity() }
        for group in edited.sorted() { image.sealGroup(image.groups[group]) }
        if isCheckpointEdited { image.sealCheckpoint() }
        return image
    }

    /// Up to four bytes in a row become others.
    mutating func damage(_ input: inout InputReader) {
        let files = files + [image.checkpoint, .identity]
        // A group's place more often than the unused rest of the journal.
        if input.choice(2) == 0 {
            let group = image.groups[input.choice(image.groups.count)]
            image.put(input.bytes(max: 4), at: group.at + input.place(group.bytes), in: group.file)
        } else {
            let file = files[input.choice(files.count)]
            image.put(input.bytes(max: 4), at: input.place(image.files[file]?.count ?? 0), in: file)
        }
    }

    mutating func edit(_ input: inout InputReader) {
        switch input.choice(10) {
        case 0:
            let file = files[input.choice(files.count)]
            image.put(input.bytes(), at: input.place(image.files[file]?.count ?? 0), in: file)
        case 1: editHeader(&input)
        case 2:
            let number = input.choice(image.groups.count)
            let part = image.groups[number]
            edited.insert(number)
            let room = part.bytes - JournalGroupHeader.byteCount
            image.put(
                input.bytes(), at: part.at + JournalGroupHeader.byteCount + input.place(room),
                in: part.file)
        case 3: append(&input)
        case 4:
            let (from, to) = (files[input.choice(files.count)], files[input.choice(files.count)])
            let (source, target) = (input.choice(16), input.choice(16))
            let block = JournalGeometry.blockBytes
            guard let bytes = image.files[from], bytes.count >= (source + 1) * block else { return }
            image.put(
                Array(bytes[source * block..<(source + 1) * block]), at: target * block, in: to)
        case 5:
            let file = files[input.choice(files.count)]
            let count = image.files[file]?.count ?? 0
            let wanted = input.place(count + 2)
            image.files[file] =
                wanted > count ? nil : image.files[file].map { Array($0[..<wanted]) }
        case 6:
            isCheckpointEdited = true
            image.put(
                input.bytes(), at: CheckpointFile.headerBytes + payloadPlace(&input),
                in: image.checkpoint)
        case 7:
            isCheckpointEdited = true
            let place = CheckpointFile.headerBytes + payloadPlace(&input)
            let count = [1, 2, 4, 8][input.choice(4)]
            image.put(Self.littleEndian(input.number(), count), at: place, in: image.checkpoint)
        case 8:
            isCheckpointEdited = true
            if input.choice(2) == 0 {
                image.put(
                    input.bytes(max: 16), at: input.choice(CheckpointFile.headerBytes),
                    in: image.checkpoint)
            } else {
                let count = image.files[image.checkpoint]?.count ?? 0
                let wanted = input.place(count + 1)
                image.files[image.checkpoint] = image.files[image.checkpoint].map {
                    Array($0[..<wanted])
                }
            }
        default:
            isIdentityEdited = true
            image.put(Self.littleEndian(input.number(), 8), at: input.choice(64), in: .identity)
        }
    }

    /// A place in the checkpoint's payload; its front, where the positions are, more often.
    private func payloadPlace(_ input: inout InputReader) -> Int {
        let count = (image.files[image.checkpoint]?.count ?? 0) - CheckpointFile.headerBytes
        return input.choice(2) == 0 ? input.choice(64) : input.place(max(0, count))
    }

    private static func littleEndian(_ value: UInt64, _ count: Int) -> [UInt8] {
        (0..<count).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) }
    }

    private mutating func editHeader(_ input: inout InputReader) {
        let number = input.choice(image.groups.count)
        let part = image.groups[number]
        edited.insert(number)
        // bytes, entries, position, previous end, attested, term, wall time
        let (at, count) = [(8, 4), (12, 4), (16, 8), (24, 8), (32, 8), (40, 8), (48, 8)][
            input.choice(7)]
        var value = input.number()
        if input.choice(2) == 0 {
            // Near what is there.
            let old = image.files[part.file]?.withUnsafeBytes { bytes in
                part.at + at + 8 <= bytes.count
                    ? bytes.loadUnaligned(fromByteOffset: part.at + at, as: UInt64.self) : 0
            }
            value = (old ?? 0) &+ value
        }
        image.put(Self.littleEndian(value, count), at: part.at + at, in: part.file)
    }

    /// A group of up to eight entries, lawful or not.
    private mutating func append(_ input: inout InputReader) {
        var entries = ByteBuilder()
        let count = 1 + input.choice(8)
        for _ in 0..<count {
            let kind = UInt8(input.choice(14))
            let flags = UInt8(input.choice(4) / 3)
            let object = UInt32(input.choice(8))
            let payload = payload(kind, &input)
            entries.put(UInt32(payload.count))
            entries.put(kind)
            entries.put(flags)
            entries.put(UInt16(0))
            entries.put(object)
            entries.put(UInt32(0))
            payload.withUnsafeBytes { entries.put(raw: $0) }
            for _ in payload.count..<payload.count.roundedUp(to: 8) { entries.put(UInt8(0)) }
        }
        image.appendGroup(entries.bytes, count: count)
    }

    /// What an entry of `kind` holds, field by field, or bytes as they are.
    private func payload(_ kind: UInt8, _ input: inout InputReader) -> [UInt8] {
        guard let kind = JournalEntryKind(rawValue: kind), input.choice(4) != 0 else {
            return input.bytes()
        }
        func id() -> UInt64 { input.choice(4) == 0 ? input.number() : UInt64(input.choice(8)) }
        func name() -> String { ["orders", "ticks", "other", "desk", ""][input.choice(5)] }
        var builder = ByteBuilder()
        switch kind {
        case .batch: return batch(&input)
        case .queueCreated, .queueAltered:
            builder.put(UInt32(truncatingIfNeeded: id()))
            builder.put(name())
            builder.put(UInt8(input.choice(4)))
            builder.put(input.number())
            builder.put(UInt32(0))
            let partitions = input.choice(4)
            builder.put(UInt32(partitions))
            for _ in 0..<partitions { builder.put(UInt32(truncatingIfNeeded: id())) }
            if input.choice(2) == 0 {
                for _ in 0..<3 { builder.put(input.number()) }
                if input.choice(2) == 0 {
                    for _ in 0..<partitions { builder.put(UInt16(input.choice(4))) }
                }
            }
        case .partitionAdopted: return input.bytes()
        case .queueDeleted, .partitionReleased: builder.put(UInt32(truncatingIfNeeded: id()))
        case .producerOpened:
            builder.put(id())
            builder.put(input.u16())
            builder.put(name())
            builder.put(input.number())
        case .producerExpired: builder.put(id())
        case .groupCreated:
            builder.put(UInt32(truncatingIfNeeded: id()))
            builder.put(UInt32(truncatingIfNeeded: id()))
            builder.put(name())
            let cursors = input.choice(4)
            builder.put(UInt32(cursors))
            for _ in 0..<cursors { builder.put(input.number()) }
        case .cursor:
            builder.put(UInt32(truncatingIfNeeded: id()))
            builder.put(UInt32(truncatingIfNeeded: id()))
            builder.put(input.number())
        case .reservation, .startMoved:
            builder.put(UInt32(truncatingIfNeeded: id()))
            builder.put(input.number())
        }
        return builder.bytes
    }

    /// A stored batch with fields from the input; its checksums are made right with its group's.
    private func batch(_ input: inout InputReader) -> [UInt8] {
        var builder = ByteBuilder()
        let records = input.bytes()
        let isLost = input.choice(4) == 0
        builder.put(input.number())
        builder.put(input.number())
        builder.put(UInt32(input.choice(4)))
        builder.put(UInt32(0))
        builder.put(UInt32(40 + (isLost ? 8 : records.count)))
        builder.put(UInt32(0))
        builder.put(UInt8(1))
        builder.put(UInt8(isLost ? 1 : 0))
        builder.put(isLost ? 0 : input.u16())
        builder.put(UInt16(input.choice(3)))
        builder.put(UInt16(0))
        builder.put(UInt64(input.choice(3)))
        builder.put(input.number())
        builder.put(input.number())
        if isLost {
            builder.put(input.number())
        } else {
            records.withUnsafeBytes { builder.put(raw: $0) }
        }
        return builder.bytes
    }
}
