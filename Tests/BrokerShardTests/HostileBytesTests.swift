import BrokerBasics
import BrokerCore
import BrokerShard
import BrokerTestSupport
import Glibc
import LogStorage
import Testing
import WireProtocol

@Suite("Hostile bytes")
struct HostileBytesTests {
    /// A broker that knows what the golden frames talk about: two queues, partition 11, producer 77.
    private func fixture() throws -> Fixture {
        let fixture = try Fixture()
        _ = try fixture.create("orders", partitions: 12)
        _ = try fixture.create("ticks", level: .memory)
        try fixture.publish(3, to: 11)
        for _ in 0..<76 {
            fixture.client.request(.producerOpen, ProducerOpenRequest())
        }
        for _ in 0..<2 {
            _ = fixture.client.ask(
                .producerOpen, ProducerOpenRequest(name: "gateway-3"),
                reply: ProducerOpenReply.self)
        }
        return fixture
    }

    /// Sends `bytes` on a ready connection of its own; what comes back must be lawful.
    ///
    /// - Returns: true when an error came.
    private func say(
        _ bytes: [UInt8], to fixture: Fixture, _ what: String, then rest: [UInt8] = []
    ) throws -> Bool {
        let client = try fixture.connect("hostile")
        fixture.shard.run(steps: 200) { !client.replies.isEmpty }
        client.replies = [:]
        let before = fixture.counters
        client.send(bytes)
        if client.replies.isEmpty, client.pushes.isEmpty { client.send(rest) }
        if !client.isClosed { fixture.shard.disconnect(client.index) }
        let answers = client.pushes + client.replies.values.map { $0 }
        for answer in answers {
            #expect(
                StatusCode(rawValue: answer.header.status) != nil,
                "\(what): status \(answer.header.status)")
            #expect(Opcode(rawValue: answer.header.opcode) != nil, "\(what)")
        }
        #expect(client.badBatches == 0)
        let isRefused = answers.contains { $0.header.flags & FrameHeader.errorFlag != 0 }
        if isRefused {
            let after = fixture.counters
            #expect(
                after.badFrames + after.refusals > before.badFrames + before.refusals,
                "\(what): an error that is not counted")
        }
        return isRefused
    }

    @Test("every prefix of every request is waited for, and takes nobody else with it")
    func truncations() throws {
        let fixture = try fixture()
        for golden in try Golden.requests() {
            for count in 0..<golden.bytes.count {
                let cut = Array(golden.bytes[..<count])
                let isRefused = try say(cut, to: fixture, "\(golden.name) cut at \(count)")
                #expect(!isRefused, "\(golden.name) cut at \(count)")
            }
            #expect(fixture.isServing(), "after the prefixes of \(golden.name)")
        }
        #expect(fixture.counters.badFrames == 0)
    }

    @Test("every single flipped bit of every request gets a lawful answer or a close")
    func flips() throws {
        let fixture = try fixture()
        var refused = 0
        for golden in try Golden.requests() {
            for bit in 0..<golden.bytes.count * 8 {
                var bytes = golden.bytes
                bytes[bit / 8] ^= 1 << UInt8(bit % 8)
                // A length that grew is waited for: the rest of it comes too.
                let rest = [UInt8](repeating: 0, count: 8192)
                if try say(bytes, to: fixture, "\(golden.name), bit \(bit)", then: rest) {
                    refused += 1
                }
            }
            #expect(fixture.isServing(), "after the flips of \(golden.name)")
        }
        #expect(refused > 5000)
        #expect(fixture.counters.badFrames > 2000)
    }

    @Test("nothing is read behind the bytes that came, by those who look ahead either")
    func endOfPage() throws {
        let fixture = try fixture()
        let publish = FrameHeader(opcode: .publish, correlation: 5, stream: 3)
            .frame(body: batch(["one"], bytes: 40))
        let pageBytes = Int(getpagesize())
        let mapped = mmap(
            nil, 2 * pageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        let pages = try #require(mapped != MAP_FAILED ? mapped : nil)
        defer { munmap(pages, 2 * pageBytes) }
        try #require(mprotect(pages + pageBytes, pageBytes, PROT_NONE) == 0)
        var confirmed = 0
        for whole in 0..<5 {
            for last in [publish] + (try Golden.requests()).map(\.bytes) {
                for cut in 0..<last.count {
                    let bytes = (0..<whole).flatMap { _ in publish } + last[..<cut]
                    guard !bytes.isEmpty, bytes.count <= pageBytes else { continue }
                    let client = try fixture.connect("edge")
                    let start = pages + pageBytes - bytes.count
                    start.copyMemory(from: bytes, byteCount: bytes.count)
                    fixture.shard.machine.received(client.index, start, count: bytes.count)
                    if cut == 0 {
                        fixture.shard.run(steps: 200) { client.confirms.count > 0 || whole == 0 }
                        confirmed += client.confirms.count
                    }
                    fixture.shard.disconnect(client.index)
                }
            }
        }
        #expect(confirmed > 0)
        #expect(fixture.isServing())
        #expect(fixture.counters.badFrames == 0)
    }

    @Test("a frame length below 32 or above the limit is refused before memory is taken for it")
    func lengthLies() throws {
        for length in [UInt32(0), 1, 31, 8193, 1 << 31, .max] {
            let fixture = try Fixture()
            let client = fixture.client
            var bytes = FrameHeader(opcode: .ping, correlation: 9).frame(body: [])
            withUnsafeBytes(of: length.littleEndian) { bytes.replaceSubrange(0..<4, with: $0) }
            // The four bytes of the length are enough, alone or with what follows.
            client.send(Array(bytes[..<4]))
            #expect(client.isClosed, "length \(length)")
            let push = try #require(client.pushes.first)
            #expect(
                StatusCode(rawValue: push.header.status)
                    == (length < 32 ? .badFrame : .frameTooLarge))
            #expect(push.header.correlation == 0)
            #expect(fixture.counters.badFrames == 1)
            let held = fixture.shard.machine.connections.indices.map {
                fixture.shard.machine.connections[$0].pointee.inputCapacity
            }
            #expect(held.allSatisfy { $0 <= 4096 })
            #expect(fixture.isServing())
        }
    }

    @Test("a request with the flags of an answer is not a request", arguments: [UInt8(1), 2, 4])
    func flagsOfAnswers(flags: UInt8) throws {
        let fixture = try Fixture()
        let partition = try fixture.create("orders")[0]
        for (opcode, body) in [(Opcode.ping, []), (.publish, batch(["one"]))] {
            fixture.client.send(
                FrameHeader(
                    opcode: opcode, flags: flags, correlation: 5000 + UInt64(opcode.rawValue),
                    stream: partition
                ).frame(body: body))
            fixture.shard.pass(milliseconds: 2)
            #expect(
                fixture.client.status(of: 5000 + UInt64(opcode.rawValue)) == .unknownOpcode,
                "\(opcode)")
        }
        #expect(fixture.counters.publishedRecords == 0)
    }

    @Test("before HELLO every other request gets hello-expected and a close")
    func fresh() throws {
        let fixture = try Fixture()
        let opcodes = Opcode.allCases.map(\.rawValue) + [0, 0x0601, 0xFFFF]
        for opcode in opcodes where opcode != Opcode.hello.rawValue {
            let client = try fixture.shard.connectSilently()
            var frame = FrameHeader(opcode: .ping, correlation: 3)
            frame.opcode = opcode
            client.send(frame.frame(body: []))
            if opcode == Opcode.ping.rawValue {
                #expect(client.status(of: 3) == .ok)
                #expect(!client.isClosed)
                continue
            }
            #expect(client.status(of: 3) == .helloExpected, "opcode \(opcode)")
            #expect(client.isClosed, "opcode \(opcode)")
        }
        #expect(fixture.isServing())
    }

    @Test("a HELLO that can't be agreed on is refused and closes")
    func badHello() throws {
        let fixture = try Fixture()
        let offers: [(HelloRequest, StatusCode)] = [
            (HelloRequest(versionMin: 2, versionMax: 9, clientName: "new"), .unsupportedVersion),
            (HelloRequest(versionMin: 0, versionMax: 0, clientName: "old"), .unsupportedVersion),
            (HelloRequest(frameBytesMax: 4095, clientName: "small"), .badRequest),
        ]
        for (offer, status) in offers {
            let client = try fixture.shard.connectSilently()
            let correlation = client.request(.hello, offer)
            #expect(client.status(of: correlation) == status)
            #expect(client.isClosed, "\(status)")
        }
        let client = try fixture.shard.connectSilently()
        client.send(FrameHeader(opcode: .hello, correlation: 1).frame(body: [1, 1, 0]))
        #expect(client.status(of: 1) == .badRequest)
        #expect(client.isClosed)
        #expect(fixture.counters.refusals == 4)
    }

    @Test("a second HELLO is refused and changes nothing")
    func secondHello() throws {
        let fixture = try Fixture()
        #expect(try fixture.refusal(.hello, HelloRequest(clientName: "again")) == .badRequest)
        #expect(!fixture.client.isClosed)
        #expect(fixture.client.ask(.ping, Empty(), reply: Empty.self) != nil)
    }

    @Test("a parked connection's input is bounded: one that goes on sending is closed")
    func inputIsBounded() throws {
        let fixture = try Fixture { settings in
            settings.limits.inputBytesMax = 32 * 1024
            settings.latencyMax = 50_000_000
        }
        let partition = try fixture.create("ticks", level: .memory)[0]
        let client = try fixture.connect()
        fixture.shard.run { !client.replies.isEmpty }
        // The first publish parks: its offsets are not reserved yet. Nothing completes from here.
        let frame = FrameHeader(opcode: .publish, correlation: 9, stream: partition)
            .frame(body: batch(["x"], bytes: 1000))
        fixture.shard.receive(client.index, frame)
        #expect(fixture.counters.parks == 1)
        #expect(client.isPaused)
        var received = 1
        while !client.isClosed, received < 100 {
            fixture.shard.receive(client.index, frame)
            received += 1
        }
        #expect(client.isClosed)
        #expect(received * frame.count <= 34 * 1024)
        #expect(fixture.isServing())
    }

    /// Requests of a client's whole life, as one stream of bytes.
    private func stream() throws -> [[UInt8]] {
        var frames: [[UInt8]] = []
        func add(_ opcode: Opcode, _ message: some WireMessage, stream: UInt32 = 0) {
            frames.append(
                FrameHeader(opcode: opcode, correlation: UInt64(frames.count + 1), stream: stream)
                    .frame(body: message.encoded))
        }
        add(.hello, HelloRequest(clientName: "split"))
        add(.queueCreate, QueueCreateRequest(name: "split", partitions: 2, level: .synced))
        for (partition, values) in [(UInt32(1), ["a", "b"]), (2, ["c"])] {
            frames.append(
                FrameHeader(
                    opcode: .publish, correlation: UInt64(frames.count + 1), stream: partition
                ).frame(body: batch(values)))
        }
        add(
            .subscribe, SubscribeRequest(queue: "split", creditRecords: 1, creditBytes: .max),
            stream: 5)
        add(.credit, Credit(records: 99, bytes: .max), stream: 5)
        add(.queueDescribe, QueueNameRequest(name: "nothing"))
        frames += try [Golden.bytes("tlv-optional"), Golden.bytes("tlv-mandatory-unknown")]
        add(.ping, Empty())
        return frames
    }

    private struct Told: Equatable {
        var replies: [UInt64: [UInt8]] = [:]
        var statuses: [UInt64: UInt16] = [:]
        var confirmed: [UInt64: UInt64] = [:]
        var delivered: [UInt32: [[UInt8]]] = [:]
    }

    private func told(_ pieces: [[UInt8]]) throws -> Told {
        let settings = SimulatedShard.Settings()
        let shard = try SimulatedShard(disk: SimulatedDisk(), settings: settings, seed: 3)
        shard.run { shard.machine.isReady }
        let client = try shard.connectSilently()
        for piece in pieces { client.send(piece) }
        shard.run(steps: 400) { client.delivered.count == 3 && client.replies.count >= 7 }
        var told = Told()
        for (correlation, reply) in client.replies {
            told.replies[correlation] = reply.body
            told.statuses[correlation] = reply.header.status
        }
        for entry in client.confirms {
            for request in 0..<UInt64(entry.requests) {
                told.confirmed[entry.correlation + request] = entry.baseOffset + request
            }
        }
        for record in client.delivered {
            told.delivered[record.partition, default: []].append(record.value)
        }
        #expect(!client.isClosed)
        return told
    }

    @Test("a stream that is split anywhere, or comes byte by byte, is answered like a whole one")
    func splits() throws {
        let frames = try stream()
        let bytes = Array(frames.joined())
        let whole = try told(frames)
        #expect(whole.confirmed.count == 2)
        #expect(whole.delivered.values.reduce(0) { $0 + $1.count } == 3)
        #expect(whole.replies.count >= 7)
        #expect(try told([bytes]) == whole)
        #expect(try told(bytes.map { [$0] }) == whole)
        for place in 1..<bytes.count {
            let split = try told([Array(bytes[..<place]), Array(bytes[place...])])
            #expect(split == whole, "split at \(place)")
        }
    }

    @Test("a connection that never says HELLO is closed after ten seconds")
    func silence() throws {
        let fixture = try Fixture()
        let client = try fixture.shard.connectSilently()
        fixture.shard.pass(milliseconds: 9_900)
        #expect(!client.isClosed)
        fixture.shard.pass(milliseconds: 200)
        #expect(client.isClosed)
        #expect(!fixture.client.isClosed)
    }
}

extension SimulatedShard {
    /// A connection on which nothing is said yet.
    func connectSilently() throws -> SimulatedClient {
        try #require(connect("", sayingHello: false))
    }
}
