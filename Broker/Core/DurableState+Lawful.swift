internal import BrokerBasics
internal import LogStorage
internal import WireProtocol

// A checksum says who wrote the bytes, not that they mean anything. Before a checkpoint or an entry of
// the journal is taken in, recovery looks whether this shard could have written it: what comes after
// counts on it, and would stop the process in the middle of a start, without a word about the file.
extension DurableState {
    /// Offsets, journal positions, terms and byte counts lie below it: what is added to them while a
    /// broker runs does not overflow. 2^62 records are 14,000 years of ten million a second.
    static let countMax: UInt64 = 1 << 62
    /// Partition ids lie below it. They are never reused, and the index by id takes four bytes for
    /// each: 256 MiB at most.
    public static let partitionIDsMax: UInt32 = 1 << 26

    /// Whether `change` fits what is there: what it makes is new, what it names is lawful. A change of
    /// what is gone is lawful and does nothing.
    func isLawful(_ change: StateChange) -> Bool {
        switch change {
        case .queueCreated(let queue):
            return isNew(queue) && queue.id >= nextQueue
                && queue.partitions.allSatisfy { $0 >= nextPartition }
        case .queueAltered(let queue):
            guard let before = queues[queue.id] else { return false }
            return before.name == queue.name && before.level == queue.level
                && before.partitions == queue.partitions && queue.retention.isValid
                && queue.shards.allSatisfy { $0 < ShardFolder.shardsMax }
        case .queueDeleted, .producerExpired: return true
        case .producerOpened(let producer): return Self.isLawful(producer)
        case .groupCreated(let id, let queue, let name, let cursors):
            return id >= nextGroup
                && isNew(ConsumerGroup(id: id, queue: queue, name: name, cursors: cursors))
        case .cursor(_, _, let offset), .startMoved(_, let offset): return offset < Self.countMax
        case .reservation(_, let end): return end < Self.countMax
        case .partitionAdopted(let image): return canAdopt(image)
        case .partitionReleased: return true
        }
    }

    /// Whether a queue can be put beside those that are there.
    func isNew(_ queue: Queue) -> Bool {
        var last: UInt32?
        for id in queue.partitions {
            guard id > last ?? 0, id < Self.partitionIDsMax, index(ofPartition: id) == nil else {
                return false
            }
            last = id
        }
        return queue.id > 0 && queue.id < .max && queues[queue.id] == nil
            && queuesByName[queue.name] == nil && last != nil && queue.retention.isValid
            && queue.shards.allSatisfy { $0 < ShardFolder.shardsMax }
            && partitions.count + queue.partitions.count <= Self.partitionsMax
    }

    /// The same of a group; its queue must be there, with as many partitions as it has cursors.
    func isNew(_ group: ConsumerGroup) -> Bool {
        group.id > 0 && group.id < .max && groups[group.id] == nil
            && groupsByName[GroupName(queue: group.queue, name: group.name)] == nil
            && queues[group.queue]?.partitions.count == group.cursors.count
            && group.cursors.allSatisfy { $0 < Self.countMax }
            && group.skipped.allSatisfy { $0 < Self.countMax }
    }

    static func isLawful(_ producer: Producer) -> Bool { producer.id > 0 && producer.id < .max }

    static func isLawful(_ progress: ProducerProgress) -> Bool {
        guard progress.producer > 0 else { return false }
        for place in 0..<ProducerProgress.runCount {
            let run = progress.runs[place]
            guard run.offset < countMax, run.count < countMax,
                !run.first.addingReportingOverflow(run.count).overflow
            else { return false }
        }
        return true
    }

    /// Whether a partition can be as a checkpoint has it, its log having ended at `end`: segments and
    /// lost ranges follow each other, segments in whole blocks. Whether all from start to end is there
    /// is found out later.
    static func isLawful(_ partition: Partition, end: UInt64) -> Bool {
        let log = partition.log
        guard log.epoch < .max, log.startOffset < countMax, log.endOffset < countMax,
            end < countMax, partition.reservedEnd < countMax, partition.lostRecords < countMax,
            log.bytes < countMax
        else { return false }
        var lostEnd: UInt64 = 0
        for range in partition.lostRanges {
            guard range.lowerBound >= lostEnd, range.upperBound < countMax else { return false }
            lostEnd = range.upperBound
        }
        let block = UInt64(ChunkHeader.blockBytes)
        var reached: UInt64 = 0
        for segment in log.segments {
            guard segment.baseOffset >= reached, segment.baseOffset <= segment.endOffset,
                segment.term < countMax, segment.bytes >= UInt64(SegmentHeader.byteCount),
                segment.bytes < countMax, segment.bytes % block == 0,
                segment.endOffset < countMax, segment.batchBytes < countMax,
                segment.sealPosition % block == 0,
                segment.sealPosition < segment.bytes || segment.sealPosition == 0
            else { return false }
            reached = segment.endOffset
        }
        return true
    }

    /// Whether a checkpoint can stand where it says: in whole blocks, the tail's batches before it.
    static func isLawful(_ position: Position) -> Bool {
        let block = UInt64(JournalGeometry.blockBytes)
        return position.term < countMax && position.journal < countMax
            && position.termStart <= position.journal && position.replayFrom <= position.journal
            && position.journal % block == 0 && position.replayFrom % block == 0
    }
}
