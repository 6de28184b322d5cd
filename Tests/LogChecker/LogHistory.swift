internal import Glibc

/// All lines of one history.
package struct LogHistory: Sendable {
    package private(set) var events: [LogEvent] = []
    private var lines = 0

    package init() {}
    package init(_ events: [LogEvent]) { self.events = events }

    /// Takes the next line; an empty one says nothing.
    package mutating func read(line: some Collection<UInt8>) throws(HistoryError) {
        lines += 1
        guard !line.isEmpty else { return }
        events.append(try LogEvent(line: line, number: lines))
    }

    package init(text: String) throws(HistoryError) {
        for line in text.utf8.split(separator: 0x0A, omittingEmptySubsequences: false) {
            try read(line: line)
        }
    }

    /// Reads a file, one piece at a time.
    package init(path: String) throws(HistoryError) {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else {
            throw HistoryError(line: 0, reason: "\(path): \(String(cString: strerror(errno)))")
        }
        defer { close(descriptor) }
        var rest: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 1 << 20)
        while true {
            let count = Glibc.read(descriptor, &buffer, buffer.count)
            if count < 0, errno == EINTR { continue }
            guard count >= 0 else {
                throw HistoryError(line: 0, reason: "\(path): \(String(cString: strerror(errno)))")
            }
            guard count > 0 else { break }
            rest += buffer[..<count]
            var start = rest.startIndex
            while let end = rest[start...].firstIndex(of: 0x0A) {
                try read(line: rest[start..<end])
                start = end + 1
            }
            rest.removeFirst(start)
        }
        try read(line: rest)
    }
}

/// A 64-bit hash of a record, FNV-1a: every part goes in with its length, so that bytes that move
/// from one part to the next make another hash.
package struct RecordHash: Sendable {
    package private(set) var value: UInt64 = 0xCBF2_9CE4_8422_2325

    package init() {}

    private mutating func add(_ byte: UInt8) {
        // FNV-1a is defined modulo 2^64.
        value = (value ^ UInt64(byte)) &* 0x100_0000_01B3
    }

    package mutating func add(_ number: UInt64) {
        for shift in stride(from: UInt64(0), to: 64, by: 8) {
            add(UInt8(truncatingIfNeeded: number >> shift))
        }
    }

    package mutating func add(_ bytes: [UInt8]) {
        add(UInt64(bytes.count))
        for byte in bytes { add(byte) }
    }

    /// A part that may be missing.
    package mutating func add(_ bytes: [UInt8]?) {
        add(UInt64(bytes == nil ? 0 : 1))
        if let bytes { add(bytes) }
    }
}
