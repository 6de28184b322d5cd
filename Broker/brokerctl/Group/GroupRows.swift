internal import WireProtocol

/// How groups are shown: the one place that names their columns.
enum GroupRows {
    static func facts(_ group: GroupInfo) -> [(column: Rows.Column, cell: Cell)] {
        [
            (.init("queue"), .text(group.queue)),
            (.init("name", "GROUP"), .text(group.name)),
            (.init("id"), .count(UInt64(group.id))),
            (.init("mode"), .text(group.mode)),
            (.init("generation"), .count(group.generation)),
            (.init("members"), .list(group.members)),
            (.init("lag_records", "LAG"), .count(group.lagRecords)),
        ]
    }

    static func list(_ groups: [GroupInfo]) -> Rows {
        let template = GroupInfo(
            id: 0,
            queue: "",
            name: "",
            mode: "",
            generation: 0,
            members: [],
            lagRecords: 0,
            cursors: []
        )
        var rows = Rows(facts(template).map(\.column))
        for group in groups { rows.append(facts(group).map(\.cell)) }
        return rows
    }

    static func cursors(_ group: GroupInfo) -> Rows {
        var rows = Rows([
            .init("partition"), .init("id"), .init("ack_floor", "ACK FLOOR"),
            .init("high_watermark", "HIGH WATERMARK"), .init("lag_records", "LAG"),
            .init("lag_bytes", "LAG SIZE"), .init("lag_nanoseconds", "LAG AGE"),
            .init("member"), .init("state"), .init("state_nanoseconds", "SINCE"),
            .init("skipped_records", "SKIPPED"),
        ])
        var cursors = group.cursors.enumerated().map { place, cursor in
            (cursor, place < group.skippedRecords.count ? group.skippedRecords[place] : 0)
        }
        cursors.sort { $0.0.index < $1.0.index }
        for (cursor, skipped) in cursors {
            rows.append([
                .count(UInt64(cursor.index)), .count(UInt64(cursor.partition)),
                .count(cursor.ackFloor), .count(cursor.highWatermark), .count(cursor.lagRecords),
                .bytes(cursor.lagBytes), duration(milliseconds: cursor.lagMilliseconds),
                cursor.member.isEmpty ? .none : .text(cursor.member), .text(cursor.state),
                duration(milliseconds: cursor.stateMilliseconds), .count(skipped),
            ])
        }
        return rows
    }

    /// Saturates: the number is the server's.
    private static func duration(milliseconds: UInt64) -> Cell {
        let (nanoseconds, overflow) = milliseconds.multipliedReportingOverflow(by: 1_000_000)
        return .duration(overflow ? .max : nanoseconds)
    }

    static func report(_ group: GroupInfo) -> Report {
        Report(facts: facts(group), rowsKey: "partitions", rows: cursors(group))
    }
}
