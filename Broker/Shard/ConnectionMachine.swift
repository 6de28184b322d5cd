internal import BrokerBasics
internal import BrokerCore
internal import LogStorage
internal import WireProtocol

/// What became of one frame.
enum Outcome {
    case done
    /// No room for it now: the frame stays, and with it all behind it.
    case park
    /// The connection is closing; nothing more of it is worked on.
    case closed
}

// A connection's bytes become frames, and a frame goes to its handler.
extension ShardMachine {
    /// Bytes that came on a connection; they are taken in whole, now or by keeping a copy.
    package mutating func received(_ index: Int32, _ bytes: UnsafeRawPointer, count: Int) {
        guard connections.contains(index) else { return }
        let connection = connections[index]
        guard connection.pointee.state != .closed, connection.pointee.state != .draining else {
            return
        }
        connection.pointee.receivedBytes &+= UInt64(count)
        counters.receivedBytes &+= UInt64(count)
        if connection.pointee.isParked {
            keep(index, connection, bytes, count)
            return
        }
        var base = bytes
        var left = count
        while connection.pointee.inputCount > 0, left > 0 {
            guard let taken = completeKeptFrame(index, connection, base, left) else { return }
            base += taken
            left -= taken
            if connection.pointee.isParked {
                keep(index, connection, base, left)
                return
            }
        }
        guard left > 0 else { return }
        let used = consume(index, connection, base, left)
        guard connection.pointee.state != .closed, connection.pointee.state != .draining else {
            return
        }
        keep(index, connection, base + used, left - used)
    }

    /// Adds to a frame that came in part, and works on it once it is whole.
    ///
    /// - Returns: the bytes taken, or `nil` when the connection is closing.
    private mutating func completeKeptFrame(
        _ index: Int32, _ connection: UnsafeMutablePointer<Connection>, _ base: UnsafeRawPointer,
        _ left: Int
    ) -> Int? {
        var taken = 0
        if connection.pointee.inputCount < 4 {
            taken = min(left, 4 - connection.pointee.inputCount)
            guard hold(index, connection, base, taken) else { return nil }
            guard connection.pointee.inputCount >= 4 else { return taken }
        }
        guard let input = connection.pointee.input else { return taken }
        let frameBytes: Int
        do throws(FrameError) {
            frameBytes =
                try FrameHeader.frameBytes(
                    UnsafeRawPointer(input), available: connection.pointee.inputCount,
                    frameBytesMax: connection.pointee.inputFrameBytesMax) ?? 0
        } catch {
            protocolError(index, error)
            return nil
        }
        let more = min(left - taken, frameBytes - connection.pointee.inputCount)
        guard hold(index, connection, base + taken, more) else { return nil }
        taken += more
        guard connection.pointee.inputCount == frameBytes, let whole = connection.pointee.input
        else { return taken }
        let used = consume(index, connection, UnsafeRawPointer(whole), frameBytes)
        guard connection.pointee.state != .closed, connection.pointee.state != .draining else {
            return nil
        }
        consumed(connection, used)
        return taken
    }

    private mutating func keep(
        _ index: Int32, _ connection: UnsafeMutablePointer<Connection>, _ bytes: UnsafeRawPointer,
        _ count: Int
    ) {
        guard count > 0 else { return }
        guard connection.pointee.inputCount + count <= limits.inputBytesMax else {
            turnAway(
                index, .limitReached,
                "\(limits.inputBytesMax) bytes wait to be worked on, and more came")
            return
        }
        _ = hold(index, connection, bytes, count)
    }

    /// Keeps bytes in the connection's memory, which counts with that of all others.
    ///
    /// - Returns: false when there is none left: the peer is told, and the connection closes.
    private mutating func hold(
        _ index: Int32, _ connection: UnsafeMutablePointer<Connection>, _ bytes: UnsafeRawPointer,
        _ count: Int
    ) -> Bool {
        let more = connection.pointee.capacity(with: count) - connection.pointee.inputCapacity
        // A link's front has counted what it sends.
        if more > 0, connection.pointee.relay == nil {
            guard inputMemoryBytes + more <= limits.inputMemoryBytesMax else {
                turnAway(
                    index, .busy,
                    "the server has no memory left for frames that come in part "
                        + "(\(limits.inputMemoryBytesMax) bytes)")
                return false
            }
            inputMemoryBytes += more
        }
        connection.pointee.keep(bytes, count: count, now: now.monotonic)
        return true
    }

    /// Drops the first `count` bytes of what was kept.
    private mutating func consumed(
        _ connection: UnsafeMutablePointer<Connection>, _ count: Int
    ) {
        let before = connection.pointee.inputCapacity
        connection.pointee.consumed(count)
        noteInput(connection, before: before)
    }

    /// Takes in that a connection's memory for input has changed from `before` bytes.
    mutating func noteInput(_ connection: UnsafeMutablePointer<Connection>, before: Int) {
        guard connection.pointee.relay == nil else { return }
        inputMemoryBytes += connection.pointee.inputCapacity - before
    }

    /// Works on the whole frames at `base`.
    ///
    /// - Returns: the bytes of the frames that are done with.
    private mutating func consume(
        _ index: Int32, _ connection: UnsafeMutablePointer<Connection>, _ base: UnsafeRawPointer,
        _ count: Int
    ) -> Int {
        var at = 0
        let looksAhead = state.partitions.limit > PublishLookahead.partitionsMin
        var lookahead = PublishLookahead()
        while count - at >= 4 {
            let frame = base + at
            if looksAhead { look(&lookahead, base, count) }
            let header: FrameHeader
            let frameBytes: Int
            do throws(FrameError) {
                guard
                    let bytes = try FrameHeader.frameBytes(
                        frame, available: count - at,
                        frameBytesMax: connection.pointee.inputFrameBytesMax)
                else { return at }
                guard bytes <= count - at else { return at }
                header = try FrameHeader.decode(frame)
                frameBytes = bytes
            } catch {
                protocolError(index, error)
                return count
            }
            let outcome =
                header.opcode == Opcode.publish.rawValue && header.flags == 0
                    && connection.pointee.state == .ready
                ? publish(index, connection, header, frame)
                : handle(index, connection, header, frame)
            switch outcome {
            case .done:
                counters.frames &+= 1
                at += frameBytes
            case .park:
                park(index, connection)
                return at
            case .closed:
                return count
            }
        }
        return at
    }

    private mutating func park(_ index: Int32, _ connection: UnsafeMutablePointer<Connection>) {
        guard !connection.pointee.isParked else { return }
        counters.parks &+= 1
        connection.pointee.isParked = true
        connection.pointee.needsPause = true
        connection.pointee.needsResume = false
        parkedList.append(index)
        flowList.append(index)
    }

    /// Tries what was parked again, each connection once, the longest waiting first.
    mutating func resumeParked() {
        for _ in 0..<parkedList.count {
            guard let index = parkedList.first else { return }
            parkedList.removeFirst()
            guard connections.contains(index) else { continue }
            let connection = connections[index]
            guard connection.pointee.isParked, connection.pointee.state != .closed,
                connection.pointee.state != .draining, let input = connection.pointee.input
            else { continue }
            connection.pointee.isParked = false
            let used = consume(
                index, connection, UnsafeRawPointer(input), connection.pointee.inputCount)
            guard connection.pointee.state != .closed, connection.pointee.state != .draining else {
                continue
            }
            consumed(connection, used)
            // What is left waited for no fault of the peer's.
            connection.pointee.frameSince = now.monotonic
            if !connection.pointee.isParked {
                connection.pointee.needsResume = true
                connection.pointee.needsPause = false
                flowList.append(index)
            }
        }
    }

    /// One place that names every opcode; their handlers are in `Handlers`, a file per subject.
    private mutating func handle(
        _ index: Int32, _ connection: UnsafeMutablePointer<Connection>, _ header: FrameHeader,
        _ frame: UnsafeRawPointer
    ) -> Outcome {
        let tlvs = UnsafeRawBufferPointer(
            start: frame + FrameHeader.byteCount, count: Int(header.tlvBytes))
        let body = UnsafeRawBufferPointer(
            start: frame + FrameHeader.byteCount + Int(header.tlvBytes),
            count: header.bodyBytes - Int(header.tlvBytes))
        // A reply to a control request must fit behind what waits: else the request waits.
        guard connection.pointee.blockedCount == 0,
            connection.pointee.send.free(pool: sendPool) >= 4096 || connection.pointee.send.isEmpty
        else { return .park }
        let request = Request(connection: index, header: header, body: body)
        let named = header.flags == 0 ? Opcode(rawValue: header.opcode) : nil
        guard connection.pointee.state == .ready || named == .hello || named == .ping else {
            _ = refuse(request, .helloExpected, "the first frame must be HELLO")
            drain(index)
            return .closed
        }
        let fields = OptionalFields.check(tlvs)
        guard fields == .ok else {
            return refuse(request, fields, "the frame's optional fields: \(fields.name)")
        }
        if header.argument != 0, isPastDeadline(connection, header) {
            return refuse(
                request, .deadlineExceeded,
                "the deadline of \(header.argument) µs passed before the request was worked on")
        }
        let isRelayed = connection.pointee.relay != nil
        if isRelayed, let opcode = PeerOpcode(rawValue: header.opcode) {
            return handle(request, opcode)
        }
        guard let opcode = named else {
            return refuse(request, .unknownOpcode, "opcode \(header.opcode) is not a request")
        }
        if let failure = counters.storageFailure, !isAnswered(afterFailure: opcode) {
            return refuse(request, .storageFailed, "this shard stopped confirming: \(failure)")
        }
        if opcode.changesState, stage != .ready {
            return refuse(request, .shuttingDown, "the server is stopping; nothing was done")
        }
        if diskLevel == .readsOnly, opcode == .queueCreate || opcode == .producerOpen {
            return refuseForSpace(request)
        }
        if !peers.isAlone, !isRelayed, let outcome = route(request, opcode, frame) {
            return outcome
        }
        switch opcode {
        case .hello: return hello(request)
        case .ping: return reply(request, Empty())
        case .queueCreate: return queueCreate(request)
        case .queueAlter: return queueAlter(request)
        case .queueDelete: return queueDelete(request)
        case .queueDescribe: return queueDescribe(request)
        case .queueList: return queueList(request)
        case .queuePurge: return queuePurge(request)
        case .queueMove: return queueMove(request)
        case .producerOpen: return producerOpen(request)
        case .subscribe: return subscribe(request)
        case .unsubscribe: return unsubscribe(request)
        case .credit: return credit(request)
        case .ack: return ack(request)
        case .groupDescribe: return groupDescribe(request)
        case .groupList: return groupList(request)
        case .serverDescribe: return serverDescribe(request)
        case .shardList: return shardList(request)
        case .storageDescribe: return storageDescribe(request)
        case .storageVerify: return storageVerify(request)
        case .backup: return backUp(request)
        case .goodbye, .publish, .confirm, .deliver, .assignment, .ended, .skipped, .error:
            return refuse(request, .unknownOpcode, "\(opcode) is not a request")
        }
    }

    /// After a failed write nothing is changed any more, and what was changed but is not durable is
    /// not shown.
    private func isAnswered(afterFailure opcode: Opcode) -> Bool {
        switch opcode {
        case .queueCreate, .queueAlter, .queueDelete, .queuePurge, .queueMove, .producerOpen,
            .storageVerify, .backup:
            false
        case .queueDescribe, .queueList, .groupDescribe, .groupList, .subscribe:
            (lastChangeGroup ?? 0) < journal.durableGroup
        default: true
        }
    }

    /// The deadline counts from the arrival of the oldest byte that waits with the frame.
    @inline(__always)
    func isPastDeadline(
        _ connection: UnsafeMutablePointer<Connection>, _ header: FrameHeader
    ) -> Bool {
        guard connection.pointee.inputCount > 0 else { return false }
        return now.monotonic.since(connection.pointee.inputSince)
            > .microseconds(UInt64(header.argument))
    }

    // MARK: answers to control requests

    struct Request {
        var connection: Int32
        var header: FrameHeader
        var body: UnsafeRawBufferPointer
    }

    /// A reply that the client does not take is refused before anything is done for it.
    ///
    /// - Returns: `nil` when `message` fits.
    mutating func refuseTooLarge(_ request: Request, _ message: some WireMessage) -> Outcome? {
        let bytes = FrameHeader.byteCount + message.encoded.count
        guard bytes > Int(connections[request.connection].pointee.frameBytesMax) else { return nil }
        return refuse(
            request, .frameTooLarge,
            "the reply would have \(bytes) bytes; nothing was done. Ask for less, or agree on "
                + "larger frames")
    }

    /// Replies when every change so far is durable: nobody sees what a crash can take back.
    mutating func reply(_ request: Request, _ message: some WireMessage) -> Outcome {
        var header = FrameHeader(
            opcode: .ping, flags: FrameHeader.replyFlag, correlation: request.header.correlation,
            stream: request.header.stream)
        header.opcode = request.header.opcode
        let frame = header.frame(body: message.encoded)
        // What shards say to each other never reaches the client as it is.
        let isOwn = PeerOpcode(rawValue: header.opcode) != nil
        guard isOwn || frame.count <= Int(connections[request.connection].pointee.frameBytesMax)
        else {
            return refuse(
                request, .frameTooLarge,
                "the reply has \(frame.count) bytes; ask for less, or agree on larger frames")
        }
        // PING shows nothing, and asks whether the loop runs: it does not wait for a slow disk.
        if request.header.opcode != Opcode.ping.rawValue,
            deferReply(frame, to: request.connection)
        {
            return .done
        }
        // The request is done: it is not tried again, only its answer waits for room.
        writeOrBlock(frame, to: request.connection)
        return .done
    }

    /// Refuses a request that was taken in before.
    /// - Returns: false when every change so far is durable, and every reply that waited for one is out.
    private mutating func deferReply(_ frame: [UInt8], to index: Int32) -> Bool {
        guard let group = lastChangeGroup, group >= min(appliedGroup, journal.durableGroup),
            !faults.confirmBeforeSync, !hasFailed
        else { return false }
        deferred.append(
            DeferredReply(
                group: group, connection: index,
                generation: connections[index].pointee.generation, frame: frame))
        return true
    }

    /// Sends a frame behind the replies that still wait for something to be durable.
    mutating func replyInOrder(_ frame: [UInt8], to index: Int32) {
        guard !deferReply(frame, to: index) else { return }
        deliver(
            deferredReply: DeferredReply(
                group: 0, connection: index,
                generation: connections[index].pointee.generation, frame: frame))
    }

    mutating func refuseLate(
        _ index: Int32, correlation: UInt64, stream: UInt32, _ status: StatusCode,
        _ message: String
    ) {
        guard connections.contains(index), connections[index].pointee.state != .closed else {
            return
        }
        counters.refusals &+= 1
        let refusal = Refusal(errorClass: status.errorClass.rawValue, message: message)
        writeOrBlock(
            FrameHeader(
                opcode: .error, flags: FrameHeader.replyFlag | FrameHeader.errorFlag,
                correlation: correlation, stream: stream, status: status
            ).frame(body: refusal.encoded), to: index)
    }

    mutating func deliver(deferredReply reply: DeferredReply) {
        guard isOpen(reply) else { return }
        writeOrBlock(reply.frame, to: reply.connection)
    }

    func isOpen(_ reply: DeferredReply) -> Bool {
        connections.contains(reply.connection)
            && connections[reply.connection].pointee.generation == reply.generation
            && connections[reply.connection].pointee.state != .closed
    }

    /// Writes a frame, or keeps it until there is room. While one is kept, those behind it are too,
    /// the connection's deliveries and requests wait, and nobody else's do.
    @discardableResult
    private mutating func writeOrBlock(_ frame: [UInt8], to index: Int32) -> Bool {
        let connection = connections[index]
        if connection.pointee.blockedCount == 0, write(frame, to: index) { return true }
        connection.pointee.blockedCount += 1
        blocked.append(
            DeferredReply(
                group: 0, connection: index, generation: connection.pointee.generation,
                frame: frame))
        return false
    }

    /// Tries what was kept for want of room, each connection's frames in their order.
    mutating func resumeBlocked() {
        guard wakesBlocked, !blocked.isEmpty else { return }
        wakesBlocked = false
        blockedPass += 1
        for _ in 0..<blocked.count {
            guard let reply = blocked.first else { return }
            blocked.removeFirst()
            guard isOpen(reply) else { continue }
            let connection = connections[reply.connection]
            guard connection.pointee.blockedPass != blockedPass,
                write(reply.frame, to: reply.connection)
            else {
                connection.pointee.blockedPass = blockedPass
                blocked.append(reply)
                continue
            }
            connection.pointee.blockedCount -= 1
            guard connection.pointee.blockedCount == 0 else { continue }
            wakesParked = true
            if connection.pointee.isDispatchBlocked, !connection.pointee.isDispatchListed {
                connection.pointee.isDispatchListed = true
                dispatchList.append(reply.connection)
            }
        }
    }

    /// Refuses a request with a sentence; the connection lives.
    mutating func refuse(
        _ request: Request, _ status: StatusCode, _ message: String,
        retryAfterMilliseconds: UInt32 = 0
    ) -> Outcome {
        counters.refusals &+= 1
        let refusal = Refusal(
            errorClass: status.errorClass.rawValue,
            retryAfterMilliseconds: retryAfterMilliseconds, message: message)
        let frame = FrameHeader(
            opcode: .error, flags: FrameHeader.replyFlag | FrameHeader.errorFlag,
            correlation: request.header.correlation, stream: request.header.stream,
            status: status
        ).frame(body: refusal.encoded)
        return write(frame, to: request.connection) ? .done : .park
    }

    /// Tells a client something that it did not ask.
    @discardableResult
    mutating func push(
        _ opcode: Opcode, stream: UInt32, status: StatusCode = .ok, _ message: some WireMessage,
        to index: Int32
    ) -> Bool {
        let flags = FrameHeader.pushFlag | (opcode == .error ? FrameHeader.errorFlag : 0)
        let frame = FrameHeader(opcode: opcode, flags: flags, stream: stream, status: status)
            .frame(body: message.encoded)
        return writeOrBlock(frame, to: index)
    }

    private mutating func write(_ frame: [UInt8], to index: Int32) -> Bool {
        let connection = connections[index]
        guard let room = connection.pointee.send.reserve(frame.count, pool: &sendPool) else {
            return false
        }
        frame.withUnsafeBytes { bytes in
            UnsafeMutableRawBufferPointer(start: room, count: frame.count).copyMemory(from: bytes)
        }
        connection.pointee.send.commit(frame.count)
        listForSending(index)
        return true
    }

    // MARK: the end of a connection

    /// The peer broke the protocol: it is told, and the connection closes.
    mutating func protocolError(_ index: Int32, _ error: FrameError) {
        counters.badFrames &+= 1
        events.append(.badFrame(peer: connections[index].pointee.peer, what: "\(error)"))
        let status = error.status
        let refusal = Refusal(
            errorClass: status.errorClass.rawValue,
            message: "not a frame of this protocol: \(error)")
        push(.error, stream: 0, status: status, refusal, to: index)
        drain(index)
    }

    /// Tells the peer why its connection closes, and closes it.
    mutating func turnAway(_ index: Int32, _ status: StatusCode, _ message: String) {
        counters.connectionsTurnedAway &+= 1
        let refusal = Refusal(
            errorClass: status.errorClass.rawValue,
            retryAfterMilliseconds: status.errorClass == .retry ? 1000 : 0, message: message)
        push(.error, stream: 0, status: status, refusal, to: index)
        drain(index)
    }

    /// Lets out what is buffered, then closes; `housekeep` closes it when the peer takes nothing.
    mutating func drain(_ index: Int32) {
        let connection = connections[index]
        guard connection.pointee.state != .closed else { return }
        connection.pointee.state = .draining
        connection.pointee.drainingSince = now.monotonic
        dropSubscriptions(of: index)
        if !peers.isAlone { dropRouted(of: index) }
        if connection.pointee.send.isEmpty { close(index, reason: .drained) }
    }

    mutating func close(_ index: Int32, reason: CloseReason) {
        let connection = connections[index]
        guard connection.pointee.state != .closed else { return }
        connection.pointee.state = .closed
        if connection.pointee.relay == nil { counters.connectionsClosed += 1 }
        dropSubscriptions(of: index)
        if !peers.isAlone {
            dropRouted(of: index)
            closeUplinks(of: index)
        }
        closeList.append(index)
    }
}
