public import BrokerBasics

/// One record as producers and consumers see it (SPEC.md, section 5.3).
public struct Record: Equatable, Sendable {
    public struct Header: Equatable, Sendable {
        public var name: String
        public var value: [UInt8]
        public init(name: String, value: [UInt8]) {
            self.name = name
            self.value = value
        }
    }

    public var key: [UInt8]?
    public var headers: [Header]
    public var trace: TraceContext?
    /// Nanoseconds since 1970, the producer's clock.
    public var timestamp: UInt64
    public var value: [UInt8]

    public init(
        value: [UInt8],
        key: [UInt8]? = nil,
        headers: [Header] = [],
        trace: TraceContext? = nil,
        timestamp: UInt64 = 0
    ) {
        self.value = value
        self.key = key
        self.headers = headers
        self.trace = trace
        self.timestamp = timestamp
    }
}

/// The record encoding inside a batch:
///
/// ```
/// varint length of what follows
/// u8     attributes: bit 0 trace, bit 1 key, bit 2 headers, bit 3 timestamp; others 0
/// [zigzag varint timestamp − base_timestamp] [25 bytes trace] [varint n, key]
/// [varint count, then per header: varint n, name, varint n, value] value to the end
/// ```
public enum RecordFormat {
    public static let trace: UInt8 = 1
    public static let key: UInt8 = 2
    public static let headers: UInt8 = 4
    public static let timestamp: UInt8 = 8
}

/// Walks the records of one batch; every step is checked against the batch's end.
public struct RecordReader {
    public let base: UnsafeRawPointer
    public let end: Int
    public private(set) var at: Int
    private let baseTimestamp: UInt64

    /// `batch` is a producer's part that `BatchHeader.check` accepted.
    public init(batch: UnsafeRawPointer) {
        base = batch
        at = BatchHeader.byteCount
        end = Int(batch.u32(0))
        baseTimestamp = batch.u64(32)
    }

    /// An unsigned LEB128 of at most five bytes.
    @inlinable @inline(__always)
    static func varint(_ base: UnsafeRawPointer, _ at: inout Int, _ end: Int) -> Int? {
        guard at < end else { return nil }
        let first = base.u8(at)
        at += 1
        if first < 0x80 { return Int(first) }
        var value = Int(first & 0x7F)
        var shift = 7
        while at < end, shift < 35 {
            let byte = base.u8(at)
            at += 1
            value |= Int(byte & 0x7F) << shift
            if byte < 0x80 { return value }
            shift += 7
        }
        return nil
    }

    static func varint64(_ base: UnsafeRawPointer, _ at: inout Int, _ end: Int) -> UInt64? {
        var value: UInt64 = 0
        var shift: UInt64 = 0
        while at < end, shift < 64 {
            let byte = base.u8(at)
            at += 1
            value |= UInt64(byte & 0x7F) << shift
            if byte < 0x80 { return value }
            shift += 7
        }
        return nil
    }

    /// True when exactly `records` records with lawful attributes fill `from ..< to`.
    @inlinable @inline(__always)
    public static func fill(
        _ base: UnsafeRawPointer, from: Int, to: Int, records: Int
    ) -> Bool {
        var at = from
        var left = records
        while left > 0 {
            guard let length = varint(base, &at, to), length > 0, length <= to - at else {
                return false
            }
            let attributes = base.u8(at)
            if attributes != 0 {
                guard fields(base, at: at, length: length, attributes) else { return false }
            }
            at += length
            left -= 1
        }
        return at == to
    }

    /// The first record of a batch that is larger than it may be.
    public struct Exceeding: Equatable, Sendable {
        /// Its place in the batch, from 0.
        public var record: Int
        public var isHeaders: Bool
        public var bytes: Int
    }

    /// Looks for a record of more than `recordBytes`, or with headers of more than `headersBytes`, their
    /// count included, as they are encoded.
    ///
    /// - Parameter batch: a producer's part that `BatchHeader.check` accepted.
    public static func exceeding(
        _ batch: UnsafeRawPointer, recordBytes: Int, headersBytes: Int
    ) -> Exceeding? {
        let to = Int(batch.u32(0))
        var at = BatchHeader.byteCount
        for record in 0..<Int(batch.u16(10)) {
            guard let length = varint(batch, &at, to), length <= to - at else { return nil }
            if length > recordBytes {
                return Exceeding(record: record, isHeaders: false, bytes: length)
            }
            let headers =
                length > headersBytes ? self.headersBytes(batch, at: at, length: length) : 0
            if headers > headersBytes {
                return Exceeding(record: record, isHeaders: true, bytes: headers)
            }
            at += length
        }
        return nil
    }

    /// Of a record whose fields were checked.
    private static func headersBytes(
        _ base: UnsafeRawPointer, at start: Int, length: Int
    ) -> Int {
        let attributes = base.u8(start)
        guard attributes & RecordFormat.headers != 0 else { return 0 }
        let end = start + length
        var at = start + 1
        if attributes & RecordFormat.timestamp != 0 { _ = varint64(base, &at, end) }
        if attributes & RecordFormat.trace != 0 { at += TraceContext.byteCount }
        if attributes & RecordFormat.key != 0, let count = varint(base, &at, end) { at += count }
        let first = at
        guard let count = varint(base, &at, end) else { return 0 }
        for _ in 0..<count * 2 {
            guard let bytes = varint(base, &at, end), bytes <= end - at else { return 0 }
            at += bytes
        }
        return at - first
    }

    /// Checks the fields of a record that has any.
    @usableFromInline
    static func fields(
        _ base: UnsafeRawPointer, at start: Int, length: Int, _ attributes: UInt8
    ) -> Bool {
        guard attributes & 0xF0 == 0 else { return false }
        let end = start + length
        var at = start + 1
        if attributes & RecordFormat.timestamp != 0 {
            guard varint64(base, &at, end) != nil else { return false }
        }
        if attributes & RecordFormat.trace != 0 {
            guard end - at >= TraceContext.byteCount else { return false }
            at += TraceContext.byteCount
        }
        if attributes & RecordFormat.key != 0 {
            guard let count = varint(base, &at, end), count <= end - at else { return false }
            at += count
        }
        if attributes & RecordFormat.headers != 0 {
            guard let count = varint(base, &at, end), count <= end - at else { return false }
            for _ in 0..<count * 2 {
                guard let bytes = varint(base, &at, end), bytes <= end - at else { return false }
                at += bytes
            }
        }
        return true
    }

    /// The next record, or `nil` at the end of the batch.
    public mutating func next() -> Record? {
        guard at < end, let length = Self.varint(base, &at, end), length > 0,
            length <= end - at
        else { return nil }
        let limit = at + length
        let attributes = base.u8(at)
        guard attributes == 0 || Self.fields(base, at: at, length: length, attributes) else {
            return nil
        }
        at += 1
        var record = Record(value: [], timestamp: baseTimestamp)
        if attributes & RecordFormat.timestamp != 0,
            let zigzag = Self.varint64(base, &at, limit)
        {
            let delta = Int64(bitPattern: (zigzag >> 1) ^ (0 &- (zigzag & 1)))
            record.timestamp = baseTimestamp &+ UInt64(bitPattern: delta)
        }
        if attributes & RecordFormat.trace != 0 {
            record.trace = TraceContext(bytes: bytes(TraceContext.byteCount))
        }
        if attributes & RecordFormat.key != 0, let count = Self.varint(base, &at, limit) {
            record.key = bytes(count)
        }
        if attributes & RecordFormat.headers != 0, let count = Self.varint(base, &at, limit) {
            for _ in 0..<count {
                guard let nameBytes = Self.varint(base, &at, limit) else { return nil }
                let name = bytes(nameBytes)
                guard let valueBytes = Self.varint(base, &at, limit) else { return nil }
                record.headers.append(
                    .init(name: String(decoding: name, as: UTF8.self), value: bytes(valueBytes)))
            }
        }
        record.value = bytes(limit - at)
        return record
    }

    private mutating func bytes(_ count: Int) -> [UInt8] {
        defer { at += count }
        return [UInt8](UnsafeRawBufferPointer(start: base + at, count: count))
    }
}

/// Builds the producer's part of a batch from records.
public struct BatchBuilder {
    private var bytes = [UInt8](repeating: 0, count: BatchHeader.byteCount)
    public private(set) var recordCount = 0
    private var baseTimestamp: UInt64 = 0

    public init() {}

    public var byteCount: Int { bytes.count }
    /// What the header's `record_count` can say.
    public static let recordCountMax = Int(UInt16.max)

    public var isFull: Bool { recordCount == Self.recordCountMax }

    /// Adds a record behind the others.
    ///
    /// - Returns: false when the batch is full: the record is not in it, and wants another batch.
    public mutating func append(_ record: Record) -> Bool {
        guard !isFull else { return false }
        if recordCount == 0 { baseTimestamp = record.timestamp }
        var body: [UInt8] = [0]
        if record.timestamp != baseTimestamp {
            body[0] |= RecordFormat.timestamp
            let delta = Int64(bitPattern: record.timestamp &- baseTimestamp)
            Self.varint(UInt64(bitPattern: (delta << 1) ^ (delta >> 63)), into: &body)
        }
        if let trace = record.trace {
            body[0] |= RecordFormat.trace
            body += trace.bytes
        }
        if let key = record.key {
            body[0] |= RecordFormat.key
            Self.varint(UInt64(key.count), into: &body)
            body += key
        }
        if !record.headers.isEmpty {
            body[0] |= RecordFormat.headers
            Self.varint(UInt64(record.headers.count), into: &body)
            for header in record.headers {
                Self.varint(UInt64(header.name.utf8.count), into: &body)
                body += header.name.utf8
                Self.varint(UInt64(header.value.count), into: &body)
                body += header.value
            }
        }
        body += record.value
        Self.varint(UInt64(body.count), into: &bytes)
        bytes += body
        recordCount += 1
        return true
    }

    private static func varint(_ value: UInt64, into bytes: inout [UInt8]) {
        var value = value
        while value >= 0x80 {
            bytes.append(UInt8(truncatingIfNeeded: value) | 0x80)
            value >>= 7
        }
        bytes.append(UInt8(truncatingIfNeeded: value))
    }

    /// The finished batch. `sequence` numbers its first record for `producer` in its partition.
    public func finish(
        producer: ProducerID = .none, epoch: UInt16 = 0, sequence: UInt64 = 0
    ) -> [UInt8] {
        var batch = bytes
        let (count, timestamp) = (recordCount, baseTimestamp)
        batch.withUnsafeMutableBytes { buffer in
            guard let base = buffer.baseAddress else { return }
            BatchBuilder.seal(
                base, batchBytes: buffer.count, recordCount: count, producer: producer.rawValue,
                epoch: epoch, sequence: sequence, timestamp: timestamp)
        }
        return batch
    }

    /// Writes header and checksum in front of records that are in place: at most `recordCountMax`.
    @inlinable @inline(__always)
    public static func seal(
        _ base: UnsafeMutableRawPointer, batchBytes: Int, recordCount: Int, producer: UInt64,
        epoch: UInt16, sequence: UInt64, timestamp: UInt64
    ) {
        base.put(UInt32(batchBytes), 0)
        base.put(BatchHeader.format, 8)
        base.put(UInt8(0), 9)
        base.put(UInt16(recordCount), 10)
        base.put(epoch, 12)
        base.put(UInt16(0), 14)
        base.put(producer, 16)
        base.put(sequence, 24)
        base.put(timestamp, 32)
        base.put(CRC32C.extend(0, UnsafeRawPointer(base) + 8, count: batchBytes - 8), 4)
    }
}
