internal import BrokerBasics
internal import FuzzInput
internal import WireProtocol

/// Makes length and checksum of a producer's batch right.
func sealBatch(_ batch: UnsafeMutableRawBufferPointer) {
    guard batch.count > BatchHeader.byteCount, let base = batch.baseAddress else { return }
    base.put(UInt32(batch.count), 0)
    base.put(CRC32C.extend(0, UnsafeRawPointer(base) + 8, count: batch.count - 8), 4)
}

/// The same of a stored batch, and its stamp.
func sealStored(_ stored: UnsafeMutableRawBufferPointer, partition: UInt32) {
    guard stored.count > StoredBatch.headerBytes, let base = stored.baseAddress else { return }
    sealBatch(UnsafeMutableRawBufferPointer(rebasing: stored[StoredBatch.stampBytes...]))
    let bytes = UnsafeRawPointer(base)
    StoredBatch.stamp(
        base, partition: PartitionID(rawValue: partition), baseOffset: bytes.u64(0),
        appendTime: bytes.u64(8), epoch: bytes.u32(16),
        producerChecksum: bytes.u32(StoredBatch.stampBytes + 4))
}

/// What the broker does with a batch that comes in; one that it accepts can be read, to its end.
func checkBatch(_ bytes: UnsafeRawBufferPointer) {
    guard let base = bytes.baseAddress,
        BatchHeader.check(base, count: bytes.count) == .ok
    else { return }
    let header = BatchHeader(at: base)
    let records = read(base)
    invariant(
        records.count == header.recordCount,
        "an accepted batch of \(header.recordCount) records gives \(records.count)")
    rebuild(
        records, producer: header.producerID, epoch: header.producerEpoch,
        sequence: header.baseSequence)
}

/// What a reader does with stored batches, one behind the other.
func verifyStored(_ bytes: UnsafeRawBufferPointer, partition: UInt32) {
    guard let base = bytes.baseAddress else { return }
    var at = 0
    while at < bytes.count {
        guard
            let count = StoredBatch.verify(
                base + at, available: bytes.count - at, partition: PartitionID(rawValue: partition))
        else { return }
        invariant(count > 0 && count <= bytes.count - at, "a stored batch of \(count) bytes")
        invariant(count == StoredBatch.bytes(at: base + at), "a batch has two lengths")
        let (start, end) = (
            StoredBatch.baseOffset(at: base + at), StoredBatch.endOffset(at: base + at)
        )
        invariant(start < end, "a stored batch goes from \(start) to \(end)")
        let header = BatchHeader(at: base + at + StoredBatch.stampBytes)
        if header.isLost {
            let again = StoredBatch.lost(
                start..<end, partition: PartitionID(rawValue: partition),
                epoch: StoredBatch.epoch(at: base + at),
                appendTime: StoredBatch.appendTime(at: base + at))
            let verified = again.withUnsafeBytes { lost in
                lost.baseAddress.flatMap {
                    StoredBatch.verify(
                        $0, available: lost.count, partition: PartitionID(rawValue: partition))
                }
            }
            invariant(verified == again.count, "a lost range \(start) ..< \(end) does not verify")
        } else {
            _ = read(base + at + StoredBatch.stampBytes)
        }
        at += count
    }
}

/// Records made from choices are read again as they were.
func buildAndRead(_ input: inout InputReader) {
    let (producer, epoch, sequence) = (input.number(), input.u16(), input.number())
    var records: [Record] = []
    var timestamp = input.number()
    repeat {
        let parts = input.u8()
        var record = Record(value: [], timestamp: timestamp)
        if parts & 1 != 0 { record.key = input.bytes() }
        if parts & 2 != 0 {
            record.trace = TraceContext(
                bytes: (0..<TraceContext.byteCount).map { _ in input.u8() })
        }
        for _ in 0..<Int(parts >> 2 & 3) {
            record.headers.append(
                .init(
                    name: String(decoding: input.bytes(), as: UTF8.self), value: input.bytes()))
        }
        if parts & 16 != 0 { timestamp = input.number() }
        record.timestamp = timestamp
        record.value = input.bytes()
        records.append(record)
    } while !input.isAtEnd && records.count < 64
    let last = sequence <= UInt64.max - UInt64(records.count)
    let batch = rebuild(records, producer: producer, epoch: epoch, sequence: sequence)
    batch.withUnsafeBytes { bytes in
        guard let base = bytes.baseAddress else { return }
        let status = BatchHeader.check(base, count: bytes.count)
        invariant(
            status == (last ? .ok : .batchInvalid), "a batch of our own is judged \(status.name)")
    }
}

private func read(_ batch: UnsafeRawPointer) -> [Record] {
    var reader = RecordReader(batch: batch)
    var records: [Record] = []
    while let record = reader.next() { records.append(record) }
    return records
}

/// Puts records into a batch and reads them again.
@discardableResult
private func rebuild(
    _ records: [Record], producer: UInt64, epoch: UInt16, sequence: UInt64
) -> [UInt8] {
    var builder = BatchBuilder()
    for record in records {
        invariant(builder.append(record), "a batch of \(records.count) records is full")
    }
    let batch = builder.finish(
        producer: ProducerID(rawValue: producer), epoch: epoch, sequence: sequence)
    batch.withUnsafeBytes { bytes in
        guard let base = bytes.baseAddress else { return }
        let header = BatchHeader(at: base)
        invariant(
            header.producerID == producer && header.producerEpoch == epoch
                && header.baseSequence == sequence && header.recordCount == records.count,
            "a batch header is read again as \(header)")
        let again = read(base)
        invariant(again == records, "records are read again as \(again)")
    }
    return batch
}
