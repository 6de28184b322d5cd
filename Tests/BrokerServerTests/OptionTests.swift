import BrokerBasics
import BrokerConfiguration
import BrokerServer
import BrokerShard
import Foundation
import LogStorage
import Logging
import ShardRuntime
import Testing

@Suite struct OptionTests {
    private func parse(
        _ arguments: [String],
        _ environment: [String: String] = [:],
        file: String? = nil
    ) async throws -> ServerOptions {
        var arguments = arguments
        let path = FileManager.default.temporaryDirectory.path + "/\(UUID().uuidString).yaml"
        defer { unlink(path) }
        if let file {
            try file.write(toFile: path, atomically: true, encoding: .utf8)
            arguments += ["--config", path]
        }
        guard
            case .run(let options) = try await ServerCommand.parse(
                arguments: arguments,
                environment: environment
            )
        else { throw UsageError("not a run") }
        return options
    }

    private func refusal(
        _ arguments: [String],
        _ environment: [String: String] = [:],
        file: String? = nil
    ) async -> String {
        do {
            let options = try await parse(arguments, environment, file: file)
            try options.check(allowedCPUs: [0, 1])
            return "accepted"
        } catch {
            return "\(error)"
        }
    }

    @Test("without options everything has its default, and the data directory is missing")
    func defaults() async throws {
        #expect(try await parse([]) == ServerOptions())
        #expect(await refusal([]).contains("--data-dir is required"))
        #expect(await refusal(["--data-dir", "d"]) == "accepted")
    }

    @Test("a flag comes before the environment, the environment before the file")
    func precedence() async throws {
        let file = "data-dir: from-file\nidle: block\njournal-files: 8\nlisten:\n  - 127.0.0.1:1\n"
        let environment = [
            "MILLRACE_DATA_DIR": "from-environment", "MILLRACE_IDLE": "spin",
            "MILLRACE_LISTEN": "127.0.0.1:2,unix:/tmp/x", "PATH": "/bin",
        ]
        let all = try await parse(["--data-dir", "from-flag"], environment, file: file)
        #expect(all.dataDirectory == "from-flag")
        #expect(all.idle == .spin)
        #expect(all.journalFiles == 8)
        #expect(all.listen == [.tcp(host: "127.0.0.1", port: 2), .unix(path: "/tmp/x")])
        let two = try await parse([], [:], file: file)
        #expect(two.dataDirectory == "from-file")
        #expect(two.idle == .block)
        #expect(two.listen == [.tcp(host: "127.0.0.1", port: 1)])
    }

    @Test("every option reaches its setting")
    func settings() async throws {
        let options = try await parse([
            "--data-dir=d", "--listen", "[::1]:7400", "--listen=unix:/tmp/m.sock", "--admin", "off",
            "--cpus", "1", "--idle", "block", "--loop", "epoll", "--journal-size", "1GiB",
            "--journal-files", "2",
            "--journal-staging", "16MiB", "--tail-memory", "1GB", "--segment-size", "64MiB",
            "--chunk-size", "128KiB", "--writes-behind-max", "5", "--cold-reads-max", "3",
            "--cold-read-memory", "64MiB", "--scrub-bandwidth", "1MiB", "--scrub-interval", "1h",
            "--move-pause-max", "50ms", "--cold-reads-beside-max", "2", "--cold-read-size", "64KiB",
            "--files-max", "100", "--checkpoint-interval", "1m", "--memory-flush-interval", "1s",
            "--frame-bytes-max", "2097152", "--connections-max", "7", "--send-buffer", "64KiB",
            "--send-memory", "2MiB", "--input-buffer", "4MiB", "--confirms-max", "9",
            "--input-memory", "3MiB", "--frame-timeout", "750ms", "--peer-timeout", "9s",
            "--subscriptions-max", "11", "--hello-timeout", "500ms", "--queues-max", "12",
            "--drain-timeout", "250ms", "--disk-warn", "60", "--disk-refuse", "70",
            "--disk-reads-only", "75", "--disk-reserve", "1MiB", "--disk-slow", "20ms",
            "--partitions-max", "1000", "--producers-max", "14", "--groups-max", "15",
            "--record-bytes-max", "64KiB", "--record-headers-bytes-max", "8KiB",
            "--partitions-per-queue-max", "13", "--producer-expiry", "1h", "--log-level", "debug",
            "--log-format", "json", "--backup-dir", "/images",
        ])
        #expect(options.listen == [.tcp(host: "::1", port: 7400), .unix(path: "/tmp/m.sock")])
        #expect(options.admin == nil)
        #expect(options.backupDirectory == "/images")
        #expect(options.cpu == 1)
        #expect(options.loop == .epoll)
        #expect(options.idle == .block)
        #expect(options.geometry.capacity == 1 << 30)
        #expect(options.geometry.fileCount == 2)
        var limits = ShardLimits()
        limits.stagingBytes = 16 << 20
        limits.tailBytesMax = 1_000_000_000
        limits.segmentBytes = 64 << 20
        limits.chunkBytes = 128 << 10
        limits.writesBehindMax = 5
        limits.coldReadsMax = 3
        limits.coldReadsBesideMax = 2
        limits.coldPieceBytes = 64 << 10
        limits.coldBytesMax = 64 << 20
        limits.scrubBytesPerSecond = 1 << 20
        limits.scrubIntervalNanoseconds = 3_600_000_000_000
        limits.moveFenceNanoseconds = 50_000_000
        limits.filesMax = 100
        limits.checkpointAfterNanoseconds = 60_000_000_000
        limits.memoryFlushNanoseconds = 1_000_000_000
        limits.frameBytesMax = 2 << 20
        limits.connectionsMax = 7
        limits.sendBytesMax = 64 << 10
        limits.sendMemoryBytesMax = 2 << 20
        limits.inputBytesMax = 4 << 20
        limits.inputMemoryBytesMax = 3 << 20
        limits.frameNanoseconds = 750_000_000
        limits.peerNanoseconds = 9_000_000_000
        limits.partitionsMax = 1000
        limits.producersMax = 14
        limits.groupsMax = 15
        limits.recordBytesMax = 64 << 10
        limits.recordHeadersBytesMax = 8 << 10
        limits.confirmRunsMax = 9
        limits.subscriptionsPerConnectionMax = 11
        limits.helloNanoseconds = 500_000_000
        limits.drainNanoseconds = 250_000_000
        limits.queuesMax = 12
        limits.partitionsPerQueueMax = 13
        limits.producerExpirySeconds = 3600
        limits.diskMarks.warn = 60
        limits.diskMarks.refuse = 70
        limits.diskMarks.readsOnly = 75
        limits.reserveBytes = 1 << 20
        limits.diskSlowNanoseconds = 20_000_000
        #expect(options.limits == limits)
        #expect(options.logLevel == .debug)
        #expect(options.logFormat == .json)
    }

    @Test(
        "what can't be meant is refused, by the name of the option and with what it takes",
        arguments: [
            (["--data-dirr", "x"], "unknown option --data-dirr; did you mean --data-dir?"),
            (["--zzzzzzzzzz", "x"], "unknown option --zzzzzzzzzz; known are --data-dir"),
            (["serve"], "unexpected argument 'serve'"),
            (["--idle"], "--idle needs a value"),
            (["--idle", "spin", "--idle", "block"], "--idle is given twice"),
            (["--idle", "busy"], "--idle: 'busy' is not accepted; it takes spin, adaptive, block"),
            (
                ["--loop", "uring"],
                "--loop: 'uring' is not accepted; it takes auto, io_uring, epoll"
            ),
            (["--shards", "257"], "--shards: '257' is not accepted"),
            (["--shards", "0"], "--shards: '0' is not accepted"),
            (["--cpus", "1-"], "--cpus: '1-' is not accepted"),
            (["--cpus", "7"], "--cpus: this process may not run on CPU 7, only on 0,1"),
            (["--listen", "7400"], "--listen: '7400' is not accepted"),
            (["--listen", ":7400"], "--listen: ':7400' is not accepted"),
            (["--listen", "::1:7400"], "it takes HOST:PORT, [V6]:PORT or unix:PATH"),
            (["--listen", "a:1", "--listen", "a:1"], "--listen a:1 is given twice"),
            (
                ["--shards", "80"],
                "shard 79 would listen at port 7480, which is that of --admin 7480: 80 shards need the "
                    + "ports 7401 to 7480 behind 7400"
            ),
            (
                ["--shards", "2", "--listen", "a:1", "--listen", "b:3"],
                "shard 1 would listen at port 3, which is that of --listen b:3"
            ),
            (["--admin", "unix:/x"], "--admin: 'unix:/x' is not accepted"),
            (["--journal-size", "64 MiB"], "--journal-size: '64 MiB' is not accepted"),
            (["--journal-size", "2TiB"], "it takes 1MiB to 1TiB"),
            (["--journal-size", "2MiB"], "raise --journal-size, or lower --frame-bytes-max"),
            (["--journal-files", "512"], "raise --journal-size, or lower --journal-files"),
            (["--frame-bytes-max", "8MiB"], "raise --journal-staging"),
            (["--tail-memory", "1MiB"], "raise --tail-memory"),
            (["--segment-size", "1MiB"], "raise --segment-size"),
            (["--cold-read-memory", "2MiB"], "raise --cold-read-memory"),
            (["--hello-timeout", "10"], "--hello-timeout: '10' is not accepted"),
            (["--producer-expiry", "1500ms"], "--producer-expiry: '1500ms' is not accepted"),
            (["--connections-max", "-1"], "--connections-max: '-1' is not accepted"),
            (["--files-max", "99999999999999999999"], "--files-max"),
            (["--config", "/no/such/file.yaml"], "--config /no/such/file.yaml"),
        ]
    )
    func refusals(arguments: [String], message: String) async {
        let text = await refusal(["--data-dir", "d"] + arguments)
        #expect(text.contains(message), "\(text)")
    }

    @Test(
        "an unknown variable of ours is refused, other variables are not looked at",
        arguments: [
            (
                "MILLRACE_LISTEM",
                "unknown environment variable MILLRACE_LISTEM; did you mean MILLRACE_LISTEN?"
            ),
            ("MILLRACE_IDLE", "MILLRACE_IDLE: 'x' is not accepted; it takes spin"),
            ("OTHER_IDLE", "accepted"),
        ]
    )
    func variables(name: String, message: String) async {
        let text = await refusal(["--data-dir", "d"], [name: "x"])
        #expect(text.hasPrefix(message), "\(text)")
    }

    @Test(
        "an unknown or unusable key of the file is refused, with its line",
        arguments: [
            ("idle: spin\nlisten-on: x\n", ":2: unknown key listen-on; did you mean listen?"),
            ("config: x\n", ":1: unknown key config"),
            ("listen: 127.0.0.1:1\n", ":1: listen takes a list"),
            ("idle: [spin]\n", ":1: idle takes one value"),
            ("limits:\n  idle: spin\n", ":1: unknown key limits"),
            ("- idle\n", "must be a list of `option: value` lines"),
            ("idle: busy\n", "'busy' is not accepted; it takes spin"),
            ("idle: spin\nidle: block\n", "idle"),
            ("idle: [\n", "--config"),
        ]
    )
    func file(text: String, message: String) async {
        let refusal = await refusal(["--data-dir", "d"], file: text)
        #expect(refusal.contains(message), "\(refusal)")
    }

    @Test("an empty file is a file without options")
    func emptyFile() async {
        #expect(await refusal(["--data-dir", "d"], file: "# nothing\n") == "accepted")
    }

    @Test("help and version win over everything, and help names every option with its default")
    func help() async throws {
        for (argument, command) in [
            ("--help", ServerCommand.help), ("-h", .help), ("--version", .version),
        ] {
            #expect(
                try await ServerCommand.parse(
                    arguments: [argument, "--nonsense"],
                    environment: [:]
                )
                    == command
            )
        }
        for option in OptionTable.options {
            #expect(OptionTable.help.contains("--\(option.name) \(option.placeholder)"))
            #expect(OptionTable.help.contains("[\(option.standard)]") || option.standard.isEmpty)
        }
    }

    @Test("the example file has every option, each with its default")
    func example() async throws {
        let root = URL(filePath: #filePath).deletingLastPathComponent()
            .deletingLastPathComponent().deletingLastPathComponent()
        let path = root.path + "/ops/brokerd.example.yaml"
        let text = try String(contentsOfFile: path, encoding: .utf8)
        let keys = text.split(separator: "\n").filter { !$0.hasPrefix("#") && !$0.hasPrefix(" ") }
            .compactMap { $0.split(separator: ":").first.map(String.init) }
        #expect(keys.sorted() == OptionTable.names.sorted())

        var options = try await parse(["--config", path])
        #expect(options.dataDirectory == "/var/lib/millrace")
        options.dataDirectory = ""
        #expect(options == ServerOptions())
        // And each key has its own comment above.
        let lines = text.split(separator: "\n", omittingEmptySubsequences: false)
        for (index, line) in lines.enumerated() where index > 0 {
            guard let first = line.first, first.isLetter else { continue }
            #expect(lines[index - 1].hasPrefix("#"), "\(line) has no comment")
        }
        for option in OptionTable.options where !option.standard.isEmpty && !option.isRepeatable {
            #expect(text.contains("\n\(option.name): \(option.standard)\n"), "\(option.name)")
        }
    }
}

@Suite struct OptionValueTests {
    @Test(
        "sizes are bytes with a binary or decimal unit",
        arguments: [
            ("0", 0), ("4096", 4096), ("64MiB", 64 << 20), ("1GiB", 1 << 30), ("1kB", 1000),
            ("2GB", 2_000_000_000), ("7B", 7), ("1TiB", 1 << 40),
        ] as [(String, UInt64?)]
            + ["", "MiB", "-1", "1.5GiB", "1 MiB", "1mib", "99999999999TiB", "0x10"].map {
                ($0, nil)
            }
    )
    func sizes(text: String, bytes: UInt64?) {
        #expect(OptionValue.size(text) == bytes)
        if let bytes { #expect(OptionValue.size(OptionValue.sizeText(bytes)) == bytes) }
    }

    @Test(
        "times have a unit",
        arguments: [
            ("10s", 10_000_000_000), ("100ms", 100_000_000), ("5us", 5000), ("1m", 60_000_000_000),
            ("2h", 7_200_000_000_000), ("7d", 604_800_000_000_000), ("9ns", 9),
        ] as [(String, UInt64?)] + ["10", "", "s", "1w", "999999999d"].map { ($0, nil) }
    )
    func times(text: String, nanoseconds: UInt64?) {
        #expect(OptionValue.duration(text) == nanoseconds)
        if let nanoseconds {
            #expect(OptionValue.duration(OptionValue.durationText(nanoseconds)) == nanoseconds)
        }
    }

    @Test(
        "CPU lists have numbers and ranges",
        arguments: [
            ("0", [0]), ("0-1,3", [0, 1, 3]), ("2,0,2", [2, 0]), ("", nil), ("1-0", nil),
            ("0-1-2", nil), ("a", nil), ("0,", nil), ("0-99999999", nil),
        ] as [(String, [Int]?)]
    )
    func cpus(text: String, list: [Int]?) {
        #expect(OptionValue.cpuList(text) == list)
    }
}
