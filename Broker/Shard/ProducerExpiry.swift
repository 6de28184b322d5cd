internal import BrokerBasics
internal import BrokerCore
internal import WireProtocol

// How it works. A hand goes over the producers in the order of their ids, some at each turn of the
// housekeeping, and begins again a minute after it began: a hundred thousand of them are no long cycle.
// Who was silent for too long goes. With several shards shard 0 asks the others first, since a producer
// may publish there only; meanwhile the hand rests.

/// Where the hand is that goes over the producers.
struct ProducerExpiry {
    var next = UInt64.max
    var roundBegan = MonotonicTime.zero
    /// The other shards are being asked about some of them.
    var isAsking = false

    static let roundNanoseconds: UInt64 = .seconds(60)
    static let visitsPerTurn: UInt64 = 128
    /// Of all producers visited in a turn; the last of them is looked at to its end.
    static let entriesPerTurn = 4_096
}

extension ShardMachine {
    /// By the clock of ages: a step of the wall clock by a week forgets nobody at once.
    mutating func expireProducers() {
        let window = UInt64.seconds(UInt64(limits.producerExpirySeconds))
        let time = retention.clock.time.nanoseconds
        guard time > window, stage == .ready, !hasFailed, peers.own == 0, !expiry.isAsking
        else { return }
        if expiry.next >= state.nextProducer {
            guard now.monotonic.since(expiry.roundBegan) > ProducerExpiry.roundNanoseconds
            else { return }
            expiry.roundBegan = now.monotonic
            expiry.next = 1
        }
        var end = expiry.next
        let last = min(expiry.next + ProducerExpiry.visitsPerTurn, state.nextProducer)
        var idle: [UInt64] = []
        var looked = 0
        while end < last, looked < ProducerExpiry.entriesPerTurn {
            if state.producers.isIdle(end, since: time - window, looked: &looked) {
                idle.append(end)
            }
            end += 1
        }
        if !idle.isEmpty, !peers.isAlone {
            guard case .done = askForIdleProducers(idle, since: time - window) else { return }
            expiry.isAsking = true
        } else {
            for id in idle { guard change(.producerExpired(id)) else { return } }
        }
        expiry.next = end
    }

    // MARK: with several shards

    /// Asks the others which of the producers that are idle here are idle there too.
    private mutating func askForIdleProducers(_ candidates: [UInt64], since time: UInt64) -> Outcome
    {
        var builder = ByteBuilder()
        builder.put(time)
        builder.put(UInt32(candidates.count))
        for id in candidates { builder.put(id) }
        return gather(
            Request(
                connection: -1, header: PeerOpcode.idleProducers.header,
                body: UnsafeRawBufferPointer(start: nil, count: 0)),
            body: builder.bytes,
            from: (1..<UInt16(peers.count)).map { $0 }, .idleProducers(candidates))
    }

    mutating func idleProducers(_ request: Request) -> Outcome {
        var parser = ByteParser(request.body)
        guard let time = try? parser.u64(), let count = try? parser.count(itemBytesMin: 8) else {
            return refuse(request, .badRequest, "a list that can't be read")
        }
        var builder = ByteBuilder()
        // Who is left out is not idle, and asked about again in the next round.
        var looked = 0
        for _ in 0..<count where looked < ProducerExpiry.entriesPerTurn {
            guard let id = try? parser.u64() else { break }
            if state.producers.isIdle(id, since: time, looked: &looked) { builder.put(id) }
        }
        return reply(request, RawMessage(bytes: builder.bytes))
    }

    /// All have answered: who is idle everywhere goes. Some may have come back to this shard meanwhile, so it
    /// looks again.
    mutating func expire(_ candidates: [UInt64], _ gathering: Gathering) {
        expiry.isAsking = false
        guard gathering.refusal == nil, stage == .ready, !hasFailed else { return }
        var idle = Set(candidates)
        for part in gathering.parts {
            var theirs: Set<UInt64> = []
            part.body.withUnsafeBytes { bytes in
                var parser = ByteParser(bytes)
                while let id = try? parser.u64() { theirs.insert(id) }
            }
            idle.formIntersection(theirs)
        }
        let window = UInt64.seconds(UInt64(limits.producerExpirySeconds))
        let time = retention.clock.time.nanoseconds
        // The wall clock may have been set back meanwhile.
        guard time > window else { return }
        let since = time - window
        var looked = 0
        for id in idle.sorted()
        where state.producers.isIdle(id, since: since, looked: &looked) {
            guard change(.producerExpired(id)) else { return }
            _ = broadcast(
                Request(
                    connection: -1, header: PeerOpcode.changeApply.header,
                    body: UnsafeRawBufferPointer(start: nil, count: 0)),
                .producerExpired(id), .done([]))
        }
    }
}
