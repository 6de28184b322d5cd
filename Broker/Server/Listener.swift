internal import CLinux
internal import Glibc
package import ShardRuntime

/// Where connections come in.
package enum ListenAddress: Sendable, Equatable, CustomStringConvertible {
    case tcp(host: String, port: UInt16)
    case unix(path: String)

    /// `HOST:PORT`, `[V6]:PORT`, or `unix:PATH`.
    package init?(_ text: String) {
        if text.hasPrefix("unix:") {
            let path = String(text.dropFirst(5))
            guard !path.isEmpty, path.utf8.count < 108 else { return nil }
            self = .unix(path: path)
            return
        }
        guard let colon = text.lastIndex(of: ":"),
            let port = UInt16(text[text.index(after: colon)...])
        else { return nil }
        var host = String(text[..<colon])
        if host.hasPrefix("["), host.hasSuffix("]") { host = String(host.dropFirst().dropLast()) }
        self = .tcp(host: host, port: port)
    }

    package var description: String {
        switch self {
        case .tcp(let host, let port):
            host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)"
        case .unix(let path): "unix:\(path)"
        }
    }
}

/// An open listening socket; its address names the port that the kernel chose for port 0.
package struct Listener: ~Copyable {
    package let descriptor: Int32
    package let address: ListenAddress

    package init(_ address: ListenAddress, backlog: Int32 = 1024) throws(SystemError) {
        switch address {
        case .tcp(let host, let port):
            var bound: UInt16 = 0
            let fd = millrace_listen_tcp(host, port, backlog, &bound)
            guard fd >= 0 else { throw SystemError("listening on \(address)", errno: -fd) }
            descriptor = fd
            self.address = .tcp(host: host, port: bound)
        case .unix(let path):
            let fd = millrace_listen_unix(path, backlog)
            guard fd >= 0 else { throw SystemError("listening on \(address)", errno: -fd) }
            descriptor = fd
            self.address = address
        }
    }

    deinit {
        close(descriptor)
        if case .unix(let path) = address { unlink(path) }
    }
}
