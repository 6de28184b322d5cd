internal import BrokerBasics

/// Optional fields (TLVs) at the front of a frame's body (SPEC.md, section 2.3).
///
/// Each is `type u16 | length u16 | bytes`. Bit 15 of the type says *mandatory*: a receiver that
/// does not know such a field refuses the frame; an unknown optional one is skipped.
public enum OptionalFields {
    public static let mandatoryBit: UInt16 = 0x8000
    /// W3C trace context of the request: trace id 16, span id 8, flags 1.
    public static let traceContext: UInt16 = 1

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
            default:
                if type & mandatoryBit != 0 { return .unknownMandatoryField }
            }
            at += 4 + length
        }
        return .ok
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
