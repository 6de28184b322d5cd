package import BrokerBasics
internal import WireProtocol

/// Where a link's other end is.
package struct Relay {
    package let shard: UInt16
    /// The front's number of it.
    package let link: Int32
    /// The front itself speaks.
    package let isOwn: Bool
}

/// One client's connection as the machine sees it: protocol state, what came and is not worked on,
/// what waits to be sent. Lives at a fixed address in the shard's pool.
package struct Connection {
    package enum State: UInt8 {
        /// Connected; only HELLO and PING are answered.
        case fresh
        case ready
        /// What is buffered goes out, then it closes.
        case draining
        /// Closing: input is ignored.
        case closed
    }

    package var state = State.fresh
    /// Tells this connection from an earlier one in the same slot.
    package let generation: UInt32
    package let openedAt: MonotonicTime
    /// When it began to drain, or last had something taken since.
    package var drainingSince = MonotonicTime.never
    package var peer: String
    package var clientName = ""
    /// Of frames to it, and from it.
    package var frameBytesMax: UInt32
    package var inputFrameBytesMax: UInt32

    // Input that is not worked on yet: the front of a frame, or all that came while parked.
    private var inputMemory: UnsafeMutableRawPointer?
    /// What is worked on already, at the front of its memory.
    private var inputStart = 0
    package var input: UnsafeMutableRawPointer? { inputMemory.map { $0 + inputStart } }
    package var inputCapacity = 0
    package var inputCount = 0
    /// When the oldest byte of `input` came.
    package var inputSince = MonotonicTime.zero
    /// When the frame at the front of `input` began to come, or what was in front of it was done.
    package var frameSince = MonotonicTime.zero
    /// The next frame waits for room in journal, tail or send buffer.
    package var isParked = false
    package var isReceivePaused = false
    package var needsResume = false
    package var needsPause = false

    package var send = SendBuffer()
    package var isSendListed = false
    /// When the peer last was seen to have taken what it was sent, and what `sentBytes` becomes when it has
    /// taken enough of what is on its way now.
    package var takenAt = MonotonicTime.zero
    package var takenGoal: UInt64 = 0
    /// Frames that wait for room in the send buffer, in the shard's `blocked`.
    package var blockedCount = 0
    /// The last pass over `blocked` that found no room here.
    package var blockedPass: UInt64 = 0
    /// A reader of this connection waits for room in the send buffer.
    package var isDispatchBlocked = false
    package var isDispatchListed = false
    /// A reader of this connection waits for memory of the shard's send buffers; in `starved`.
    package var isStarved = false

    /// Answers that may leave at the end of the cycle.
    package var immediate = ConfirmQueue()
    package var isImmediateListed = false
    /// Answers that wait for the journal to be on stable storage.
    package var waiting = ConfirmQueue()
    /// Answers that wait for the journal to be written.
    package var waitingWritten = ConfirmQueue()
    package var isWaitingListed = false

    /// It is the owner's end of a link, not a socket.
    package var relay: Relay?
    /// Bytes of the front's that are in flight until they are worked on.
    package var owesTaken: Int32 = 0
    /// The front's ends of this client's links, and its subscriptions that other shards serve.
    package var firstUplink: Int32 = -1
    package var firstRouted: Int32 = -1

    package var firstSubscription: Int32 = -1
    package var subscriptionCount = 0
    package var isCloseEmitted = false

    package var receivedBytes: UInt64 = 0
    package var sentBytes: UInt64 = 0

    package init(
        generation: UInt32, openedAt: MonotonicTime, peer: String, frameBytesMax: UInt32
    ) {
        self.generation = generation
        self.openedAt = openedAt
        self.peer = peer
        self.frameBytesMax = frameBytesMax
        inputFrameBytesMax = frameBytesMax
    }

    /// What `input` has when `count` more bytes are kept.
    package func capacity(with count: Int) -> Int {
        let needed = inputCount + count
        guard needed > inputCapacity else { return inputCapacity }
        var capacity = max(Self.inputCapacityMin, inputCapacity)
        while capacity < needed { capacity *= 2 }
        return capacity
    }
    private static let inputCapacityMin = 4096

    /// Keeps bytes for later.
    package mutating func keep(_ bytes: UnsafeRawPointer, count: Int, now: MonotonicTime) {
        guard count > 0 else { return }
        if inputCount == 0 {
            inputSince = now
            frameSince = now
        }
        let needed = inputCount + count
        if needed > inputCapacity {
            let capacity = capacity(with: count)
            let larger = UnsafeMutableRawPointer.allocate(byteCount: capacity, alignment: 64)
            if let input { larger.copyMemory(from: input, byteCount: inputCount) }
            inputMemory?.deallocate()
            inputMemory = larger
            inputStart = 0
            inputCapacity = capacity
        } else if inputStart + needed > inputCapacity, let inputMemory {
            inputMemory.copyMemory(from: inputMemory + inputStart, byteCount: inputCount)
            inputStart = 0
        }
        if let input { (input + inputCount).copyMemory(from: bytes, byteCount: count) }
        inputCount = needed
    }

    /// Drops the first `count` bytes of the kept input; a large buffer is not kept empty.
    ///
    /// The rest stays where it is: of megabytes that wait for room a few frames go at a time.
    package mutating func consumed(_ count: Int) {
        guard inputMemory != nil else { return }
        inputCount -= count
        inputStart += count
        guard inputCount == 0 else { return }
        inputStart = 0
        if inputCapacity > 64 * 1024 { releaseInput() }
    }

    /// Gives up the memory of what was kept.
    package mutating func releaseInput() {
        inputMemory?.deallocate()
        inputMemory = nil
        inputStart = 0
        inputCapacity = 0
        inputCount = 0
    }

    package mutating func release() {
        releaseInput()
        immediate.release()
        waiting.release()
        waitingWritten.release()
    }

    /// Takes out an answer that waits for the journal.
    package mutating func takeWaiting() -> PendingAnswer? {
        if let answer = waiting.first {
            waiting.removeFirst()
            return answer
        }
        guard let answer = waitingWritten.first else { return nil }
        waitingWritten.removeFirst()
        return answer
    }
}
