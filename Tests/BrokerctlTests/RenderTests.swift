import Testing
import brokerctl

@Suite struct RenderTests {
    private var rows: Rows {
        var rows = Rows([
            .init("name"), .init("bytes", "SIZE"), .init("labels"), .init("created_at", "CREATED"),
        ])
        rows.append([
            .text("orders"), .bytes(1_536), .pairs([("owner", "a b"), ("tier", "1")]),
            .time(1_723_120_496_500_000_000),
        ])
        rows.append([.text("=cmd"), .bytes(7), .pairs([])])
        return rows
    }

    @Test("a table is aligned, numbers to the right, for people")
    func table() {
        #expect(
            rows.table == """
                NAME       SIZE  LABELS            CREATED
                orders  1.5 KiB  owner=a b tier=1  2024-08-08T12:34:56.5Z
                =cmd        7 B  -                 -

                """
        )
        #expect(Rows([.init("name")]).table == "NAME\n")
    }

    @Test("JSON has an object per row, members in the order of the columns, plain numbers")
    func json() {
        let text = String(decoding: JSONText.bytes(rows.json), as: UTF8.self)
        #expect(
            text == #"[{"name":"orders","bytes":1536,"labels":{"owner":"a b","tier":"1"},"#
                + #""created_at":1723120496500000000},"#
                + #"{"name":"=cmd","bytes":7,"labels":{},"created_at":null}]"#
        )
    }

    @Test("CSV is RFC 4180, and safe to open in a spreadsheet")
    func csv() {
        #expect(
            rows.csv == "name,bytes,labels,created_at\r\n"
                + "orders,1536,owner=a b tier=1,1723120496500000000\r\n'=cmd,7,,\r\n"
        )
    }

    @Test(
        "cells of CSV are quoted where needed, and never a formula",
        arguments: [
            ("plain", "plain"), ("", ""), ("a,b", "\"a,b\""), ("a\"b", "\"a\"\"b\""),
            ("a\nb", "\"a\nb\""), ("=1+1", "'=1+1"), ("+1", "+1"), ("-1.5", "-1.5"), ("-", "'-"),
            ("-1+2", "'-1+2"), ("@x", "'@x"), ("+a", "'+a"), ("-1.", "'-1."), ("=a,b", "\"'=a,b\""),
            ("\t=1", "'\t=1"), ("a\r\nb", "\"a\r\nb\""), ("+-1", "'+-1"),
        ]
    )
    func csvCells(text: String, cell: String) {
        #expect(CSVText.cell(text) == cell)
    }

    @Test(
        "JSON strings are escaped",
        arguments: [
            ("a\"b\\c", #""a\"b\\c""#), ("\n\r\t", #""\n\r\t""#),
            ("\u{1}\u{7F}", #""\u0001\u007f""#),
            ("é漢🙂", "\"é漢🙂\""), ("", "\"\""),
        ]
    )
    func jsonStrings(text: String, json: String) {
        #expect(String(decoding: JSONText.bytes(.string(text)), as: UTF8.self) == json)
    }

    @Test("bytes that are not UTF-8 are a base64 member")
    func base64Member() {
        #expect(
            JSONText.bytes(.object([JSONText.member("payload", [0xFF, 0])]))
                == Array(#"{"payload_base64":"/wA="}"#.utf8)
        )
        #expect(
            JSONText.bytes(.object([JSONText.member("payload", Array("é".utf8))]))
                == Array(#"{"payload":"é"}"#.utf8)
        )
        for (bytes, text) in [
            ("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="), ("foobar", "Zm9vYmFy"),
        ] {
            #expect(Base64.text(Array(bytes.utf8)) == text)
        }
    }

    @Test("control characters cannot steer a terminal")
    func controls() {
        #expect(Cell.text("a\u{1B}[2Jb").human == "a\\u{1b}[2Jb")
        #expect(Cell.text("a\u{202E}b").human == "a\\u{202e}b")
    }

    @Test(
        "sizes are read at a glance",
        arguments: [
            (0, "0 B"), (1_023, "1023 B"), (1_024, "1.0 KiB"), (1_048_575, "1.0 MiB"),
            (1_572_864, "1.5 MiB"), (UInt64.max, "16.0 EiB"),
        ] as [(UInt64, String)]
    )
    func sizes(bytes: UInt64, text: String) {
        #expect(HumanText.size(bytes) == text)
    }

    @Test(
        "durations are read at a glance",
        arguments: [
            (0, "0 s"), (12, "12 ns"), (1_500, "1.5 µs"), (82_000_000, "82.0 ms"),
            (59_900_000_000, "59.9 s"), (125_000_000_000, "2 min 5 s"),
            (3_600_000_000_000, "1 h 0 min"), (90_000_000_000_000, "1 d 1 h"),
        ] as [(UInt64, String)]
    )
    func durations(nanoseconds: UInt64, text: String) {
        #expect(HumanText.duration(nanoseconds) == text)
    }

    @Test("a report without rows is one object, and one row of CSV")
    func report() {
        let report = Report(facts: [(.init("name"), .text("a")), (.init("count"), .count(2))])
        #expect(JSONText.bytes(report.json) == Array(#"{"name":"a","count":2}"#.utf8))
        #expect(report.csv == "name,count\r\na,2\r\n")
        #expect(report.table == "NAME   a\nCOUNT  2\n")
    }
}
