import BrokerBasics
import Testing
import WireProtocol

@Suite("batches")
struct BatchTests {
    private let partition = PartitionID(rawValue: 13)

    private func check(_ batch: [UInt8]) -> StatusCode {
        withGuardedBytes(batch) { bytes in
            guard let base = bytes.baseAddress else { return .batchInvalid }
            return BatchHeader.check(base, count: bytes.count)
        }
    }

    private func verify(_ stored: [UInt8], partition: PartitionID? = nil) -> Int? {
        withGuardedBytes(stored) { bytes in
            bytes.baseAddress.flatMap {
                StoredBatch.verify(
                    $0,
                    available: bytes.count,
                    partition: partition ?? self.partition
                )
            }
        }
    }

    /// `batch` after `change`, with a checksum that fits again.
    private func resealed(
        _ batch: [UInt8],
        _ change: (UnsafeMutableRawPointer) -> Void
    ) -> [UInt8] {
        var batch = batch
        batch.withUnsafeMutableBytes { bytes in
            guard let base = bytes.baseAddress else { return }
            change(base)
            base.put(CRC32C.of(UnsafeRawBufferPointer(rebasing: bytes[8...])), 4)
        }
        return batch
    }

    /// `part` behind a stamp for `partition`.
    private func stamped(_ part: [UInt8], baseOffset: UInt64 = 7) -> [UInt8] {
        var stored = [UInt8](repeating: 0, count: StoredBatch.stampBytes) + part
        stored.withUnsafeMutableBytes { bytes in
            guard let base = bytes.baseAddress else { return }
            let checksum = UnsafeRawPointer(base + StoredBatch.stampBytes).u32(4)
            StoredBatch.stamp(
                base,
                partition: partition,
                baseOffset: baseOffset,
                appendTime: 8,
                epoch: 9,
                producerChecksum: checksum
            )
        }
        return stored
    }

    @Test("a producer's batch is refused for each rule it breaks, also with a good checksum")
    func rules() {
        let batch = GoldenFrame.producerPart
        #expect(check(batch) == .ok)
        #expect(check(batch + [0]) == .batchInvalid)
        #expect(check(resealed(batch) { $0.put(UInt32(batch.count - 1), 0) }) == .batchInvalid)
        #expect(check(resealed(batch) { $0.put(UInt32.max, 0) }) == .batchInvalid)
        #expect(check(resealed(batch) { $0.put(UInt8(2), 8) }) == .batchInvalid)
        #expect(check(resealed(batch) { $0.put(BatchHeader.lostAttribute, 9) }) == .batchInvalid)
        #expect(check(resealed(batch) { $0.put(UInt8(0x80), 9) }) == .batchInvalid)
        for count: UInt16 in [0, 1, 3, .max] {
            #expect(check(resealed(batch) { $0.put(count, 10) }) == .batchInvalid)
        }
        #expect(check(resealed(batch) { $0.put(UInt16(1), 14) }) == .batchInvalid)
        #expect(check(resealed(batch) { $0.put(UInt64.max - 1, 24) }) == .batchInvalid)
        #expect(check(resealed(batch) { $0.put(UInt64.max - 2, 24) }) == .ok)
    }

    @Test("a producer's batch that is cut or has a flipped bit is refused")
    func hostile() {
        let batch = GoldenFrame.producerPart
        for count in 0..<batch.count {
            #expect(check([UInt8](batch[..<count])) == .batchInvalid)
        }
        for bit in 0..<batch.count * 8 {
            var flipped = batch
            flipped[bit / 8] ^= 1 << UInt8(bit % 8)
            #expect(check(flipped) == (bit < 32 ? .batchInvalid : .badChecksum), "bit \(bit)")
        }
    }

    @Test("the records must fill the batch exactly")
    func fill() {
        func batch(_ count: UInt16, _ records: [UInt8]) -> [UInt8] {
            var bytes = [UInt8](repeating: 0, count: BatchHeader.byteCount) + records
            bytes.withUnsafeMutableBytes { buffer in
                guard let base = buffer.baseAddress else { return }
                BatchBuilder.seal(
                    base,
                    batchBytes: buffer.count,
                    recordCount: Int(count),
                    producer: 0,
                    epoch: 0,
                    sequence: 0,
                    timestamp: 0
                )
            }
            return bytes
        }
        let trace = [UInt8](repeating: 7, count: 25)
        let table: [(UInt16, [UInt8], StatusCode)] = [
            (1, [], .batchInvalid),
            (1, [0], .batchInvalid),  // a record has attributes
            (1, [1, 0], .ok),
            (2, [1, 0, 1, 0], .ok),
            (1, [1, 0, 1, 0], .batchInvalid),
            (1, [2, 0], .batchInvalid),  // shorter than it says
            (1, [1], .batchInvalid),
            (1, [0x81, 0x00, 0], .ok),  // the long form of 1
            (1, [0x81, 0x80, 0x80, 0x80, 0x00, 0], .ok),
            (1, [0x81, 0x80, 0x80, 0x80, 0x80, 0x00, 0], .batchInvalid),  // six bytes
            (1, [0xFF, 0xFF, 0xFF, 0xFF, 0x7F, 0], .batchInvalid),
            (1, [1, 0x10], .batchInvalid),  // reserved attributes
            (1, [1, 0x80], .batchInvalid),
            (1, [1, 8], .batchInvalid),  // no timestamp
            (1, [2, 8, 0], .ok),
            (1, [2, 8, 0x80], .batchInvalid),
            (1, [11, 8] + [UInt8](repeating: 0xFF, count: 9) + [1], .ok),
            (1, [12, 8] + [UInt8](repeating: 0xFF, count: 10) + [1], .batchInvalid),
            (1, [26, 1] + trace, .ok),
            (1, [25, 1] + trace.dropLast(), .batchInvalid),
            (1, [2, 2, 0], .ok),  // a key of no bytes
            (1, [1, 2], .batchInvalid),
            (1, [2, 2, 1], .batchInvalid),
            (1, [3, 2, 1, 65], .ok),
            (1, [2, 4, 0], .ok),  // no headers, said explicitly
            (1, [2, 4, 1], .batchInvalid),
            (1, [3, 4, 1, 0], .batchInvalid),
            (1, [4, 4, 1, 0, 0], .ok),
            (1, [4, 4, 2, 0, 0], .batchInvalid),
            (1, [6, 4, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F], .batchInvalid),
        ]
        for (count, records, expected) in table {
            #expect(check(batch(count, records)) == expected, "\(count) records in \(records)")
        }
    }

    @Test("a stored batch that is cut, has a flipped bit, or belongs elsewhere is not verified")
    func stored() {
        for stored in [GoldenFrame.storedBatch, GoldenFrame.lostBatch] {
            #expect(verify(stored) == stored.count)
            #expect(verify(stored + [1, 2, 3]) == stored.count)
            #expect(verify(stored, partition: PartitionID(rawValue: 12)) == nil)
            for count in 0..<stored.count { #expect(verify([UInt8](stored[..<count])) == nil) }
            for bit in 0..<stored.count * 8 {
                var flipped = stored
                flipped[bit / 8] ^= 1 << UInt8(bit % 8)
                #expect(verify(flipped) == nil, "bit \(bit)")
            }
        }
    }

    @Test("a stamp does not fit another batch")
    func bound() {
        let other = stamped(resealed(GoldenFrame.producerPart) { $0.put(UInt64(1), 24) })
        let mixed =
            stamped(GoldenFrame.producerPart)[..<StoredBatch.stampBytes]
            + other[StoredBatch.stampBytes...]
        #expect(verify(other) == other.count)
        #expect(verify([UInt8](mixed)) == nil)
    }

    @Test("a lost batch without room for the end of its range is not verified")
    func lostTooShort() {
        let lost = [UInt8](GoldenFrame.lostBatch[StoredBatch.stampBytes...])
        for bytes in BatchHeader.byteCount + 1...BatchHeader.byteCount + 9 {
            let part = resealed([UInt8]((lost + [0])[..<bytes])) { $0.put(UInt32(bytes), 0) }
            let stored = stamped(part)
            #expect(verify(stored) == (bytes == 48 ? stored.count : nil), "\(bytes) bytes")
        }
    }

    @Test("a stored batch of another format or with unknown attributes is not verified")
    func unknownLayout() {
        let part = GoldenFrame.producerPart
        #expect(verify(stamped(part)) != nil)
        #expect(verify(stamped(resealed(part) { $0.put(UInt8(2), 8) })) == nil)
        for bit in 1..<8 {
            let attributes = UInt8(1) << UInt8(bit)
            #expect(verify(stamped(resealed(part) { $0.put(attributes, 9) })) == nil)
        }
    }

    @Test("a stored batch whose offsets do not go forward is not verified")
    func backwards() {
        for end in [UInt64(950), 951] {
            let lost = StoredBatch.lost(951..<991, partition: partition, epoch: 2, appendTime: 3)
            let part = resealed([UInt8](lost[StoredBatch.stampBytes...])) { $0.put(end, 40) }
            #expect(verify(stamped(part, baseOffset: 951)) == nil)
        }
        let part = GoldenFrame.producerPart
        #expect(verify(stamped(resealed(part) { $0.put(UInt16(0), 10) })) == nil)
        #expect(verify(stamped(part, baseOffset: .max - 2)) != nil)
        #expect(verify(stamped(part, baseOffset: .max - 1)) == nil)
    }
}
