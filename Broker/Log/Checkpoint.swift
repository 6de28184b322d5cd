internal import BrokerBasics

/// A checkpoint file: the machine's durable state at one journal position.
///
/// Layout: magic "MRCHKPNT" | format u32 | checksum u32 (CRC32C of everything from byte 16 to the end
/// of the payload) | sequence u64 | payload_bytes u64 | zeros to byte 64 | payload | zeros to a
/// multiple of 4,096.
///
/// It is written to a new file, synced, and its name synced, before anything relies on it; the one
/// before is removed after that. A crash in between leaves two, and the later whole one counts.
public enum CheckpointFile {
    public static let headerBytes = 64

    /// The file's bytes for `payload`, in memory aligned for direct I/O.
    public static func encode(payload: [UInt8], sequence: UInt64) -> AlignedMemory {
        let memory = AlignedMemory(
            byteCount: (headerBytes + payload.count).roundedUp(to: JournalGeometry.blockBytes))
        let base = memory.base
        for (at, byte) in "MRCHKPNT".utf8.enumerated() { base.put(byte, at) }
        base.put(Identity.format, 8)
        base.put(sequence, 16)
        base.put(UInt64(payload.count), 24)
        payload.withUnsafeBytes { source in
            UnsafeMutableRawBufferPointer(start: base + headerBytes, count: payload.count)
                .copyMemory(from: source)
        }
        base.put(
            CRC32C.extend(0, UnsafeRawPointer(base) + 16, count: headerBytes - 16 + payload.count),
            12)
        return memory
    }

    /// What reading a checkpoint gave.
    public enum Contents {
        case whole([UInt8])
        /// Written in part: a crash came before it counted.
        case torn
        case newerFormat(UInt32)
    }

    public static func read(
        _ sequence: UInt64, from storage: any RecoveryStorage
    ) throws(StorageFailure) -> Contents {
        let file = FileName.checkpoint(sequence)
        guard let size = try storage.size(file), size >= UInt64(headerBytes), size <= 1 << 34 else {
            return .torn
        }
        let memory = AlignedMemory(byteCount: Int(size).roundedUp(to: JournalGeometry.blockBytes))
        var count = 0
        while count < Int(size) {
            let rest = UnsafeMutableRawBufferPointer(rebasing: memory.buffer[count...])
            let read = try storage.read(file, at: UInt64(count), into: rest)
            guard read > 0 else { break }
            count += read
        }
        let base = UnsafeRawPointer(memory.base)
        guard count >= headerBytes, memory.buffer.prefix(8).elementsEqual("MRCHKPNT".utf8) else {
            return .torn
        }
        guard base.u32(8) <= Identity.format else { return .newerFormat(base.u32(8)) }
        let payloadBytes = base.u64(24)
        guard base.u64(16) == sequence, payloadBytes <= UInt64(count - headerBytes) else {
            return .torn
        }
        let covered = headerBytes - 16 + Int(payloadBytes)
        guard CRC32C.extend(0, base + 16, count: covered) == base.u32(12) else { return .torn }
        return .whole(
            [UInt8](UnsafeRawBufferPointer(start: base + headerBytes, count: Int(payloadBytes))))
    }
}
