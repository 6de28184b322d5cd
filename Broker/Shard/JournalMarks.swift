internal import LogStorage

/// How full the journal may become, and what happens at each mark; in bytes.
///
///     sixteenths  0  1                 7        10   11   12   14   16
///                 |--|-----------------|--------|----|----|----|----|
///                 young                period   |    |    |    publishes end
///                                               |    |    publishes fall to the pace of write-behind
///                                               |    checkpoints hurry
///                                               a checkpoint
///
/// In the steady state of many partitions the oldest batch is a period and what was young behind, eight
/// sixteenths; the next checkpoint comes two later, and has one for itself before it hurries.
struct JournalMarks {
    private let sixteenth: UInt64

    init(_ geometry: JournalGeometry) { sixteenth = geometry.capacity / 16 }

    /// What is younger stays where it is: it may fill its chunk.
    var young: UInt64 { sixteenth }
    /// The journal grows by this while the sweep goes over all partitions. Longer means fuller chunks,
    /// and fewer flushes.
    var sweepPeriod: UInt64 { sixteenth * 7 }
    /// What is copied forward in one round at most.
    var carriedMax: UInt64 { sixteenth * 2 }
    /// What a checkpoint does not wait for, as long as there is no hurry.
    var awaited: UInt64 { sweepPeriod + young * 2 }
    /// The same in a hurry.
    var awaitedInHurry: UInt64 { sixteenth * 2 }
    /// A checkpoint comes when this is new,
    var checkpointGrowth: UInt64 { sixteenth * 5 }
    /// or when so much is used, and enough is new to be worth it.
    var checkpointUse: UInt64 { sixteenth * 10 }
    var checkpointGrowthMin: UInt64 { sixteenth }
    /// Above it, a checkpoint waits for all that is old, and its syncs come as fast as they go.
    var hurriedUse: UInt64 { sixteenth * 11 }
    /// Above it, publishes fall to the pace of write-behind.
    var pressureUse: UInt64 { sixteenth * 12 }
    /// What publishes leave free: for acks, copies forward, deletes and seals.
    var publishReserve: UInt64 { sixteenth * 2 }
}
