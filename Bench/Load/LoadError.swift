internal import Glibc
package import ShardRuntime
internal import WireProtocol

/// Why a run can't go on: one line each, with what was tried and what happened.
package enum LoadError: Error, Equatable, CustomStringConvertible {
    /// Nobody answers at the address, or not in Millrace's protocol.
    case unreachable(address: String, reason: String)
    /// The broker said no.
    case refused(operation: String, status: UInt16, message: String)
    /// The broker said something that the protocol doesn't allow.
    case protocolBroken(operation: String, reason: String)
    case system(SystemError)
    case noRing(RingRefusal)
    case file(path: String, reason: String)
    /// A recording's line can't be read; lines are counted from 1.
    case recording(path: String, line: Int, reason: String)
    /// Arguments that only the broker's answer shows to be wrong.
    case usage(String)
    case baseline(String)
    /// The run is over and reported, and errors were counted.
    case counted(errors: UInt64, summary: String)
    case interrupted

    package var description: String {
        switch self {
        case .unreachable(let address, let reason): "can't reach \(address): \(reason)"
        case .refused(let operation, let status, let message):
            "\(operation) was refused with \(Self.name(status)): \(message)"
        case .protocolBroken(let operation, let reason): "\(operation): \(reason)"
        case .system(let error): error.description
        case .noRing(let refusal): refusal.description
        case .file(let path, let reason): "\(path): \(reason)"
        case .recording(let path, let line, let reason): "\(path), line \(line): \(reason)"
        case .usage(let text): text
        case .baseline(let text): text
        case .counted(let errors, let summary): "\(errors) errors: \(summary)"
        case .interrupted: "interrupted"
        }
    }

    package var exitStatus: Int32 {
        switch self {
        case .unreachable: 3
        case .usage: 2
        case .refused, .protocolBroken, .system, .noRing, .file, .recording, .baseline, .counted,
            .interrupted:
            1
        }
    }

    package static func name(_ status: UInt16) -> String {
        StatusCode(rawValue: status)?.name ?? "status-\(status)"
    }

    /// The kernel's text for `errno` as it is now.
    static var kernelReason: String { String(cString: strerror(errno)) }
}

/// Everything that isn't the answer goes to standard error.
enum StandardError {
    static func print(_ line: String) {
        var bytes = Array(line.utf8)
        bytes.append(UInt8(ascii: "\n"))
        _ = bytes.withUnsafeBytes { write(STDERR_FILENO, $0.baseAddress, $0.count) }
    }
}
