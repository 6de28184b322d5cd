internal import ArgumentParser
internal import BlockingClient
internal import BrokerBasics
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
            The server: \(ServerAddress.forms). Default: MILLRACE_SERVER, or \
            \(ServerAddress.standard).
            """,
            valueName: "address"
        ),
        transform: { try ServerAddress(parsing: $0) }
    )
    var server: ServerAddress?

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
    }

    var timeoutMilliseconds: Int { Int((timeout * 1_000).rounded(.up)) }

    /// What was typed, or the environment, or the standard address.
    func address() throws(Failure) -> ServerAddress {
        if let server { return server }
        guard let variable = getenv("MILLRACE_SERVER") else { return .standard }
        do throws(ServerAddressError) {
            return try ServerAddress(parsing: String(cString: variable))
        } catch {
            throw .usage("MILLRACE_SERVER: \(error)")
        }
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
