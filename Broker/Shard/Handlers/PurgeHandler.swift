internal import BrokerBasics
internal import BrokerCore
internal import LogStorage
internal import WireProtocol

extension ShardMachine {
    /// Removes what is committed and lies below the offset that is named. Tried again after a wait for
    /// room, it finds the partitions that it has done, and goes on.
    mutating func queuePurge(_ request: Request) -> Outcome {
        guard let purge = try? QueuePurgeRequest(body: request.body) else {
            return refuse(request, .badRequest, "the body of queue-purge can't be read")
        }
        guard let queue = state.queue(named: purge.name) else {
            return refuse(request, .queueNotFound, "no queue \(purge.name)")
        }
        let isAll = purge.partition == PartitionID.all.rawValue
        guard isAll || queue.partitions.contains(purge.partition) else {
            return refuse(
                request, .partitionNotFound,
                "queue \(queue.name) has no partition \(purge.partition)")
        }
        if let refused = refuseTooLarge(request, info(of: queue, withPartitions: true)) {
            return refused
        }
        for id in queue.partitions where isAll || id == purge.partition {
            if let place = state.index(ofPartition: id), state.partitions[place].pointee.isMoving {
                return refuse(
                    request, .busy, "partition \(id) is on its way to another shard; try again")
            }
        }
        for id in queue.partitions where isAll || id == purge.partition {
            guard let place = state.index(ofPartition: id) else { continue }
            let partition = state.partitions[place]
            let start = min(purge.before, partition.pointee.committed)
            guard start > partition.pointee.log.startOffset else { continue }
            guard moveStart(place, to: start) else { return .park }
        }
        return reply(request, info(of: queue, withPartitions: true))
    }
}
