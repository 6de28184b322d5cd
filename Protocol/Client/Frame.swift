internal import BrokerBasics
package import WireProtocol

/// One received frame: verified header and checksum, and the body without its optional fields.
///
/// The records of a `deliver` are not covered by the frame's checksum; `Delivery.decode` verifies
/// them by their own.
package struct Frame: Equatable, Sendable {
    package var header: FrameHeader
    package var body: [UInt8]

    package init(header: FrameHeader, body: [UInt8]) {
        self.header = header
        self.body = body
    }

    /// `nil`: a frame of a later version.
    package var opcode: Opcode? { Opcode(rawValue: header.opcode) }

    package var isRefusal: Bool {
        opcode == .error || header.flags & FrameHeader.errorFlag != 0
    }

    /// True for the answer, good or bad, to the request `correlation`. A `deliver` counts records
    /// in the same field, so the number alone is not enough.
    package func answers(_ correlation: UInt64) -> Bool {
        header.correlation == correlation && (header.isReply || isRefusal)
    }

    /// What a refusal says. A body that cannot be read still leaves the header's status.
    package var refused: Refused {
        let status = StatusCode(rawValue: header.status)
        guard let refusal = try? Refusal(body: body) else {
            return Refused(
                code: header.status,
                errorClass: status?.errorClass ?? .fatal,
                message: ""
            )
        }
        return Refused(
            code: header.status,
            errorClass: StatusCode.Class(rawValue: refusal.errorClass)
                ?? status?.errorClass ?? .fatal,
            message: refusal.message,
            retryAfterMilliseconds: refusal.retryAfterMilliseconds
        )
    }

    /// The body as a control message.
    package func message<Message: WireMessage>(
        _: Message.Type
    ) throws(ClientError) -> Message {
        do throws(ByteParserError) {
            return try Message(body: body)
        } catch {
            throw .protocolError(
                "the body of \(name), \(body.count) bytes, cannot be read: \(error)"
            )
        }
    }

    package var name: String { opcode.map { "\($0)" } ?? "opcode \(header.opcode)" }
}

/// Cuts a stream of bytes into frames: the pure half of receiving.
///
/// Holds at most one incomplete frame and what one read appended; `next()` is called until it
/// returns `nil` before more is appended.
package struct FrameAccumulator {
    private var bytes: [UInt8] = []
    private var start = 0
    private let frameBytesMax: UInt32

    package init(frameBytesMax: UInt32 = FrameHeader.defaultFrameBytesMax) {
        self.frameBytesMax = frameBytesMax
    }

    package mutating func append(_ more: UnsafeRawBufferPointer) {
        if start > 0 {
            bytes.removeFirst(start)
            start = 0
        }
        bytes.append(contentsOf: more)
    }

    /// The next whole frame, or `nil` when more bytes are needed.
    ///
    /// - Throws: `.protocolError` when no further bytes could make this a frame.
    package mutating func next() throws(ClientError) -> Frame? {
        let (from, limit) = (start, frameBytesMax)
        let decoded = bytes.withUnsafeBytes { buffer in
            Result { () throws(ClientError) in
                try Self.decode(
                    UnsafeRawBufferPointer(rebasing: buffer[from...]),
                    frameBytesMax: limit
                )
            }
        }
        guard let (frame, frameBytes) = try decoded.get() else { return nil }
        start += frameBytes
        return frame
    }

    private static func decode(
        _ bytes: UnsafeRawBufferPointer,
        frameBytesMax: UInt32
    ) throws(ClientError) -> (Frame, Int)? {
        guard let base = bytes.baseAddress else { return nil }
        let header: FrameHeader
        let frameBytes: Int
        do throws(FrameError) {
            guard
                let length = try FrameHeader.frameBytes(
                    base,
                    available: bytes.count,
                    frameBytesMax: frameBytesMax
                ),
                length <= bytes.count
            else { return nil }
            frameBytes = length
            header = try FrameHeader.decode(base)
        } catch {
            throw .protocolError("bad frame from the server: \(error)")
        }
        let bodyStart = FrameHeader.byteCount + Int(header.tlvBytes)
        let fields = OptionalFields.check(
            UnsafeRawBufferPointer(rebasing: bytes[FrameHeader.byteCount..<bodyStart])
        )
        guard fields == .ok else {
            throw .protocolError("bad optional fields from the server: \(fields.name)")
        }
        return (
            Frame(header: header, body: [UInt8](bytes[bodyStart..<frameBytes])), frameBytes
        )
    }
}
