internal import BrokerBasics
internal import WireProtocol

/// One publishing connection: its frames, which of them are in flight, and what confirms say.
///
/// Publishes carry consecutive correlation ids from `firstCorrelation`, so a frame is known by its
/// number, counted from 0; it stands in slot `number & slotMask` with the time it was sent, which
/// is 0 when the slot is free. A frame is confirmed when its slot is freed; a second confirm finds
/// the slot empty.
struct Lane: ~Copyable {
    let fd: Int32
    let firstCorrelation: UInt64
    let level: UInt8
    let meter: Int
    let window: Int
    /// In flight until it is delivered (and not only confirmed).
    let untilDelivered: Bool
    var supply: FrameSupply
    var inbound: Inbound

    private let stamps: UnsafeMutablePointer<UInt64>
    private let slotMask: UInt64
    /// The next frame to send; all below it have been.
    private(set) var next: UInt64 = 0
    private(set) var unconfirmed = 0
    private(set) var inFlight = 0
    /// Offsets are checked to be consecutive where this lane alone writes to one partition.
    private let checksOffsets: Bool
    private var offset: UInt64?
    /// Open loop: when the first frame is due, and each after the one before; 0: closed loop.
    private var began: UInt64 = 0
    private var interval = 0.0

    /// The send that the kernel has, or is about to get.
    private(set) var outgoing: UnsafeMutableRawPointer
    private(set) var outgoingBytes = 0

    /// One send takes at most this: the broker works on the first part while the rest is made.
    private static let sendBytesMax = 64 * 1024

    init(
        fd: Int32,
        firstCorrelation: UInt64,
        level: UInt8,
        meter: Int,
        window: Int,
        untilDelivered: Bool,
        checksOffsets: Bool,
        slots: Int,
        supply: consuming FrameSupply,
        inbound: consuming Inbound
    ) {
        self.fd = fd
        self.firstCorrelation = firstCorrelation
        self.level = level
        self.meter = meter
        self.window = window
        self.untilDelivered = untilDelivered
        self.checksOffsets = checksOffsets && supply.targetCount == 1
        self.supply = supply
        self.inbound = inbound
        outgoing = self.supply.memory
        stamps = .allocate(capacity: slots)
        stamps.initialize(repeating: 0, count: slots)
        slotMask = UInt64(slots - 1)
    }

    deinit { stamps.deallocate() }

    /// The slots that a window needs: as few as possible, since they are the driver's cache
    /// footprint, but twice as many where the window may move on before an old frame is confirmed:
    /// frames to other partitions are confirmed, or deliveries come first.
    static func slots(window: Int, outOfOrder: Bool) -> Int {
        var slots = 1
        while slots < (outOfOrder ? window * 2 : window) { slots *= 2 }
        return slots
    }

    /// Frames are made when they are due, and their latency counts from then.
    mutating func schedule(from began: UInt64, every interval: Double) {
        self.began = began
        self.interval = interval
    }
    @inline(__always)
    private func isDue(_ frame: UInt64, _ now: UInt64) -> Bool {
        interval == 0 || dueTime(frame) <= now
    }
    @inline(__always)
    private func dueTime(_ frame: UInt64) -> UInt64 {
        began &+ UInt64(Double(frame) * interval)
    }

    var isDone: Bool { next == supply.frameCount && unconfirmed == 0 }

    /// Makes ready as many frames as window and send size allow, in one piece of memory.
    ///
    /// The time is read before this, once for all of them: a frame's latency includes the making of
    /// the frames in front of it in the same send.
    /// - Returns: false when there is nothing to send.
    @inline(__always)
    mutating func fill(monotonic: UInt64, wall: UInt64) -> Bool {
        guard outgoingBytes == 0 else { return false }
        var bytes = 0
        let first = next
        while inFlight < window, bytes < Self.sendBytesMax, next < supply.frameCount,
            isDue(next, monotonic)
        {
            let slot = Int(next & slotMask)
            guard stamps[slot] == 0 else { break }
            if next != first, supply.breaksRun(next) { break }
            supply.prepare(
                next,
                correlation: firstCorrelation &+ next,
                monotonic: monotonic,
                wall: wall
            )
            stamps[slot] = interval == 0 ? monotonic : dueTime(next)
            bytes += supply.byteCount(next)
            next &+= 1
            inFlight += 1
            unconfirmed += 1
        }
        guard bytes > 0 else { return false }
        outgoing = supply.start(first)
        outgoingBytes = bytes
        return true
    }

    /// The kernel took `count` bytes.
    @inline(__always)
    mutating func sent(_ count: Int) {
        outgoing += count
        outgoingBytes -= count
    }

    @inline(__always)
    mutating func delivered() { inFlight -= 1 }

    /// Takes one entry of a confirm.
    ///
    /// - Returns: the records it covers, and the name of what is wrong with it.
    @inline(__always)
    mutating func confirm(
        _ entry: ConfirmEntry,
        now: UInt64,
        into meter: inout Meter,
        measured: Bool
    ) -> StaticString? {
        let first = entry.correlation &- firstCorrelation
        let count = UInt64(entry.requests)
        guard entry.correlation >= firstCorrelation, first < next, count > 0, count <= next - first
        else { return "confirm-unknown" }
        guard next - first <= slotMask + 1 else { return "confirm-duplicate" }
        var frame = first
        while frame < first &+ count {
            let slot = Int(frame & slotMask)
            let stamp = stamps[slot]
            guard stamp != 0 else { return "confirm-duplicate" }
            stamps[slot] = 0
            if measured, !untilDelivered { meter.finished(stamp: stamp, now: now) }
            frame &+= 1
        }
        unconfirmed -= Int(count)
        let records = supply.records(from: first, count: count)
        if !untilDelivered {
            inFlight -= Int(count)
            meter.count(records: records, now: now, measured: measured)
        }
        if UInt64(entry.records) != records { return "confirm-records" }
        if entry.level != level { return "confirm-level" }
        if entry.flags & ConfirmEntry.duplicateFlag != 0 { return "confirm-stored-earlier" }
        if count > 1, supply.targetCount > 1 {
            for frame in first..<first &+ count
            where supply.partition(frame) != entry.partition { return "confirm-partition" }
        } else if entry.partition != supply.partition(first) {
            return "confirm-partition"
        }
        if checksOffsets {
            defer { offset = entry.baseOffset &+ records }
            if let offset, offset != entry.baseOffset { return "confirm-offset" }
        }
        return nil
    }

    /// The broker refused the publish with this correlation id.
    ///
    /// - Returns: false when there is none.
    mutating func refused(correlation: UInt64) -> Bool {
        let frame = correlation &- firstCorrelation
        guard correlation >= firstCorrelation, frame < next, next - frame <= slotMask + 1,
            stamps[Int(frame & slotMask)] != 0
        else { return false }
        stamps[Int(frame & slotMask)] = 0
        unconfirmed -= 1
        inFlight -= 1
        return true
    }
}
