public import BrokerBasics

/// Why bytes can't be a frame: the peer's fault, and the connection is closed after saying so.
public enum FrameError: Error, Equatable {
    case tooShort(frameBytes: UInt32)
    case tooLarge(frameBytes: UInt32, limitBytes: UInt32)
    case checksum
    case version(UInt8)
    case reservedFlags(UInt8)
    case fields

    public var status: StatusCode {
        switch self {
        case .tooShort, .reservedFlags, .fields: .badFrame
        case .tooLarge: .frameTooLarge
        case .checksum: .badChecksum
        case .version: .unsupportedVersion
        }
    }
}

/// The fixed header at the front of every frame (SPEC.md, section 2).
///
/// ```
///  0 u32 frame_bytes   whole frame, this header included
///  4 u16 opcode
///  6 u8  version       1
///  7 u8  flags         bit 0 reply, bit 1 error, bit 2 push; others 0
///  8 u64 correlation   ties a reply to its request; deliver: records delivered so far
/// 16 u32 stream        publish: partition id; consume: the client's subscription id
/// 20 u32 argument      request: deadline in µs from arrival, 0 none; deliver: partition id
/// 24 u16 status        0 in requests
/// 26 u16 tlv_bytes     optional fields at the front of the body
/// 28 u32 checksum      CRC32C of bytes 0 ..< 28 and the body (publish, deliver: the TLVs only)
/// ```
public struct FrameHeader: Equatable, Sendable {
    public typealias Checksum = CRC32C
    @inlinable public static var byteCount: Int { 32 }
    @inlinable public static var version: UInt8 { 1 }
    public static let defaultFrameBytesMax: UInt32 = 1 << 20

    @inlinable public static var replyFlag: UInt8 { 1 }
    @inlinable public static var errorFlag: UInt8 { 2 }
    @inlinable public static var pushFlag: UInt8 { 4 }

    public var frameBytes: UInt32
    public var opcode: UInt16
    public var version: UInt8
    public var flags: UInt8
    public var correlation: UInt64
    public var stream: UInt32
    public var argument: UInt32
    public var status: UInt16
    public var tlvBytes: UInt16

    @inlinable
    public init(
        opcode: Opcode,
        bodyBytes: Int = 0,
        flags: UInt8 = 0,
        correlation: UInt64 = 0,
        stream: UInt32 = 0,
        argument: UInt32 = 0,
        status: StatusCode = .ok,
        tlvBytes: UInt16 = 0
    ) {
        frameBytes = UInt32(truncatingIfNeeded: Self.byteCount + bodyBytes)
        self.opcode = opcode.rawValue
        version = Self.version
        self.flags = flags
        self.correlation = correlation
        self.stream = stream
        self.argument = argument
        self.status = status.rawValue
        self.tlvBytes = tlvBytes
    }

    @inlinable @inline(__always)
    public init(at bytes: UnsafeRawPointer) {
        frameBytes = bytes.u32(0)
        opcode = bytes.u16(4)
        version = bytes.u8(6)
        flags = bytes.u8(7)
        correlation = bytes.u64(8)
        stream = bytes.u32(16)
        argument = bytes.u32(20)
        status = bytes.u16(24)
        tlvBytes = bytes.u16(26)
    }

    @inlinable public var isReply: Bool { flags & Self.replyFlag != 0 }
    @inlinable public var bodyBytes: Int { Int(frameBytes) - Self.byteCount }

    /// The length of the frame that starts at `bytes`, checked against the limits but nothing else.
    ///
    /// - Returns: `nil` when fewer than four bytes have arrived.
    @inlinable @inline(__always)
    public static func frameBytes(
        _ bytes: UnsafeRawPointer,
        available: Int,
        frameBytesMax: UInt32
    ) throws(FrameError) -> Int? {
        guard available >= 4 else { return nil }
        let frameBytes = bytes.u32(0)
        guard frameBytes >= UInt32(byteCount) else { throw .tooShort(frameBytes: frameBytes) }
        guard frameBytes <= frameBytesMax else {
            throw .tooLarge(frameBytes: frameBytes, limitBytes: frameBytesMax)
        }
        return Int(frameBytes)
    }

    /// Decodes and verifies the whole frame of `frameBytes(_:available:frameBytesMax:)` bytes.
    @inlinable @inline(__always)
    public static func decode(_ bytes: UnsafeRawPointer) throws(FrameError) -> FrameHeader {
        let header = FrameHeader(at: bytes)
        guard Int(header.tlvBytes) <= header.bodyBytes else { throw .fields }
        guard checksum(bytes, header) == bytes.u32(28) else { throw .checksum }
        guard header.version == version else { throw .version(header.version) }
        guard header.flags & ~(replyFlag | errorFlag | pushFlag) == 0 else {
            throw .reservedFlags(header.flags)
        }
        return header
    }

    @inlinable @inline(__always)
    static func checksum(_ bytes: UnsafeRawPointer, _ header: FrameHeader) -> UInt32 {
        let crc = CRC32C.extend(0, bytes, fixed: 28)
        let carriesBatches =
            header.opcode == Opcode.publish.rawValue || header.opcode == Opcode.deliver.rawValue
        let covered = carriesBatches && !header.isReply ? Int(header.tlvBytes) : header.bodyBytes
        return covered == 0 ? crc : CRC32C.extend(crc, bytes + byteCount, count: covered)
    }

    /// Writes the header at `bytes`, the body being in place behind it, and its checksum.
    @inlinable @inline(__always)
    public func encode(at bytes: UnsafeMutableRawPointer) {
        bytes.put(frameBytes, 0)
        bytes.put(opcode, 4)
        bytes.put(version, 6)
        bytes.put(flags, 7)
        bytes.put(correlation, 8)
        bytes.put(stream, 16)
        bytes.put(argument, 20)
        bytes.put(status, 24)
        bytes.put(tlvBytes, 26)
        bytes.put(Self.checksum(UnsafeRawPointer(bytes), self), 28)
    }

    /// A whole frame as an array: control messages, tools and tests.
    public func frame(body: [UInt8]) -> [UInt8] {
        var header = self
        header.frameBytes = UInt32(Self.byteCount + body.count)
        var frame = [UInt8](repeating: 0, count: Self.byteCount) + body
        frame.withUnsafeMutableBytes { buffer in
            guard let base = buffer.baseAddress else { return }
            header.encode(at: base)
        }
        return frame
    }
}
