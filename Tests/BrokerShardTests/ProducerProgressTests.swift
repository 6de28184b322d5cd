import BrokerBasics
import BrokerCore
import BrokerShard
import BrokerTestSupport
import LogStorage
import Testing
import WireProtocol

/// What is remembered of a producer when a crash took the end of a `memory` partition.
@Suite("Producer progress over a loss")
struct ProducerProgressTests {
    private func table() -> ProducerTable {
        var table = ProducerTable()
        table.open(Producer(id: 7, epoch: 1, name: "", lastSeen: 0))
        return table
    }

    private func judge(
        _ table: borrowing ProducerTable, _ sequence: UInt64
    ) -> ProducerTable.Verdict {
        table.judge(
            table.find(7, 3), producer: 7, epoch: 1, sequence: sequence, records: 1, anyStart: true)
    }

    @Test("when all runs that are kept are lost, what came before them still counts as stored")
    func allRunsAbove() {
        var table = table()
        // Every second offset is another producer's, so that each record is a run of its own.
        for sequence in UInt64(0)..<10 {
            table.insert(7, 3, epoch: 1).pointee.stored(
                sequence: sequence, count: 1, offset: sequence * 2, at: 1)
        }
        table.cut(partition: 3, at: 5)
        // Runs are kept of sequences 6 to 9, at 12 and above.
        for sequence in UInt64(0)..<6 {
            #expect(judge(table, sequence) == .duplicate(nil), "sequence \(sequence)")
        }
        #expect(judge(table, 6) == .accept)
        #expect(judge(table, 8) == .accept)
        // A second loss before anything else came changes nothing.
        table.cut(partition: 3, at: 5)
        #expect(judge(table, 5) == .duplicate(nil))
        #expect(judge(table, 6) == .accept)
    }

    @Test("a run that is cut in the middle is stored up to the cut")
    func cutInside() {
        var table = table()
        table.insert(7, 3, epoch: 1).pointee.stored(sequence: 0, count: 10, offset: 100, at: 1)
        table.cut(partition: 3, at: 104)
        #expect(judge(table, 3) == .duplicate(103))
        #expect(judge(table, 4) == .accept)
        #expect(judge(table, 6) == .accept)
    }

    @Test("a producer that has stored nothing in a partition begins anywhere after a loss")
    func nothingStored() {
        var table = table()
        _ = table.insert(7, 3, epoch: 1)
        table.cut(partition: 3, at: 5)
        #expect(judge(table, 0) == .accept)
        #expect(judge(table, 9) == .accept)
    }

    @Test("a retry after a crash does not store again what a memory queue still has")
    func retryAfterCrash() throws {
        let fixture = try Fixture { $0.limits.memoryFlushNanoseconds = .seconds(10_000) }
        let ticks = try fixture.create("ticks", level: .memory)[0]
        let producers = try (0..<2).map { _ in
            try #require(
                fixture.client.ask(
                    .producerOpen, ProducerOpenRequest(name: ""), reply: ProducerOpenReply.self))
        }
        func numbered(_ producer: Int, _ sequence: UInt64, bytes: Int = 900) -> [UInt8] {
            batch(
                ["\(producer)/\(sequence)"], bytes: bytes, producer: producers[producer].producerID,
                epoch: producers[producer].epoch, sequence: sequence)
        }
        // The two take turns. What fills chunks is written behind; a checkpoint knows of all.
        for sequence in UInt64(0)..<18 {
            for producer in 0..<2 { try fixture.publish(numbered(producer, sequence), to: ticks) }
        }
        fixture.shard.pass(milliseconds: 20)
        let stored = fixture.counters.chunksWritten
        #expect(stored > 0)
        // The last rounds stay in memory only.
        for sequence in UInt64(18)..<24 {
            for producer in 0..<2 {
                try fixture.publish(numbered(producer, sequence, bytes: 8), to: ticks)
            }
        }
        #expect(fixture.counters.chunksWritten == stored)
        let checkpoints = fixture.counters.checkpoints
        fixture.shard.pass(milliseconds: 11_000)
        #expect(fixture.counters.checkpoints > checkpoints)
        #expect(fixture.counters.chunksWritten == stored)

        var random = SeededRandom(seed: 3)
        let after = try Fixture(disk: fixture.shard.disk.afterPowerCut(.none, &random))
        for sequence in UInt64(0)..<24 {
            for producer in 0..<2 {
                let entry = try after.publish(numbered(producer, sequence), to: ticks)
                if sequence < 18 { #expect(entry.flags & ConfirmEntry.duplicateFlag != 0) }
            }
        }
        let found = try after.readBack("ticks", records: 30)
        let texts = found.map(\.text)
        #expect(Set(texts).count == texts.count, "stored twice: \(texts)")
        #expect(texts.contains("0/23") && texts.contains("1/23"))
    }
}

/// Where producers' progress is kept, beside a dictionary that is asked and told the same.
@Suite("Producer table")
struct ProducerTableTests {
    private struct Pair: Hashable {
        var producer: UInt64
        var partition: UInt32
    }

    @Test("whatever goes, the rest is found, and what went is not", arguments: UInt64(1)...20)
    func removal(seed: UInt64) {
        var random = SeededRandom(seed: seed)
        var table = ProducerTable()
        var kept: [Pair: UInt64] = [:]
        var removed = 0
        for step in UInt64(1)...3000 {
            let producer = 1 + UInt64(random.below(40))
            let partition = UInt32(random.below(60))
            switch random.below(100) {
            case 0:
                table.expire(producer)
                removed += kept.count { $0.key.producer == producer }
                kept = kept.filter { $0.key.producer != producer }
            case 1:
                let gone = Set((0..<3).map { partition + $0 })
                table.remove(partitions: gone)
                removed += kept.count { gone.contains($0.key.partition) }
                kept = kept.filter { !gone.contains($0.key.partition) }
            case 2:
                table.open(Producer(id: producer, epoch: 2, name: "", lastSeen: step))
                for pair in kept.keys where pair.producer == producer { kept[pair] = 0 }
            default:
                let entry = table.insert(producer, partition, epoch: 1)
                entry.pointee.nextSequence = step
                kept[Pair(producer: producer, partition: partition)] = step
            }
            guard step % 50 == 0 else { continue }
            let count = table.count
            #expect(count == kept.count)
            var found: [Pair: UInt64] = [:]
            table.forEach {
                found[Pair(producer: $0.producer, partition: $0.partition)] = $0.nextSequence
            }
            #expect(found == kept)
            for pair in kept.keys {
                let isThere = table.find(pair.producer, pair.partition) != nil
                #expect(isThere)
            }
            for partition in UInt32(0)..<64 {
                let pair = Pair(producer: producer, partition: partition)
                let isThere = table.find(producer, partition) != nil
                #expect(isThere == (kept[pair] != nil))
            }
        }
        #expect(removed > 100)
    }

    @Test("what a chain loses at its ends and in its middle is found no more, and the rest expires")
    func chains() {
        for gone in [[0], [1, 2], [7], [0, 1, 2, 3, 4, 5, 6, 7], [0, 2, 4, 6], []] as [[UInt32]] {
            var table = ProducerTable()
            for producer in UInt64(1)...3 {
                table.open(Producer(id: producer, epoch: 1, name: "", lastSeen: 0))
                for partition in UInt32(0)..<8 {
                    _ = table.insert(producer, partition, epoch: 1)
                }
            }
            table.remove(partitions: Set(gone))
            var count = table.count
            #expect(count == 3 * (8 - gone.count))
            // Every entry that is left is in its chain: the next epoch reaches it.
            table.open(Producer(id: 2, epoch: 2, name: "", lastSeen: 0))
            for partition in UInt32(0)..<8 where !gone.contains(partition) {
                let epochs = (UInt64(1)...3).map { table.find($0, partition)?.pointee.epoch }
                #expect(epochs == [1, 2, 1], "without \(gone), partition \(partition)")
            }
            for producer in UInt64(1)...3 { table.expire(producer) }
            count = table.count
            #expect(count == 0)
        }
    }

    @Test("a producer is idle when it was heard of in no partition, and was not opened, since")
    func idle() {
        var table = ProducerTable()
        table.open(Producer(id: 7, epoch: 1, name: "", lastSeen: 100))
        var looked = 0
        let opened = (
            table.isIdle(7, since: 100, looked: &looked),
            table.isIdle(7, since: 101, looked: &looked)
        )
        #expect(looked == 0)
        #expect(opened == (false, true))
        for partition in UInt32(1)...5 {
            table.insert(7, partition, epoch: 1).pointee.lastSeen = 50
        }
        var isIdle = table.isIdle(7, since: 101, looked: &looked)
        #expect(isIdle)
        for partition in UInt32(1)...5 {
            table.find(7, partition)?.pointee.lastSeen = 200
            isIdle = table.isIdle(7, since: 101, looked: &looked)
            #expect(!isIdle, "partition \(partition)")
            table.find(7, partition)?.pointee.lastSeen = 50
        }
        isIdle = table.isIdle(8, since: 101, looked: &looked)
        #expect(!isIdle)
    }
}
