internal import BrokerBasics

/// The one file that says what a data directory is. Written last when the directory is made, so a
/// directory without it was never in use.
///
/// Layout, 4,096 bytes: magic "MILLRACE" | format u32 | block_bytes u32 | server_id u64 |
/// journal_id u64 | journal_files u32 | reserved u32 | journal_file_bytes u64 | made_at u64 | zeros |
/// CRC32C u32 of everything before, in the last four bytes.
public struct Identity: Equatable, Sendable {
    public static let byteCount = 4096
    /// The format of everything in the directory. A newer one is refused by name.
    public static let format: UInt32 = 3

    public var serverID: UInt64
    /// Seeds the checksums of the journal, so that another directory's journal is not taken for
    /// this one's.
    public var journalID: UInt64
    public var geometry: JournalGeometry
    /// Nanoseconds since 1970.
    public var madeAt: UInt64

    public init(serverID: UInt64, journalID: UInt64, geometry: JournalGeometry, madeAt: UInt64) {
        self.serverID = serverID
        self.journalID = journalID
        self.geometry = geometry
        self.madeAt = madeAt
    }

    public var encoded: [UInt8] {
        var builder = ByteBuilder()
        for byte in "MILLRACE".utf8 { builder.put(byte) }
        builder.put(Self.format)
        builder.put(UInt32(JournalGeometry.blockBytes))
        builder.put(serverID)
        builder.put(journalID)
        builder.put(UInt32(geometry.fileCount))
        builder.put(UInt32(0))
        builder.put(geometry.fileBytes)
        builder.put(madeAt)
        var bytes = builder.bytes
        bytes += [UInt8](repeating: 0, count: Self.byteCount - bytes.count)
        let crc = bytes.withUnsafeBytes {
            CRC32C.of(UnsafeRawBufferPointer(rebasing: $0[..<(Self.byteCount - 4)]))
        }
        withUnsafeBytes(of: crc.littleEndian) {
            bytes.replaceSubrange(Self.byteCount - 4..<Self.byteCount, with: $0)
        }
        return bytes
    }

    /// Whether a newer brokerd wrote it, which may keep what it uses elsewhere.
    public static func isNewer(_ bytes: UnsafeRawBufferPointer) -> Bool {
        guard bytes.count >= 12, let base = bytes.baseAddress else { return false }
        return bytes.prefix(8).elementsEqual("MILLRACE".utf8) && base.u32(8) > format
    }

    public static func decode(
        _ bytes: UnsafeRawBufferPointer, in folder: ShardFolder = ShardFolder(shard: 0)
    ) throws(StorageFailure) -> Identity {
        let path = folder.path(.identity)
        guard bytes.count >= byteCount, let base = bytes.baseAddress else {
            throw StorageFailure("\(path) has \(bytes.count) bytes instead of \(byteCount)")
        }
        guard bytes.prefix(8).elementsEqual("MILLRACE".utf8) else {
            throw StorageFailure(
                "\(path) does not begin with MILLRACE: not a data directory of ours")
        }
        // The format before the checksum: a newer format may keep its checksum elsewhere.
        guard base.u32(8) <= format else {
            throw StorageFailure(
                "\(path) has format \(base.u32(8)); this brokerd knows formats up to \(format). "
                    + "Use a newer brokerd")
        }
        let crc = CRC32C.of(UnsafeRawBufferPointer(rebasing: bytes[..<(byteCount - 4)]))
        guard crc == base.u32(byteCount - 4) else {
            throw StorageFailure("\(path) is damaged: its checksum does not match")
        }
        let geometry = JournalGeometry(fileBytes: base.u64(40), fileCount: Int(base.u32(32)))
        guard base.u32(12) == UInt32(JournalGeometry.blockBytes), geometry.isValid else {
            throw StorageFailure("\(path) describes a journal that this brokerd can't use")
        }
        return Identity(
            serverID: base.u64(16), journalID: base.u64(24), geometry: geometry,
            madeAt: base.u64(48))
    }
}
