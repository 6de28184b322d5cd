public import BrokerBasics

/// The producer's part of a batch (SPEC.md, section 5.1): the bytes that a producer checksums and
/// that nobody rewrites, from the socket to the journal to the segment to the consumer.
///
/// ```
///  0 u32 batch_bytes     from here to the end of the records
///  4 u32 checksum        CRC32C of bytes 8 ..< batch_bytes
///  8 u8  format          1
///  9 u8  attributes      bit 0 `lost` (broker only); others 0
/// 10 u16 record_count    1 ... 65,535 (0 when `lost`)
/// 12 u16 producer_epoch
/// 14 u16 reserved        0
/// 16 u64 producer_id     0: not numbered, a retry may be stored twice
/// 24 u64 base_sequence   of the first record, per (producer, partition), from 0
/// 32 u64 base_timestamp  ns since 1970, the producer's clock
/// 40     records
/// ```
public struct BatchHeader: Equatable, Sendable {
    @inlinable public static var byteCount: Int { 40 }
    @inlinable public static var format: UInt8 { 1 }
    @inlinable public static var lostAttribute: UInt8 { 1 }

    public var batchBytes: Int
    public var checksum: UInt32
    public var attributes: UInt8
    public var recordCount: Int
    public var producerEpoch: UInt16
    public var producerID: UInt64
    public var baseSequence: UInt64
    public var baseTimestamp: UInt64

    /// Reads the header without checking; the bytes were checked when they came in.
    @inlinable @inline(__always)
    public init(at bytes: UnsafeRawPointer) {
        batchBytes = Int(bytes.u32(0))
        checksum = bytes.u32(4)
        attributes = bytes.u8(9)
        recordCount = Int(bytes.u16(10))
        producerEpoch = bytes.u16(12)
        producerID = bytes.u64(16)
        baseSequence = bytes.u64(24)
        baseTimestamp = bytes.u64(32)
    }

    @inlinable public var isLost: Bool { attributes & Self.lostAttribute != 0 }

    /// Checks a batch that a client sent: layout, checksum, and that the records fill it exactly.
    ///
    /// - Parameter count: the bytes at `bytes`, which must be exactly one batch.
    /// - Returns: `.ok`, or what the producer is told.
    @inlinable @inline(__always)
    public static func check(_ bytes: UnsafeRawPointer, count: Int) -> StatusCode {
        guard count > byteCount, Int(bytes.u32(0)) == count else { return .batchInvalid }
        guard CRC32C.extend(0, bytes + 8, count: count - 8) == bytes.u32(4) else {
            return .badChecksum
        }
        guard bytes.u8(8) == format, bytes.u8(9) == 0, bytes.u16(14) == 0 else {
            return .batchInvalid
        }
        let recordCount = Int(bytes.u16(10))
        guard recordCount > 0, bytes.u64(24) <= UInt64.max - UInt64(recordCount) else {
            return .batchInvalid
        }
        return RecordReader.fill(bytes, from: byteCount, to: count, records: recordCount)
            ? .ok : .batchInvalid
    }
}

/// A batch as it is stored and delivered: the broker's stamp, then the producer's part untouched.
///
/// ```
///  0 u64 base_offset
///  8 u64 append_time     ns since 1970, never decreasing within a partition
/// 16 u32 epoch           of the partition
/// 20 u32 stamp_checksum  CRC32C of bytes 0 ..< 20, partition id (u32), producer's checksum
/// 24     the producer's part
/// ```
///
/// The stamp's checksum names the partition and binds the stamp to its records, so bytes that
/// belong elsewhere are not taken for this partition's.
public struct StoredBatch {
    public typealias Checksum = CRC32C
    @inlinable public static var stampBytes: Int { 24 }
    @inlinable public static var headerBytes: Int { stampBytes + BatchHeader.byteCount }
    /// The records' place in a `lost` batch holds the end of its range, a u64.
    static let lostBodyBytes = 8

    @inlinable @inline(__always)
    public static func stamp(
        _ bytes: UnsafeMutableRawPointer,
        partition: PartitionID,
        baseOffset: UInt64,
        appendTime: UInt64,
        epoch: UInt32,
        producerChecksum: UInt32
    ) {
        bytes.put(baseOffset, 0)
        bytes.put(appendTime, 8)
        bytes.put(epoch, 16)
        bytes.put(
            checksum(UnsafeRawPointer(bytes), partition: partition, producerChecksum), 20)
    }

    @inlinable @inline(__always)
    static func checksum(
        _ bytes: UnsafeRawPointer,
        partition: PartitionID,
        _ producerChecksum: UInt32
    ) -> UInt32 {
        let place = UInt64(partition.rawValue) | UInt64(producerChecksum) << 32
        return CRC32C.extend(CRC32C.extend(0, bytes, fixed: 20), place)
    }

    /// Verifies stamp, checksums and layout of the stored batch at `bytes`; its records are not
    /// walked, `RecordReader` checks each step.
    ///
    /// - Returns: the whole length in bytes, or `nil` when it is not a batch of `partition`, or one
    ///   of a layout that version 1 does not have.
    public static func verify(
        _ bytes: UnsafeRawPointer,
        available: Int,
        partition: PartitionID
    ) -> Int? {
        guard available > headerBytes else { return nil }
        let producer = bytes + stampBytes
        let batchBytes = Int(producer.u32(0))
        guard batchBytes > BatchHeader.byteCount, batchBytes <= available - stampBytes else {
            return nil
        }
        guard checksum(bytes, partition: partition, producer.u32(4)) == bytes.u32(20) else {
            return nil
        }
        guard CRC32C.extend(0, producer + 8, count: batchBytes - 8) == producer.u32(4) else {
            return nil
        }
        // A good checksum says who wrote it, not that we can read it.
        return layout(bytes, available: available)
    }

    /// The layout alone of the stored batch at `bytes`, for whom something else has vouched for the
    /// bytes: a `lost` batch needs room for the end of its range, and offsets must go forward.
    ///
    /// - Returns: the whole length in bytes, or `nil` when the batch does not end within `available`
    ///   or is of a layout that version 1 does not have.
    public static func layout(_ bytes: UnsafeRawPointer, available: Int) -> Int? {
        guard available > headerBytes else { return nil }
        let producer = bytes + stampBytes
        let batchBytes = Int(producer.u32(0))
        let attributes = producer.u8(9)
        guard batchBytes > BatchHeader.byteCount, batchBytes <= available - stampBytes,
            producer.u8(8) == BatchHeader.format,
            attributes & ~BatchHeader.lostAttribute == 0,
            attributes == 0 || batchBytes == BatchHeader.byteCount + lostBodyBytes,
            endOffset(at: bytes) > baseOffset(at: bytes)
        else { return nil }
        return stampBytes + batchBytes
    }

    @inlinable @inline(__always) public static func bytes(at bytes: UnsafeRawPointer) -> Int {
        stampBytes &+ Int((bytes + stampBytes).u32(0))
    }
    @inlinable @inline(__always)
    public static func baseOffset(at bytes: UnsafeRawPointer) -> UInt64 { bytes.u64(0) }
    @inlinable @inline(__always)
    public static func appendTime(at bytes: UnsafeRawPointer) -> UInt64 { bytes.u64(8) }
    @inlinable @inline(__always)
    public static func epoch(at bytes: UnsafeRawPointer) -> UInt32 { bytes.u32(16) }

    /// The offset after the batch: of its records, or of the range that a `lost` batch stands for.
    @inlinable @inline(__always)
    public static func endOffset(at bytes: UnsafeRawPointer) -> UInt64 {
        let producer = bytes + stampBytes
        if producer.u8(9) & BatchHeader.lostAttribute != 0 {
            return producer.u64(BatchHeader.byteCount)
        }
        return bytes.u64(0) &+ UInt64(producer.u16(10))
    }

    /// The stored bytes of a `lost` batch: offsets `range` were given out and are gone.
    public static func lost(
        _ range: Range<UInt64>,
        partition: PartitionID,
        epoch: UInt32,
        appendTime: UInt64
    ) -> [UInt8] {
        var producer = ByteBuilder()
        let batchBytes = BatchHeader.byteCount + lostBodyBytes
        producer.put(BatchHeader.format)
        producer.put(BatchHeader.lostAttribute)
        producer.put(UInt16(0))
        producer.put(UInt16(0))
        producer.put(UInt16(0))
        producer.put(UInt64(0))
        producer.put(UInt64(0))
        producer.put(appendTime)
        producer.put(range.upperBound)
        let checksum = producer.bytes.withUnsafeBytes { CRC32C.of($0) }
        var bytes = [UInt8](repeating: 0, count: stampBytes + batchBytes)
        bytes.withUnsafeMutableBytes { buffer in
            guard let base = buffer.baseAddress else { return }
            (base + stampBytes).put(UInt32(batchBytes), 0)
            (base + stampBytes).put(checksum, 4)
            producer.bytes.withUnsafeBytes { source in
                UnsafeMutableRawBufferPointer(rebasing: buffer[(stampBytes + 8)...])
                    .copyMemory(from: source)
            }
            stamp(
                base,
                partition: partition,
                baseOffset: range.lowerBound,
                appendTime: appendTime,
                epoch: epoch,
                producerChecksum: checksum
            )
        }
        return bytes
    }
}
