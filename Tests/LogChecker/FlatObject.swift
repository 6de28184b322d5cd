/// A JSON object whose members are texts and whole numbers: as much of JSON as a history needs.
struct FlatObject {
    private enum Value {
        case number(UInt64)
        case text(String)
    }

    private let line: Int
    private var members: [String: Value] = [:]

    init(_ bytes: some Collection<UInt8>, number: Int) throws(HistoryError) {
        line = number
        var reader = JSONReader(bytes: Array(bytes), line: number)
        try reader.take("{")
        while true {
            let name = try reader.text()
            try reader.take(":")
            let value: Value =
                reader.isAtText ? .text(try reader.text()) : .number(try reader.number())
            guard members.updateValue(value, forKey: name) == nil else {
                throw HistoryError(line: number, reason: "\(name) is there twice")
            }
            if reader.skip(",") { continue }
            break
        }
        try reader.take("}")
        try reader.end()
    }

    func has(_ name: String) -> Bool { members[name] != nil }

    func number(_ name: String) throws(HistoryError) -> UInt64 {
        guard case .number(let number) = members[name] else { throw failure(name, "a number") }
        return number
    }

    func text(_ name: String) throws(HistoryError) -> String {
        guard case .text(let text) = members[name] else { throw failure(name, "a text") }
        return text
    }

    func hash(_ name: String) throws(HistoryError) -> UInt64 {
        let text = try text(name)
        guard text.utf8.allSatisfy({ $0 != UInt8(ascii: "+") }), let hash = UInt64(text, radix: 16)
        else { throw failure(name, "a hash of at most 16 digits") }
        return hash
    }

    func level(_ name: String) throws(HistoryError) -> LogEvent.Level {
        guard let level = LogEvent.Level(rawValue: try text(name)) else {
            throw failure(name, "memory, written or synced")
        }
        return level
    }

    private func failure(_ name: String, _ wanted: String) -> HistoryError {
        HistoryError(line: line, reason: "\(name) must be \(wanted)")
    }
}

/// Takes JSON's tokens off the front of a line.
private struct JSONReader {
    let bytes: [UInt8]
    let line: Int
    private var at = 0

    init(bytes: [UInt8], line: Int) {
        self.bytes = bytes
        self.line = line
    }

    private func failure(_ wanted: String) -> HistoryError {
        HistoryError(line: line, reason: "no \(wanted) at column \(at + 1)")
    }

    private mutating func passSpace() {
        while at < bytes.count, bytes[at] == 0x20 || bytes[at] == 0x09 || bytes[at] == 0x0D {
            at += 1
        }
    }

    var isAtText: Bool {
        mutating get {
            passSpace()
            return at < bytes.count && bytes[at] == UInt8(ascii: "\"")
        }
    }

    mutating func skip(_ mark: Unicode.Scalar) -> Bool {
        passSpace()
        guard at < bytes.count, bytes[at] == UInt8(ascii: mark) else { return false }
        at += 1
        return true
    }

    mutating func take(_ mark: Unicode.Scalar) throws(HistoryError) {
        guard skip(mark) else { throw failure("\(mark)") }
    }

    mutating func end() throws(HistoryError) {
        passSpace()
        guard at == bytes.count else { throw failure("end") }
    }

    mutating func number() throws(HistoryError) -> UInt64 {
        passSpace()
        var value: UInt64 = 0
        let start = at
        while at < bytes.count, (0x30...0x39).contains(bytes[at]) {
            let (tenfold, overflow) = value.multipliedReportingOverflow(by: 10)
            let (sum, carry) = tenfold.addingReportingOverflow(UInt64(bytes[at] - 0x30))
            guard !overflow, !carry else { throw failure("number of 64 bits") }
            value = sum
            at += 1
        }
        guard at > start else { throw failure("number") }
        return value
    }

    mutating func text() throws(HistoryError) -> String {
        try take("\"")
        var text: [UInt8] = []
        while at < bytes.count, bytes[at] != UInt8(ascii: "\"") {
            if bytes[at] == UInt8(ascii: "\\") {
                text += try escape()
            } else {
                text.append(bytes[at])
                at += 1
            }
        }
        try take("\"")
        return String(decoding: text, as: UTF8.self)
    }

    private mutating func escape() throws(HistoryError) -> [UInt8] {
        guard at + 1 < bytes.count else { throw failure("escape") }
        at += 2
        switch bytes[at - 1] {
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): return [bytes[at - 1]]
        case UInt8(ascii: "n"): return [0x0A]
        case UInt8(ascii: "t"): return [0x09]
        case UInt8(ascii: "r"): return [0x0D]
        case UInt8(ascii: "u"):
            guard at + 4 <= bytes.count,
                let code = UInt32(String(decoding: bytes[at..<at + 4], as: UTF8.self), radix: 16),
                let scalar = Unicode.Scalar(code)
            else { throw failure("escape") }
            at += 4
            return Array(String(Character(scalar)).utf8)
        default: throw failure("escape")
        }
    }
}
