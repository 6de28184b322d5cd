internal import BrokerBasics
internal import FuseDisk

/// A cut of the power: what a disk still has of a log that was cut off at `place`.
///
/// Everything before the last flush is there. Of the writes since, which may be in the disk's cache
/// only, a disk keeps what it likes, in whatever order, sector by sector; what is kept of two writes
/// to the same sector is of the later one.
struct PowerCut: Sendable {
    enum Survival: String, CaseIterable, Sendable {
        /// The last write and not the first; of those between, any part.
        case reordered
        /// The first so many writes, and the next one torn.
        case prefix
        /// Each write whole, torn or not at all.
        case subset
        /// Nothing of the epoch.
        case none
        /// All of it.
        case all

        /// Below it there is nothing to choose from.
        var unsyncedWritesMin: Int {
            switch self {
            case .reordered, .subset: 2
            case .prefix: 1
            case .none, .all: 0
            }
        }
    }

    /// What was done to the log, all of it counted.
    struct Facts: Sendable {
        /// Writes since the last flush.
        var unsyncedWrites = 0
        var lostWrites = 0
        var tornWrites = 0
        /// Something was kept that was written after something that was lost.
        var isReordered = false
    }

    /// The log's first so many entries had happened.
    var place: Int
    var survival: Survival
    var seed: UInt64

    /// Puts the disk together.
    ///
    /// - Parameters:
    ///   - memory: what the disk had before the log's first entry; what it has afterwards.
    ///   - sectorBytes: what the disk writes whole or not at all.
    func apply(_ log: WriteLog, to memory: borrowing DiskMemory, sectorBytes: Int) -> Facts {
        var random = SeededRandom(seed: seed)
        var facts = Facts()
        let start = log.epochStart(before: place)
        for entry in log.entries[..<start] {
            if case .write(let offset, let bytes, let count) = entry {
                put(log, bytes..<bytes + count, memory, offset)
            }
        }
        let unsynced = log.entries[start..<place].compactMap { entry in
            if case .write(let offset, let bytes, let count) = entry {
                (offset: offset, bytes: bytes, count: count)
            } else {
                nil
            }
        }
        facts.unsyncedWrites = unsynced.count
        let kept = random.below(unsynced.count)
        for (number, write) in unsynced.enumerated() {
            let sectors = (write.count + sectorBytes - 1) / sectorBytes
            let survivors = survivors(number, of: unsynced.count, kept, sectors, &random)
            for sector in survivors {
                let from = sector * sectorBytes
                let to = min(write.count, from + sectorBytes)
                put(log, write.bytes + from..<write.bytes + to, memory, write.offset + from)
            }
            if !survivors.isEmpty, facts.lostWrites + facts.tornWrites > 0 {
                facts.isReordered = true
            }
            if survivors.isEmpty {
                facts.lostWrites += 1
            } else if survivors.count < sectors {
                facts.tornWrites += 1
            }
        }
        return facts
    }

    private func put(
        _ log: WriteLog,
        _ bytes: Range<Int>,
        _ memory: borrowing DiskMemory,
        _ offset: Int
    ) {
        log.bytes[bytes].withUnsafeBytes { memory.put($0, at: offset) }
    }

    /// How many writes a cut at `place` may lose.
    static func unsyncedWrites(_ log: WriteLog, at place: Int) -> Int {
        log.entries[log.epochStart(before: place)..<place].count {
            if case .write = $0 { true } else { false }
        }
    }

    /// The sectors of one write that are kept.
    private func survivors(
        _ number: Int,
        of count: Int,
        _ kept: Int,
        _ sectors: Int,
        _ random: inout SeededRandom
    ) -> [Int] {
        switch survival {
        case .none: return []
        case .all: return Array(0..<sectors)
        case .prefix:
            if number < kept { return Array(0..<sectors) }
            return number == kept ? Array(0..<min(sectors - 1, 1 + random.below(sectors))) : []
        case .reordered where number == 0: return []
        case .reordered where number == count - 1: return Array(0..<sectors)
        case .subset, .reordered:
            switch random.below(3) {
            case 0: return []
            case 1: return Array(0..<sectors)
            default: return (0..<sectors).filter { _ in random.chance(1, in: 2) }
            }
        }
    }
}
