internal import BrokerBasics
internal import WireProtocol

/// The receiving half of one connection: cuts what arrives into units and keeps the unfinished one.
///
/// A *unit* is a whole frame, except that a `deliver` frame is taken apart: its header (with its
/// optional fields) is one, and each stored batch in it is one. So at most one batch is ever copied
/// on account of a buffer's end, whatever the size of the frame.
struct Inbound: ~Copyable {
    private let pending: UnsafeMutableRawPointer
    private let capacity: Int
    private var pendingBytes = 0

    /// What is left of the body of the deliver frame that is being read.
    private(set) var deliverBytesLeft = 0
    private(set) var deliverPartition: UInt32 = 0
    private(set) var deliverCorrelation: UInt64 = 0

    init(frameBytesMax: Int) {
        capacity = frameBytesMax
        pending = .allocate(byteCount: frameBytesMax, alignment: 64)
    }
    deinit { pending.deallocate() }

    /// The length of the unit at `bytes`; when that is not known yet, how many bytes say more.
    @inline(__always)
    private func unitBytes(
        _ bytes: UnsafeRawPointer,
        _ available: Int
    ) throws(FrameError) -> Int {
        if deliverBytesLeft > 0 {
            let known = StoredBatch.stampBytes + 4
            guard available >= known else { return known }
            let length = StoredBatch.bytes(at: bytes)
            guard length > StoredBatch.headerBytes, length <= deliverBytesLeft else {
                throw .fields
            }
            return length
        }
        guard available >= FrameHeader.byteCount else { return FrameHeader.byteCount }
        guard
            let frame = try FrameHeader.frameBytes(
                bytes,
                available: available,
                frameBytesMax: UInt32(capacity)
            )
        else { return FrameHeader.byteCount }
        guard bytes.u16(4) == Opcode.deliver.rawValue else { return frame }
        let length = FrameHeader.byteCount + Int(bytes.u16(26))
        guard length <= frame else { throw .fields }
        return length
    }

    /// One unit out of the kernel's buffer, or out of `pending` when it came in pieces.
    ///
    /// - Parameters:
    ///   - bytes: what is left of the buffer; moved behind what was taken.
    ///   - available: how much that is.
    /// - Throws: `FrameError` when what came can't be the beginning of a unit.
    /// - Returns: the unit, which stays valid until the next call; `nil` when the buffer is used up.
    @inline(__always)
    mutating func next(
        _ bytes: inout UnsafeRawPointer,
        _ available: inout Int
    ) throws(FrameError) -> (unit: UnsafeRawPointer, bytes: Int)? {
        if pendingBytes == 0 {
            let wanted = try unitBytes(bytes, available)
            if wanted <= available {
                defer {
                    bytes += wanted
                    available -= wanted
                }
                return (bytes, wanted)
            }
            if available == 0 { return nil }
        }
        return try nextFromPieces(&bytes, &available)
    }

    @inline(never)
    private mutating func nextFromPieces(
        _ bytes: inout UnsafeRawPointer,
        _ available: inout Int
    ) throws(FrameError) -> (unit: UnsafeRawPointer, bytes: Int)? {
        while true {
            let wanted = try unitBytes(pending, pendingBytes)
            if wanted <= pendingBytes {
                pendingBytes = 0
                return (UnsafeRawPointer(pending), wanted)
            }
            guard available > 0 else { return nil }
            // A stored batch is within its frame and a frame within the limit, so it fits; a limit
            // of fewer bytes than a header has been refused at HELLO.
            let piece = min(wanted - pendingBytes, available)
            (pending + pendingBytes).copyMemory(from: bytes, byteCount: piece)
            pendingBytes += piece
            bytes += piece
            available -= piece
        }
    }

    mutating func beginDeliver(_ header: FrameHeader) {
        deliverBytesLeft = header.bodyBytes - Int(header.tlvBytes)
        deliverPartition = header.argument
        deliverCorrelation = header.correlation
    }
    @inline(__always)
    mutating func takeBatch(_ byteCount: Int) { deliverBytesLeft -= byteCount }
}
