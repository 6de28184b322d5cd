internal import BrokerBasics
package import WireProtocol

/// Records of one partition, as they were appended together.
package struct DeliveredBatch: Equatable, Sendable {
    package struct Entry: Equatable, Sendable {
        package var offset: UInt64
        package var record: Record
    }
    package var partition: UInt32
    package var epoch: UInt32
    /// Nanoseconds since 1970, the server's clock.
    package var appendTime: UInt64
    /// The offset after the last record, of those delivered and those skipped.
    package var endOffset: UInt64
    package var entries: [Entry]
}

/// Offsets that were given out, that a crash took, and that no record will ever have.
package struct LostRange: Equatable, Sendable {
    package var partition: UInt32
    package var epoch: UInt32
    package var offsets: Range<UInt64>

    package init(partition: UInt32, epoch: UInt32, offsets: Range<UInt64>) {
        self.partition = partition
        self.epoch = epoch
        self.offsets = offsets
    }
}

/// What the body of a `deliver` frame holds: stored batches, one after the other.
package enum Delivery: Equatable, Sendable {
    case records(DeliveredBatch)
    case lost(LostRange)

    package var endOffset: UInt64 {
        switch self {
        case .records(let batch): batch.endOffset
        case .lost(let range): range.offsets.upperBound
        }
    }
    package var epoch: UInt32 {
        switch self {
        case .records(let batch): batch.epoch
        case .lost(let range): range.epoch
        }
    }

    /// Verifies and decodes every batch of `body`, which must be batches of `partition` and no
    /// byte more.
    package static func decode(
        _ body: [UInt8],
        partition: UInt32
    ) throws(ClientError) -> [Delivery] {
        let decoded = body.withUnsafeBytes { buffer in
            Result { () throws(ClientError) in try decode(buffer, partition: partition) }
        }
        return try decoded.get()
    }

    private static func decode(
        _ body: UnsafeRawBufferPointer,
        partition: UInt32
    ) throws(ClientError) -> [Delivery] {
        var deliveries: [Delivery] = []
        var at = 0
        while at < body.count {
            guard let base = body.baseAddress,
                let storedBytes = StoredBatch.verify(
                    base + at,
                    available: body.count - at,
                    partition: PartitionID(rawValue: partition)
                )
            else {
                throw .protocolError(
                    "damaged batch at byte \(at) of a delivery of partition \(partition)"
                )
            }
            deliveries.append(
                try one(
                    UnsafeRawBufferPointer(rebasing: body[at..<at + storedBytes]),
                    base + at,
                    partition: partition
                )
            )
            at += storedBytes
        }
        return deliveries
    }

    /// Decodes the verified batch `bytes`, which begins at `base`. The checksums prove who wrote
    /// it, not that its fields make sense, so those are checked as well.
    private static func one(
        _ bytes: UnsafeRawBufferPointer,
        _ base: UnsafeRawPointer,
        partition: UInt32
    ) throws(ClientError) -> Delivery {
        let producer = base + StoredBatch.stampBytes
        let header = BatchHeader(at: producer)
        let baseOffset = StoredBatch.baseOffset(at: base)
        let bad = ClientError.protocolError(
            "malformed batch at offset \(baseOffset) of partition \(partition)"
        )
        guard producer.u8(8) == BatchHeader.format,
            header.attributes & ~BatchHeader.lostAttribute == 0
        else { throw bad }

        if header.isLost {
            guard header.recordCount == 0, header.batchBytes == BatchHeader.byteCount + 8 else {
                throw bad
            }
            let endOffset = StoredBatch.endOffset(at: base)
            guard endOffset >= baseOffset else { throw bad }
            return .lost(
                LostRange(
                    partition: partition,
                    epoch: StoredBatch.epoch(at: base),
                    offsets: baseOffset..<endOffset
                )
            )
        }

        guard header.recordCount > 0,
            baseOffset <= UInt64.max - UInt64(header.recordCount),
            RecordReader.fill(
                producer,
                from: BatchHeader.byteCount,
                to: header.batchBytes,
                records: header.recordCount
            )
        else { throw bad }
        var batch = DeliveredBatch(
            partition: partition,
            epoch: StoredBatch.epoch(at: base),
            appendTime: StoredBatch.appendTime(at: base),
            endOffset: baseOffset + UInt64(header.recordCount),
            entries: []
        )
        batch.entries.reserveCapacity(header.recordCount)
        var reader = RecordReader(batch: producer)
        for index in 0..<header.recordCount {
            guard let record = reader.next() else { throw bad }
            batch.entries.append(.init(offset: baseOffset + UInt64(index), record: record))
        }
        return .records(batch)
    }
}
