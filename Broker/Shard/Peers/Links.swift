internal import BrokerBasics
internal import BrokerCore
internal import LogStorage
internal import WireProtocol

/// Introduces the front's client to the owner: the first frame on a link.
struct LinkIntroduction: WireMessage {
    /// The front itself speaks, not one of its clients.
    var isOwn: Bool
    var frameBytesMax: UInt32
    var peer: String
    var clientName: String

    init(isOwn: Bool, frameBytesMax: UInt32, peer: String, clientName: String) {
        self.isOwn = isOwn
        self.frameBytesMax = frameBytesMax
        self.peer = peer
        self.clientName = clientName
    }
    func encode(into builder: inout ByteBuilder) {
        builder.put(isOwn)
        builder.put(frameBytesMax)
        builder.put(peer)
        builder.put(clientName)
    }
    init(from parser: inout ByteParser) throws(ByteParserError) {
        isOwn = try parser.bool()
        frameBytesMax = try parser.u32()
        peer = try parser.string()
        clientName = try parser.string()
    }
}

// Both ends of links. See Peers.swift.
extension ShardMachine {
    /// A message from another shard, in the order of its lane.
    package mutating func posted(_ message: PeerMessage, from shard: UInt16) {
        switch (message.kind, message.isReply) {
        case (.bytes, false): requested(message, from: shard)
        case (.taken, true): requestTaken(message)
        case (.bytes, true): answered(message)
        case (.taken, false): answerTaken(message, from: shard)
        case (.close, _):
            if let connection = relay(shard, message.link) { ended(connection) }
        case (.closed, _): linkClosed(message.link)
        case (.checkpointed, _):
            peers.othersCheckpointed += 1
            serveWhenAllAreReady()
        case (.checkpointNow, _): peers.mayCheckpoint = true
        case (.serve, _): if stage == .starting { stage = .ready }
        }
    }

    /// What the loop's mailbox to a shard takes now.
    package mutating func setRoom(_ shard: UInt16, _ lane: PeerLane, _ messages: Int) {
        peers.setRoom(shard, lane, messages)
    }

    /// What this shard says to itself: it is its own owner as well as others'.
    mutating func takeOwnMessages() {
        guard !peers.isAlone else { return }
        for lane in PeerLane.allCases {
            while let message = peers.next(peers.own, lane) { posted(message, from: peers.own) }
        }
    }

    mutating func emitPosts(into effects: inout EffectBuffer) {
        guard !peers.isAlone else { return }
        sendUplinks()
        for shard in 0..<UInt16(peers.count) where shard != peers.own {
            for lane in PeerLane.allCases {
                while !effects.isFull, let message = peers.next(shard, lane) {
                    effects.append(.post(shard: shard, lane: lane, message))
                }
            }
        }
    }

    // MARK: the front's end

    /// The link of a client to an owner, made when there is none; `nil` when there are too many.
    mutating func uplink(of connection: Int32, to shard: UInt16) -> Int32? {
        var at = connections[connection].pointee.firstUplink
        while at >= 0 {
            if peers.uplinks[at].pointee.shard == shard { return at }
            at = peers.uplinks[at].pointee.nextInConnection
        }
        guard let made = peers.uplinks.insert(Uplink(shard: shard, connection: connection)) else {
            return nil
        }
        let client = connections[connection]
        guard
            introduce(
                made,
                LinkIntroduction(
                    isOwn: false, frameBytesMax: client.pointee.frameBytesMax,
                    peer: client.pointee.peer, clientName: client.pointee.clientName))
        else {
            peers.uplinks.remove(made)
            return nil
        }
        peers.uplinks[made].pointee.nextInConnection = client.pointee.firstUplink
        client.pointee.firstUplink = made
        return made
    }

    /// This shard's own link to another, or to itself.
    mutating func ownLink(to shard: UInt16) -> Int32? {
        let known = peers.ownLinks[Int(shard)]
        if known >= 0 { return known }
        guard
            let made = peers.uplinks.insert(Uplink(shard: shard, connection: Uplink.own))
        else { return nil }
        guard
            introduce(
                made,
                LinkIntroduction(
                    isOwn: true, frameBytesMax: limits.frameBytesMax, peer: "shard \(peers.own)",
                    clientName: "shard \(peers.own)"))
        else {
            peers.uplinks.remove(made)
            return nil
        }
        peers.ownLinks[Int(shard)] = made
        return made
    }

    private mutating func introduce(_ link: Int32, _ introduction: LinkIntroduction) -> Bool {
        let frame = FrameHeader(opcode: .hello).frame(body: introduction.encoded)
        return frame.withUnsafeBytes { bytes in
            bytes.baseAddress.map { put($0, bytes.count, on: link) } ?? false
        }
    }

    /// Puts a frame on a link.
    ///
    /// - Returns: false when there is no room now; `wakesParked` is set when there is again.
    mutating func put(_ frame: UnsafeRawPointer, _ count: Int, on link: Int32) -> Bool {
        let uplink = peers.uplinks[link]
        guard let room = uplink.pointee.send.reserve(count, pool: &sendPool) else { return false }
        room.copyMemory(from: frame, byteCount: count)
        uplink.pointee.send.commit(count)
        uplink.pointee.enqueuedBytes &+= UInt64(count)
        list(link)
        return true
    }

    mutating func list(_ link: Int32) {
        guard !peers.uplinks[link].pointee.isListed else { return }
        peers.uplinks[link].pointee.isListed = true
        peers.sendList.append(link)
    }

    private mutating func sendUplinks() {
        while let link = peers.sendList.first {
            peers.sendList.removeFirst()
            guard peers.uplinks.contains(link) else { continue }
            let uplink = peers.uplinks[link]
            uplink.pointee.isListed = false
            guard uplink.pointee.connection != Uplink.gone,
                let (bytes, count) = uplink.pointee.send.startSend()
            else { continue }
            peers.post(
                PeerMessage(.bytes, link: link, bytes: bytes, count: count),
                to: uplink.pointee.shard, lane(uplink.pointee.connection))
        }
    }

    private func lane(_ connection: Int32) -> PeerLane {
        connection == Uplink.own ? .control : .request
    }

    /// The owner has worked on what was in flight.
    private mutating func requestTaken(_ message: PeerMessage) {
        guard peers.uplinks.contains(message.link) else { return }
        let uplink = peers.uplinks[message.link]
        uplink.pointee.takenBytes &+= UInt64(message.count)
        _ = uplink.pointee.send.sent(Int(message.count), pool: &sendPool)
        if uplink.pointee.connection != Uplink.gone {
            putWaiting(on: message.link)
            if uplink.pointee.connection >= 0 { wakeRouted(uplink.pointee.connection) }
        }
        if uplink.pointee.send.activeCount > 0 { list(message.link) }
        wakesParked = true
        wakesStarved = true
    }

    private mutating func answered(_ message: PeerMessage) {
        guard peers.uplinks.contains(message.link) else { return }
        let uplink = peers.uplinks[message.link]
        uplink.pointee.incoming = message.bytes
        uplink.pointee.incomingCount = Int(message.count)
        uplink.pointee.incomingAt = 0
        passOn(message.link)
    }

    /// Passes on what an owner said, as far as the client has room.
    mutating func passOn(_ link: Int32) {
        let uplink = peers.uplinks[link]
        guard let base = uplink.pointee.incoming else { return }
        while uplink.pointee.incomingAt < uplink.pointee.incomingCount {
            let frame = base + uplink.pointee.incomingAt
            let bytes = Int(frame.u32(0))
            guard uplink.pointee.connection != Uplink.gone else { break }
            guard passOn(frame, bytes, link, uplink) else {
                if !uplink.pointee.isBlocked {
                    uplink.pointee.isBlocked = true
                    peers.blocked.append(link)
                }
                return
            }
            guard peers.uplinks.contains(link), uplink.pointee.incoming != nil else { return }
            uplink.pointee.incomingAt += bytes
        }
        uplink.pointee.incoming = nil
        peers.post(
            PeerMessage(.taken, link: link, count: uplink.pointee.incomingCount),
            to: uplink.pointee.shard, lane(uplink.pointee.connection))
    }

    /// - Returns: false when the client has no room for it now.
    private mutating func passOn(
        _ frame: UnsafeRawPointer, _ bytes: Int, _ link: Int32,
        _ uplink: UnsafeMutablePointer<Uplink>
    ) -> Bool {
        let header = FrameHeader(at: frame)
        let index = uplink.pointee.connection
        let body = UnsafeRawBufferPointer(
            start: frame + FrameHeader.byteCount, count: bytes - FrameHeader.byteCount)
        if index == Uplink.own {
            gathered(header, body, from: uplink.pointee.shard)
            return true
        }
        let connection = connections[index]
        guard connection.pointee.blockedCount == 0 else { return false }
        if PeerOpcode(rawValue: header.opcode) != nil {
            routedAnswer(index, header, body, from: uplink.pointee.shard)
            return true
        }
        let isPush = header.flags & FrameHeader.pushFlag != 0
        switch Opcode(rawValue: header.opcode) {
        case .deliver:
            return routedDeliver(index, connection, header, body, from: uplink.pointee.shard)
        case .assignment, .ended:
            routedAnswer(index, header, body, from: uplink.pointee.shard)
            return true
        case .skipped:
            let whole = [UInt8](UnsafeRawBufferPointer(start: frame, count: bytes))
            guard passesAtOnce(index, header.stream, whole) else { return true }
        // The front says it itself.
        case .goodbye: return true
        case .error where isPush:
            close(index, reason: .stopping)
            return true
        default: break
        }
        guard let room = connection.pointee.send.reserve(bytes, pool: &sendPool) else {
            return false
        }
        room.copyMemory(from: frame, byteCount: bytes)
        connection.pointee.send.commit(bytes)
        listForSending(index)
        return true
    }

    /// Tries those again whose clients had no room.
    mutating func wakeBlockedUplinks() {
        guard peers.wakesBlocked else { return }
        peers.wakesBlocked = false
        for _ in 0..<peers.blocked.count {
            guard let link = peers.blocked.first else { return }
            peers.blocked.removeFirst()
            guard peers.uplinks.contains(link), peers.uplinks[link].pointee.isBlocked else {
                continue
            }
            peers.uplinks[link].pointee.isBlocked = false
            passOn(link)
        }
    }

    /// The client is gone: its links are closed.
    mutating func closeUplinks(of connection: Int32) {
        var at = connections[connection].pointee.firstUplink
        connections[connection].pointee.firstUplink = -1
        while at >= 0 {
            let uplink = peers.uplinks[at]
            let next = uplink.pointee.nextInConnection
            uplink.pointee.connection = Uplink.gone
            uplink.pointee.isBlocked = false
            if uplink.pointee.incoming != nil { passOn(at) }
            guard uplink.pointee.takenBytes > 0 || uplink.pointee.send.isInFlight else {
                // Its owner never heard of it, and would not answer.
                uplink.pointee.send.release(pool: &sendPool)
                peers.uplinks.remove(at)
                at = next
                continue
            }
            peers.post(PeerMessage(.close, link: at), to: uplink.pointee.shard, .request)
            at = next
        }
    }

    private mutating func linkClosed(_ link: Int32) {
        guard peers.uplinks.contains(link) else { return }
        let uplink = peers.uplinks[link]
        let connection = uplink.pointee.connection
        if connection >= 0 {
            // The owner could not go on: what was in flight has no answer.
            unlist(link, from: connection)
            close(connection, reason: .stopping)
        }
        if connection == Uplink.own { peers.ownLinks[Int(uplink.pointee.shard)] = -1 }
        uplink.pointee.send.release(pool: &sendPool)
        peers.uplinks.remove(link)
    }

    private mutating func unlist(_ link: Int32, from connection: Int32) {
        let client = connections[connection]
        let next = peers.uplinks[link].pointee.nextInConnection
        if client.pointee.firstUplink == link {
            client.pointee.firstUplink = next
            return
        }
        var at = client.pointee.firstUplink
        while at >= 0 {
            if peers.uplinks[at].pointee.nextInConnection == link {
                peers.uplinks[at].pointee.nextInConnection = next
                return
            }
            at = peers.uplinks[at].pointee.nextInConnection
        }
    }

    // MARK: the owner's end

    func relay(_ shard: UInt16, _ link: Int32) -> Int32? {
        let known = peers.relays[Int(shard)]
        guard Int(link) < known.count, known[Int(link)] >= 0 else { return nil }
        return known[Int(link)]
    }

    private mutating func requested(_ message: PeerMessage, from shard: UInt16) {
        guard let base = message.bytes else { return }
        var at = 0
        let index: Int32
        if let known = relay(shard, message.link) {
            index = known
        } else {
            let bytes = Int(base.u32(0))
            guard bytes >= FrameHeader.byteCount, bytes <= Int(message.count),
                FrameHeader(at: base).opcode == Opcode.hello.rawValue
            else {
                return peers.post(
                    PeerMessage(.closed, isReply: true, link: message.link), to: shard, .reply)
            }
            let body = UnsafeRawBufferPointer(
                start: base + FrameHeader.byteCount, count: bytes - FrameHeader.byteCount)
            guard let introduction = try? LinkIntroduction(body: body),
                let made = openRelay(introduction, shard, message.link)
            else {
                return peers.post(
                    PeerMessage(.closed, isReply: true, link: message.link), to: shard, .reply)
            }
            at = bytes
            index = made
        }
        connections[index].pointee.owesTaken = message.count
        received(index, base + at, count: Int(message.count) - at)
        if connections.contains(index), !connections[index].pointee.isParked { take(index) }
    }

    private mutating func openRelay(
        _ introduction: LinkIntroduction, _ shard: UInt16, _ link: Int32
    ) -> Int32? {
        var connection = Connection(
            generation: nextGeneration, openedAt: now.monotonic, peer: introduction.peer,
            frameBytesMax: introduction.frameBytesMax)
        // What the front itself says may be longer than what its client says.
        connection.inputFrameBytesMax = limits.frameBytesMax
        nextGeneration &+= 1
        connection.state = .ready
        connection.clientName = introduction.clientName
        connection.relay = Relay(shard: shard, link: link, isOwn: introduction.isOwn)
        guard let index = connections.insert(connection) else { return nil }
        while peers.relays[Int(shard)].count <= Int(link) { peers.relays[Int(shard)].append(-1) }
        peers.relays[Int(shard)][Int(link)] = index
        return index
    }

    /// Says that what a front sent is worked on, if that was not said.
    mutating func take(_ index: Int32) {
        let connection = connections[index]
        guard connection.pointee.owesTaken > 0, let relay = connection.pointee.relay else { return }
        peers.post(
            PeerMessage(
                .taken, isReply: true, link: relay.link, count: Int(connection.pointee.owesTaken)),
            to: relay.shard, lane(relay))
        connection.pointee.owesTaken = 0
    }

    func lane(_ relay: Relay) -> PeerLane { relay.isOwn ? .control : .reply }

    private mutating func answerTaken(_ message: PeerMessage, from shard: UInt16) {
        guard let index = relay(shard, message.link) else { return }
        _ = sent(index, result: message.count)
        if connections.contains(index) { finishRelay(index) }
    }

    /// Ends a relay that is closed once nothing of it is in flight.
    mutating func finishRelay(_ index: Int32) {
        let connection = connections[index]
        guard let relay = connection.pointee.relay, connection.pointee.isCloseEmitted,
            !connection.pointee.send.isInFlight
        else { return }
        peers.relays[Int(relay.shard)][Int(relay.link)] = -1
        peers.post(
            PeerMessage(.closed, isReply: true, link: relay.link), to: relay.shard, .reply)
        released(index)
    }
}
