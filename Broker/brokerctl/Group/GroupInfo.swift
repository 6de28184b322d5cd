internal import ArgumentParser
internal import BlockingClient
internal import WireProtocol

extension Group {
    struct Info: ParsableCommand {
        static var configuration: CommandConfiguration {
            CommandConfiguration(
                abstract: "Show a group's place in each partition, and how far behind it is.",
                discussion: """
                    LAG AGE is the age of the oldest record that is not acked. STATE says what the \
                    delivery to the member waits for, SINCE how long it has been so. SKIPPED counts the \
                    offsets that retention or a purge removed before the group had acked them.

                    Examples:
                      brokerctl group info orders billing
                      brokerctl group info orders billing -o json | jq .lag_records
                    """
            )
        }

        @OptionGroup var global: GlobalOptions
        @Argument(help: "The queue's name.")
        var queue: String
        @Argument(help: "The group's name.")
        var group: String

        func run() throws {
            let connection = try global.connect()
            let info = try attempting("describe group \(group) of queue \(queue)") {
                () throws(ClientError) in
                try connection.request(
                    .groupDescribe,
                    GroupDescribeRequest(queue: queue, group: group),
                    reply: GroupInfo.self,
                    timeoutMilliseconds: global.timeoutMilliseconds
                )
            }
            try global.output.print(GroupRows.report(info))
        }
    }
}
