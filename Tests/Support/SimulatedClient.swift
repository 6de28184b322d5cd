internal import BrokerBasics
internal import BrokerShard
package import WireProtocol

/// A client in memory: says frames, keeps what it is told.
package final class SimulatedClient {
    package struct Delivered: Equatable, Sendable {
        package var partition: UInt32
        package var offset: UInt64
        package var epoch: UInt32
        package var producer: UInt64
        package var sequence: UInt64
        package var value: [UInt8]
        package var record: Record
    }
    package struct Lost: Equatable, Sendable {
        package var partition: UInt32
        package var range: Range<UInt64>
        package var epoch: UInt32
    }

    package let index: Int32
    /// The shard that it is connected to.
    package let number: Int
    private unowned let shard: SimulatedShard
    package var isPaused = false
    package var isClosed = false
    /// False: what is sent to it stays in flight, as when a program does not read its socket.
    package var isReading = true
    var heldSend: (UnsafeRawPointer, Int)?
    /// True while a send to it is in flight that it does not take.
    package var holdsSend: Bool { heldSend != nil }
    private var input: [UInt8] = []
    private var outbox: [UInt8] = []
    private var nextCorrelation: UInt64 = 1

    /// Control requests without an answer so far.
    package private(set) var unanswered: Set<UInt64> = []
    package var replies: [UInt64: (header: FrameHeader, body: [UInt8])] = [:]
    package var confirms: [ConfirmEntry] = []
    package var delivered: [Delivered] = []
    /// How many of `delivered` the history has taken in.
    package var notedDeliveries = 0
    package var lost: [Lost] = []
    /// Ranges that `skipped` pushes told of.
    package var skipped: [Skipped] = []
    /// Of the stored batches that were delivered, by partition.
    package var batchBytes: [UInt32: UInt64] = [:]
    package var pushes: [(header: FrameHeader, body: [UInt8])] = []
    package var badBatches = 0
    package var creditRecords: UInt64 = .max

    package init(index: Int32, shard: SimulatedShard, number: Int = 0) {
        self.index = index
        self.shard = shard
        self.number = number
    }

    package func send(_ bytes: [UInt8]) {
        guard !isClosed else { return }
        outbox += bytes
        flush()
    }
    var hasHeldBack: Bool { !isPaused && !isClosed && !outbox.isEmpty }

    package func flush() {
        guard hasHeldBack else { return }
        let bytes = outbox
        outbox = []
        shard.receive(index, bytes, shard: number)
    }

    /// - Returns: the correlation id.
    @discardableResult
    package func request(
        _ opcode: Opcode, _ message: some WireMessage, stream: UInt32 = 0, deadline: UInt32 = 0
    ) -> UInt64 {
        let correlation = nextCorrelation
        nextCorrelation += 1
        if opcode != .credit { unanswered.insert(correlation) }
        send(
            FrameHeader(
                opcode: opcode, correlation: correlation, stream: stream, argument: deadline
            ).frame(body: message.encoded))
        return correlation
    }

    package func hello(_ name: String) {
        request(
            .hello,
            HelloRequest(
                frameBytesMax: shard.settings.limits.frameBytesMax, clientName: name))
    }

    /// Asks and waits; `nil` when no reply came.
    package func ask<Reply: WireMessage>(
        _ opcode: Opcode, _ message: some WireMessage, stream: UInt32 = 0, reply: Reply.Type
    ) -> Reply? {
        let correlation = request(opcode, message, stream: stream)
        guard shard.run(until: { self.replies[correlation] != nil || self.isClosed }),
            let answer = replies[correlation], answer.header.status == 0
        else { return nil }
        return try? Reply(body: answer.body)
    }

    package func status(of correlation: UInt64) -> StatusCode? {
        replies[correlation].flatMap { StatusCode(rawValue: $0.header.status) }
    }

    @discardableResult
    package func publish(
        _ batch: [UInt8], partition: UInt32, deadline: UInt32 = 0, fields: [UInt8] = []
    ) -> UInt64 {
        let correlation = nextCorrelation
        nextCorrelation += 1
        send(
            FrameHeader(
                opcode: .publish, correlation: correlation, stream: partition, argument: deadline,
                tlvBytes: UInt16(fields.count)
            ).frame(body: fields + batch))
        return correlation
    }

    package func subscribe(
        _ queue: String, group: String = "", start: StartPosition = .start, stream: UInt32,
        credit: UInt64 = .max
    ) -> Assignment? {
        ask(
            .subscribe,
            SubscribeRequest(
                queue: queue, group: group, start: start, creditRecords: credit,
                creditBytes: .max), stream: stream, reply: Assignment.self)
    }

    func take(_ bytes: [UInt8]) {
        input += bytes
        var at = 0
        input.withUnsafeBytes { buffer in
            guard let base = buffer.baseAddress else { return }
            while buffer.count - at >= FrameHeader.byteCount {
                let frameBytes = Int(base.loadUnaligned(fromByteOffset: at, as: UInt32.self))
                guard frameBytes <= buffer.count - at else { break }
                do throws(FrameError) {
                    let header = try FrameHeader.decode(base + at)
                    frame(
                        header,
                        UnsafeRawBufferPointer(
                            start: base + at + FrameHeader.byteCount, count: header.bodyBytes))
                } catch {
                    badBatches += 1
                }
                at += frameBytes
            }
        }
        input.removeFirst(at)
    }

    private func frame(_ header: FrameHeader, _ body: UnsafeRawBufferPointer) {
        switch Opcode(rawValue: header.opcode) {
        case .confirm:
            var at = 0
            while let base = body.baseAddress, body.count - at >= ConfirmEntry.byteCount {
                confirms.append(ConfirmEntry(at: base + at))
                at += ConfirmEntry.byteCount
            }
        case .deliver: take(batches: body, partition: header.argument)
        case .skipped:
            if let push = try? Skipped(body: body) { skipped.append(push) } else { badBatches += 1 }
        default:
            if header.flags & FrameHeader.pushFlag != 0 {
                pushes.append((header, [UInt8](body)))
            } else {
                unanswered.remove(header.correlation)
                replies[header.correlation] = (header, [UInt8](body))
            }
        }
    }

    private func take(batches body: UnsafeRawBufferPointer, partition: UInt32) {
        guard let base = body.baseAddress else { return }
        var at = 0
        while at < body.count {
            guard
                let bytes = StoredBatch.verify(
                    base + at, available: body.count - at,
                    partition: PartitionID(rawValue: partition))
            else {
                badBatches += 1
                return
            }
            let batch = base + at
            let header = BatchHeader(at: batch + StoredBatch.stampBytes)
            let offset = StoredBatch.baseOffset(at: batch)
            let epoch = StoredBatch.epoch(at: batch)
            if header.isLost {
                lost.append(
                    Lost(
                        partition: partition,
                        range: offset..<StoredBatch.endOffset(at: batch), epoch: epoch))
            } else {
                var reader = RecordReader(batch: batch + StoredBatch.stampBytes)
                var place: UInt64 = 0
                while let record = reader.next() {
                    delivered.append(
                        Delivered(
                            partition: partition, offset: offset + place, epoch: epoch,
                            producer: header.producerID, sequence: header.baseSequence + place,
                            value: record.value, record: record))
                    place += 1
                }
            }
            batchBytes[partition, default: 0] += UInt64(bytes)
            at += bytes
        }
    }
}
