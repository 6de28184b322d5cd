internal import BrokerBasics
internal import LogStorage

// A partition moves to another shard by its image: what a checkpoint would hold of it, when all of it
// lies in segments on stable storage. The segments stay where they are; who may write behind them is
// the shard that has the partition.
//
// Layout: queue u32 | the partition as in a checkpoint | [ProducerProgress] | [group u32, cursor u64,
// skipped u64], lists with a u32 count before them.

extension DurableState {
    /// A partition for another shard: with its producers' progress and its groups' cursors.
    ///
    /// - Returns: `nil` when there is no such partition here.
    public func image(ofPartition id: UInt32) -> [UInt8]? {
        guard let index = index(ofPartition: id) else { return nil }
        let partition = partitions[index]
        var builder = ByteBuilder()
        builder.put(partition.pointee.queue)
        Self.encode(partition, StorageFaults(), into: &builder)
        var progress = ByteBuilder()
        var count: UInt32 = 0
        producers.forEach { entry in
            guard entry.partition == id else { return }
            count += 1
            Self.encode(entry, into: &progress)
        }
        builder.put(count)
        progress.bytes.withUnsafeBytes { builder.put(raw: $0) }
        let readers = groups.values.filter { $0.queue == partition.pointee.queue }
            .sorted { $0.id < $1.id }
        builder.put(UInt32(readers.count))
        for group in readers {
            builder.put(group.id)
            builder.put(group.cursors[Int(partition.pointee.index)])
            builder.put(group.skipped[Int(partition.pointee.index)])
        }
        return builder.bytes
    }

    struct PartitionImage {
        var partition: Partition
        /// Where the log ended; all below is in segments.
        var end: UInt64
        var progress: [ProducerProgress] = []
        var cursors: [(group: UInt32, floor: UInt64, skipped: UInt64)] = []
    }

    private func read(_ image: [UInt8]) throws(ByteParserError) -> PartitionImage {
        var result: Result<PartitionImage, ByteParserError> = .failure(.invalid)
        image.withUnsafeBytes { bytes in
            var parser = ByteParser(bytes)
            do throws(ByteParserError) { result = .success(try read(&parser)) } catch {
                result = .failure(error)
            }
        }
        return try result.get()
    }

    private func read(_ parser: inout ByteParser) throws(ByteParserError) -> PartitionImage {
        guard let queue = queues[try parser.u32()] else { throw .invalid }
        let (partition, end) = try Self.partition(
            from: &parser, version: Self.snapshotVersion, queue: queue)
        guard Self.isLawful(partition, end: end) else { throw .invalid }
        var image = PartitionImage(partition: partition, end: end)
        for _ in 0..<(try parser.count(itemBytesMin: Self.progressBytesMin)) {
            image.progress.append(try Self.progress(from: &parser))
        }
        for _ in 0..<(try parser.count(itemBytesMin: 20)) {
            image.cursors.append((try parser.u32(), try parser.u64(), try parser.u64()))
        }
        guard
            image.cursors.allSatisfy({ $0.floor < Self.countMax && $0.skipped < Self.countMax })
        else { throw .invalid }
        return image
    }

    /// Whether an image can be taken in: its queue is known, and it says nothing impossible.
    public func canAdopt(_ image: [UInt8]) -> Bool { (try? read(image)) != nil }

    /// Takes a partition in. One that is here already is replaced: what is here is older.
    ///
    /// - Returns: its place; `nil` when the image can't be read.
    @discardableResult
    public mutating func adopt(_ image: [UInt8]) -> Int32? {
        guard let read = try? read(image) else { return nil }
        let id = read.partition.id
        release(partition: id)
        var partition = read.partition
        partition.commit(upTo: partition.log.endOffset)
        add(partition)
        for progress in read.progress {
            guard let producer = producers.producers[progress.producer] else { continue }
            guard producer.epoch == progress.epoch else {
                // Opened anew since: its sequences begin anew.
                producers.restore(
                    ProducerProgress(producer: producer.id, partition: id, epoch: producer.epoch))
                continue
            }
            producers.restore(progress)
        }
        for cursor in read.cursors {
            groups[cursor.group]?.place(
                partition: Int(partition.index), at: cursor.floor, skipped: cursor.skipped)
        }
        return index(ofPartition: id)
    }

    /// Gives a partition up: it is another shard's. Nobody reads or writes it here any more.
    public mutating func release(partition id: UInt32) {
        guard let index = giveUp(partition: id) else { return }
        forget(partition: index)
    }

    /// The same, where it is `forget` later: somebody still reads or writes it.
    ///
    /// - Returns: its place.
    public mutating func giveUp(partition id: UInt32) -> Int32? {
        guard let index = unlink(partition: id) else { return nil }
        producers.remove(partitions: [id])
        return index
    }
}
