internal import ArgumentParser
internal import BlockingClient
internal import Glibc

/// How a command prints its answer.
enum OutputFormat: String, ExpressibleByArgument, CaseIterable {
    case table
    case json
    case csv
}

/// What every command takes, before or after its verb.
struct GlobalOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            """
            The server: HOST:PORT, [::1]:PORT or unix:PATH. Default: MILLRACE_SERVER, or \
            127.0.0.1:7400.
            """,
            valueName: "address"
        )
    )
    var server: String?

    @Option(
        name: .shortAndLong,
        help: "table for people, json or csv for programs."
    )
    var output: OutputFormat = .table

    @Option(
        help: ArgumentHelp(
            "How long to wait for a connection or an answer.",
            valueName: "seconds"
        )
    )
    var timeout: Double = 10

    func validate() throws {
        guard timeout > 0, timeout <= 86_400 else {
            throw ValidationError("--timeout takes seconds, more than 0 and at most 86400")
        }
        if let server, ServerAddress(server) == nil {
            throw ValidationError(
                "'\(server)' is no server: write HOST:PORT, [::1]:PORT or unix:PATH"
            )
        }
    }

    var timeoutMilliseconds: Int { Int((timeout * 1_000).rounded(.up)) }

    /// What was typed, or the environment, or the standard address.
    func address() throws(Failure) -> ServerAddress {
        if let server, let address = ServerAddress(server) { return address }
        guard let variable = getenv("MILLRACE_SERVER") else { return .standard }
        let text = String(cString: variable)
        guard let address = ServerAddress(text) else {
            throw .usage(
                "MILLRACE_SERVER is '\(text)', no server: "
                    + "write HOST:PORT, [::1]:PORT or unix:PATH"
            )
        }
        return address
    }

    func connect() throws(Failure) -> Connection {
        let address = try address()
        return try attempting("connect to \(address)") { () throws(ClientError) in
            try Connection(
                to: address,
                clientName: ControlTool.clientName,
                timeoutMilliseconds: timeoutMilliseconds
            )
        }
    }
}

extension ControlTool {
    static let clientName = "brokerctl"
}
