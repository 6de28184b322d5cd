internal import ArgumentParser
internal import BlockingClient
internal import WireProtocol

extension Storage {
    struct Info: ParsableCommand {
        static var configuration: CommandConfiguration {
            CommandConfiguration(
                abstract: "Show what lies on disk, by shard and partition, and what is damaged.",
                discussion: """
                    VERIFIED is when the last check of a partition's segments came to its end, by \
                    itself or by storage verify; what the tail holds is in no segment yet. With -o csv \
                    the partitions alone.

                    Examples:
                      brokerctl storage info
                      brokerctl storage info orders -o json
                    """
            )
        }

        @OptionGroup var global: GlobalOptions
        @Argument(help: "Only this queue.")
        var queue: String?

        func run() throws {
            let connection = try global.connect()
            let facts = try StorageFacts(of: queue ?? "", on: connection, global)
            try global.output.print(StorageRows.info(facts))
        }
    }
}

/// What lies on disk, from as many pages as it takes.
struct StorageFacts {
    private(set) var shards: [ShardStorage] = []
    private(set) var partitions: [PartitionStorage] = []

    init(of queue: String, on connection: Connection, _ global: GlobalOptions) throws {
        var from = StorageCursor()
        while true {
            let page = try Self.page(
                StorageDescribeRequest(queue: queue, from: from),
                on: connection,
                global
            )
            shards += page.shards
            for partition in page.partitions { add(partition) }
            // A page that does not come forward cannot be the way to a next one.
            guard page.more, page.next > from else { return }
            from = page.next
        }
    }

    /// The shards alone: how far their checks are.
    static func shards(on connection: Connection, _ global: GlobalOptions) throws -> [ShardStorage]
    {
        var shards: [ShardStorage] = []
        var from = StorageCursor()
        while true {
            let page = try page(
                StorageDescribeRequest(withPartitions: false, from: from),
                on: connection,
                global
            )
            shards += page.shards
            guard page.more, page.next > from else { return shards }
            from = page.next
        }
    }

    private static func page(
        _ request: StorageDescribeRequest,
        on connection: Connection,
        _ global: GlobalOptions
    ) throws -> StorageReply {
        let what = request.queue.isEmpty ? "storage" : "the storage of queue \(request.queue)"
        return try attempting("describe \(what)") { () throws(ClientError) in
            try connection.request(
                .storageDescribe,
                request,
                reply: StorageReply.self,
                timeoutMilliseconds: global.timeoutMilliseconds
            )
        }
    }

    /// A page may begin with more damages of the partition that the one before ended with.
    private mutating func add(_ partition: PartitionStorage) {
        if let last = partitions.indices.last, partitions[last].partition == partition.partition {
            partitions[last].damages += partition.damages
        } else {
            partitions.append(partition)
        }
    }
}
