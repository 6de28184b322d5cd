import BrokerBasics
import Testing
import WireProtocol

@Suite("records")
struct RecordTests {
    private func bytes(_ random: inout SeededRandom, _ bound: Int) -> [UInt8] {
        (0..<random.below(bound)).map { _ in UInt8(truncatingIfNeeded: random.next()) }
    }

    private func record(_ random: inout SeededRandom) -> Record {
        var record = Record(value: bytes(&random, random.chance(1, in: 10) ? 40_000 : 300))
        if random.chance(1, in: 2) { record.key = bytes(&random, 200) }
        if random.chance(1, in: 2) {
            record.trace = TraceContext(bytes: (0..<25).map { UInt8($0 &* 3) })
        }
        if random.chance(1, in: 2) {
            record.headers = (0..<random.below(5)).map { index in
                .init(name: "h\(index)é", value: bytes(&random, 150))
            }
        }
        switch random.below(4) {
        case 0: record.timestamp = random.next()
        case 1: record.timestamp = .max
        case 2: record.timestamp = UInt64(random.below(1000))
        default: break
        }
        return record
    }

    @Test("what a builder wrote a reader reads, for every mixture of fields")
    func roundTrip() {
        var random = SeededRandom(seed: 0x5EED_0002)
        for _ in 0..<300 {
            let records = (0...random.below(12)).map { _ in record(&random) }
            var builder = BatchBuilder()
            for record in records { _ = builder.append(record) }
            #expect(builder.recordCount == records.count)
            let batch = builder.finish(
                producer: ProducerID(rawValue: 5),
                epoch: 6,
                sequence: random.next() >> 1
            )
            #expect(batch.count == builder.byteCount)
            withGuardedBytes(batch) { bytes in
                guard let base = bytes.baseAddress else { return }
                #expect(BatchHeader.check(base, count: bytes.count) == .ok)
                #expect(Record.all(in: base) == records)
            }
        }
    }

    @Test("a batch takes 65,535 records, refuses the next one, and is whole all the same")
    func most() {
        var builder = BatchBuilder()
        for _ in 0..<65_535 {
            #expect(!builder.isFull)
            guard builder.append(Record(value: [])) else {
                Issue.record("refused after \(builder.recordCount)")
                return
            }
        }
        #expect(builder.isFull)
        let isTaken = builder.append(Record(value: [1]))
        #expect(!isTaken)
        #expect(builder.recordCount == 65_535)
        let batch = builder.finish()
        #expect(batch.count == BatchHeader.byteCount + 2 * 65_535)
        withGuardedBytes(batch) { bytes in
            guard let base = bytes.baseAddress else { return }
            #expect(BatchHeader.check(base, count: bytes.count) == .ok)
            #expect(BatchHeader(at: base).recordCount == 65_535)
            #expect(Record.all(in: base).count == 65_535)
        }
    }

    @Test("a key of no bytes is a key")
    func emptyKey() {
        var builder = BatchBuilder()
        _ = builder.append(Record(value: [1], key: []))
        _ = builder.append(Record(value: [1]))
        withGuardedBytes(builder.finish()) { bytes in
            guard let base = bytes.baseAddress else { return }
            #expect(Record.all(in: base).map(\.key) == [[], nil])
        }
    }

    /// Reads on past every refusal, up to the end or a bound on the number of steps.
    private func readAll(_ batch: [UInt8]) {
        withGuardedBytes(batch) { bytes in
            guard let base = bytes.baseAddress else { return }
            var reader = RecordReader(batch: base)
            var steps = 0
            while reader.at < reader.end, steps < batch.count {
                _ = reader.next()
                steps += 1
            }
            #expect(reader.at <= reader.end || reader.end < BatchHeader.byteCount)
            let count = Int(UnsafeRawPointer(base).u16(10))
            _ = RecordReader.fill(
                base,
                from: BatchHeader.byteCount,
                to: bytes.count,
                records: count
            )
        }
    }

    /// `batch` with the length that it has, so that the reader does not look behind it.
    private func lengthMended(_ batch: [UInt8]) -> [UInt8] {
        var builder = ByteBuilder()
        builder.put(UInt32(batch.count))
        return builder.bytes + batch[4...]
    }

    @Test("a reader stays within the batch, wherever its records are cut")
    func truncated() {
        let batch = GoldenFrame.producerPart
        for count in BatchHeader.byteCount...batch.count {
            readAll(lengthMended([UInt8](batch[..<count])))
        }
    }

    @Test("a reader stays within the batch, whatever its bytes are")
    func hostile() {
        var random = SeededRandom(seed: 0x5EED_0003)
        for round in 0..<20_000 {
            let header = [UInt8](GoldenFrame.header)
            var records = bytes(&random, 120)
            // Small numbers in places make lengths and counts that are nearly right.
            for _ in 0..<random.below(40) where !records.isEmpty {
                records[random.below(records.count)] = UInt8(random.below(16))
            }
            if round.isMultiple(of: 7) {
                records = [0xFF, 0xFF, 0xFF, 0xFF, 0x7F] + records
            }
            readAll(lengthMended(header + records))
        }
    }

    @Test("a reader stays within the batch when one byte of it has any other value")
    func mutated() {
        let batch = GoldenFrame.producerPart
        for at in BatchHeader.byteCount..<batch.count {
            for value: UInt8 in [0, 1, 0x7F, 0x80, 0xFF, batch[at] &+ 1, batch[at] &- 1] {
                var mutated = batch
                mutated[at] = value
                readAll(mutated)
            }
        }
    }
}

extension GoldenFrame {
    /// The header of a producer's part, without records.
    static var header: ArraySlice<UInt8> { producerPart[..<BatchHeader.byteCount] }
}
