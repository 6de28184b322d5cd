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
