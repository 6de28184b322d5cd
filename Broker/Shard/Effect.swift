package import LogStorage

/// What the machine wants done. Memory that an effect names stays valid until its completion.
package enum Effect {
    /// Send `count` bytes; one send per connection is in flight at a time.
    case send(connection: Int32, bytes: UnsafeRawPointer, count: Int)
    /// Stop, or go on, receiving: backpressure by not reading the socket.
    case pauseReceive(connection: Int32)
    case resumeReceive(connection: Int32)
    /// Close; `ShardMachine.released` follows when nothing of the connection is in flight.
    case close(connection: Int32)
    case storage(StorageRequest)
    /// Put a message into the mailbox to another shard.
    case post(shard: UInt16, lane: PeerLane, PeerMessage)
}

/// The fixed buffer between machine and loop: the seam allocates nothing. What does not fit stays in
/// the machine and comes in the next cycle.
package struct EffectBuffer: ~Copyable {
    private let effects: UnsafeMutablePointer<Effect>
    package let capacity: Int
    package private(set) var count = 0

    package init(capacity: Int) {
        self.capacity = capacity
        effects = .allocate(capacity: capacity)
    }
    deinit { effects.deallocate() }

    @inline(__always) package var isFull: Bool { count == capacity }
    /// The caller has checked that there is room.
    @inline(__always) package mutating func append(_ effect: Effect) {
        (effects + count).initialize(to: effect)
        count &+= 1
    }
    @inline(__always) package subscript(index: Int) -> Effect { effects[index] }
    @inline(__always) package mutating func removeAll() { count = 0 }
}
