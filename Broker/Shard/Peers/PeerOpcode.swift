internal import BrokerBasics
internal import WireProtocol

/// What shards say to each other in frames, beside what a client could say. Their numbers are reserved in
/// the protocol (SPEC.md, section 3): on a socket they are no requests.
enum PeerOpcode: UInt16 {
    /// A front to shard 0: a client joins a group.
    case groupJoin = 0x0701
    /// A front to an owner: which partitions a subscription reads there.
    case groupAttach = 0x0702
    /// Shard 0 to the others: a change of what all know.
    case changeApply = 0x0703
    case groupBegin = 0x0704
    /// Shard 0 to the others: which of these producers are idle?
    case idleProducers = 0x0705
    // A partition goes to another shard (`PartitionMove`). Shard 0 to all:
    case moveFence = 0x0706
    /// Shard 0 to the owner: make ready to give it up, or give it up.
    case moveHandOver = 0x0707
    /// Shard 0 to the shard that gets it.
    case moveAdopt = 0x0708
    /// Shard 0 to all: it stays where it is.
    case moveEnd = 0x0709
    /// The owner that gave it up to a front: where a subscription stood.
    case readerMoved = 0x070A

    /// True for what is between a front and those who serve its subscriptions.
    var isOfSubscriptions: Bool {
        self == .groupJoin || self == .groupAttach || self == .readerMoved
    }

    func frame(correlation: UInt64 = 0, stream: UInt32 = 0, body: [UInt8]) -> [UInt8] {
        var header = FrameHeader(opcode: .ping, correlation: correlation, stream: stream)
        header.opcode = rawValue
        return header.frame(body: body)
    }
    /// A header for a request that no client made.
    var header: FrameHeader {
        var header = FrameHeader(opcode: .ping)
        header.opcode = rawValue
        return header
    }
}

extension ShardMachine {
    /// What came over a link.
    mutating func handle(_ request: Request, _ opcode: PeerOpcode) -> Outcome {
        switch opcode {
        case .groupJoin: return groupJoin(request)
        case .groupAttach: return groupAttach(request)
        case .changeApply, .groupBegin:
            if let failure = counters.storageFailure {
                if opcode == .changeApply { placeUnjournalled(request) }
                return refuse(
                    request, .storageFailed, "a shard stopped confirming: \(failure)")
            }
            return opcode == .changeApply ? changeApply(request) : groupBegin(request)
        case .idleProducers: return idleProducers(request)
        case .moveFence: return moveFence(request)
        case .moveHandOver: return moveHandOver(request)
        case .moveAdopt: return moveAdopt(request)
        case .moveEnd: return moveEnd(request)
        case .readerMoved: return refuse(request, .unknownOpcode, "not a request")
        }
    }
}
