import BlockingClient
import BrokerBasics
import ScriptedServer
import Synchronization
import Testing
import WireProtocol

@Suite struct PublishStreamTests {
    private static let fast: PublishStream.Options = {
        var options = PublishStream.Options()
        options.backoffMilliseconds = 1
        return options
    }()

    private func make(
        _ broker: TinyBroker,
        level: DurabilityLevel = .synced
    ) throws
        -> (ScriptServer, ServerAddress)
    {
        let server = broker.serve()
        let connection = try Connection(to: server.address, clientName: "test")
        _ = try connection.request(
            .queueCreate,
            QueueCreateRequest(name: "orders", partitions: 2, level: level),
            reply: QueueInfo.self
        )
        return (server, server.address)
    }

    /// Everything in the queue, by partition.
    private func contents(_ address: ServerAddress) throws -> [UInt32: [String]] {
        let connection = try Connection(to: address, clientName: "test")
        let queue = try connection.request(
            .queueDescribe,
            QueueNameRequest(name: "orders"),
            reply: QueueInfo.self
        )
        let subscription = try Subscription(on: connection, queue: "orders")
        var contents: [UInt32: [String]] = [:]
        func isDone() -> Bool {
            queue.partitions.allSatisfy { partition in
                subscription.nextOffset(of: partition.id) == partition.committedOffset
            }
        }
        while !isDone() || subscription.hasPending {
            let event = try #require(try subscription.next(timeoutMilliseconds: 5_000))
            guard case .records(let batch) = event else { continue }
            contents[batch.partition, default: []] += batch.entries.map {
                String(decoding: $0.record.value, as: UTF8.self)
            }
        }
        return contents
    }

    @Test("what is published is confirmed at its offsets, and is there")
    func publishes() throws {
        let (server, address) = try make(TinyBroker())
        let stream = try PublishStream(to: address, queue: "orders", options: Self.fast)
        for number in 0..<10 {
            try stream.publish(Scripts.batch(["\(number)", "x"]), to: number % 2)
        }
        #expect(stream.unconfirmedRecords == 20)
        let confirms = try stream.finish()
        #expect(confirms.count == 10)
        #expect(confirms.filter { $0.index == 1 }.map(\.offset) == [0, 2, 4, 6, 8])
        #expect(stream.isIdle)
        let texts = try contents(address)
        #expect(texts[9] == ["0", "x", "2", "x", "4", "x", "6", "x", "8", "x"])
        withExtendedLifetime(server) {}
    }

    @Test("whatever happens to one publish of many, each record is stored once and in order")
    func faults() throws {
        for fault in [
            TinyBroker.Fault.close, .storeAndClose, .refuse(.busy), .refuse(.shuttingDown),
        ] {
            for at in 0..<12 {
                let broker = TinyBroker { $0 == at || $0 == at + 3 ? fault : .none }
                let (server, address) = try make(broker)
                let stream = try PublishStream(to: address, queue: "orders", options: Self.fast)
                for number in 0..<12 {
                    try stream.publish(Scripts.batch(["\(number)"]), to: number % 2)
                    if number % 3 == 0 { try stream.pump(timeoutMilliseconds: 0) }
                }
                let confirms = try stream.finish()
                #expect(confirms.map(\.number).sorted() == Array(0..<12), "\(fault) at \(at)")
                let texts = try contents(address)
                #expect(texts[9] == ["0", "2", "4", "6", "8", "10"], "\(fault) at \(at)")
                #expect(texts[10] == ["1", "3", "5", "7", "9", "11"], "\(fault) at \(at)")
                withExtendedLifetime(server) {}
            }
        }
    }

    @Test("a fatal refusal ends the stream with its status")
    func fatal() throws {
        let (server, address) = try make(TinyBroker { _ in .refuse(.storageFailed) })
        let stream = try PublishStream(to: address, queue: "orders", options: Self.fast)
        try stream.publish(Scripts.batch(["a"]), to: 0)
        #expect(throws: ClientError.refused(Refused(.storageFailed, message: "no"))) {
            try stream.finish()
        }
        withExtendedLifetime(server) {}
    }

    @Test("without a time to retry the first failure is thrown")
    func noRetry() throws {
        var options = Self.fast
        options.retrySeconds = 0
        for (fault, expected) in [
            (TinyBroker.Fault.refuse(.busy), ClientError.refused(Refused(.busy, message: "no")))
        ] {
            let (server, address) = try make(TinyBroker { _ in fault })
            let stream = try PublishStream(to: address, queue: "orders", options: options)
            try stream.publish(Scripts.batch(["a"]), to: 0)
            #expect(throws: expected) { try stream.finish() }
            withExtendedLifetime(server) {}
        }
    }

    @Test("retrying ends when the time is over, with the last reason")
    func retryEnds() throws {
        var options = Self.fast
        options.retrySeconds = 1
        let (server, address) = try make(TinyBroker { _ in .refuse(.busy) })
        let stream = try PublishStream(to: address, queue: "orders", options: options)
        try stream.publish(Scripts.batch(["a"]), to: 0)
        #expect(throws: ClientError.refused(Refused(.busy, message: "no"))) {
            try stream.finish()
        }
        withExtendedLifetime(server) {}
    }

    @Test("a memory queue that lost confirmed records is published to under a new numbering")
    func lossOfMemory() throws {
        // The broker as it was is gone; the one that answers next knows the queue only.
        let (before, after) = (TinyBroker(), TinyBroker())
        let (first, _) = try make(before, level: .memory)
        let (second, secondAddress) = try make(after, level: .memory)
        let isSecond = Mutex(false)
        let (one, two) = (first.address, secondAddress)
        let stream = try PublishStream(queue: "orders", options: Self.fast) {
            (timeout) throws(ClientError) in
            let address = isSecond.withLock { $0 } ? two : one
            return try Connection(
                to: address,
                clientName: "test",
                timeoutMilliseconds: timeout
            )
        }
        try stream.publish(Scripts.batch(["a"]), to: 0)
        _ = try stream.finish()
        isSecond.withLock { $0 = true }
        stream.disconnect()
        try stream.publish(Scripts.batch(["b"]), to: 0)
        try stream.publish(Scripts.batch(["c"]), to: 0)
        #expect(try stream.finish().map(\.offset) == [0, 1])
        #expect(try contents(secondAddress)[9] == ["b", "c"])
        _ = (first, second)
    }

    @Test("a synced queue that misses confirmed records is an error, not a new beginning")
    func lossOfSynced() throws {
        let (first, _) = try make(TinyBroker())
        let (second, secondAddress) = try make(TinyBroker())
        let isSecond = Mutex(false)
        let (one, two) = (first.address, secondAddress)
        let stream = try PublishStream(queue: "orders", options: Self.fast) {
            (timeout) throws(ClientError) in
            let address = isSecond.withLock { $0 } ? two : one
            return try Connection(
                to: address,
                clientName: "test",
                timeoutMilliseconds: timeout
            )
        }
        try stream.publish(Scripts.batch(["a"]), to: 0)
        _ = try stream.finish()
        isSecond.withLock { $0 = true }
        stream.disconnect()
        try stream.publish(Scripts.batch(["b"]), to: 0)
        #expect(throws: ClientError.refused(Refused(.sequenceGap, message: "no"))) {
            try stream.finish()
        }
        _ = (first, second)
    }

    @Test("a batch that is too large, empty or misdirected is refused before it is sent")
    func refusedHere() throws {
        let (server, address) = try make(TinyBroker())
        let stream = try PublishStream(to: address, queue: "orders", options: Self.fast)
        var large = BatchBuilder()
        _ = large.append(Record(value: [UInt8](repeating: 0, count: stream.batchBytesMax)))
        for (batch, index) in [
            (large, 0), (BatchBuilder(), 0), (Scripts.batch(["a"]), 2), (Scripts.batch(["a"]), -1),
        ] {
            #expect(throws: ClientError.self) { try stream.publish(batch, to: index) }
        }
        #expect(stream.isIdle)
        withExtendedLifetime(server) {}
    }
}
