internal import BrokerBasics

/// Optional fields (TLVs) at the front of a frame's body (SPEC.md, section 2.3).
///
/// Each is `type u16 | length u16 | bytes`. Bit 15 of the type says *mandatory*: a receiver that
/// does not know such a field refuses the frame; an unknown optional one is skipped.
public enum OptionalFields {
    public static let mandatoryBit: UInt16 = 0x8000
    /// W3C trace context of the request: trace id 16, span id 8, flags 1.
    public static let traceContext: UInt16 = 1
    /// Of a publish: the durability level at which it is to be confirmed, one byte.
    public static let confirmLevel: UInt16 = 2

    /// Walks the fields; the status says what is wrong, `.ok` when nothing is.
    public static func check(_ bytes: UnsafeRawBufferPointer) -> StatusCode {
        guard let base = bytes.baseAddress else { return .ok }
        var at = 0
        while at < bytes.count {
            guard bytes.count - at >= 4 else { return .badFrame }
            let type = (base + at).u16(0)
            let length = Int((base + at).u16(2))
            guard length <= bytes.count - at - 4 else { return .badFrame }
            switch type & ~mandatoryBit {
            case traceContext:
                guard length == TraceContext.byteCount else { return .badFrame }
            case confirmLevel:
                guard length == 1 else { return .badFrame }
            default:
                if type & mandatoryBit != 0 { return .unknownMandatoryField }
            }
            at += 4 + length
        }
        return .ok
    }

    /// The bytes of field `number`, in fields that `check` found good.
    public static func find(
        _ number: UInt16, in bytes: UnsafeRawBufferPointer
    ) -> UnsafeRawBufferPointer? {
        guard let base = bytes.baseAddress else { return nil }
        var at = 0
        while bytes.count - at >= 4 {
            let length = Int((base + at).u16(2))
            guard length <= bytes.count - at - 4 else { return nil }
            if (base + at).u16(0) & ~mandatoryBit == number {
                return UnsafeRawBufferPointer(rebasing: bytes[(at + 4)..<(at + 4 + length)])
            }
            at += 4 + length
        }
        return nil
    }

    /// One field as it is sent.
    public static func encode(
        _ number: UInt16, isMandatory: Bool, _ value: [UInt8]
    ) -> [UInt8] {
        var builder = ByteBuilder()
        builder.put(isMandatory ? number | mandatoryBit : number)
        builder.put(UInt16(truncatingIfNeeded: value.count))
        return builder.bytes + value
    }
}

/// W3C trace context in binary: what ties a record to the trace that made it. Opaque to the broker.
public struct TraceContext: Equatable, Sendable {
    public static let byteCount = 25

    /// Trace id (16), span id (8), flags (1), in the byte order of the `traceparent` text.
    public var bytes: [UInt8]

    /// - Returns: `nil` unless there are exactly 25 bytes.
    public init?(bytes: [UInt8]) {
        guard bytes.count == Self.byteCount else { return nil }
        self.bytes = bytes
    }
}
