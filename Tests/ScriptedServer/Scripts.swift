package import BlockingClient
internal import BrokerBasics
package import WireProtocol

/// The frames that scripts are made of.
package enum Scripts {
    package static let hello = HelloReply(
        version: 1,
        features: 0,
        frameBytesMax: FrameHeader.defaultFrameBytesMax,
        serverID: 7,
        serverEpoch: 1,
        shards: []
    )

    package static func reply(to frame: Frame, _ message: some WireMessage) -> [UInt8] {
        FrameHeader(
            opcode: frame.opcode ?? .error,
            flags: FrameHeader.replyFlag,
            correlation: frame.header.correlation,
            stream: frame.header.stream
        ).frame(body: message.encoded)
    }

    package static func refuse(
        _ frame: Frame,
        _ status: StatusCode,
        message: String = "no",
        retryAfter: UInt32 = 0
    ) -> [UInt8] {
        FrameHeader(
            opcode: .error,
            flags: FrameHeader.replyFlag | FrameHeader.errorFlag,
            correlation: frame.header.correlation,
            stream: frame.header.stream,
            status: status
        ).frame(
            body: Refusal(
                errorClass: status.errorClass.rawValue,
                retryAfterMilliseconds: retryAfter,
                message: message
            ).encoded
        )
    }

    package static func confirm(_ entries: [ConfirmEntry]) -> [UInt8] {
        var body = [UInt8](repeating: 0, count: entries.count * ConfirmEntry.byteCount)
        body.withUnsafeMutableBytes { buffer in
            guard let base = buffer.baseAddress else { return }
            for (index, entry) in entries.enumerated() {
                entry.encode(at: base + index * ConfirmEntry.byteCount)
            }
        }
        return FrameHeader(opcode: .confirm, flags: FrameHeader.pushFlag).frame(body: body)
    }

    package static func queue(
        _ name: String,
        ids: [UInt32],
        level: DurabilityLevel = .synced,
        committed: [UInt64] = []
    ) -> QueueInfo {
        let partitions = ids.enumerated().map { index, id in
            PartitionInfo(
                id: id,
                index: UInt32(index),
                shard: 0,
                epoch: 1,
                startOffset: 0,
                committedOffset: committed.indices.contains(index) ? committed[index] : 0,
                endOffset: committed.indices.contains(index) ? committed[index] : 0,
                bytes: 0,
                segmentOffset: 0,
                segments: 0,
                records: 0,
                lostRecords: 0
            )
        }
        return QueueInfo(
            id: 1,
            name: name,
            level: level.rawValue,
            partitionCount: UInt32(ids.count),
            createdAt: 1_723_120_496_000_000_000,
            labels: [],
            records: committed.reduce(0, +),
            bytes: 0,
            partitions: partitions
        )
    }

    /// A batch as the server stores it.
    package static func stored(
        _ batch: [UInt8],
        partition: UInt32,
        offset: UInt64,
        epoch: UInt32 = 1,
        appendTime: UInt64 = 5
    ) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: StoredBatch.stampBytes) + batch
        bytes.withUnsafeMutableBytes { buffer in
            guard let base = buffer.baseAddress else { return }
            StoredBatch.stamp(
                base,
                partition: PartitionID(rawValue: partition),
                baseOffset: offset,
                appendTime: appendTime,
                epoch: epoch,
                producerChecksum: UnsafeRawPointer(base).u32(StoredBatch.stampBytes + 4)
            )
        }
        return bytes
    }

    package static func stored(
        _ texts: [String],
        partition: UInt32,
        offset: UInt64,
        epoch: UInt32 = 1
    ) -> [UInt8] {
        stored(batch(texts).finish(), partition: partition, offset: offset, epoch: epoch)
    }

    package static func batch(_ texts: [String]) -> BatchBuilder {
        var builder = BatchBuilder()
        for text in texts { _ = builder.append(Record(value: Array(text.utf8), timestamp: 3)) }
        return builder
    }

    package static func deliver(
        stream: UInt32,
        partition: UInt32,
        delivered: UInt64,
        _ batches: [[UInt8]]
    ) -> [UInt8] {
        FrameHeader(
            opcode: .deliver,
            flags: FrameHeader.pushFlag,
            correlation: delivered,
            stream: stream,
            argument: partition
        ).frame(body: batches.flatMap { $0 })
    }

    /// Cuts bytes that are whole frames into frames; what cannot be read is left out.
    package static func frames(_ bytes: [UInt8]) -> [Frame] {
        var accumulator = FrameAccumulator()
        bytes.withUnsafeBytes { accumulator.append($0) }
        var frames: [Frame] = []
        while let frame = try? accumulator.next() { frames.append(frame) }
        return frames
    }
}
