internal import WireProtocol

/// How queues are shown: the one place that names their columns.
enum QueueRows {
    static func level(_ number: UInt8) -> String {
        DurabilityLevel(rawValue: number)?.name ?? "level-\(number)"
    }
    static func labels(_ labels: [Pair]) -> Cell { .pairs(labels.map { ($0.name, $0.value) }) }

    static func facts(_ queue: QueueInfo) -> [(column: Rows.Column, cell: Cell)] {
        [
            (.init("name"), .text(queue.name)),
            (.init("id"), .count(UInt64(queue.id))),
            (.init("partition_count", "PARTITIONS"), .count(UInt64(queue.partitionCount))),
            (.init("durability"), .text(level(queue.level))),
            (.init("records"), .count(queue.records)),
            (.init("bytes", "SIZE"), .bytes(queue.bytes)),
            (.init("created_at", "CREATED"), .time(queue.createdAt)),
            (.init("labels"), labels(queue.labels)),
            (.init("retention_bytes", "KEEP SIZE"), limit(queue.retention.bytes) { .bytes($0) }),
            (
                .init("retention_nanoseconds", "KEEP AGE"),
                limit(queue.retention.ageMilliseconds) { milliseconds in
                    let (age, overflow) = milliseconds.multipliedReportingOverflow(by: 1_000_000)
                    return .duration(overflow ? .max : age)
                }
            ),
            (
                .init("retention_records", "KEEP RECORDS"),
                limit(queue.retention.records) { .count($0) }
            ),
        ]
    }

    /// Of each partition; nothing where there is no limit.
    private static func limit(_ value: UInt64, _ cell: (UInt64) -> Cell) -> Cell {
        value == 0 ? .none : cell(value)
    }

    static func list(_ queues: [QueueInfo]) -> Rows {
        let template = QueueInfo(
            id: 0,
            name: "",
            level: 0,
            partitionCount: 0,
            createdAt: 0,
            labels: [],
            records: 0,
            bytes: 0,
            partitions: []
        )
        var rows = Rows(facts(template).map(\.column))
        for queue in queues { rows.append(facts(queue).map(\.cell)) }
        return rows
    }

    static func partitions(_ queue: QueueInfo) -> Rows {
        var rows = Rows([
            .init("partition"), .init("id"), .init("shard"), .init("epoch"),
            .init("start_offset", "START"), .init("committed_offset", "COMMITTED"),
            .init("end_offset", "END"), .init("records"), .init("bytes", "SIZE"),
            .init("segments"), .init("segment_offset", "IN SEGMENTS"),
            .init("lost_records", "LOST"),
        ])
        for partition in queue.partitions.sorted(by: { $0.index < $1.index }) {
            rows.append([
                .count(UInt64(partition.index)), .count(UInt64(partition.id)),
                .count(UInt64(partition.shard)), .count(UInt64(partition.epoch)),
                .count(partition.startOffset), .count(partition.committedOffset),
                .count(partition.endOffset), .count(partition.records), .bytes(partition.bytes),
                .count(UInt64(partition.segments)), .count(partition.segmentOffset),
                .count(partition.lostRecords),
            ])
        }
        return rows
    }

    static func report(_ moved: QueueMoveReply, named name: String) -> Report {
        Report(facts: [
            (.init("partition"), .text(name)),
            (.init("id"), .count(UInt64(moved.partition))),
            (.init("from_shard", "FROM"), .count(UInt64(moved.from))),
            (.init("shard", "SHARD"), .count(UInt64(moved.to))),
            (.init("pause_nanoseconds", "HELD BACK"), .duration(moved.pauseNanoseconds)),
        ])
    }

    static func report(_ queue: QueueInfo) -> Report {
        Report(facts: facts(queue), rowsKey: "partitions", rows: partitions(queue))
    }
}
