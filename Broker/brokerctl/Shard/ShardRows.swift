internal import WireProtocol

/// How shards are shown: what each says of itself, under its own names.
enum ShardRows {
    private static let columns: [(fact: String, title: String)] = [
        ("stage", "STAGE"), ("partitions", "PARTITIONS"), ("connections", "CONNECTIONS"),
        ("records_published", "PUBLISHED"), ("records_delivered", "DELIVERED"),
        ("frames_forwarded", "FORWARDED"), ("journal_used_bytes", "JOURNAL"),
        ("addresses", "ADDRESSES"),
    ]

    static func list(_ shards: [ShardInfo]) -> Rows {
        var rows = Rows([.init("shard")] + columns.map { .init($0.fact, $0.title) })
        for shard in shards.sorted(by: { $0.shard < $1.shard }) {
            rows.append(
                [.count(UInt64(shard.shard))]
                    + columns.map { column in
                        shard.facts.first { $0.name == column.fact }
                            .map { cell($0.name, $0.value) } ?? .none
                    }
            )
        }
        return rows
    }

    static func report(_ shard: ShardInfo) -> Report {
        Report(
            facts: [(.init("shard"), .count(UInt64(shard.shard)))]
                + shard.facts.map {
                    (.init($0.name, HumanText.visible($0.name)), cell($0.name, $0.value))
                }
        )
    }

    private static func cell(_ name: String, _ value: String) -> Cell {
        guard let number = UInt64(value) else { return .text(value) }
        return name.hasSuffix("_bytes") ? .bytes(number) : .count(number)
    }
}
