import BlockingClient
import BrokerBasics
import BrokerProcess
import ChildProcess
import Foundation
import Glibc
import ShardRuntime
import Testing
import WireProtocol

/// What a real broker does when descriptors run out, and with peers that are too many, gone, or slow.
@Suite(.serialized) struct PeerLimitTests {
    private func wait(_ what: String, _ condition: () throws -> Bool) throws {
        let deadline = Date().addingTimeInterval(60)
        while try !condition() {
            try #require(Date() < deadline, "\(what) did not come")
            usleep(10_000)
        }
    }

    private func metric(_ ready: BrokerProcess.Ready, _ name: String) throws -> Double {
        let body = try HTTPGet.get(ready.admin, "/metrics").body
        let line = body.split(separator: "\n").first { $0.hasPrefix("millrace_\(name) ") }
        return try #require(line?.split(separator: " ").last.flatMap { Double($0) })
    }

    private func greeted(_ ready: BrokerProcess.Ready) throws -> RawPeer {
        let peer = try RawPeer(ready.address)
        peer.hello()
        let answer = try #require(peer.frame())
        #expect(answer.header.status == 0)
        return peer
    }

    private func isServed(_ peer: RawPeer) -> Bool {
        peer.ping()
        return peer.frame()?.header.opcode == Opcode.ping.rawValue
    }

    private func connection(_ ready: BrokerProcess.Ready) throws -> Connection {
        try Connection(to: ServerAddress(parsing: ready.address), clientName: "test")
    }

    // MARK: descriptors

    @Test(
        "without descriptors it serves who is there and loses nothing, asks now and then, and goes on",
        arguments: LoopKind.allCases)
    func descriptors(loop: LoopKind) throws {
        let broker = try BrokerProcess(
            options: ["--loop", loop.rawValue, "--idle", "block"],
            launcher: ["/usr/bin/prlimit", "--nofile=\(Self.descriptorsMax)"])
        let ready = try broker.waitUntilReady()
        let served = try greeted(ready)
        let client = try connection(ready)
        let ticks = try client.request(
            .queueCreate, QueueCreateRequest(name: "ticks", partitions: 1, level: .memory),
            reply: QueueInfo.self)
        let partition = try #require(ticks.partitions.first).id
        let began = Date()
        var peers = try (0..<Self.descriptorsMax).map { _ in
            let peer = try RawPeer(ready.address)
            peer.hello()
            return peer
        }
        try wait("the line") { broker.logLines(event: "accept-stopped").count == 1 }
        let line = try #require(broker.logLines(event: "accept-stopped").first)
        #expect((line["errno"] as? NSNumber)?.int32Value == EMFILE)
        #expect(isServed(served))
        // Its segment can't be made: that waits, and the record is confirmed all the same.
        var batch = BatchBuilder()
        _ = batch.append(Record(value: Array("kept".utf8)))
        #expect(try publish(batch, to: partition, on: client) == 0)
        try wait("the segment") { broker.logLines(event: "descriptors").count == 1 }
        usleep(500_000)
        #expect(isServed(served))
        let waiting = peers.count { !$0.hasAnswer }
        #expect(waiting > 10)

        // Some leave, and their descriptors are enough for those who wait.
        let before = peers.count
        peers.removeFirst(waiting + 20)
        for peer in peers { #expect(peer.frame()?.header.status == 0) }
        #expect(peers.count == before - waiting - 20)
        let seconds = Date().timeIntervalSince(began)
        try wait("its end") { broker.logLines(event: "accept-resumed").count >= 1 }
        try wait("the segment") { broker.logLines(event: "descriptors-found").count == 1 }
        let failures = try metric(ready, "accept_failures_total")
        #expect(failures >= 1 && failures <= seconds * 10 + 2, "\(failures) in \(seconds) s")
        #expect(try metric(ready, "descriptors_awaited_total") >= 1)
        #expect(try metric(ready, "storage_failed") == 0)
        let found = try ControlTool.run(
            ready, ["queue", "consume", "ticks", "--from", "start", "--until-end"])
        #expect(found == "kept\n")
        #expect(broker.stop() == .exited(0))
    }
    private static let descriptorsMax = 128

    /// Publishes one batch, and waits for its confirm.
    ///
    /// - Returns: its offset.
    private func publish(
        _ batch: BatchBuilder, to partition: UInt32, on client: Connection
    ) throws -> UInt64 {
        let correlation = client.nextCorrelation()
        try client.send(
            FrameHeader(opcode: .publish, correlation: correlation, stream: partition)
                .frame(body: batch.finish()), timeoutMilliseconds: 10_000)
        let frame = try #require(try client.receive(timeoutMilliseconds: 60_000))
        return try frame.body.withUnsafeBytes { bytes in
            try ConfirmEntry(at: #require(bytes.baseAddress)).baseOffset
        }
    }

    // MARK: too many

    @Test(
        "a connection above the limit is told so and closed; one that is free is given to the next",
        arguments: LoopKind.allCases)
    func connections(loop: LoopKind) throws {
        let broker = try BrokerProcess(options: [
            "--loop", loop.rawValue, "--connections-max", "3",
        ])
        let ready = try broker.waitUntilReady()
        var peers = try (0..<3).map { _ in try greeted(ready) }
        let open = try descriptors(of: broker)
        for _ in 0..<50 {
            let beyond = try RawPeer(ready.address)
            let answer = try #require(beyond.frame())
            #expect(StatusCode(rawValue: answer.header.status) == .busy)
            #expect(answer.header.opcode == Opcode.error.rawValue)
            let refusal = try Refusal(body: answer.body)
            #expect(refusal.message.contains("3 connections"), "\(refusal.message)")
            #expect(beyond.frame() == nil)
        }
        for peer in peers { #expect(isServed(peer)) }
        #expect(try metric(ready, "connections_refused_total") == 50)
        // None of them left a descriptor; the one that asked for metrics may.
        #expect(try descriptors(of: broker) <= open + 4)
        peers.removeLast()
        try wait("a place") { try metric(ready, "connections") == 2 }
        peers.append(try greeted(ready))
        #expect(isServed(peers[2]))
        #expect(broker.stop() == .exited(0))
    }

    private func descriptors(of broker: BrokerProcess) throws -> Int {
        try FileManager.default.contentsOfDirectory(atPath: "/proc/\(broker.processID)/fd").count
    }

    // MARK: gone or slow

    @Test(
        "a peer whose machine is gone is forgotten, idle or with something on its way to it",
        arguments: LoopKind.allCases)
    func halfOpen(loop: LoopKind) throws {
        let broker = try BrokerProcess(options: [
            "--loop", loop.rawValue, "--peer-timeout", "2s",
        ])
        let ready = try broker.waitUntilReady()
        let idle = try greeted(ready)
        let asking = try greeted(ready)
        let there = try greeted(ready)
        #expect(try metric(ready, "connections") == 3)
        try idle.vanish()
        try asking.vanish()
        // Its answer is never acknowledged.
        asking.ping()
        try wait("their end") { try metric(ready, "connections") == 1 }
        #expect(isServed(there))
        #expect(broker.stop() == .exited(0))
    }

    @Test(
        "HELLO or a frame that comes byte by byte is waited for as long as its limit says, and no longer",
        arguments: LoopKind.allCases)
    func drip(loop: LoopKind) throws {
        let broker = try BrokerProcess(options: [
            "--loop", loop.rawValue, "--hello-timeout", "300ms", "--frame-timeout", "400ms",
        ])
        let ready = try broker.waitUntilReady()
        let other = try greeted(ready)
        let hello = FrameHeader(opcode: .hello, correlation: 1)
            .frame(body: HelloRequest(clientName: "drip").encoded)
        for (isGreeted, status) in [(false, StatusCode.helloExpected), (true, .deadlineExceeded)] {
            let peer = isGreeted ? try greeted(ready) : try RawPeer(ready.address)
            for byte in hello.dropLast() where !peer.hasAnswer {
                peer.say([byte])
                usleep(50_000)
            }
            let answer = try #require(peer.frame())
            #expect(StatusCode(rawValue: answer.header.status) == status)
            #expect(peer.frame() == nil)
        }
        #expect(isServed(other))
        #expect(try metric(ready, "connections_timed_out_total") == 2)
        #expect(broker.stop() == .exited(0))
    }

    /// What the kernel says is resident, in bytes.
    private func residentBytes(of broker: BrokerProcess) throws -> Int {
        let status = try String(
            contentsOfFile: "/proc/\(broker.processID)/status", encoding: .utf8)
        let line = status.split(separator: "\n").first { $0.hasPrefix("VmRSS:") }
        return try #require(line?.split(separator: " ").compactMap { Int($0) }.first) << 10
    }

    @Test(
        "a consumer that takes a byte at a time costs its buffers, holds nobody up, and gets all in the end",
        arguments: LoopKind.allCases)
    func takesBytes(loop: LoopKind) throws {
        let broker = try BrokerProcess(options: [
            "--loop", loop.rawValue, "--send-buffer", "64KiB", "--tail-memory", "8MiB",
        ])
        let ready = try broker.waitUntilReady()
        let client = try connection(ready)
        let partition = try createTicks(on: client)
        let slow = try RawPeer(ready.address, receiveBytes: 4096)
        slow.hello()
        #expect(slow.frame()?.header.status == 0)
        subscribe(slow)
        #expect(slow.frame()?.header.status == 0)
        let quick = try Subscription(on: connection(ready), queue: "ticks")
        var before = 0
        var taken = 0
        for number in UInt64(0)..<300 {
            var batch = BatchBuilder()
            _ = batch.append(
                Record(value: [UInt8](repeating: UInt8(truncatingIfNeeded: number), count: 100_000))
            )
            #expect(try publish(batch, to: partition, on: client) == number)
            guard case .records(let got)? = try quick.next(timeoutMilliseconds: 60_000) else {
                Issue.record("the other consumer got nothing after \(number)")
                return
            }
            #expect(got.entries.map(\.offset) == [number])
            taken += slow.take(1)
            // Tail and buffers have what they may have.
            if number == 150 { before = try residentBytes(of: broker) }
        }
        #expect(taken > 200)
        // 15 MB more are on their way to it, of which it took 150 bytes.
        let grown = try residentBytes(of: broker) - before
        #expect(grown < 4 << 20, "\(grown) bytes")
        #expect(try metric(ready, "connections") == 3)
        var next: UInt64 = 0
        while next < 300 {
            let frame = try #require(slow.frame(), "nothing after \(next)")
            try #require(frame.header.opcode == Opcode.deliver.rawValue)
            #expect(frame.body.count > 100_000)
            #expect(frame.body.suffix(1000).allSatisfy { $0 == UInt8(truncatingIfNeeded: next) })
            next += 1
        }
        #expect(broker.stop() == .exited(0))
    }

    private func createTicks(on client: Connection) throws -> UInt32 {
        let ticks = try client.request(
            .queueCreate, QueueCreateRequest(name: "ticks", partitions: 1, level: .memory),
            reply: QueueInfo.self)
        return try #require(ticks.partitions.first).id
    }

    /// With credit for everything: what stops the broker is the socket.
    private func subscribe(_ peer: RawPeer) {
        peer.say(
            FrameHeader(opcode: .subscribe, correlation: 3, stream: 1).frame(
                body: SubscribeRequest(queue: "ticks", creditRecords: .max, creditBytes: .max)
                    .encoded))
    }

    @Test(
        "a consumer that takes nothing for the peer's time, or bytes, is closed; others get all meanwhile",
        arguments: LoopKind.allCases, [0, 1])
    func takesNothing(loop: LoopKind, bytesATime: Int) throws {
        let broker = try BrokerProcess(options: [
            "--loop", loop.rawValue, "--peer-timeout", "2s",
        ])
        let ready = try broker.waitUntilReady()
        let client = try connection(ready)
        let partition = try createTicks(on: client)
        let stalled = try RawPeer(ready.address, receiveBytes: 4096)
        stalled.hello()
        #expect(stalled.frame()?.header.status == 0)
        subscribe(stalled)
        #expect(stalled.frame()?.header.status == 0)
        for number in 0..<200 {
            var batch = BatchBuilder()
            _ = batch.append(Record(value: [UInt8](repeating: UInt8(number), count: 100_000)))
            #expect(
                try publish(batch, to: partition, on: client) == UInt64(number))
        }
        // A byte does not open the window again, so to TCP it takes nothing either.
        var taken = 0
        try wait("its end") {
            taken += bytesATime == 0 ? 0 : stalled.take(bytesATime)
            return try metric(ready, "connections") == 1
        }
        #expect((taken > 0) == (bytesATime > 0))
        let reader = try Subscription(
            on: connection(ready), queue: "ticks",
            window: SubscriptionState.Window(records: 1 << 20, bytes: 1 << 30))
        var next: UInt64 = 0
        while next < 200 {
            guard case .records(let got)? = try reader.next(timeoutMilliseconds: 60_000) else {
                Issue.record("no records after \(next)")
                return
            }
            next += UInt64(got.entries.count)
        }
        #expect(broker.stop() == .exited(0))
        withExtendedLifetime(stalled) {}
    }
}
