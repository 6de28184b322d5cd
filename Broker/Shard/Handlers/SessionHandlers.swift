internal import BrokerBasics
internal import BrokerCore
internal import LogStorage
package import WireProtocol

extension ShardMachine {
    /// HELLO: agrees on a version and a frame size, and says who the server is.
    mutating func hello(_ request: Request) -> Outcome {
        guard let hello = try? HelloRequest(body: request.body) else {
            return refuseHello(request, .badRequest, "HELLO's body can't be read")
        }
        let connection = connections[request.connection]
        guard connection.pointee.state == .fresh else {
            return refuse(request, .badRequest, "HELLO was said before on this connection")
        }
        guard hello.versionMin <= FrameHeader.version, hello.versionMax >= FrameHeader.version
        else {
            return refuseHello(
                request, .unsupportedVersion,
                "this server speaks version \(FrameHeader.version); the client offers "
                    + "\(hello.versionMin) to \(hello.versionMax)")
        }
        guard hello.frameBytesMax >= 4096 else {
            return refuseHello(
                request, .badRequest,
                "frames of \(hello.frameBytesMax) bytes are too small; 4096 is the least")
        }
        connection.pointee.state = .ready
        connection.pointee.clientName = String(hello.clientName.prefix(255))
        connection.pointee.frameBytesMax = min(hello.frameBytesMax, limits.frameBytesMax)
        connection.pointee.inputFrameBytesMax = connection.pointee.frameBytesMax
        return reply(
            request,
            HelloReply(
                version: FrameHeader.version, features: 0,
                frameBytesMax: connection.pointee.frameBytesMax, serverID: identity.serverID,
                serverEpoch: term, shards: addresses))
    }

    /// Without a HELLO nothing follows: the connection closes.
    private mutating func refuseHello(
        _ request: Request, _ status: StatusCode, _ message: String
    ) -> Outcome {
        let outcome = refuse(request, status, message)
        guard connections[request.connection].pointee.state == .fresh else { return outcome }
        drain(request.connection)
        return .closed
    }

    mutating func producerOpen(_ request: Request) -> Outcome {
        guard let open = try? ProducerOpenRequest(body: request.body) else {
            return refuse(request, .badRequest, "the body of producer-open can't be read")
        }
        guard open.name.isEmpty || Queue.isValid(name: open.name) else {
            return refuse(request, .nameInvalid, "\"\(open.name)\" is no name for a producer")
        }
        var producer = Producer(
            id: state.nextProducer, epoch: 1, name: open.name, lastSeen: now.wall.nanoseconds)
        if let known = state.producers.producersByName[open.name],
            let before = state.producers.producers[known], !open.name.isEmpty
        {
            guard before.epoch < .max else {
                return refuse(
                    request, .limitReached, "producer \(open.name) has used up its epochs")
            }
            producer.id = before.id
            producer.epoch = before.epoch + 1
        }
        let known = state.producers.producers.count
        guard known < limits.producersMax || producer.epoch > 1 else {
            return refuse(
                request, .limitReached,
                "there are \(known) producers, and --producers-max is \(limits.producersMax)")
        }
        guard change(.producerOpened(producer)) else { return .park }
        let opened = ProducerOpenReply(
            producerID: producer.id, epoch: producer.epoch,
            expirySeconds: limits.producerExpirySeconds)
        guard peers.isAlone else {
            return broadcast(request, .producerOpened(producer), .done(opened.encoded))
        }
        return reply(request, opened)
    }

    mutating func serverDescribe(_ request: Request) -> Outcome {
        reply(request, ServerDescription(facts: facts))
    }

    /// This shard's own part of the list.
    mutating func shardList(_ request: Request) -> Outcome {
        reply(request, ShardListReply(shards: [ShardInfo(shard: peers.own, facts: shardFacts)]))
    }

    /// What `shard info` shows, in a stable order.
    private var shardFacts: [Pair] {
        func pair(_ name: String, _ value: some CustomStringConvertible) -> Pair {
            Pair(name: name, value: value.description)
        }
        let reached = addresses.filter { $0.shard == peers.own }.map(\.address)
        return [
            pair("stage", "\(stage)"),
            pair("storage", counters.storageFailure ?? "ok"),
            pair("addresses", reached.joined(separator: " ")),
            pair("partitions", state.partitions.count),
            pair("connections", socketCount),
            pair("links", connections.count - socketCount),
            pair("records_published", counters.publishedRecords),
            pair("records_delivered", counters.deliveredRecords),
            pair("frames_forwarded", counters.forwardedFrames),
            pair("journal_used_bytes", journal.usedBytes),
            pair("journal_bytes", journal.geometry.capacity),
            pair("journal_write_p50_us", journal.latency.quantile(0.5) / 1000),
            pair("journal_write_p99_us", journal.latency.quantile(0.99) / 1000),
            pair("journal_wait_us", journalWaitNanoseconds / 1000),
            pair("tail_used_bytes", state.pool.usedBytes),
            pair("tail_bytes", limits.tailBytesMax),
        ]
    }

    /// What `server status` shows, in a stable order.
    package var facts: [Pair] {
        func pair(_ name: String, _ value: some CustomStringConvertible) -> Pair {
            Pair(name: name, value: value.description)
        }
        var facts = [
            pair("server_id", hex(identity.serverID)),
            pair("server_epoch", term),
            pair("stage", "\(stage)"),
            pair(
                "storage",
                counters.storageFailure
                    ?? (hold.isIdle
                        ? "ok"
                        : "waits for \(hold.isEmpty ? "a descriptor" : "room"): \(hold.what)")),
            pair("disk_level", diskLevel.name),
            pair("disk_used_percent", disk.space.map { "\($0.usedPercent)" } ?? "unknown"),
            pair("disk_total_bytes", disk.space.map { "\($0.totalBytes)" } ?? "unknown"),
            pair("disk_available_bytes", disk.space.map { "\($0.availableBytes)" } ?? "unknown"),
            pair("shards", peers.count),
            pair("queues", state.queues.count),
            pair("partitions", state.partitions.indices.count),
            pair("groups", state.groups.count),
            pair("connections", socketCount),
            pair("subscriptions", subscriptions.indices.count),
            pair("journal_bytes", journal.geometry.capacity),
            pair("journal_used_bytes", journal.usedBytes),
            pair("journal_writes", journal.writes),
            pair("journal_written_bytes", journal.bytesWritten),
            pair("journal_write_p50_us", journal.latency.quantile(0.5) / 1000),
            pair("journal_write_p99_us", journal.latency.quantile(0.99) / 1000),
            pair("journal_wait_us", journalWaitNanoseconds / 1000),
            pair("tail_used_bytes", state.pool.usedBytes),
            pair("cold_used_bytes", coldReader.cache.usedBytes),
            pair("cold_reads", counters.coldReads),
            pair("cold_read_bytes", counters.coldReadBytes),
            pair("scrub_percent", scrubber.progressPercent),
            pair("scrub_passes", scrubber.passes),
            pair("scrub_last_pass", scrubber.lastPass / .seconds(1)),
            pair("scrubbed_bytes", counters.scrubbedBytes),
            pair("damaged_ranges", quarantine.count),
            pair("checkpoints", counters.checkpoints),
            pair("records_published", counters.publishedRecords),
            pair("records_confirmed", counters.confirmedRecords),
            pair("records_delivered", counters.deliveredRecords),
            pair("bad_frames", counters.badFrames),
            pair("refusals", counters.refusals),
        ]
        facts += [
            pair("limit_connections", limits.connectionsMax),
            pair("limit_frame_bytes", limits.frameBytesMax),
            pair("limit_send_bytes", limits.sendBytesMax),
            pair("limit_input_bytes", limits.inputBytesMax),
            pair("limit_input_memory_bytes", limits.inputMemoryBytesMax),
            pair("limit_confirm_runs", limits.confirmRunsMax),
            pair("limit_subscriptions_per_connection", limits.subscriptionsPerConnectionMax),
            pair("limit_queues", limits.queuesMax),
            pair("limit_partitions_per_queue", limits.partitionsPerQueueMax),
            pair("limit_partitions", limits.partitionsMax),
            pair("limit_producers", limits.producersMax),
            pair("limit_groups", limits.groupsMax),
            pair("limit_record_bytes", limits.recordBytesMax),
            pair("limit_record_headers_bytes", limits.recordHeadersBytesMax),
            pair("limit_tail_bytes", limits.tailBytesMax),
            pair("limit_cold_bytes", limits.coldBytesMax),
            pair("limit_cold_reads", limits.coldReadsMax),
            pair("limit_scrub_bytes_per_second", limits.scrubBytesPerSecond),
            pair("limit_segment_bytes", limits.segmentBytes),
            pair("limit_files", limits.filesMax),
            pair("limit_disk_warn_percent", limits.diskMarks.warn),
            pair("limit_disk_refuse_percent", limits.diskMarks.refuse),
            pair("limit_disk_reads_only_percent", limits.diskMarks.readsOnly),
        ]
        facts += hostFacts
        return facts
    }

    private func hex(_ value: UInt64) -> String {
        let digits = String(value, radix: 16)
        return String(repeating: "0", count: 16 - digits.count) + digits
    }
}
