internal import BrokerBasics
internal import BrokerShard
internal import BrokerTestSupport
internal import FuzzInput
internal import LogStorage
internal import WireProtocol

/// One broker and its clients, for the time of one input.
final class Session {
    /// A client, and what it must be told.
    private final class Peer {
        let client: SimulatedClient
        /// Requests that were said in order on a connection that keeps the protocol.
        var expected: [UInt64] = []
        var nextCorrelation: UInt64 = 1000
        /// False once bytes went out that may not end where a frame does.
        var isInStep = true
        init(_ client: SimulatedClient) { self.client = client }
    }

    private static let peersMax = 6
    private static let bytesAlone = 48
    private let shard: SimulatedShard
    private var peers: [Peer] = []
    private var current = 0

    /// - Parameter room: bits 0 ... 5: effects in a cycle; 6: a tail that is soon full; 7: slow segments.
    /// - Returns: `nil` when the broker does not start.
    init?(room: UInt8) {
        var settings = SimulatedShard.Settings()
        settings.effectsPerCycle = 1 + Int(room & 63)
        settings.limits.connectionsMax = 8
        settings.limits.frameBytesMax = 4096
        settings.limits.sendBytesMax = 8192
        settings.limits.inputBytesMax = 16 * 1024
        settings.limits.confirmRunsMax = 16
        settings.limits.subscriptionsPerConnectionMax = 4
        settings.limits.queuesMax = 5
        settings.limits.partitionsPerQueueMax = 8
        settings.limits.groupBytes = 8192
        settings.limits.stagingBytes = 32 * 1024
        settings.limits.chunkBytes = 4096
        settings.limits.tailBytesMax = room & 64 == 0 ? 128 * 1024 : 16 * 1024
        settings.limits.segmentBytes = 16 * 1024
        settings.limits.filesMax = 12
        settings.limits.reservationStep = 16
        settings.sleepsWhenIdle = true
        if room & 128 != 0 { settings.segmentDelay = 50_000_000 }
        settings.geometry = JournalGeometry(fileBytes: 32 * 1024, fileCount: 2)
        guard settings.limits.conflict(geometry: settings.geometry) == nil,
            let shard = try? SimulatedShard(
                disk: SimulatedDisk(), settings: settings, seed: UInt64(room)),
            shard.run(steps: 1000, until: { shard.machine.isReady })
        else { return nil }
        self.shard = shard
        connect(sayingHello: true)
        // What most frames talk about.
        for (name, level) in [("q", DurabilityLevel.synced), ("m", .memory), ("w", .written)] {
            peers.first?.client.request(
                .queueCreate, QueueCreateRequest(name: name, partitions: 2, level: level))
        }
        shard.run(steps: 200) { peers.first?.client.unanswered.isEmpty ?? true }
    }

    private func connect(sayingHello: Bool) {
        guard let client = shard.connect("fuzz", sayingHello: sayingHello) else { return }
        peers.append(Peer(client))
        current = peers.count - 1
    }

    // MARK: steps

    func step(_ input: inout InputReader) {
        switch input.choice(16) {
        case 0...7:
            guard let peer else { return }
            let choice = FrameChoice(&input, correlation: peer.nextCorrelation)
            peer.nextCorrelation += 1
            if peer.isInStep, choice.isAnswered { peer.expected.append(choice.correlation) }
            say(choice.bytes, &input)
        case 8:
            guard let peer else { return }
            var bytes = FrameChoice(&input, correlation: peer.nextCorrelation).bytes
            let bit = input.place(bytes.count * 8)
            bytes[bit / 8] ^= 1 << UInt8(bit % 8)
            peer.isInStep = false
            say(bytes, &input)
        case 9:
            peer?.isInStep = false
            say(input.bytes(), &input)
        case 10, 11: for _ in 0...input.choice(16) { shard.step() }
        case 12: shard.pass(milliseconds: UInt64(input.u8()))
        case 13: meet(&input)
        case 14:
            guard let peer else { return }
            switch input.choice(3) {
            case 0:
                // What is in flight to it comes back, as from a kernel whose socket is closed.
                if !peer.client.isReading { shard.readAgain(peer.client) }
                if !peer.client.isClosed { shard.disconnect(peer.client.index) }
                leave(peer)
            case 1: peer.client.isReading = false
            default: shard.readAgain(peer.client)
            }
        default: refuse(&input)
        }
    }

    private var peer: Peer? { peers.isEmpty ? nil : peers[current % peers.count] }

    private func leave(_ peer: Peer) {
        check(peer)
        peers.removeAll { $0 === peer }
    }

    private func meet(_ input: inout InputReader) {
        let choice = input.choice(Self.peersMax + 2)
        if choice < Self.peersMax {
            current = choice
            return
        }
        if peers.count >= Self.peersMax { return }
        connect(sayingHello: choice == Self.peersMax)
    }

    private func say(_ bytes: [UInt8], _ input: inout InputReader) {
        guard let client = peer?.client else { return }
        let badFrames = shard.machine.counters.badFrames
        let others = peers.filter { $0.client !== client && isHeard($0.client) }
        let manner = input.u8()
        switch manner & 3 {
        case 0, 1: client.send(bytes)
        case 2:
            let cut = bytes.isEmpty ? 0 : input.place(bytes.count)
            client.send(Array(bytes[..<cut]))
            if manner & 4 != 0 { shard.step() }
            client.send(Array(bytes[cut...]))
        default:
            // Its header, and some of what follows.
            for byte in bytes.prefix(Self.bytesAlone) { client.send([byte]) }
            client.send(Array(bytes.dropFirst(Self.bytesAlone)))
        }
        // Nobody else said anything: who is heard no more is this one, or one whose input was parked.
        guard shard.machine.counters.badFrames > badFrames else { return }
        invariant(
            !isHeard(client) || others.contains { !isHeard($0.client) },
            "connection \(client.index) broke the protocol and is heard")
    }

    private func isHeard(_ client: SimulatedClient) -> Bool {
        guard !client.isClosed else { return false }
        let state = shard.machine.connections[client.index].pointee.state
        return state != .draining && state != .closed
    }

    /// The disk answers the next operation of a kind with an error, or half of what was asked.
    private func refuse(_ input: inout InputReader) {
        let kinds: [SimulatedShard.Asked.Kind] = [
            .open, .make, .allocate, .write, .syncedWrite, .read, .sync, .syncNames, .remove,
        ]
        let kind = kinds[input.choice(kinds.count)]
        let answer: Int32 = [-28, -5, 0, 512][input.choice(4)]
        var isDone = false
        shard.fault = { asked in
            guard !isDone, asked.kind == kind else { return nil }
            isDone = true
            return answer
        }
    }

    // MARK: what must hold

    /// Between steps: memory for what came is bounded.
    func check() {
        let bound = 2 * shard.settings.limits.inputBytesMax
        for index in shard.machine.connections.indices {
            let held = shard.machine.connections[index].pointee.inputCapacity
            // It grows by doubling.
            invariant(
                held <= bound, "connection \(index) holds \(held) bytes of input"
            )
        }
    }

    private func check(_ peer: Peer) {
        let client = peer.client
        invariant(client.badBatches == 0, "a frame or batch that does not verify was sent")
        for answer in client.pushes + client.replies.values.map({ $0 }) {
            let header = answer.header
            invariant(
                StatusCode(rawValue: header.status) != nil, "status \(header.status) is not known")
            // The opcode of a request that is not known comes back in its refusal.
            let isError = header.flags & FrameHeader.errorFlag != 0
            invariant(
                isError || Opcode(rawValue: header.opcode) != nil,
                "opcode \(header.opcode) is not known")
            invariant(
                isError == (header.status != 0) || header.opcode == Opcode.ended.rawValue,
                "flags \(header.flags) with status \(header.status)")
            if isError {
                invariant(
                    (try? Refusal(body: answer.body)) != nil, "a refusal that can't be read")
            }
        }
    }

    /// Lets all that is under way come to its end, and looks at what was said.
    func finish() {
        for peer in peers where !peer.client.isReading { shard.readAgain(peer.client) }
        shard.run(steps: 3000) { peers.allSatisfy { self.missing($0).isEmpty } }
        for peer in peers {
            let missing = missing(peer)
            invariant(missing.isEmpty, "requests \(missing) are not answered")
            check(peer)
        }
        // Whoever comes is served; the oldest make room.
        for peer in peers where !peer.client.isClosed { shard.disconnect(peer.client.index) }
        guard let witness = shard.connect("witness") else {
            let open = shard.machine.connections.count
            invariantBroken(
                "a newcomer is not let in, \(open) connections are open", file: #fileID, line: #line
            )
        }
        var isAnswered = witness.ask(.ping, Empty(), reply: Empty.self) != nil
        // What it was to be told when the storage failed is refused; what it asks then is answered.
        if !isAnswered, shard.machine.counters.storageFailure != nil {
            isAnswered = witness.ask(.ping, Empty(), reply: Empty.self) != nil
        }
        let told = witness.replies.values.map { StatusCode(rawValue: $0.header.status)?.name ?? "" }
        invariant(
            isAnswered,
            "a newcomer is not answered but told \(told), storage "
                + "\(shard.machine.counters.storageFailure ?? "ok"), closed \(witness.isClosed)")
    }

    private func missing(_ peer: Peer) -> [UInt64] {
        guard !peer.client.isClosed else { return [] }
        // What was answered once need not be looked for again.
        peer.expected.removeAll { correlation in
            peer.client.replies[correlation] != nil
                || peer.client.confirms.contains {
                    $0.correlation <= correlation
                        && correlation - $0.correlation < UInt64($0.requests)
                }
        }
        return peer.expected
    }
}
