internal import BrokerBasics
package import LogStorage
internal import WireProtocol

// Checksums made right after an edit, so that what it changed is looked at and not only refused.
extension DirectoryImage {
    /// Lets `body` change a file's bytes; nothing happens when there is no such file.
    package mutating func edit(
        _ file: FileName, _ body: (UnsafeMutableRawBufferPointer) -> Void
    ) {
        files[file]?.withUnsafeMutableBytes(body)
    }

    /// Puts `bytes` over what is at `at`, as far as the file goes.
    package mutating func put(_ bytes: [UInt8], at: Int, in file: FileName) {
        edit(file) { content in
            for (place, byte) in bytes.enumerated() where at + place < content.count {
                content[at + place] = byte
            }
        }
    }

    /// The group of the journal at `part`, as far as its header says, and the batches in it.
    package mutating func sealGroup(_ part: Part) {
        guard let journalID = identity?.journalID else { return }
        edit(part.file) { bytes in
            guard let base = bytes.baseAddress,
                bytes.count - part.at >= JournalGroupHeader.byteCount
            else { return }
            let group = base + part.at
            let claimed = Int(UnsafeRawPointer(group).u32(8))
            guard claimed >= JournalGroupHeader.byteCount, claimed <= bytes.count - part.at else {
                return
            }
            let available = claimed
            var at = JournalGroupHeader.byteCount
            while available - at >= JournalGroupHeader.entryHeaderBytes {
                let entry = UnsafeRawPointer(group) + at
                let payloadBytes = Int(entry.u32(0))
                at += JournalGroupHeader.entryHeaderBytes
                guard payloadBytes <= available - at else { break }
                if entry.u8(4) == JournalEntryKind.batch.rawValue {
                    Self.sealBatch(group + at, available: payloadBytes, partition: entry.u32(8))
                }
                at += payloadBytes.roundedUp(to: 8)
            }
            let raw = UnsafeRawPointer(group)
            JournalGroupHeader(
                bytes: claimed, entries: Int(raw.u32(12)), position: raw.u64(16),
                previousEnd: raw.u64(24), attested: raw.u64(32), term: raw.u64(40),
                wallTime: raw.u64(48)
            ).encode(at: group, journalID: journalID)
        }
    }

    /// The chunk or seal at `part`, as far as its header says; with the batches in it when asked to.
    package mutating func sealChunk(_ part: Part, withBatches: Bool) {
        guard case .segment(let partition, let segmentBase, let term) = part.file else { return }
        edit(part.file) { bytes in
            guard let base = bytes.baseAddress, bytes.count - part.at >= ChunkHeader.byteCount
            else {
                return
            }
            let chunk = base + part.at
            let raw = UnsafeRawPointer(chunk)
            let claimed = Int(raw.u32(8))
            guard claimed >= ChunkHeader.byteCount, claimed <= bytes.count - part.at else { return }
            if withBatches, raw.u32(12) & ChunkHeader.sealFlag == 0 {
                var at = ChunkHeader.byteCount
                while claimed - at > StoredBatch.headerBytes {
                    let length = StoredBatch.bytes(at: raw + at)
                    Self.sealBatch(chunk + at, available: claimed - at, partition: partition)
                    at += length
                }
            }
            ChunkHeader(
                bytes: claimed, flags: raw.u32(12), baseOffset: raw.u64(16),
                endOffset: raw.u64(24), firstTime: raw.u64(32), lastTime: raw.u64(40),
                position: raw.u64(48)
            ).encode(at: chunk, partition: partition, segmentBase: segmentBase, term: term)
        }
    }

    /// Both checksums of the stored batch at `base`, when it ends before `available`.
    private static func sealBatch(
        _ base: UnsafeMutableRawPointer, available: Int, partition: UInt32
    ) {
        guard available > StoredBatch.headerBytes else { return }
        let raw = UnsafeRawPointer(base)
        let batchBytes = Int(raw.u32(StoredBatch.stampBytes))
        guard batchBytes > BatchHeader.byteCount, batchBytes <= available - StoredBatch.stampBytes
        else { return }
        let producer = base + StoredBatch.stampBytes
        let checksum = CRC32C.extend(0, UnsafeRawPointer(producer) + 8, count: batchBytes - 8)
        producer.put(checksum, 4)
        StoredBatch.stamp(
            base, partition: PartitionID(rawValue: partition), baseOffset: raw.u64(0),
            appendTime: raw.u64(8), epoch: raw.u32(16), producerChecksum: checksum)
    }

    /// The checkpoint, as far as its header says.
    package mutating func sealCheckpoint() {
        edit(checkpoint) { bytes in
            guard let base = bytes.baseAddress, bytes.count >= CheckpointFile.headerBytes else {
                return
            }
            let payloadBytes = UnsafeRawPointer(base).u64(24)
            guard payloadBytes <= UInt64(bytes.count - CheckpointFile.headerBytes) else { return }
            let covered = CheckpointFile.headerBytes - 16 + Int(payloadBytes)
            base.put(CRC32C.extend(0, UnsafeRawPointer(base) + 16, count: covered), 12)
        }
    }

    package mutating func sealSegmentHeader(_ file: FileName) {
        edit(file) { bytes in
            guard let base = bytes.baseAddress, bytes.count >= SegmentHeader.byteCount else {
                return
            }
            let covered = SegmentHeader.byteCount - 4
            base.put(CRC32C.extend(0, UnsafeRawPointer(base), count: covered), covered)
        }
    }

    package mutating func sealIdentity() {
        edit(.identity) { bytes in
            guard let base = bytes.baseAddress, bytes.count >= Identity.byteCount else { return }
            let covered = Identity.byteCount - 4
            base.put(CRC32C.extend(0, UnsafeRawPointer(base), count: covered), covered)
        }
    }

    package var identity: Identity? {
        files[.identity]?.withUnsafeBytes { try? Identity.decode($0) }
    }

    /// Puts a group with `entries` behind the last one, as the broker would have.
    package mutating func appendGroup(_ entries: [UInt8], count: Int) {
        guard let identity, let last = groups.last, let bytes = files[last.file] else { return }
        let header = bytes.withUnsafeBytes { buffer in
            // The file may have been cut since.
            last.at >= buffer.count
                ? nil
                : buffer.baseAddress.flatMap {
                    JournalGroupHeader.decode(
                        $0 + last.at, available: min(last.bytes, buffer.count - last.at),
                        journalID: identity.journalID)
                }
        }
        guard let header else { return }
        let geometry = identity.geometry
        let groupBytes = JournalGroupHeader.byteCount + entries.count
        var position = header.end
        if geometry.offset(of: position) + UInt64(groupBytes) > geometry.fileBytes {
            position = geometry.nextFile(after: position)
        }
        let part = Part(
            file: .journal(geometry.file(of: position)), at: Int(geometry.offset(of: position)),
            bytes: groupBytes)
        edit(part.file) { file in
            guard part.at + groupBytes <= file.count, let base = file.baseAddress else { return }
            entries.withUnsafeBytes { source in
                UnsafeMutableRawBufferPointer(
                    start: base + part.at + JournalGroupHeader.byteCount, count: source.count
                ).copyMemory(from: source)
            }
            JournalGroupHeader(
                bytes: groupBytes, entries: count, position: position, previousEnd: header.end,
                attested: header.end, term: header.term, wallTime: header.wallTime
            ).encode(at: base + part.at, journalID: identity.journalID)
        }
        sealGroup(part)
        addGroup(part)
    }
}
