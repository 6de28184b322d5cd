package import BrokerBasics
package import LogStorage

/// Why a reader is not delivering, and since when: a stall is never silent.
package enum DispatchState: UInt8, Sendable {
    case delivering
    /// Everything committed is delivered.
    case idle
    /// The consumer has not said that it takes more.
    case waitCredit
    /// The consumer does not read its socket.
    case waitSend
    /// Older records are being read from segments.
    case reading
    /// Other readers use all the buffers for reading from segments.
    case waitRead

    package var name: String {
        switch self {
        case .delivering: "delivering"
        case .idle: "idle"
        case .waitCredit: "wait-credit"
        case .waitSend: "wait-send"
        case .reading: "reading"
        case .waitRead: "wait-read"
        }
    }
}

/// A consumer on one connection: live, from a place, or as a member of a group.
package struct Subscription {
    package let id: UInt32
    package let connection: Int32
    package let queue: UInt32
    /// 0: no group.
    package let group: UInt32
    package var nextInConnection: Int32 = -1
    package var firstReader: Int32 = -1

    // Absolute credit, and what it was used for.
    package var creditRecords: UInt64
    package var creditBytes: UInt64
    package var deliveredRecords: UInt64 = 0
    package var deliveredBytes: UInt64 = 0

    package init(
        id: UInt32, connection: Int32, queue: UInt32, group: UInt32, creditRecords: UInt64,
        creditBytes: UInt64
    ) {
        self.id = id
        self.connection = connection
        self.queue = queue
        self.group = group
        self.creditRecords = creditRecords
        self.creditBytes = creditBytes
    }
}

/// One subscription's place in one partition.
package struct Reader {
    package let subscription: Int32
    package let partition: Int32
    package var nextInPartition: Int32 = -1
    package var nextInSubscription: Int32 = -1

    /// The next offset to deliver.
    package var nextOffset: UInt64
    /// Batches appended before are passed over; 0 when not asked for.
    package var notBefore: UInt64
    /// The epoch of what was delivered last, and the first offset delivered of it.
    package var epoch: UInt32 = 0
    package var epochFrom: UInt64 = 0
    /// Where in the tail it stands; `nil` when that must be looked up, or it reads segments.
    package var chunk: UnsafeMutablePointer<TailChunk>?
    package var byteInChunk = 0
    /// Where it stands in segments, when it reads those.
    package var cold = ColdPlace()
    package var isQueuedForColdRead = false
    /// It goes on in the next cycle.
    package var isReadyForColdRead = false

    package var state = DispatchState.idle
    package var stateSince: MonotonicTime

    package init(
        subscription: Int32, partition: Int32, nextOffset: UInt64, notBefore: UInt64,
        now: MonotonicTime
    ) {
        self.subscription = subscription
        self.partition = partition
        self.nextOffset = nextOffset
        self.notBefore = notBefore
        stateSince = now
    }

    @inline(__always)
    package mutating func enter(_ next: DispatchState, now: MonotonicTime) {
        if state != next {
            state = next
            stateSince = now
        }
    }
}
