import BlockingClient
import BrokerBasics
import BrokerProcess
import ChildProcess
import Foundation
import Glibc
import ReplayHarness
import ShardRuntime
import Synchronization
import Testing
import WireProtocol

/// A real broker whose disk is late, or stands still: ext4 over a FUSE file that waits before it writes and
/// flushes. The machine alone, with operations of seconds: `SlowDiskTests`.
@Suite(.serialized, .enabled(if: SlowDevice.obstacle == nil, SlowDevice.comment))
struct SlowDeviceTests {
    private static let options = [
        "--idle", "block", "--journal-size", "4MiB", "--frame-bytes-max", "64KiB",
        "--journal-staging", "512KiB", "--tail-memory", "8MiB", "--segment-size", "1MiB",
        "--chunk-size", "16KiB", "--disk-slow", "300ms",
    ]

    private func wait(_ what: String, _ condition: () throws -> Bool) throws {
        let deadline = Date().addingTimeInterval(120)
        while try !condition() {
            try #require(Date() < deadline, "\(what) did not come")
            usleep(10_000)
        }
    }

    private func metric(_ ready: BrokerProcess.Ready, _ name: String) throws -> Double {
        let body = try HTTPGet.get(ready.admin, "/metrics").body
        let line = body.split(separator: "\n").first { $0.hasPrefix("millrace_\(name) ") }
        return try #require(line?.split(separator: " ").last.flatMap { Double($0) })
    }

    private func connection(_ ready: BrokerProcess.Ready) throws -> Connection {
        try Connection(to: ServerAddress(parsing: ready.address), clientName: "test")
    }

    private func create(
        _ name: String, _ level: DurabilityLevel, on client: Connection
    ) throws -> UInt32 {
        let info = try client.request(
            .queueCreate, QueueCreateRequest(name: name, partitions: 1, level: level),
            reply: QueueInfo.self)
        return try #require(info.partitions.first).id
    }

    private func send(_ text: String, to partition: UInt32, on client: Connection) throws {
        var batch = BatchBuilder()
        _ = batch.append(Record(value: Array(text.utf8)))
        try client.send(
            FrameHeader(
                opcode: .publish, correlation: client.nextCorrelation(), stream: partition
            ).frame(body: batch.finish()), timeoutMilliseconds: 120_000)
    }

    /// Waits for the confirm of one publish.
    ///
    /// - Returns: its offset.
    private func confirmed(on client: Connection) throws -> UInt64 {
        let frame = try #require(try client.receive(timeoutMilliseconds: 120_000))
        try #require(frame.opcode == .confirm && !frame.isRefusal, "\(frame)")
        return try frame.body.withUnsafeBytes { bytes in
            try ConfirmEntry(at: #require(bytes.baseAddress)).baseOffset
        }
    }

    private func read(_ count: Int, from reader: Subscription) throws -> [String] {
        var texts: [String] = []
        while texts.count < count {
            guard case .records(let got)? = try reader.next(timeoutMilliseconds: 120_000) else {
                throw ChildFailure("nothing more after \(texts.count) of \(count)")
            }
            texts += got.entries.map { String(decoding: $0.record.value, as: UTF8.self) }
        }
        return texts
    }

    /// Publishes more than journal and tail take, on a thread of its own, and never waits for a confirm.
    private func flood(
        _ ready: BrokerProcess.Ready, _ partition: UInt32, _ count: Int
    ) throws -> Worker<String> {
        let address = try ServerAddress(parsing: ready.address)
        return try Worker {
            do {
                let stream = try PublishStream(queue: "orders") { (timeout) throws(ClientError) in
                    try Connection(
                        to: address, clientName: "flood", timeoutMilliseconds: max(1, timeout))
                }
                for number in 0..<count {
                    var batch = BatchBuilder()
                    let text = "flood \(number)"
                    let padding = String(repeating: ".", count: 4000 - text.utf8.count)
                    _ = batch.append(Record(value: Array((text + padding).utf8)))
                    try stream.publish(batch, to: 0)
                }
                return try stream.finish().isEmpty ? "nothing was confirmed" : ""
            } catch {
                return "\(error)"
            }
        }
    }

    @Test(
        "while the disk stands still publishers wait, all else is served and it is said; then all is confirmed",
        arguments: LoopKind.allCases)
    func standsStill(loop: LoopKind) throws {
        let device = try SlowDevice()
        let broker = try BrokerProcess(
            dataDirectory: device.dataDirectory, options: ["--loop", loop.rawValue] + Self.options,
            launcher: device.launcher)
        let ready = try broker.waitUntilReady()
        let client = try connection(ready)
        let orders = try create("orders", .synced, on: client)
        let ticks = try create("ticks", .memory, on: client)
        let orderReader = try Subscription(on: connection(ready), queue: "orders")
        let tickReader = try Subscription(on: connection(ready), queue: "ticks")
        for (partition, reader) in [(orders, orderReader), (ticks, tickReader)] {
            try send("first", to: partition, on: client)
            #expect(try confirmed(on: client) == 0)
            #expect(try read(1, from: reader) == ["first"])
        }
        #expect(broker.logLines(event: "disk-slow").isEmpty)

        let publisher = try connection(ready)
        let moment = try device.moment()
        try device.hold()
        try send("while it stands still", to: orders, on: publisher)
        try wait("the write") { try device.counts().held > 0 }
        // Who asks nothing of the disk is served: those who are there, and those who come.
        for round in 0..<20 {
            let other = round % 2 == 0 ? client : try connection(ready)
            _ = try other.request(.ping, Empty(), reply: Empty.self)
            try send("tick \(round)", to: ticks, on: client)
            #expect(try confirmed(on: client) == UInt64(round + 1))
            #expect(try read(1, from: tickReader) == ["tick \(round)"])
        }
        #expect(try HTTPGet.get(ready.admin, "/healthz").status == 200)
        #expect(try HTTPGet.get(ready.admin, "/readyz").status == 200)
        // It is said what is waited for, while it is.
        try wait("the line") { broker.logLines(event: "disk-slow").count == 1 }
        try wait("two seconds") { try metric(ready, "journal_wait_seconds") >= 2 }
        // More than there is room for: it waits in its socket.
        let floods = 600
        let flood = try flood(ready, orders, floods)
        try wait("a publish without room") { try metric(ready, "parks_total") > 0 }
        #expect(
            try metric(ready, "tail_used_bytes") <= metric(ready, "tail_limit_bytes"))
        _ = try client.request(.ping, Empty(), reply: Empty.self)
        // Nothing of it counts before it is on the disk.
        #expect(try publisher.receive(timeoutMilliseconds: 0) == nil)
        #expect(try !device.hasFlushed("while it stands still", since: moment))
        #expect(try orderReader.next(timeoutMilliseconds: 0) == nil)

        try device.release()
        #expect(try confirmed(on: publisher) == 1)
        #expect(try device.hasFlushed("while it stands still", since: moment))
        #expect(flood.join() == "")
        let texts = try read(floods + 1, from: orderReader)
        #expect(texts.first == "while it stands still")
        #expect(
            texts.dropFirst().map { $0.prefix { $0 != "." } }
                == (0..<floods).map { "flood \($0)" })
        #expect(try metric(ready, "refusals_total") == 0)
        #expect(try metric(ready, "storage_failed") == 0)
        #expect(try metric(ready, "journal_wait_seconds") < 2)
        #expect(broker.logLines(event: "disk-slow").count == 1)
        #expect(broker.stop() == .exited(0))
    }

    @Test(
        "with a disk that takes its time each confirm comes after its record is on it, and nothing is lost",
        arguments: LoopKind.allCases)
    func late(loop: LoopKind) throws {
        let device = try SlowDevice()
        let broker = try BrokerProcess(
            dataDirectory: device.dataDirectory, options: ["--loop", loop.rawValue] + Self.options,
            launcher: device.launcher)
        let ready = try broker.waitUntilReady()
        let client = try connection(ready)
        let orders = try create("orders", .synced, on: client)
        let reader = try Subscription(on: connection(ready), queue: "orders")
        var texts: [String] = []
        for milliseconds in [50, 100, 200] {
            try device.delay(writeMilliseconds: milliseconds, flushMilliseconds: milliseconds)
            let before = try device.counts()
            for number in 0..<4 {
                let text = "order \(number) at \(milliseconds) ms"
                texts.append(text)
                let moment = try device.moment()
                let began = Clock.monotonic
                try send(text, to: orders, on: client)
                #expect(try confirmed(on: client) == UInt64(texts.count - 1))
                #expect(try device.hasFlushed(text, since: moment))
                // A write and a flush: sooner it can't be.
                #expect(
                    Clock.monotonic.since(began) >= .milliseconds(UInt64(2 * milliseconds)))
            }
            let counts = try device.counts()
            #expect(counts.writes >= before.writes + 4)
            #expect(counts.flushes >= before.flushes + 4)
        }
        #expect(try read(texts.count, from: reader) == texts)
        #expect(try metric(ready, "refusals_total") == 0)
        // An orderly end takes its time too.
        try device.delay(writeMilliseconds: 20, flushMilliseconds: 20)
        #expect(broker.stop() == .exited(0))
    }
}
