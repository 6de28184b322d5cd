package import BrokerBasics
internal import CLinux
internal import Glibc
package import ShardRuntime

/// An open listening socket; its address names the port that the kernel chose for port 0.
package struct Listener: ~Copyable {
    package let descriptor: Int32
    package let address: ServerAddress

    /// How often a place in use is tried again, after 20 ms each. The socket of a broker that was killed
    /// listens until the kernel has taken its ring apart, a moment after the process is gone.
    package static let triesWhileInUse = 100

    /// - Parameter peerNanoseconds: how long a TCP peer may answer nothing, or take nothing, before its
    ///   connection ends. A Unix socket's peer is on this machine: its end is always seen.
    /// - Throws: `SystemError` with `EADDRINUSE` when somebody listens there for two seconds on end.
    package init(
        _ address: ServerAddress, backlog: Int32 = 1024, peerNanoseconds: UInt64 = .seconds(120),
        triesWhileInUse: Int = triesWhileInUse
    ) throws(SystemError) {
        var port: UInt16 = 0
        let patience = UInt32(clamping: peerNanoseconds / .milliseconds(1))
        var fd = Self.listen(address, backlog, patience, &port)
        for _ in 0..<triesWhileInUse where fd == -EADDRINUSE {
            usleep(20_000)
            fd = Self.listen(address, backlog, patience, &port)
        }
        guard fd >= 0 else { throw SystemError("listening on \(address)", errno: -fd) }
        descriptor = fd
        self.address =
            switch address {
            case .tcp(let host, _): .tcp(host: host, port: port)
            case .unix: address
            }
    }

    private static func listen(
        _ address: ServerAddress, _ backlog: Int32, _ patience: UInt32, _ port: inout UInt16
    ) -> Int32 {
        switch address {
        case .tcp(let host, let wanted): millrace_listen_tcp(host, wanted, backlog, patience, &port)
        case .unix(let path): millrace_listen_unix(path, backlog)
        }
    }

    deinit {
        // The name first: once the socket is closed, somebody else's may have it.
        if case .unix(let path) = address { unlink(path) }
        close(descriptor)
    }
}
