import BrokerBasics
import Testing

@Suite struct ServerAddressTests {
    @Test(
        "the three forms are read, and printed as they were written",
        arguments: [
            ("127.0.0.1:7400", ServerAddress.tcp(host: "127.0.0.1", port: 7400)),
            ("broker-1.example:1", .tcp(host: "broker-1.example", port: 1)),
            ("localhost:65535", .tcp(host: "localhost", port: 65_535)),
            ("[::1]:65535", .tcp(host: "::1", port: 65_535)),
            ("[fe80::1%eth0]:80", .tcp(host: "fe80::1%eth0", port: 80)),
            ("unix:/run/millrace.sock", .unix(path: "/run/millrace.sock")),
            ("unix:relative", .unix(path: "relative")),
            ("unix:with:colon", .unix(path: "with:colon")),
            (
                "unix:" + String(repeating: "x", count: 107),
                .unix(path: String(repeating: "x", count: 107))
            ),
        ]
    )
    func lawful(text: String, address: ServerAddress) throws {
        #expect(try ServerAddress(parsing: text) == address)
        #expect(ServerAddress(text) == address)
        #expect(ServerAddress(text, for: .listening) == address)
        #expect(address.description == text)
    }

    @Test(
        "everything else is refused, and it is said why",
        arguments: [
            ("", .noPort), ("host", .noPort), ("host:", .noPort), ("[::1]", .noPort),
            ("[::1]7400", .noPort), ("[::1]:", .noPort), (":", .noHost), (":7400", .noHost),
            ("[]:7400", .noHost), ("host:65536", .badPort), ("host:-1", .badPort),
            ("host:+1", .badPort), ("host:7400x", .badPort), ("host:٧", .badPort),
            ("host: 1", .badPort), ("host:0", .portZero), ("a b:7400", .badHost),
            ("a]:7400", .badHost), ("[[::1]:7400", .badHost), ("[::1:7400", .openBracket),
            ("::1:7400", .bareV6), ("unix:", .noPath), ("unix:/a\0b", .zeroInPath),
            ("unix:/" + String(repeating: "x", count: 107), .pathTooLong(bytes: 108)),
            ("unix:" + String(repeating: "é", count: 54), .pathTooLong(bytes: 108)),
        ] as [(String, ServerAddressError.Reason)]
    )
    func unlawful(text: String, reason: ServerAddressError.Reason) {
        let error = #expect(throws: ServerAddressError.self) { try ServerAddress(parsing: text) }
        #expect(error?.reason == reason)
        #expect(error?.text == text)
        #expect(ServerAddress(text) == nil)
        #expect((ServerAddress(text, for: .listening) == nil) == (reason != .portZero))
    }

    @Test("port 0 is for listening only")
    func portZero() {
        #expect(ServerAddress("[::1]:0", for: .listening) == .tcp(host: "::1", port: 0))
        #expect(ServerAddress("[::1]:0") == nil)
    }

    @Test("the message names the text, what is wrong with it, and what to write")
    func message() {
        let error = #expect(throws: ServerAddressError.self) {
            try ServerAddress(parsing: "::1:7400")
        }
        #expect(
            error?.description
                == "'::1:7400' is no address, an IPv6 address stands in brackets: "
                + "write HOST:PORT, [V6]:PORT or unix:PATH"
        )
    }
}
