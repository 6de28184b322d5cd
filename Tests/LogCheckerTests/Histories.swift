import LogChecker
import Testing

/// A history with a name, and the faults that are in it.
struct NamedHistory: Sendable, CustomTestStringConvertible {
    var name: String
    var faults: [LogFault.Kind: Int] = [:]
    var events: [LogEvent]

    var testDescription: String { name }

    init(_ name: String, _ kind: LogFault.Kind, times: Int = 1, _ events: [LogEvent]) {
        self.init(name, events)
        faults = [kind: times]
    }

    init(_ name: String, _ events: [LogEvent]) {
        self.name = name
        // What a reader got is numbered in the order in which it stands here.
        var orders: [String: UInt64] = [:]
        self.events = events.map { event in
            switch event {
            case .delivered(var delivered):
                delivered.order = orders[delivered.reader, default: 0]
                orders[delivered.reader, default: 0] += 1
                return .delivered(delivered)
            case .lost(var lost):
                lost.order = orders[lost.reader, default: 0]
                orders[lost.reader, default: 0] += 1
                return .lost(lost)
            default: return event
            }
        }
    }
}

/// Each record of producer `a` has its sequence for its payload; those of `b` begin at 1,000.
private func payload(_ producer: String, _ sequence: UInt64) -> UInt64 {
    (producer == "a" ? 0 : 1_000) + sequence
}

func published(
    _ sequence: UInt64,
    by producer: String = "a",
    partition: UInt64 = 0,
    _ level: LogEvent.Level = .synced
) -> LogEvent {
    .published(
        .init(
            producer: producer,
            sequence: sequence,
            partition: partition,
            payload: payload(producer, sequence),
            level: level
        )
    )
}

func confirmed(
    _ sequence: UInt64,
    at offset: UInt64?,
    by producer: String = "a",
    partition: UInt64 = 0,
    _ level: LogEvent.Level = .synced
) -> LogEvent {
    .confirmed(
        .init(
            producer: producer,
            sequence: sequence,
            partition: partition,
            offset: offset,
            level: level
        )
    )
}

/// Reader `r` got a record of `producer`.
func got(
    _ sequence: UInt64,
    at offset: UInt64,
    by producer: String = "a",
    reader: String = "r",
    partition: UInt64 = 0,
    epoch: UInt64 = 1
) -> LogEvent {
    .delivered(
        .init(
            reader: reader,
            order: 0,
            partition: partition,
            offset: offset,
            epoch: epoch,
            payload: payload(producer, sequence)
        )
    )
}

func lost(_ offsets: Range<UInt64>, reader: String = "r", epoch: UInt64 = 2) -> LogEvent {
    .lost(.init(reader: reader, order: 0, partition: 0, offsets: offsets, epoch: epoch))
}

func began(_ offset: UInt64 = 0, reader: String = "r") -> LogEvent {
    .began(reader: reader, partition: 0, offset: offset)
}

func end(_ offset: UInt64, reader: String = "r") -> LogEvent {
    .end(reader: reader, partition: 0, offset: offset)
}

enum Histories {
    static let good: [NamedHistory] = [
        NamedHistory("nothing happened", []),
        NamedHistory(
            "published, confirmed and read",
            [
                published(0), published(1), confirmed(0, at: 0), confirmed(1, at: 1), began(),
                got(0, at: 0), got(1, at: 1), end(2),
            ]
        ),
        NamedHistory(
            "two readers, and what they saw stands before what was done",
            [
                began(), got(0, at: 0), began(reader: "s"), got(0, at: 0, reader: "s"), end(1),
                end(1, reader: "s"), confirmed(0, at: 0), published(0),
            ]
        ),
        NamedHistory(
            "a crash between confirm and delivery",
            [
                published(0), confirmed(0, at: 0), .crash, published(1), confirmed(1, at: 1),
                began(), got(0, at: 0), got(1, at: 1, epoch: 2), end(2),
            ]
        ),
        NamedHistory(
            "never confirmed, and there",
            [published(0), .crash, began(), got(0, at: 0), end(1)]
        ),
        NamedHistory("never confirmed, and not there", [published(0), .crash, began(), end(0)]),
        NamedHistory(
            "a duplicate whose place was forgotten",
            [
                published(0), published(1), confirmed(0, at: nil), confirmed(1, at: 1), began(),
                got(0, at: 0), got(1, at: 1), end(2),
            ]
        ),
        NamedHistory(
            "lost at memory in a crash, and said so",
            [
                published(0, .memory), published(1, .memory), confirmed(0, at: 0, .memory),
                confirmed(1, at: 1, .memory), .crash, published(2, .memory),
                confirmed(2, at: 50, .memory), began(), got(0, at: 0), lost(1..<50),
                got(2, at: 50, epoch: 2), end(51),
            ]
        ),
        NamedHistory(
            "seen at memory, lost in a crash, sent again",
            [
                published(0, .memory), published(1, .memory), began(), got(0, at: 0),
                got(1, at: 1), .crash, lost(2..<8), got(0, at: 8, epoch: 2),
                got(1, at: 9, epoch: 2), confirmed(0, at: 8, .memory),
                confirmed(1, at: 9, .memory), began(reader: "s"), lost(0..<8, reader: "s"),
                got(0, at: 8, reader: "s", epoch: 2), got(1, at: 9, reader: "s", epoch: 2),
                end(10, reader: "s"),
            ]
        ),
        NamedHistory(
            "a reader that begins in the middle",
            [
                published(0), published(1), confirmed(0, at: 0), confirmed(1, at: 1),
                got(1, at: 1),
            ]
        ),
        NamedHistory(
            "a reader that goes back, as a group does to its cursor",
            [
                published(0), published(1), published(2), began(), got(0, at: 0), got(1, at: 1),
                .crash, began(1), got(1, at: 1), got(2, at: 2, epoch: 2), end(3),
            ]
        ),
        NamedHistory(
            "two producers in one partition, and one of them in two",
            [
                published(0), published(0, by: "b"), published(1, partition: 1), published(2),
                began(), got(0, at: 0, by: "b"), got(0, at: 1), got(1, at: 0, partition: 1),
                got(2, at: 2), end(3),
            ]
        ),
    ]

    static let bad: [NamedHistory] = [
        // Lost.
        NamedHistory(
            "a confirmed record is passed over",
            .lost,
            [
                published(0), published(1), published(2), confirmed(0, at: 0),
                confirmed(1, at: 1), confirmed(2, at: 2), began(), got(0, at: 0),
                got(2, at: 2), end(3),
            ]
        ),
        NamedHistory(
            "the first confirmed record is passed over",
            .lost,
            [
                published(0), published(1), confirmed(0, at: 0), confirmed(1, at: 1), began(),
                got(1, at: 1), end(2),
            ]
        ),
        NamedHistory(
            "the log ends before a confirmed record",
            .lost,
            [
                published(0), published(1), confirmed(0, at: 0), confirmed(1, at: 1), .crash,
                began(), got(0, at: 0), end(1),
            ]
        ),
        NamedHistory(
            "the log is empty",
            .lost,
            times: 2,
            [
                published(0), published(1), confirmed(0, at: 0), confirmed(1, at: 1), .crash,
                began(), end(0),
            ]
        ),
        NamedHistory(
            "confirmed at memory, gone without a word",
            .lost,
            [
                published(0, .memory), published(1, .memory), confirmed(0, at: 0, .memory),
                confirmed(1, at: 1, .memory), .crash, began(), got(1, at: 1), end(2),
            ]
        ),
        NamedHistory(
            "a confirmed record at synced is said to be lost",
            .lost,
            [
                published(0), published(1), confirmed(0, at: 0), confirmed(1, at: 1), .crash,
                began(), got(0, at: 0), lost(1..<9), end(9),
            ]
        ),
        NamedHistory(
            "offsets at synced are said to be lost that nobody had",
            .lost,
            [
                published(0), confirmed(0, at: 0), .crash, began(), got(0, at: 0), lost(1..<9),
                end(9),
            ]
        ),
        NamedHistory(
            "a range at memory is said to be lost, without a crash",
            .lost,
            [
                published(0, .memory), confirmed(0, at: 0, .memory), began(), lost(0..<1), end(1),
            ]
        ),
        NamedHistory(
            "confirmed as stored before, and nowhere",
            .lost,
            [
                published(0), published(1), confirmed(0, at: nil), confirmed(1, at: 0), began(),
                got(1, at: 0), end(1),
            ]
        ),
        NamedHistory(
            "one reader of two gets a confirmed record",
            .lost,
            [
                published(0), published(1), confirmed(0, at: 0), confirmed(1, at: 1), began(),
                got(0, at: 0), got(1, at: 1), end(2), began(reader: "s"),
                got(1, at: 1, reader: "s"), end(2, reader: "s"),
            ]
        ),
        // Phantom.
        NamedHistory(
            "delivered and never published",
            .phantom,
            [published(0), confirmed(0, at: 0), began(), got(0, at: 0), got(7, at: 1), end(2)]
        ),
        NamedHistory(
            "confirmed and never published",
            .phantom,
            [published(0), confirmed(0, at: 0), confirmed(7, at: 1), began(), got(0, at: 0)]
        ),
        NamedHistory(
            "delivered in another partition than it was published to",
            .phantom,
            [published(0, partition: 1), began(), got(0, at: 0), end(1)]
        ),
        NamedHistory(
            "delivered, and gone after a crash",
            .phantom,
            [
                published(0), published(1), published(2), got(0, at: 0), got(1, at: 1), .crash,
                began(reader: "s"), got(0, at: 0, reader: "s"),
                got(2, at: 2, reader: "s", epoch: 2), end(3, reader: "s"),
            ]
        ),
        NamedHistory(
            "delivered behind what was to be the end",
            .phantom,
            [published(0), published(1), began(), got(0, at: 0), got(1, at: 1), end(1)]
        ),
        NamedHistory(
            "delivered from a range that was said to be lost",
            .phantom,
            [
                published(0, .memory), published(1, .memory), .crash, began(), got(0, at: 0),
                lost(1..<9), got(1, at: 3, epoch: 2), end(9),
            ]
        ),
        // Duplicate.
        NamedHistory(
            "one record at two offsets",
            .duplicate,
            [
                published(0), published(1), confirmed(0, at: 0), began(), got(0, at: 0),
                got(1, at: 1), got(0, at: 2), end(3),
            ]
        ),
        NamedHistory(
            "one offset delivered twice",
            .duplicate,
            [
                published(0), published(1), began(), got(0, at: 0), got(0, at: 0), got(1, at: 1),
                end(2),
            ]
        ),
        NamedHistory(
            "delivered again after a reconnect that asked for what follows",
            .duplicate,
            times: 2,
            [
                published(0), published(1), published(2), began(), got(0, at: 0), got(1, at: 1),
                .crash, began(2), got(0, at: 0), got(1, at: 1), got(2, at: 2, epoch: 2), end(3),
            ]
        ),
        NamedHistory(
            "one offset confirmed to two records",
            .duplicate,
            [
                published(0), published(0, by: "b"), confirmed(0, at: 0),
                confirmed(0, at: 0, by: "b"), began(), got(0, at: 0), got(0, at: 1, by: "b"),
                end(2),
            ]
        ),
        NamedHistory(
            "one record confirmed at two offsets",
            .duplicate,
            [
                published(0), published(1), confirmed(0, at: 0), confirmed(0, at: 1), began(),
                got(0, at: 0), got(1, at: 1), end(2),
            ]
        ),
        NamedHistory(
            "said to be lost after it was delivered",
            .duplicate,
            [
                published(0, .memory), published(1, .memory), .crash, began(), got(0, at: 0),
                got(1, at: 1), lost(1..<9), end(9),
            ]
        ),
        // Reordered.
        NamedHistory(
            "a producer's records change places",
            .reordered,
            [
                published(0), published(1), published(2), began(), got(0, at: 0), got(2, at: 1),
                got(1, at: 2), end(3),
            ]
        ),
        NamedHistory(
            "a higher offset comes first",
            .reordered,
            [
                published(0), published(1), published(2), confirmed(1, at: 1), began(),
                got(0, at: 0), got(2, at: 2), got(1, at: 1), end(3),
            ]
        ),
        NamedHistory(
            "an epoch goes back",
            .reordered,
            [
                published(0), published(1), .crash, began(), got(0, at: 0, epoch: 2),
                got(1, at: 1, epoch: 1), end(2),
            ]
        ),
        NamedHistory(
            "confirms whose offsets fall",
            .reordered,
            [published(0), published(1), confirmed(0, at: 1), confirmed(1, at: 0)]
        ),
        // Changed.
        NamedHistory(
            "other bytes at a confirmed offset",
            .changed,
            [
                published(0), published(1), confirmed(0, at: 0), confirmed(1, at: 1), began(),
                got(0, at: 0), got(99, at: 1), end(2),
            ]
        ),
        NamedHistory(
            "another record at a confirmed offset",
            .changed,
            [
                published(0), published(0, by: "b"), confirmed(0, at: 0), began(),
                got(0, at: 0, by: "b"), got(0, at: 1), end(2),
            ]
        ),
        NamedHistory(
            "two readers get two records at one offset",
            .changed,
            [
                published(0), published(1), got(0, at: 0), .crash, began(reader: "s"),
                got(1, at: 0, reader: "s"), end(1, reader: "s"),
            ]
        ),
        NamedHistory(
            "one record has two epochs",
            .changed,
            [
                published(0), got(0, at: 0), .crash, began(reader: "s"),
                got(0, at: 0, reader: "s", epoch: 2), end(1, reader: "s"),
            ]
        ),
        NamedHistory(
            "confirmed at a lower level than was asked for",
            .changed,
            [published(0), confirmed(0, at: 0, .memory), began(), got(0, at: 0), end(1)]
        ),
        NamedHistory(
            "confirmed in another partition",
            .changed,
            [published(0), confirmed(0, at: 0, partition: 1), began(), got(0, at: 0), end(1)]
        ),
        // Skipped.
        NamedHistory(
            "offsets that are not accounted for",
            .skipped,
            [
                published(0), published(1), confirmed(0, at: 0), began(), got(0, at: 0),
                got(1, at: 5), end(6),
            ]
        ),
        NamedHistory(
            "offsets before the end that are not accounted for",
            .skipped,
            [published(0), confirmed(0, at: 0), began(), got(0, at: 0), end(4)]
        ),
        NamedHistory(
            "offsets at the beginning that are not accounted for",
            .skipped,
            [published(0), began(), got(0, at: 3), end(4)]
        ),
        NamedHistory(
            "a lost range that is too short",
            .skipped,
            [
                published(0, .memory), published(1, .memory), confirmed(0, at: 0, .memory),
                .crash, began(), got(0, at: 0), lost(1..<5), got(1, at: 8, epoch: 2), end(9),
            ]
        ),
        NamedHistory(
            "a gap of half of all offsets",
            .skipped,
            [published(0), began(), got(0, at: 1 << 63), end(1 << 63 + 1)]
        ),
    ]
}
