internal import ArgumentParser
internal import BlockingClient
internal import WireProtocol

extension Server {
    struct Status: ParsableCommand {
        static var configuration: CommandConfiguration {
            CommandConfiguration(
                abstract: "Show who the server is and what it says of itself.",
                discussion: """
                    Examples:
                      brokerctl server status
                      brokerctl server status --server unix:/run/millrace.sock -o json
                    """
            )
        }

        @OptionGroup var global: GlobalOptions

        func run() throws {
            let connection = try global.connect()
            let description = try attempting("describe the server at \(connection.address)") {
                () throws(ClientError) in
                try connection.request(
                    .serverDescribe,
                    Empty(),
                    reply: ServerDescription.self,
                    timeoutMilliseconds: global.timeoutMilliseconds
                )
            }
            try global.output.print(
                ServerRows.report(connection.hello, description, address: connection.address)
            )
        }
    }
}

/// How a server is shown: what HELLO said, then its own facts in its own order.
enum ServerRows {
    static func report(
        _ hello: HelloReply,
        _ description: ServerDescription,
        address: String
    ) -> Report {
        var facts: [(column: Rows.Column, cell: Cell)] = [
            (.init("address"), .text(address)),
            // Sixteen digits as text: JSON readers round numbers of this size.
            (.init("server_id"), .text(hexadecimal(hello.serverID))),
            (.init("server_epoch"), .count(hello.serverEpoch)),
            (.init("protocol_version"), .count(UInt64(hello.version))),
            (.init("frame_bytes_max"), .bytes(UInt64(hello.frameBytesMax))),
            (
                .init("shards"),
                .list(hello.shards.map { "\($0.shard)=\($0.address)" })
            ),
        ]
        let taken = Set(facts.map(\.column.key))
        for fact in description.facts {
            // A name twice would make the JSON ambiguous.
            let key = taken.contains(fact.name) ? "server.\(fact.name)" : fact.name
            facts.append((.init(key, HumanText.visible(key)), .text(fact.value)))
        }
        return Report(facts: facts.map { ($0.column, $0.cell) })
    }

    private static func hexadecimal(_ number: UInt64) -> String {
        let text = String(number, radix: 16)
        return String(repeating: "0", count: 16 - text.count) + text
    }
}
