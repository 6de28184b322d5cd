internal import BrokerBasics
internal import LogChecker
internal import WireProtocol

/// Makes the records of one producer: the same again from their numbers alone, and no two alike.
enum RecordSource {
    static func record(producer: String, number: UInt64, bytes: Int) -> Record {
        let name = "\(producer) \(number) "
        var value = Array(name.utf8)
        var random = SeededRandom(seed: number &* 0x9E37_79B9 &+ UInt64(value.count))
        while value.count < bytes { value.append(UInt8(truncatingIfNeeded: random.next())) }
        return Record(value: value, key: Array("k\(number % 7)".utf8), timestamp: 1 + number)
    }

    /// Of everything that the record consists of.
    static func hash(_ record: Record) -> UInt64 {
        var hash = RecordHash()
        hash.add(record.value)
        hash.add(record.key)
        hash.add(record.trace?.bytes)
        hash.add(record.timestamp)
        for header in record.headers {
            hash.add(Array(header.name.utf8))
            hash.add(header.value)
        }
        return hash.value
    }
}
