/// What a disk was told, in order, with the bytes.
package struct WriteLog: Sendable {
    package enum Entry: Sendable {
        /// Bytes of the disk from `offset` on; they are at `place` of `bytes`.
        case write(offset: Int, place: Int, count: Int)
        /// Everything before it is on stable storage once it is answered.
        case flush
        /// A lying disk answered it and did nothing.
        case ignoredFlush
    }

    package private(set) var entries: [Entry] = []
    package private(set) var bytes: [UInt8] = []

    package init() {}

    package mutating func append(_ offset: Int, _ data: ArraySlice<UInt8>) {
        entries.append(.write(offset: offset, place: bytes.count, count: data.count))
        bytes += data
    }

    package mutating func append(_ entry: Entry) { entries.append(entry) }

    package var writeCount: Int {
        entries.count { if case .write = $0 { true } else { false } }
    }
    package var flushCount: Int {
        entries.count { if case .flush = $0 { true } else { false } }
    }
    package var ignoredFlushCount: Int {
        entries.count { if case .ignoredFlush = $0 { true } else { false } }
    }

    /// Where the epoch begins that a cut at `place` meets: behind the last flush before it.
    package func epochStart(before place: Int) -> Int {
        for index in entries[..<place].indices.reversed() {
            if case .flush = entries[index] { return index + 1 }
        }
        return 0
    }

    /// Whether `data` was written in these entries and a flush followed.
    package func hasFlushed(_ data: [UInt8], in range: Range<Int>) -> Bool {
        guard let found = range.first(where: { holds(data, $0) }) else { return false }
        return entries[found..<range.upperBound].contains {
            if case .flush = $0 { true } else { false }
        }
    }

    private func holds(_ data: [UInt8], _ index: Int) -> Bool {
        guard case .write(_, let place, let count) = entries[index] else { return false }
        return bytes[place..<place + count].firstRange(of: data) != nil
    }
}
