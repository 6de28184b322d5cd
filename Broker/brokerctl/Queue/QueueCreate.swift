internal import ArgumentParser
internal import BlockingClient
internal import WireProtocol

extension Queue {
    struct Create: ParsableCommand {
        static var configuration: CommandConfiguration {
            CommandConfiguration(
                abstract: "Create a queue.",
                discussion: """
                    Prints the queue as it was made.

                    Examples:
                      brokerctl queue create orders --partitions 8
                      brokerctl queue create marketdata --durability memory --label owner=feeds
                      brokerctl queue create trades --retention-bytes 10GiB --retention-age 7d
                    """
            )
        }

        @OptionGroup var global: GlobalOptions
        @Argument(help: "The queue's name: letters, digits, and . _ - $ inside.")
        var name: String
        @Option(help: "How many partitions; this cannot be changed later.")
        var partitions: UInt32 = 1
        @Option(
            help: """
                What a confirm promises: memory (accepted), written (survives a crash of the \
                broker, not of the machine) or synced (on stable storage).
                """
        )
        var durability: Durability = .synced
        @Option(
            parsing: .singleValue,
            help: ArgumentHelp("A label; may be repeated.", valueName: "name=value")
        )
        var label: [Label] = []
        @OptionGroup var retention: RetentionOptions

        func validate() throws {
            guard partitions > 0 else { throw ValidationError("--partitions takes 1 or more") }
        }

        func run() throws {
            let connection = try global.connect()
            let queue = try attempting("create queue \(name)") { () throws(ClientError) in
                try connection.request(
                    .queueCreate,
                    QueueCreateRequest(
                        name: name,
                        partitions: partitions,
                        level: durability.level,
                        labels: label.map(\.pair),
                        retention: retention.retention(absent: 0)
                    ),
                    reply: QueueInfo.self,
                    timeoutMilliseconds: global.timeoutMilliseconds
                )
            }
            try global.output.print(QueueRows.report(queue))
        }
    }
}
