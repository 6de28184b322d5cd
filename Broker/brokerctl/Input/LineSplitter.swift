/// Cuts a stream of bytes into lines: whatever stands before each `\n`, byte for byte.
///
/// A last line without a newline counts; a newline at the very end begins no further line. Holds
/// one line of at most `lineBytesMax` and what one read appended.
package struct LineSplitter {
    package enum Line: Equatable, Sendable {
        case line([UInt8])
        /// More bytes are needed.
        case incomplete
        /// The line is longer than the limit; reading on makes no sense.
        case tooLong
        case end
    }

    private var bytes: [UInt8] = []
    private var start = 0
    /// Up to here there is no newline.
    private var searched = 0
    private var isFinished = false
    private let lineBytesMax: Int
    /// Lines handed out so far.
    package private(set) var lineCount = 0

    package init(lineBytesMax: Int) { self.lineBytesMax = lineBytesMax }

    package mutating func append(_ more: UnsafeRawBufferPointer) {
        if start > 0 {
            bytes.removeFirst(start)
            searched -= start
            start = 0
        }
        bytes.append(contentsOf: more)
    }

    /// Says that nothing more will be appended.
    package mutating func finish() { isFinished = true }

    package mutating func next() -> Line {
        let (from, end) = (searched, bytes.count)
        let newline = bytes.withUnsafeBufferPointer { buffer in
            buffer[from..<end].firstIndex(of: UInt8(ascii: "\n"))
        }
        searched = newline ?? end
        guard searched - start <= lineBytesMax else { return .tooLong }
        if newline == nil {
            guard isFinished else { return .incomplete }
            guard start < end else { return .end }
        }
        let line = Array(bytes[start..<searched])
        start = min(searched + 1, end)
        searched = start
        lineCount += 1
        return .line(line)
    }
}

/// The fields of a line: between them stands a comma, a run of blanks, or both.
package enum LineFields {
    /// Field `number`, counted from 1; `nil` when the line has fewer. Two commas in a row have an
    /// empty field between them; blanks at the ends of the line are no fields.
    package static func field(_ number: Int, of line: [UInt8]) -> [UInt8]? {
        var at = 0
        var end = line.count
        while at < end, isBlank(line[at]) { at += 1 }
        while end > at, isBlank(line[end - 1]) { end -= 1 }
        guard at < end else { return nil }
        var left = number
        while true {
            let start = at
            while at < end, line[at] != UInt8(ascii: ","), !isBlank(line[at]) { at += 1 }
            left -= 1
            if left == 0 { return Array(line[start..<at]) }
            guard at < end else { return nil }
            while at < end, isBlank(line[at]) { at += 1 }
            if at < end, line[at] == UInt8(ascii: ",") {
                at += 1
                while at < end, isBlank(line[at]) { at += 1 }
            }
        }
    }

    private static func isBlank(_ byte: UInt8) -> Bool {
        byte == UInt8(ascii: " ") || byte == UInt8(ascii: "\t") || byte == UInt8(ascii: "\r")
    }
}
