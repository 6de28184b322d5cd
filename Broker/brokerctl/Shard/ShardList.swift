internal import ArgumentParser
internal import BlockingClient
internal import WireProtocol

extension Shard {
    struct List: ParsableCommand {
        static var configuration: CommandConfiguration {
            CommandConfiguration(
                commandName: "ls",
                abstract: "List the shards, what lives on each, and where it is reached directly.",
                discussion: """
                    FORWARDED counts publishes that came to a shard and belonged to another.

                    Examples:
                      brokerctl shard ls
                      brokerctl shard ls -o json
                    """
            )
        }

        @OptionGroup var global: GlobalOptions

        func run() throws {
            let connection = try global.connect()
            try global.output.print(ShardRows.list(try describeShards(connection, global)))
        }
    }
}

func describeShards(
    _ connection: Connection,
    _ global: GlobalOptions
) throws -> [ShardInfo] {
    try attempting("list the shards") { () throws(ClientError) in
        try connection.request(
            .shardList,
            Empty(),
            reply: ShardListReply.self,
            timeoutMilliseconds: global.timeoutMilliseconds
        )
    }.shards
}
