internal import BlockingClient
internal import BrokerBasics
internal import ChildProcess
internal import Glibc
internal import ReplayHarness
internal import WireProtocol

/// Why a run could not come to a verdict: one line for a person.
struct RunFailure: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
}

/// One rehearsal, from the start of the broker to the verdict.
struct RehearsalRun {
    struct Settings {
        var feed: String?
        var orders: String?
        var seed: UInt64
        var brokerd: String
        var seconds: Int
        var recordsPerSecond: Int
        var secondsMax: Int
    }

    /// One of the two queues, with all that is done to it.
    private struct Lane {
        var queue: String
        var level: DurabilityLevel
        var keyName: String
        var stream: ReplayStream
        var producer: ReplayProducer
        /// The first reads alone and so gets everything; another is the member of a group.
        var readers: [LiveReader]
    }

    /// What the kill did.
    private struct Kill {
        var at: Duration
        var end: ChildEnd?
        var ready: Duration = .zero
        var restartedAt = ContinuousClock().now
    }

    static let ordersPartitions = 4
    /// The few streams of a feed are spread over two of eight; two or four would leave all but one
    /// empty.
    static let feedPartitions = 8
    static let group = "booking"
    private static let generatedOrders = 20_000
    private static let generatedEvents = 60_000

    private let settings: Settings
    private let began = ContinuousClock().now
    private let deadline: ContinuousClock.Instant
    private let directory: TemporaryDirectory
    private let place = BrokerPlace()
    /// The broker that should be running.
    private final class Running { var child: BrokerChild? }
    private let running = Running()

    init(_ settings: Settings) throws(RunFailure) {
        self.settings = settings
        deadline = began + .seconds(settings.secondsMax)
        directory = try Self.trying { () throws(ChildFailure) in
            try TemporaryDirectory(prefix: "millrace-rehearsal")
        }
    }

    private static func trying<Value, Failure: Error & CustomStringConvertible>(
        _ what: String = "",
        _ body: () throws(Failure) -> Value
    ) throws(RunFailure) -> Value {
        do throws(Failure) {
            return try body()
        } catch {
            throw RunFailure(what.isEmpty ? error.description : "\(what): \(error)")
        }
    }

    private var elapsed: Duration { ContinuousClock().now - began }

    /// - Throws: when somebody wants the end, the time is over, or the broker ended by itself.
    private func check() throws(RunFailure) {
        if Interrupt.isWanted { throw RunFailure("interrupted") }
        if place.current != nil, let child = running.child, let end = child.end {
            throw RunFailure("the broker ended with \(end):\n\(child.lastWords)")
        }
        guard ContinuousClock().now < deadline else {
            throw RunFailure("not done in \(settings.secondsMax) s (--seconds-max)")
        }
    }

    private func goesOn() -> Bool { !Interrupt.isWanted && ContinuousClock().now < deadline }

    // MARK: The course

    /// - Returns: whether every promise was kept.
    func run() throws(RunFailure) -> Bool {
        defer { directory.remove() }
        Console.line("Millrace rehearsal, seed \(settings.seed)")
        let orders = try recording("orders", settings.orders, .orders)
        let feed = try recording("marketdata", settings.feed, .feed)
        var broker = try start(1)
        // It dies with the last reference; before the directory goes.
        defer { broker.child.kill() }
        try introduce(broker)
        let lanes = try makeLanes(orders: orders, feed: feed)
        defer { for lane in lanes { abandon(lane) } }

        for lane in lanes {
            for reader in lane.readers { reader.start() }
            lane.producer.start()
        }
        var random = SeededRandom(seed: settings.seed &+ 3)
        let half = Duration.seconds(settings.seconds) / 2
        let shift = Duration.milliseconds(random.below(settings.seconds * 200))
        let publishBegan = ContinuousClock().now
        try watch(lanes, until: publishBegan + half - .seconds(settings.seconds) / 10 + shift)
        var kill = try killInFlight(lanes, broker: broker.child, random: &random)
        let restarting = ContinuousClock().now
        broker = try start(2)
        kill.ready = broker.ready.elapsed
        kill.restartedAt = restarting
        say("restarted: ready after \(Console.seconds(kill.ready)) s")
        for lane in lanes { lane.producer.pace() }
        try watch(lanes, until: publishBegan + .seconds(settings.seconds))

        for lane in lanes { lane.producer.finish() }
        try wait(lanes, "for the confirms") { $0.producer.progress.inFlight == 0 }
        let histories = lanes.map { $0.producer.join() }
        try throwFailures(lanes)
        try catchUp(lanes)
        say("all is confirmed and delivered; reading back")
        for lane in lanes { for reader in lane.readers { reader.stop() } }
        let logs = lanes.map { $0.readers.map { $0.join() } }
        try throwFailures(lanes)
        return try judge(lanes, histories: histories, logs: logs, kill: kill, broker: broker.child)
    }

    private func abandon(_ lane: Lane) {
        place.current = nil
        lane.producer.abort()
        for reader in lane.readers { reader.stop() }
        _ = lane.producer.join()
        for reader in lane.readers { _ = reader.join() }
    }

    private func say(_ text: String) {
        let time = Console.seconds(elapsed, decimals: 1)
        Console.line(String(repeating: " ", count: max(0, 7 - time.count)) + "\(time) s  \(text)")
    }

    // MARK: Input

    private func recording(
        _ name: String,
        _ path: String?,
        _ format: RecordingFormat
    ) throws(RunFailure) -> Recording {
        var source = path ?? ""
        if path == nil { source = try generate(name, format) }
        let recording = try Self.trying { () throws(RecordingError) in
            try Recording(path: source, format: format)
        }
        var text = "\(name): "
        text += path.map { "recorded in \($0)" } ?? "generated, seed \(settings.seed)"
        text += ", \(Console.count(recording.lines.count)) lines, \(Console.bytes(recording.bytes))"
        if recording.isCut { text += " (the file has more, which is left out)" }
        if recording.strangeLines > 0 {
            text += ", \(Console.count(recording.strangeLines)) not of the format, without a key"
        }
        Console.line("  \(text)")
        return recording
    }

    /// Writes a file of generated lines, so that both ways read their input by the same code.
    private func generate(
        _ name: String,
        _ format: RecordingFormat
    ) throws(RunFailure) -> String {
        var text = ""
        switch format {
        case .orders:
            var generator = OrderGenerator(seed: settings.seed)
            for _ in 0..<Self.generatedOrders { text += generator.line() + "\n" }
        case .feed:
            var generator = FeedGenerator(seed: settings.seed &+ 1)
            for _ in 0..<Self.generatedEvents { text += generator.line() + "\n" }
        }
        let path = "\(directory.path)/\(name).input"
        let descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else {
            throw RunFailure("making \(path) failed: \(String(cString: strerror(errno)))")
        }
        defer { close(descriptor) }
        var rest = Array(text.utf8)[...]
        while !rest.isEmpty {
            let written = rest.withUnsafeBytes { write(descriptor, $0.baseAddress, $0.count) }
            guard written > 0 else {
                throw RunFailure("writing \(path) failed: \(String(cString: strerror(errno)))")
            }
            rest = rest.dropFirst(written)
        }
        return path
    }

    // MARK: The broker

    private func start(
        _ number: Int
    ) throws(RunFailure) -> (child: BrokerChild, ready: BrokerChild.Ready) {
        let options = BrokerChild.Options(
            executable: settings.brokerd,
            dataDirectory: "\(directory.path)/data",
            logPath: "\(directory.path)/brokerd-\(number).log"
        )
        return try Self.trying { () throws(ChildFailure) in
            let child = try BrokerChild(options)
            let ready = try child.waitUntilReady(timeoutMilliseconds: 30_000, isWanted: goesOn)
            running.child = child
            place.current = .tcp(host: BrokerChild.host, port: ready.port)
            return (child, ready)
        }
    }

    private func introduce(
        _ broker: (child: BrokerChild, ready: BrokerChild.Ready)
    ) throws(RunFailure) {
        let connection = try connect()
        let description = try Self.trying { () throws(ClientError) in
            try connection.request(.serverDescribe, body: []).message(ServerDescription.self)
        }
        let versions = description.facts.filter { $0.name.contains("version") }
            .map { ", \($0.name) \($0.value)" }.joined()
        Console.line(
            "  broker: \(settings.brokerd), process \(broker.child.processID), "
                + "\(connection.address), protocol version \(connection.hello.version)\(versions)"
        )
        Console.line("  data: \(directory.path), removed at the end")
    }

    private func connect() throws(RunFailure) -> Connection {
        try Self.trying { () throws(ClientError) in
            try place.connect(clientName: "rehearsal")
        }
    }

    private func makeLanes(
        orders: Recording,
        feed: Recording
    ) throws(RunFailure) -> [Lane] {
        let connection = try connect()
        var lanes: [Lane] = []
        for (queue, level, partitions, keyName, lines) in [
            ("orders", DurabilityLevel.synced, Self.ordersPartitions, "order id", orders.lines),
            ("marketdata", .memory, Self.feedPartitions, "stream", feed.lines),
        ] {
            _ = try Self.trying("creating \(queue)") { () throws(ClientError) in
                try connection.request(
                    .queueCreate,
                    QueueCreateRequest(name: queue, partitions: UInt32(partitions), level: level),
                    reply: QueueInfo.self
                )
            }
            let stream = ReplayStream(
                producer: UInt32(lanes.count + 1),
                lines: lines,
                partitionCount: partitions,
                traceEvery: level == .synced ? 16 : 0
            )
            var producer = ReplayProducer.Settings(queue: queue, stream: stream)
            producer.recordsPerSecond = settings.recordsPerSecond
            producer.seed = settings.seed &+ UInt64(lanes.count)
            producer.options.clientName = "rehearsal-\(queue)"
            if level == .synced { producer.options.deadlineMicroseconds = 5_000_000 }
            var readers = [LiveReader(.init(queue: queue, streams: [stream]), from: place)]
            if level == .synced {
                var member = LiveReader.Settings(queue: queue, streams: [stream])
                member.group = Self.group
                readers.append(LiveReader(member, from: place))
            }
            lanes.append(
                Lane(
                    queue: queue,
                    level: level,
                    keyName: keyName,
                    stream: stream,
                    producer: ReplayProducer(producer, to: place),
                    readers: readers
                )
            )
        }
        return lanes
    }

    /// Kills the broker at a moment when publishes of both queues have no answer.
    private func killInFlight(
        _ lanes: [Lane],
        broker: BrokerChild,
        random: inout SeededRandom
    ) throws(RunFailure) -> Kill {
        for lane in lanes { lane.producer.burst() }
        let from = ContinuousClock().now + .milliseconds(50 + random.below(250))
        while ContinuousClock().now < from
            || !lanes.allSatisfy({ $0.producer.progress.inFlight > 0 })
        {
            try check()
            try throwFailures(lanes)
            usleep(100)
        }
        // Nowhere first, so that nobody finds another server at the port.
        place.current = nil
        let end = broker.kill()
        let kill = Kill(at: elapsed, end: end)
        guard end == .signalled(SIGKILL) else {
            throw RunFailure("the broker ended with \(end.map { "\($0)" } ?? "nothing")")
        }
        try wait(lanes, "for the connections to end") {
            !$0.producer.progress.inFlightAtBreak.isEmpty
        }
        let inFlight = lanes.map {
            "\(Console.count($0.producer.progress.inFlightAtBreak.first ?? 0)) of \($0.queue)"
        }
        say("SIGKILL; records without an answer: \(inFlight.joined(separator: ", "))")
        return kill
    }

    // MARK: Watching

    private func throwFailures(_ lanes: [Lane]) throws(RunFailure) {
        for lane in lanes {
            let failures = [lane.producer.progress.failure] + lane.readers.map(\.progress.failure)
            if let failure = failures.compactMap({ $0 }).first { throw RunFailure(failure) }
        }
    }

    /// Says every second how it goes.
    private func watch(
        _ lanes: [Lane],
        until end: ContinuousClock.Instant
    ) throws(RunFailure) {
        var last = ContinuousClock().now
        var confirmed = lanes.map(\.producer.progress.confirmed)
        while ContinuousClock().now < end {
            try check()
            try throwFailures(lanes)
            usleep(20_000)
            let now = ContinuousClock().now
            guard now - last >= .seconds(1) else { continue }
            var texts: [String] = []
            for (index, lane) in lanes.enumerated() {
                let progress = lane.producer.progress
                let rate =
                    Double(progress.confirmed - confirmed[index]) / ((now - last) / .seconds(1))
                confirmed[index] = progress.confirmed
                let delivered = lane.readers.map { Console.count($0.progress.delivered) }
                texts.append(
                    "\(lane.queue) \(Console.count(Int(rate)))/s, "
                        + "\(Console.count(progress.inFlight)) in flight, "
                        + "\(delivered.joined(separator: " and ")) delivered"
                )
            }
            last = now
            say(texts.joined(separator: "   "))
        }
    }

    private func wait(
        _ lanes: [Lane],
        _ what: String,
        until isDone: (Lane) -> Bool
    ) throws(RunFailure) {
        let limit = ContinuousClock().now + .seconds(20)
        while !lanes.allSatisfy(isDone) {
            try check()
            try throwFailures(lanes)
            guard ContinuousClock().now < limit else {
                throw RunFailure("waiting \(what) for 20 s in vain")
            }
            usleep(1_000)
        }
    }

    /// Waits until every reader is where its queue ends.
    private func catchUp(_ lanes: [Lane]) throws(RunFailure) {
        let connection = try connect()
        for lane in lanes {
            let queue = try describe(lane.queue, on: connection)
            let ends = queue.partitions.sorted { $0.index < $1.index }.map(\.committedOffset)
            try wait([lane], "for the readers of \(lane.queue)") { lane in
                lane.readers.allSatisfy { reader in
                    let offsets = reader.progress.offsets
                    return offsets.count == ends.count
                        && zip(offsets, ends).allSatisfy { $0 >= $1 }
                }
            }
        }
    }

    private func describe(
        _ queue: String,
        on connection: Connection
    ) throws(RunFailure) -> QueueInfo {
        try Self.trying("describing \(queue)") { () throws(ClientError) in
            try connection.request(
                .queueDescribe,
                QueueNameRequest(name: queue),
                reply: QueueInfo.self
            )
        }
    }

    // MARK: The verdict

    private func judge(
        _ lanes: [Lane],
        histories: [SentHistory],
        logs: [[DeliveryLog]],
        kill: Kill,
        broker: BrokerChild
    ) throws(RunFailure) -> Bool {
        let connection = try connect()
        var isGood = true
        var texts: [String] = []
        for (index, lane) in lanes.enumerated() {
            var (checker, summary) = try Self.trying("reading back") { () throws(ClientError) in
                try QueueReader.check(
                    lane.queue,
                    on: connection,
                    histories: [histories[index]],
                    isWanted: goesOn
                )
            }
            for (number, log) in logs[index].enumerated() {
                checker.delivered(log, isComplete: number == 0)
            }
            var report = checker.finish()
            let said = summary.queue.partitions.reduce(0) { $0 + $1.lostRecords }
            let got = report.lostOffsets
            if said != got {
                report.add(
                    .badAnswer,
                    "the broker counts \(said) lost offsets, and delivers \(got)"
                )
            }
            isGood = isGood && report.isGood
            texts.append(
                LaneReport(
                    queue: lane.queue,
                    level: lane.level,
                    keyName: lane.keyName,
                    stream: lane.stream,
                    producer: lane.producer.progress,
                    readers: lane.readers.map(\.progress),
                    report: report,
                    summary: summary,
                    restartedAt: kill.restartedAt
                ).text
            )
        }
        let end = broker.stop(timeoutMilliseconds: 10_000)
        place.current = nil
        Console.line(
            """

            kill
              SIGKILL \(Console.seconds(kill.at)) s after the beginning, in the middle of publishing
              recovery: \(Console.seconds(kill.ready)) s from the restart to ready
            """
        )
        for text in texts { Console.line("\n\(text)") }
        if end != .exited(0) {
            isGood = false
            Console.line(
                "\n  ! the broker was asked to stop: \(end.map { "\($0)" } ?? "it did not")"
            )
            Console.line(broker.lastWords)
        }
        return isGood
    }
}
