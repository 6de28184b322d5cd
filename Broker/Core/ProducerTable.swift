internal import BrokerBasics

// How it works. A producer numbers its records per partition. The table holds, for each (producer,
// partition), the next expected sequence and the last few runs of what was stored, so that a retry
// is recognised and, while its run is kept, answered with its place. Open addressing, linear
// probing, at most half full. What leaves is taken out in place: those behind it that would not be
// found any more move up. The entries of one producer are chained by their partitions, so that it
// expires, or begins its next epoch, without a look at all others.

/// A named or anonymous producer, as `producer-open` made it.
public struct Producer: Sendable, Equatable {
    public var id: UInt64
    public var epoch: UInt16
    public var name: String
    /// Wall time of its opening or last publish known, in ns.
    public var lastSeen: UInt64
    public init(id: UInt64, epoch: UInt16, name: String, lastSeen: UInt64) {
        self.id = id
        self.epoch = epoch
        self.name = name
        self.lastSeen = lastSeen
    }
}

/// Sequence `first ..< first + count` lies at `offset`.
public struct SequenceRun: Equatable, Sendable {
    public var first: UInt64 = 0
    public var count: UInt64 = 0
    public var offset: UInt64 = 0
}

/// What a (producer, partition) has stored.
public struct ProducerProgress {
    public static let runCount = 4
    public var producer: UInt64
    public var partition: UInt32
    public var epoch: UInt16
    public var nextSequence: UInt64 = 0
    /// Wall time of the last publish, in ns.
    public var lastSeen: UInt64 = 0
    public var runs: InlineArray<4, SequenceRun> = .init(repeating: SequenceRun())
    public var newestRun = 0
    /// The partition lost records in a crash: the next batch may leave sequences out.
    public var mayJump = false
    /// The next partition of the same producer.
    fileprivate var nextPartition = Self.noPartition
    fileprivate static let noPartition = UInt32.max

    public init(producer: UInt64, partition: UInt32, epoch: UInt16) {
        self.producer = producer
        self.partition = partition
        self.epoch = epoch
    }

    /// Notes that `count` records from `sequence` are stored at `offset`.
    @inline(__always)
    public mutating func stored(sequence: UInt64, count: UInt64, offset: UInt64, at time: UInt64) {
        nextSequence = sequence &+ count
        lastSeen = time
        mayJump = false
        let run = runs[newestRun]
        if run.first &+ run.count == sequence, run.offset &+ run.count == offset, run.count > 0 {
            runs[newestRun].count &+= count
        } else {
            newestRun = (newestRun + 1) & (Self.runCount - 1)
            runs[newestRun] = SequenceRun(first: sequence, count: count, offset: offset)
        }
    }

    /// Forgets what was stored at `offset` and above: a crash took it.
    ///
    /// When no run that is kept reaches below, sequences before the first of them still count as
    /// stored: they lie further down, and where is not known. Some may be lost too; storing them
    /// again could store others twice.
    mutating func cut(at offset: UInt64) {
        mayJump = true
        var newest: SequenceRun?
        var firstLost: UInt64?
        for index in 0..<Self.runCount {
            var run = runs[index]
            guard run.count > 0 else { continue }
            run.count = offset <= run.offset ? 0 : min(run.count, offset - run.offset)
            runs[index] = run
            if run.count == 0 {
                firstLost = min(firstLost ?? .max, run.first)
            } else if run.first >= newest?.first ?? 0 {
                newest = run
            }
        }
        nextSequence = newest.map { $0.first &+ $0.count } ?? firstLost ?? nextSequence
    }

    /// Where the record with `sequence` is, if its run is still kept.
    public func offset(of sequence: UInt64) -> UInt64? {
        for index in 0..<Self.runCount {
            let run = runs[index]
            if sequence >= run.first, sequence - run.first < run.count {
                return run.offset + (sequence - run.first)
            }
        }
        return nil
    }
}

public struct ProducerTable: ~Copyable {
    /// What to do with a numbered batch.
    public enum Verdict: Equatable {
        case accept
        /// Stored earlier; the offset if it is still known.
        case duplicate(UInt64?)
        /// Something before it is missing.
        case gap(expected: UInt64)
        /// Stored in part: no retry of a batch as it was.
        case overlap(expected: UInt64)
        /// Another epoch of the same producer is at work.
        case fenced
        /// Expired, or never opened: whether it was stored before can't be known.
        case unknown
    }

    public private(set) var producers: [UInt64: Producer] = [:]
    public private(set) var producersByName: [String: UInt64] = [:]
    /// Where the chain of a producer's entries begins.
    private var firstPartitions: [UInt64: UInt32] = [:]
    private var slots: UnsafeMutablePointer<ProducerProgress>
    private var mask: Int
    public private(set) var count = 0

    public init() {
        mask = 63
        slots = Self.empty(64)
    }
    deinit { slots.deallocate() }

    private static func empty(_ count: Int) -> UnsafeMutablePointer<ProducerProgress> {
        let slots = UnsafeMutablePointer<ProducerProgress>.allocate(capacity: count)
        slots.initialize(
            repeating: ProducerProgress(producer: 0, partition: 0, epoch: 0), count: count)
        return slots
    }

    @inline(__always)
    private static func hash(_ producer: UInt64, _ partition: UInt32) -> Int {
        let mixed = (producer ^ UInt64(partition) << 40) &* 0x9E37_79B9_7F4A_7C15
        return Int(truncatingIfNeeded: mixed >> 32)
    }

    /// The progress of a pair, or `nil`. The pointer holds until the next insertion or removal.
    @inline(__always)
    public func find(
        _ producer: UInt64, _ partition: UInt32
    ) -> UnsafeMutablePointer<ProducerProgress>? {
        var at = Self.hash(producer, partition) & mask
        while slots[at].producer != 0 {
            if slots[at].producer == producer, slots[at].partition == partition {
                return slots + at
            }
            at = (at &+ 1) & mask
        }
        return nil
    }

    /// Begins to fetch the place of a pair into the processor's cache.
    @inline(__always)
    public func prefetch(_ producer: UInt64, _ partition: UInt32) {
        Prefetch.fetch(
            slots + (Self.hash(producer, partition) & mask),
            count: MemoryLayout<ProducerProgress>.size)
    }

    /// The progress of a pair, made when there is none.
    public mutating func insert(
        _ producer: UInt64, _ partition: UInt32, epoch: UInt16
    ) -> UnsafeMutablePointer<ProducerProgress> {
        if let found = find(producer, partition) { return found }
        if (count + 1) * 2 > mask { grow() }
        var progress = ProducerProgress(producer: producer, partition: partition, epoch: epoch)
        progress.nextPartition = firstPartitions[producer] ?? ProducerProgress.noPartition
        firstPartitions[producer] = partition
        count += 1
        return place(progress)
    }

    private mutating func grow() {
        let old = slots
        let oldCount = mask + 1
        slots = Self.empty(oldCount * 2)
        mask = oldCount * 2 - 1
        for index in 0..<oldCount where old[index].producer != 0 { _ = place(old[index]) }
        old.deallocate()
    }

    private func place(_ progress: ProducerProgress) -> UnsafeMutablePointer<ProducerProgress> {
        var at = Self.hash(progress.producer, progress.partition) & mask
        while slots[at].producer != 0 { at = (at &+ 1) & mask }
        slots[at] = progress
        return slots + at
    }

    /// Empties a slot, and moves up those behind it that it parted from the place where they are looked
    /// for.
    private mutating func remove(at place: UnsafeMutablePointer<ProducerProgress>) {
        var hole = place - slots
        var at = (hole + 1) & mask
        while slots[at].producer != 0 {
            let home = Self.hash(slots[at].producer, slots[at].partition) & mask
            if (at - home) & mask >= (at - hole) & mask {
                slots[hole] = slots[at]
                hole = at
            }
            at = (at + 1) & mask
        }
        slots[hole] = ProducerProgress(producer: 0, partition: 0, epoch: 0)
        count -= 1
    }

    /// Calls `body` for each entry of a producer; it must not insert or remove.
    private func forEach(
        of producer: UInt64, _ body: (UnsafeMutablePointer<ProducerProgress>) -> Void
    ) {
        var partition = firstPartitions[producer] ?? ProducerProgress.noPartition
        while partition != ProducerProgress.noPartition, let entry = find(producer, partition) {
            partition = entry.pointee.nextPartition
            body(entry)
        }
    }

    /// Judges a batch of `records` records from `sequence`.
    ///
    /// - Parameters:
    ///   - progress: what `find` gives for the producer and the partition.
    ///   - anyStart: the partition lost records, or may have: a first contact may begin
    ///   anywhere.
    @inline(__always)
    public func judge(
        _ progress: UnsafeMutablePointer<ProducerProgress>?, producer: UInt64, epoch: UInt16,
        sequence: UInt64, records: UInt64, anyStart: Bool
    ) -> Verdict {
        guard let progress else {
            guard let known = producers[producer] else { return .unknown }
            guard epoch == known.epoch else { return .fenced }
            return sequence == 0 || anyStart ? .accept : .gap(expected: 0)
        }
        guard epoch == progress.pointee.epoch else { return .fenced }
        let next = progress.pointee.nextSequence
        if sequence == next { return .accept }
        if sequence > next { return progress.pointee.mayJump ? .accept : .gap(expected: next) }
        guard sequence &+ records <= next else { return .overlap(expected: next) }
        return .duplicate(progress.pointee.offset(of: sequence))
    }

    /// Opens a producer, or its next epoch: sequences begin anew and the epoch before is fenced.
    public mutating func open(_ producer: Producer) {
        producers[producer.id] = producer
        if !producer.name.isEmpty { producersByName[producer.name] = producer.id }
        forEach(of: producer.id) { entry in
            var fresh = ProducerProgress(
                producer: producer.id, partition: entry.pointee.partition, epoch: producer.epoch)
            fresh.lastSeen = producer.lastSeen
            fresh.nextPartition = entry.pointee.nextPartition
            entry.pointee = fresh
        }
    }

    /// A producer published elsewhere at `time`.
    mutating func saw(_ id: UInt64, at time: UInt64) {
        guard let known = producers[id], known.lastSeen < time else { return }
        producers[id]?.lastSeen = time
    }

    /// Puts back what a checkpoint held.
    public mutating func restore(_ progress: ProducerProgress) {
        let entry = insert(progress.producer, progress.partition, epoch: progress.epoch)
        let next = entry.pointee.nextPartition
        entry.pointee = progress
        entry.pointee.nextPartition = next
    }

    public mutating func expire(_ id: UInt64) {
        if let producer = producers.removeValue(forKey: id),
            producersByName[producer.name] == id
        {
            producersByName.removeValue(forKey: producer.name)
        }
        var partition = firstPartitions.removeValue(forKey: id) ?? ProducerProgress.noPartition
        while partition != ProducerProgress.noPartition, let entry = find(id, partition) {
            partition = entry.pointee.nextPartition
            remove(at: entry)
        }
    }

    public mutating func remove(partitions: Set<UInt32>) {
        var affected: Set<UInt64> = []
        forEach { if partitions.contains($0.partition) { affected.insert($0.producer) } }
        for producer in affected.sorted() { remove(partitions, of: producer) }
    }

    /// Takes the entries out of their chain in one walk: a producer may publish to thousands of the
    /// partitions of a queue that is deleted.
    private mutating func remove(_ partitions: Set<UInt32>, of producer: UInt64) {
        var gone: [UInt32] = []
        var first = ProducerProgress.noPartition
        var last: UnsafeMutablePointer<ProducerProgress>?
        forEach(of: producer) { entry in
            let partition = entry.pointee.partition
            guard !partitions.contains(partition) else {
                gone.append(partition)
                return
            }
            if let last { last.pointee.nextPartition = partition } else { first = partition }
            last = entry
        }
        last?.pointee.nextPartition = ProducerProgress.noPartition
        firstPartitions[producer] = first == ProducerProgress.noPartition ? nil : first
        for partition in gone {
            if let entry = find(producer, partition) { remove(at: entry) }
        }
    }

    /// Forgets what was stored at `offset` and above in a partition that lost it.
    public mutating func cut(partition: UInt32, at offset: UInt64) {
        for at in 0...mask where slots[at].producer != 0 && slots[at].partition == partition {
            slots[at].cut(at: offset)
        }
    }

    /// True for a producer that is known and was last seen before `time`.
    ///
    /// - Parameter looked: is raised by the entries that were looked at.
    public func isIdle(_ id: UInt64, since time: UInt64, looked: inout Int) -> Bool {
        guard let producer = producers[id], producer.lastSeen < time else { return false }
        var partition = firstPartitions[id] ?? ProducerProgress.noPartition
        while partition != ProducerProgress.noPartition, let entry = find(id, partition) {
            looked += 1
            if entry.pointee.lastSeen >= time { return false }
            partition = entry.pointee.nextPartition
        }
        return true
    }

    public func forEach(_ body: (ProducerProgress) -> Void) {
        for at in 0...mask where slots[at].producer != 0 { body(slots[at]) }
    }
}
