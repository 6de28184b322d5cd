internal import ArgumentParser
package import BlockingClient
internal import BrokerBasics
internal import WireProtocol

extension Queue {
    struct Publish: ParsableCommand {
        static var configuration: CommandConfiguration {
            CommandConfiguration(
                abstract: "Publish the lines of a file, a record each.",
                discussion: """
                    A record's value is its line without the newline, byte for byte. With \
                    --key-field its key is one field of the line (fields stand between commas or \
                    blanks, the first is 1) and decides the partition; a line without that field is \
                    published without a key. Otherwise batches take the partitions in turn.

                    Many batches are in flight. Records are numbered, so what is sent again after a \
                    lost connection or a restart of the broker is stored once. -o json prints an \
                    object for each confirm as soon as it arrives: partition, offset, count, level, \
                    epoch, duplicate. The table is a summary at the end.

                    Examples:
                      brokerctl queue publish orders --lines orders.csv --key-field 3
                      tail -f feed.txt | brokerctl queue publish marketdata --lines - -o json
                    """
            )
        }

        enum UnknownProducer: String, ExpressibleByArgument, CaseIterable {
            case stop
            case resend
        }

        @OptionGroup var global: GlobalOptions
        @Argument(help: "The queue's name.")
        var name: String
        @Option(help: ArgumentHelp("The file; - is standard input.", valueName: "file"))
        var lines: String
        @Option(help: ArgumentHelp("Which field is the record's key.", valueName: "number"))
        var keyField: Int?
        @Option(help: ArgumentHelp("Publish to this partition only.", valueName: "index"))
        var partition: Int?
        @Option(help: ArgumentHelp("How many batches may be in flight.", valueName: "batches"))
        var window = 64
        @Option(
            help: ArgumentHelp(
                "How many records make a batch; fewer when no more are there yet.",
                valueName: "records"
            )
        )
        var batch = 64
        @Option(
            help: """
                Be content with a confirm at this level, lower than the queue's; the record still goes \
                where the queue's level sends it. Its offset is then not told.
                """
        )
        var confirmLevel: Durability?
        @Option(
            help: ArgumentHelp(
                "How long to retry without progress; 0: not at all.",
                valueName: "seconds"
            )
        )
        var retrySeconds = 30
        @Option(
            help: """
                When the broker no longer knows what this producer published: stop, or resend what \
                is unconfirmed, which may then be stored twice.
                """
        )
        var onUnknown: UnknownProducer = .stop

        func validate() throws {
            if let keyField, keyField < 1 {
                throw ValidationError("--key-field takes 1 or more: the first field is 1")
            }
            if let partition, partition < 0 {
                throw ValidationError("--partition takes 0 or more: the first partition is 0")
            }
            guard (1...1_000_000).contains(window) else {
                throw ValidationError("--window takes 1 to 1000000 batches")
            }
            guard (1...BatchBuilder.recordCountMax).contains(batch) else {
                throw ValidationError("--batch takes 1 to \(BatchBuilder.recordCountMax) records")
            }
            guard (0...86_400).contains(retrySeconds) else {
                throw ValidationError("--retry-seconds takes 0 to 86400 seconds")
            }
            guard global.output != .csv else {
                throw ValidationError("queue publish prints a table or json")
            }
        }

        func run() throws {
            let address = try global.address()
            let input = try InputFile(lines)
            var publisher = try LinePublisher(
                stream: try open(address),
                command: self,
                address: address
            )
            try publisher.run(input)
        }

        private func open(_ address: ServerAddress) throws(Failure) -> PublishStream {
            var options = PublishStream.Options()
            options.clientName = ControlTool.clientName
            options.window = window
            options.retrySeconds = retrySeconds
            options.confirmLevel = confirmLevel?.level
            options.resendWhenUnknown = onUnknown == .resend
            return try attempting("publish to queue \(name) at \(address)") {
                () throws(ClientError) in
                try PublishStream(to: address, queue: name, options: options)
            }
        }
    }
}

/// One run of `queue publish`: lines in, batches out, confirms printed.
private struct LinePublisher {
    /// A batch is sent when it has this many bytes, whatever it counts: a window of them should
    /// not be bound by its size first.
    private static let batchBytes = 256 << 10

    /// More than a batch's header and a record's own fields take beside its value and its key.
    private static let fieldBytes = 128

    private let stream: PublishStream
    private let command: Queue.Publish
    private let address: ServerAddress
    private var output = StandardOutput()
    /// What is being filled, by partition; without keys only one of them.
    private var builders: [BatchBuilder]
    /// The partition of the next batch without keys.
    private var turn = 0
    private var splitter: LineSplitter
    private var keylessLines = 0
    private var confirmed = (records: 0, batches: 0, duplicates: 0)
    private let began = ClientClock.monotonic()

    init(
        stream: PublishStream,
        command: Queue.Publish,
        address: ServerAddress
    ) throws(Failure) {
        if let partition = command.partition, partition >= stream.partitionCount {
            throw .usage(
                "publish to queue \(command.name): there is no partition \(partition), "
                    + "it has \(stream.partitionCount)"
            )
        }
        self.stream = stream
        self.command = command
        self.address = address
        builders = Array(repeating: BatchBuilder(), count: stream.partitionCount)
        splitter = LineSplitter(lineBytesMax: max(0, stream.batchBytesMax - Self.fieldBytes))
    }

    mutating func run(_ input: consuming InputFile) throws(Failure) {
        do throws(Failure) {
            try publishLines(&input)
            while !stream.isIdle {
                try pump(waitingFor: -1)
                try printConfirms()
            }
        } catch {
            // The answer so far is part of the answer.
            try? output.flush()
            guard case .client(let attempt, let cause) = error else { throw error }
            throw .client(
                attempt: attempt + " (\(confirmed.records) records were confirmed)",
                cause
            )
        }
        try finish()
    }

    private mutating func publishLines(_ input: inout InputFile) throws(Failure) {
        while true {
            guard stream.hasRoom else {
                try pump(waitingFor: -1)
                try printConfirms()
                continue
            }
            switch splitter.next() {
            case .line(let line): try add(line)
            case .incomplete:
                // What is there goes out before anything waits for more.
                if try !isReadable(input.descriptor, timeoutMilliseconds: 0) {
                    try publishAll()
                    while try !isReadable(input.descriptor, timeoutMilliseconds: 1_000) {}
                }
                try input.read(into: &splitter)
            case .tooLong: throw lineTooLong(splitter.lineCount + 1)
            case .end:
                try publishAll()
                return
            }
        }
    }

    /// Pumps, and says whether there is input.
    private mutating func isReadable(
        _ descriptor: Int32,
        timeoutMilliseconds: Int
    ) throws(Failure) -> Bool {
        let readable = try pump(
            waitingFor: descriptor,
            timeoutMilliseconds: timeoutMilliseconds
        )
        try printConfirms()
        return readable
    }

    @discardableResult
    private mutating func pump(
        waitingFor descriptor: Int32,
        timeoutMilliseconds: Int = 1_000
    ) throws(Failure) -> Bool {
        try attempting("publish to queue \(command.name) at \(address)") {
            () throws(ClientError) in
            try stream.pump(timeoutMilliseconds: timeoutMilliseconds, alsoReadable: descriptor)
        }
    }

    private mutating func add(_ line: [UInt8]) throws(Failure) {
        var record = Record(value: line, timestamp: ClientClock.wall().nanoseconds)
        var index = turn
        if let keyField = command.keyField {
            record.key = LineFields.field(keyField, of: line)
            if let key = record.key {
                index = KeyHash.partition(of: key, partitionCount: stream.partitionCount)
            } else {
                keylessLines += 1
            }
        }
        if let partition = command.partition { index = partition }
        let bytes = line.count + (record.key?.count ?? 0) + Self.fieldBytes
        guard bytes <= stream.batchBytesMax else { throw lineTooLong(splitter.lineCount) }
        if builders[index].byteCount + bytes > stream.batchBytesMax { try publish(index) }
        let isTaken = builders[index].append(record)
        invariant(isTaken, "a batch of more than the \(command.batch) records of --batch")
        if builders[index].recordCount >= command.batch
            || builders[index].byteCount >= Self.batchBytes
        {
            try publish(index)
        }
    }

    private func lineTooLong(_ number: Int) -> Failure {
        .usage(
            "publish \(command.lines): line \(number) and its key are longer than a batch may be, "
                + "\(stream.batchBytesMax) bytes"
        )
    }

    private mutating func publishAll() throws(Failure) {
        for index in builders.indices { try publish(index) }
    }

    private mutating func publish(_ index: Int) throws(Failure) {
        guard builders[index].recordCount > 0 else { return }
        let builder = builders[index]
        builders[index] = BatchBuilder()
        try attempting("publish to queue \(command.name) at \(address)") {
            () throws(ClientError) in
            try stream.publish(builder, to: index)
        }
        if index == turn { turn = (turn + 1) % stream.partitionCount }
    }

    private mutating func printConfirms() throws(Failure) {
        for confirm in stream.takeConfirms() {
            confirmed.records += confirm.count
            confirmed.batches += 1
            if confirm.isDuplicate { confirmed.duplicates += confirm.count }
            guard command.global.output == .json else { continue }
            output.append { bytes in
                JSONText.append(PublishRows.json(confirm), indent: nil, to: &bytes)
                bytes.append(UInt8(ascii: "\n"))
            }
        }
        try output.flush()
    }

    private mutating func finish() throws(Failure) {
        if keylessLines > 0, let keyField = command.keyField {
            ControlTool.complain(
                "\(keylessLines) lines have no field \(keyField) and were published without a key"
            )
        }
        guard command.global.output == .table else { return }
        let nanoseconds = ClientClock.monotonic().since(began)
        let seconds = max(Double(nanoseconds) / 1e9, 1e-9)
        try OutputFormat.table.print(
            Report(facts: [
                (.init("queue", "PUBLISHED TO"), .text(command.name)),
                (.init("records"), .count(UInt64(confirmed.records))),
                (.init("batches"), .count(UInt64(confirmed.batches))),
                (.init("duplicates"), .count(UInt64(confirmed.duplicates))),
                (.init("reconnects"), .count(UInt64(stream.reconnects))),
                (.init("nanoseconds", "TOOK"), .duration(nanoseconds)),
                (
                    .init("records_per_second", "RECORDS/S"),
                    .count(UInt64(Double(confirmed.records) / seconds))
                ),
            ])
        )
    }
}

/// How a confirm is printed.
package enum PublishRows {
    package static func json(_ confirm: Confirm) -> JSONValue {
        .object([
            ("partition", .number(UInt64(confirm.index))),
            ("offset", confirm.offset.map { .number($0) } ?? .null),
            ("count", .number(UInt64(confirm.count))),
            ("level", .string(QueueRows.level(confirm.level))),
            ("epoch", .number(UInt64(confirm.epoch))),
            ("duplicate", .bool(confirm.isDuplicate)),
        ])
    }
}
