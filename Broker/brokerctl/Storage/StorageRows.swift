internal import WireProtocol

/// How storage is shown: the one place that names its columns.
enum StorageRows {
    static func info(_ facts: StorageFacts) -> Tables {
        Tables(
            tables: [
                ("shards", shards(facts.shards)), ("partitions", partitions(facts.partitions)),
                ("damages", damages(facts.partitions)),
            ],
            csvKey: "partitions"
        )
    }

    static func verification(_ facts: StorageFacts) -> Tables {
        Tables(
            tables: [
                ("partitions", partitions(facts.partitions)),
                ("damages", damages(facts.partitions)),
            ],
            csvKey: "damages"
        )
    }

    static func shards(_ shards: [ShardStorage]) -> Rows {
        var rows = Rows([
            .init("shard"), .init("check"), .init("partitions"), .init("segments"),
            .init("bytes", "SIZE"), .init("damaged_ranges", "DAMAGED"),
            .init("damaged_bytes", "QUARANTINED"), .init("checked_bytes", "CHECKED"),
            .init("check_bytes", "TO CHECK"), .init("bandwidth_bytes", "PER SECOND"),
            .init("passes"), .init("last_pass_at", "LAST PASS"),
        ])
        for shard in shards.sorted(by: { $0.shard < $1.shard }) {
            rows.append([
                .count(UInt64(shard.shard)), .text(state(shard.state)),
                .count(UInt64(shard.partitions)), .count(shard.segments), .bytes(shard.bytes),
                .count(shard.damagedRanges), .bytes(shard.damagedBytes),
                .bytes(shard.checkedBytes), .bytes(shard.checkBytes), .bytes(shard.bandwidth),
                .count(shard.passes), time(shard.lastPassAt),
            ])
        }
        return rows
    }

    static func partitions(_ partitions: [PartitionStorage]) -> Rows {
        var rows = Rows([
            .init("queue"), .init("partition"), .init("id"), .init("shard"), .init("segments"),
            .init("bytes", "SIZE"), .init("synced_bytes", "SYNCED"),
            .init("first_offset", "FIRST"), .init("end_offset", "END"),
            .init("oldest_at", "OLDEST"), .init("newest_at", "NEWEST"),
            .init("verified_at", "VERIFIED"), .init("verified_bytes", "READ"),
            .init("unread_segments", "UNREAD"), .init("damaged_ranges", "DAMAGED"),
        ])
        for partition in partitions {
            rows.append([
                .text(partition.queue), .count(UInt64(partition.index)),
                .count(UInt64(partition.partition)), .count(UInt64(partition.shard)),
                .count(UInt64(partition.segments)), .bytes(partition.bytes),
                .bytes(partition.syncedBytes), .count(partition.firstOffset),
                .count(partition.endOffset), time(partition.oldestAt), time(partition.newestAt),
                time(partition.verifiedAt), .bytes(partition.verifiedBytes),
                .count(UInt64(partition.unreadSegments)), .count(UInt64(partition.damages.count)),
            ])
        }
        return rows
    }

    static func damages(_ partitions: [PartitionStorage]) -> Rows {
        var rows = Rows([
            .init("queue"), .init("partition"), .init("id"), .init("file"),
            .init("first_byte", "FROM BYTE"), .init("end_byte", "TO BYTE"),
            .init("first_offset", "FROM OFFSET"), .init("end_offset", "TO OFFSET"),
        ])
        for partition in partitions {
            for damage in partition.damages {
                rows.append([
                    .text(partition.queue), .count(UInt64(partition.index)),
                    .count(UInt64(partition.partition)), .text(damage.file),
                    .count(damage.firstByte), .count(damage.endByte), .count(damage.firstOffset),
                    .count(damage.endOffset),
                ])
            }
        }
        return rows
    }

    private static func state(_ number: UInt8) -> String {
        switch ShardStorage.State(rawValue: number) {
        case .idle: "idle"
        case .checking: "checking"
        case .waiting: "waiting"
        case .stopped: "stopped"
        case nil: "state-\(number)"
        }
    }

    private static func time(_ nanoseconds: UInt64) -> Cell {
        nanoseconds == 0 ? .none : .time(nanoseconds)
    }
}
