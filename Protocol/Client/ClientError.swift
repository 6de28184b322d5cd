package import WireProtocol

/// What the server answered when it did not do what was asked (SPEC.md, section 8).
package struct Refused: Equatable, Sendable {
    /// The number on the wire: a later server may have codes that this client has no name for.
    package var code: UInt16
    package var errorClass: StatusCode.Class
    /// A sentence for a person.
    package var message: String
    package var retryAfterMilliseconds: UInt32

    package init(
        code: UInt16,
        errorClass: StatusCode.Class,
        message: String,
        retryAfterMilliseconds: UInt32 = 0
    ) {
        self.code = code
        self.errorClass = errorClass
        self.message = message
        self.retryAfterMilliseconds = retryAfterMilliseconds
    }
    package init(_ status: StatusCode, message: String = "", retryAfterMilliseconds: UInt32 = 0) {
        self.init(
            code: status.rawValue,
            errorClass: status.errorClass,
            message: message,
            retryAfterMilliseconds: retryAfterMilliseconds
        )
    }

    package var status: StatusCode? { StatusCode(rawValue: code) }
    package var name: String { status?.name ?? "status-\(code)" }

    /// True when the same request may succeed later, here or wherever the server is by then.
    package var mayRetry: Bool { errorClass == .retry || errorClass == .retryElsewhere }
}

/// Why something that was asked of a server did not happen.
package enum ClientError: Error, Equatable, CustomStringConvertible {
    /// No connection was made; `reason` is the system's text.
    case unreachable(address: String, reason: String)
    /// The connection ended; what was in flight may or may not have been done.
    case closed(reason: String)
    case refused(Refused)
    /// The peer sent what the protocol does not allow, or the caller asked for it.
    case protocolError(String)
    /// No answer in time; the request may or may not have been done.
    case timeout(String)

    /// One line for a person.
    package var description: String {
        switch self {
        case .unreachable(let address, let reason): "cannot reach \(address): \(reason)"
        case .closed(let reason): "the connection ended: \(reason)"
        case .refused(let refused):
            refused.message.isEmpty ? refused.name : "\(refused.name): \(refused.message)"
        case .protocolError(let text): "protocol error: \(text)"
        case .timeout(let text): "timed out: \(text)"
        }
    }

    /// True when another attempt, on a new connection, may succeed.
    package var mayReconnect: Bool {
        switch self {
        case .unreachable, .closed, .timeout: true
        case .refused(let refused): refused.mayRetry
        case .protocolError: false
        }
    }
}
