import BlockingClient
import Testing

@Suite struct ServerAddressTests {
    @Test(
        "the three forms are read, and printed as they were written",
        arguments: [
            ("127.0.0.1:7400", ServerAddress.tcp(host: "127.0.0.1", port: 7400)),
            ("broker-1.example:1", .tcp(host: "broker-1.example", port: 1)),
            ("[::1]:65535", .tcp(host: "::1", port: 65_535)),
            ("unix:/run/millrace.sock", .unix(path: "/run/millrace.sock")),
            ("unix:relative", .unix(path: "relative")),
        ]
    )
    func lawful(text: String, address: ServerAddress) {
        #expect(ServerAddress(text) == address)
        #expect(address.description == text)
    }

    @Test(
        "everything else is refused",
        arguments: [
            "", ":", "host", "host:", ":7400", "host:0", "host:65536", "host:-1", "host:+1",
            "host:7400x", "::1:7400", "[::1]", "[]:7400", "a b:7400", "[::1:7400", "unix:",
            "unix:/" + String(repeating: "x", count: 107), "unix:/a\0b",
        ]
    )
    func unlawful(text: String) {
        #expect(ServerAddress(text) == nil)
    }
}
