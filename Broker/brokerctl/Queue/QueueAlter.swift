internal import ArgumentParser
internal import BlockingClient
internal import WireProtocol

extension Queue {
    struct Alter: ParsableCommand {
        static var configuration: CommandConfiguration {
            CommandConfiguration(
                abstract: "Change a queue's labels or what it keeps.",
                discussion: """
                    Labels and limits that are not named stay. A lower limit removes records soon. Prints the
                    queue as it is then.

                    Examples:
                      brokerctl queue alter orders --label owner=trading
                      brokerctl queue alter orders --label tier=1 --remove-label owner
                      brokerctl queue alter orders --retention-age 30d --retention-records 0
                    """
            )
        }

        @OptionGroup var global: GlobalOptions
        @Argument(help: "The queue's name.")
        var name: String
        @Option(
            parsing: .singleValue,
            help: ArgumentHelp("A label to set; may be repeated.", valueName: "name=value")
        )
        var label: [Label] = []
        @Option(
            parsing: .singleValue,
            help: ArgumentHelp("A label to remove; may be repeated.", valueName: "name")
        )
        var removeLabel: [String] = []
        @OptionGroup var retention: RetentionOptions

        func validate() throws {
            guard !label.isEmpty || !removeLabel.isEmpty || retention.isGiven else {
                throw ValidationError(
                    "nothing to change: give --label, --remove-label or a --retention"
                )
            }
            if let both = removeLabel.first(where: { name in
                label.contains { $0.name == name }
            }) {
                throw ValidationError("label \(both) is both set and removed")
            }
        }

        func run() throws {
            let connection = try global.connect()
            let changes =
                label.map(\.pair) + removeLabel.map { Pair(name: $0, value: "") }
            let queue = try attempting("alter queue \(name)") { () throws(ClientError) in
                try connection.request(
                    .queueAlter,
                    QueueAlterRequest(
                        name: name,
                        labels: changes,
                        retention: retention.retention(absent: .max)
                    ),
                    reply: QueueInfo.self,
                    timeoutMilliseconds: global.timeoutMilliseconds
                )
            }
            try global.output.print(QueueRows.report(queue))
        }
    }
}
