internal import BrokerBasics
internal import BrokerCore
internal import LogStorage
internal import WireProtocol

extension ShardMachine {
    /// What a check may be asked to read per second at most: more than any disk does.
    private static let scrubBandwidthMax: UInt64 = 1 << 40

    /// This shard's own part of what lies on disk.
    mutating func storageDescribe(_ request: Request) -> Outcome {
        guard let describe = try? StorageDescribeRequest(body: request.body) else {
            return refuse(request, .badRequest, "the body of storage-describe can't be read")
        }
        let queue = state.queue(named: describe.queue)
        guard queue != nil || describe.queue.isEmpty else {
            return refuse(request, .queueNotFound, "no queue \(describe.queue)")
        }
        let from = describe.from
        var page = StoragePage(bytesMax: replyBytesMax(request))
        if from.shard <= UInt32(peers.own) { _ = page.add(shardStorage) }
        guard describe.withPartitions else { return reply(request, page.reply) }
        // Before the partitions come, none of them is left out.
        let first = from.shard == .max ? from.partition : 0
        let all = state.partitions.indices.map { state.partitions[$0].pointee.id }
        let ids = queue?.partitions ?? all
        for id in ids.filter({ $0 >= first }).sorted() {
            guard var partition = storage(ofPartition: id) else { continue }
            if from.shard == .max, id == from.partition {
                partition.damages.removeAll {
                    ($0.base, $0.firstByte) < (from.base, from.byte)
                }
            }
            guard page.add(partition) else { break }
        }
        return reply(request, page.reply)
    }

    /// Begins a check when those before it are done. The reply tells its number; how far it is and that it
    /// is over is asked for by `storage-describe`.
    mutating func storageVerify(_ request: Request) -> Outcome {
        guard let verify = try? StorageVerifyRequest(body: request.body) else {
            return refuse(request, .badRequest, "the body of storage-verify can't be read")
        }
        let queue = state.queue(named: verify.queue)
        guard queue != nil || verify.queue.isEmpty else {
            return refuse(request, .queueNotFound, "no queue \(verify.queue)")
        }
        guard stage == .ready else {
            return refuse(request, .shuttingDown, "the server is stopping; nothing is checked")
        }
        let bandwidth =
            verify.bandwidth > 0
            ? min(verify.bandwidth, Self.scrubBandwidthMax) : limits.scrubBytesPerSecond
        guard bandwidth > 0 else {
            return refuse(
                request, .badRequest,
                "the server's scrub bandwidth is 0: say how many bytes per second may be read")
        }
        guard let number = askForScrub(queue: queue?.id, bandwidth: bandwidth) else {
            return refuse(
                request, .busy, "\(Scrubber.askedMax) checks wait already; nothing was begun")
        }
        return reply(
            request, StorageVerifyReply(checks: [StorageCheck(shard: peers.own, number: number)]))
    }

    private var shardStorage: ShardStorage {
        var (partitions, segments, bytes) = (UInt32(0), UInt64(0), UInt64(0))
        for index in state.partitions.indices where !state.partitions[index].pointee.isDeleted {
            partitions += 1
            for segment in state.partitions[index].pointee.log.segments {
                segments += 1
                bytes += segment.bytes
            }
        }
        return ShardStorage(
            shard: peers.own, state: scrubState, partitions: partitions, segments: segments,
            bytes: bytes, damagedRanges: UInt64(quarantine.count), damagedBytes: quarantine.bytes,
            passes: scrubber.passes, lastPassAt: scrubber.lastPass,
            checkedBytes: scrubber.passedBytes, checkBytes: scrubber.passBytes,
            bandwidth: scrubBandwidth, begun: scrubber.numbers.begun, done: scrubber.numbers.done)
    }

    private func storage(ofPartition id: UInt32) -> PartitionStorage? {
        guard let place = state.index(ofPartition: id) else { return nil }
        let partition = state.partitions[place]
        guard !partition.pointee.isDeleted, let queue = state.queues[partition.pointee.queue]
        else { return nil }
        var storage = PartitionStorage(
            partition: id, queue: queue.name, index: partition.pointee.index, shard: peers.own)
        let segments = partition.pointee.log.segments
        storage.segments = UInt32(segments.count)
        storage.firstOffset = segments.first?.baseOffset ?? 0
        storage.endOffset = segments.last?.endOffset ?? 0
        storage.oldestAt = segments.first?.index.first?.time ?? 0
        storage.newestAt = segments.last(where: { $0.lastTime > 0 })?.lastTime ?? 0
        for segment in segments {
            storage.bytes += segment.bytes
            storage.syncedBytes += segment.syncedBytes
            guard !quarantine.isEmpty else { continue }
            let key = SegmentKey(partition: id, base: segment.baseOffset, term: segment.term)
            for flaw in quarantine.flaws(of: key) {
                storage.damages.append(
                    StorageDamage(
                        base: segment.baseOffset, file: key.file.path, bytes: flaw.bytes,
                        offsets: flaw.offsets))
            }
        }
        if let verified = scrubber.verification(ofPartition: id) {
            storage.verifiedAt = verified.at
            storage.verifiedBytes = verified.bytes
            storage.unreadSegments = verified.unreadSegments
        }
        return storage
    }
}
