import BrokerProcess
import BrokerTestSupport
import ChildProcess
import Foundation
import LogStorage
import ShardRuntime
import Testing

enum ControlTool {
    /// Runs `brokerctl` to its end, which is to be good.
    static func run(
        _ broker: BrokerProcess.Ready,
        _ arguments: [String],
        input: String = ""
    ) throws -> String {
        let result = try result(broker, arguments, input: input)
        #expect(
            result.code == 0, "brokerctl \(arguments.joined(separator: " ")): \(result.errors)")
        return result.output
    }

    static func result(
        _ broker: BrokerProcess.Ready,
        _ arguments: [String],
        input: String = ""
    ) throws -> (code: Int32, output: String, errors: String) {
        let tool = Process()
        tool.executableURL = URL(filePath: try Executable.named("brokerctl"))
        tool.arguments = arguments + ["--server", broker.address]
        let (output, lines) = (Pipe(), Pipe())
        tool.standardOutput = output
        tool.standardInput = lines
        let path = FileManager.default.temporaryDirectory.path + "/errors-\(UUID().uuidString)"
        defer { try? FileManager.default.removeItem(atPath: path) }
        try #require(FileManager.default.createFile(atPath: path, contents: nil))
        tool.standardError = FileHandle(forWritingAtPath: path)
        try tool.run()
        // Who is refused at once may be gone before it has read all.
        signal(SIGPIPE, SIG_IGN)
        try? lines.fileHandleForWriting.write(contentsOf: Data(input.utf8))
        try lines.fileHandleForWriting.close()
        let data = output.fileHandleForReading.readDataToEndOfFile()
        tool.waitUntilExit()
        return (
            tool.terminationStatus, String(decoding: data, as: UTF8.self),
            (try? String(contentsOfFile: path, encoding: .utf8)) ?? ""
        )
    }
}

/// A real brokerd: what an operator sees of it.
@Suite struct ProcessTests {
    @Test(
        "it serves HTTP with health, readiness and metrics of queues and groups, and stops with 0",
        arguments: LoopKind.allCases
    )
    func life(loop: LoopKind) throws {
        let broker = try BrokerProcess(options: ["--loop", loop.rawValue])
        let ready = try broker.waitUntilReady()
        #expect(ready.loop == loop.rawValue)
        #expect(ready.epoch == 1)
        #expect(ready.serverID.count == 16)
        #expect(try HTTPGet.get(ready.admin, "/healthz").status == 200)
        #expect(try HTTPGet.get(ready.admin, "/readyz").status == 200)
        #expect(try HTTPGet.get(ready.admin, "/").status == 404)
        let refused = try HTTPGet.get(ready.admin, "/metrics?queue=a")
        #expect(refused.status == 400)
        #expect(refused.body.contains("unknown: queue"))

        _ = try ControlTool.run(ready, ["queue", "create", "orders", "--partitions", "1"])
        _ = try ControlTool.run(
            ready, ["queue", "publish", "orders", "--lines", "-"], input: "a\nb\nc\n")
        let consumed = try ControlTool.run(
            ready,
            ["queue", "consume", "orders", "--group", "g", "--from", "start", "--count", "3"]
        )
        #expect(consumed == "a\nb\nc\n")
        let metrics = try HTTPGet.get(ready.admin, "/metrics")
        #expect(metrics.status == 200)
        #expect(metrics.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8")
        let lines = metrics.body.split(separator: "\n").map(String.init)
        for line in [
            "millrace_ready 1", "millrace_storage_failed 0",
            "millrace_queue_records{queue=\"orders\",partition=\"0\"} 3",
            "millrace_queue_start_offset{queue=\"orders\",partition=\"0\"} 0",
            "millrace_queue_committed_offset{queue=\"orders\",partition=\"0\"} 3",
            "millrace_queue_end_offset{queue=\"orders\",partition=\"0\"} 3",
            "millrace_queue_published_records_total{queue=\"orders\",partition=\"0\"} 3",
            "millrace_queue_delivered_records_total{queue=\"orders\",partition=\"0\"} 3",
            "millrace_queue_info{queue=\"orders\",durability=\"synced\"} 1",
            "millrace_group_lag_records{queue=\"orders\",group=\"g\",partition=\"0\"} 0",
            "millrace_group_lag_seconds{queue=\"orders\",group=\"g\",partition=\"0\"} 0.0",
        ] {
            #expect(lines.contains(line), "\(line)")
        }
        // Every line is a comment or a name, labels and a number.
        for line in lines where !line.hasPrefix("#") {
            #expect(line.hasPrefix("millrace_"))
            #expect(line.split(separator: " ").last.flatMap { Double($0) } != nil, "\(line)")
        }
        let writes = lines.first { $0.hasPrefix("millrace_journal_write_seconds_count ") }
        #expect(writes.flatMap { $0.split(separator: " ").last }.flatMap { Int($0) } ?? 0 > 0)

        let status = try ControlTool.run(ready, ["server", "status"])
        for fact in [
            "kernel", "cpu_model", "io_uring", "loop", "idle", "direct_io", "disk_interrupts",
        ] {
            #expect(status.contains(fact))
        }

        #expect(broker.stop() == .exited(0))
        #expect(broker.logLines.count == broker.log.split(separator: "\n").count)
        for event in ["starting", "ready", "stopping", "stopped"] {
            #expect(broker.logLines(event: event).count == 1, "\(event)")
        }
    }

    /// What one loop left, the other takes up.
    @Test(
        "a stopped broker starts clean, a killed one recovers, each with a new epoch",
        arguments: [
            [LoopKind.uring, .uring, .uring], [.epoll, .epoll, .epoll], [.uring, .epoll, .uring],
        ]
    )
    func restarts(loops: [LoopKind]) throws {
        let options = loops.map { ["--loop", $0.rawValue] }
        let first = try BrokerProcess(options: options[0])
        let ready = try first.waitUntilReady()
        _ = try ControlTool.run(ready, ["queue", "create", "orders", "--partitions", "1"])
        #expect(first.stop() == .exited(0))

        let second = try BrokerProcess(
            dataDirectory: first.dataDirectory, options: options[1])
        let again = try second.waitUntilReady()
        #expect(again.serverID == ready.serverID)
        #expect(again.epoch > ready.epoch)
        #expect(second.logLines(event: "ready").first?["clean"] as? Bool == true)
        _ = try ControlTool.run(
            again, ["queue", "publish", "orders", "--lines", "-"], input: "a\nb\n")
        second.kill()

        let third = try BrokerProcess(
            dataDirectory: first.dataDirectory, options: options[2])
        let recovered = try third.waitUntilReady()
        #expect(recovered.epoch > again.epoch)
        #expect(third.logLines(event: "ready").first?["clean"] as? Bool == false)
        #expect(
            try ControlTool.run(
                recovered,
                ["queue", "consume", "orders", "--from", "start", "--until-end"]
            )
                == "a\nb\n"
        )
        #expect(third.stop() == .exited(0))
    }

    @Test("a second broker on the same data is refused with 1, and the first goes on")
    func secondOnTheSameData() throws {
        let first = try BrokerProcess()
        let ready = try first.waitUntilReady()
        let second = try BrokerProcess(dataDirectory: first.dataDirectory)
        #expect(second.waitForEnd() == .exited(1))
        #expect(second.log.contains("another brokerd is using it"))
        #expect(try HTTPGet.get(ready.admin, "/readyz").status == 200)
    }

    @Test("a port in use is refused with 1, both for clients and for HTTP")
    func portInUse() throws {
        let first = try BrokerProcess()
        let ready = try first.waitUntilReady()
        for (flag, address) in [("--listen", ready.address), ("--admin", ready.admin)] {
            let second = try BrokerProcess(options: [flag, address])
            #expect(second.waitForEnd() == .exited(1))
            #expect(second.log.contains("listening on \(address)"), "\(second.log)")
        }
    }

    @Test("usage errors end with 2, name what is wrong, and leave the disk alone")
    func usage() throws {
        for (options, message) in [
            (["--no-such-option", "1"], "unknown option --no-such-option"),
            (["--shards", "300"], "--shards: '300' is not accepted"),
            (["--journal-size", "1MiB"], "raise --journal-size"),
        ] {
            let broker = try BrokerProcess(options: options)
            #expect(broker.waitForEnd() == .exited(2))
            #expect(broker.log.contains(message), "\(broker.log)")
            #expect(!FileManager.default.fileExists(atPath: broker.dataDirectory))
        }
        let variable = try BrokerProcess(environment: ["MILLRACE_NO_SUCH": "1"])
        #expect(variable.waitForEnd() == .exited(2))
        #expect(variable.log.contains("unknown environment variable MILLRACE_NO_SUCH"))
    }

    @Test(
        "it listens on a Unix socket as well, whose file goes with it, and without HTTP if asked",
        arguments: LoopKind.allCases
    )
    func unixSocket(loop: LoopKind) throws {
        let path = FileManager.default.temporaryDirectory.path + "/\(UUID().uuidString).sock"
        let broker = try BrokerProcess(
            options: [
                "--listen", "127.0.0.1:0", "--listen", "unix:\(path)", "--admin", "off",
                "--loop", loop.rawValue,
            ])
        let ready = try broker.waitUntilReady()
        #expect(ready.unixPath == path)
        #expect(ready.admin == "off")
        #expect(FileManager.default.fileExists(atPath: path))
        broker.send(signal: SIGINT)
        #expect(broker.waitForEnd() == .exited(0))
        #expect(!FileManager.default.fileExists(atPath: path))
    }

    @Test(
        "whoever does not speak the protocol is told so before the connection ends",
        arguments: LoopKind.allCases
    )
    func lastWords(loop: LoopKind) throws {
        let broker = try BrokerProcess(options: ["--loop", loop.rawValue])
        let ready = try broker.waitUntilReady()
        // Reads to the end of what comes: a reset instead would be an error of its own.
        let failure = #expect(throws: ChildFailure.self) {
            try HTTPGet.get(ready.address, "/")
        }
        let text = try #require(failure).description
        #expect(text.contains("not a frame of this protocol"), "\(text)")
        #expect(broker.stop() == .exited(0))
    }

    @Test("while it makes or reads its journal HTTP answers: alive, not ready, and how far it is")
    func recovering() throws {
        let broker = try BrokerProcess(options: ["--journal-size", "1GiB"])
        var address: String?
        while address == nil, broker.isRunning {
            address = broker.logLines(event: "admin").first?["admin"] as? String
            usleep(1000)
        }
        let admin = try #require(address)
        let ready = try HTTPGet.get(admin, "/readyz")
        #expect(ready.status == 503)
        #expect(ready.body.contains("\"stage\":\"recovering\""))
        #expect(ready.body.contains("\"journalBytesRead\":"))
        #expect(try HTTPGet.get(admin, "/healthz").status == 200)
        let metrics = try HTTPGet.get(admin, "/metrics")
        #expect(metrics.status == 200)
        #expect(metrics.body.contains("\nmillrace_ready 0\n"))
        try broker.waitUntilReady()
        #expect(try HTTPGet.get(admin, "/readyz").status == 200)
        #expect(broker.stop() == .exited(0))
    }

    @Test("when a segment can't be made /readyz says 503 and why, and publishes are refused")
    func storageFailure() throws {
        let broker = try BrokerProcess()
        let ready = try broker.waitUntilReady()
        _ = try ControlTool.run(
            ready, ["queue", "create", "ticks", "--partitions", "1", "--durability", "memory"])
        #expect(try HTTPGet.get(ready.admin, "/readyz").status == 200)
        // Segments are named below a directory that is now elsewhere.
        let segments = broker.dataDirectory + "/segments"
        try FileManager.default.moveItem(atPath: segments, toPath: segments + "-gone")
        _ = try ControlTool.run(ready, ["queue", "publish", "ticks", "--lines", "-"], input: "a\n")
        let deadline = Date().addingTimeInterval(60)
        while !broker.log.contains("making segments/"), broker.isRunning, Date() < deadline {
            usleep(5000)
        }
        let answer = try HTTPGet.get(ready.admin, "/readyz")
        #expect(answer.status == 503)
        #expect(answer.body.contains("\"reason\":\"storage failed: making segments/"))
        #expect(answer.body.contains("errno 2"))
        #expect(try HTTPGet.get(ready.admin, "/healthz").status == 200)
        #expect(
            try HTTPGet.get(ready.admin, "/metrics").body.contains("\nmillrace_storage_failed 1\n"))
        #expect(broker.log.contains("making segments/"))
        try FileManager.default.moveItem(atPath: segments + "-gone", toPath: segments)
        #expect(try HTTPGet.get(ready.admin, "/readyz").status == 503)
        // Who asked it to stop must learn that not all is well.
        #expect(broker.stop() == .exited(1))
        #expect(broker.log.contains("stopped after a storage failure: making segments/"))
    }

    @Test(
        "on a filesystem without direct I/O it serves, says so, and keeps what it confirmed over a kill",
        .enabled(if: access("/dev/shm", W_OK) == 0, "there is no /dev/shm"))
    func withoutDirectIO() throws {
        let directory = "/dev/shm/millrace-\(UUID().uuidString)"
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let first = try BrokerProcess(dataDirectory: directory)
        let ready = try first.waitUntilReady()
        let status = try ControlTool.run(ready, ["server", "status", "-o", "json"])
        #expect(status.contains("no: the filesystem has none"), "\(status)")
        _ = try ControlTool.run(ready, ["queue", "create", "orders", "--partitions", "1"])
        let lines = (0..<2000).map { "record \($0)\n" }.joined()
        _ = try ControlTool.run(
            ready, ["queue", "publish", "orders", "--lines", "-"], input: lines)
        first.kill()
        let second = try BrokerProcess(dataDirectory: directory)
        let again = try second.waitUntilReady()
        #expect(second.logLines(event: "ready").first?["clean"] as? Bool == false)
        #expect(
            try ControlTool.run(
                again, ["queue", "consume", "orders", "--from", "start", "--until-end"])
                == lines)
        #expect(second.stop() == .exited(0))
    }

    @Test("a directory of format 1 is served by a real broker")
    func golden() throws {
        let path = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .appending(path: "Golden/format-1.txt").path
        let listing = try DirectoryListing(parsing: String(contentsOfFile: path, encoding: .utf8))
        let directory = FileManager.default.temporaryDirectory.path + "/golden-\(UUID().uuidString)"
        defer { try? FileManager.default.removeItem(atPath: directory) }
        for name in StorageDirectory.allCases {
            try FileManager.default.createDirectory(
                atPath: directory + "/" + name.rawValue, withIntermediateDirectories: true)
        }
        for (name, bytes) in listing.files {
            try Data(bytes).write(to: URL(filePath: directory + "/" + name.path))
        }
        let broker = try BrokerProcess(
            dataDirectory: directory, options: ["--frame-bytes-max", "64KiB"])
        let ready = try broker.waitUntilReady()
        let found = try ControlTool.run(
            ready, ["queue", "consume", "orders", "--from", "start", "--until-end"])
        for partition in 0..<2 {
            for number in 0..<40 { #expect(found.contains("order \(partition)/\(number)")) }
        }
        #expect(broker.stop() == .exited(0))
    }

    @Test("a second signal ends it at once, with 1")
    func secondSignal() throws {
        let broker = try BrokerProcess(options: ["--journal-size", "1GiB"])
        while broker.logLines(event: "admin").isEmpty, broker.isRunning { usleep(1000) }
        // The recovery goes on, so the first stop takes its time.
        broker.send(signal: SIGTERM)
        while broker.logLines(event: "stopping").isEmpty, broker.isRunning { usleep(1000) }
        broker.send(signal: SIGTERM)
        #expect(broker.waitForEnd() == .exited(1))
        #expect(broker.logLines(event: "killed").count == 1)
    }
}
