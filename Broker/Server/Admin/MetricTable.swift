package import BrokerBasics
internal import BrokerCore
package import BrokerServer
internal import BrokerShard
internal import ShardRuntime

/// What one scrape is about: the shard's latest word, and what the server itself knows.
package struct MetricSource: Sendable {
    package var version: String
    package var published: ShardControl.Published
    package var isReady: Bool
    package var beatAgeSeconds: Double
    package var startTimeSeconds: Double

    package init(
        version: String,
        published: ShardControl.Published,
        isReady: Bool,
        beatAgeSeconds: Double,
        startTimeSeconds: Double
    ) {
        self.version = version
        self.published = published
        self.isReady = isReady
        self.beatAgeSeconds = beatAgeSeconds
        self.startTimeSeconds = startTimeSeconds
    }
}

/// One line of a metric: its labels and its value.
package struct Sample: Sendable {
    package var labels: [(name: String, value: String)]
    package var value: MetricValue

    package init(_ value: MetricValue, _ labels: [(name: String, value: String)] = []) {
        self.labels = labels
        self.value = value
    }
    init(_ value: UInt64, _ labels: [(name: String, value: String)] = []) {
        self.init(.whole(value), labels)
    }
    init(_ value: Int, _ labels: [(name: String, value: String)] = []) {
        self.init(.whole(UInt64(max(0, value))), labels)
    }
    init(seconds: Double, _ labels: [(name: String, value: String)] = []) {
        self.init(.real(seconds), labels)
    }
}

package enum MetricValue: Sendable {
    case whole(UInt64)
    case real(Double)
    case histogram(LatencyHistogram)
}

/// One metric: the renderer walks the table of them, and so will whatever documents them.
package struct Metric: Sendable {
    package enum Kind: String, Sendable {
        case counter
        case gauge
        case histogram
    }
    package enum Unit: String, Sendable {
        case none
        case bytes
        case seconds
        case records
    }
    package var name: String
    package var kind: Kind
    package var unit: Unit
    package var help: String
    package var samples: @Sendable (MetricSource) -> [Sample]

    package init(
        _ name: String,
        _ kind: Kind,
        _ unit: Unit,
        _ help: String,
        _ samples: @escaping @Sendable (MetricSource) -> [Sample]
    ) {
        self.name = "millrace_" + name
        self.kind = kind
        self.unit = unit
        self.help = help
        self.samples = samples
    }
}

package enum MetricTable {
    package static let metrics: [Metric] = process + shard + storage + partitions + groups

    // MARK: ways to take a sample

    private static func counter(
        _ name: String,
        _ help: String,
        unit: Metric.Unit = .none,
        _ value: @escaping @Sendable (ShardCounters) -> UInt64
    ) -> Metric {
        Metric(name, .counter, unit, help) { source in
            source.published.report.map { [Sample(value($0.counters))] } ?? []
        }
    }

    private static func report(
        _ name: String,
        _ kind: Metric.Kind,
        _ unit: Metric.Unit,
        _ help: String,
        _ value: @escaping @Sendable (ShardReport) -> Sample
    ) -> Metric {
        Metric(name, kind, unit, help) { source in
            source.published.report.map { [value($0)] } ?? []
        }
    }

    private static func partition(
        _ name: String,
        _ kind: Metric.Kind,
        _ unit: Metric.Unit,
        _ help: String,
        _ value: @escaping @Sendable (PartitionReport) -> UInt64
    ) -> Metric {
        Metric("queue_" + name, kind, unit, help) { source in
            (source.published.report?.partitions ?? []).map { partition in
                Sample(
                    value(partition),
                    [("queue", partition.queue), ("partition", "\(partition.index)")]
                )
            }
        }
    }

    private static func group(
        _ name: String,
        _ unit: Metric.Unit,
        _ help: String,
        _ value: @escaping @Sendable (CursorReport) -> Sample
    ) -> Metric {
        Metric("group_" + name, .gauge, unit, help) { source in
            (source.published.report?.cursors ?? []).map { cursor in
                var sample = value(cursor)
                sample.labels =
                    [
                        ("queue", cursor.queue), ("group", cursor.group),
                        ("partition", "\(cursor.index)"),
                    ] + sample.labels
                return sample
            }
        }
    }

    private static func seconds(_ nanoseconds: UInt64) -> Double { Double(nanoseconds) / 1e9 }

    // MARK: the table

    private static let process: [Metric] = [
        Metric("build_info", .gauge, .none, "1, with the version of the broker.") {
            [Sample(1, [("version", $0.version)])]
        },
        Metric(
            "loop_info",
            .gauge,
            .none,
            "1, with the loop that the shard runs on, and why."
        ) {
            $0.published.loop.map {
                [Sample(1, [("loop", $0.kind.rawValue), ("reason", $0.reason)])]
            } ?? []
        },
        Metric("ready", .gauge, .none, "1 when clients are served, else 0.") {
            [Sample($0.isReady ? 1 : 0)]
        },
        Metric("start_time_seconds", .gauge, .seconds, "When the process began, since 1970.") {
            [Sample(seconds: $0.startTimeSeconds)]
        },
        Metric("recovery_seconds", .gauge, .seconds, "How long the recovery at start took.") {
            $0.published.recoverySeconds.map { [Sample(seconds: $0)] } ?? []
        },
        Metric(
            "recovery_journal_bytes",
            .gauge,
            .bytes,
            "Bytes of the journal that recovery read."
        ) {
            [
                Sample(
                    $0.published.recovery?.journalBytesRead
                        ?? $0.published.progress.journalBytesRead
                )
            ]
        },
        Metric("recovery_records", .gauge, .records, "Records that recovery replayed.") {
            $0.published.recovery.map { [Sample($0.recordsReplayed)] } ?? []
        },
        Metric(
            "recovery_torn_bytes",
            .gauge,
            .bytes,
            "Bytes at the journal's end that recovery cut off: writes that a crash tore."
        ) {
            $0.published.recovery.map { [Sample($0.tornBytes)] } ?? []
        },
        Metric(
            "recovery_lost_ranges",
            .gauge,
            .none,
            "Ranges of memory records that recovery found lost."
        ) {
            $0.published.recovery.map { [Sample($0.lostRanges.count)] } ?? []
        },
    ]

    private static let shard: [Metric] = [
        Metric(
            "loop_beat_age_seconds",
            .gauge,
            .seconds,
            "Time since the shard's loop last ran; an idle loop runs every 0.1 s."
        ) {
            [Sample(seconds: $0.beatAgeSeconds)]
        },
        Metric("loop_busy_seconds_total", .counter, .seconds, "Time in cycles with work.") {
            [Sample(seconds: seconds($0.published.duty.busyNanoseconds))]
        },
        Metric("loop_idle_seconds_total", .counter, .seconds, "Time in cycles without work.") {
            [Sample(seconds: seconds($0.published.duty.idleNanoseconds))]
        },
        Metric("loop_cycles_total", .counter, .none, "Cycles of the loop.") {
            [Sample($0.published.duty.cycles)]
        },
        Metric("loop_busy_cycles_total", .counter, .none, "Cycles of the loop with work.") {
            [Sample($0.published.duty.busyCycles)]
        },
        Metric("loop_longest_cycle_seconds", .gauge, .seconds, "The longest cycle with work.") {
            [Sample(seconds: seconds($0.published.duty.longestNanoseconds))]
        },
        report("shard_epoch", .gauge, .none, "Grows with each start.") { Sample($0.term) },
        report("connections", .gauge, .none, "Client connections now.") { Sample($0.connections) },
        counter("connections_opened_total", "Client connections accepted.") {
            $0.connectionsOpened
        },
        counter("connections_closed_total", "Client connections closed.") { $0.connectionsClosed },
        counter("connections_refused_total", "Client connections above the limit.") {
            $0.connectionsRefused
        },
        counter(
            "connections_turned_away_total",
            "Client connections closed with an error that names the limit they met."
        ) { $0.connectionsTurnedAway },
        counter(
            "connections_timed_out_total",
            "Client connections closed for want of a HELLO, of a frame's rest, or of a reader."
        ) { $0.connectionsTimedOut },
        counter(
            "accept_failures_total",
            "Times that accepting found no descriptor or memory; it is tried again every 0.1 s."
        ) { $0.acceptFailures },
        report("subscriptions", .gauge, .none, "Subscriptions now.") { Sample($0.subscriptions) },
        counter("received_bytes_total", "Bytes received from clients.", unit: .bytes) {
            $0.receivedBytes
        },
        counter("sent_bytes_total", "Bytes sent to clients.", unit: .bytes) { $0.sentBytes },
        counter("frames_total", "Frames received.") { $0.frames },
        counter("bad_frames_total", "Frames that closed their connection.") { $0.badFrames },
        counter("refusals_total", "Requests answered with an error.") { $0.refusals },
        counter("parks_total", "Times that work waited for room or for a later cycle.") {
            $0.parks
        },
        counter("published_records_total", "Records accepted.", unit: .records) {
            $0.publishedRecords
        },
        counter("published_bytes_total", "Bytes of batches accepted.", unit: .bytes) {
            $0.publishedBytes
        },
        counter("confirmed_records_total", "Records confirmed.", unit: .records) {
            $0.confirmedRecords
        },
        counter(
            "downgraded_records_total",
            "Records that were confirmed below their queue's level, as their producer asked."
        ) {
            $0.downgradedRecords
        },
        counter("duplicate_batches_total", "Batches that a retry sent again; stored once.") {
            $0.duplicateBatches
        },
        counter("delivered_records_total", "Records delivered.", unit: .records) {
            $0.deliveredRecords
        },
        counter("delivered_bytes_total", "Bytes delivered.", unit: .bytes) { $0.deliveredBytes },
        counter("acks_total", "Acks taken.") { $0.acks },
    ]

    private static let storage: [Metric] = [
        Metric(
            "storage_failed",
            .gauge,
            .none,
            "1 when a write or sync failed: nothing more is confirmed until a restart."
        ) {
            [
                Sample(
                    $0.published.failure != nil
                        || $0.published.report?.counters.storageFailure != nil ? 1 : 0
                )
            ]
        },
        report(
            "journal_write_seconds",
            .histogram,
            .seconds,
            "Latency of journal writes; a synced write includes its sync."
        ) { Sample(.histogram($0.journalLatency)) },
        report(
            "journal_wait_seconds",
            .gauge,
            .seconds,
            "For how long the oldest journal write or sync is under way; 0 when none is."
        ) { Sample(seconds: seconds($0.journalWaitNanoseconds)) },
        report("journal_writes_total", .counter, .none, "Journal writes.") {
            Sample($0.journalWrites)
        },
        report("journal_written_bytes_total", .counter, .bytes, "Bytes written to the journal.") {
            Sample($0.journalBytesWritten)
        },
        report("journal_used_bytes", .gauge, .bytes, "Bytes of the journal that are still needed.")
        {
            Sample($0.journalUsedBytes)
        },
        report("journal_capacity_bytes", .gauge, .bytes, "The journal's fixed size.") {
            Sample($0.journalCapacityBytes)
        },
        Metric(
            "disk_used_bytes",
            .gauge,
            .bytes,
            "What is used of the data directory's file system."
        ) { source in
            source.published.report?.disk.map { [Sample($0.usedBytes)] } ?? []
        },
        Metric(
            "disk_total_bytes",
            .gauge,
            .bytes,
            "The size of that file system, without what only root may use."
        ) { source in
            source.published.report?.disk.map { [Sample($0.totalBytes)] } ?? []
        },
        report(
            "disk_level",
            .gauge,
            .none,
            "0 all is served, 1 warned, 2 new records are refused, 3 new queues and producers too."
        ) { Sample(Int($0.diskLevel.rawValue)) },
        report(
            "disk_room_awaited",
            .gauge,
            .none,
            "1 while a write to a segment or checkpoint waits for room on the disk."
        ) { Sample($0.awaitsSpace ? 1 : 0) },
        counter("disk_full_total", "Writes to segments and checkpoints that found no room.") {
            $0.heldOperations
        },
        counter(
            "descriptors_awaited_total",
            "Opens of segments and checkpoints that found no descriptor; tried again twice a second."
        ) { $0.awaitedDescriptors },
        counter("removed_records_total", "Records removed by retention and purges.", unit: .records)
        { $0.removedRecords },
        counter("removed_bytes_total", "Bytes of those records.", unit: .bytes) {
            $0.removedBytes
        },
        counter("removed_segments_total", "Segment files removed by retention and purges.") {
            $0.removedSegments
        },
        counter(
            "skipped_records_total",
            "Offsets that subscriptions stood at or before when they were removed.",
            unit: .records
        ) { $0.skippedRecords },
        report("tail_used_bytes", .gauge, .bytes, "Memory that holds the newest records.") {
            Sample($0.tailUsedBytes)
        },
        report("tail_limit_bytes", .gauge, .bytes, "The bound of that memory.") {
            Sample($0.tailLimitBytes)
        },
        counter("scrubbed_bytes_total", "Bytes of segments that were checked.", unit: .bytes) {
            $0.scrubbedBytes
        },
        counter("scrub_errors_total", "Segments that the check could not read.") {
            $0.scrubErrors
        },
        counter("partition_moves_total", "Partitions that went to another shard.") {
            $0.partitionMoves
        },
        report(
            "partition_move_pause_seconds_total", .counter, .seconds,
            "Time for which publishes to partitions that moved were held back."
        ) {
            Sample(seconds: seconds($0.counters.movePauseNanoseconds))
        },
        report(
            "partition_move_pause_seconds_max", .gauge, .seconds,
            "The longest time for which publishes to a partition that moved were held back."
        ) {
            Sample(seconds: seconds($0.counters.movePauseNanosecondsMax))
        },
        counter("damaged_ranges_total", "Ranges of segments that were found damaged.") {
            $0.damagedRanges
        },
        report("damaged_ranges_known", .gauge, .none, "Damaged ranges of segments that are kept.") {
            Sample($0.damagedRanges)
        },
        report(
            "scrub_progress_percent", .gauge, .none, "Of the pass that goes on; 100 between two."
        ) {
            Sample($0.scrubPercent)
        },
        report(
            "scrub_last_pass_seconds", .gauge, .seconds,
            "When the last pass ended, in seconds since 1970; 0 when none has."
        ) {
            Sample($0.scrubLastPass / 1_000_000_000)
        },
        report(
            "cold_used_bytes", .gauge, .bytes,
            "Memory that holds old records, read from segments."
        ) {
            Sample($0.coldUsedBytes)
        },
        counter("checkpoints_total", "Checkpoints written.") { $0.checkpoints },
        counter("checkpoint_written_bytes_total", "Bytes of checkpoints written.", unit: .bytes) {
            $0.checkpointBytes
        },
        counter("chunks_written_total", "Chunks written to segments.") { $0.chunksWritten },
        counter("chunk_written_bytes_total", "Bytes written to segments.", unit: .bytes) {
            $0.chunkBytesWritten
        },
        counter(
            "carried_batches_total", "Batches of quiet partitions copied forward in the journal."
        ) {
            $0.carriedBatches
        },
        counter(
            "chunks_synced_total", "Chunks of slow partitions written straight to stable storage."
        ) {
            $0.syncedChunks
        },
        counter(
            "chunks_awaited_total",
            "Chunks that a checkpoint had to wait for: the disk is late, or the shard stops."
        ) {
            $0.awaitedChunks
        },
        counter("cold_reads_total", "Reads of segments for consumers behind the tail.") {
            $0.coldReads
        },
        counter(
            "cold_read_bytes_total", "Bytes of segments that were read for them.", unit: .bytes
        ) {
            $0.coldReadBytes
        },
        counter("evictions_total", "Chunks dropped from the tail's memory.") { $0.evictedChunks },
        counter("damaged_chunks_total", "Chunks whose checksum did not hold when read.") {
            $0.damagedChunks
        },
    ]

    private static let partitions: [Metric] = [
        Metric("queue_info", .gauge, .none, "1, with what the queue is.") { source in
            (source.published.report?.partitions ?? []).filter { $0.index == 0 }.map {
                Sample(1, [("queue", $0.queue), ("durability", $0.level)])
            }
        },
        partition("records", .gauge, .records, "Records from the start to the committed offset.") {
            $0.committedOffset > $0.startOffset ? $0.committedOffset - $0.startOffset : 0
        },
        partition("bytes", .gauge, .bytes, "Bytes of stored batches.") { $0.bytes },
        partition("start_offset", .gauge, .none, "Offset of the first record.") { $0.startOffset },
        partition(
            "committed_offset",
            .gauge,
            .none,
            "One above the last record that is as durable as its queue promises."
        ) { $0.committedOffset },
        partition("end_offset", .gauge, .none, "One above the last record.") { $0.endOffset },
        partition("published_records_total", .counter, .records, "Records accepted.") {
            $0.publishedRecords
        },
        partition("published_bytes_total", .counter, .bytes, "Bytes of batches accepted.") {
            $0.publishedBytes
        },
        partition("delivered_records_total", .counter, .records, "Records delivered.") {
            $0.deliveredRecords
        },
        partition("delivered_bytes_total", .counter, .bytes, "Bytes delivered.") {
            $0.deliveredBytes
        },
        partition("lost_records", .gauge, .records, "Offsets in lost ranges.") { $0.lostRecords },
        partition("segments", .gauge, .none, "Segment files.") { UInt64($0.segments) },
        partition("retention_bytes", .gauge, .bytes, "What is kept at least; 0: no limit.") {
            $0.retentionBytes
        },
        Metric("queue_retention_seconds", .gauge, .seconds, "Age that is kept; 0: no limit.") {
            source in
            (source.published.report?.partitions ?? []).map {
                Sample(
                    seconds: Double($0.retentionMilliseconds) / 1000,
                    [("queue", $0.queue), ("partition", "\($0.index)")]
                )
            }
        },
        partition("retention_records", .gauge, .records, "What is kept at least; 0: no limit.") {
            $0.retentionRecords
        },
        partition("epoch", .gauge, .none, "Raised when records were lost.") { UInt64($0.epoch) },
    ]

    private static let groups: [Metric] = [
        group("lag_records", .records, "Committed records that the group has not acked.") {
            Sample($0.lagRecords)
        },
        group("lag_bytes", .bytes, "Bytes of those records.") { Sample($0.lagBytes) },
        group("lag_seconds", .seconds, "Age of the oldest of those records.") {
            Sample(seconds: $0.lagSeconds)
        },
        group(
            "skipped_records",
            .records,
            "Offsets that were removed before the group had acked them."
        ) { Sample($0.skippedRecords) },
        group("ack_floor_offset", .none, "The first offset that is not acked.") {
            Sample($0.ackFloor)
        },
        group("members", .none, "Members of the group.") { Sample($0.members) },
        group("state_seconds", .seconds, "How long the partition's dispatcher is in its state.") {
            Sample(seconds: $0.stateSeconds, [("state", $0.state)])
        },
    ]
}
