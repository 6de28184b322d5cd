import BrokerBasics
import BrokerShard
import BrokerTestSupport
import LogStorage
import Testing
import WireProtocol

/// The memory of tails: lent in sizes, within a budget, and beyond it while a broker starts.
@Suite("Chunk pool")
struct ChunkPoolTests {
    private static let chunk = 256 * 1024

    private func take(
        _ pool: inout ChunkPool, bytes: Int = 1, busy: Bool = true
    ) throws -> ChunkPool.Chunk {
        let chunk = pool.take(partition: 1, baseOffset: 0, batchBytes: bytes, busy: busy)
        return try #require(chunk)
    }

    /// Takes whole slabs until there are none.
    private func takeAll(_ pool: inout ChunkPool) -> [ChunkPool.Chunk] {
        var taken: [ChunkPool.Chunk] = []
        while let chunk = pool.take(partition: 1, baseOffset: 0, batchBytes: 1, busy: true) {
            taken.append(chunk)
        }
        return taken
    }

    @Test("a slab serves one size at a time, and is free again with the last of its pieces")
    func pieces() throws {
        var pool = ChunkPool(chunkBytesMax: Self.chunk, budgetBytes: 4 * Self.chunk)
        pool.beginServing()
        // 4 KiB each: 64 of them are one slab.
        var small: [ChunkPool.Chunk] = []
        for _ in 0..<65 { small.append(try take(&pool, bytes: 100, busy: false)) }
        let used1 = pool.usedBytes
        #expect(used1 == 2 * Self.chunk)
        #expect(Set(small.map(\.pointee.memory)).count == 65)
        #expect(small.allSatisfy { $0.pointee.capacity == 4096 })
        let large = try take(&pool)
        #expect(large.pointee.capacity == Self.chunk)
        let used2 = pool.usedBytes
        #expect(used2 == 3 * Self.chunk)
        // A piece that came back is lent again before another slab is split.
        let again = small[3].pointee.memory
        pool.give(small.remove(at: 3))
        let next = try take(&pool, busy: false)
        #expect(next.pointee.memory == again)
        let used3 = pool.usedBytes
        #expect(used3 == 3 * Self.chunk)
        for chunk in small + [next, large] { pool.give(chunk) }
        let used4 = pool.usedBytes
        #expect(used4 == 0)
    }

    @Test("a chunk grows into the next sizes and keeps its bytes")
    func growth() throws {
        var pool = ChunkPool(chunkBytesMax: Self.chunk, budgetBytes: 4 * Self.chunk)
        pool.beginServing()
        let chunk = try take(&pool, busy: false)
        chunk.pointee.memory.storeBytes(of: 0x1234_5678, toByteOffset: 200, as: UInt32.self)
        chunk.pointee.used = 4000
        for bytes in [10_000, 60_000, 200_000] {
            let grew = pool.grow(chunk, toHold: bytes)
            #expect(grew)
            #expect(chunk.pointee.capacity >= 4000 + bytes)
            #expect(chunk.pointee.memory.load(fromByteOffset: 200, as: UInt32.self) == 0x1234_5678)
        }
        let grewTooFar = pool.grow(chunk, toHold: Self.chunk)
        #expect(!grewTooFar)
        let used5 = pool.usedBytes
        #expect(used5 == Self.chunk)
        pool.give(chunk)
        let used6 = pool.usedBytes
        #expect(used6 == 0)
    }

    @Test("a batch larger than a chunk needs slabs side by side, and gives all of them back")
    func oversized() throws {
        var pool = ChunkPool(chunkBytesMax: Self.chunk, budgetBytes: 8 * Self.chunk)
        pool.beginServing()
        var whole = takeAll(&pool)
        #expect(whole.count == 8)
        whole.sort { $0.pointee.memory < $1.pointee.memory }
        // Every other one free: half of all, and no two side by side.
        for place in [7, 5, 3, 1] { pool.give(whole.remove(at: place)) }
        let none = pool.take(partition: 1, baseOffset: 0, batchBytes: Self.chunk + 1, busy: true)
        #expect(none == nil)
        pool.give(whole.remove(at: 1))
        let wide = try take(&pool, bytes: 2 * Self.chunk)
        #expect(wide.pointee.capacity >= 2 * Self.chunk)
        wide.pointee.memory.storeBytes(
            of: 7, toByteOffset: wide.pointee.capacity - 1, as: UInt8.self)
        let used7 = pool.usedBytes
        #expect(used7 == 6 * Self.chunk)
        for chunk in whole + [wide] { pool.give(chunk) }
        let used8 = pool.usedBytes
        #expect(used8 == 0)
    }

    @Test("before serving there are four budgets; what lies beyond one is not lent again")
    func beyondTheBudget() throws {
        var pool = ChunkPool(chunkBytesMax: Self.chunk, budgetBytes: 4 * Self.chunk)
        var taken = takeAll(&pool)
        #expect(taken.count == 16)
        pool.give(taken.removeLast())
        pool.beginServing()
        let none = pool.take(partition: 1, baseOffset: 0, batchBytes: 1, busy: true)
        #expect(none == nil)
        for chunk in taken { pool.give(chunk) }
        let used9 = pool.usedBytes
        #expect(used9 == 0)
        taken = takeAll(&pool)
        #expect(taken.count == 4)
        let budget = pool.budget.count
        #expect(budget == 4 * Self.chunk)
        for chunk in taken { pool.give(chunk) }
    }

    @Test("a broker that ran within its memory starts again within its settings")
    func startsAgain() throws {
        func settings(_ settings: inout SimulatedShard.Settings) {
            settings.limits.tailBytesMax = 64 * 1024
        }
        let before = try Fixture(settings: settings)
        // Each of them needs a chunk at the start, for the range that it lost; in sum more than there
        // is. While it ran they came one after the other, and the older ones were given up.
        let partitions = try before.create("ticks", partitions: 40, level: .memory)
        for partition in partitions { try before.publish(1, to: partition) }
        var random = SeededRandom(seed: 3)
        let after = try Fixture(
            disk: before.shard.disk.afterPowerCut(.none, &random), settings: settings)
        for partition in partitions { try after.publish(1, to: partition) }
        let isReady = after.shard.machine.isReady
        #expect(isReady)
    }
}
