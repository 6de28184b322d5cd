package import BrokerBasics
package import BrokerCore
internal import LogStorage
internal import WireProtocol

// How it works. A client speaks to one shard, its **front**. What concerns a partition that lives on
// another shard, its **owner**, the front says to the owner as a client would: in the frames of the wire
// protocol, over a **link**. To the owner a link is a connection like any other (`Connection.relay`), with
// its bounded send buffer, its parking and its order; only that its bytes go through mailboxes. A front
// has one link per client and owner, made at the first need, and one per owner for itself.
//
//      client ---- front's Connection ---- Uplink ==mailboxes== owner's Connection (a relay)
//
// On a link one buffer is in flight in each direction. The receiver says `taken` when it has worked on
// all of it; an owner that parks a request does not, so that the front stops reading its client. Nothing
// is copied between the shards but into the sender's buffer and out of it.

/// The front's end of a link.
package struct Uplink {
    package let shard: UInt16
    /// The client's connection; -1: the front's own link, -2: the client is gone.
    package var connection: Int32
    package var nextInConnection: Int32 = -1
    package var send = SendBuffer()
    package var isListed = false
    /// What came and is not passed on yet.
    package var incoming: UnsafeRawPointer?
    package var incomingCount = 0
    package var incomingAt = 0
    /// The client has no room for what came.
    package var isBlocked = false
    /// Bytes of requests: put in, and worked on by the owner.
    package var enqueuedBytes: UInt64 = 0
    /// Frames of the front's own making that found no room.
    var later: [[UInt8]] = []
    package var takenBytes: UInt64 = 0
    /// What was put in when a fence came.
    var drainsTo: UInt64 = 0

    package init(shard: UInt16, connection: Int32) {
        self.shard = shard
        self.connection = connection
    }

    package static let own: Int32 = -1
    package static let gone: Int32 = -2
}

/// What a shard knows of the others, and has to say to them.
package struct Peers: ~Copyable {
    package let own: UInt16
    /// How many shards the broker has, this one included.
    package let count: Int
    package var uplinks: StablePool<Uplink>
    package var routed: StablePool<RoutedSubscription>
    /// By shard and its number of the link: the connection here, -1: none.
    var relays: [[Int32]]
    /// By shard: this one's own link to it, -1 before it is needed.
    var ownLinks: [Int32]
    /// By shard and lane: what waits for room in the mailbox.
    private var outgoing: [Fifo<PeerMessage>]
    private var room: [Int]
    /// Uplinks with something to send, and those whose client had no room.
    var sendList = Fifo<Int32>(capacity: 16)
    var blocked = Fifo<Int32>(capacity: 16)
    var wakesBlocked = false
    /// Frames found no memory for a buffer.
    var waitsForRoom = false
    /// So did grants.
    var hasRefusedGrants = false
    /// Routed subscriptions with deliveries that found none, on connections with nothing in flight.
    var starved = Fifo<Int32>(capacity: 16)
    /// Connections that can't go on, with their generations.
    var toClose: [(Int32, UInt32)] = []
    var gatherings: [UInt64: Gathering] = [:]
    var nextGathering: UInt64 = 1
    var broadcasts = Fifo<Broadcast>(capacity: 16)
    /// By group and partition: the latest generation that attached a reader here.
    var attachedGenerations: [UInt64: UInt64] = [:]
    // A partition that moves: what shard 0 has of it, fronts and owners.
    var move: PartitionMove?
    var fence: PartitionFence?
    var handOver: HandOver?
    var handOverSyncs: [Checkpointer.Sync?] = []
    var handOverRequests: [StorageRequest] = []
    var syncsNames = false
    /// How often a placement changed.
    var placementChanges: UInt64 = 0
    // The start:
    var turn: StartTurn
    var othersCheckpointed = 0
    var mayCheckpoint = false
    var firstCheckpointIsDone = false

    package init(own: UInt16, count: Int, turn: StartTurn, linksMax: Int) {
        self.own = own
        self.count = count
        self.turn = turn
        uplinks = StablePool(capacityMax: count == 1 ? 1 : linksMax)
        routed = StablePool(capacityMax: count == 1 ? 1 : 1 << 20)
        relays = Array(repeating: [], count: count)
        ownLinks = Array(repeating: -1, count: count)
        let lanes = count * PeerLane.allCases.count
        outgoing = (0..<lanes).map { _ in Fifo(capacity: 16) }
        room = Array(repeating: 0, count: lanes)
    }

    /// Publishes to one partition are held back here.
    package var isFenced: Bool { fence != nil }
    package var isMoving: Bool { move != nil || fence?.request != nil || handOver != nil }

    /// True when there is no other shard: then nothing in here is ever used.
    @inline(__always) package var isAlone: Bool { count == 1 }

    private func at(_ shard: UInt16, _ lane: PeerLane) -> Int {
        Int(shard) * PeerLane.allCases.count + lane.rawValue
    }

    mutating func post(_ message: PeerMessage, to shard: UInt16, _ lane: PeerLane) {
        outgoing[at(shard, lane)].append(message)
    }

    /// What the mailbox takes now.
    mutating func setRoom(_ shard: UInt16, _ lane: PeerLane, _ messages: Int) {
        room[at(shard, lane)] = messages
    }

    mutating func next(_ shard: UInt16, _ lane: PeerLane) -> PeerMessage? {
        let place = at(shard, lane)
        guard let message = outgoing[place].first, shard == own || room[place] > 0 else {
            return nil
        }
        outgoing[place].removeFirst()
        room[place] -= 1
        return message
    }

    /// True when something could be posted without waiting.
    var hasOutgoing: Bool {
        guard !isAlone else { return false }
        if !sendList.isEmpty || (wakesBlocked && !blocked.isEmpty) { return true }
        if fence?.request != nil || move.map({ $0.gathering == nil }) ?? false { return true }
        for shard in 0..<UInt16(count) {
            for lane in PeerLane.allCases where !outgoing[at(shard, lane)].isEmpty {
                if shard == own || room[at(shard, lane)] > 0 { return true }
            }
        }
        return false
    }

    /// True when no request to another shard waits for its answer.
    var isQuiet: Bool {
        guard !isAlone else { return true }
        guard gatherings.isEmpty, broadcasts.isEmpty else { return false }
        return uplinks.indices.allSatisfy {
            uplinks[$0].pointee.send.isEmpty && uplinks[$0].pointee.later.isEmpty
        }
    }
}
