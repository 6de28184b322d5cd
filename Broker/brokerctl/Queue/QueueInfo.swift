internal import ArgumentParser
internal import BlockingClient
internal import WireProtocol

extension Queue {
    struct Info: ParsableCommand {
        static var configuration: CommandConfiguration {
            CommandConfiguration(
                abstract: "Show a queue and the positions of its partitions.",
                discussion: """
                    START, COMMITTED and END are offsets: what is kept begins at START, what may be \
                    delivered ends below COMMITTED, and the next record gets END. LOST counts \
                    offsets that a crash took from a queue below synced. KEEP SIZE, AGE and RECORDS are \
                    the limits of each partition.

                    Examples:
                      brokerctl queue info orders
                      brokerctl queue info orders -o json | jq .partitions[].end_offset
                    """
            )
        }

        @OptionGroup var global: GlobalOptions
        @Argument(help: "The queue's name.")
        var name: String

        func run() throws {
            let connection = try global.connect()
            try global.output.print(
                QueueRows.report(try describeQueue(name, on: connection, global))
            )
        }
    }
}

/// Asks for a queue and its partitions.
func describeQueue(
    _ name: String,
    on connection: Connection,
    _ global: GlobalOptions
) throws(Failure) -> QueueInfo {
    try attempting("describe queue \(name)") { () throws(ClientError) in
        try connection.request(
            .queueDescribe,
            QueueNameRequest(name: name),
            reply: QueueInfo.self,
            timeoutMilliseconds: global.timeoutMilliseconds
        )
    }
}
