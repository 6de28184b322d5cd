package import BrokerBasics
internal import CLinux
internal import Glibc
package import ShardRuntime

/// An open listening socket; its address names the port that the kernel chose for port 0.
package struct Listener: ~Copyable {
    package let descriptor: Int32
    package let address: ServerAddress

    /// Of 20 ms each.
    private static let triesWhileInUse = 100

    package init(_ address: ServerAddress, backlog: Int32 = 1024) throws(SystemError) {
        switch address {
        case .tcp(let host, let port):
            var bound: UInt16 = 0
            let fd = millrace_listen_tcp(host, port, backlog, &bound)
            guard fd >= 0 else { throw SystemError("listening on \(address)", errno: -fd) }
            descriptor = fd
            self.address = .tcp(host: host, port: bound)
        case .unix(let path):
            var fd = millrace_listen_unix(path, backlog)
            // The socket of a broker that was killed accepts until the kernel has taken its ring
            // apart, a moment after the process is gone.
            for _ in 0 ..< Self.triesWhileInUse where fd == -EADDRINUSE {
                usleep(20_000)
                fd = millrace_listen_unix(path, backlog)
            }
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
