import ChildProcess
import Foundation
import ReplayHarness
import Testing

@Suite struct RecordingTests {
    private func text(_ bytes: [UInt8]?) -> String? {
        bytes.map { String(decoding: $0, as: UTF8.self) }
    }

    @Test(
        "the key of an order event is its order id, its time is exact",
        arguments: [
            ("34200.004241176,1,16113575,18,5853300,1", "16113575", 34_200_004_241_176),
            ("34200.00426064,1,16113584,18,5853200,1", "16113584", 34_200_004_260_640),
            ("34200,5,0,100,5859100,-1\r", "0", 34_200_000_000_000),
            ("34200.5, 3, 77, 1, 2, -1", "77", 34_200_500_000_000),
        ] as [(String, String, UInt64)]
    )
    func orders(line: String, key: String, time: UInt64) throws {
        let parsed = try #require(RecordingFormat.orders.parse(Array(line.utf8)))
        #expect(text(parsed.key) == key)
        #expect(parsed.timestamp == time)
    }

    @Test(
        "the key of a feed event is its stream's name, if it has one",
        arguments: [
            (#"17 {"stream":"btcusdt@trade","data":{"stream":"no"}}"#, "btcusdt@trade", 17),
            (#"1723161255030314667 { "stream" : "x@y" }"#, "x@y", 1_723_161_255_030_314_667),
            (#"5 {"lastUpdateId":51,"bids":[]}"#, "", 5),
        ] as [(String, String, UInt64)]
    )
    func events(line: String, key: String, time: UInt64) throws {
        let parsed = try #require(RecordingFormat.feed.parse(Array(line.utf8)))
        #expect(text(parsed.key) == key)
        #expect(parsed.timestamp == time)
    }

    @Test(
        "what is of neither format is told apart",
        arguments: [
            "", "hello", "34200.1,1,77,18,5853300", "x,1,77,18,5853300,1", "1,1,a,1,1,1",
            "18446744073709551616 {}", "12 [1]", "12", "99999999999,1,1,1,1,1",
        ]
    )
    func strange(line: String) {
        #expect(RecordingFormat.orders.parse(Array(line.utf8)) == nil)
        #expect(RecordingFormat.feed.parse(Array(line.utf8)) == nil)
    }

    private func file(_ name: String, _ content: Data) throws -> (TemporaryDirectory, String) {
        let directory = try TemporaryDirectory(prefix: "recording-test")
        let path = directory.path + "/" + name
        try content.write(to: URL(filePath: path))
        return (directory, path)
    }

    @Test("a recording's lines are kept byte for byte, whatever they hold")
    func lines() throws {
        let content =
            Data("34200.5,1,7,1,2,1\n\n\u{0}x\r\n34201,1,8,1,2,1".utf8) + Data([0xFF, 10])
        let (directory, path) = try file("a.csv", content)
        let recording = try Recording(path: path, format: .orders)
        let last = Array("34201,1,8,1,2,1".utf8) + [0xFF]
        #expect(
            recording.lines.map(\.value)
                == [Array("34200.5,1,7,1,2,1".utf8), [], [0, 0x78, 13], last]
        )
        #expect(recording.strangeLines == 3)
        #expect(recording.lines[0].key == Array("7".utf8))
        #expect(recording.isCut == false)
        _ = directory
    }

    @Test("a packed recording is unpacked, and one that is damaged is refused")
    func packed() throws {
        let content = (0..<50_000).map { "\($0 + 1) {\"stream\":\"s\($0 % 3)\"}\n" }.joined()
        let (directory, path) = try file("a.feed", Data(content.utf8))
        let gzip = try SpawnedChild("gzip", arguments: ["-k", path])
        #expect(gzip.wait(timeoutMilliseconds: 10_000) == .exited(0))
        let recording = try Recording(path: path + ".gz", format: .feed)
        #expect(recording.lines.count == 50_000)
        #expect(recording.strangeLines == 0)
        #expect(recording.bytes == content.utf8.count - 50_000)
        let cut = try Recording(path: path + ".gz", format: .feed, bytesMax: 10_000)
        #expect(cut.isCut)
        #expect(cut.bytes < 11_000)

        var damaged = try Data(contentsOf: URL(filePath: path + ".gz"))
        damaged.removeLast(damaged.count / 2)
        try damaged.write(to: URL(filePath: path + ".gz"))
        #expect(throws: RecordingError.self) {
            try Recording(path: path + ".gz", format: .feed)
        }
        _ = directory
    }

    @Test("a recording that is absent, empty or has an endless line is refused by name")
    func refused() throws {
        #expect(throws: RecordingError("/no/such/file: No such file or directory")) {
            try Recording(path: "/no/such/file", format: .orders)
        }
        let (first, empty) = try file("empty", Data())
        #expect(throws: RecordingError("\(empty) has no lines")) {
            try Recording(path: empty, format: .orders)
        }
        let (second, long) = try file("long", Data(count: 2_000_000))
        #expect(throws: RecordingError("\(long): line 1 is longer than 1000000 bytes")) {
            try Recording(path: long, format: .feed)
        }
        _ = (first, second)
    }
}

@Suite struct GeneratorTests {
    private func integer(_ value: Any?) throws -> UInt64 {
        try #require((value as? NSNumber)?.uint64Value)
    }

    @Test("the same seed gives the same lines, another seed others")
    func seeds() {
        func orders(_ seed: UInt64) -> [String] {
            var generator = OrderGenerator(seed: seed)
            return (0..<50).map { _ in generator.line() }
        }
        func feed(_ seed: UInt64) -> [String] {
            var generator = FeedGenerator(seed: seed)
            return (0..<50).map { _ in generator.line() }
        }
        #expect(orders(1) == orders(1))
        #expect(orders(1) != orders(2))
        #expect(feed(1) == feed(1))
        #expect(feed(1) != feed(2))
    }

    @Test("generated orders stand before they are reduced or deleted, and time goes forward")
    func orders() throws {
        var generator = OrderGenerator(seed: 11)
        var standing: [String: Int] = [:]
        var types: Set<Int> = []
        var time: UInt64 = 0
        for _ in 0..<20_000 {
            let line = generator.line()
            let parsed = try #require(RecordingFormat.orders.parse(Array(line.utf8)), "\(line)")
            #expect(parsed.timestamp > time)
            time = parsed.timestamp
            let fields = line.split(separator: ",").map(String.init)
            let (type, id) = (try #require(Int(fields[1])), fields[2])
            let shares = try #require(Int(fields[3]))
            #expect(shares > 0)
            types.insert(type)
            switch type {
            case 1:
                #expect(standing[id] == nil, "\(line)")
                standing[id] = shares
            case 2, 4:
                let left = try #require(standing[id], "\(line)") - shares
                #expect(type == 2 ? left > 0 : left >= 0)
                standing[id] = left == 0 ? nil : left
            case 3: #expect(standing.removeValue(forKey: id) == shares, "\(line)")
            default: #expect(type == 5 && standing[id] == nil)
            }
        }
        #expect(types == [1, 2, 3, 4, 5])
    }

    @Test("generated events are JSON, with ids that are gap-free per kind")
    func feed() throws {
        var generator = FeedGenerator(seed: 12)
        var last: [String: UInt64] = [:]
        var received: UInt64 = 0
        var longest = 0
        for _ in 0..<10_000 {
            let line = generator.line()
            longest = max(longest, line.utf8.count)
            let parsed = try #require(RecordingFormat.feed.parse(Array(line.utf8)), "\(line)")
            #expect(parsed.timestamp >= received)
            received = parsed.timestamp
            let json = line[line.index(after: try #require(line.firstIndex(of: " ")))...]
            let object = try #require(
                try JSONSerialization.jsonObject(with: Data(json.utf8)) as? [String: Any]
            )
            let stream = try #require(object["stream"] as? String)
            #expect(Array(stream.utf8) == parsed.key)
            let data = try #require(object["data"] as? [String: Any])
            let kind = try #require(data["e"] as? String)
            switch kind {
            case "bookTicker":
                let id = try integer(data["u"])
                #expect(id > last[kind] ?? 0)
                last[kind] = id
            case "trade":
                let id = try integer(data["t"])
                #expect(last[kind].map { $0 + 1 == id } ?? true)
                last[kind] = id
            default:
                let (first, id) = (try integer(data["U"]), try integer(data["u"]))
                let previous = try integer(data["pu"])
                #expect(last[kind].map { $0 == previous } ?? true)
                #expect(previous < first && first <= id)
                last[kind] = id
            }
        }
        #expect(Set(last.keys) == ["bookTicker", "trade", "depthUpdate"])
        #expect(longest > 5_000)
    }
}
