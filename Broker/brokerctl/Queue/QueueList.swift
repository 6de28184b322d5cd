internal import ArgumentParser
internal import BlockingClient
internal import WireProtocol

extension Queue {
    struct List: ParsableCommand {
        static var configuration: CommandConfiguration {
            CommandConfiguration(
                commandName: "ls",
                abstract: "List the queues, by name.",
                discussion: """
                    Examples:
                      brokerctl queue ls
                      brokerctl queue ls -o csv > queues.csv
                    """
            )
        }

        @OptionGroup var global: GlobalOptions

        func run() throws {
            let connection = try global.connect()
            var queues: [QueueInfo] = []
            while true {
                let after = queues.last?.name ?? ""
                let page = try attempting("list queues") { () throws(ClientError) in
                    try connection.request(
                        .queueList,
                        QueueListRequest(after: after),
                        reply: QueueListReply.self,
                        timeoutMilliseconds: global.timeoutMilliseconds
                    )
                }
                queues += page.queues
                // An empty page cannot be the way to a next one.
                guard page.more, !page.queues.isEmpty else { break }
            }
            try global.output.print(QueueRows.list(queues))
        }
    }
}
