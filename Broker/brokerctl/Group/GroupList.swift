internal import ArgumentParser
internal import BlockingClient
internal import WireProtocol

extension Group {
    struct List: ParsableCommand {
        static var configuration: CommandConfiguration {
            CommandConfiguration(
                commandName: "ls",
                abstract: "List the groups of a queue, or of all.",
                discussion: """
                    LAG is in records: what may be delivered and is not acked.

                    Examples:
                      brokerctl group ls
                      brokerctl group ls orders -o json
                    """
            )
        }

        @OptionGroup var global: GlobalOptions
        @Argument(help: "The queue's name; all queues without it.")
        var queue: String = ""

        func run() throws {
            let connection = try global.connect()
            var groups: [GroupInfo] = []
            while true {
                let after = groups.last.map { "\($0.queue)/\($0.name)" } ?? ""
                let page = try attempting("list groups") { () throws(ClientError) in
                    try connection.request(
                        .groupList,
                        GroupListRequest(queue: queue, after: after),
                        reply: GroupListReply.self,
                        timeoutMilliseconds: global.timeoutMilliseconds
                    )
                }
                groups += page.groups
                // An empty page cannot be the way to a next one.
                guard page.more, !page.groups.isEmpty else { break }
            }
            try global.output.print(GroupRows.list(groups))
        }
    }
}
