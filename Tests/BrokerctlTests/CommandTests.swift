import BlockingClient
import Foundation
import ScriptedServer
import Synchronization
import Testing
import WireProtocol
import brokerctl

/// Whole command lines against a tiny broker, in process.
@Suite struct CommandTests {
    private struct Result {
        var code: Int32
        var output: String
        var errors: String
    }

    /// Runs one command line with `input` as its standard input.
    private func run(_ arguments: [String], input: String = "") throws -> Result {
        let directory = FileManager.default.temporaryDirectory
        let base = directory.appending(path: "brokerctl-\(UUID().uuidString)")
        let paths = ["in", "out", "err"].map { base.path + "." + $0 }
        defer { paths.forEach { unlink($0) } }
        try Data(input.utf8).write(to: URL(filePath: paths[0]))
        let input = open(paths[0], O_RDONLY)
        let output = open(paths[1], O_RDWR | O_CREAT, 0o600)
        let errors = open(paths[2], O_RDWR | O_CREAT, 0o600)
        defer { [input, output, errors].forEach { close($0) } }
        let streams = ControlTool.Streams(input: input, output: output, errors: errors)
        let code = ControlTool.$streams.withValue(streams) { ControlTool.run(arguments) }
        return Result(
            code: code,
            output: try String(contentsOfFile: paths[1], encoding: .utf8),
            errors: try String(contentsOfFile: paths[2], encoding: .utf8)
        )
    }

    @Test(
        "what cannot be meant is a usage error, in one line and with nothing on standard output",
        arguments: [
            ["queue", "create"], ["queue", "create", "a", "--partitions", "0"],
            ["queue", "create", "a", "--partitions", "x"],
            ["queue", "create", "a", "--durability", "sometimes"],
            ["queue", "create", "a", "--label", "novalue"], ["queue", "alter", "a"],
            ["queue", "alter", "a", "--label", "x="],
            ["queue", "alter", "a", "--label", "x=1", "--remove-label", "x"], ["nonsense"],
            ["queue", "ls", "-o", "yaml"], ["queue", "ls", "--server", "nowhere"],
            ["queue", "rm", "a"], ["queue", "publish", "a"], ["queue", "purge", "a"],
            ["queue", "purge", "a", "--before", "-1"],
            ["queue", "create", "a", "--retention-bytes", "10 GiB"],
            ["queue", "create", "a", "--retention-age", "7"],
            ["queue", "create", "a", "--retention-age", "999ms"],
            ["queue", "alter", "a", "--retention-records", "18446744073709551615"],
            ["queue", "publish", "a", "--lines", "-", "--key-field", "0"],
            ["queue", "publish", "a", "--lines", "/no/such/file"],
            ["queue", "publish", "a", "--lines", "-", "--window", "0"],
            ["queue", "publish", "a", "--lines", "-", "--batch", "70000"],
            ["queue", "consume", "a", "--from", "yesterday"],
            ["queue", "consume", "a", "-o", "csv"], ["group", "info", "a"],
            ["storage", "verify", "--bandwidth", "fast"], ["storage", "info", "a", "b"],
            ["queue", "ls", "--timeout", "nan"], ["queue", "ls", "--timeout", "1e300"],
        ]
    )
    func usage(arguments: [String]) throws {
        let result = try run(arguments + (arguments.contains("-o") ? [] : ["-o", "json"]))
        #expect(result.code == 2)
        #expect(result.output.isEmpty)
        #expect(result.errors.hasSuffix("\n"))
        #expect(result.errors.dropLast().contains("\n") == false)
    }

    @Test("help is an answer, and every command has two examples in it")
    func help() throws {
        let verbs = [
            "server status", "queue create", "queue ls", "queue info", "queue alter", "queue rm",
            "queue publish", "queue consume", "queue purge", "group ls", "group info",
            "storage info", "storage verify", "backup",
        ]
        for verb in verbs {
            let result = try run(verb.split(separator: " ").map(String.init) + ["--help"])
            #expect(result.code == 0)
            #expect(result.errors.isEmpty)
            let examples = try #require(result.output.range(of: "Examples:"))
            let usage = try #require(result.output.range(of: "USAGE:"))
            let text = result.output[examples.upperBound..<usage.lowerBound]
            #expect(text.components(separatedBy: "brokerctl \(verb)").count >= 2, "\(verb)")
            #expect(text.split(separator: "\n").count >= 2, "\(verb)")
        }
    }

    @Test("shell completion comes from the tool itself")
    func completion() throws {
        let result = try run(["--generate-completion-script", "bash"])
        #expect(result.code == 0)
        #expect(result.output.contains("brokerctl"))
        for name in ["purge", "--retention-bytes", "--retention-age", "--retention-records"] {
            #expect(result.output.contains(name))
        }
    }

    @Test("sizes and ages are read as they are written for brokerd, and a bare age is no age")
    func limits() {
        for (text, bytes) in [
            ("10GiB", UInt64(10) << 30), ("1TB", 1_000_000_000_000), ("5kB", 5000), ("4096", 4096),
            ("0", 0),
        ] { #expect(ByteSize(argument: text)?.bytes == bytes) }
        for text in ["", "GiB", "1.5GiB", "-1", "18446744073709551615", "99999999TiB", "1 MiB"] {
            #expect(ByteSize(argument: text) == nil, "\(text)")
        }
        for (text, milliseconds) in [
            ("7d", UInt64(604_800_000)), ("36h", 129_600_000), ("90s", 90_000), ("1500ms", 1500),
            ("0", 0), ("0s", 0), ("36500d", 3_153_600_000_000),
        ] { #expect(Age(argument: text)?.milliseconds == milliseconds) }
        for text in ["7", "d", "999ms", "36501d", "1w", "-1d"] {
            #expect(Age(argument: text) == nil, "\(text)")
        }
    }

    @Test("limits go to the server and come back; a purge asks, and says what is left")
    func retention() throws {
        let server = TinyBroker().serve()
        let to = ["--server", "\(server.address)"]
        let made = try run(
            ["queue", "create", "orders", "--retention-bytes", "10GiB", "--retention-age", "7d"]
                + to
        )
        #expect(made.code == 0, "\(made.errors)")
        #expect(made.output.contains("10.0 GiB") && made.output.contains("7 d 0 h"))
        let altered = try run(
            [
                "queue", "alter", "orders", "--retention-records", "5", "--retention-age", "0",
                "-o",
                "json",
            ] + to)
        let object = try #require(
            try JSONSerialization.jsonObject(with: Data(altered.output.utf8)) as? [String: Any])
        #expect(object["retention_bytes"] as? UInt64 == 10 << 30)
        #expect(object["retention_nanoseconds"] is NSNull)
        #expect(object["retention_records"] as? Int == 5)
        let listed = try run(["queue", "ls"] + to)
        #expect(listed.output.contains("KEEP RECORDS"))
        _ = try run(["queue", "publish", "orders", "--lines", "-"] + to, input: "a\nb\nc\n")
        let refused = try run(["queue", "purge", "orders"] + to, input: "orders\n")
        #expect(refused.code == 2 && refused.errors.contains("--yes is required"))
        let wrong = try run(["queue", "purge", "orders", "--yes", "--partition", "1"] + to)
        #expect(wrong.code == 2 && wrong.errors.contains("partitions 0 to 0"))
        let purged = try run(
            [
                "queue", "purge", "orders", "--yes", "--partition", "0", "--before", "2", "-o",
                "json",
            ]
                + to)
        #expect(purged.code == 0, "\(purged.errors)")
        #expect(purged.output.contains("\"start_offset\": 2"))
        withExtendedLifetime(server) {}
    }

    @Test("a skipped range is said, in JSON among the records, otherwise on standard error")
    func skipped() throws {
        let broker = TinyBroker()
        let server = broker.serve()
        let to = ["--server", "\(server.address)"]
        _ = try run(["queue", "create", "q"] + to)
        let publish = ["queue", "publish", "q", "--lines", "-", "--batch", "1"]
        _ = try run(publish + to, input: "a\nb\nc\nd\n")
        broker.skip(1..<3, of: 9)
        let json = try run(["queue", "consume", "q", "--until-end", "-o", "json"] + to)
        let lines = json.output.split(separator: "\n")
        #expect(lines.count == 3, "\(json.output)")
        #expect(lines.dropFirst().first == #"{"skipped":{"partition":0,"from":1,"to":3}}"#)
        let plain = try run(["queue", "consume", "q", "--until-end"] + to)
        #expect(plain.output == "a\nd\n")
        #expect(plain.errors.contains("skipped: partition 0, offsets 1 ..< 3"))
        withExtendedLifetime(server) {}
    }

    @Test("where nobody listens the exit code is 3", arguments: ["queue ls", "server status"])
    func unreachable(verb: String) throws {
        let result = try run(
            verb.split(separator: " ").map(String.init)
                + ["--server", "unix:/no/such/socket", "-o", "json"]
        )
        #expect(result.code == 3)
        #expect(result.output.isEmpty)
        #expect(result.errors.contains("unix:/no/such/socket"))
    }

    @Test("a queue is made, shown, changed and deleted")
    func queueLife() throws {
        let server = TinyBroker().serve()
        let to = ["--server", "\(server.address)"]
        let made = try run(
            ["queue", "create", "orders", "--partitions", "2", "--label", "owner=me", "-o", "json"]
                + to
        )
        #expect(made.code == 0)
        #expect(made.errors.isEmpty)
        let object = try #require(
            try JSONSerialization.jsonObject(with: Data(made.output.utf8)) as? [String: Any]
        )
        #expect(object["name"] as? String == "orders")
        #expect(object["durability"] as? String == "synced")
        #expect((object["partitions"] as? [Any])?.count == 2)

        let again = try run(["queue", "create", "orders"] + to)
        #expect(again.code == 1)
        #expect(again.errors.contains("queue-exists"))

        let altered = try run(
            to + ["queue", "alter", "orders", "--label", "tier=1", "--remove-label", "owner"]
        )
        #expect(altered.output.contains("tier=1"))
        #expect(!altered.output.contains("owner"))

        let listed = try run(["queue", "ls", "-o", "json"] + to)
        let list = try JSONSerialization.jsonObject(with: Data(listed.output.utf8)) as? [Any]
        #expect(list?.count == 1)

        #expect(try run(["queue", "rm", "orders", "--yes"] + to).code == 0)
        let gone = try run(["queue", "info", "orders", "-o", "json"] + to)
        #expect(gone.code == 1)
        #expect(gone.output.isEmpty)
        #expect(gone.errors.contains("describe queue orders failed: queue-not-found"))
        withExtendedLifetime(server) {}
    }

    @Test("an empty list is JSON too")
    func emptyLists() throws {
        let server = TinyBroker().serve()
        for noun in ["queue", "group"] {
            let result = try run([noun, "ls", "-o", "json", "--server", "\(server.address)"])
            #expect(result.output == "[]\n")
            #expect(result.code == 0)
        }
        let status = try run(["server", "status", "-o", "json", "--server", "\(server.address)"])
        #expect(status.output.contains(#""kernel": "tiny""#))
    }

    @Test("lines go in by key and come out byte for byte, in order, also over lost connections")
    func publishAndConsume() throws {
        let broker = TinyBroker { number in
            switch number {
            case 2: .storeAndClose
            case 5: .close
            case 8: .refuse(.busy)
            default: .none
            }
        }
        let server = broker.serve()
        let to = ["--server", "\(server.address)"]
        _ = try run(["queue", "create", "orders", "--partitions", "3"] + to)
        let lines = (0..<200).map { "\($0),k\($0 % 7),\u{E9} \"quoted\"" }
        let published = try run(
            [
                "queue", "publish", "orders", "--lines", "-", "--key-field", "2", "--batch", "8",
                "-o", "json",
            ] + to,
            input: lines.joined(separator: "\n")
        )
        #expect(published.code == 0, "\(published.errors)")
        var records = 0
        for line in published.output.split(separator: "\n") {
            let confirm = try #require(
                try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any]
            )
            records += try #require(confirm["count"] as? Int)
            #expect(confirm["partition"] is Int)
        }
        #expect(records == 200)

        let consumed = try run(
            ["queue", "consume", "orders", "--from", "start", "--until-end", "-o", "json"] + to
        )
        #expect(consumed.code == 0, "\(consumed.errors)")
        var byKey: [String: [String]] = [:]
        var nextOffsets: [Int: Int] = [:]
        for line in consumed.output.split(separator: "\n") {
            let record = try #require(
                try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any]
            )
            let partition = try #require(record["partition"] as? Int)
            #expect(record["offset"] as? Int == nextOffsets[partition, default: 0])
            nextOffsets[partition, default: 0] += 1
            let key = try #require(record["key"] as? String)
            byKey[key, default: []].append(try #require(record["payload"] as? String))
        }
        for key in 0..<7 {
            let expected = lines.enumerated().filter { $0.offset % 7 == key }.map(\.element)
            #expect(byKey["k\(key)"] == expected)
        }
        withExtendedLifetime(server) {}
    }

    @Test("plain output is the payload, a line each; --count and --from limit it")
    func plain() throws {
        let server = TinyBroker().serve()
        let to = ["--server", "\(server.address)"]
        _ = try run(["queue", "create", "q"] + to)
        let published = try run(
            ["queue", "publish", "q", "--lines", "-"] + to,
            input: "a\nb\n\nd\n"
        )
        #expect(published.code == 0)
        #expect(published.output.contains("RECORDS"))
        #expect(
            try run(["queue", "consume", "q", "--until-end"] + to).output == "a\nb\n\nd\n"
        )
        #expect(
            try run(["queue", "consume", "q", "--from", "1", "--count", "2"] + to).output
                == "b\n\n"
        )
        #expect(
            try run(["queue", "consume", "q", "--from", "end", "--until-end"] + to).output == ""
        )
        #expect(try run(["queue", "consume", "q", "--count", "0"] + to).code == 0)
        withExtendedLifetime(server) {}
    }

    @Test("a group acks what was printed, and no more")
    func acks() throws {
        let broker = TinyBroker()
        let server = broker.serve()
        let to = ["--server", "\(server.address)"]
        _ = try run(["queue", "create", "q"] + to)
        _ = try run(["queue", "publish", "q", "--lines", "-"] + to, input: "a\nb\nc\n")
        let first = try run(["queue", "consume", "q", "--group", "g", "--count", "2"] + to)
        #expect(first.output == "a\nb\n")
        #expect(broker.acks == [9: 2])
        let rest = try run(["queue", "consume", "q", "--group", "g", "--until-end"] + to)
        #expect(rest.output == "c\n")
        #expect(broker.acks == [9: 3])
        withExtendedLifetime(server) {}
    }

    @Test("a lost range is said, in JSON among the records, otherwise on standard error")
    func lost() throws {
        let broker = TinyBroker()
        let server = broker.serve()
        let to = ["--server", "\(server.address)"]
        _ = try run(["queue", "create", "q"] + to)
        _ = try run(["queue", "publish", "q", "--lines", "-"] + to, input: "a\n")
        broker.addLost(1..<50, to: 9)
        _ = try run(["queue", "publish", "q", "--lines", "-"] + to, input: "b\n")
        let json = try run(["queue", "consume", "q", "--until-end", "-o", "json"] + to)
        let lines = json.output.split(separator: "\n")
        #expect(lines.count == 3)
        #expect(lines[1] == #"{"lost":{"partition":0,"from":1,"to":50}}"#)
        let plain = try run(["queue", "consume", "q", "--until-end"] + to)
        #expect(plain.output == "a\nb\n")
        #expect(plain.errors.contains("1 ..< 50"))
        withExtendedLifetime(server) {}
    }

    @Test("a reader who leaves is no error")
    func brokenPipe() throws {
        signal(SIGPIPE, SIG_IGN)
        let server = TinyBroker().serve()
        let to = ["--server", "\(server.address)"]
        _ = try run(["queue", "create", "q"] + to)
        var ends: [Int32] = [0, 0]
        #expect(pipe(&ends) == 0)
        close(ends[0])
        let streams = ControlTool.Streams(input: 0, output: ends[1], errors: 2)
        let code = ControlTool.$streams.withValue(streams) {
            ControlTool.run(["queue", "ls"] + to)
        }
        close(ends[1])
        #expect(code == 0)
        withExtendedLifetime(server) {}
    }

    private final class ExitCode: Sendable {
        let code = Mutex<Int32?>(nil)
    }

    @Test("a confirm is printed while the input is still open")
    func confirmsAtOnce() throws {
        let server = TinyBroker().serve()
        let to = ["--server", "\(server.address)"]
        _ = try run(["queue", "create", "q"] + to)
        let (input, output) = (Pipe(), Pipe())
        let streams = ControlTool.Streams(
            input: input.fileHandleForReading.fileDescriptor,
            output: output.fileHandleForWriting.fileDescriptor
        )
        let exit = ExitCode()
        let done = DispatchSemaphore(value: 0)
        let arguments = ["queue", "publish", "q", "--lines", "-", "-o", "json"] + to
        Thread.detachNewThread {
            let code = ControlTool.$streams.withValue(streams) { ControlTool.run(arguments) }
            exit.code.withLock { $0 = code }
            done.signal()
        }
        for offset in 0..<3 {
            input.fileHandleForWriting.write(Data("line \(offset)\n".utf8))
            let line = String(
                decoding: output.fileHandleForReading.availableData,
                as: UTF8.self
            )
            #expect(line.contains("\"offset\":\(offset),"))
        }
        try input.fileHandleForWriting.close()
        done.wait()
        #expect(exit.code.withLock { $0 } == 0)
        withExtendedLifetime(server) {}
    }

    @Test("a refused publish says how much was confirmed, and the exit code is 1")
    func refusedPublish() throws {
        let broker = TinyBroker { $0 == 2 ? .refuse(.storageFailed) : .none }
        let server = broker.serve()
        let to = ["--server", "\(server.address)"]
        _ = try run(["queue", "create", "q"] + to)
        let result = try run(
            ["queue", "publish", "q", "--lines", "-", "--batch", "1", "--window", "1"] + to,
            input: "a\nb\nc\nd\n"
        )
        #expect(result.code == 1)
        #expect(result.errors.contains("2 records were confirmed"))
        #expect(result.errors.contains("storage-failed"))
        withExtendedLifetime(server) {}
    }
}
