internal import BrokerBasics
internal import BrokerTestSupport

// How it works. A recovery has three parts, and a crash may come in each. Before anything runs, the
// directories of new shards are made and the tails of partitions that go elsewhere are written; then the
// shards write their first checkpoints, in their order, and serve; then what shards that are gone have
// left is removed. A recovery from the same disk and seed does the same again, so that the operations of a
// whole one can be counted on a copy, and the power of the next goes after any of them.

/// How many operations the parts of a recovery have.
struct RecoveryLength {
    /// Before anything runs.
    var start = 0
    /// Of those, the first that writes a tail which goes elsewhere; `start` when none does.
    var firstTail = 0
    /// Completions until it serves.
    var checkpoints = 0
    /// Of what shards that are gone have left.
    var retirement = 0
    /// Places where the power can go: after none of the operations, up to before the last.
    var total: Int { max(1, start + checkpoints + retirement) }
}

/// Where in recoveries the power went.
struct RecoveryCrashes {
    var all = 0
    /// In the later half of a recovery's operations.
    var late = 0
    /// After something of a tail that goes elsewhere was written, and before anything runs.
    var betweenTails = 0
    var amongCheckpoints = 0
    var inRetirement = 0

    mutating func add(_ place: Int, of length: RecoveryLength) {
        all += 1
        if place * 2 >= length.total { late += 1 }
        switch place {
        case ..<length.start: if place > length.firstTail { betweenTails += 1 }
        case ..<(length.start + length.checkpoints): amongCheckpoints += 1
        default: inRetirement += 1
        }
    }
    mutating func add(_ other: RecoveryCrashes) {
        all += other.all
        late += other.late
        betweenTails += other.betweenTails
        amongCheckpoints += other.amongCheckpoints
        inRetirement += other.inRetirement
    }
}

/// A recovery that is done more than once: whole, and cut short.
struct RecoveryRun {
    enum Crash {
        case kill, powerCut
    }
    var disk: SimulatedDisk
    var settings: SimulatedShard.Settings
    var seed: UInt64
    var wall: UInt64

    private func begin(on disk: SimulatedDisk) throws -> SimulatedShard {
        try SimulatedShard(disk: disk, settings: settings, seed: seed, wall: wall)
    }

    /// Runs it to its end, on a copy; `nil` when it does not come to one.
    func length(_ random: inout SeededRandom) -> RecoveryLength? {
        // Of a disk on which nothing is in flight, a killed process leaves all as it is.
        let disk = disk.afterKill(&random)
        var length = RecoveryLength()
        guard let shard = try? begin(on: disk) else { return nil }
        length.start = disk.operations
        length.firstTail = min(disk.operationsBeforeSegment ?? .max, length.start)
        guard shard.run(until: { shard.isReady }) else { return nil }
        length.checkpoints = shard.completions
        guard (try? shard.retire()) != nil else { return nil }
        length.retirement = disk.operations - length.start
        return length
    }

    /// The disk when it ends after `place` operations.
    func cut(
        after place: Int, of length: RecoveryLength, _ crash: Crash,
        _ random: inout SeededRandom
    ) -> SimulatedDisk {
        disk.operationsUntilCrash = place < length.start ? place : nil
        if let shard = try? begin(on: disk) {
            let served = length.start + length.checkpoints
            shard.run(until: {
                place < served ? shard.completions >= place - length.start : shard.isReady
            })
            if place >= served {
                disk.operationsUntilCrash = place - served
                try? shard.retire()
            }
        }
        disk.operationsUntilCrash = nil
        return switch crash {
        case .kill: disk.afterKill(&random)
        case .powerCut: disk.afterPowerCut(.some, &random)
        }
    }
}
