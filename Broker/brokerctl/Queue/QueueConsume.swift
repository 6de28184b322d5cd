internal import ArgumentParser
package import BlockingClient
internal import BrokerBasics
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

        func validate() throws {
            guard global.output != .csv else {
                throw ValidationError("queue consume prints payloads or json")
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

/// One run of `queue consume`: events in, lines out, acks behind them.
private struct RecordPrinter {
    private let queue: QueueInfo
    private let command: Queue.Consume
    private let indexes: [UInt32: UInt32]
    /// Where each partition ended when the command began.
    private let ends: [UInt32: UInt64]
    private var output = StandardOutput()
    private var left: UInt64
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
        let subscription = try attempting(attempt) { () throws(ClientError) in
            try Subscription(
                on: connection,
                queue: queue.name,
                group: command.group,
                start: command.from.position,
                window: .init(records: min(left, 8_192)),
                timeoutMilliseconds: command.global.timeoutMilliseconds
            )
        }
        while left > 0, !isAtEnd(subscription) {
            // What has arrived is printed and acked before anything waits for more.
            var event = try next(subscription, timeoutMilliseconds: 0)
            if event == nil || output.isLarge { try settle(subscription) }
            if event == nil { event = try next(subscription, timeoutMilliseconds: -1) }
            if let event { try handle(event) }
        }
        try settle(subscription)
        try awaitAcks(subscription)
    }

    private func next(
        _ subscription: Subscription,
        timeoutMilliseconds: Int
    ) throws(Failure) -> SubscriptionEvent? {
        try attempting(attempt) { () throws(ClientError) in
            try subscription.next(timeoutMilliseconds: timeoutMilliseconds)
        }
    }

    /// True when `--until-end` is reached in every partition that is read.
    private func isAtEnd(_ subscription: Subscription) -> Bool {
        guard command.untilEnd else { return false }
        // A delivery of several batches advances the subscription at once, and what of it is not
        // printed yet must not be left out.
        return !subscription.hasPending
            && subscription.assignment.partitions.allSatisfy { assigned in
                (subscription.nextOffset(of: assigned.partition) ?? .max)
                    >= (ends[assigned.partition] ?? 0)
            }
    }

    private mutating func handle(_ event: SubscriptionEvent) throws(Failure) {
        switch event {
        case .records(let batch): print(batch)
        case .lost(let range): try print(range)
        case .assigned, .acked: break
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
            left -= 1
        }
    }

    private mutating func print(_ range: LostRange) throws(Failure) {
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
    }

    /// Writes what is printed, and then acks it, in this order: what was acked has been seen.
    private mutating func settle(_ subscription: Subscription) throws(Failure) {
        try output.flush()
        defer { printed.removeAll(keepingCapacity: true) }
        guard !command.group.isEmpty else { return }
        for (partition, offset) in printed {
            try attempting("ack offset \(offset) of queue \(queue.name)") {
                () throws(ClientError) in
                try subscription.ack(partition: partition, below: offset)
            }
        }
    }

    /// Does not leave before the group's progress is stored.
    private mutating func awaitAcks(_ subscription: Subscription) throws(Failure) {
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
            case .records, .lost, .assigned, .acked, nil: break
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
        .object([
            (
                "lost",
                .object([
                    ("partition", index.map { .number(UInt64($0)) } ?? .null),
                    ("from", .number(range.offsets.lowerBound)),
                    ("to", .number(range.offsets.upperBound)),
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
