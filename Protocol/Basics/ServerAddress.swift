/// Where a broker listens, as people write it: `HOST:PORT`, `[V6]:PORT` or `unix:PATH`.
///
/// There is no default port: a port that was forgotten should not reach another server in silence.
package enum ServerAddress: Hashable, Sendable, CustomStringConvertible {
    case tcp(host: String, port: UInt16)
    case unix(path: String)

    /// What an address is for.
    package enum Use: Sendable {
        case connecting
        /// Port 0 is lawful: the kernel chooses a free one.
        case listening
    }

    package static let standard = ServerAddress.tcp(host: "127.0.0.1", port: 7400)

    /// What is accepted, for messages.
    package static let forms = "HOST:PORT, [V6]:PORT or unix:PATH"

    /// The longest path that fits `sockaddr_un`, with its final zero (unix(7)).
    package static let unixPathBytesMax = 107

    /// - Throws: when `text` is none of the three forms, saying what to write.
    package init(
        parsing text: String,
        for use: Use = .connecting
    ) throws(ServerAddressError) {
        do throws(ServerAddressError.Reason) {
            self = try Self.parse(text, use)
        } catch {
            throw ServerAddressError(text: text, reason: error)
        }
    }

    /// - Returns: `nil` where `init(parsing:for:)` says what is wrong.
    package init?(_ text: String, for use: Use = .connecting) {
        guard let address = try? Self.parse(text, use) else { return nil }
        self = address
    }

    private static func parse(
        _ text: String,
        _ use: Use
    ) throws(ServerAddressError.Reason) -> ServerAddress {
        if text.hasPrefix("unix:") {
            let path = String(text.dropFirst(5))
            if path.isEmpty { throw .noPath }
            if path.utf8.contains(0) { throw .zeroInPath }
            if path.utf8.count > unixPathBytesMax { throw .pathTooLong(bytes: path.utf8.count) }
            return .unix(path: path)
        }
        let (host, digits) = try split(text)
        if host.isEmpty { throw .noHost }
        if host.contains(where: { $0 == "[" || $0 == "]" || $0.isWhitespace }) { throw .badHost }
        if digits.isEmpty { throw .noPort }
        guard digits.utf8.allSatisfy({ (0x30...0x39).contains($0) }), let port = UInt16(digits)
        else { throw .badPort }
        if port == 0, use == .connecting { throw .portZero }
        return .tcp(host: String(host), port: port)
    }

    /// Cuts at the colon before the port; the host comes without its brackets.
    private static func split(
        _ text: String
    ) throws(ServerAddressError.Reason) -> (host: Substring, digits: Substring) {
        if text.hasPrefix("[") {
            guard let end = text.firstIndex(of: "]") else { throw .openBracket }
            let rest = text[text.index(after: end)...]
            guard rest.hasPrefix(":") else { throw .noPort }
            return (text[..<end].dropFirst(), rest.dropFirst())
        }
        guard let colon = text.lastIndex(of: ":") else { throw .noPort }
        // Whether the last group of a bare IPv6 address is its port could only be guessed.
        if text[..<colon].contains(":") { throw .bareV6 }
        return (text[..<colon], text[text.index(after: colon)...])
    }

    package var description: String {
        switch self {
        case .tcp(let host, let port): host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)"
        case .unix(let path): "unix:\(path)"
        }
    }
}

/// Why a text is no address.
package struct ServerAddressError: Error, Equatable, CustomStringConvertible {
    package enum Reason: Error, Equatable, Sendable, CustomStringConvertible {
        case noPort
        case badPort
        case portZero
        case noHost
        case badHost
        case openBracket
        case bareV6
        case noPath
        case pathTooLong(bytes: Int)
        case zeroInPath

        package var description: String {
            switch self {
            case .noPort: "it has no port"
            case .badPort: "a port is a number up to 65535"
            case .portZero: "nobody can be reached at port 0"
            case .noHost: "it has no host"
            case .badHost: "a host has no spaces or brackets"
            case .openBracket: "its [ is not closed"
            case .bareV6: "an IPv6 address stands in brackets"
            case .noPath: "it has no path"
            case .pathTooLong(let bytes):
                "its path has \(bytes) bytes, \(ServerAddress.unixPathBytesMax) are the most"
            case .zeroInPath: "its path has a zero byte"
            }
        }
    }

    package var text: String
    package var reason: Reason

    /// One line for a person.
    package var description: String {
        "'\(text)' is no address, \(reason): write \(ServerAddress.forms)"
    }
}
