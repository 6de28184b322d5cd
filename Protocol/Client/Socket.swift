internal import BrokerBasics
internal import Glibc

/// The system's word for the last failed call.
func lastSystemError() -> String { String(cString: strerror(errno)) }

/// Opens connected, non-blocking sockets; everything about addresses and the kernel is here.
enum Socket {
    /// Connects to `address`; a name with several addresses is tried in the resolver's order.
    ///
    /// - Returns: a non-blocking descriptor, which the caller closes.
    static func connect(
        to address: ServerAddress,
        deadline: Deadline
    ) throws(ClientError) -> Int32 {
        switch address {
        case .unix(let path): try connectUnix(path, address, deadline)
        case .tcp(let host, let port): try connectTCP(host, port, address, deadline)
        }
    }

    private static func connectUnix(
        _ path: String,
        _ address: ServerAddress,
        _ deadline: Deadline
    ) throws(ClientError) -> Int32 {
        var name = sockaddr_un()
        name.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &name.sun_path) { buffer in
            // The rest is zero, so the path ends.
            buffer.copyBytes(from: path.utf8.prefix(ServerAddress.unixPathBytesMax))
        }
        let size = socklen_t(MemoryLayout<sockaddr_un>.size)
        let attempt = withUnsafePointer(to: &name) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { generic in
                Self.attempt(family: AF_UNIX, generic, size, deadline)
            }
        }
        switch attempt {
        case .connected(let descriptor): return descriptor
        case .failed(let reason): throw .unreachable(address: "\(address)", reason: reason)
        }
    }

    private static func connectTCP(
        _ host: String,
        _ port: UInt16,
        _ address: ServerAddress,
        _ deadline: Deadline
    ) throws(ClientError) -> Int32 {
        var hints = addrinfo()
        hints.ai_family = AF_UNSPEC
        hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        hints.ai_flags = AI_NUMERICSERV
        var list: UnsafeMutablePointer<addrinfo>?
        let code = getaddrinfo(host, String(port), &hints, &list)
        guard code == 0 else {
            throw .unreachable(address: "\(address)", reason: String(cString: gai_strerror(code)))
        }
        defer { freeaddrinfo(list) }
        var reason = "the name has no address"
        var next = list
        while let candidate = next {
            next = candidate.pointee.ai_next
            guard let name = candidate.pointee.ai_addr else { continue }
            switch attempt(
                family: candidate.pointee.ai_family,
                name,
                candidate.pointee.ai_addrlen,
                deadline
            )
            {
            case .connected(let descriptor):
                // Confirms and credit are small frames that must not wait for one another.
                var on: Int32 = 1
                _ = setsockopt(
                    descriptor,
                    Int32(IPPROTO_TCP),
                    TCP_NODELAY,
                    &on,
                    socklen_t(MemoryLayout<Int32>.size)
                )
                return descriptor
            case .failed(let text): reason = text
            }
        }
        throw .unreachable(address: "\(address)", reason: reason)
    }

    private enum Attempt {
        case connected(Int32)
        case failed(String)
    }

    private static func attempt(
        family: Int32,
        _ name: UnsafePointer<sockaddr>,
        _ size: socklen_t,
        _ deadline: Deadline
    ) -> Attempt {
        let kind =
            Int32(SOCK_STREAM.rawValue) | Int32(SOCK_NONBLOCK.rawValue)
            | Int32(SOCK_CLOEXEC.rawValue)
        let descriptor = socket(family, kind, 0)
        guard descriptor >= 0 else { return .failed(lastSystemError()) }
        if Glibc.connect(descriptor, name, size) == 0 { return .connected(descriptor) }
        // EINTR leaves the attempt under way, exactly as EINPROGRESS does (connect(2)).
        guard errno == EINPROGRESS || errno == EINTR else {
            let reason = lastSystemError()
            close(descriptor)
            return .failed(reason)
        }
        while true {
            var waiting = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
            let ready = poll(&waiting, 1, Int32(deadline.remainingMilliseconds))
            if ready > 0 { break }
            if ready < 0, errno == EINTR { continue }
            let reason = ready < 0 ? lastSystemError() : "no answer in time"
            close(descriptor)
            return .failed(reason)
        }
        var failure: Int32 = 0
        var failureBytes = socklen_t(MemoryLayout<Int32>.size)
        _ = getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &failure, &failureBytes)
        guard failure == 0 else {
            close(descriptor)
            return .failed(String(cString: strerror(failure)))
        }
        return .connected(descriptor)
    }

    /// Makes a descriptor that came from elsewhere fit for `Connection`.
    static func makeNonBlocking(_ descriptor: Int32) {
        _ = fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) | O_NONBLOCK)
    }
}
