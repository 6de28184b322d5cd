/// One line of a history: what a client of one queue did or saw.
///
/// A history is a file of JSON lines, an object each, all of one queue. Numbers are whole and not
/// negative; `payload` is a 64-bit hash of everything a record consists of, in hexadecimal, and no
/// two published records have the same; names hold any text. Unknown members are passed over.
///
/// ```
/// {"event":"published","producer":"a","sequence":7,"partition":0,"payload":"9f3c","level":"synced"}
/// {"event":"confirmed","producer":"a","sequence":7,"partition":0,"offset":41,"level":"synced"}
/// {"event":"began","reader":"r","partition":0,"offset":0}
/// {"event":"delivered","reader":"r","order":0,"partition":0,"offset":41,"epoch":3,"payload":"9f3c"}
/// {"event":"lost","reader":"r","order":1,"partition":0,"from":42,"to":50,"epoch":4}
/// {"event":"end","reader":"r","partition":0,"offset":50}
/// {"event":"crash"}
/// ```
///
/// - `published`: a producer gave the record to its client. Its sequences rise. A record that is
///   sent again is the same record, and published once.
/// - `confirmed`: the broker answered for it. Without `offset` where it said "stored before, I no
///   longer know where".
/// - `began`: the reader asked for the partition from this offset on. What it then gets begins
///   anew, so that it may ask for what it has had. Without it a reader begins at what it got first.
/// - `delivered`, `lost`: what came, `order` counting from 0 over all that this reader got. A lost
///   range is `from ..< to`.
/// - `end`: the reader went on until here, and when it stopped nothing lay beyond.
/// - `crash`: the broker was killed, or lost its power.
///
/// Lines of different clients may be mixed in any way.
package enum LogEvent: Equatable, Sendable {
    case published(Published)
    case confirmed(Confirmed)
    case began(reader: String, partition: UInt64, offset: UInt64)
    case delivered(Delivered)
    case lost(Lost)
    case end(reader: String, partition: UInt64, offset: UInt64)
    case crash

    package struct Published: Equatable, Sendable {
        package var producer: String
        package var sequence: UInt64
        package var partition: UInt64
        package var payload: UInt64
        package var level: Level

        package init(
            producer: String,
            sequence: UInt64,
            partition: UInt64,
            payload: UInt64,
            level: Level
        ) {
            self.producer = producer
            self.sequence = sequence
            self.partition = partition
            self.payload = payload
            self.level = level
        }
    }

    package struct Confirmed: Equatable, Sendable {
        package var producer: String
        package var sequence: UInt64
        package var partition: UInt64
        package var offset: UInt64?
        package var level: Level

        package init(
            producer: String,
            sequence: UInt64,
            partition: UInt64,
            offset: UInt64?,
            level: Level
        ) {
            self.producer = producer
            self.sequence = sequence
            self.partition = partition
            self.offset = offset
            self.level = level
        }
    }

    package struct Delivered: Equatable, Sendable {
        package var reader: String
        package var order: UInt64
        package var partition: UInt64
        package var offset: UInt64
        package var epoch: UInt64
        package var payload: UInt64

        package init(
            reader: String,
            order: UInt64,
            partition: UInt64,
            offset: UInt64,
            epoch: UInt64,
            payload: UInt64
        ) {
            self.reader = reader
            self.order = order
            self.partition = partition
            self.offset = offset
            self.epoch = epoch
            self.payload = payload
        }
    }

    package struct Lost: Equatable, Sendable {
        package var reader: String
        package var order: UInt64
        package var partition: UInt64
        package var offsets: Range<UInt64>
        package var epoch: UInt64

        package init(
            reader: String,
            order: UInt64,
            partition: UInt64,
            offsets: Range<UInt64>,
            epoch: UInt64
        ) {
            self.reader = reader
            self.order = order
            self.partition = partition
            self.offsets = offsets
            self.epoch = epoch
        }
    }

    /// What survives: nothing is promised of `memory` but that a loss is told.
    package enum Level: String, Sendable, Comparable {
        case memory
        /// Survives a crash of the process. A history is one of such crashes only, so nothing may be
        /// missing, as at `synced`.
        case written
        case synced

        private var rank: Int {
            switch self {
            case .memory: 0
            case .written: 1
            case .synced: 2
            }
        }
        package static func < (left: Level, right: Level) -> Bool { left.rank < right.rank }
    }
}

/// A line that is no event.
package struct HistoryError: Error, Equatable, CustomStringConvertible {
    /// Counted from 1.
    package var line: Int
    package var reason: String
    package var description: String { "line \(line): \(reason)" }
}

// MARK: writing and reading lines

extension LogEvent {
    /// The line, without its newline.
    package var line: String {
        switch self {
        case .published(let record):
            "{\"event\":\"published\",\"producer\":\(Self.quoted(record.producer)),"
                + "\"sequence\":\(record.sequence),\"partition\":\(record.partition),"
                + "\"payload\":\"\(String(record.payload, radix: 16))\","
                + "\"level\":\"\(record.level.rawValue)\"}"
        case .confirmed(let record):
            "{\"event\":\"confirmed\",\"producer\":\(Self.quoted(record.producer)),"
                + "\"sequence\":\(record.sequence),\"partition\":\(record.partition),"
                + (record.offset.map { "\"offset\":\($0)," } ?? "")
                + "\"level\":\"\(record.level.rawValue)\"}"
        case .began(let reader, let partition, let offset):
            "{\"event\":\"began\",\"reader\":\(Self.quoted(reader)),\"partition\":\(partition),"
                + "\"offset\":\(offset)}"
        case .delivered(let record):
            "{\"event\":\"delivered\",\"reader\":\(Self.quoted(record.reader)),"
                + "\"order\":\(record.order),\"partition\":\(record.partition),"
                + "\"offset\":\(record.offset),\"epoch\":\(record.epoch),"
                + "\"payload\":\"\(String(record.payload, radix: 16))\"}"
        case .lost(let range):
            "{\"event\":\"lost\",\"reader\":\(Self.quoted(range.reader)),"
                + "\"order\":\(range.order),\"partition\":\(range.partition),"
                + "\"from\":\(range.offsets.lowerBound),\"to\":\(range.offsets.upperBound),"
                + "\"epoch\":\(range.epoch)}"
        case .end(let reader, let partition, let offset):
            "{\"event\":\"end\",\"reader\":\(Self.quoted(reader)),\"partition\":\(partition),"
                + "\"offset\":\(offset)}"
        case .crash: "{\"event\":\"crash\"}"
        }
    }

    private static func quoted(_ name: String) -> String {
        var text = "\""
        for scalar in name.unicodeScalars {
            switch scalar {
            case "\"", "\\": text += "\\\(scalar)"
            case "\u{0}"..<" ":
                let digits = String(scalar.value, radix: 16)
                text += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
            default: text.unicodeScalars.append(scalar)
            }
        }
        return text + "\""
    }

    /// - Parameters:
    ///   - line: without its newline.
    ///   - number: the line's, counted from 1.
    package init(line: some Collection<UInt8>, number: Int) throws(HistoryError) {
        let object = try FlatObject(line, number: number)
        let event = try object.text("event")
        switch event {
        case "published":
            self = .published(
                Published(
                    producer: try object.text("producer"),
                    sequence: try object.number("sequence"),
                    partition: try object.number("partition"),
                    payload: try object.hash("payload"),
                    level: try object.level("level")
                )
            )
        case "confirmed":
            self = .confirmed(
                Confirmed(
                    producer: try object.text("producer"),
                    sequence: try object.number("sequence"),
                    partition: try object.number("partition"),
                    offset: object.has("offset") ? try object.number("offset") : nil,
                    level: try object.level("level")
                )
            )
        case "began":
            self = .began(
                reader: try object.text("reader"),
                partition: try object.number("partition"),
                offset: try object.number("offset")
            )
        case "delivered":
            self = .delivered(
                Delivered(
                    reader: try object.text("reader"),
                    order: try object.number("order"),
                    partition: try object.number("partition"),
                    offset: try object.number("offset"),
                    epoch: try object.number("epoch"),
                    payload: try object.hash("payload")
                )
            )
        case "lost":
            let (from, to) = (try object.number("from"), try object.number("to"))
            guard from < to else {
                throw HistoryError(line: number, reason: "a lost range from \(from) to \(to)")
            }
            self = .lost(
                Lost(
                    reader: try object.text("reader"),
                    order: try object.number("order"),
                    partition: try object.number("partition"),
                    offsets: from..<to,
                    epoch: try object.number("epoch")
                )
            )
        case "end":
            self = .end(
                reader: try object.text("reader"),
                partition: try object.number("partition"),
                offset: try object.number("offset")
            )
        case "crash": self = .crash
        default: throw HistoryError(line: number, reason: "no such event: \(event)")
        }
    }
}
