internal import ArgumentParser
internal import BlockingClient
internal import WireProtocol

extension Queue {
    struct Move: ParsableCommand {
        static var configuration: CommandConfiguration {
            CommandConfiguration(
                abstract: "Move a partition to another shard.",
                discussion: """
                    The queue is in use meanwhile: publishes and acks of the partition are held back for \
                    some milliseconds, and go on at the new shard; subscriptions go on where they were. \
                    What goes wrong leaves it where it is. Prints where it was and is, and how long it \
                    was held back.

                    Examples:
                      brokerctl queue move orders/3 --to 1
                      brokerctl queue move 17 --to 0 -o json
                    """
            )
        }

        @OptionGroup var global: GlobalOptions
        @Argument(
            help: ArgumentHelp(
                "The partition: its queue and its index there, or its id.", valueName: "partition"))
        var partition: String
        @Option(help: ArgumentHelp("The shard where it is to live.", valueName: "shard"))
        var to: UInt16

        func run() throws {
            let connection = try global.connect()
            let id = try partitionID(connection)
            let moved = try attempting("move partition \(partition)") { () throws(ClientError) in
                try connection.request(
                    .queueMove,
                    QueueMoveRequest(partition: id, shard: to),
                    reply: QueueMoveReply.self,
                    timeoutMilliseconds: global.timeoutMilliseconds
                )
            }
            try global.output.print(QueueRows.report(moved, named: partition))
        }

        private func partitionID(_ connection: Connection) throws -> UInt32 {
            if let id = UInt32(partition) { return id }
            guard let slash = partition.lastIndex(of: "/"),
                let index = UInt32(partition[partition.index(after: slash)...])
            else {
                throw Failure.usage(
                    "move partition \(partition): name it QUEUE/INDEX, or by its id"
                )
            }
            let queue = try describeQueue(String(partition[..<slash]), on: connection, global)
            guard let found = queue.partitions.first(where: { $0.index == index }) else {
                throw Failure.usage(
                    "move partition \(partition): the queue has partitions 0 to "
                        + "\(queue.partitionCount - 1)"
                )
            }
            return found.id
        }
    }
}
