internal import ArgumentParser
internal import BlockingClient
internal import WireProtocol

extension Shard {
    struct Info: ParsableCommand {
        static var configuration: CommandConfiguration {
            CommandConfiguration(
                abstract: "Show what one shard says of itself.",
                discussion: """
                    Examples:
                      brokerctl shard info 1
                      brokerctl shard info 0 -o json
                    """
            )
        }

        @OptionGroup var global: GlobalOptions
        @Argument(help: "The shard's number, from 0.")
        var shard: UInt16

        func run() throws {
            let connection = try global.connect()
            let shards = try describeShards(connection, global)
            guard let info = shards.first(where: { $0.shard == shard }) else {
                throw Failure.declined(
                    "there is no shard \(shard); the broker has \(shards.count), from 0"
                )
            }
            try global.output.print(ShardRows.report(info))
        }
    }
}
