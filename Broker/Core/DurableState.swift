public import BrokerBasics
public import LogStorage
internal import WireProtocol

/// Everything of a shard that must survive: queues, partitions, producers, groups. Changed only by
/// `apply` and by appending batches; saved by `snapshot`, rebuilt by `Recovery`.
///
/// Queues, producers and groups are known to every shard, shard 0 having the say; partitions, their
/// producers' progress and the groups' cursors in them only to the shard where they live.
public struct DurableState: ~Copyable {
    public static let partitionsMax = 1 << 20

    /// Whose state it is.
    public let shard: UInt16
    public var pool: ChunkPool
    public var partitions: StablePool<Partition>
    /// By partition id: the index in `partitions`, -1 when it is gone.
    public private(set) var partitionIndex: [Int32] = []
    /// By partition id: the shard where it lives, `noShard` when it is gone.
    public private(set) var placements: [UInt16] = []
    public static let noShard = UInt16.max
    /// By shard: how many partitions live there.
    public private(set) var partitionsByShard: [Int] = []
    public private(set) var queues: [UInt32: Queue] = [:]
    public private(set) var queuesByName: [String: UInt32] = [:]
    /// How many do not keep everything.
    public private(set) var retainingQueues = 0
    public var producers = ProducerTable()
    public var groups: [UInt32: ConsumerGroup] = [:]
    public private(set) var groupsByName: [GroupName: UInt32] = [:]

    public private(set) var nextQueue: UInt32 = 1
    public private(set) var nextPartition: UInt32 = 1
    public private(set) var nextProducer: UInt64 = 1
    public private(set) var nextGroup: UInt32 = 1

    public struct GroupName: Hashable, Sendable {
        public var queue: UInt32
        public var name: String
        public init(queue: UInt32, name: String) {
            self.queue = queue
            self.name = name
        }
    }

    public init(chunkBytesMax: Int, tailBudgetBytes: Int, shard: UInt16 = 0) {
        self.shard = shard
        pool = ChunkPool(chunkBytesMax: chunkBytesMax, budgetBytes: tailBudgetBytes)
        partitions = StablePool(capacityMax: Self.partitionsMax)
    }

    deinit {
        // The chunks' descriptors belong to no array that would free itself.
        for index in 0..<partitions.limit where partitions.contains(Int32(index)) {
            var chunk = partitions[Int32(index)].pointee.log.oldest
            while let current = chunk {
                chunk = current.pointee.next
                current.deallocate()
            }
        }
    }

    /// The pool index of a partition, or `nil` when there is none with this id.
    @inline(__always)
    public func index(ofPartition id: UInt32) -> Int32? {
        guard Int(id) < partitionIndex.count else { return nil }
        let index = partitionIndex[Int(id)]
        return index >= 0 ? index : nil
    }

    /// The shard where a partition lives, or `nil` when there is none with this id.
    public func placement(ofPartition id: UInt32) -> UInt16? {
        guard Int(id) < placements.count, placements[Int(id)] != Self.noShard else { return nil }
        return placements[Int(id)]
    }

    public func queue(named name: String) -> Queue? {
        queuesByName[name].flatMap { queues[$0] }
    }
    public func group(queue: UInt32, name: String) -> UInt32? {
        groupsByName[GroupName(queue: queue, name: name)]
    }

    // MARK: changes

    public mutating func apply(_ change: StateChange) {
        switch change {
        case .queueCreated(let queue):
            for (index, id) in queue.partitions.enumerated() where queue.shards[index] == shard {
                var partition = Partition(
                    log: PartitionLog(partition: id, startOffset: 0, endOffset: 0, epoch: 1),
                    queue: queue.id, index: UInt32(index), level: queue.level)
                partition.retention = queue.retention
                add(partition)
            }
            put(queue)
        case .queueAltered(let queue):
            put(queue)
            for id in queue.partitions {
                guard let index = index(ofPartition: id) else { continue }
                partitions[index].pointee.retention = queue.retention
            }
        case .queueDeleted(let id):
            guard let queue = queues.removeValue(forKey: id) else { return }
            if queue.retention != .keepAll { retainingQueues -= 1 }
            queuesByName.removeValue(forKey: queue.name)
            for partition in queue.partitions {
                place(partition: partition, on: Self.noShard)
                guard let index = index(ofPartition: partition) else { continue }
                partitions[index].pointee.isDeleted = true
                partitionIndex[Int(partition)] = -1
            }
            producers.remove(partitions: Set(queue.partitions))
            for group in groups.values where group.queue == id {
                groups.removeValue(forKey: group.id)
                groupsByName.removeValue(forKey: GroupName(queue: id, name: group.name))
            }
        case .producerOpened(let producer):
            producers.open(producer)
            nextProducer = max(nextProducer, producer.id + 1)
        case .producerExpired(let id):
            producers.expire(id)
        case .groupCreated(let id, let queue, let name, let cursors):
            put(ConsumerGroup(id: id, queue: queue, name: name, cursors: cursors))
        case .cursor(let group, let index, let offset):
            advanceCursor(group: group, index: Int(index), to: offset)
        case .reservation(let partition, let end):
            guard let index = index(ofPartition: partition) else { return }
            partitions[index].pointee.reservedEnd = max(
                partitions[index].pointee.reservedEnd, end)
        case .startMoved(let partition, let offset):
            moveStart(partition: partition, to: offset)
        case .partitionAdopted(let image): adopt(image)
        case .partitionReleased(let id): release(partition: id)
        }
    }

    /// Gives up a partition's records below `offset`; its groups go on there.
    private mutating func moveStart(partition id: UInt32, to offset: UInt64) {
        guard let index = index(ofPartition: id) else { return }
        let partition = partitions[index]
        guard offset > partition.pointee.log.startOffset else { return }
        partition.pointee.moveStart(to: offset)
        for group in groups.values where group.queue == partition.pointee.queue {
            groups[group.id]?.skip(partition: Int(partition.pointee.index), to: offset)
        }
    }

    /// A group's ack floor in one partition, by the partition's index in its queue.
    public func cursor(group: UInt32, index: Int) -> UInt64? {
        groups[group].flatMap { index < $0.cursors.count ? $0.cursors[index] : nil }
    }

    /// Moves a group's ack floor.
    public mutating func advanceCursor(group id: UInt32, index: Int, to offset: UInt64) {
        // A group that was deleted with its queue may still have cursors behind it in the journal.
        guard let floor = cursor(group: id, index: index), offset >= floor,
            // Out and in again: to change it where it lies, the dictionary allocates three times.
            var group = groups.removeValue(forKey: id)
        else { return }
        group.advance(partition: index, to: offset)
        groups.updateValue(group, forKey: id)
    }

    private mutating func put(_ queue: Queue) {
        let before = queues.updateValue(queue, forKey: queue.id)
        if before?.retention ?? .keepAll != .keepAll { retainingQueues -= 1 }
        if queue.retention != .keepAll { retainingQueues += 1 }
        queuesByName[queue.name] = queue.id
        nextQueue = max(nextQueue, queue.id + 1)
        for (id, shard) in zip(queue.partitions, queue.shards) {
            place(partition: id, on: shard)
            nextPartition = max(nextPartition, id + 1)
        }
    }

    private mutating func place(partition id: UInt32, on shard: UInt16) {
        if placements.count <= Int(id) {
            placements += repeatElement(Self.noShard, count: Int(id) + 1 - placements.count)
        }
        if placements[Int(id)] != Self.noShard {
            partitionsByShard[Int(placements[Int(id)])] -= 1
        }
        placements[Int(id)] = shard
        guard shard != Self.noShard else { return }
        if partitionsByShard.count <= Int(shard) {
            partitionsByShard += repeatElement(0, count: Int(shard) + 1 - partitionsByShard.count)
        }
        partitionsByShard[Int(shard)] += 1
    }

    private mutating func put(_ group: ConsumerGroup) {
        groups[group.id] = group
        groupsByName[GroupName(queue: group.queue, name: group.name)] = group.id
        nextGroup = max(nextGroup, group.id + 1)
    }

    mutating func add(_ partition: consuming Partition) {
        let id = partition.id
        guard let index = partitions.insert(partition) else { return }
        if partitionIndex.count <= Int(id) {
            partitionIndex += repeatElement(-1, count: Int(id) + 1 - partitionIndex.count)
        }
        partitionIndex[Int(id)] = index
    }

    /// A partition is not found by its id any more; its place is given up by `forget`.
    ///
    /// - Returns: its place.
    mutating func unlink(partition id: UInt32) -> Int32? {
        guard let index = index(ofPartition: id) else { return nil }
        partitionIndex[Int(id)] = -1
        return index
    }

    /// Frees a deleted partition that nobody reads or writes any more.
    public mutating func forget(partition index: Int32) {
        partitions[index].pointee.log.dropAll(pool: &pool)
        partitions.remove(index)
    }

    // MARK: the checkpoint's payload

    /// Where a checkpoint stands in the journal.
    public struct Position: Equatable, Sendable {
        public var term: UInt64
        /// Where this term's groups begin.
        public var termStart: UInt64
        /// The state holds every entry below, none from here on.
        public var journal: UInt64
        /// The tail needs the batches from here on.
        public var replayFrom: UInt64
        public var wallTime: UInt64
        /// Written by an orderly stop: nothing was in memory only.
        public var isClean: Bool
        /// The run of the machine in which it was written; 0: not known.
        public var boot: UInt64

        public init(
            term: UInt64, termStart: UInt64, journal: UInt64, replayFrom: UInt64,
            wallTime: UInt64, isClean: Bool, boot: UInt64 = 0
        ) {
            self.term = term
            self.termStart = termStart
            self.journal = journal
            self.replayFrom = replayFrom
            self.wallTime = wallTime
            self.isClean = isClean
            self.boot = boot
        }
    }

    /// In the byte that says which of a producer's runs is the newest.
    private static let mayJumpBit: UInt8 = 0x80
    /// 1: without `boot`, and without what the level `written` needs of a partition. 2: without what
    /// retention and purges need: limits, cut segments, lost ranges, skipped offsets. 3: without
    /// placement: all of every queue was here.
    static let snapshotVersion: UInt32 = 4

    public func snapshot(at position: Position, faults: StorageFaults) -> [UInt8] {
        var builder = ByteBuilder()
        builder.put(Self.snapshotVersion)
        builder.put(position.term)
        builder.put(position.termStart)
        builder.put(position.journal)
        builder.put(position.replayFrom)
        builder.put(position.wallTime)
        builder.put(position.isClean)
        builder.put(position.boot)
        builder.put(nextQueue)
        builder.put(nextPartition)
        builder.put(nextProducer)
        builder.put(nextGroup)
        let ordered = queues.values.sorted { $0.id < $1.id }
        builder.put(UInt32(ordered.count))
        for queue in ordered {
            queue.encode(into: &builder)
            let here = queue.partitions.compactMap { index(ofPartition: $0) }
            builder.put(UInt32(here.count))
            for index in here { Self.encode(partitions[index], faults, into: &builder) }
        }
        let known = producers.producers.values.sorted { $0.id < $1.id }
        builder.put(UInt32(known.count))
        for producer in known {
            builder.put(producer.id)
            builder.put(producer.epoch)
            builder.put(producer.name)
            builder.put(producer.lastSeen)
        }
        var progress = ByteBuilder()
        var progressCount: UInt32 = 0
        producers.forEach { entry in
            progressCount += 1
            Self.encode(entry, into: &progress)
        }
        builder.put(progressCount)
        progress.bytes.withUnsafeBytes { builder.put(raw: $0) }
        let orderedGroups = groups.values.sorted { $0.id < $1.id }
        builder.put(UInt32(orderedGroups.count))
        for group in orderedGroups {
            builder.put(group.id)
            builder.put(group.queue)
            builder.put(group.name)
            builder.put(UInt32(group.cursors.count))
            for cursor in group.cursors { builder.put(faults.cursorNotCheckpointed ? 0 : cursor) }
            for count in group.skipped { builder.put(count) }
        }
        return builder.bytes
    }

    static func encode(_ entry: ProducerProgress, into builder: inout ByteBuilder) {
        builder.put(entry.producer)
        builder.put(entry.partition)
        builder.put(entry.epoch)
        builder.put(entry.nextSequence)
        builder.put(entry.lastSeen)
        builder.put(UInt8(entry.newestRun) | (entry.mayJump ? Self.mayJumpBit : 0))
        for run in 0..<ProducerProgress.runCount {
            builder.put(entry.runs[run].first)
            builder.put(entry.runs[run].count)
            builder.put(entry.runs[run].offset)
        }
    }

    static let progressBytesMin = 127

    static func progress(
        from parser: inout ByteParser
    ) throws(ByteParserError) -> ProducerProgress {
        var progress = ProducerProgress(
            producer: try parser.u64(), partition: try parser.u32(), epoch: try parser.u16())
        progress.nextSequence = try parser.u64()
        progress.lastSeen = try parser.u64()
        let newest = try parser.u8()
        progress.newestRun = Int(newest) & (ProducerProgress.runCount - 1)
        progress.mayJump = newest & Self.mayJumpBit != 0
        for run in 0..<ProducerProgress.runCount {
            progress.runs[run] = SequenceRun(
                first: try parser.u64(), count: try parser.u64(), offset: try parser.u64())
        }
        guard isLawful(progress) else { throw .invalid }
        return progress
    }

    static func encode(
        _ partition: UnsafeMutablePointer<Partition>, _ faults: StorageFaults,
        into builder: inout ByteBuilder
    ) {
        builder.put(partition.pointee.id)
        builder.put(partition.pointee.log.epoch)
        builder.put(faults.startNotCheckpointed ? 0 : partition.pointee.log.startOffset)
        let declared = partition.pointee.declaredLost
        let segments = partition.pointee.log.segments.filter { $0.syncedBytes > 0 }
        let durableEnd = partition.pointee.log.durableEnd
        // A lost range that neither journal nor segments hold: the next recovery declares it again.
        let unheld =
            partition.pointee.lostIsUnjournalled
            ? declared.last.flatMap { $0.upperBound > durableEnd ? $0 : nil } : nil
        builder.put(unheld?.lowerBound ?? partition.pointee.log.endOffset)
        // A reservation that is staged counts: the snapshot holds once its group is durable.
        builder.put(max(partition.pointee.reservedEnd, partition.pointee.reservingEnd))
        // The restored log ends where its segments do. A lost range behind that is not in it: the
        // next recovery finds it again, in a segment or by the reservation, and counts it then.
        let pending = declared.filter { $0.upperBound > durableEnd }
            .reduce(UInt64(0)) { $0 + UInt64($1.count) }
        builder.put(partition.pointee.lostRecords - pending)
        builder.put(unheld != nil)
        builder.put(partition.pointee.log.lastAppendTime)
        builder.put(partition.pointee.log.durableBytes)
        builder.put(durableEnd)
        let lost = partition.pointee.lostRanges.filter { $0.upperBound <= durableEnd }
        builder.put(UInt32(lost.count))
        for range in lost {
            builder.put(range.lowerBound)
            builder.put(range.upperBound)
        }
        builder.put(UInt32(segments.count))
        for segment in segments {
            builder.put(segment.baseOffset)
            builder.put(segment.term)
            builder.put(segment.syncedEndOffset)
            builder.put(segment.syncedBytes)
            builder.put(segment.sealPosition < segment.syncedBytes ? segment.sealPosition : 0)
            builder.put(segment.lastTime)
            builder.put(segment.syncedBatchBytes)
        }
    }

    /// Rebuilds the state from a snapshot. Each partition's log then ends where its segments do; the
    /// end that the snapshot saw is returned by partition id, for checking the replay.
    public mutating func restore(
        _ payload: UnsafeRawBufferPointer
    ) throws(ByteParserError) -> (position: Position, ends: [UInt32: UInt64]) {
        var parser = ByteParser(payload)
        let version = try parser.u32()
        guard version >= 1, version <= Self.snapshotVersion else { throw .invalid }
        var position = Position(
            term: try parser.u64(), termStart: try parser.u64(), journal: try parser.u64(),
            replayFrom: try parser.u64(), wallTime: try parser.u64(), isClean: try parser.bool())
        if version >= 2 { position.boot = try parser.u64() }
        guard Self.isLawful(position) else { throw .invalid }
        nextQueue = try parser.u32()
        nextPartition = try parser.u32()
        nextProducer = try parser.u64()
        nextGroup = try parser.u32()
        guard (1..<UInt32.max).contains(nextQueue), (1..<UInt32.max).contains(nextGroup),
            (1...Self.partitionIDsMax).contains(nextPartition),
            (1..<UInt64.max).contains(nextProducer)
        else { throw .invalid }
        var ends: [UInt32: UInt64] = [:]
        for _ in 0..<(try parser.count(itemBytesMin: 23)) {
            let layout: Queue.Layout =
                version >= 4 ? .withPlacement : version >= 3 ? .withRetention : .plain
            let queue = try Queue(from: &parser, layout)
            guard isNew(queue), queue.id < nextQueue, queue.partitions.last ?? 0 < nextPartition
            else { throw .invalid }
            let here = version >= 4 ? Int(try parser.u32()) : queue.partitions.count
            guard here <= queue.partitions.count else { throw .invalid }
            for _ in 0..<here {
                let (partition, end) = try Self.partition(
                    from: &parser, version: version, queue: queue)
                guard index(ofPartition: partition.id) == nil, Self.isLawful(partition, end: end)
                else { throw .invalid }
                ends[partition.id] = end
                add(partition)
            }
            put(queue)
        }
        for _ in 0..<(try parser.count(itemBytesMin: 20)) {
            let producer = Producer(
                id: try parser.u64(), epoch: try parser.u16(), name: try parser.string(),
                lastSeen: try parser.u64())
            guard Self.isLawful(producer), producer.id < nextProducer else { throw .invalid }
            producers.open(producer)
        }
        for _ in 0..<(try parser.count(itemBytesMin: Self.progressBytesMin)) {
            producers.restore(try Self.progress(from: &parser))
        }
        for _ in 0..<(try parser.count(itemBytesMin: 14)) {
            let id = try parser.u32()
            let queue = try parser.u32()
            let name = try parser.string()
            var cursors: [UInt64] = []
            for _ in 0..<(try parser.count(itemBytesMin: 8)) { cursors.append(try parser.u64()) }
            var skipped = [UInt64](repeating: 0, count: cursors.count)
            if version >= 3 { for index in skipped.indices { skipped[index] = try parser.u64() } }
            let group = ConsumerGroup(
                id: id, queue: queue, name: name, cursors: cursors, skipped: skipped)
            guard isNew(group), id < nextGroup else { throw .invalid }
            put(group)
        }
        return (position, ends)
    }

    /// The partition of `queue` that `encode` wrote, and the end of its log then.
    static func partition(
        from parser: inout ByteParser, version: UInt32, queue: Queue
    ) throws(ByteParserError) -> (Partition, UInt64) {
        let id = try parser.u32()
        guard let index = queue.partitions.firstIndex(of: id) else { throw .invalid }
        let epoch = try parser.u32()
        let start = try parser.u64()
        let end = try parser.u64()
        let reservedEnd = try parser.u64()
        let lostRecords = try parser.u64()
        let lostIsUnjournalled = version >= 2 ? try parser.bool() : false
        let lastAppendTime = try parser.u64()
        let durableBytes = try parser.u64()
        var durableEnd: UInt64?
        var lostRanges: [Range<UInt64>] = []
        if version >= 3 {
            durableEnd = try parser.u64()
            for _ in 0..<(try parser.count(itemBytesMin: 16)) {
                let lower = try parser.u64()
                let upper = try parser.u64()
                guard lower <= upper else { throw .invalid }
                lostRanges.append(lower..<upper)
            }
        }
        var segments: [SegmentInfo] = []
        for _ in 0..<(try parser.count(itemBytesMin: version >= 3 ? 56 : 48)) {
            var segment = SegmentInfo(baseOffset: try parser.u64(), term: try parser.u64())
            segment.syncedEndOffset = try parser.u64()
            segment.syncedBytes = try parser.u64()
            segment.sealPosition = try parser.u64()
            segment.lastTime = try parser.u64()
            segment.isCounted = version >= 3
            if version >= 3 { segment.syncedBatchBytes = try parser.u64() }
            segment.endOffset = segment.syncedEndOffset
            segment.bytes = segment.syncedBytes
            segment.batchBytes = segment.syncedBatchBytes
            segments.append(segment)
        }
        var log = PartitionLog(
            partition: id, startOffset: start,
            endOffset: durableEnd ?? segments.last?.endOffset ?? start, epoch: epoch)
        log.segments = segments
        log.lastAppendTime = lastAppendTime
        log.bytes = durableBytes
        var partition = Partition(
            log: log, queue: queue.id, index: UInt32(index), level: queue.level)
        partition.reservedEnd = reservedEnd
        partition.reservingEnd = reservedEnd
        partition.lostRecords = lostRecords
        partition.lostIsUnjournalled = lostIsUnjournalled
        partition.lostRanges = lostRanges
        partition.retention = queue.retention
        return (partition, end)
    }
}
