internal import BrokerBasics
internal import CLinux
internal import Glibc
internal import ShardRuntime
internal import WireProtocol

// How it works. One thread owns one ring, all connections and all memory; it spins. A cycle takes
// what has completed (one clock reading), hands each received unit to its lane or to the subscriber,
// then lets every lane that has room and no send in flight make frames and queue one send (a second
// reading, taken before the frames are made). An empty cycle yields, so that a kernel worker that
// needs this core gets it, or sleeps until something comes (`IdleMode`). Closed loop: a frame is made when an earlier one is confirmed (`publish`)
// or delivered (`e2e`), so a stall of the broker also stops the load.

/// What a driver does while nothing comes.
package enum IdleMode: String, CaseIterable, Sendable {
    /// It has a core for itself.
    case spin
    /// It leaves the core to others, who are waited for when it is to run again unless they are of less
    /// account to the scheduler.
    case block
}

/// When a run ends.
package enum RunLength: Equatable, Sendable {
    /// Measure for `duration` after `warmup`.
    case interval(warmup: UInt64, duration: UInt64)
    /// Measure from the first frame until every lane has sent and had confirmed all it has.
    case untilDone
}

/// What a run found.
package struct RunResult {
    package var meters: [Meter]
    /// The measured interval, and when it began.
    package var nanoseconds: UInt64
    package var beganNanoseconds: UInt64
    package var failures: Failures
    package var interrupted: Bool
    /// Cycles that found something, and that did not: a load without empty cycles is the limit.
    package var busyCycles: UInt64
    package var emptyCycles: UInt64
    /// Of the subscriber: batches whose checksum was computed.
    package var checkedBatches: UInt64
}

struct Driver: ~Copyable {
    private enum Phase { case warming, measuring, draining }

    private var ring: Ring
    private var pool: BufferPool
    private let lanes: UnsafeMutablePointer<Lane>
    private var laneCount = 0
    private let laneMax: Int
    private let meters: UnsafeMutablePointer<Meter>
    private let meterCount: Int
    private let subscriber: UnsafeMutablePointer<Subscriber>
    private var hasSubscriber = false
    /// The producer of each lane and partition, to know whose a delivered batch is.
    private var laneOfProducer: [UInt64: Int] = [:]
    private var lastProducer: UInt64 = 0
    private var lastLane = 0

    private var phase = Phase.warming
    private var failures = Failures()
    private var now: UInt64 = 0
    private var begin: UInt64 = 0
    private var end: UInt64 = .max
    private var giveUp: UInt64 = .max
    private var lastProgress: UInt64 = 0
    private var interrupted = false
    private var hasClosed = false

    // 2 MiB of receive buffers: more would leave the core's cache.
    private static let bufferCount = 64
    private static let bufferBytes = 32 * 1024
    var drainNanoseconds = UInt64.seconds(30)
    var idle = IdleMode.spin
    /// Open loop: a lane's next frame is due so many nanoseconds after the one before; 0: closed loop.
    var frameInterval = 0.0
    private static let stallNanoseconds = UInt64.seconds(30)
    private static let emptyCyclesPerClock = 256
    private static let bufferSelectFlag: UInt8 = 1 << 5

    init(laneMax: Int, meterCount: Int) throws(LoadError) {
        do {
            let ring = try Ring(entries: 256, completions: 2048)
            let pool = try BufferPool(
                ring: ring,
                count: Self.bufferCount,
                bufferBytes: Self.bufferBytes
            )
            self.ring = ring
            self.pool = pool
        } catch {
            throw .noRing(RingRefusal(error, host: .current))
        }
        self.laneMax = laneMax
        self.meterCount = meterCount
        lanes = .allocate(capacity: laneMax)
        meters = .allocate(capacity: meterCount)
        for index in 0..<meterCount { (meters + index).initialize(to: Meter()) }
        subscriber = .allocate(capacity: 1)
    }

    deinit {
        for index in 0..<laneCount {
            shutdown(lanes[index].fd, Int32(SHUT_RDWR))
            close(lanes[index].fd)
        }
        if hasSubscriber {
            shutdown(subscriber.pointee.fd, Int32(SHUT_RDWR))
            close(subscriber.pointee.fd)
            subscriber.deinitialize(count: 1)
        }
        lanes.deinitialize(count: laneCount)
        lanes.deallocate()
        meters.deinitialize(count: meterCount)
        meters.deallocate()
        subscriber.deallocate()
    }

    mutating func add(_ lane: consuming Lane, producers: [UInt64]) {
        invariant(laneCount < laneMax, "more lanes than were announced")
        for producer in producers { laneOfProducer[producer] = laneCount }
        (lanes + laneCount).initialize(to: lane)
        laneCount += 1
    }
    mutating func add(_ subscriber: consuming Subscriber) {
        self.subscriber.initialize(to: subscriber)
        hasSubscriber = true
    }

    // MARK: The cycle

    mutating func run(_ length: RunLength) -> RunResult {
        var busyCycles: UInt64 = 0
        var emptyCycles: UInt64 = 0
        let clocks = Clock.now
        let wallOffset = clocks.wall.nanoseconds &- clocks.monotonic.nanoseconds
        now = clocks.monotonic.nanoseconds
        lastProgress = now
        switch length {
        case .interval(let warmup, let duration):
            begin = now + warmup
            end = begin + duration
        case .untilDone:
            begin = now
            phase = .measuring
        }
        for index in 0..<laneCount {
            if frameInterval > 0 { lanes[index].schedule(from: now, every: frameInterval) }
            receive(index)
        }
        if hasSubscriber { receive(laneCount) }
        fill(wallOffset: wallOffset)

        while true {
            // Submissions wait until here; what is only in memory needs no system call to see.
            if hasSubmissions || ring.hasWork {
                ring.enter()
                hasSubmissions = false
            }
            let count = ring.completionCount
            if count == 0 {
                if idle == .block {
                    ring.wait(nanoseconds: IdleStrategy.overdueNanoseconds)
                } else {
                    CoreControl.yield()
                }
                emptyCycles &+= 1
                if idle == .block || emptyCycles % UInt64(Self.emptyCyclesPerClock) == 0 {
                    now = Clock.monotonic.nanoseconds
                    if advancePhase() { break }
                    // Whoever keeps the answer back may be waiting for this very core.
                    if idle == .spin, frameInterval == 0,
                        now - lastProgress > IdleStrategy.overdueNanoseconds
                    {
                        ring.wait(nanoseconds: IdleStrategy.overdueNanoseconds)
                    }
                }
                // What is due now waits for no completion.
                if frameInterval > 0, phase != .draining { fill(wallOffset: wallOffset) }
                continue
            }
            busyCycles &+= 1
            now = Clock.monotonic.nanoseconds
            lastProgress = now
            for index in 0..<count { complete(ring.completion(index)) }
            ring.advance(count)
            pool.publish()
            for index in 0..<meterCount { meters[index].flush(now: now) }
            if advancePhase() { break }
            if phase != .draining { fill(wallOffset: wallOffset) }
            if hasSubscriber, subscriber.pointee.creditIsDue() { sendCredit() }
        }
        return finish(busyCycles: busyCycles, emptyCycles: emptyCycles)
    }

    private var hasSubmissions = false

    @inline(__always)
    private mutating func fill(wallOffset: UInt64) {
        let stamp = Clock.monotonic.nanoseconds
        for index in 0..<laneCount
        where lanes[index].fill(monotonic: stamp, wall: stamp &+ wallOffset) { send(index) }
    }

    /// Moves from warming up to measuring to draining.
    ///
    /// - Returns: true when the run is over.
    private mutating func advancePhase() -> Bool {
        if phase == .warming, now >= begin {
            phase = .measuring
            begin = now
        }
        if phase != .draining {
            if Interrupt.isRaised { interrupted = true }
            var done = laneCount > 0
            for index in 0..<laneCount where !lanes[index].isDone { done = false }
            let stalled = now > lastProgress + Self.stallNanoseconds
            if stalled { failures.add("stalled", message: "nothing came for 30 s") }
            if now >= end || done || interrupted || failures.total > 0 {
                if phase == .warming { begin = now }
                phase = .draining
                end = now
                // After a failure the rest will hardly come; otherwise all of it must.
                giveUp = now + (failures.total > 0 ? .seconds(1) : drainNanoseconds)
            }
        }
        guard phase == .draining else { return false }
        if hasClosed || now > giveUp { return true }
        for index in 0..<laneCount
        where lanes[index].unconfirmed > 0 || lanes[index].inFlight > 0
            || lanes[index].outgoingBytes > 0
        {
            return false
        }
        return true
    }

    private mutating func finish(busyCycles: UInt64, emptyCycles: UInt64) -> RunResult {
        var unconfirmed = 0
        var undelivered = 0
        for index in 0..<laneCount {
            unconfirmed += lanes[index].unconfirmed
            if lanes[index].untilDelivered { undelivered += lanes[index].inFlight }
        }
        failures.add("unconfirmed", count: UInt64(unconfirmed))
        failures.add("undelivered", count: UInt64(undelivered))
        var result = RunResult(
            meters: [],
            nanoseconds: end > begin ? end - begin : 0,
            beganNanoseconds: begin,
            failures: failures,
            interrupted: interrupted,
            busyCycles: busyCycles,
            emptyCycles: emptyCycles,
            checkedBatches: hasSubscriber ? subscriber.pointee.checkedBatches : 0
        )
        for index in 0..<meterCount { result.meters.append(meters[index]) }
        return result
    }

    // MARK: Submissions. A token is the connection's number, and whether it is a send.

    private mutating func receive(_ connection: Int) {
        guard let entry = ring.submission(token: UInt64(connection) << 1) else {
            return failures.add("no-submission")
        }
        io_uring_prep_recv_multishot(entry, socket(connection), nil, 0, 0)
        entry.pointee.flags |= Self.bufferSelectFlag
        entry.pointee.buf_group = BufferPool.group
        hasSubmissions = true
    }

    @inline(__always)
    private mutating func send(_ lane: Int) {
        send(lane, lanes[lane].outgoing, lanes[lane].outgoingBytes)
    }

    @inline(__always)
    private mutating func send(_ connection: Int, _ bytes: UnsafeRawPointer, _ count: Int) {
        guard let entry = ring.submission(token: UInt64(connection) << 1 | 1) else {
            return failures.add("no-submission")
        }
        io_uring_prep_send(
            entry,
            socket(connection),
            bytes,
            count,
            Int32(MSG_NOSIGNAL)
        )
        hasSubmissions = true
    }

    @inline(never)
    private mutating func sendCredit() {
        send(laneCount, subscriber.pointee.creditFrame, Subscriber.creditFrameBytes)
    }

    @inline(__always)
    private func socket(_ connection: Int) -> Int32 {
        connection < laneCount ? lanes[connection].fd : subscriber.pointee.fd
    }

    // MARK: Completions

    @inline(__always)
    private mutating func complete(_ completion: Completion) {
        let connection = Int(completion.token >> 1)
        if completion.token & 1 == 1 {
            sendCompleted(connection, completion.result)
        } else {
            received(connection, completion)
        }
    }

    @inline(__always)
    private mutating func sendCompleted(_ connection: Int, _ result: Int32) {
        guard result > 0 else { return closed(connection, result, "sending") }
        if connection == laneCount {
            // 48 bytes into a socket that carries nothing else.
            if Int(result) != Subscriber.creditFrameBytes {
                return closed(connection, -EMSGSIZE, "sending credit")
            }
            subscriber.pointee.isSending = false
            return
        }
        lanes[connection].sent(Int(result))
        if lanes[connection].outgoingBytes > 0 { send(connection) }
    }

    @inline(__always)
    private mutating func received(_ connection: Int, _ completion: Completion) {
        if completion.result > 0, let id = completion.bufferID {
            var bytes = pool.bytes(id)
            var available = Int(completion.result)
            do throws(FrameError) {
                if connection < laneCount {
                    while let (unit, count) = try lanes[connection].inbound.next(
                        &bytes,
                        &available
                    ) {
                        try publisherReceived(connection, unit, count)
                    }
                } else {
                    while let (unit, count) = try subscriber.pointee.inbound.next(
                        &bytes,
                        &available
                    ) {
                        try subscriberReceived(unit, count)
                    }
                }
            } catch {
                failures.add("frame", message: "\(error)")
                hasClosed = true
            }
            pool.release(id)
        } else if completion.result != -ENOBUFS {
            return closed(connection, completion.result, "receiving")
        }
        if !completion.hasMore, !hasClosed { receive(connection) }
    }

    @inline(never)
    private mutating func closed(_ connection: Int, _ result: Int32, _ operation: String) {
        guard !hasClosed else { return }
        hasClosed = true
        let reason = result == 0 ? "the server hung up" : String(cString: strerror(-result))
        failures.add("connection-closed", message: "\(operation): \(reason)")
    }

    // MARK: Units

    @inline(__always)
    private mutating func publisherReceived(
        _ index: Int,
        _ unit: UnsafeRawPointer,
        _ count: Int
    ) throws(FrameError) {
        let header = try FrameHeader.decode(unit)
        guard header.opcode == Opcode.confirm.rawValue, header.flags & FrameHeader.errorFlag == 0
        else { return otherReceived(index, header, unit) }
        let body = Int(header.tlvBytes)
        let bytes = header.bodyBytes - body
        guard bytes > 0, bytes % ConfirmEntry.byteCount == 0 else { throw .fields }
        let meter = lanes[index].meter
        let measured = phase == .measuring
        var at = FrameHeader.byteCount + body
        while at < count {
            let failure = lanes[index].confirm(
                ConfirmEntry(at: unit + at),
                now: now,
                into: &meters[meter],
                measured: measured
            )
            if let failure { failures.add("\(failure)") }
            at += ConfirmEntry.byteCount
        }
    }

    @inline(__always)
    private mutating func subscriberReceived(
        _ unit: UnsafeRawPointer,
        _ count: Int
    ) throws(FrameError) {
        guard subscriber.pointee.inbound.deliverBytesLeft > 0 else {
            let header = try FrameHeader.decode(unit)
            guard header.opcode == Opcode.deliver.rawValue, !header.isReply,
                header.stream == Subscriber.subscription
            else { return otherReceived(laneCount, header, unit) }
            subscriber.pointee.beginFrame(header)
            return
        }
        let delivered = subscriber.pointee.take(unit, count: count)
        if let failure = delivered.failure { failures.add("\(failure)") }
        if subscriber.pointee.inbound.deliverBytesLeft == 0, !subscriber.pointee.countAgrees {
            failures.add("delivery-count")
        }
        guard let lane = lane(ofProducer: delivered.producer) else {
            return failures.add("delivery-producer")
        }
        guard delivered.stamp != 0 else { return }
        lanes[lane].delivered()
        let measured = phase == .measuring
        let meter = lanes[lane].meter
        if measured { meters[meter].finished(stamp: delivered.stamp, now: now) }
        meters[meter].count(records: delivered.records, now: now, measured: measured)
    }

    @inline(__always)
    private mutating func lane(ofProducer producer: UInt64) -> Int? {
        if producer == lastProducer { return lastLane }
        guard let lane = laneOfProducer[producer] else { return nil }
        lastProducer = producer
        lastLane = lane
        return lane
    }

    /// A refusal, or a push that this load has no use for.
    @inline(never)
    private mutating func otherReceived(
        _ connection: Int,
        _ header: FrameHeader,
        _ unit: UnsafeRawPointer
    ) {
        let isError =
            header.flags & FrameHeader.errorFlag != 0 || header.opcode == Opcode.error.rawValue
        guard isError else { return }
        let skipped = Int(header.tlvBytes)
        let body = UnsafeRawBufferPointer(
            start: unit + FrameHeader.byteCount + skipped,
            count: header.bodyBytes - skipped
        )
        let message = (try? Refusal(body: body))?.message ?? ""
        failures.add(LoadError.name(header.status), message: message)
        if connection < laneCount {
            _ = lanes[connection].refused(correlation: header.correlation)
        }
    }
}
