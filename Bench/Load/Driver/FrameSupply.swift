internal import BrokerBasics
internal import WireProtocol

/// The publish frames of one connection, in memory before the first is sent.
///
/// Two kinds. *Made* frames are all alike: a ring of slots, each holding a whole frame, of which
/// only correlation, sequence, timestamps and the two checksums change from one use to the next.
/// *Recorded* frames lie one behind the other and are sent as they are, once.
///
/// Owned by one lane of the driver's thread; nothing here allocates after `init`.
struct FrameSupply: ~Copyable {
    /// Whom the frames are for: partition, producer, and the next sequence number.
    struct Target {
        var partition: UInt32
        var producer: UInt64
        var epoch: UInt16
        var sequence: UInt64 = 0
    }

    let memory: UnsafeMutableRawPointer
    let targets: UnsafeMutablePointer<Target>
    let targetCount: Int
    private(set) var nextTarget = 0

    /// Of a made frame, all of it.
    let frameBytes: Int
    /// Records of a made frame.
    let batch: Int
    /// Where the first record's payload begins within the frame; the send time goes there.
    let payloadOffset: Int
    let stampsPayload: Bool
    let slotMask: UInt64

    /// How many frames there are; made ones don't end.
    let frameCount: UInt64
    /// Recorded: where frame `index` begins; one more than there are frames.
    private let starts: UnsafeMutablePointer<Int>?
    /// Recorded: how many records come before frame `index`; one more than there are frames.
    private let recordsBefore: UnsafeMutablePointer<UInt64>?
    /// Recorded: the frame's place in `targets`.
    private let targetOf: UnsafeMutablePointer<UInt32>?

    static func varintBytes(_ value: Int) -> Int { value < 0x80 ? 1 : value < 0x4000 ? 2 : 3 }

    /// The bytes on the wire of a made frame.
    static func frameBytes(size: Int, batch: Int) -> Int {
        FrameHeader.byteCount + BatchHeader.byteCount + batch * (varintBytes(1 + size) + 1 + size)
    }

    /// Made frames of `batch` records of `size` random bytes.
    ///
    /// `slots` is a power of two and at least the window.
    init(
        size: Int,
        batch: Int,
        slots: Int,
        targets list: [Target],
        stampsPayload: Bool,
        seed: UInt64
    ) {
        frameBytes = Self.frameBytes(size: size, batch: batch)
        self.batch = batch
        self.stampsPayload = stampsPayload
        slotMask = UInt64(slots - 1)
        let lengthBytes = Self.varintBytes(1 + size)
        payloadOffset = FrameHeader.byteCount + BatchHeader.byteCount + lengthBytes + 1
        memory = .allocate(byteCount: slots * frameBytes, alignment: 4096)
        targets = .allocate(capacity: list.count)
        targetCount = list.count
        targets.initialize(from: list, count: list.count)
        frameCount = .max
        starts = nil
        recordsBefore = nil
        targetOf = nil

        var random = SeededRandom(seed: seed)
        for slot in 0..<slots {
            let frame = memory + slot * frameBytes
            var at = FrameHeader.byteCount + BatchHeader.byteCount
            for _ in 0..<batch {
                var length = 1 + size
                while length >= 0x80 {
                    frame.put(UInt8(truncatingIfNeeded: length) | 0x80, at)
                    length >>= 7
                    at += 1
                }
                frame.put(UInt8(truncatingIfNeeded: length), at)
                frame.put(UInt8(0), at + 1)
                at += 2
                for _ in 0..<size {
                    frame.put(UInt8(truncatingIfNeeded: random.next()), at)
                    at += 1
                }
            }
            let target = targets[0]
            BatchBuilder.seal(
                frame + FrameHeader.byteCount,
                batchBytes: frameBytes - FrameHeader.byteCount,
                recordCount: batch,
                producer: target.producer,
                epoch: target.epoch,
                sequence: 0,
                timestamp: 0
            )
            FrameHeader(
                opcode: .publish,
                bodyBytes: frameBytes - FrameHeader.byteCount,
                stream: target.partition
            ).encode(at: frame)
        }
    }

    /// Recorded frames, finished but for nothing: sequence, correlation and checksums are in them.
    init(recorded: RecordedFrames, targets list: [Target]) {
        let bytes = recorded.bytes
        let copy = UnsafeMutableRawPointer.allocate(
            byteCount: max(1, bytes.count),
            alignment: 4096
        )
        memory = copy
        bytes.withUnsafeBytes { source in
            guard let base = source.baseAddress else { return }
            copy.copyMemory(from: base, byteCount: source.count)
        }
        targets = .allocate(capacity: list.count)
        targetCount = list.count
        targets.initialize(from: list, count: list.count)
        let count = recorded.targetOf.count
        frameCount = UInt64(count)
        let starts = UnsafeMutablePointer<Int>.allocate(capacity: count + 1)
        starts.initialize(from: recorded.starts, count: count + 1)
        let before = UnsafeMutablePointer<UInt64>.allocate(capacity: count + 1)
        before.initialize(from: recorded.recordsBefore, count: count + 1)
        let places = UnsafeMutablePointer<UInt32>.allocate(capacity: max(1, count))
        places.initialize(from: recorded.targetOf, count: count)
        self.starts = starts
        recordsBefore = before
        targetOf = places
        frameBytes = 0
        batch = 0
        payloadOffset = 0
        stampsPayload = false
        slotMask = 0
    }

    deinit {
        memory.deallocate()
        targets.deallocate()
        starts?.deallocate()
        recordsBefore?.deallocate()
        targetOf?.deallocate()
    }

    @inline(__always) func start(_ frame: UInt64) -> UnsafeMutableRawPointer {
        if let starts { return memory + starts[Int(frame)] }
        return memory + Int(frame & slotMask) &* frameBytes
    }
    @inline(__always) func byteCount(_ frame: UInt64) -> Int {
        if let starts { return starts[Int(frame) + 1] - starts[Int(frame)] }
        return frameBytes
    }
    /// True when `frame` does not lie behind the one before it.
    @inline(__always) func breaksRun(_ frame: UInt64) -> Bool {
        starts == nil && frame & slotMask == 0
    }
    @inline(__always) func records(from first: UInt64, count: UInt64) -> UInt64 {
        if let recordsBefore {
            return recordsBefore[Int(first + count)] - recordsBefore[Int(first)]
        }
        return count &* UInt64(batch)
    }
    /// The partition that `frame` goes to.
    @inline(__always) func partition(_ frame: UInt64) -> UInt32 {
        if let targetOf { return targets[Int(targetOf[Int(frame)])].partition }
        return targetCount == 1
            ? targets[0].partition : targets[Int(frame % UInt64(targetCount))].partition
    }

    /// Makes a made frame ready: what differs from its last use, and both checksums.
    @inline(__always)
    mutating func prepare(_ frame: UInt64, correlation: UInt64, monotonic: UInt64, wall: UInt64) {
        guard starts == nil else { return }
        let header = start(frame)
        let part = header + FrameHeader.byteCount
        let target = targets + nextTarget
        header.put(correlation, 8)
        if targetCount > 1 {
            header.put(target.pointee.partition, 16)
            part.put(target.pointee.epoch, 12)
            part.put(target.pointee.producer, 16)
            nextTarget = nextTarget + 1 == targetCount ? 0 : nextTarget + 1
        }
        part.put(target.pointee.sequence, 24)
        target.pointee.sequence &+= UInt64(batch)
        part.put(wall, 32)
        if stampsPayload { header.put(monotonic, payloadOffset) }
        header.put(CRC32C.extend(0, UnsafeRawPointer(header), count: 28), 28)
        let partBytes = frameBytes - FrameHeader.byteCount
        part.put(CRC32C.extend(0, UnsafeRawPointer(part) + 8, count: partBytes - 8), 4)
    }
}

/// A recording as publish frames, back to back.
package struct RecordedFrames {
    package var bytes: [UInt8] = []
    package var starts: [Int] = [0]
    package var recordsBefore: [UInt64] = [0]
    package var targetOf: [UInt32] = []
    package init() {}
}
