import BrokerBasics
import BrokerCore
import BrokerShard
import BrokerTestSupport
import CAllocationCount
import Glibc
import LogStorage
import Testing
import WireProtocol

/// A loop around the machine that keeps nothing and allocates nothing of its own: operations are done
/// as soon as they are asked for.
private struct MeteredLoop: ~Copyable {
    var machine: ShardMachine
    private var effects = EffectBuffer(capacity: 4096)
    private let done: UnsafeMutablePointer<(token: UInt64, result: Int32)>
    private var doneCount = 0
    private var now: UInt64 = 1_000_000_000
    var cycleNanoseconds: UInt64 = 1000
    /// What the last frame sent to each connection began with.
    private(set) var deliveredBytes = 0
    private(set) var lastSent: [Int32: [UInt8]] = [:]
    var keepsSent = true

    init(limits: ShardLimits, geometry: JournalGeometry) throws {
        let wall = WallTime(nanoseconds: 1_700_000_000_000_000_000)
        let options = RecoveryOptions(
            geometry: geometry, limits: limits.journal, chunkBytesMax: limits.chunkBytes,
            tailBudgetBytes: limits.tailBytesMax, serverID: 7, journalID: 11, now: wall)
        let disk = SimulatedDisk()
        let outcome = try BrokerRecovery(options: options, segmentBytes: limits.segmentBytes) {
            disk.folder($0)
        }.run(shards: 1)
        guard let recovered = outcome.shards[0].take() else { fatalError("taken once") }
        machine = ShardMachine(
            recovered: recovered, limits: limits, addresses: [],
            now: Instant(monotonic: MonotonicTime(nanoseconds: now), wall: wall))
        done = .allocate(capacity: 4096)
    }
    deinit { done.deallocate() }

    /// One duty cycle, then the completions of what it asked for; only the machine is metered.
    mutating func cycle() {
        now += cycleNanoseconds
        let instant = Instant(
            monotonic: MonotonicTime(nanoseconds: now),
            wall: WallTime(nanoseconds: 1_700_000_000_000_000_000 + now))
        allocation_count_begin()
        machine.begin(now: instant)
        for place in 0..<doneCount {
            machine.completed(token: done[place].token, result: done[place].result)
        }
        machine.advance()
        machine.emit(into: &effects)
        allocation_count_end()
        doneCount = 0
        for place in 0..<effects.count { carryOut(effects[place]) }
        effects.removeAll()
    }

    private mutating func carryOut(_ effect: Effect) {
        switch effect {
        case .send(let index, let bytes, let count):
            if keepsSent {
                lastSent[index, default: []] += UnsafeRawBufferPointer(start: bytes, count: count)
            }
            allocation_count_begin()
            _ = machine.sent(index, result: Int32(count))
            allocation_count_end()
        case .close(let index): machine.released(index)
        case .pauseReceive, .resumeReceive: break
        case .post: break
        case .storage(let request):
            let result: Int32
            switch request.operation {
            case .write(_, _, let bytes, _, _), .read(_, _, let bytes, _): result = Int32(bytes)
            case .close: return
            case .open, .allocate, .sync, .syncDirectory, .remove: result = 0
            }
            done[doneCount] = (request.token, result)
            doneCount += 1
        }
    }

    mutating func receive(_ index: Int32, _ bytes: UnsafeRawBufferPointer) {
        guard let base = bytes.baseAddress else { return }
        allocation_count_begin()
        machine.received(index, base, count: bytes.count)
        allocation_count_end()
    }
    mutating func say(_ index: Int32, _ frame: [UInt8]) {
        frame.withUnsafeBytes { receive(index, $0) }
        for _ in 0..<8 { cycle() }
    }
}

@Suite("Allocations", .serialized)
struct AllocationTests {
    @Test("the count sees what is allocated")
    func countWorks() {
        allocation_count_reset()
        allocation_count_begin()
        let memory = UnsafeMutableRawPointer.allocate(byteCount: 100, alignment: 8)
        let aligned = UnsafeMutableRawPointer.allocate(byteCount: 100, alignment: 4096)
        let array = [UInt8](repeating: 1, count: 1000 + Int(getpid() & 1))
        allocation_count_end()
        #expect(allocation_count() >= 3)
        #expect(array[5] == 1)
        memory.deallocate()
        aligned.deallocate()
    }

    @Test(
        "a record that is published and delivered allocates nothing, once all is warm",
        arguments: [DurabilityLevel.memory, .synced])
    func steadyState(level: DurabilityLevel) throws {
        var limits = ShardLimits()
        limits.connectionsMax = 64
        limits.frameBytesMax = 64 * 1024
        limits.stagingBytes = 1 << 20
        limits.chunkBytes = 4 << 20
        limits.tailBytesMax = 64 << 20
        limits.checkpointAfterNanoseconds = .seconds(10_000)
        limits.memoryFlushNanoseconds = .seconds(10_000)
        var loop = try MeteredLoop(
            limits: limits, geometry: JournalGeometry(fileBytes: 32 << 20, fileCount: 4))
        for _ in 0..<100 where !loop.machine.isReady { loop.cycle() }
        let isReady = loop.machine.isReady
        try #require(isReady)
        let opened = loop.machine.opened(peer: "producer")
        let producer = try #require(opened)
        let other = loop.machine.opened(peer: "consumer")
        let consumer = try #require(other)
        for index in [producer, consumer] {
            loop.say(
                index,
                FrameHeader(opcode: .hello, correlation: 1)
                    .frame(body: HelloRequest(clientName: "metered").encoded))
        }
        loop.say(
            producer,
            FrameHeader(opcode: .queueCreate, correlation: 2).frame(
                body: QueueCreateRequest(name: "queue", partitions: 1, level: level).encoded))
        loop.say(
            consumer,
            FrameHeader(opcode: .subscribe, correlation: 3, stream: 1).frame(
                body: SubscribeRequest(queue: "queue", creditRecords: .max, creditBytes: .max)
                    .encoded))
        loop.say(
            producer,
            FrameHeader(opcode: .producerOpen, correlation: 4)
                .frame(body: ProducerOpenRequest().encoded))
        loop.keepsSent = false
        let id = loop.machine.state.nextProducer - 1
        let partition = loop.machine.state.nextPartition - 1

        let warm = 10_000
        let measured = 10_000
        var frames: [UInt8] = []
        for number in 0..<warm + measured {
            frames += FrameHeader(
                opcode: .publish, correlation: UInt64(100 + number), stream: partition
            ).frame(
                body: batch(
                    ["record"], bytes: 64, producer: id, epoch: 1, sequence: UInt64(number)))
        }
        let frameBytes = frames.count / (warm + measured)
        try #require(frames.count == frameBytes * (warm + measured))
        // Eight publishes in one cycle, like a busy socket; and each eighth alone.
        func publish(_ range: Range<Int>) {
            frames.withUnsafeBytes { bytes in
                var number = range.lowerBound
                while number < range.upperBound {
                    let run = min(number % 72 < 64 ? 16 : 1, range.upperBound - number)
                    loop.receive(
                        0 + producer,
                        UnsafeRawBufferPointer(
                            rebasing: bytes[
                                number * frameBytes..<(number + run) * frameBytes]))
                    loop.cycle()
                    number += run
                }
            }
            for _ in 0..<4 { loop.cycle() }
        }
        publish(0..<warm)
        let before = loop.machine.counters
        #expect(before.deliveredRecords == UInt64(warm))
        allocation_count_reset()
        publish(warm..<warm + measured)
        let count = allocation_count()
        let after = loop.machine.counters
        #expect(after.publishedRecords == UInt64(warm + measured))
        #expect(after.deliveredRecords == UInt64(warm + measured))
        #expect(after.confirmedRecords == UInt64(warm + measured))
        #expect(after.checkpoints == before.checkpoints)
        #expect(after.chunksWritten == before.chunksWritten)
        if count > 0 { allocation_count_print_stack() }
        #expect(count == 0, "\(count) allocations for \(measured) records at \(level)")
    }

    // MARK: acks and chunks

    /// A broker with a producer and a consumer, before anything is warm.
    private struct Exchange: ~Copyable {
        var loop: MeteredLoop
        let producer: Int32
        let consumer: Int32
        let producerID: UInt64
        let partition: UInt32
        private var sequence: UInt64 = 0
        private var frames: [UInt8] = []
        private var frameBytes = 0
        private var acks: [UInt8] = []
        private var ackBytes = 0

        init(
            level: DurabilityLevel, group: String, _ change: (inout ShardLimits) -> Void = { _ in }
        ) throws {
            var limits = ShardLimits()
            limits.connectionsMax = 64
            limits.frameBytesMax = 64 * 1024
            limits.stagingBytes = 1 << 20
            limits.chunkBytes = 4 << 20
            limits.tailBytesMax = 64 << 20
            limits.checkpointAfterNanoseconds = .seconds(10_000)
            limits.memoryFlushNanoseconds = .seconds(10_000)
            change(&limits)
            var loop = try MeteredLoop(
                limits: limits, geometry: JournalGeometry(fileBytes: 32 << 20, fileCount: 4))
            for _ in 0..<100 where !loop.machine.isReady { loop.cycle() }
            let opened = (
                loop.machine.opened(peer: "producer"), loop.machine.opened(peer: "consumer")
            )
            let producer = try #require(opened.0)
            let consumer = try #require(opened.1)
            for index in [producer, consumer] {
                loop.say(
                    index,
                    FrameHeader(opcode: .hello, correlation: 1)
                        .frame(body: HelloRequest(clientName: "metered").encoded))
            }
            loop.say(
                producer,
                FrameHeader(opcode: .queueCreate, correlation: 2).frame(
                    body: QueueCreateRequest(name: "queue", partitions: 1, level: level).encoded))
            loop.say(
                consumer,
                FrameHeader(opcode: .subscribe, correlation: 3, stream: 1).frame(
                    body: SubscribeRequest(
                        queue: "queue", group: group, creditRecords: .max, creditBytes: .max
                    ).encoded))
            loop.say(
                producer,
                FrameHeader(opcode: .producerOpen, correlation: 4)
                    .frame(body: ProducerOpenRequest().encoded))
            loop.keepsSent = false
            producerID = loop.machine.state.nextProducer - 1
            partition = loop.machine.state.nextPartition - 1
            self.producer = producer
            self.consumer = consumer
            self.loop = loop
        }

        /// Makes the frames of the next `count` records, and their acks.
        mutating func prepare(_ count: Int, bytes: Int) {
            frames = []
            acks = []
            for place in 0..<UInt64(count) {
                let number = sequence + place
                frames += FrameHeader(
                    opcode: .publish, correlation: 100 + number, stream: partition
                ).frame(
                    body: batch(
                        ["record"], bytes: bytes, producer: producerID, epoch: 1, sequence: number))
                acks += FrameHeader(opcode: .ack, correlation: 1_000_000 + number, stream: 1)
                    .frame(body: Ack(partition: partition, epoch: 1, offset: number + 1).encoded)
            }
            frameBytes = frames.count / count
            ackBytes = acks.count / count
            sequence += UInt64(count)
        }

        /// Publishes what was prepared, `run` at a time; with `acking` each run is acked, one ack
        /// for each record, when it was delivered.
        mutating func publish(run: Int, acking: Bool) {
            let (frames, frameBytes) = (frames, frameBytes)
            let count = frames.count / frameBytes
            let (acks, ackBytes) = (acks, ackBytes)
            for first in stride(from: 0, to: count, by: run) {
                let last = min(first + run, count)
                frames.withUnsafeBytes {
                    loop.receive(
                        producer,
                        UnsafeRawBufferPointer(rebasing: $0[first * frameBytes..<last * frameBytes])
                    )
                }
                loop.cycle()
                guard acking else { continue }
                for _ in 0..<3 { loop.cycle() }
                acks.withUnsafeBytes {
                    loop.receive(
                        consumer,
                        UnsafeRawBufferPointer(rebasing: $0[first * ackBytes..<last * ackBytes]))
                }
                loop.cycle()
            }
            for _ in 0..<4 { loop.cycle() }
        }
    }

    @Test(
        "an ack allocates nothing, once all is warm",
        arguments: [DurabilityLevel.memory, .synced])
    func acks(level: DurabilityLevel) throws {
        var exchange = try Exchange(level: level, group: "desk")
        exchange.prepare(1000, bytes: 64)
        exchange.publish(run: 1, acking: true)
        let before = exchange.loop.machine.counters
        #expect(before.acks == 1000)
        exchange.prepare(1000, bytes: 64)
        allocation_count_reset()
        exchange.publish(run: 1, acking: true)
        let alone = allocation_count()
        if alone > 0 { allocation_count_print_stack() }
        #expect(alone == 0, "\(alone) allocations for 1000 acks, each alone, at \(level)")
        exchange.prepare(1600, bytes: 64)
        exchange.publish(run: 16, acking: true)
        exchange.prepare(1600, bytes: 64)
        allocation_count_reset()
        exchange.publish(run: 16, acking: true)
        let together = allocation_count()
        if together > 0 { allocation_count_print_stack() }
        #expect(together == 0, "\(together) allocations for 1600 acks in runs of 16 at \(level)")
        let after = exchange.loop.machine.counters
        #expect(after.acks == 5200)
        #expect(after.checkpoints == before.checkpoints)
        #expect(exchange.loop.machine.state.groups.values.first?.cursors == [5200])
    }

    @Test(
        "a chunk that is full, written behind, and one that is given up allocate nothing, once all is warm",
        arguments: [DurabilityLevel.memory, .synced])
    func chunks(level: DurabilityLevel) throws {
        var exchange = try Exchange(level: level, group: "") { limits in
            limits.chunkBytes = 64 * 1024
            limits.tailBytesMax = 16 << 20
        }
        // Each cycle keeps house: chunks are given up there.
        exchange.loop.cycleNanoseconds = 1_000_000
        // The tail fills to below the point where chunks are given up, and becomes durable.
        exchange.prepare(10_800, bytes: 1000)
        exchange.publish(run: 8, acking: false)
        exchange.loop.machine.checkpointer.isDue = true
        let checkpoints = exchange.loop.machine.counters.checkpoints
        for _ in 0..<100 { exchange.loop.cycle() }
        #expect(exchange.loop.machine.counters.checkpoints == checkpoints + 1)
        // Then every new chunk takes the memory of an old one.
        exchange.prepare(2200, bytes: 1000)
        exchange.publish(run: 8, acking: false)
        let before = exchange.loop.machine.counters
        #expect(before.evictedChunks > 0)
        exchange.prepare(1200, bytes: 1000)
        allocation_count_reset()
        exchange.publish(run: 8, acking: false)
        let count = allocation_count()
        let after = exchange.loop.machine.counters
        #expect(after.checkpoints == before.checkpoints)
        #expect(after.publishedRecords == before.publishedRecords + 1200)
        #expect(after.deliveredRecords == after.publishedRecords)
        let written = after.chunksWritten - before.chunksWritten
        let evicted = after.evictedChunks - before.evictedChunks
        #expect(written >= 15 && evicted >= 15)
        if count > 0 { allocation_count_print_stack() }
        #expect(
            count == 0,
            "\(count) allocations for \(written) chunks and \(evicted) given up at \(level)")
    }
}
