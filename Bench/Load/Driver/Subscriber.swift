internal import BrokerBasics
internal import WireProtocol

/// The consuming connection of `e2e`: one subscription to every partition of one queue.
///
/// Checks that offsets have no gap and no repeat, that the broker's count agrees with its own, and
/// the checksums of one batch in 64.
struct Subscriber: ~Copyable {
    static let subscription: UInt32 = 1
    private static let checkEvery: UInt64 = 64

    let fd: Int32
    var inbound: Inbound
    private let partitions: [UInt32]
    private let nextOffsets: UnsafeMutablePointer<UInt64>
    private let partBytes: Int
    private let stampOffset: Int
    private var place = 0

    private(set) var batches: UInt64 = 0
    private(set) var records: UInt64 = 0
    private var frameBegan: UInt64 = 0
    private(set) var checkedBatches: UInt64 = 0

    /// Credit in force, absolute, and how much is granted ahead.
    private(set) var granted: UInt64
    private let ahead: UInt64
    private var correlation: UInt64
    let creditFrame: UnsafeMutableRawPointer
    static let creditFrameBytes = FrameHeader.byteCount + Credit.byteCount
    var isSending = false

    /// Bytes are not what limits this consumer: it takes what comes.
    static let creditBytes: UInt64 = 1 << 62

    static func creditAhead(framesInFlight: Int, batch: Int) -> UInt64 {
        UInt64(max(65_536, framesInFlight * batch * 4))
    }

    init(
        fd: Int32,
        firstCorrelation: UInt64,
        partitions: [UInt32],
        nextOffsets first: [UInt64],
        ahead: UInt64,
        partBytes: Int,
        stampOffset: Int,
        inbound: consuming Inbound
    ) {
        self.fd = fd
        self.inbound = inbound
        self.partitions = partitions
        self.partBytes = partBytes
        self.stampOffset = stampOffset
        self.ahead = ahead
        granted = ahead
        correlation = firstCorrelation
        nextOffsets = .allocate(capacity: max(1, partitions.count))
        nextOffsets.initialize(from: first, count: first.count)
        creditFrame = .allocate(byteCount: Self.creditFrameBytes, alignment: 64)
    }
    deinit {
        nextOffsets.deallocate()
        creditFrame.deallocate()
    }

    /// What a stored batch says, and what is wrong with it.
    struct Delivered {
        var producer: UInt64
        var partition: UInt32
        var stamp: UInt64
        var records: UInt64
        var failure: StaticString?
    }

    @inline(__always)
    mutating func take(_ bytes: UnsafeRawPointer, count: Int) -> Delivered {
        inbound.takeBatch(count)
        let part = bytes + StoredBatch.stampBytes
        let base = StoredBatch.baseOffset(at: bytes)
        let end = StoredBatch.endOffset(at: bytes)
        let partition = inbound.deliverPartition
        var delivered = Delivered(
            producer: part.u64(16),
            partition: partition,
            stamp: 0,
            records: end &- base,
            failure: nil
        )
        if partitions[place] != partition {
            guard let found = partitions.firstIndex(of: partition) else {
                delivered.failure = "delivery-partition"
                return delivered
            }
            place = found
        }
        if base != nextOffsets[place] || end < base { delivered.failure = "delivery-gap" }
        nextOffsets[place] = end
        if count - StoredBatch.stampBytes != partBytes {
            delivered.failure = BatchHeader(at: part).isLost ? "delivery-lost" : "delivery-size"
            return delivered
        }
        if batches % Self.checkEvery == 0 {
            checkedBatches &+= 1
            let verified = StoredBatch.verify(
                bytes,
                available: count,
                partition: PartitionID(rawValue: partition)
            )
            if verified != count { delivered.failure = "delivery-checksum" }
        }
        delivered.stamp = part.u64(stampOffset)
        batches &+= 1
        records &+= delivered.records
        return delivered
    }

    mutating func beginFrame(_ header: FrameHeader) {
        frameBegan = records
        inbound.beginDeliver(header)
    }
    /// At the end of a deliver frame: the broker's count is of the records before it, or with it.
    var countAgrees: Bool {
        inbound.deliverCorrelation == frameBegan || inbound.deliverCorrelation == records
    }

    /// Writes a credit frame when half of the credit is used.
    @inline(__always)
    mutating func creditIsDue() -> Bool {
        guard !isSending, granted &- records < ahead / 2 else { return false }
        granted = records &+ ahead
        (creditFrame + FrameHeader.byteCount).put(granted, 0)
        (creditFrame + FrameHeader.byteCount).put(Self.creditBytes, 8)
        FrameHeader(
            opcode: .credit,
            bodyBytes: Credit.byteCount,
            correlation: correlation,
            stream: Self.subscription
        ).encode(at: creditFrame)
        correlation &+= 1
        isSending = true
        return true
    }
}
