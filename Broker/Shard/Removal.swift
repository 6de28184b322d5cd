internal import BrokerBasics
internal import BrokerCore
internal import LogStorage
internal import WireProtocol

// How it works. Records are removed by moving a partition's start offset, which is a change of state like
// others: journalled, and taken into account at once by whoever asks. When it is durable, and not
// before, readers that stand below are told and go on at the start, the memory of what is gone is given
// back, and the files of segments that end at the start or below are removed. A crash in between leaves
// files that recovery does not refer to; it never leaves a start without its file.
//
//     change staged      durable                          file removed
//     -----|----------------|---- readers skip, trim ---------|----->
//     a crash: all is back  | the rest of the removal is done by recovery

extension ShardMachine {
    /// Removes a partition's records below `offset`, which is committed.
    ///
    /// - Returns: false when the journal is full for now; nothing happened then.
    mutating func moveStart(_ index: Int32, to offset: UInt64) -> Bool {
        let partition = state.partitions[index]
        invariant(
            offset <= partition.pointee.committed,
            "partition \(partition.pointee.id): start \(offset) above \(partition.pointee.committed)"
        )
        let skipping = groups(behind: offset, partition)
        let before = (records: partition.pointee.records, bytes: partition.pointee.log.bytes)
        guard change(.startMoved(partition: partition.pointee.id, offset: offset)) else {
            return false
        }
        counters.removedRecords &+= before.records - partition.pointee.records
        counters.removedBytes &+= before.bytes - min(before.bytes, partition.pointee.log.bytes)
        events += skipping
        startMoves.append(
            StartMove(
                group: journal.openGroup, partition: index, partitionID: partition.pointee.id))
        if faults.removedBeforeDurable { trim(index) }
        return true
    }

    /// What is said of the groups that lose records.
    private func groups(
        behind offset: UInt64, _ partition: UnsafeMutablePointer<Partition>
    ) -> [ShardEvent] {
        let index = Int(partition.pointee.index)
        return state.groups.values.filter { $0.queue == partition.pointee.queue }
            .sorted { $0.id < $1.id }.compactMap { group in
                let floor = group.cursors[index]
                guard floor < offset else { return nil }
                return .groupSkipped(
                    "group \(group.name) of queue \(state.queues[group.queue]?.name ?? ""): offsets "
                        + "\(floor) ..< \(offset) of partition \(index) were removed before they "
                        + "were acked")
            }
    }

    /// The change is durable: nobody reads below the start any more.
    mutating func startMoved(_ index: Int32) {
        let partition = state.partitions[index]
        let start = partition.pointee.log.startOffset
        var reader = partition.pointee.firstReader
        while reader >= 0 {
            let stands = readers[reader]
            let next = stands.pointee.nextInPartition
            if stands.pointee.nextOffset < start { skip(stands, partition.pointee.id, to: start) }
            reader = next
        }
        markDirty(index, partition)
        trim(index)
    }

    /// A reader that begins below the start, because it stood there before, is told.
    mutating func skipRemoved(
        _ reader: UnsafeMutablePointer<Reader>, _ partition: UnsafeMutablePointer<Partition>
    ) {
        let start = partition.pointee.log.startOffset
        if reader.pointee.nextOffset < start { skip(reader, partition.pointee.id, to: start) }
    }

    private mutating func skip(
        _ reader: UnsafeMutablePointer<Reader>, _ partition: UInt32, to start: UInt64
    ) {
        let subscription = subscriptions[reader.pointee.subscription]
        push(
            .skipped, stream: subscription.pointee.id,
            Skipped(partition: partition, from: reader.pointee.nextOffset, to: start),
            to: subscription.pointee.connection)
        counters.skippedRecords &+= start - reader.pointee.nextOffset
        reader.pointee.nextOffset = start
        reader.pointee.chunk = nil
        releaseColdRead(reader)
    }

    /// Gives up what lies below the start, and comes again when some of it is being written.
    mutating func trim(_ index: Int32) {
        if !isTrimmed(index), !untrimmed.contains(index) { untrimmed.append(index) }
    }

    mutating func trimAgain() {
        let waiting = untrimmed
        untrimmed = []
        for index in waiting where state.partitions.contains(index) {
            if !state.partitions[index].pointee.isDeleted { trim(index) }
        }
    }

    /// - Returns: false when something below the start is left.
    private mutating func isTrimmed(_ index: Int32) -> Bool {
        let partition = state.partitions[index]
        let start = partition.pointee.log.startOffset
        let isIdle =
            partition.pointee.file.state == .none
            || (partition.pointee.file.state == .ready
                && partition.pointee.file.writesInFlight == 0)
        let isEmpty = start == partition.pointee.log.endOffset
        if isEmpty, isIdle, !partition.pointee.log.isWriting { forgetTail(partition) }
        while let segment = partition.pointee.log.segments.first, segment.endOffset <= start {
            if partition.pointee.isActive(segment, term: writeBehind.term) {
                guard isIdle else { return false }
                closeFile(partition)
            }
            let isDeleted = partition.pointee.isDeleted
            _ = partition.pointee.log.dropSegment { chunk in
                if !isDeleted { writeBehind.listDurable(chunk) }
            }
            counters.removedSegments &+= 1
            checkpointer.removals.append(segment.file(partition: partition.pointee.id))
        }
        return !isEmpty || partition.pointee.log.oldest == nil
    }

    /// All of the partition is removed: its memory comes back at once, and the journal does not keep it.
    private mutating func forgetTail(_ partition: UnsafeMutablePointer<Partition>) {
        stopAwaiting(partition)
        writeBehind.unlistDurable(partition: partition.pointee.id)
        var reader = partition.pointee.firstReader
        while reader >= 0 {
            readers[reader].pointee.chunk = nil
            reader = readers[reader].pointee.nextInPartition
        }
        partition.pointee.log.dropAll(pool: &state.pool)
        wakesParked = true
    }

    /// Ends the active segment as it is, without a seal; the next chunk begins another.
    mutating func closeFile(_ partition: UnsafeMutablePointer<Partition>) {
        writeBehind.closes.append(partition.pointee.file.slot)
        partition.pointee.file = PartitionFile()
    }
}
