import WireProtocol

/// What a receiver makes of the bytes at the front of its buffer (SPEC.md, section 2.4).
enum FrameVerdict: Equatable {
    case incomplete
    /// The connection is closed.
    case broken(FrameError)
    /// The frame is whole, but it or its batches are refused.
    case refused(StatusCode)
    case accepted(FrameHeader)

    /// Reads as a receiver does: length, frame, optional fields, and the checksums of the batches.
    static func of(
        _ bytes: UnsafeRawBufferPointer,
        frameBytesMax: UInt32 = FrameHeader.defaultFrameBytesMax
    ) -> FrameVerdict {
        guard let base = bytes.baseAddress else { return .incomplete }
        let header: FrameHeader
        do throws(FrameError) {
            guard
                let count = try FrameHeader.frameBytes(
                    base,
                    available: bytes.count,
                    frameBytesMax: frameBytesMax
                ),
                count <= bytes.count
            else { return .incomplete }
            header = try FrameHeader.decode(base)
        } catch {
            return .broken(error)
        }
        let tlvEnd = FrameHeader.byteCount + Int(header.tlvBytes)
        let fields = OptionalFields.check(
            UnsafeRawBufferPointer(rebasing: bytes[FrameHeader.byteCount..<tlvEnd])
        )
        guard fields == .ok else { return .refused(fields) }
        let body = UnsafeRawBufferPointer(rebasing: bytes[tlvEnd..<Int(header.frameBytes)])
        switch Opcode(rawValue: header.opcode) {
        case nil:
            return .refused(.unknownOpcode)
        case .publish where !header.isReply:
            guard let batch = body.baseAddress else { return .refused(.batchInvalid) }
            let status = BatchHeader.check(batch, count: body.count)
            return status == .ok ? .accepted(header) : .refused(status)
        case .deliver where !header.isReply:
            let partition = PartitionID(rawValue: header.argument)
            return storedBatches(body, partition: partition) == nil
                ? .refused(.dataDamaged) : .accepted(header)
        default:
            return .accepted(header)
        }
    }

    /// The ranges of the stored batches that fill `body`; `nil` when they do not.
    static func storedBatches(
        _ body: UnsafeRawBufferPointer,
        partition: PartitionID
    ) -> [Range<Int>]? {
        var ranges: [Range<Int>] = []
        var at = 0
        while at < body.count {
            let rest = UnsafeRawBufferPointer(rebasing: body[at...])
            guard let base = rest.baseAddress,
                let count = StoredBatch.verify(base, available: rest.count, partition: partition)
            else { return nil }
            ranges.append(at..<at + count)
            at += count
        }
        return ranges.isEmpty ? nil : ranges
    }
}
