internal import BrokerBasics
public import LogStorage

// How it works. An image is what a power cut of one moment would have left: of each shard, what was on stable
// storage then. Recovery of such a directory is what a start does after any crash, so nothing about an image is
// special, and nothing in it is newer than it says.
//
//     journal     recycled ...... replayFrom ...... checkpoint ...... durable | what comes later
//                                 |<------------ goes into the image -------->| zeros instead
//
// While the files are read the shard holds back what would take them away: checkpoints (so the journal is not
// recycled) until the journal is copied, removals of files until all is. A segment that nobody writes to any more
// may be linked; of the others what is on stable storage is copied.
//
// Over shards: shard 0 has the say over what queues there are and where partitions live, and a change is durable
// there before any other shard hears of it. So **its moment comes last**: then no other shard's part knows of
// anything that shard 0's does not, and what it knows less recovery brings up (`ShardAssembly`). A partition that
// moves from shard to shard in between would be with neither: the image counts only if placement was the same
// before the first moment and after the last.

/// What of one shard's files makes its part of an image.
public struct BackupPlan: Sendable, Equatable {
    public struct Segment: Sendable, Equatable {
        public var file: FileName
        /// On stable storage.
        public var bytes: UInt64
        /// Nobody writes to it any more.
        public var isFinal: Bool

        public init(file: FileName, bytes: UInt64, isFinal: Bool) {
            self.file = file
            self.bytes = bytes
            self.isFinal = isFinal
        }
    }

    public var shard: UInt16
    public var identity: Identity
    /// The checkpoint's sequence.
    public var checkpoint: UInt64
    /// Positions of the journal: from where the checkpoint needs it to what was durable.
    public var journal: Range<UInt64>
    public var segments: [Segment]
    /// By partition id, the shard that it lives on.
    public var placements: [UInt16]

    public init(
        shard: UInt16, identity: Identity, checkpoint: UInt64, journal: Range<UInt64>,
        segments: [Segment], placements: [UInt16]
    ) {
        self.shard = shard
        self.identity = identity
        self.checkpoint = checkpoint
        self.journal = journal
        self.segments = segments
        self.placements = placements
    }
}

extension BackupPlan {
    /// A partition of which shards think differently where it lives: it moved between their moments, and may be
    /// with neither. `nil`: the plans make an image.
    ///
    /// - Parameter plans: of all shards, shard 0's last.
    public static func movedPartition(_ plans: [BackupPlan]) -> UInt32? {
        guard let last = plans.last?.placements else { return nil }
        for plan in plans {
            // One that was made or deleted meanwhile is known to shard 0, who has the say.
            for (id, (before, now)) in zip(plan.placements, last).enumerated()
            where before != now && before != .max && now != .max { return UInt32(id) }
        }
        return nil
    }
}

/// Copies one shard's part of an image. Its caller's thread waits for the disk: it is none of a shard's.
public struct BackupCopy: ~Copyable {
    private static let pieceBytes = 1 << 20

    private let source: any RecoveryStorage
    private let target: any RecoveryStorage
    private let pace: (_ bytes: Int) throws(StorageFailure) -> Void
    private let memory = AlignedMemory(byteCount: pieceBytes)

    /// - Parameters:
    ///   - source: the data directory as the shard sees it.
    ///   - target: the image, the same.
    ///   - pace: called behind each piece; waits as the bandwidth asks, and throws to give up.
    public init(
        from source: any RecoveryStorage, to target: any RecoveryStorage,
        pace: @escaping (_ bytes: Int) throws(StorageFailure) -> Void
    ) {
        self.source = source
        self.target = target
        self.pace = pace
    }

    /// Makes folders, and a journal of zeros: before the shard holds anything back for it.
    public func prepare(_ geometry: JournalGeometry, shard: UInt16) throws(StorageFailure) {
        for directory in StorageDirectory.allCases where directory != .root || shard > 0 {
            try target.makeDirectory(directory)
        }
        memory.base.initializeMemory(as: UInt8.self, repeating: 0, count: Self.pieceBytes)
        for index in 0..<geometry.fileCount {
            var at: UInt64 = 0
            while at < geometry.fileBytes {
                let count = Int(min(geometry.fileBytes - at, UInt64(Self.pieceBytes)))
                try target.write(
                    .journal(index), at: at,
                    UnsafeRawBufferPointer(start: memory.base, count: count))
                try pace(count)
                at += UInt64(count)
            }
        }
    }

    /// The checkpoint, and what of the journal belongs to it. The shard writes no checkpoint until it is done.
    public func copyJournal(_ plan: BackupPlan) throws(StorageFailure) {
        let geometry = plan.identity.geometry
        let checkpoint = FileName.checkpoint(plan.checkpoint)
        guard let bytes = try source.size(checkpoint) else {
            throw StorageFailure("\(checkpoint.path) is gone")
        }
        try copy(checkpoint, 0..<bytes)
        try target.sync(checkpoint)
        var at = plan.journal.lowerBound
        while at < plan.journal.upperBound {
            let end = min(plan.journal.upperBound, geometry.nextFile(after: at))
            let first = geometry.offset(of: at)
            try copy(.journal(geometry.file(of: at)), first..<first + (end - at))
            at = end
        }
    }

    /// - Parameter link: makes a second name of a file in the image; false when it has to be copied.
    public func copySegments(
        _ plan: BackupPlan, link: (FileName) throws(StorageFailure) -> Bool
    ) throws(StorageFailure) {
        for segment in plan.segments {
            if segment.isFinal, try link(segment.file) { continue }
            try copy(segment.file, 0..<segment.bytes)
            try target.sync(segment.file)
        }
    }

    /// Brings what was copied to stable storage; the identity comes last, as in a new directory.
    public func finish(_ plan: BackupPlan) throws(StorageFailure) {
        for index in 0..<plan.identity.geometry.fileCount { try target.sync(.journal(index)) }
        for directory in [StorageDirectory.journal, .checkpoints, .segments, .root] {
            try target.syncDirectory(directory)
        }
        let encoded = plan.identity.encoded
        var failure: StorageFailure?
        encoded.withUnsafeBytes { bytes in
            do throws(StorageFailure) { try target.write(.identity, at: 0, bytes) } catch {
                failure = error
            }
        }
        if let failure { throw failure }
        try target.sync(.identity)
        try target.syncDirectory(.root)
    }

    private func copy(_ file: FileName, _ range: Range<UInt64>) throws(StorageFailure) {
        var at = range.lowerBound
        while at < range.upperBound {
            let count = Int(min(range.upperBound - at, UInt64(Self.pieceBytes)))
            let buffer = UnsafeMutableRawBufferPointer(start: memory.base, count: count)
            let read = try source.read(file, at: at, into: buffer)
            guard read == count else {
                throw StorageFailure(
                    "\(file.path) ends at byte \(at + UInt64(read)); \(range.upperBound) bytes of it "
                        + "were on stable storage")
            }
            try target.write(file, at: at, UnsafeRawBufferPointer(buffer))
            try pace(count)
            at += UInt64(count)
        }
    }
}
