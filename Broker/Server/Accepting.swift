internal import BrokerBasics
internal import Glibc

/// Listeners that found no descriptor or memory for a connection. Each is left alone for a while: the peer
/// waits in the backlog, and a loop that asked again at once would do nothing else.
struct TiredListeners {
    private static let restNanoseconds: UInt64 = .milliseconds(100)

    private var listeners: [Int] = []
    private(set) var retryAt = MonotonicTime.never

    /// What accept4(2) says of one connection, and not of this process.
    static func isOfPeer(_ code: Int32) -> Bool {
        switch code {
        case ECONNABORTED, EINTR, EAGAIN, EPROTO, ENETDOWN, ENOPROTOOPT, EHOSTDOWN, ENONET,
            EHOSTUNREACH, EOPNOTSUPP, ENETUNREACH, ETIMEDOUT, ECANCELED:
            true
        default: false
        }
    }

    mutating func add(_ listener: Int, now: MonotonicTime) {
        listeners.append(listener)
        retryAt = now + Self.restNanoseconds
    }

    mutating func takeAll() -> [Int] {
        defer { self = TiredListeners() }
        return listeners
    }
}

/// A peer for which there is no room: it is told, and its socket closed.
enum TurnedAway {
    static func close(_ descriptor: Int32, saying frame: [UInt8]) {
        _ = frame.withUnsafeBytes {
            send(
                descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL) | Int32(MSG_DONTWAIT))
        }
        shutdown(descriptor, Int32(SHUT_WR))
        Glibc.close(descriptor)
    }
}
