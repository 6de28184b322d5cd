import BrokerBasics
import BrokerCore
import BrokerShard
import BrokerTestSupport
import LogStorage
import Testing
import WireProtocol

/// What lies on disk, told to clients, and checks that they ask for.
@Suite("Storage verify") struct StorageVerifyTests {
    private static let recordsPerBatch = 7
    private static let batches: UInt64 = 60

    /// A broker on a disk that is full of segments, and what the tests ask of it.
    private final class Bench {
        let shard: SimulatedShard

        /// - Parameter queues: of 60 batches of 7 KiB per partition, a chunk each, on stable storage.
        init(
            _ queues: [String], partitions: UInt32 = 1, shards: Int = 1,
            settings change: (inout SimulatedShard.Settings) -> Void = { _ in }
        ) throws {
            var settings = SimulatedShard.Settings()
            settings.shards = shards
            settings.limits.coldPieceBytes = 8192
            change(&settings)
            let disk = try Self.disk(queues, partitions, settings)
            let shard = try SimulatedShard(disk: disk, settings: settings, seed: 2)
            self.shard = shard
            let isReady = shard.run { shard.isReady }
            try #require(isReady)
        }

        private static func disk(
            _ queues: [String], _ partitions: UInt32, _ settings: SimulatedShard.Settings
        ) throws -> SimulatedDisk {
            var settings = settings
            settings.limits.scrubBytesPerSecond = 0
            let shard = try SimulatedShard(disk: SimulatedDisk(), settings: settings, seed: 1)
            let isReady = shard.run { shard.isReady }
            try #require(isReady)
            let client = try #require(shard.connect())
            for queue in queues {
                let made = client.ask(
                    .queueCreate,
                    QueueCreateRequest(name: queue, partitions: partitions, level: .synced),
                    reply: QueueInfo.self)
                for partition in try #require(made).partitions.map(\.id) {
                    for number in 0..<batches {
                        let values = (0..<recordsPerBatch).map { "\(number) \($0)" }
                        let correlation = client.publish(
                            batch(values, bytes: 1000), partition: partition)
                        shard.run { client.isAnswered(correlation) }
                        try #require(client.confirm(of: correlation) != nil)
                    }
                }
            }
            shard.beginStop()
            let isStopped = shard.run { shard.isStopped }
            try #require(isStopped)
            var random = SeededRandom(seed: 3)
            return shard.disk.afterPowerCut(.none, &random)
        }

        func connect(to number: Int = 0) throws -> SimulatedClient {
            try #require(shard.connect(to: number))
        }

        func segments(_ partition: UInt32) -> [FileName] {
            shard.disk.allNames.filter {
                if case .segment(partition, _, _) = $0 { true } else { false }
            }.sorted { $0.name < $1.name }
        }

        /// Damages every other chunk of a partition's segments.
        func damageManyChunks(_ partition: UInt32) throws -> [StorageDamage] {
            var damages: [StorageDamage] = []
            for file in segments(partition) {
                for chunk in stride(from: UInt64(0), to: 6, by: 2) {
                    let header = shard.disk.bytes(file, at: 4096 + Int(chunk) * 8192, count: 16)
                    // A seal, or the end.
                    guard header.starts(with: "MRCK".utf8), header[12] == 0 else { break }
                    damages.append(try damage(file, chunk: chunk))
                }
            }
            return damages
        }

        /// Flips a bit of the chunk with this number.
        ///
        /// - Returns: what is to be named.
        func damage(_ file: FileName, chunk: UInt64) throws -> StorageDamage {
            guard case .segment(_, let base, _) = file else {
                throw Violation("\(file) is no segment")
            }
            let position = 4096 + chunk * 8192
            shard.disk.flip(file, bit: Int(position + 777) * 8 + 2)
            let first = base + chunk * UInt64(recordsPerBatch)
            return StorageDamage(
                base: base, file: file.path, bytes: position..<position + 8192,
                offsets: first..<first + UInt64(recordsPerBatch))
        }

        /// All pages, put together, and how many there were.
        func describe(
            _ client: SimulatedClient, _ queue: String = "", frameBytesMax: Int = 8192
        ) throws -> (reply: StorageReply, pages: Int) {
            var whole = StorageReply()
            var from = StorageCursor()
            for page in 1...1000 {
                let correlation = client.request(
                    .storageDescribe, StorageDescribeRequest(queue: queue, from: from))
                shard.run { client.replies[correlation] != nil }
                let answer = try #require(client.replies[correlation])
                try #require(answer.header.status == 0)
                #expect(FrameHeader.byteCount + answer.body.count <= frameBytesMax)
                let reply = try StorageReply(body: answer.body)
                whole.shards += reply.shards
                for partition in reply.partitions {
                    if whole.partitions.last?.partition == partition.partition {
                        whole.partitions[whole.partitions.count - 1].damages += partition.damages
                    } else {
                        whole.partitions.append(partition)
                    }
                }
                guard reply.more else { return (whole, page) }
                try #require(reply.next > from)
                from = reply.next
            }
            throw Violation("there is no end to the pages")
        }

        func verify(
            _ client: SimulatedClient, _ queue: String = "", bandwidth: UInt64 = 4 << 20
        ) throws -> [StorageCheck] {
            let reply = client.ask(
                .storageVerify, StorageVerifyRequest(queue: queue, bandwidth: bandwidth),
                reply: StorageVerifyReply.self)
            return try #require(reply).checks
        }

        func shards(_ client: SimulatedClient) throws -> [ShardStorage] {
            let reply = client.ask(
                .storageDescribe, StorageDescribeRequest(withPartitions: false),
                reply: StorageReply.self)
            return try #require(reply).shards
        }

        /// Waits until each of the checks has come to its end.
        func wait(_ client: SimulatedClient, for checks: [StorageCheck]) throws {
            for _ in 0..<2000 {
                let shards = try shards(client)
                let isDone = checks.allSatisfy { check in
                    shards.contains { $0.shard == check.shard && $0.done >= check.number }
                }
                if isDone { return }
                shard.pass(milliseconds: 5)
            }
            throw Violation("checks do not come to their end")
        }

        func refusal(_ client: SimulatedClient, _ message: StorageVerifyRequest) -> StatusCode? {
            let correlation = client.request(.storageVerify, message)
            shard.run { client.replies[correlation] != nil }
            return client.status(of: correlation)
        }
    }

    @Test("damage that comes while it serves is found by the check that is asked for, and named")
    func found() throws {
        let bench = try Bench(["orders", "ticks"])
        let client = try bench.connect()
        try bench.wait(client, for: try bench.verify(client))
        let before = try bench.describe(client).reply
        #expect(before.partitions.map(\.queue) == ["orders", "ticks"])
        #expect(before.partitions.allSatisfy { $0.damages.isEmpty && $0.unreadSegments == 0 })
        #expect(before.partitions.allSatisfy { $0.verifiedBytes == $0.syncedBytes })
        #expect(before.partitions.allSatisfy { $0.verifiedAt > 0 })
        // The same bytes were in memory a moment ago: what counts is what lies on the disk.
        let named = try bench.damage(try #require(bench.segments(1).dropFirst(2).first), chunk: 3)
        try bench.wait(client, for: try bench.verify(client, "ticks"))
        #expect(try bench.describe(client, "orders").reply.partitions.map(\.damages) == [[]])
        try bench.wait(client, for: try bench.verify(client, "orders"))
        let after = try bench.describe(client).reply
        #expect(after.partitions.map(\.damages) == [[named], []])
        #expect(try bench.describe(client, "ticks").reply.partitions.map(\.queue) == ["ticks"])
        let shard = try #require(after.shards.first)
        #expect(shard.damagedRanges == 1)
        #expect(shard.damagedBytes == 8192)
        #expect(shard.state == ShardStorage.State.idle.rawValue)
        #expect(shard.passes == 1)
        #expect(shard.lastPassAt > 0)
        #expect(bench.shard.machine.counters.damagedRanges == 1)
    }

    @Test("what lies on disk is told as it is")
    func facts() throws {
        let bench = try Bench(["orders"])
        let reply = try bench.describe(try bench.connect()).reply
        let files = bench.segments(1)
        let partition = try #require(reply.partitions.first)
        #expect(partition.segments == UInt32(files.count))
        #expect(partition.firstOffset == 0)
        #expect(partition.endOffset == Self.batches * UInt64(Self.recordsPerBatch))
        let lengths = files.reduce(0) { $0 + bench.shard.disk.length($1) }
        #expect(partition.syncedBytes > 0)
        #expect(partition.syncedBytes <= UInt64(lengths))
        #expect(partition.bytes == partition.syncedBytes)
        #expect(partition.oldestAt > 1_600_000_000_000_000_000)
        #expect(partition.newestAt > partition.oldestAt)
        #expect(partition.verifiedAt == 0)
        let shard = try #require(reply.shards.first)
        #expect(shard.segments == UInt64(files.count))
        #expect(shard.bytes == partition.bytes)
        #expect(shard.bandwidth == 0)
    }

    @Test("its progress is told, and it is over when all was read")
    func progress() throws {
        let bench = try Bench(["orders"])
        let client = try bench.connect()
        let checks = try bench.verify(client, bandwidth: 256 << 10)
        #expect(checks == [StorageCheck(shard: 0, number: 1)])
        var read: [UInt64] = []
        while true {
            let shard = try #require(try bench.shards(client).first)
            if shard.begun == 1, shard.checkBytes > 0 { read.append(shard.checkedBytes) }
            guard shard.done == 0 else {
                #expect(shard.checkedBytes == shard.checkBytes)
                break
            }
            #expect(shard.bandwidth == 256 << 10)
            try #require(read.count < 1000)
            bench.shard.pass(milliseconds: 20)
        }
        #expect(read == read.sorted())
        #expect(Set(read).count > 10)
        // 420 KB at 256 KiB/s.
        #expect(bench.shard.time.nanoseconds > .milliseconds(1000))
    }

    @Test("a check that is asked for comes before the pass of its own, which then goes on")
    func precedence() throws {
        let bench = try Bench(["orders", "ticks"]) { $0.limits.scrubBytesPerSecond = 64 << 10 }
        let client = try bench.connect()
        bench.shard.pass(milliseconds: 1000)
        let before = try #require(try bench.shards(client).first)
        #expect(before.state == ShardStorage.State.checking.rawValue)
        #expect(before.checkedBytes > 16 << 10)
        let named = try bench.damage(try #require(bench.segments(2).last), chunk: 0)
        try bench.wait(client, for: try bench.verify(client, "ticks"))
        #expect(bench.shard.machine.scrubber.passes == 0)
        #expect(try bench.describe(client, "ticks").reply.partitions.map(\.damages) == [[named]])
        // It read no byte twice, or its progress would say so, but for the segment that it was at.
        bench.shard.run(steps: 200_000) { bench.shard.machine.scrubber.passes == 1 }
        let after = try #require(try bench.shards(client).first)
        #expect(after.passes == 1)
        #expect(after.checkedBytes == after.checkBytes)
        let scrubbed = bench.shard.machine.counters.scrubbedBytes
        let ticks = try #require(
            try bench.describe(client, "ticks").reply.partitions.first?.syncedBytes)
        #expect(scrubbed >= after.checkBytes + ticks)
        #expect(scrubbed <= after.checkBytes + ticks + bench.shard.settings.limits.segmentBytes * 2)
        // One of everything takes the place of the pass that goes on.
        try bench.wait(client, for: try bench.verify(client))
        #expect(bench.shard.machine.scrubber.passes == 2)
    }

    @Test("more damage than a small frame holds comes in pages, each range once, in order")
    func pages() throws {
        let bench = try Bench(["orders", "ticks"])
        let named = try [UInt32(1), 2].map { try bench.damageManyChunks($0) }
        #expect(named.joined().count > 40)
        let client = try #require(bench.shard.connect("narrow", sayingHello: false))
        client.request(.hello, HelloRequest(frameBytesMax: 4096, clientName: "narrow"))
        try bench.wait(client, for: try bench.verify(client))
        let (reply, pages) = try bench.describe(client, frameBytesMax: 4096)
        #expect(pages > 1)
        #expect(reply.shards.count == 1)
        #expect(reply.partitions.map(\.damages) == named)
    }

    @Test("of several shards all are asked, at whichever front, and their answers are one")
    func shards() throws {
        let bench = try Bench(["orders", "ticks"], partitions: 6, shards: 3)
        let client = try bench.connect(to: 1)
        var named: [UInt32: [StorageDamage]] = [:]
        // More than one page of each shard's own.
        for partition in UInt32(1)...12 {
            named[partition] = try bench.damageManyChunks(partition)
        }
        #expect(named.values.joined().count > 240)
        let checks = try bench.verify(client)
        #expect(checks.map(\.shard) == [0, 1, 2])
        try bench.wait(client, for: checks)
        for front in 0..<3 {
            let narrow = try #require(
                bench.shard.connect("narrow", sayingHello: false, to: front))
            narrow.request(.hello, HelloRequest(frameBytesMax: 4096, clientName: "narrow"))
            let (reply, pages) = try bench.describe(narrow, frameBytesMax: 4096)
            #expect(pages > 2)
            #expect(reply.shards.map(\.shard) == [0, 1, 2])
            #expect(reply.shards.map(\.partitions) == [4, 4, 4])
            #expect(reply.partitions.map(\.partition) == (1...12).map { UInt32($0) })
            for partition in reply.partitions {
                #expect(partition.damages == named[partition.partition] ?? [])
                #expect(partition.verifiedBytes == partition.syncedBytes)
            }
        }
        let orders = try bench.describe(client, "orders").reply
        #expect(orders.partitions.map(\.index) == [0, 1, 2, 3, 4, 5])
        #expect(Set(orders.partitions.map(\.shard)) == [0, 1, 2])
        #expect(
            bench.refusal(client, StorageVerifyRequest(queue: "none", bandwidth: 1))
                == .queueNotFound)
    }

    @Test("a segment that can't be read is counted, and not taken for whole")
    func unread() throws {
        let bench = try Bench(["orders"])
        let client = try bench.connect()
        let file = try #require(bench.segments(1).dropFirst().first)
        bench.shard.fault = { $0.kind == .read && $0.file == file && $0.position > 0 ? -5 : nil }
        try bench.wait(client, for: try bench.verify(client))
        #expect(bench.shard.faultsFired.count > 0)
        let broken = try #require(try bench.describe(client).reply.partitions.first)
        #expect(broken.unreadSegments == 1)
        #expect(broken.verifiedBytes < broken.syncedBytes)
        #expect(broken.damages.isEmpty)
        bench.shard.fault = nil
        try bench.wait(client, for: try bench.verify(client))
        let mended = try #require(try bench.describe(client).reply.partitions.first)
        #expect(mended.unreadSegments == 0)
        #expect(mended.verifiedBytes == mended.syncedBytes)
    }

    @Test("what can't be checked is refused; what waits already is not doubled; too much is busy")
    func refused() throws {
        let bench = try Bench(["orders", "ticks"])
        let client = try bench.connect()
        let none = StorageVerifyRequest(queue: "none", bandwidth: 1)
        #expect(bench.refusal(client, none) == .queueNotFound)
        // The server's own bandwidth is 0 here.
        #expect(bench.refusal(client, StorageVerifyRequest()) == .badRequest)
        let first = try bench.verify(client, "orders", bandwidth: 1000)
        bench.shard.pass(milliseconds: 5)
        let second = try bench.verify(client, "orders", bandwidth: 1000)
        #expect(second != first)
        #expect(try bench.verify(client, "orders", bandwidth: 1000) == second)
        var taken = 2
        while taken < 100 {
            let queue = taken % 2 == 0 ? "ticks" : "orders"
            let answer = bench.refusal(
                client, StorageVerifyRequest(queue: queue, bandwidth: .max))
            guard answer == .ok else {
                #expect(answer == .busy)
                break
            }
            taken += 1
        }
        #expect(taken == 16)
    }

    @Test("a check whose queue is deleted comes to its end, and those behind it too")
    func deleted() throws {
        let bench = try Bench(["orders", "ticks"])
        let client = try bench.connect()
        let orders = try bench.verify(client, "orders", bandwidth: 64 << 10)
        let ticks = try bench.verify(client, "ticks")
        bench.shard.pass(milliseconds: 200)
        let gone = client.ask(.queueDelete, QueueNameRequest(name: "orders"), reply: Empty.self)
        #expect(gone != nil)
        try bench.wait(client, for: orders + ticks)
        #expect(try bench.describe(client).reply.partitions.map(\.queue) == ["ticks"])
    }

    @Test("a storage failure ends it: it says that it stopped, and no other is begun")
    func failed() throws {
        let bench = try Bench(["orders"])
        let client = try bench.connect()
        _ = try bench.verify(client, bandwidth: 64 << 10)
        bench.shard.fault = { $0.kind == .syncedWrite ? -5 : nil }
        let correlation = client.publish(batch(["x"]), partition: 1)
        bench.shard.run { client.isAnswered(correlation) }
        #expect(bench.shard.faultsFired.count > 0)
        #expect(client.status(of: correlation) == .storageFailed)
        let shard = try #require(try bench.shards(client).first)
        #expect(shard.state == ShardStorage.State.stopped.rawValue)
        #expect(bench.refusal(client, StorageVerifyRequest(bandwidth: 1)) == .storageFailed)
    }
}
