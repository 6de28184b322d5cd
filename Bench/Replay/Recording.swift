internal import ChildProcess
internal import Glibc

/// Why a recording cannot be used: one line for a person.
package struct RecordingError: Error, Equatable, CustomStringConvertible {
    package let description: String
    package init(_ description: String) { self.description = description }
}

/// The two kinds of recordings, one event a line.
package enum RecordingFormat: Sendable {
    /// LOBSTER: `seconds after midnight, type, order id, shares, price × 10,000, side`.
    case orders
    /// Receive time in ns since 1970, a space, a JSON object whose `stream` names its kind.
    case feed

    /// The key and the time of a line; `nil` when it is not of the format. The key of a feed event
    /// without a stream's name is empty.
    package func parse(_ line: [UInt8]) -> (key: [UInt8], timestamp: UInt64)? {
        switch self {
        case .orders: Self.parseOrder(line)
        case .feed: Self.parseEvent(line)
        }
    }

    private static func parseOrder(_ line: [UInt8]) -> (key: [UInt8], timestamp: UInt64)? {
        let fields = line.split(separator: UInt8(ascii: ","), omittingEmptySubsequences: false)
            .map(trimmed)
        guard fields.count == 6, let time = nanoseconds(fields[0]), !fields[2].isEmpty,
            fields[2].allSatisfy(isDigit), isInteger(fields[1]), isInteger(fields[3]),
            isInteger(fields[4]), isInteger(fields[5])
        else { return nil }
        return (Array(fields[2]), time)
    }

    private static func parseEvent(_ line: [UInt8]) -> (key: [UInt8], timestamp: UInt64)? {
        guard let space = line.firstIndex(of: UInt8(ascii: " ")),
            let time = UInt64(String(decoding: line[..<space], as: UTF8.self)),
            let object = line[space...].dropFirst().first, object == UInt8(ascii: "{")
        else { return nil }
        return (stream(in: line[(space + 1)...]) ?? [], time)
    }

    /// The text of the member `stream`, which stands before any other text of that name.
    private static func stream(in object: ArraySlice<UInt8>) -> [UInt8]? {
        let name = Array("\"stream\"".utf8)
        guard let first = object.firstRange(of: name) else { return nil }
        var rest = object[first.upperBound...].drop(while: isBlank)
        guard rest.popFirst() == UInt8(ascii: ":") else { return nil }
        rest = rest.drop(while: isBlank)
        guard rest.popFirst() == UInt8(ascii: "\""),
            let end = rest.firstIndex(of: UInt8(ascii: "\""))
        else { return nil }
        return Array(rest[..<end])
    }

    /// Decimal seconds as ns, without a detour through floating point.
    private static func nanoseconds(_ text: ArraySlice<UInt8>) -> UInt64? {
        let parts = text.split(separator: UInt8(ascii: "."), omittingEmptySubsequences: false)
        guard (1...2).contains(parts.count), !parts[0].isEmpty, parts[0].count <= 9,
            let seconds = UInt64(String(decoding: parts[0], as: UTF8.self))
        else { return nil }
        var fraction = parts.count == 2 ? Array(parts[1].prefix(9)) : []
        guard fraction.allSatisfy(isDigit) else { return nil }
        fraction += [UInt8](repeating: UInt8(ascii: "0"), count: 9 - fraction.count)
        guard let rest = UInt64(String(decoding: fraction, as: UTF8.self)) else { return nil }
        return seconds * 1_000_000_000 + rest
    }

    private static func trimmed(_ field: ArraySlice<UInt8>) -> ArraySlice<UInt8> {
        var field = field.drop(while: isBlank)
        while let last = field.last, isBlank(last) { field.removeLast() }
        return field
    }
    private static func isInteger(_ field: ArraySlice<UInt8>) -> Bool {
        let digits = field.first == UInt8(ascii: "-") ? field.dropFirst() : field
        return !digits.isEmpty && digits.allSatisfy(isDigit)
    }
    private static func isDigit(_ byte: UInt8) -> Bool { (0x30...0x39).contains(byte) }
    private static func isBlank(_ byte: UInt8) -> Bool {
        byte == UInt8(ascii: " ") || byte == UInt8(ascii: "\t") || byte == UInt8(ascii: "\r")
    }
}

/// The lines of a recording, in memory.
package struct Recording: Sendable {
    /// More is not read; what is left out is said.
    package static let bytesMax = 256 << 20
    /// Together with its record's other fields a line must fit a batch (SPEC.md, section 9).
    package static let lineBytesMax = 1_000_000

    package private(set) var lines: [ReplayLine] = []
    package private(set) var bytes = 0
    /// Published like the others, with an empty key.
    package private(set) var strangeLines = 0
    /// There is more in the file than was read.
    package private(set) var isCut = false

    private let format: RecordingFormat
    private var partial: [UInt8] = []

    /// Reads a file; one that ends in `.gz` through gzip(1).
    package init(
        path: String,
        format: RecordingFormat,
        bytesMax: Int = Self.bytesMax
    ) throws(RecordingError) {
        self.format = format
        // gzip says the same in more words, or waits for a terminal.
        guard access(path, R_OK) == 0 else {
            throw RecordingError("\(path): \(String(cString: strerror(errno)))")
        }
        let isPacked = path.hasSuffix(".gz")
        var failure: RecordingError?
        do throws(ChildFailure) {
            try ChildOutput.read(isPacked ? "gzip" : "cat", isPacked ? ["-dc", path] : [path]) {
                do throws(RecordingError) {
                    try add($0, bytesMax: bytesMax)
                } catch {
                    failure = error
                }
                return failure == nil && !isCut
            }
        } catch {
            throw RecordingError(error.description)
        }
        if let failure { throw RecordingError("\(path): \(failure)") }
        if !isCut, !partial.isEmpty { try keep(partial) }
        guard !lines.isEmpty else { throw RecordingError("\(path) has no lines") }
    }

    private mutating func add(
        _ piece: UnsafeRawBufferPointer,
        bytesMax: Int
    ) throws(RecordingError) {
        var rest = piece[...]
        while let newline = rest.firstIndex(of: UInt8(ascii: "\n")) {
            partial += rest[..<newline]
            try keep(partial)
            partial.removeAll(keepingCapacity: true)
            rest = rest[(newline + 1)...]
            if bytes >= bytesMax {
                isCut = true
                return
            }
        }
        partial += rest
        guard partial.count <= Self.lineBytesMax else { throw tooLong() }
    }

    private func tooLong() -> RecordingError {
        RecordingError("line \(lines.count + 1) is longer than \(Self.lineBytesMax) bytes")
    }

    private mutating func keep(_ line: [UInt8]) throws(RecordingError) {
        guard line.count <= Self.lineBytesMax else { throw tooLong() }
        let parsed = format.parse(line)
        if parsed == nil { strangeLines += 1 }
        lines.append(
            ReplayLine(value: line, key: parsed?.key ?? [], timestamp: parsed?.timestamp ?? 0)
        )
        bytes += line.count
    }
}
