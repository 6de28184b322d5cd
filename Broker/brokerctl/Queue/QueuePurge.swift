internal import ArgumentParser
internal import BlockingClient
internal import WireProtocol

extension Queue {
    struct Purge: ParsableCommand {
        static var configuration: CommandConfiguration {
            CommandConfiguration(
                abstract: "Remove the oldest records of a queue, or all.",
                discussion: """
                    Shows what will be removed and asks. Where there is no terminal to ask on, --yes \
                    is required. Groups that had not acked what is removed go on behind it. Prints \
                    the queue as it is then.

                    Examples:
                      brokerctl queue purge orders-test
                      brokerctl queue purge orders --partition 3 --before 1200000 --yes
                    """
            )
        }

        @OptionGroup var global: GlobalOptions
        @Argument(help: "The queue's name.")
        var name: String
        @Option(help: ArgumentHelp("Only this partition, by its index.", valueName: "index"))
        var partition: UInt32?
        @Option(
            help: ArgumentHelp(
                "Only records below this offset; without it all that are committed.",
                valueName: "offset"
            )
        )
        var before: UInt64?
        @Flag(help: "Do not ask.")
        var yes = false

        func run() throws {
            guard yes || ControlTool.streams.isTerminal else {
                throw Failure.usage(
                    "purge queue \(name): there is no terminal to ask on, so --yes is required"
                )
            }
            let connection = try global.connect()
            let queue = try describeQueue(name, on: connection, global)
            var id = PartitionID.all
            if let partition {
                guard let found = queue.partitions.first(where: { $0.index == partition }) else {
                    throw Failure.usage(
                        "purge queue \(name): it has partitions 0 to \(queue.partitionCount - 1)"
                    )
                }
                id = PartitionID(rawValue: found.id)
            }
            if !yes { try confirm(queue) }
            let left = try attempting("purge queue \(name)") { () throws(ClientError) in
                try connection.request(
                    .queuePurge,
                    QueuePurgeRequest(
                        name: name,
                        partition: id,
                        before: before ?? QueuePurgeRequest.toTheEnd
                    ),
                    reply: QueueInfo.self,
                    timeoutMilliseconds: global.timeoutMilliseconds
                )
            }
            try global.output.print(QueueRows.report(left))
        }

        /// Asks on standard error, so that standard output stays the answer's.
        private func confirm(_ queue: QueueInfo) throws(Failure) {
            let place = partition.map { "partition \($0)" } ?? "all partitions"
            let range = before.map { "the records below offset \($0)" } ?? "all records"
            try Question.ask(
                """
                This removes \(range) in \(place) of queue \(queue.name), which has \
                \(queue.records) records, \(HumanText.size(queue.bytes)). It cannot be undone.
                Type the queue's name to go on:\u{20}
                """,
                expecting: queue.name,
                otherwise: "nothing of queue \(queue.name) was removed"
            )
        }
    }
}
