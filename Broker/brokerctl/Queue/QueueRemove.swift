internal import ArgumentParser
internal import BlockingClient
internal import WireProtocol

extension Queue {
    struct Remove: ParsableCommand {
        static var configuration: CommandConfiguration {
            CommandConfiguration(
                commandName: "rm",
                abstract: "Delete a queue with all its records and groups.",
                discussion: """
                    Shows what will be deleted and asks. Where there is no terminal to ask on, --yes \
                    is required.

                    Examples:
                      brokerctl queue rm orders-test
                      brokerctl queue rm orders-test --yes
                    """
            )
        }

        @OptionGroup var global: GlobalOptions
        @Argument(help: "The queue's name.")
        var name: String
        @Flag(help: "Do not ask.")
        var yes = false

        func run() throws {
            guard yes || ControlTool.streams.isTerminal else {
                throw Failure.usage(
                    "delete queue \(name): there is no terminal to ask on, so --yes is required"
                )
            }
            let connection = try global.connect()
            let queue = try describeQueue(name, on: connection, global)
            if !yes { try confirm(queue) }
            try attempting("delete queue \(name)") { () throws(ClientError) in
                _ = try connection.request(
                    .queueDelete,
                    QueueNameRequest(name: name),
                    reply: Empty.self,
                    timeoutMilliseconds: global.timeoutMilliseconds
                )
            }
            try global.output.print(
                Report(facts: [
                    (.init("name", "DELETED"), .text(queue.name)),
                    (.init("id"), .count(UInt64(queue.id))),
                    (.init("records"), .count(queue.records)),
                    (.init("bytes", "SIZE"), .bytes(queue.bytes)),
                ])
            )
        }

        private func confirm(_ queue: QueueInfo) throws(Failure) {
            try Question.ask(
                """
                This deletes queue \(queue.name): \(queue.partitionCount) partitions, \
                \(queue.records) records, \(HumanText.size(queue.bytes)), \
                \(QueueRows.level(queue.level)), and the progress of its groups. It cannot be \
                undone.
                Type the queue's name to go on:\u{20}
                """,
                expecting: queue.name,
                otherwise: "queue \(queue.name) was not deleted"
            )
        }
    }
}
