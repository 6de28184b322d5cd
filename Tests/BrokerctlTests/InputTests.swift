import Testing
import brokerctl

@Suite struct InputTests {
    private func lines(_ text: String, piece: Int, limit: Int = 100) -> [String] {
        var splitter = LineSplitter(lineBytesMax: limit)
        var lines: [String] = []
        var rest = Array(text.utf8)[...]
        while true {
            switch splitter.next() {
            case .line(let line): lines.append(String(decoding: line, as: UTF8.self))
            case .incomplete:
                let part = rest.prefix(piece)
                rest = rest.dropFirst(piece)
                if part.isEmpty { splitter.finish() }
                Array(part).withUnsafeBytes { splitter.append($0) }
            case .tooLong: return lines + ["too long"]
            case .end: return lines
            }
        }
    }

    @Test("lines come out byte for byte, whatever the pieces", arguments: 1...12)
    func pieces(piece: Int) {
        #expect(lines("ab\n\nc\r\nd", piece: piece) == ["ab", "", "c\r", "d"])
        #expect(lines("a\n", piece: piece) == ["a"])
        #expect(lines("\n", piece: piece) == [""])
        #expect(lines("", piece: piece) == [])
    }

    @Test("a line over the limit is not waited for")
    func tooLong() {
        #expect(lines("abc\nabcd\n", piece: 3, limit: 3) == ["abc", "too long"])
        #expect(lines("abcdefgh", piece: 1, limit: 3) == ["too long"])
    }

    @Test(
        "fields stand between commas or blanks",
        arguments: [
            ("34200.1,1,16113575,18,5853300,1", 3, "16113575"),
            ("a b  c", 3, "c"), ("a , b\tc", 2, "b"), ("a,,b", 2, ""), ("a,", 2, ""),
            (",a", 1, ""), ("  a b ", 1, "a"), ("a b\r", 2, "b"),
            ("17 {\"stream\":\"x.trade\",\"data\"", 2, "{\"stream\":\"x.trade\""),
            ("a b", 3, nil), ("", 1, nil), ("   ", 1, nil),
        ] as [(String, Int, String?)]
    )
    func fields(line: String, number: Int, field: String?) {
        let found = LineFields.field(number, of: Array(line.utf8))
        #expect(found.map { String(decoding: $0, as: UTF8.self) } == field)
    }
}
