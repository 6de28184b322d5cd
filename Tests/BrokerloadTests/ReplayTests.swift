import BrokerBasics
import Glibc
import Testing
import WireProtocol
import brokerload

extension SpinningTests {
    @Suite struct ReplayTests {
        private static let orders = """
            34200.004241176,1,16113575,18,5853300,1
            34200.00426064,3,16113584,18,5853200,1
            34201,1,16113575,18,5853100,1

            """
        private static let feed = """
            1723161255030314667 {"data":{"stream":"inner","x":[1,2]},"stream":"btcusdt@depth@0ms"}
            1723161255088169167 {"stream":"btcusdt@trade","data":{"p":"61800.30","m":false}}
            1723161255319702566 {"lastUpdateId":5123107852948,"bids":[["61800.20","2.909"]]}
            """

        private func text(_ recording: Recording, _ range: Range<Int>?) -> String? {
            range.map { String(decoding: recording.bytes[$0], as: UTF8.self) }
        }

        @Test("orders: time of day, order id, the whole line")
        func readOrders() throws {
            let recording = try Recording(
                bytes: Array(Self.orders.utf8),
                format: .orders,
                path: "orders"
            )
            #expect(recording.events.count == 3)
            #expect(
                recording.events.map(\.timestamp) == [
                    34_200_004_241_176, 34_200_004_260_640, 34_201_000_000_000,
                ]
            )
            #expect(text(recording, recording.events[1].key) == "16113584")
            #expect(
                text(recording, recording.events[0].payload)
                    == "34200.004241176,1,16113575,18,5853300,1"
            )
        }

        @Test("feed: receive time, the outermost stream, none where there is none")
        func readFeed() throws {
            let recording = try Recording(bytes: Array(Self.feed.utf8), format: .feed, path: "feed")
            #expect(
                recording.events.map { text(recording, $0.key) } == [
                    "btcusdt@depth@0ms", "btcusdt@trade", nil,
                ]
            )
            #expect(recording.events[0].timestamp == 1_723_161_255_030_314_667)
        }

        @Test(
            "a line of something else is named with its number",
            arguments: [
                (Recording.Format.orders, "34200.1,1,2,3,4,5\nrubbish\n"),
                (.orders, "34200.1,1,2,3,4,5\n34200.1,1,,3,4,5\n"),
                (.feed, "1 {\"a\":1}\n{\"a\":1}\n"), (.feed, "1 {}\n99999999999999999999 {}\n"),
            ]
        )
        func badLine(format: Recording.Format, text: String) throws {
            #expect(
                throws: LoadError.recording(
                    path: "x",
                    line: 2,
                    reason: "not a line of \(format.rawValue)"
                )
            ) { _ = try Recording(bytes: Array(text.utf8), format: format, path: "x") }
        }

        @Test("both recordings arrive whole, one of them zipped", arguments: [1, 10])
        func replay(batch: Int) throws {
            let directory = try Scratch()
            let feed = (0..<5000).map { "\($0 + 1) {\"stream\":\"s\($0 % 7)\",\"n\":\($0)}" }
            let ordersPath = try directory.write(Array(Self.orders.utf8), to: "orders.csv")
            let feedPath = try directory.write(
                Array(feed.joined(separator: "\n").utf8),
                to: "feed",
                zipped: true
            )

            let stub = try StubBroker()
            var replay = Replay(
                server: try #require(ServerAddress(stub.address)),
                sources: [
                    .init(path: ordersPath, format: .orders, queue: "orders", level: .synced),
                    .init(path: feedPath, format: .feed, queue: nil, level: .memory),
                ]
            )
            replay.batch = batch
            replay.partitions = 3
            replay.window = 16
            let result = Result { try replay.run() }
            stub.stop()
            let reports = try result.get()
            #expect(reports.map(\.records) == [3, 5000])
            #expect(reports.map(\.failures.total) == [0, 0])
            let seen = stub.seen
            #expect(seen.invalid == [])
            #expect(seen.records == 5003)
            #expect(seen.keys.contains(Array("16113575".utf8)))
            #expect(seen.keys.contains(Array("s3".utf8)))
            #expect(seen.timestamps.contains(34_200_004_241_176))
            #expect(seen.liveQueues == ["orders"])
            #expect(seen.deletedQueues.count == 1)
        }

        @Test("a missing recording, and a broken zip, are one sentence each")
        func missing() throws {
            #expect(throws: LoadError.self) {
                _ = try Recording(path: "/nowhere/feed.gz", format: .feed)
            }
            let directory = try Scratch()
            let path = try directory.write([0x1F, 0x8B, 1, 2, 3], to: "feed.gz")
            #expect(throws: LoadError.self) { _ = try Recording(path: path, format: .feed) }
        }
    }
}

/// A directory that is gone with the test.
///
/// No Foundation here: its C modules and CLinux disagree
/// about glibc's feature macros.
private final class Scratch {
    struct Failure: Error { var step: String }
    let path: String

    init() throws {
        var template = Array("/tmp/brokerload-XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw Failure(step: "mkdtemp") }
        path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }
    deinit { _ = system("rm -rf '\(path)'") }

    func write(_ bytes: [UInt8], to name: String, zipped: Bool = false) throws -> String {
        let file = "\(path)/\(name)"
        let fd = open(file, O_WRONLY | O_CREAT, 0o600)
        guard fd >= 0, Glibc.write(fd, bytes, bytes.count) == bytes.count, close(fd) == 0 else {
            throw Failure(step: "writing \(file)")
        }
        guard zipped else { return file }
        guard system("gzip '\(file)'") == 0 else { throw Failure(step: "gzip") }
        return file + ".gz"
    }
}
