import Foundation
import LogChecker
import Testing

@Suite struct LogHistoryTests {
    @Test("what is written is read", arguments: Histories.good + Histories.bad)
    func roundTrip(history: NamedHistory) throws {
        let text = history.events.map { $0.line + "\n" }.joined()
        #expect(try LogHistory(text: text).events == history.events)
    }

    @Test("the lines of the documentation are read as they stand there")
    func documented() throws {
        let text = """
            {"event":"published","producer":"a","sequence":7,"partition":0,"payload":"9f3c","level":"synced"}
            {"event":"confirmed","producer":"a","sequence":7,"partition":0,"offset":41,"level":"synced"}
            {"event":"confirmed","producer":"a","sequence":8,"partition":0,"level":"memory"}

            {"event":"began","reader":"r","partition":0,"offset":0}
            {"event":"delivered","reader":"r","order":0,"partition":0,"offset":41,"epoch":3,"payload":"9f3c"}
            {"event":"lost","reader":"r","order":1,"partition":0,"from":42,"to":50,"epoch":4}
             { "event" : "end", "reader" : "r" , "partition":0,"offset":50, "note":"passed over" }
            {"event":"crash"}
            """
        let events = try LogHistory(text: text).events
        #expect(
            events == [
                .published(
                    .init(
                        producer: "a",
                        sequence: 7,
                        partition: 0,
                        payload: 0x9F3C,
                        level: .synced
                    )
                ),
                .confirmed(
                    .init(producer: "a", sequence: 7, partition: 0, offset: 41, level: .synced)
                ),
                .confirmed(
                    .init(producer: "a", sequence: 8, partition: 0, offset: nil, level: .memory)
                ),
                .began(reader: "r", partition: 0, offset: 0),
                .delivered(
                    .init(
                        reader: "r",
                        order: 0,
                        partition: 0,
                        offset: 41,
                        epoch: 3,
                        payload: 0x9F3C
                    )
                ),
                .lost(.init(reader: "r", order: 1, partition: 0, offsets: 42..<50, epoch: 4)),
                .end(reader: "r", partition: 0, offset: 50),
                .crash,
            ]
        )
    }

    @Test("any name can be written")
    func names() throws {
        let names = ["", "a b", "\"", "\\", "\n\u{1}", "Größe \u{1F600}", "{\"event\":\"crash\"}"]
        for name in names {
            let event = LogEvent.began(reader: name, partition: 1, offset: .max)
            #expect(!event.line.contains("\n"))
            #expect(try LogHistory(text: event.line).events == [event])
        }
    }

    @Test(
        "a line that is no event is refused by its number",
        arguments: [
            "{}", "[]", "{\"event\":\"crash\"", "{\"event\":\"crash\"}x", "{\"event\":7}",
            "{\"event\":\"gone\"}", "{\"event\":\"crash\",\"event\":\"crash\"}",
            "{\"event\":\"end\",\"reader\":\"r\",\"partition\":0}",
            "{\"event\":\"end\",\"reader\":\"r\",\"partition\":-1,\"offset\":0}",
            "{\"event\":\"end\",\"reader\":\"r\",\"partition\":0,\"offset\":18446744073709551616}",
            "{\"event\":\"end\",\"reader\":\"r\",\"partition\":0,\"offset\":\"1\"}",
            "{\"event\":\"end\",\"reader\":\"\\x\",\"partition\":0,\"offset\":0}",
            "{\"event\":\"lost\",\"reader\":\"r\",\"order\":0,\"partition\":0,\"from\":5,\"to\":5,"
                + "\"epoch\":1}",
            "{\"event\":\"published\",\"producer\":\"a\",\"sequence\":0,\"partition\":0,"
                + "\"payload\":\"+1\",\"level\":\"synced\"}",
            "{\"event\":\"published\",\"producer\":\"a\",\"sequence\":0,\"partition\":0,"
                + "\"payload\":\"1\",\"level\":\"sometimes\"}",
        ]
    )
    func refused(line: String) {
        let error = #expect(throws: HistoryError.self) {
            try LogHistory(text: "{\"event\":\"crash\"}\n\n\(line)\n")
        }
        #expect(error?.line == 3)
    }

    @Test("a file is read like its text, and one that is not there is named")
    func file() throws {
        let path = FileManager.default.temporaryDirectory.path + "/\(UUID().uuidString).jsonl"
        defer { unlink(path) }
        // Longer than one piece, and without a newline at its end.
        let line = LogEvent.end(reader: String(repeating: "r", count: 700), partition: 0, offset: 1)
        let text = Array(repeating: line.line, count: 3_000).joined(separator: "\n")
        try Data(text.utf8).write(to: URL(filePath: path))
        #expect(try LogHistory(path: path).events == LogHistory(text: text).events)
        let error = #expect(throws: HistoryError.self) { try LogHistory(path: "/no/such/file") }
        #expect(error?.reason.contains("/no/such/file") == true)
    }

    @Test("a hash tells parts from their neighbours, and what is missing from what is empty")
    func hash() {
        func hash(_ parts: [UInt8]?...) -> UInt64 {
            var hash = RecordHash()
            for part in parts { hash.add(part) }
            return hash.value
        }
        let hashes = [
            hash(), hash([]), hash(nil), hash([1, 2], [3]), hash([1], [2, 3]), hash([1, 2, 3]),
            hash([3], [1, 2]), hash([], nil), hash(nil, []),
        ]
        #expect(Set(hashes).count == hashes.count)
    }
}
