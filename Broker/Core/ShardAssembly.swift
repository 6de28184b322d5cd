internal import BrokerBasics
public import LogStorage
internal import WireProtocol

// How it works. Each shard is recovered by itself; then they are held against each other.
//  1. All go on in one term, above every one that was: a file's name is unique over all shards.
//  2. Shard 0 has the say over queues, producers, groups and placement. A change is durable there
//     before another shard hears of it, so the others can only be behind: they are brought up to it.
//     A partition that is not placed where it lies was on its way when the crash came; it is given up
//     there, for its shard has it.
//  3. With another number of shards partitions move: their tails are written to segments on stable
//     storage, their image goes over, and the placement changes.
//
// None of it counts before checkpoints say so. Those who take partitions in write theirs first, then
// shard 0, whose placement decides; then those who gave. A crash in between leaves a partition with
// both, and step 2 gives it up where it is not placed. Nobody is served before all are written.

/// When a shard may write its first checkpoint.
public enum StartTurn: Sendable, Equatable {
    /// At once.
    case first
    /// Shard 0: after so many others.
    case afterOthers(Int)
    /// After shard 0.
    case afterTheFirst
}

/// A recovered shard on its way to the thread that runs it.
public final class RecoveredSlot: @unchecked Sendable {
    private var shard: RecoveredShard?
    public init(_ shard: consuming RecoveredShard) { self.shard = consume shard }

    public func take() -> RecoveredShard? { shard.take() }

    /// What is said of a shard before it runs.
    public struct Summary: Sendable {
        public var report: RecoveryReport
        public var serverID: UInt64
        public var geometry: JournalGeometry
    }
    public func tell(_ body: (Summary) -> Void) {
        body(
            with { shard in
                Summary(
                    report: shard.report, serverID: shard.identity.serverID,
                    geometry: shard.identity.geometry)
            })
    }
    /// Lets `body` look at it, and change it.
    func with<Result, Failure: Error>(
        _ body: (inout RecoveredShard) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        guard var taken = shard.take() else { fatalError("a shard is taken once") }
        do throws(Failure) {
            let result = try body(&taken)
            shard = consume taken
            return result
        } catch {
            shard = consume taken
            throw error
        }
    }
}

/// Shards as recovery left them become one broker.
public struct ShardAssembly {
    private let storages: [any RecoveryStorage]
    private let slots: [RecoveredSlot]
    private let shards: Int
    private let segmentBytes: UInt64
    private let faults: StorageFaults
    private var term: UInt64 = 0

    /// - Parameters:
    ///   - storages: of every shard that was recovered, from 0.
    ///   - slots: the same; more than `shards` when some are to go.
    ///   - shards: how many will run.
    public init(
        storages: [any RecoveryStorage], slots: [RecoveredSlot], shards: Int, segmentBytes: UInt64,
        faults: StorageFaults = StorageFaults()
    ) {
        self.faults = faults
        self.storages = storages
        self.slots = slots
        self.shards = shards
        self.segmentBytes = segmentBytes
    }

    /// - Parameter before: how many shards the directory was made of.
    /// - Returns: how many partitions moved.
    @discardableResult
    public mutating func run(before: Int) throws(RecoveryError) -> Int {
        let storage = storages[0]
        let names = try storing { () throws(StorageFailure) in try storage.list(.segments) }
        let files = names.compactMap { FileName(directory: .segments, name: $0) }
        shareTerm(files)
        try reconcile()
        let moves = try rehome(before: before)
        findOrphans(files)
        for slot in slots {
            slot.with { shard in shard.state.pool.beginServing() }
        }
        return moves
    }

    private func storing<T>(
        _ body: () throws(StorageFailure) -> T
    ) throws(RecoveryError) -> T {
        do throws(StorageFailure) { return try body() } catch { throw .storage(error) }
    }

    // MARK: 1. the term

    /// A start that did not come to its first checkpoint may have left files of a term that no checkpoint
    /// tells of. Were that term used again, a file that is about to be removed could be made anew.
    private mutating func shareTerm(_ files: [FileName]) {
        for slot in slots { slot.with { shard in term = max(term, shard.position.term) } }
        for case .segment(_, _, let used) in files
        where used < DurableState.countMax && !faults.termUsedAgain {
            term = max(term, used)
        }
        for slot in slots {
            slot.with { shard in
                shard.position.term = term
                shard.report.term = term + 1
            }
        }
    }

    // MARK: 2. what shard 0 says

    private struct Definitions {
        var queues: [UInt32: Queue]
        var groups: [ConsumerGroup]
        var producers: [UInt64: Producer]
    }

    private func reconcile() throws(RecoveryError) {
        let said = slots[0].with { first in
            Definitions(
                queues: first.state.queues,
                groups: first.state.groups.values.sorted { $0.id < $1.id },
                producers: first.state.producers.producers)
        }
        for place in slots.indices {
            try slots[place].with { shard throws(RecoveryError) in
                if place > 0 { Self.catchUp(&shard.state, with: said) }
                try Self.requirePlaced(&shard.state, isNew: shard.report.isNewDirectory)
            }
        }
        // A producer was last seen wherever it published.
        var lastSeen: [UInt64: UInt64] = [:]
        for slot in slots {
            slot.with { shard in
                shard.state.producers.forEach { entry in
                    lastSeen[entry.producer] = max(lastSeen[entry.producer] ?? 0, entry.lastSeen)
                }
            }
        }
        slots[0].with { first in
            for (id, time) in lastSeen { first.state.producers.saw(id, at: time) }
        }
    }

    private static func catchUp(_ state: inout DurableState, with said: Definitions) {
        for queue in state.queues.values where said.queues[queue.id] == nil {
            let places = queue.partitions.compactMap { state.index(ofPartition: $0) }
            state.apply(.queueDeleted(queue.id))
            for place in places { state.forget(partition: place) }
        }
        for queue in said.queues.values.sorted(by: { $0.id < $1.id }) {
            if let known = state.queues[queue.id] {
                if known != queue { state.apply(.queueAltered(queue)) }
            } else {
                state.apply(.queueCreated(queue))
            }
        }
        for producer in state.producers.producers.values where said.producers[producer.id] == nil {
            state.apply(.producerExpired(producer.id))
        }
        for producer in said.producers.values.sorted(by: { $0.id < $1.id })
        where state.producers.producers[producer.id]?.epoch != producer.epoch {
            state.apply(.producerOpened(producer))
        }
        for group in said.groups where state.groups[group.id] == nil {
            // Nobody was told that it begins anywhere.
            let cursors = (state.queues[group.queue]?.partitions ?? []).map { id in
                state.index(ofPartition: id).map { state.partitions[$0].pointee.log.startOffset }
                    ?? 0
            }
            state.apply(
                .groupCreated(
                    id: group.id, queue: group.queue, name: group.name, cursors: cursors))
        }
    }

    /// What is placed here is here, and nothing else.
    private static func requirePlaced(
        _ state: inout DurableState, isNew: Bool
    ) throws(RecoveryError) {
        for index in state.partitions.indices {
            let id = state.partitions[index].pointee.id
            if state.placement(ofPartition: id) != state.shard { state.release(partition: id) }
        }
        for queue in state.queues.values {
            for (id, shard) in zip(queue.partitions, queue.shards) where shard == state.shard {
                guard state.index(ofPartition: id) == nil else { continue }
                throw .damaged(
                    file: ShardFolder(shard: shard).path(.checkpoints), offset: 0,
                    what: "partition \(id) of queue \(queue.name) lives on shard \(shard), and "
                        + "there is nothing of it")
            }
        }
    }

    // MARK: 3. another number of shards

    private mutating func rehome(before: Int) throws(RecoveryError) -> Int {
        let queues = slots[0].with { first in Array(first.state.queues.values) }
        let moves = Placement.moves(queues: queues, before: before, shards: shards)
        var changed: [UInt32: Queue] = [:]
        for queue in queues { changed[queue.id] = queue }
        var gave: Set<Int> = []
        for move in moves {
            guard let place = changed[move.queue]?.partitions.firstIndex(of: move.partition) else {
                continue
            }
            guard slots.indices.contains(Int(move.from)) else {
                throw .damaged(
                    file: ShardFolder(shard: 0).path(.checkpoints), offset: 0,
                    what: "partition \(move.partition) lives on shard \(move.from), and there are "
                        + "\(slots.count)")
            }
            changed[move.queue]?.shards[place] = move.to
            gave.insert(Int(move.from))
            let storage = storages[0]
            let (term, segmentBytes, flushes) = (
                term + 1, segmentBytes, !faults.movedTailNotFlushed
            )
            let image = try slots[Int(move.from)].with { shard throws(RecoveryError) in
                if flushes {
                    try TailFlush(
                        storage: storage, term: term, segmentBytes: segmentBytes,
                        syncs: !faults.movedTailNotSynced
                    ).run(move.partition, &shard.state)
                }
                let image = shard.state.image(ofPartition: move.partition)
                shard.state.release(partition: move.partition)
                return image
            }
            let isAdopted = slots[Int(move.to)].with { shard in
                image.flatMap { shard.state.adopt($0) } != nil
            }
            guard isAdopted else {
                throw .storage(
                    StorageFailure(
                        "partition \(move.partition) can't go from shard \(move.from) to "
                            + "\(move.to)"))
            }
        }
        for queue in changed.values where queue.shards.contains(where: { Int($0) >= shards }) {
            throw .storage(
                StorageFailure("queue \(queue.name) is placed on shards that are not run"))
        }
        let movedQueues = Set(moves.map(\.queue)).sorted().compactMap { changed[$0] }
        for place in slots.indices {
            slots[place].with { shard in
                for queue in movedQueues { shard.state.apply(.queueAltered(queue)) }
                shard.turn = .first
                if place == 0 {
                    let others = (1..<max(1, shards)).filter { !gave.contains($0) }
                    shard.turn = .afterOthers(others.count)
                } else if gave.contains(place) {
                    shard.turn = .afterTheFirst
                }
            }
        }
        return moves.count
    }

    // MARK: leftovers

    private func findOrphans(_ files: [FileName]) {
        var referenced: Set<FileName> = []
        for slot in slots {
            slot.with { shard in
                for index in shard.state.partitions.indices {
                    let partition = shard.state.partitions[index]
                    for segment in partition.pointee.log.segments {
                        referenced.insert(segment.file(partition: partition.pointee.id))
                    }
                }
            }
        }
        let orphans = files.filter { !referenced.contains($0) }
        slots[0].with { first in first.orphans += orphans }
        for slot in slots {
            slot.with { shard in shard.report.removedFiles = shard.orphans.count }
        }
    }

    /// Removes what a shard that is gone has left: after the others are served.
    ///
    /// Its identity goes first: without it the folder was never in use.
    public static func retire(
        _ storage: any RecoveryStorage, faults: StorageFaults = StorageFaults()
    ) throws(StorageFailure) {
        if !faults.identityRetiredLast {
            try storage.remove(.identity)
            try storage.syncDirectory(.root)
        }
        for directory in [StorageDirectory.checkpoints, .journal, .root] {
            for name in try storage.list(directory) {
                guard let file = FileName(directory: directory, name: name) else { continue }
                try storage.remove(file)
            }
        }
    }
}

/// Brings what only the tail holds to segments on stable storage, before anybody is served.
struct TailFlush {
    let storage: any RecoveryStorage
    let term: UInt64
    let segmentBytes: UInt64
    let syncs: Bool

    func run(_ id: UInt32, _ state: inout DurableState) throws(RecoveryError) {
        guard let index = state.index(ofPartition: id) else { return }
        let partition = state.partitions[index]
        do throws(StorageFailure) { try write(partition) } catch { throw .storage(error) }
        partition.pointee.log.dropAll(pool: &state.pool)
        partition.pointee.lostIsUnjournalled = false
    }

    private func write(_ partition: UnsafeMutablePointer<Partition>) throws(StorageFailure) {
        let id = partition.pointee.id
        var chunk = partition.pointee.log.oldest
        var segment: SegmentInfo?
        while let current = chunk {
            chunk = current.pointee.next
            guard current.pointee.used > ChunkHeader.byteCount else { continue }
            if let full = segment, full.bytes >= segmentBytes {
                try finish(full, partition)
                segment = nil
            }
            var open: SegmentInfo
            if let segment {
                open = segment
            } else {
                open = SegmentInfo(baseOffset: current.pointee.baseOffset, term: term)
                let block = AlignedMemory(byteCount: SegmentHeader.byteCount)
                SegmentHeader.encode(
                    block.base, partition: id, baseOffset: open.baseOffset, term: term,
                    madeAt: current.pointee.firstTime)
                try storage.write(
                    open.file(partition: id), at: 0, UnsafeRawBufferPointer(block.buffer))
            }
            current.pointee.segmentPosition = open.bytes
            let header = current.pointee.header
            header.encode(
                at: current.pointee.memory, partition: id, segmentBase: open.baseOffset, term: term)
            try storage.write(
                open.file(partition: id), at: open.bytes,
                UnsafeRawBufferPointer(start: current.pointee.bytes, count: header.paddedBytes))
            open.wrote(header)
            segment = open
        }
        if let segment { try finish(segment, partition) }
    }

    private func finish(
        _ full: SegmentInfo, _ partition: UnsafeMutablePointer<Partition>
    ) throws(StorageFailure) {
        var segment = full
        if syncs {
            try storage.sync(segment.file(partition: partition.pointee.id))
            try storage.syncDirectory(.segments)
        }
        segment.noteSynced()
        partition.pointee.log.segments.append(segment)
    }
}
