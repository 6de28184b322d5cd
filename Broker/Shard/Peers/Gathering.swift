internal import BrokerBasics
internal import BrokerCore
internal import LogStorage
internal import WireProtocol

// How it works. Some requests concern several shards: a description has a part from each, and a change of
// what all know is made by shard 0 and taken over by the others. Who gathers sends each of them the
// request over its own link, with a number of its own, and answers when all have. One refusal is the
// whole answer's: a queue is there when every shard knows it.

/// A request whose answer has parts from several shards.
struct Gathering {
    var connection: Int32
    var generation: UInt32
    /// Of the request, for the reply.
    var header: FrameHeader
    /// What is done with the parts.
    var purpose: Purpose
    var awaited: Int
    /// By the order in which they came: the shard, and the reply's body.
    var parts: [(shard: UInt16, body: [UInt8])] = []
    var refusal: (status: StatusCode, body: [UInt8])?

    enum Purpose {
        /// The one part is the answer.
        case pass
        case queue
        case queues(limit: Int)
        case group
        case groups(limit: Int)
        case server
        case shards
        case storage(bytesMax: Int)
        case storageChecks
        /// A change that all took over: this shard's own part is added.
        case changed(queue: UInt32)
        /// A change whose answer is known.
        case done([UInt8])
        /// A group came into being; its member goes on.
        case groupBegun(subscribe: [UInt8])
        case idleProducers([UInt64])
        /// A step of a partition's move.
        case move
    }
}

/// A change on its way from shard 0 to the others: it leaves when it is durable here.
struct Broadcast {
    var group: UInt64
    var gathering: UInt64
    var frame: [UInt8]
    /// The next shard to tell.
    var next: UInt16
}

extension ShardMachine {
    /// Sends a request's frame to shards, this one perhaps among them.
    ///
    /// - Returns: `.park` when a link has no room for it; nothing was sent then.
    mutating func gather(
        _ request: Request, body: [UInt8], from shards: [UInt16], _ purpose: Gathering.Purpose
    ) -> Outcome {
        let count = FrameHeader.byteCount + body.count
        var links: [Int32] = []
        for shard in shards {
            guard let link = ownLink(to: shard), hasRoom(count, on: link) else { return .park }
            links.append(link)
        }
        let number = beginGathering(request, awaited: shards.count, purpose)
        var header = FrameHeader(
            opcode: .ping, correlation: number, stream: request.header.stream)
        header.opcode = request.header.opcode
        let frame = header.frame(body: body)
        for link in links {
            let isPut = frame.withUnsafeBytes { bytes in
                bytes.baseAddress.map { put($0, bytes.count, on: link) } ?? false
            }
            guard isPut else {
                // Memory for buffers ran out in between: those who were asked answer to nobody.
                peers.gatherings.removeValue(forKey: number)
                return .park
            }
        }
        return .done
    }

    func hasRoom(_ count: Int, on link: Int32) -> Bool {
        let send = peers.uplinks[link].pointee.send
        return send.free(pool: sendPool) >= count || send.activeCount == 0
    }

    mutating func beginGathering(
        _ request: Request, awaited: Int, _ purpose: Gathering.Purpose
    ) -> UInt64 {
        let number = peers.nextGathering
        peers.nextGathering += 1
        peers.gatherings[number] = Gathering(
            connection: request.connection,
            generation: connections.contains(request.connection)
                ? connections[request.connection].pointee.generation : 0,
            header: request.header, purpose: purpose, awaited: awaited)
        return number
    }

    /// A part came.
    mutating func gathered(
        _ header: FrameHeader, _ body: UnsafeRawBufferPointer, from shard: UInt16
    ) {
        guard header.flags & FrameHeader.pushFlag == 0,
            peers.gatherings[header.correlation] != nil
        else { return }
        if header.flags & FrameHeader.errorFlag != 0 {
            let status = StatusCode(rawValue: header.status) ?? .busy
            peers.gatherings[header.correlation]?.refusal = (status, [UInt8](body))
        } else {
            peers.gatherings[header.correlation]?.parts.append((shard, [UInt8](body)))
        }
        peers.gatherings[header.correlation]?.awaited -= 1
        finishGathering(header.correlation)
    }

    mutating func finishGathering(_ number: UInt64) {
        guard let gathering = peers.gatherings[number], gathering.awaited == 0 else { return }
        peers.gatherings.removeValue(forKey: number)
        if case .groupBegun(let subscribe) = gathering.purpose {
            return groupBegun(gathering, subscribe)
        }
        if case .idleProducers(let candidates) = gathering.purpose {
            return expire(candidates, gathering)
        }
        if case .move = gathering.purpose { return moveAnswered(number, gathering) }
        if let (status, body) = gathering.refusal {
            return answer(
                gathering,
                FrameHeader(
                    opcode: .error, flags: FrameHeader.replyFlag | FrameHeader.errorFlag,
                    correlation: gathering.header.correlation, stream: gathering.header.stream,
                    status: status
                ).frame(body: body))
        }
        let body: [UInt8]
        switch gathering.purpose {
        case .pass: body = gathering.parts.first?.body ?? []
        case .done(let answer): body = answer
        case .queue: body = mergedQueue(gathering, own: nil)?.encoded ?? []
        case .changed(let id):
            guard let queue = state.queues[id] else {
                return refuseLate(
                    gathering.connection, correlation: gathering.header.correlation,
                    stream: gathering.header.stream, .queueNotFound,
                    "the queue was deleted meanwhile")
            }
            let own = info(of: queue, withPartitions: true)
            body = (mergedQueue(gathering, own: own) ?? own).encoded
        case .queues(let limit): body = mergedQueues(gathering, limit)
        case .group: body = mergedGroup(gathering)
        case .groups(let limit): body = mergedGroups(gathering, limit)
        case .server: body = mergedServer(gathering)
        case .shards: body = mergedShards(gathering)
        case .storage(let bytesMax):
            let pages = decoded(gathering, StorageReply.self)
            body = StoragePage.merged(pages, bytesMax: bytesMax).encoded
        case .storageChecks: body = mergedChecks(gathering)
        case .groupBegun, .idleProducers, .move: return
        }
        let header = FrameHeader(
            opcode: Opcode(rawValue: gathering.header.opcode) ?? .error,
            flags: FrameHeader.replyFlag, correlation: gathering.header.correlation,
            stream: gathering.header.stream)
        answer(gathering, header.frame(body: body))
    }

    private mutating func answer(_ gathering: Gathering, _ frame: [UInt8]) {
        let reply = DeferredReply(
            group: 0, connection: gathering.connection, generation: gathering.generation,
            frame: frame)
        guard isOpen(reply) else { return }
        let frameBytesMax = connections[gathering.connection].pointee.frameBytesMax
        guard frame.count <= Int(frameBytesMax) else {
            return refuseLate(
                gathering.connection, correlation: gathering.header.correlation,
                stream: gathering.header.stream, .frameTooLarge,
                "the reply has \(frame.count) bytes; ask for less, or agree on larger frames")
        }
        deliver(deferredReply: reply)
    }

    // MARK: parts become one

    private func decoded<Message: WireMessage>(
        _ gathering: Gathering, _ type: Message.Type
    ) -> [Message] {
        gathering.parts.compactMap { try? Message(body: $0.body) }
    }

    private func mergedQueue(_ gathering: Gathering, own: QueueInfo?) -> QueueInfo? {
        var parts = decoded(gathering, QueueInfo.self)
        if let own { parts.append(own) }
        guard var whole = parts.first else { return nil }
        // A partition that is moving right now may be with both: the later word counts.
        var known: [UInt32: PartitionInfo] = [:]
        for part in parts.flatMap(\.partitions)
        where part.endOffset >= known[part.id]?.endOffset ?? 0 {
            known[part.id] = part
        }
        whole.partitions = known.values.sorted { $0.index < $1.index }
        whole.records = whole.partitions.reduce(0) { $0 &+ $1.records }
        whole.bytes = whole.partitions.reduce(0) { $0 &+ $1.bytes }
        return whole
    }

    private func mergedQueues(_ gathering: Gathering, _ limit: Int) -> [UInt8] {
        let pages = decoded(gathering, QueueListReply.self)
        var known: [String: (info: QueueInfo, parts: Int)] = [:]
        for info in pages.flatMap(\.queues) {
            if var before = known[info.name] {
                before.info.records &+= info.records
                before.info.bytes &+= info.bytes
                before.parts += 1
                known[info.name] = before
            } else {
                known[info.name] = (info, 1)
            }
        }
        // A page ends where the shortest does; behind it some parts are missing.
        let ends = pages.filter(\.more).compactMap { $0.queues.last?.name }
        var queues = known.values.filter { $0.parts == pages.count }.map(\.info)
            .sorted { $0.name < $1.name }
        if let end = ends.min() { queues.removeAll { $0.name > end } }
        return QueueListReply(
            queues: Array(queues.prefix(limit)),
            more: pages.contains(where: \.more) || queues.count > limit
        ).encoded
    }

    private func mergedGroup(_ gathering: Gathering) -> [UInt8] {
        let parts = gathering.parts.sorted { $0.shard < $1.shard }
            .compactMap { try? GroupInfo(body: $0.body) }
        guard var whole = parts.first(where: \.isCoordinated) ?? parts.first else { return [] }
        let cursors = parts.flatMap { part in
            part.cursors.enumerated().map { place, cursor in
                (cursor, place < part.skippedRecords.count ? part.skippedRecords[place] : 0)
            }
        }.sorted { $0.0.index < $1.0.index }
        whole.cursors = cursors.map(\.0)
        whole.skippedRecords = cursors.contains { $0.1 > 0 } ? cursors.map(\.1) : []
        whole.lagRecords = parts.reduce(0) { $0 &+ $1.lagRecords }
        return whole.encoded
    }

    private func mergedGroups(_ gathering: Gathering, _ limit: Int) -> [UInt8] {
        let pages = decoded(gathering, GroupListReply.self)
        var known: [String: (info: GroupInfo, parts: Int)] = [:]
        for info in pages.flatMap(\.groups) {
            let name = "\(info.queue)/\(info.name)"
            if var before = known[name] {
                before.info.lagRecords &+= info.lagRecords
                if info.isCoordinated {
                    before.info.members = info.members
                    before.info.generation = info.generation
                }
                before.parts += 1
                known[name] = before
            } else {
                known[name] = (info, 1)
            }
        }
        let ends = pages.filter(\.more).compactMap { page in
            page.groups.last.map { "\($0.queue)/\($0.name)" }
        }
        var groups = known.filter { $0.value.parts == pages.count }.sorted { $0.key < $1.key }
        if let end = ends.min() { groups.removeAll { $0.key > end } }
        return GroupListReply(
            groups: groups.prefix(limit).map(\.value.info),
            more: pages.contains(where: \.more) || groups.count > limit
        ).encoded
    }

    /// Counts are added up; of everything else the first shard's word counts.
    private func mergedServer(_ gathering: Gathering) -> [UInt8] {
        let parts = gathering.parts.sorted { $0.shard < $1.shard }
            .compactMap { try? ServerDescription(body: $0.body) }
        guard var whole = parts.first else { return [] }
        for place in whole.facts.indices where Self.isCounted(whole.facts[place].name) {
            let name = whole.facts[place].name
            let sum = parts.reduce(UInt64(0)) { sum, part in
                sum &+ (part.facts.first { $0.name == name }.flatMap { UInt64($0.value) } ?? 0)
            }
            whole.facts[place] = Pair(name: name, value: "\(sum)")
        }
        return whole.encoded
    }

    private static func isCounted(_ fact: String) -> Bool {
        [
            "partitions", "connections", "subscriptions", "journal_bytes", "journal_used_bytes",
            "journal_writes", "journal_written_bytes", "tail_used_bytes", "checkpoints",
            "records_published", "records_confirmed", "records_delivered", "bad_frames",
            "refusals",
        ].contains(fact)
    }

    private func mergedShards(_ gathering: Gathering) -> [UInt8] {
        let shards = decoded(gathering, ShardListReply.self).flatMap(\.shards)
        return ShardListReply(shards: shards.sorted { $0.shard < $1.shard }).encoded
    }

    private func mergedChecks(_ gathering: Gathering) -> [UInt8] {
        let checks = decoded(gathering, StorageVerifyReply.self).flatMap(\.checks)
        return StorageVerifyReply(checks: checks.sorted { $0.shard < $1.shard }).encoded
    }
}

extension GroupInfo {
    /// True of the part of the shard that knows the members.
    fileprivate var isCoordinated: Bool { generation > 0 }
}
