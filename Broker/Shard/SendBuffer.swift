internal import BrokerBasics

/// What waits to be sent on one connection: one buffer is filled while the other is in flight.
///
/// Owned by its connection; its memory comes from the shard's `SendPool` and goes back when sent.
package struct SendBuffer {
    private var active: UnsafeMutableRawPointer?
    private var activeCapacity = 0
    package private(set) var activeCount = 0
    private var flight: UnsafeMutableRawPointer?
    private var flightCapacity = 0
    private var flightCount = 0
    private var flightSent = 0

    package init() {}

    package var isInFlight: Bool { flight != nil }
    package var isEmpty: Bool { flight == nil && activeCount == 0 }
    package var pendingBytes: Int { activeCount + flightCount - flightSent }
    package var flightBytesLeft: Int { flightCount - flightSent }

    /// Bytes that fit behind what waits.
    @inline(__always)
    package func free(pool: borrowing SendPool) -> Int {
        (active == nil ? pool.bufferBytes : activeCapacity) - activeCount
    }

    /// Room for `bytes`, or `nil` when it must wait. A frame larger than the buffer gets one of its
    /// own size, alone.
    ///
    /// - Parameter isDelivery: records for a subscription, which leave some memory to answers.
    @inline(__always)
    package mutating func reserve(
        _ bytes: Int, pool: inout SendPool, isDelivery: Bool = false
    ) -> UnsafeMutableRawPointer? {
        if let active, activeCount &+ bytes <= activeCapacity { return active + activeCount }
        return reserveSlow(bytes, pool: &pool, isDelivery: isDelivery)
    }

    @inline(never)
    private mutating func reserveSlow(
        _ bytes: Int, pool: inout SendPool, isDelivery: Bool
    ) -> UnsafeMutableRawPointer? {
        guard activeCount == 0 else { return nil }
        if let active {
            pool.give(active, capacity: activeCapacity)
            self.active = nil
        }
        guard let (memory, capacity) = pool.take(bytes, isDelivery: isDelivery) else { return nil }
        active = memory
        activeCapacity = capacity
        return memory
    }

    @inline(__always) package mutating func commit(_ bytes: Int) { activeCount &+= bytes }

    /// Moves what waits into flight; `nil` when nothing waits or something is in flight.
    package mutating func startSend() -> (UnsafeRawPointer, Int)? {
        guard flight == nil, activeCount > 0, let memory = active else { return nil }
        flight = memory
        flightCapacity = activeCapacity
        flightCount = activeCount
        flightSent = 0
        active = nil
        activeCount = 0
        return (UnsafeRawPointer(memory), flightCount)
    }

    /// Takes in how many bytes went out.
    ///
    /// - Returns: the rest to send, if the send was short.
    package mutating func sent(_ count: Int, pool: inout SendPool) -> (UnsafeRawPointer, Int)? {
        guard let memory = flight else { return nil }
        flightSent += count
        if flightSent < flightCount {
            return (UnsafeRawPointer(memory) + flightSent, flightCount - flightSent)
        }
        pool.give(memory, capacity: flightCapacity)
        flight = nil
        flightCount = 0
        flightSent = 0
        return nil
    }

    /// Gives all memory back; nothing may be in flight.
    package mutating func release(pool: inout SendPool) {
        if let active { pool.give(active, capacity: activeCapacity) }
        if let flight { pool.give(flight, capacity: flightCapacity) }
        self = SendBuffer()
    }

    /// The same when the pool goes, too.
    package mutating func free() {
        active?.deallocate()
        flight?.deallocate()
        self = SendBuffer()
    }
}

/// Lends send buffers of one size, and larger ones for single frames, up to a budget. A quarter of it is for
/// answers: readers that take nothing, however many they are, leave that to everybody's confirms.
package struct SendPool: ~Copyable {
    package let bufferBytes: Int
    private let budgetBytes: Int
    /// Lent, or kept to be lent again.
    package private(set) var reservedBytes = 0
    private var lentBytes = 0
    private var free: UnsafeMutableRawPointer?

    package init(bufferBytes: Int, budgetBytes: Int) {
        self.bufferBytes = bufferBytes
        self.budgetBytes = budgetBytes
    }
    deinit {
        var kept = free
        while let memory = kept {
            kept = memory.load(as: UnsafeMutableRawPointer?.self)
            memory.deallocate()
        }
    }

    mutating func take(_ bytes: Int, isDelivery: Bool) -> (UnsafeMutableRawPointer, Int)? {
        let capacity = max(bytes, bufferBytes)
        // A pool so small that no delivery fits lends one at a time.
        if isDelivery, lentBytes + capacity > budgetBytes / 4 * 3, lentBytes > 0 { return nil }
        if bytes <= bufferBytes, let memory = free {
            free = memory.load(as: UnsafeMutableRawPointer?.self)
            lentBytes += bufferBytes
            return (memory, bufferBytes)
        }
        // Kept buffers count: those that nobody uses make room for a frame that none of them holds.
        while reservedBytes + capacity > budgetBytes, let memory = free {
            free = memory.load(as: UnsafeMutableRawPointer?.self)
            memory.deallocate()
            reservedBytes -= bufferBytes
        }
        guard reservedBytes + capacity <= budgetBytes else { return nil }
        reservedBytes += capacity
        lentBytes += capacity
        return (.allocate(byteCount: capacity, alignment: 64), capacity)
    }

    mutating func give(_ memory: UnsafeMutableRawPointer, capacity: Int) {
        lentBytes -= capacity
        if capacity == bufferBytes {
            memory.storeBytes(of: free, as: UnsafeMutableRawPointer?.self)
            free = memory
        } else {
            memory.deallocate()
            reservedBytes -= capacity
        }
    }
}
