internal import ArgumentParser
package import BlockingClient
internal import BrokerBasics
internal import Glibc
package import WireProtocol

extension Queue {
    struct Consume: ParsableCommand {
        static var configuration: CommandConfiguration {
            CommandConfiguration(
                abstract: "Print the records of a queue as they come.",
                discussion: """
                    A line per record: its value. -o json prints an object per record: partition, \
                    offset, epoch, key, timestamp (the producer's, in nanoseconds since 1970), \
                    headers, and payload, or payload_base64 where it is not UTF-8. Offsets that a \
                    crash took are {"lost":{"partition":..,"from":..,"to":..}}, to not included, and \
                    otherwise a line on standard error.

                    With --group the command is a member of that group: it begins at the group's \
                    cursor (--from counts only where it has none), and acks what it has printed.

                    --from takes start, end, an offset, or a time: 2024-08-08T12:34:56Z, \
                    @1723120496 (Unix seconds), @1723120496000000000ns. A time begins at the first \
                    record that was appended then or later.

                    When the connection ends, as when the broker restarts, the command says so, \
                    connects again for --retry-seconds, and goes on behind what it has printed: no \
                    record is printed twice or left out. With exit code 3 it has given up.

                    Examples:
                      brokerctl queue consume orders --from start --until-end -o json
                      brokerctl queue consume orders --group billing --count 100
                    """
            )
        }

        @OptionGroup var global: GlobalOptions
        @Argument(help: "The queue's name.")
        var name: String
        @Option(help: ArgumentHelp("Consume as a member of this group.", valueName: "group"))
        var group: String = ""
        @Option(
            help: ArgumentHelp(
                "Where to begin: start, end, an offset, or a time.",
                valueName: "position"
            )
        )
        var from: From = .init(position: .start)
        @Option(help: ArgumentHelp("Stop after this many records.", valueName: "records"))
        var count: UInt64?
        @Flag(help: "Stop at what was the end when the command began.")
        var untilEnd = false
        @Option(
            help: ArgumentHelp(
                "How long to try to connect again; 0: not at all.",
                valueName: "seconds"
            )
        )
        var retrySeconds = 30

        func validate() throws {
            guard global.output != .csv else {
                throw ValidationError("queue consume prints payloads or json")
            }
            guard (0...86_400).contains(retrySeconds) else {
                throw ValidationError("--retry-seconds takes 0 to 86400 seconds")
            }
        }

        func run() throws {
            if count == 0 { return }
            let connection = try global.connect()
            let queue = try describeQueue(name, on: connection, global)
            var printer = RecordPrinter(queue: queue, command: self)
            try printer.run(on: connection)
        }
    }
}

/// `--from`, parsed.
struct From: ExpressibleByArgument {
    var position: StartPosition

    init(position: StartPosition) { self.position = position }
    init?(argument: String) {
        guard let position = ConsumeArguments.position(argument) else { return nil }
        self.position = position
    }
    var defaultValueDescription: String { "start" }
}

package enum ConsumeArguments {
    /// `start`, `end`, an offset, or a time as `CivilTime.parse` reads it.
    package static func position(_ text: String) -> StartPosition? {
        switch text {
        case "start": return .start
        case "end": return .end
        default: break
        }
        if let nanoseconds = CivilTime.parse(text) { return .time(nanoseconds) }
        guard text.utf8.allSatisfy({ (0x30...0x39).contains($0) }) else { return nil }
        return UInt64(text).map { .offset($0) }
    }
}

/// One run of `queue consume`: events in, lines out, acks behind them, over as many connections as
/// it takes.
private struct RecordPrinter {
    /// Between two attempts to connect again.
    private static let retryMicroseconds: UInt32 = 100_000
    private static let roundMilliseconds = 20

    private let queue: QueueInfo
    private let command: Queue.Consume
    private let indexes: [UInt32: UInt32]
    /// Where each partition ended when the command began.
    private let ends: [UInt32: UInt64]
    private var output = StandardOutput()
    private var left: UInt64
    /// By partition: where the next record to be printed is, from the first assignment on.
    private var positions: [UInt32: UInt64] = [:]
    /// By partition: how far this connection has come. In a group that is behind `positions` when
    /// an ack did not arrive before the last connection ended.
    private var reached: [UInt32: UInt64] = [:]
    /// Below which all of a partition is printed; what is new since the last ack.
    private var printed: [UInt32: UInt64] = [:]

    init(queue: QueueInfo, command: Queue.Consume) {
        self.queue = queue
        self.command = command
        indexes = Dictionary(
            queue.partitions.map { ($0.id, $0.index) },
            uniquingKeysWith: { first, _ in first }
        )
        ends = Dictionary(
            queue.partitions.map { ($0.id, $0.committedOffset) },
            uniquingKeysWith: { first, _ in first }
        )
        left = command.count ?? .max
    }

    private var attempt: String { "consume queue \(queue.name)" }

    mutating func run(on connection: Connection) throws(Failure) {
        let serverID = connection.hello.serverID
        var connection = connection
        var window = SubscriptionState.Window()
        window.records = min(left, window.records)
        var subscriptions = [
            try subscribe(on: connection, from: command.from.position, window: window)
        ]
        while true {
            do throws(Failure) {
                return try read(subscriptions, on: connection)
            } catch {
                guard let reason = Self.lostConnection(error) else { throw error }
                (connection, subscriptions) = try reconnect(after: reason, serverID)
            }
        }
    }

    private func subscribe(
        on connection: Connection,
        from start: StartPosition,
        partition: PartitionID = .all,
        window: SubscriptionState.Window = .init()
    ) throws(Failure) -> Subscription {
        try attempting(attempt) { () throws(ClientError) in
            try Subscription(
                on: connection,
                queue: queue.name,
                group: command.group,
                start: start,
                partition: partition,
                window: window,
                timeoutMilliseconds: command.global.timeoutMilliseconds
            )
        }
    }

    /// Prints and acks to the end that was asked for.
    private mutating func read(
        _ subscriptions: [Subscription],
        on connection: Connection
    ) throws(Failure) {
        reached.removeAll()
        let assigned = subscriptions.flatMap(\.assignment.partitions)
        try adopt(assigned)
        while !isDone {
            var isQuiet = true
            for subscription in subscriptions {
                guard let event = try next(subscription, timeoutMilliseconds: 0) else { continue }
                isQuiet = false
                try handle(event)
            }
            // What has arrived is printed and acked before anything waits for more.
            if isQuiet || output.isLarge { try settle(subscriptions) }
            if isQuiet, !isDone {
                try attempting(attempt) { () throws(ClientError) in
                    // Where one was asked, frames of another may have come meanwhile.
                    let patience = subscriptions.count == 1 ? -1 : Self.roundMilliseconds
                    try connection.pump(timeoutMilliseconds: patience)
                }
            }
        }
        try settle(subscriptions)
        try awaitAcks(subscriptions)
    }

    // MARK: after a connection's end

    /// Why a connection ended, if that is what happened and another may be better.
    private static func lostConnection(_ failure: Failure) -> ClientError? {
        guard case .client(_, let error) = failure else { return nil }
        switch error {
        case .closed: return error
        // What a broker says that stops.
        case .refused(let refused):
            return refused.mayRetry ? ClientError.closed(reason: "\(error)") : nil
        case .unreachable, .timeout, .protocolError: return nil
        }
    }

    /// Comes back to where it was, or says why it cannot.
    private mutating func reconnect(
        after reason: ClientError,
        _ serverID: UInt64
    ) throws(Failure) -> (Connection, [Subscription]) {
        try output.flush()
        guard command.retrySeconds > 0 else { throw .client(attempt: attempt, reason) }
        ControlTool.complain(
            "\(attempt): \(reason); trying again for \(command.retrySeconds) s"
        )
        let deadline = ClientClock.monotonic() + .seconds(UInt64(command.retrySeconds))
        while true {
            do throws(Failure) {
                let connection = try command.global.connect()
                let subscriptions = try resume(on: connection, serverID)
                ControlTool.complain("\(attempt): connected again")
                return (connection, subscriptions)
            } catch {
                guard case .client(let attempt, let why) = error, why.mayReconnect else {
                    throw error
                }
                guard ClientClock.monotonic() < deadline else {
                    throw .client(attempt: attempt, Self.lostConnection(error) ?? why)
                }
            }
            usleep(Self.retryMicroseconds)
        }
    }

    /// With a group at its cursor, otherwise each partition where it was: one subscription has one
    /// position.
    private mutating func resume(
        on connection: Connection,
        _ serverID: UInt64
    ) throws(Failure) -> [Subscription] {
        let found = try describeQueue(queue.name, on: connection, command.global)
        guard connection.hello.serverID == serverID,
            found.partitions.map(\.id) == queue.partitions.map(\.id)
        else {
            throw .declined("\(attempt): the queue of this name is not the one that was read")
        }
        // The acks that were on their way may not have arrived: what then comes again is acked, and
        // not printed.
        printed.removeAll()
        if !command.group.isEmpty {
            return [try subscribe(on: connection, from: command.from.position)]
        }
        var window = SubscriptionState.Window()
        window.bytes = max(window.bytes / UInt64(max(1, positions.count)), 16 << 10)
        var subscriptions: [Subscription] = []
        for (partition, offset) in positions.sorted(by: { $0.key < $1.key }) {
            subscriptions.append(
                try subscribe(
                    on: connection,
                    from: .offset(offset),
                    partition: PartitionID(rawValue: partition),
                    window: window
                )
            )
        }
        return subscriptions
    }

    private func next(
        _ subscription: Subscription,
        timeoutMilliseconds: Int
    ) throws(Failure) -> SubscriptionEvent? {
        try attempting(attempt) { () throws(ClientError) in
            try subscription.next(timeoutMilliseconds: timeoutMilliseconds)
        }
    }

    /// True when all that was asked for is printed, and what came again of it has come.
    private var isDone: Bool {
        guard left == 0 || command.untilEnd else { return false }
        return reached.allSatisfy { partition, offset in
            let goal = left > 0 ? ends[partition] ?? 0 : 0
            return offset >= max(goal, positions[partition] ?? 0)
        }
    }

    /// Nothing below what is printed is printed again, wherever a group begins.
    private mutating func adopt(_ partitions: [AssignedPartition]) throws(Failure) {
        var kept: [UInt32: UInt64] = [:]
        for assigned in partitions {
            let id = assigned.partition
            if let before = positions[id], before < assigned.nextOffset, command.group.isEmpty {
                try print(Skipped(partition: id, from: before, to: assigned.nextOffset))
            }
            positions[id] = max(positions[id] ?? 0, assigned.nextOffset)
            // A partition that stays keeps its place in the stream.
            kept[id] = reached[id] ?? assigned.nextOffset
        }
        reached = kept
    }

    private mutating func handle(_ event: SubscriptionEvent) throws(Failure) {
        switch event {
        case .records(let batch):
            print(batch)
            reached[batch.partition] = batch.endOffset
        case .lost(let range):
            try print(range)
            reached[range.partition] = range.offsets.upperBound
        case .skipped(let skipped):
            try print(skipped)
            reached[skipped.partition] = skipped.to
        case .assigned(let assignment): try adopt(assignment.partitions)
        case .acked: break
        case .ackRefused(_, let refused):
            // Another member has the partition now; it will get these records again.
            ControlTool.complain("an ack was refused: \(ClientError.refused(refused))")
        case .ended(let refused):
            try output.flush()
            throw .client(attempt: attempt, .refused(refused))
        }
    }

    private mutating func print(_ batch: DeliveredBatch) {
        let end = command.untilEnd ? ends[batch.partition] ?? 0 : .max
        for entry in batch.entries {
            if entry.offset < positions[batch.partition] ?? 0 {
                printed[batch.partition] = entry.offset + 1
                continue
            }
            guard left > 0, entry.offset < end else { return }
            output.append { bytes in
                if command.global.output == .json {
                    JSONText.append(
                        ConsumeRows.json(
                            entry.record,
                            index: indexes[batch.partition],
                            offset: entry.offset,
                            epoch: batch.epoch
                        ),
                        indent: nil,
                        to: &bytes
                    )
                } else {
                    bytes.append(contentsOf: entry.record.value)
                }
                bytes.append(UInt8(ascii: "\n"))
            }
            printed[batch.partition] = entry.offset + 1
            positions[batch.partition] = entry.offset + 1
            left -= 1
        }
    }

    private mutating func print(_ range: LostRange) throws(Failure) {
        guard range.offsets.upperBound > positions[range.partition] ?? 0 else {
            printed[range.partition] = range.offsets.upperBound
            return
        }
        if command.global.output == .json {
            output.append { bytes in
                JSONText.append(
                    ConsumeRows.json(range, index: indexes[range.partition]),
                    indent: nil,
                    to: &bytes
                )
                bytes.append(UInt8(ascii: "\n"))
            }
        } else {
            // In its place among the lines, as far as two streams can say.
            try output.flush()
            ControlTool.complain(
                "lost: partition \(indexes[range.partition] ?? range.partition), offsets "
                    + "\(range.offsets.lowerBound) ..< \(range.offsets.upperBound)"
            )
        }
        printed[range.partition] = range.offsets.upperBound
        positions[range.partition] = range.offsets.upperBound
    }

    /// Nothing of a skipped range is acked: the group's floor is behind it already.
    private mutating func print(_ skipped: Skipped) throws(Failure) {
        guard skipped.to > positions[skipped.partition] ?? 0 else { return }
        if command.global.output == .json {
            output.append { bytes in
                JSONText.append(
                    ConsumeRows.json(skipped, index: indexes[skipped.partition]),
                    indent: nil,
                    to: &bytes
                )
                bytes.append(UInt8(ascii: "\n"))
            }
        } else {
            try output.flush()
            ControlTool.complain(
                "skipped: partition \(indexes[skipped.partition] ?? skipped.partition), offsets "
                    + "\(skipped.from) ..< \(skipped.to) were removed before they were delivered"
            )
        }
        positions[skipped.partition] = skipped.to
    }

    /// Writes what is printed, and then acks it, in this order: what was acked has been seen.
    private mutating func settle(_ subscriptions: [Subscription]) throws(Failure) {
        try output.flush()
        defer { printed.removeAll(keepingCapacity: true) }
        guard !command.group.isEmpty, let subscription = subscriptions.first else { return }
        for (partition, offset) in printed {
            try attempting("ack offset \(offset) of queue \(queue.name)") {
                () throws(ClientError) in
                try subscription.ack(partition: partition, below: offset)
            }
        }
    }

    /// Does not leave before the group's progress is stored.
    private mutating func awaitAcks(_ subscriptions: [Subscription]) throws(Failure) {
        // Without a group there are none.
        guard let subscription = subscriptions.first else { return }
        let deadline =
            ClientClock.monotonic()
            + .milliseconds(UInt64(command.global.timeoutMilliseconds))
        while subscription.unansweredAcks > 0 {
            let now = ClientClock.monotonic()
            guard now < deadline else {
                throw .client(
                    attempt: "ack to group \(command.group) of queue \(queue.name)",
                    .timeout("no answer in \(command.global.timeout) s")
                )
            }
            let event = try next(
                subscription,
                timeoutMilliseconds: Int(deadline.since(now) / 1_000_000) + 1
            )
            switch event {
            case .ackRefused(_, let refused):
                throw .client(
                    attempt: "ack to group \(command.group) of queue \(queue.name)",
                    .refused(refused)
                )
            case .ended(let refused): throw .client(attempt: attempt, .refused(refused))
            case .records, .lost, .skipped, .assigned, .acked, nil: break
            }
        }
    }
}

/// How records are printed as JSON.
package enum ConsumeRows {
    package static func json(
        _ record: Record,
        index: UInt32?,
        offset: UInt64,
        epoch: UInt32
    ) -> JSONValue {
        var members: [(String, JSONValue)] = [
            ("partition", index.map { .number(UInt64($0)) } ?? .null),
            ("offset", .number(offset)),
            ("epoch", .number(UInt64(epoch))),
            record.key.map { JSONText.member("key", $0) } ?? ("key", .null),
            ("timestamp", .number(record.timestamp)),
            (
                "headers",
                .array(
                    record.headers.map { header in
                        .object([
                            ("name", .string(header.name)),
                            JSONText.member("value", header.value),
                        ])
                    }
                )
            ),
        ]
        if let trace = record.trace { members.append(("traceparent", .string(text(trace)))) }
        members.append(JSONText.member("payload", record.value))
        return .object(members)
    }

    package static func json(_ range: LostRange, index: UInt32?) -> JSONValue {
        json("lost", index, from: range.offsets.lowerBound, to: range.offsets.upperBound)
    }

    package static func json(_ skipped: Skipped, index: UInt32?) -> JSONValue {
        json("skipped", index, from: skipped.from, to: skipped.to)
    }

    private static func json(
        _ name: String,
        _ index: UInt32?,
        from: UInt64,
        to: UInt64
    ) -> JSONValue {
        .object([
            (
                name,
                .object([
                    ("partition", index.map { .number(UInt64($0)) } ?? .null),
                    ("from", .number(from)),
                    ("to", .number(to)),
                ])
            )
        ])
    }

    /// The `traceparent` text of W3C Trace Context, version 00.
    private static func text(_ trace: TraceContext) -> String {
        let digits = trace.bytes.map { byte in
            (byte < 16 ? "0" : "") + String(byte, radix: 16)
        }
        return "00-\(digits[..<16].joined())-\(digits[16 ..< 24].joined())-\(digits[24])"
    }
}
