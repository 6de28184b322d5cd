internal import BrokerBasics
public import LogStorage

// How it works. Recovery is run on a storage that changes nothing: it reads identity, checkpoint and
// journal of every shard as a start would, and stops where a start would. With the state that it gives, every segment
// is read whole. So "nothing found" means that a start comes up, and that every record below what was
// on stable storage can be delivered.

/// What a check of a whole data directory found.
public struct DirectoryReport: Sendable {
    /// What recovery read, by shard; empty when a start would be refused, for the reason in `damages`.
    public var recoveries: [RecoveryReport] = []
    public var queues = 0
    public var partitions = 0
    public var segments = 0
    public var chunks = 0
    public var batches = 0
    public var segmentBytes: UInt64 = 0
    public var damages: [Damage] = []
}

/// Reads everything in a data directory that nobody serves, and changes nothing in it.
public struct DirectoryCheck {
    private let storage: (UInt16) -> any RecoveryStorage
    private let options: RecoveryOptions

    /// - Parameter storage: the directory as the shard with this number sees it.
    public init(
        options: RecoveryOptions, storage: @escaping (UInt16) -> any RecoveryStorage
    ) {
        self.storage = { ReadOnlyStorage(storage($0)) }
        self.options = options
    }

    /// - Throws: when the disk fails, or the directory is none.
    public func run(
        progress: @escaping @Sendable (UInt16, RecoveryProgress) -> Void = { _, _ in }
    ) throws(StorageFailure) -> DirectoryReport {
        guard try storage(0).size(.identity) != nil else {
            throw StorageFailure("there is no \(FileName.identity.path): not a data directory")
        }
        var report = DirectoryReport()
        let shards: [RecoveredSlot]
        do throws(RecoveryError) {
            // With as many shards as there are, nothing moves, and nothing is written.
            shards = try BrokerRecovery(options: options, segmentBytes: .max, storage: storage)
                .run(shards: nil, progress: progress).shards
        } catch {
            switch error {
            case .storage(let failure): throw failure
            case .journal(let damage):
                let lost = damage.lost.upperBound - damage.lost.lowerBound
                report.damages.append(
                    Damage(
                        file: damage.file, bytes: damage.offset..<damage.offset,
                        what:
                            "\(lost) bytes of the journal that were on stable storage can't be read"
                    ))
            case .damaged(let file, let offset, let what):
                report.damages.append(Damage(file: file, bytes: offset..<offset, what: what))
            }
            return report
        }
        for slot in shards {
            try slot.with { shard throws(StorageFailure) in try check(&shard, &report) }
        }
        return report
    }

    private func check(
        _ recovered: inout RecoveredShard, _ report: inout DirectoryReport
    ) throws(StorageFailure) {
        let storage = storage(recovered.state.shard)
        report.recoveries.append(recovered.report)
        report.queues = recovered.state.queues.count
        for index in recovered.state.partitions.indices {
            let partition = recovered.state.partitions[index]
            report.partitions += 1
            var reached = partition.pointee.log.startOffset
            for segment in partition.pointee.log.segments where segment.syncedBytes > 0 {
                if segment.baseOffset > reached {
                    report.damages.append(
                        Damage(
                            file: segment.file(partition: partition.pointee.id).path, bytes: 0..<0,
                            what: "it begins at offset \(segment.baseOffset); offsets "
                                + "\(reached) ..< \(segment.baseOffset) are in no segment"))
                }
                var check = SegmentCheck(
                    storage: storage, partition: partition.pointee.id, segment: segment,
                    chunkBytesMax: options.chunkBytesMax)
                try check.run()
                reached = segment.syncedEndOffset
                report.segments += 1
                report.chunks += check.chunks
                report.batches += check.batches
                report.segmentBytes += check.bytesRead
                report.damages += check.damages
            }
        }
    }
}

/// A storage that is looked at. What recovery would make is refused, what it would sync is as it is.
private final class ReadOnlyStorage: RecoveryStorage {
    private let storage: any RecoveryStorage
    init(_ storage: any RecoveryStorage) { self.storage = storage }

    private func refuse(_ what: String) -> StorageFailure {
        StorageFailure("\(what) is for a start to do; this only looks")
    }

    func list(_ directory: StorageDirectory) throws(StorageFailure) -> [String] {
        try storage.list(directory)
    }
    func size(_ file: FileName) throws(StorageFailure) -> UInt64? { try storage.size(file) }
    func read(
        _ file: FileName, at position: UInt64, into buffer: UnsafeMutableRawBufferPointer
    ) throws(StorageFailure) -> Int {
        try storage.read(file, at: position, into: buffer)
    }
    func makeDirectory(_ directory: StorageDirectory) throws(StorageFailure) {
        throw refuse("making \(directory.rawValue)")
    }
    func write(
        _ file: FileName, at position: UInt64, _ bytes: UnsafeRawBufferPointer
    ) throws(StorageFailure) {
        throw refuse("writing \(file.path)")
    }
    func makeZeroed(_ file: FileName, bytes: UInt64) throws(StorageFailure) {
        throw refuse("making \(file.path)")
    }
    func remove(_ file: FileName) throws(StorageFailure) { throw refuse("removing \(file.path)") }
    func sync(_ file: FileName) throws(StorageFailure) {}
    func syncDirectory(_ directory: StorageDirectory) throws(StorageFailure) {}
}
