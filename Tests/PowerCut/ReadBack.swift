internal import BlockingClient
internal import ReplayHarness
internal import WireProtocol

/// What a recovered broker shows: every queue, all its records, every group's cursors.
struct ReadBack {
    struct Cursor: Hashable {
        var queue: String
        var group: String
        var partition: Int
    }

    var queues: [String: QueueInfo] = [:]
    /// By queue, in the order in which it came.
    var seen: [String: [Seen]] = [:]
    var cursors: [Cursor: UInt64] = [:]
    /// Queues whose reading ended with `data-damaged`, and what the broker said.
    var damaged: [String: String] = [:]

    /// - Parameter allowsDamage: whether the filesystem may have lost what it had synced, so that
    ///   the broker can do no better than to say so.
    init(from place: BrokerPlace, allowsDamage: Bool) throws {
        let connection = try place.connect(clientName: "read-back")
        var after = ""
        while true {
            let list = try connection.request(
                .queueList,
                QueueListRequest(after: after),
                reply: QueueListReply.self
            )
            for queue in list.queues {
                let result = Result { () throws(ClientError) in
                    try read(queue.name, on: connection)
                }
                if allowsDamage, case .failure(.refused(let refused)) = result,
                    refused.status == .dataDamaged
                {
                    damaged[queue.name] = refused.message
                } else {
                    try result.get()
                }
            }
            guard list.more, let last = list.queues.last else { break }
            after = last.name
        }
        let groups = try connection.request(
            .groupList,
            GroupListRequest(),
            reply: GroupListReply.self
        )
        for group in groups.groups {
            let info = try connection.request(
                .groupDescribe,
                GroupDescribeRequest(queue: group.queue, group: group.name),
                reply: GroupInfo.self
            )
            for cursor in info.cursors {
                let key = Cursor(
                    queue: group.queue,
                    group: group.name,
                    partition: Int(cursor.index)
                )
                cursors[key] = cursor.ackFloor
            }
        }
    }

    private mutating func read(_ name: String, on connection: Connection) throws(ClientError) {
        var events: [Seen] = []
        func note(_ partition: UInt32, _ what: Seen.What, _ indexes: [UInt32: Int]) {
            guard let index = indexes[partition] else { return }
            events.append(Seen(reader: "afterwards", partition: index, what: what, seenAt: 0))
        }
        let described = try connection.request(
            .queueDescribe,
            QueueNameRequest(name: name),
            reply: QueueInfo.self
        )
        queues[name] = described
        let indexes = Dictionary(
            uniqueKeysWithValues: described.partitions.map { ($0.id, Int($0.index)) }
        )
        func take(_ event: SubscriptionEvent) {
            switch event {
            case .records(let batch):
                for entry in batch.entries {
                    note(
                        batch.partition,
                        .record(
                            offset: entry.offset,
                            epoch: batch.epoch,
                            payload: RecordSource.hash(entry.record)
                        ),
                        indexes
                    )
                }
            case .lost(let range):
                note(
                    range.partition,
                    .lost(
                        from: range.offsets.lowerBound,
                        to: range.offsets.upperBound,
                        epoch: range.epoch
                    ),
                    indexes
                )
            case .assigned, .acked, .ackRefused, .ended, .skipped: break
            }
        }
        let (_, summary) = try QueueReader.check(
            name,
            on: connection,
            histories: [],
            isWanted: { !Interrupt.isWanted },
            observe: take
        )
        queues[name] = summary.queue
        seen[name] = events
    }
}
