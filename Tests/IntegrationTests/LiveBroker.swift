import BlockingClient
import BrokerBasics
import ChildProcess
import ReplayHarness
import ShardRuntime
import Testing
import WireProtocol

/// A real broker for one test, on a directory of its own. Both go with it.
final class LiveBroker {
    let place = BrokerPlace()
    private let directory: TemporaryDirectory
    private let executable: String
    private let loop: LoopKind
    /// How many shards each start has, over and over.
    private let shards: [Int]
    private let listen: [String]
    private let data: String
    private let more: [String]
    private(set) var child: BrokerChild
    private var starts = 0

    /// - Parameters:
    ///   - listen: addresses beside the port that the kernel chooses, which is another one at each
    ///     start.
    ///   - data: a data directory that is there already; `nil`: one of its own.
    ///   - more: further options.
    init(
        _ loop: LoopKind,
        shards: [Int] = [1],
        listen: (_ directory: String) -> [String] = { _ in [] },
        data: String? = nil,
        more: [String] = []
    ) throws {
        self.loop = loop
        self.shards = shards
        executable = try Executable.named("brokerd")
        directory = try TemporaryDirectory(prefix: "millrace-test")
        self.listen = listen(directory.path)
        self.data = data ?? directory.path + "/data"
        self.more = more
        child = try Self.spawn(
            executable,
            directory.path,
            self.data,
            self.listen.flatMap { ["--listen", $0] } + more,
            1,
            loop,
            shards[0]
        )
        starts = 1
        _ = try waitUntilReady()
    }

    deinit {
        // Before its directory goes.
        child.kill()
    }

    var path: String { directory.path }
    var address: ServerAddress {
        get throws { try #require(place.current) }
    }

    private static func spawn(
        _ executable: String,
        _ directory: String,
        _ data: String,
        _ options: [String],
        _ number: Int,
        _ loop: LoopKind,
        _ shards: Int
    ) throws -> BrokerChild {
        var settings = BrokerChild.Options(
            executable: executable,
            dataDirectory: data,
            logPath: directory + "/brokerd-\(number).log"
        )
        settings.more =
            ["--loop", loop.rawValue, "--shards", "\(shards)", "--listen", "\(BrokerChild.host):0"]
            + options
        return try BrokerChild(settings)
    }

    private var options: [String] { listen.flatMap { ["--listen", $0] } + more }

    /// Starts it again on the same directory.
    ///
    /// - Returns: how long it took until it was ready.
    func restart() throws -> Duration {
        starts += 1
        let count = shards[(starts - 1) % shards.count]
        child = try Self.spawn(executable, directory.path, data, options, starts, loop, count)
        return try waitUntilReady()
    }

    private func waitUntilReady() throws -> Duration {
        let ready = try child.waitUntilReady(timeoutMilliseconds: 60_000)
        place.current = .tcp(host: BrokerChild.host, port: ready.port)
        return ready.elapsed
    }

    /// - Returns: how it ended.
    func kill() -> ChildEnd? {
        place.current = nil
        return child.kill()
    }

    func connect() throws -> Connection { try place.connect(clientName: "test") }

    func create(_ name: String, _ level: DurabilityLevel, partitions: Int) throws {
        _ = try connect().request(
            .queueCreate,
            QueueCreateRequest(name: name, partitions: UInt32(partitions), level: level),
            reply: QueueInfo.self
        )
    }

    func describe(_ name: String) throws -> QueueInfo {
        try connect().request(
            .queueDescribe,
            QueueNameRequest(name: name),
            reply: QueueInfo.self
        )
    }
}
