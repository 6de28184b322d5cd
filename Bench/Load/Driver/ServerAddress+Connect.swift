internal import BrokerBasics
internal import Glibc

extension ServerAddress {
    /// A connected, blocking socket; io_uring waits for it without blocking the thread.
    func connect() throws(LoadError) -> Int32 {
        switch self {
        case .tcp(let host, let port): try connectTCP(host: host, port: port)
        case .unix(let path): try connectUnix(path: path)
        }
    }

    private func failure(_ reason: String) -> LoadError {
        .unreachable(address: description, reason: reason)
    }

    private func connectTCP(host: String, port: UInt16) throws(LoadError) -> Int32 {
        var hints = addrinfo()
        hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        var found: UnsafeMutablePointer<addrinfo>?
        let result = getaddrinfo(host, String(port), &hints, &found)
        guard result == 0 else { throw failure(String(cString: gai_strerror(result))) }
        defer { freeaddrinfo(found) }
        var reason = "no address"
        var candidate = found
        while let address = candidate?.pointee {
            let fd = socket(address.ai_family, Int32(SOCK_STREAM.rawValue), 0)
            if fd >= 0 {
                if Glibc.connect(fd, address.ai_addr, address.ai_addrlen) == 0 {
                    var on: Int32 = 1
                    setsockopt(
                        fd,
                        Int32(IPPROTO_TCP),
                        TCP_NODELAY,
                        &on,
                        socklen_t(MemoryLayout.size(ofValue: on))
                    )
                    return fd
                }
                reason = LoadError.kernelReason
                close(fd)
            } else {
                reason = LoadError.kernelReason
            }
            candidate = address.ai_next
        }
        throw failure(reason)
    }

    private func connectUnix(path: String) throws(LoadError) -> Int32 {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
        let fd = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        guard fd >= 0 else { throw failure(LoadError.kernelReason) }
        let result = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                Glibc.connect(fd, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        guard result == 0 else {
            let reason = LoadError.kernelReason
            close(fd)
            throw failure(reason)
        }
        return fd
    }
}
