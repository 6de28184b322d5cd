internal import BrokerBasics
internal import WireProtocol

// How it works. What a peer may take its time for has a limit each: saying HELLO, finishing a frame, taking
// what it is sent, taking what is left for it before its connection closes. A hand goes over the connections, some at each turn of
// the housekeeping, once a millisecond: ten thousand that are idle cost a cycle next to nothing, and each
// is visited seven times a second. So a limit is kept to within the time of one round.

extension ShardMachine {
    private static var visitsPerTurn: Int { 64 }
    /// Memory for input that nothing came into for this long is given back.
    private static var inputKeptNanoseconds: UInt64 { .seconds(1) }

    /// Closes connections whose peer took longer than a limit says, a few at each turn.
    mutating func visitConnections() {
        for _ in 0..<min(connections.limit, Self.visitsPerTurn) {
            visitedConnection += 1
            if visitedConnection >= connections.limit { visitedConnection = 0 }
            let index = Int32(visitedConnection)
            guard connections.contains(index) else { continue }
            let connection = connections[index]
            switch connection.pointee.state {
            case .fresh:
                guard now.monotonic.since(connection.pointee.openedAt) > limits.helloNanoseconds
                else { break }
                counters.connectionsTimedOut &+= 1
                turnAway(
                    index, .helloExpected,
                    "HELLO did not come within \(limits.helloNanoseconds / .milliseconds(1)) ms")
            case .ready:
                visitInput(index, connection)
                visitSend(index, connection)
            case .draining:
                guard
                    now.monotonic.since(connection.pointee.drainingSince) > limits.drainNanoseconds
                else { break }
                counters.connectionsTimedOut &+= 1
                close(index, reason: .stalled)
            case .closed: break
            }
        }
    }

    /// A peer that takes a byte now and then holds memory that others wait for, and TCP finds nothing wrong
    /// with it.
    private mutating func visitSend(
        _ index: Int32, _ connection: UnsafeMutablePointer<Connection>
    ) {
        guard connection.pointee.state == .ready, connection.pointee.relay == nil,
            connection.pointee.send.isInFlight
        else {
            connection.pointee.takenGoal = 0
            return
        }
        guard connection.pointee.takenGoal > connection.pointee.sentBytes else {
            let goal = min(connection.pointee.send.flightBytesLeft, limits.sendBytesMax)
            connection.pointee.takenAt = now.monotonic
            connection.pointee.takenGoal = connection.pointee.sentBytes &+ UInt64(goal)
            return
        }
        guard now.monotonic.since(connection.pointee.takenAt) > limits.peerNanoseconds else {
            return
        }
        counters.connectionsTimedOut &+= 1
        close(index, reason: .stalled)
    }

    private mutating func visitInput(
        _ index: Int32, _ connection: UnsafeMutablePointer<Connection>
    ) {
        guard connection.pointee.inputCapacity > 0, connection.pointee.relay == nil else { return }
        if connection.pointee.inputCount == 0 {
            guard now.monotonic.since(connection.pointee.inputSince) > Self.inputKeptNanoseconds
            else { return }
            let before = connection.pointee.inputCapacity
            connection.pointee.releaseInput()
            noteInput(connection, before: before)
            return
        }
        // What waits behind a parked frame waits for the broker, not for its peer.
        guard !connection.pointee.isParked,
            now.monotonic.since(connection.pointee.frameSince) > limits.frameNanoseconds
        else { return }
        counters.connectionsTimedOut &+= 1
        turnAway(
            index, .deadlineExceeded,
            "a frame began to come \(limits.frameNanoseconds / .milliseconds(1)) ms ago, and "
                + "\(connection.pointee.inputCount) bytes of it are here")
    }
}
