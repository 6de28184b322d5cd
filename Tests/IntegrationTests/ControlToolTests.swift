import ChildProcess
import Foundation
import ReplayHarness
import ShardRuntime
import Testing
import WireProtocol

/// `brokerctl` as people run it, against a real broker: exit codes, and standard output that holds
/// JSON and nothing else.
@Suite(.serialized) struct ControlToolTests {
    private struct Output {
        var code: Int32?
        var output: String
        var errors: String

        /// The whole of standard output as one JSON value.
        func object() throws -> [String: Any] {
            try #require(
                try JSONSerialization.jsonObject(with: Data(output.utf8)) as? [String: Any]
            )
        }
        func list() throws -> [[String: Any]] {
            try #require(
                try JSONSerialization.jsonObject(with: Data(output.utf8)) as? [[String: Any]]
            )
        }
        /// Every line of standard output as a JSON object.
        func lines() throws -> [[String: Any]] {
            try output.split(separator: "\n").map { line in
                try #require(
                    try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any],
                    "\(line)"
                )
            }
        }
    }

    /// A broker, and the tool pointed at it.
    private final class Bench {
        let broker: LiveBroker
        private let tool: String
        private var runs = 0

        /// An address that stays the same when the broker starts again.
        var socket: String { "unix:\(broker.path)/socket" }

        init(_ loop: LoopKind, shards: Int = 1) throws {
            broker = try LiveBroker(loop, shards: [shards]) { ["unix:\($0)/socket"] }
            tool = try #require(Executable.beside("brokerctl"))
        }

        func write(_ name: String, _ text: String) throws -> String {
            let path = broker.path + "/" + name
            try Data(text.utf8).write(to: URL(filePath: path))
            return path
        }

        /// Runs one command line with `-o json`, to its end.
        func json(_ arguments: String..., input: String? = nil) throws -> Output {
            try run(arguments + ["-o", "json"], input: input)
        }

        func run(_ arguments: [String], input: String? = nil) throws -> Output {
            try start(arguments, input: input).finish()
        }

        /// Starts one command line, and does not wait for it.
        func start(_ arguments: [String], input: String? = nil) throws -> Run {
            runs += 1
            let base = broker.path + "/run-\(runs)"
            let inputPath = try input.map { try write("run-\(runs).in", $0) }
            let hasServer = arguments.contains("--server")
            let child = try SpawnedChild(
                tool,
                arguments: arguments + (hasServer ? [] : ["--server", "\(broker.address)"]),
                input: inputPath,
                output: .file(base + ".out"),
                errors: .file(base + ".err")
            )
            return Run(child: child, base: base)
        }
    }

    /// A command line that may still run.
    private struct Run {
        /// Long enough for a machine that does other things.
        private static let patienceMilliseconds = 600_000

        var child: SpawnedChild
        var base: String

        var output: String {
            get throws { try String(contentsOfFile: base + ".out", encoding: .utf8) }
        }
        var errors: String {
            get throws { try String(contentsOfFile: base + ".err", encoding: .utf8) }
        }

        func finish() throws -> Output {
            let end = child.wait(timeoutMilliseconds: Self.patienceMilliseconds)
            var code: Int32?
            if case .exited(let number) = end { code = number }
            return Output(code: code, output: try output, errors: try errors)
        }

        /// Asks until it is so, or the command has ended.
        func wait(until isSo: (Run) throws -> Bool) throws {
            while try !isSo(self), child.wait(timeoutMilliseconds: 1) == nil {}
        }
    }

    @Test(
        "a queue's life by brokerctl, from create to rm, over a kill of the broker",
        arguments: LoopKind.allCases
    )
    func wholeLife(loop: LoopKind) throws {
        let bench = try Bench(loop)
        let status = try bench.json("server", "status")
        #expect(status.code == 0)
        #expect(try status.object()["protocol_version"] as? Int == 1)
        #expect(try status.object()["loop"] as? String == loop.rawValue)

        let made = try bench.json(
            "queue",
            "create",
            "orders",
            "--partitions",
            "3",
            "--label",
            "owner=trading"
        )
        #expect(made.code == 0)
        #expect(made.errors.isEmpty)
        #expect(try made.object()["durability"] as? String == "synced")
        #expect(try bench.json("queue", "create", "ticks", "--durability", "memory").code == 0)
        let names = try bench.json("queue", "ls").list().compactMap { $0["name"] as? String }
        #expect(names == ["orders", "ticks"])

        var generator = OrderGenerator(seed: 3)
        let lines = (0..<500).map { _ in generator.line() }
        let file = try bench.write("orders.csv", lines.joined(separator: "\n") + "\n")
        let published = try bench.json(
            "queue",
            "publish",
            "orders",
            "--lines",
            file,
            "--key-field",
            "3"
        )
        #expect(published.code == 0)
        let confirms = try published.lines()
        #expect(confirms.compactMap { $0["count"] as? Int }.reduce(0, +) == 500)
        #expect(confirms.allSatisfy { $0["level"] as? String == "synced" })

        // What is confirmed outlives the process.
        #expect(bench.broker.kill() == .signalled(SIGKILL))
        _ = try bench.broker.restart()

        let consumed = try bench.json("queue", "consume", "orders", "--until-end")
        #expect(consumed.code == 0)
        let records = try consumed.lines()
        #expect(records.compactMap { $0["payload"] as? String }.sorted() == lines.sorted())
        for (index, group) in Dictionary(grouping: records, by: { $0["partition"] as? Int ?? -1 }) {
            #expect((0..<3).contains(index))
            #expect(group.compactMap { $0["offset"] as? Int } == Array(0..<group.count))
        }
        for record in records {
            let line = try #require(record["payload"] as? String)
            #expect(record["key"] as? String == line.split(separator: ",").map(String.init)[2])
        }
        // Without -o json the payloads alone.
        let plain = try bench.run(["queue", "consume", "orders", "--until-end"])
        #expect(plain.code == 0)
        #expect(plain.output.split(separator: "\n").map(String.init).sorted() == lines.sorted())

        let info = try bench.json("queue", "info", "orders").object()
        #expect(info["records"] as? Int == 500)
        #expect((info["partitions"] as? [Any])?.count == 3)

        let altered = try bench.json(
            "queue",
            "alter",
            "orders",
            "--label",
            "tier=1",
            "--remove-label",
            "owner"
        )
        #expect(altered.code == 0)
        #expect(try altered.object()["labels"] as? [String: String] == ["tier": "1"])

        let removed = try bench.json("queue", "rm", "orders", "--yes")
        #expect(removed.code == 0)
        #expect(removed.errors.isEmpty)
        let left = try bench.json("queue", "ls").list().compactMap { $0["name"] as? String }
        #expect(left == ["ticks"])
    }

    @Test(
        "a group goes on where its last consumer stopped, also over a kill of the broker",
        arguments: LoopKind.allCases
    )
    func groups(loop: LoopKind) throws {
        let bench = try Bench(loop)
        #expect(try bench.json("queue", "create", "orders").code == 0)
        let input = (0..<30).map { "record \($0)\n" }.joined()
        let published = try bench.json(
            "queue",
            "publish",
            "orders",
            "--lines",
            "-",
            "--batch",
            "1",
            input: input
        )
        #expect(published.code == 0)
        let consume = ["queue", "consume", "orders", "--group", "booking"]
        let first = try bench.run(consume + ["--count", "10"])
        #expect(first.code == 0)
        #expect(first.output == (0..<10).map { "record \($0)\n" }.joined())
        #expect(bench.broker.kill() == .signalled(SIGKILL))
        _ = try bench.broker.restart()
        let info = try bench.json("group", "info", "orders", "booking")
        #expect(info.code == 0)
        #expect(try info.object()["lag_records"] as? Int == 20)
        let second = try bench.run(consume + ["--until-end"])
        #expect(second.code == 0)
        #expect(second.output == (10..<30).map { "record \($0)\n" }.joined())
        let groups = try bench.json("group", "ls").list()
        #expect(groups.compactMap { $0["name"] as? String } == ["booking"])
        #expect(groups.compactMap { $0["lag_records"] as? Int } == [0])
    }

    /// Publishes `numbers` to a queue, each as a record by itself.
    private func publish(_ numbers: Range<Int>, to queue: String, _ bench: Bench) throws {
        let published = try bench.json(
            "queue",
            "publish",
            queue,
            "--lines",
            "-",
            "--batch",
            "1",
            input: Self.text(numbers)
        )
        #expect(published.code == 0, "\(published.errors)")
    }
    private static func text(_ numbers: Range<Int>) -> String {
        numbers.map { "record \($0)\n" }.joined()
    }

    @Test(
        "a consumer goes on over kills of the broker, and prints every record once",
        arguments: LoopKind.allCases,
        [[], ["--group", "booking"]]
    )
    func consumeOverKills(loop: LoopKind, options: [String]) throws {
        let bench = try Bench(loop)
        #expect(try bench.json("queue", "create", "orders", "--partitions", "3").code == 0)
        try publish(0..<30, to: "orders", bench)
        let run = try bench.start(
            ["queue", "consume", "orders", "--count", "90", "--server", bench.socket]
                + ["--retry-seconds", "3600"] + options
        )
        for kill in 1...2 {
            try run.wait { try $0.output.split(separator: "\n").count >= kill * 30 }
            #expect(bench.broker.kill() == .signalled(SIGKILL))
            try run.wait { try $0.errors.components(separatedBy: "trying again").count > kill }
            _ = try bench.broker.restart()
            try publish(kill * 30..<(kill + 1) * 30, to: "orders", bench)
        }
        let result = try run.finish()
        #expect(result.code == 0, "\(result.errors)")
        let lines = result.output.split(separator: "\n").map(String.init)
        #expect(lines.sorted() == (0..<90).map { "record \($0)" }.sorted())
        #expect(result.errors.components(separatedBy: "connected again").count == 3)
        guard !options.isEmpty else { return }
        let info = try bench.json("group", "info", "orders", "booking")
        #expect(try info.object()["lag_records"] as? Int == 0)
    }

    @Test(
        "a consumer that may not try again, or not any more, says why and ends with 3",
        arguments: LoopKind.allCases
    )
    func consumeGivesUp(loop: LoopKind) throws {
        for seconds in ["0", "1"] {
            let bench = try Bench(loop)
            #expect(try bench.json("queue", "create", "orders").code == 0)
            try publish(0..<3, to: "orders", bench)
            let run = try bench.start(
                ["queue", "consume", "orders", "--server", bench.socket]
                    + ["--retry-seconds", seconds]
            )
            try run.wait { try $0.output == Self.text(0..<3) }
            #expect(bench.broker.kill() == .signalled(SIGKILL))
            let result = try run.finish()
            #expect(result.code == 3)
            #expect(result.output == Self.text(0..<3))
            #expect(result.errors.contains(bench.socket), "\(result.errors)")
            #expect(result.errors.contains("trying again") == (seconds == "1"))
        }
    }

    @Test("a consumer does not go on in another queue of the name", arguments: LoopKind.allCases)
    func consumeOfAnother(loop: LoopKind) throws {
        let bench = try Bench(loop)
        #expect(try bench.json("queue", "create", "orders").code == 0)
        try publish(0..<3, to: "orders", bench)
        // The broker ends the subscription when the queue goes; a broker that stops says so first.
        let run = try bench.start(
            ["queue", "consume", "orders", "--server", bench.socket, "--retry-seconds", "3600"]
        )
        try run.wait { try $0.output == Self.text(0..<3) }
        // So that it does not come back before the queue is another.
        run.child.signal(SIGSTOP)
        #expect(bench.broker.child.stop(timeoutMilliseconds: 600_000) == .exited(0))
        _ = try bench.broker.restart()
        #expect(try bench.json("queue", "rm", "orders", "--yes").code == 0)
        #expect(try bench.json("queue", "create", "orders").code == 0)
        try publish(0..<9, to: "orders", bench)
        run.child.signal(SIGCONT)
        let result = try run.finish()
        #expect(result.code == 1)
        #expect(result.output == Self.text(0..<3))
        #expect(result.errors.contains("not the one that was read"), "\(result.errors)")
    }

    @Test(
        "what a memory queue lost in a kill is shown as a range, and counted",
        arguments: LoopKind.allCases
    )
    func lost(loop: LoopKind) throws {
        let bench = try Bench(loop)
        #expect(try bench.json("queue", "create", "ticks", "--durability", "memory").code == 0)
        let input = (0..<30).map { "tick \($0)\n" }.joined()
        let published = try bench.json(
            "queue",
            "publish",
            "ticks",
            "--lines",
            "-",
            "--batch",
            "1",
            input: input
        )
        #expect(try published.lines().allSatisfy { $0["level"] as? String == "memory" })
        #expect(bench.broker.kill() == .signalled(SIGKILL))
        _ = try bench.broker.restart()
        let consumed = try bench.json("queue", "consume", "ticks", "--until-end")
        #expect(consumed.code == 0)
        let lines = try consumed.lines()
        let kept = lines.compactMap { $0["payload"] as? String }
        #expect(kept == (0..<kept.count).map { "tick \($0)" })
        let ranges = lines.compactMap { $0["lost"] as? [String: Int] }
        let partition = try #require(
            (try bench.json("queue", "info", "ticks").object()["partitions"] as? [[String: Any]])?
                .first
        )
        let counted = ranges.reduce(0) { $0 + ($1["to"] ?? 0) - ($1["from"] ?? 0) }
        #expect(partition["lost_records"] as? Int == counted)
        // Either all was written behind before the kill, or the rest is said to be lost.
        if kept.count < 30 {
            #expect(ranges.first?["from"] == kept.count)
            #expect(counted >= 30 - kept.count)
        }
    }

    @Test(
        "a no of the broker is 1, with the status' name and nothing on standard output",
        arguments: LoopKind.allCases
    )
    func refused(loop: LoopKind) throws {
        let bench = try Bench(loop)
        #expect(try bench.json("queue", "create", "orders").code == 0)
        for (arguments, status) in [
            (["queue", "create", "orders"], "queue-exists"),
            (["queue", "create", ".hidden"], "name-invalid"),
            (["queue", "info", "nothing"], "queue-not-found"),
            (["queue", "rm", "nothing", "--yes"], "queue-not-found"),
            (["queue", "consume", "nothing"], "queue-not-found"),
            (["queue", "consume", "orders", "--from", "99"], "offset-out-of-range"),
            (["queue", "publish", "nothing", "--lines", "/dev/null"], "queue-not-found"),
            (["group", "info", "orders", "nobody"], "group-not-found"),
        ] {
            let run = try bench.run(arguments + ["-o", "json"])
            #expect(run.code == 1, "\(arguments)")
            #expect(run.output.isEmpty, "\(arguments)")
            #expect(run.errors.contains(status), "\(arguments): \(run.errors)")
        }
    }

    @Test(
        "a wrong command line is 2, an absent broker 3, both with nothing on standard output",
        arguments: LoopKind.allCases
    )
    func usageAndUnreachable(loop: LoopKind) throws {
        let bench = try Bench(loop)
        let usage = try bench.json("queue", "create", "a", "--partitions", "0")
        #expect(usage.code == 2)
        #expect(usage.output.isEmpty)
        // No prompt where there is no terminal.
        #expect(try bench.json("queue", "create", "a").code == 0)
        #expect(try bench.json("queue", "rm", "a").code == 2)
        let address = "\(try bench.broker.address)"
        #expect(bench.broker.kill() == .signalled(SIGKILL))
        for arguments in [["queue", "ls"], ["server", "status"], ["queue", "consume", "a"]] {
            let run = try bench.run(arguments + ["-o", "json", "--server", address])
            #expect(run.code == 3)
            #expect(run.output.isEmpty)
            #expect(run.errors.contains(address))
        }
    }

    @Test(
        "storage verify ends with 0 when all is whole, with 4 when not, and storage info names it too",
        arguments: [(LoopKind.uring, 1), (.epoll, 1), (.uring, 2), (.epoll, 2)]
    )
    func storage(loop: LoopKind, shards: Int) throws {
        let bench = try Bench(loop, shards: shards)
        #expect(try bench.json("queue", "create", "orders", "--partitions", "2").code == 0)
        #expect(try bench.json("queue", "create", "ticks").code == 0)
        let lines = (0..<4000).map { "\($0) " + String(repeating: "x", count: 200) }
            .joined(separator: "\n")
        for queue in ["orders", "ticks"] {
            let publish = ["queue", "publish", queue, "--lines", "-"]
            #expect(try bench.run(publish, input: lines + "\n").code == 0)
        }
        // An orderly stop brings all to segments.
        #expect(bench.broker.child.stop(timeoutMilliseconds: 30_000) == .exited(0))
        _ = try bench.broker.restart()

        let whole = try bench.json("storage", "verify", "--bandwidth", "1GiB")
        #expect(whole.code == 0, "\(whole.errors)")
        #expect((try whole.object()["damages"] as? [Any])?.isEmpty == true)
        let partitions = try #require(try whole.object()["partitions"] as? [[String: Any]])
        #expect(partitions.count == 3)
        for partition in partitions {
            #expect(partition["verified_bytes"] as? Int == partition["synced_bytes"] as? Int)
            #expect(partition["segments"] as? Int == 1)
        }
        let ids = partitions.filter { $0["queue"] as? String == "orders" }
            .compactMap { $0["id"] as? Int }
        let file = try flip(byte: 4096 + 5000, ofPartition: try #require(ids.last), bench.broker)

        #expect(try bench.json("storage", "verify", "ticks", "--bandwidth", "1GiB").code == 0)
        let broken = try bench.json("storage", "verify", "orders", "--bandwidth", "1GiB")
        #expect(broken.code == 4)
        #expect(broken.errors.contains("verify queue orders: 1 damaged ranges"))
        let damages = try #require(try broken.object()["damages"] as? [[String: Any]])
        #expect(damages.count == 1)
        let damage = try #require(damages.first)
        #expect(damage["queue"] as? String == "orders")
        #expect(damage["id"] as? Int == ids.last)
        #expect(damage["file"] as? String == "segments/" + file)
        #expect(damage["first_byte"] as? Int == 4096)
        #expect(try #require(damage["end_byte"] as? Int) > 4096 + 5000)
        #expect(damage["first_offset"] as? Int == 0)
        #expect(try #require(damage["end_offset"] as? Int) > 0)

        let info = try bench.json("storage", "info")
        #expect(info.code == 0)
        #expect(try info.object()["damages"] as? [[String: Any]] as NSArray? == damages as NSArray)
        let all = try #require(try info.object()["shards"] as? [[String: Any]])
        #expect(all.compactMap { $0["shard"] as? Int } == Array(0..<shards))
        #expect(all.compactMap { $0["damaged_ranges"] as? Int }.reduce(0, +) == 1)
        #expect(try bench.run(["storage", "info"]).output.contains(file))
        let csv = try bench.run(["storage", "info", "ticks", "-o", "csv"]).output
        #expect(csv.split(separator: "\r\n").count == 2)
        #expect(try bench.json("storage", "verify", "none").code == 1)
        #expect(try bench.json("storage", "info", "none").code == 1)
    }

    /// - Returns: the name of the file, of the first segment.
    private func flip(byte: UInt64, ofPartition id: Int, _ broker: LiveBroker) throws -> String {
        let directory = broker.path + "/data/segments"
        let digits = "\(id)"
        let prefix = String(repeating: "0", count: 10 - digits.count) + digits + "-"
        let names = try FileManager.default.contentsOfDirectory(atPath: directory)
        let file = try #require(names.sorted().first { $0.hasPrefix(prefix) })
        let handle = try #require(FileHandle(forUpdatingAtPath: directory + "/" + file))
        defer { try? handle.close() }
        try handle.seek(toOffset: byte)
        var bytes = try #require(try handle.read(upToCount: 1))
        bytes[bytes.startIndex] ^= 0x10
        try handle.seek(toOffset: byte)
        try handle.write(contentsOf: bytes)
        try handle.synchronize()
        return file
    }
}
