internal import BrokerBasics
internal import ChildProcess
internal import Glibc

/// The smallest HTTP client: one GET on one connection, blocking.
package struct HTTPAnswer: Sendable {
    package var status: Int
    /// Names in lower case.
    package var headers: [String: String]
    package var body: String
}

package enum HTTPGet {
    /// - Parameter address: `HOST:PORT`, the host in digits.
    /// - Returns: the answer to `GET path`.
    package static func get(_ address: String, _ path: String) throws -> HTTPAnswer {
        let text = try exchange(
            address,
            "GET \(path) HTTP/1.1\r\nHost: \(address)\r\nConnection: close\r\n\r\n"
        )
        guard let end = text.firstRange(of: "\r\n\r\n") else {
            throw ChildFailure("no HTTP answer from \(address): \(text)")
        }
        let lines = text[..<end.lowerBound].split(separator: "\r\n")
        let words = (lines.first ?? "").split(separator: " ")
        guard words.count >= 2, let status = Int(words[1]) else {
            throw ChildFailure("no HTTP status from \(address): \(text)")
        }
        var headers: [String: String] = [:]
        for line in lines.dropFirst() {
            let parts = line.split(separator: ":", maxSplits: 1)
            guard parts.count == 2 else { continue }
            headers[parts[0].lowercased()] = String(parts[1].drop { $0 == " " })
        }
        return HTTPAnswer(status: status, headers: headers, body: String(text[end.upperBound...]))
    }

    private static func exchange(_ address: String, _ request: String) throws -> String {
        func failure(_ what: String) -> ChildFailure {
            ChildFailure("\(what) \(address): \(String(cString: strerror(errno)))")
        }
        guard case .tcp(let host, let port) = try ServerAddress(parsing: address) else {
            throw ChildFailure("\(address) is not HTTP's")
        }
        let socket = Glibc.socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        guard socket >= 0 else { throw failure("socket for") }
        defer { close(socket) }
        var patience = timeval(tv_sec: 10, tv_usec: 0)
        setsockopt(
            socket,
            SOL_SOCKET,
            SO_RCVTIMEO,
            &patience,
            socklen_t(MemoryLayout<timeval>.size)
        )
        var peer = sockaddr_in()
        peer.sin_family = sa_family_t(AF_INET)
        peer.sin_port = port.bigEndian
        inet_pton(AF_INET, host, &peer.sin_addr)
        let connected = withUnsafePointer(to: &peer) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(socket, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        guard connected == 0 else { throw failure("connecting to") }
        let sent = request.withCString {
            send(socket, $0, strlen($0), Int32(MSG_NOSIGNAL))
        }
        guard sent == request.utf8.count else { throw failure("sending to") }
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 65_536)
        while true {
            let count = recv(socket, &buffer, buffer.count, 0)
            guard count >= 0 else { throw failure("receiving from") }
            if count == 0 { return String(decoding: bytes, as: UTF8.self) }
            bytes += buffer[..<count]
        }
    }
}
