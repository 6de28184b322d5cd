internal import BrokerBasics
package import WireProtocol

/// One line of a recording, as it is published.
package struct ReplayLine: Equatable, Sendable {
    /// The line without its newline.
    package var value: [UInt8]
    package var key: [UInt8]
    /// Nanoseconds; of what day is the recording's affair.
    package var timestamp: UInt64

    package init(value: [UInt8], key: [UInt8], timestamp: UInt64) {
        self.value = value
        self.key = key
        self.timestamp = timestamp
    }
}

/// An endless run of one producer over a recording, round after round.
///
/// Record `number` is a function of the number alone, so what was sent need not be kept to be
/// compared.
package struct ReplayStream: Sendable {
    package let producer: UInt32
    package let partitionCount: Int
    /// Every so manyeth record carries a trace context; 0: none does.
    package let traceEvery: UInt64
    package let keyCount: Int
    private let lines: [ReplayLine]
    private let keys: [Int32]
    private let partitions: [Int32]

    /// - Parameter lines: at least one.
    package init(
        producer: UInt32,
        lines: [ReplayLine],
        partitionCount: Int,
        traceEvery: UInt64 = 0
    ) {
        invariant(!lines.isEmpty, "a recording without lines cannot be replayed")
        self.producer = producer
        self.partitionCount = partitionCount
        self.traceEvery = traceEvery
        self.lines = lines
        var known: [[UInt8]: Int32] = [:]
        keys = lines.map { line in
            let next = Int32(known.count)
            return known[line.key]
                ?? {
                    known[line.key] = next; return next
                }()
        }
        keyCount = known.count
        partitions = lines.map {
            Int32(KeyHash.partition(of: $0.key, partitionCount: partitionCount))
        }
    }

    package var lineCount: Int { lines.count }

    private func index(_ number: UInt64) -> Int { Int(number % UInt64(lines.count)) }

    /// The index of the partition that the key of record `number` belongs to.
    package func partition(of number: UInt64) -> Int { Int(partitions[index(number)]) }

    /// Which of the `keyCount` keys record `number` has.
    package func key(of number: UInt64) -> Int { Int(keys[index(number)]) }

    package func record(_ number: UInt64) -> Record {
        let line = lines[index(number)]
        return Record(
            value: line.value,
            key: line.key,
            headers: [RecordTag(producer: producer, number: number).header],
            trace: trace(of: number),
            timestamp: line.timestamp
        )
    }

    private func trace(of number: UInt64) -> TraceContext? {
        guard traceEvery > 0, number % traceEvery == 0 else { return nil }
        var random = SeededRandom(seed: UInt64(producer) << 48 ^ number)
        let bytes = (0..<TraceContext.byteCount).map { _ in
            UInt8(truncatingIfNeeded: random.next())
        }
        return TraceContext(bytes: bytes)
    }
}
