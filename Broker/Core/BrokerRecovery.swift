internal import BrokerBasics
public import LogStorage

/// A data directory becomes the shards of a broker: each is recovered by itself, then they are held
/// against each other (`ShardAssembly`).
public struct BrokerRecovery {
    private let storage: (UInt16) -> any RecoveryStorage
    private let options: RecoveryOptions
    private let segmentBytes: UInt64

    /// - Parameter storage: the data directory as the shard with this number sees it.
    public init(
        options: RecoveryOptions, segmentBytes: UInt64,
        storage: @escaping (UInt16) -> any RecoveryStorage
    ) {
        self.options = options
        self.segmentBytes = segmentBytes
        self.storage = storage
    }

    /// What came out, in the order of the shards.
    public struct Outcome {
        public var shards: [RecoveredSlot]
        /// Shards that the directory has and that will not run: `ShardAssembly.retire` them once the
        /// others serve.
        public var retired: [UInt16]
        public var partitionsMoved: Int
    }

    /// - Parameter shards: how many will run; `nil`: as many as the directory has.
    public func run(
        shards wanted: Int?,
        progress: @escaping @Sendable (UInt16, RecoveryProgress) -> Void = { _, _ in }
    ) throws(RecoveryError) -> Outcome {
        var before = 0
        do throws(StorageFailure) {
            // They are made upwards and retired downwards: there is no gap.
            while before < ShardFolder.shardsMax,
                try storage(UInt16(before)).size(.identity) != nil
            { before += 1 }
        } catch { throw .storage(error) }
        let shards = wanted ?? max(1, before)
        var storages: [any RecoveryStorage] = []
        var slots: [RecoveredSlot] = []
        var options = options
        for number in 0..<UInt16(max(before, shards)) {
            let storage = storage(number)
            options.shard = number
            let recovered = try Recovery(storage: storage, options: options).run {
                progress(number, $0)
            }
            // A shard that joins has a journal like that of the first.
            options.geometry = recovered.identity.geometry
            options.serverID = recovered.identity.serverID
            if number == 0 { options.placements = recovered.state.placements }
            storages.append(storage)
            slots.append(RecoveredSlot(recovered))
            // Each directory's journal is its own.
            options.journalID &+= 0x9E37_79B9_7F4A_7C15
        }
        var assembly = ShardAssembly(
            storages: storages, slots: slots, shards: shards, segmentBytes: segmentBytes,
            faults: options.faults)
        let moved = try assembly.run(before: before)
        return Outcome(
            shards: Array(slots.prefix(shards)),
            retired: (shards..<max(shards, before)).reversed().map { UInt16($0) },
            partitionsMoved: moved)
    }
}
