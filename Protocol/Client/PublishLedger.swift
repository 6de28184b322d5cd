package import BrokerBasics
package import WireProtocol

/// What the server stored, of one batch.
package struct Confirm: Equatable, Sendable {
    /// Which batch: what `PublishLedger.add` returned for it.
    package var number: UInt64
    /// The partition's id, and its index within the queue.
    package var partition: UInt32
    package var index: Int
    /// The first record's; `nil` for a duplicate whose place the server no longer knows.
    package var offset: UInt64?
    package var count: Int
    package var epoch: UInt32
    /// The level that is reached, as its number on the wire.
    package var level: UInt8
    /// The records had been stored by an earlier attempt.
    package var isDuplicate: Bool
}

/// Who numbers the records of a partition.
package struct Producer: Equatable, Sendable {
    package var id: UInt64
    package var epoch: UInt16
    package init(id: UInt64, epoch: UInt16) {
        self.id = id
        self.epoch = epoch
    }
}

/// The bookkeeping of a publisher: which batches are where, without a socket or a clock.
///
/// Every batch of a partition is *queued*, then *sent*, and then confirmed, in order. When the
/// server refuses one in a way that a retry can mend, the partition stalls: nothing more is sent
/// until every answer that is still on its way has come, then everything unconfirmed is sent again
/// from the first, in order and with the same sequences. A server that did store some of it
/// confirms those as duplicates. After a lost connection the same happens at once.
///
/// Correlation ids count per partition, so that the confirms of a partition are runs although
/// batches of several are interleaved: `1 | partition index, 23 bits | count, 40 bits`.
package struct PublishLedger {
    package static let correlationMark: UInt64 = 1 << 63
    private static let countBits: UInt64 = 40
    private static let countMask: UInt64 = 1 << countBits - 1
    private static let partitionCountMax = 1 << 23

    /// What the caller agreed to when the server has lost what it knew about the producer.
    package struct Policy: Equatable, Sendable {
        /// Begin a new numbering when the server misses records that it had confirmed: right for
        /// a queue below `synced`, where a crash may take them. Cannot store anything twice: a
        /// server that misses a record has none behind it.
        package var renumberAfterLoss: Bool
        /// Begin a new numbering when the server does not know the producer any more. What was
        /// unconfirmed may then be stored twice.
        package var resendWhenUnknown: Bool
        package init(renumberAfterLoss: Bool = false, resendWhenUnknown: Bool = false) {
            self.renumberAfterLoss = renumberAfterLoss
            self.resendWhenUnknown = resendWhenUnknown
        }
    }

    /// What a refusal means for its partition.
    package enum Refusal: Equatable, Sendable {
        /// The unconfirmed are sent again, in order, when the time has come.
        case resend
        /// The same, after `renumber(_:as:)`.
        case renumber
        /// A retry cannot mend it.
        case fatal
    }

    private enum State {
        case queued
        case sent
        case refused
        case confirmed
    }

    private struct Batch {
        let number: UInt64
        let records: Int
        var bytes: [UInt8]
        var sequence: UInt64
        var correlation: UInt64 = 0
        var state = State.queued
    }

    private struct Stall {
        var until: MonotonicTime
        var needsProducer: Bool
    }

    private struct Partition {
        let id: UInt32
        var producer: Producer
        var nextSequence: UInt64 = 0
        var sentCount: UInt64 = 0
        /// `batches[first...]` is everything unconfirmed, `batches[next...]` is not sent yet.
        var batches: [Batch] = []
        var first = 0
        var next = 0
        /// How many were sent and have no answer.
        var awaited = 0
        var stall: Stall?

        /// Forgets what is confirmed at the front.
        mutating func trim() {
            while first < batches.count, batches[first].state == .confirmed { first += 1 }
            next = max(next, first)
            if first == batches.count || first > 1024 {
                batches.removeFirst(first)
                next -= first
                first = 0
            }
        }
    }

    private let policy: Policy
    private let deadlineMicroseconds: UInt32
    /// What stands between the header and the batch of every publish.
    private let optionalFields: [UInt8]
    private var partitions: [Partition]
    private var nextNumber: UInt64 = 0
    package private(set) var unconfirmedBatches = 0
    package private(set) var unconfirmedRecords = 0
    package private(set) var unconfirmedBytes = 0

    /// - Parameters:
    ///   - partitions: the ids of the queue's partitions, by index.
    ///   - deadlineMicroseconds: what every publish allows the server; 0: no limit.
    ///   - confirmLevel: the level at which a publish is to be confirmed; `nil`: the queue's.
    package init(
        partitions: [UInt32],
        producer: Producer,
        policy: Policy = .init(),
        deadlineMicroseconds: UInt32 = 0,
        confirmLevel: DurabilityLevel? = nil
    ) {
        self.policy = policy
        optionalFields =
            confirmLevel.map {
                OptionalFields.encode(
                    OptionalFields.confirmLevel, isMandatory: true, [$0.rawValue])
            } ?? []
        self.deadlineMicroseconds = deadlineMicroseconds
        self.partitions = partitions.prefix(Self.partitionCountMax).map {
            Partition(id: $0, producer: producer)
        }
    }

    package var partitionCount: Int { partitions.count }

    /// Numbers and queues a batch for partition `index`.
    ///
    /// - Returns: the batch's number: 0 for the first, one more for each.
    package mutating func add(_ builder: BatchBuilder, to index: Int) -> UInt64 {
        invariant(partitions.indices.contains(index), "no partition \(index)")
        let (producer, sequence) = (partitions[index].producer, partitions[index].nextSequence)
        let batch = Batch(
            number: nextNumber,
            records: builder.recordCount,
            bytes: builder.finish(
                producer: ProducerID(rawValue: producer.id),
                epoch: producer.epoch,
                sequence: sequence
            ),
            sequence: sequence
        )
        partitions[index].nextSequence += UInt64(batch.records)
        partitions[index].batches.append(batch)
        nextNumber += 1
        unconfirmedBatches += 1
        unconfirmedRecords += batch.records
        unconfirmedBytes += batch.bytes.count
        return batch.number
    }

    /// The next frame to send, or `nil` when nothing may be sent now.
    package mutating func nextFrame(now: MonotonicTime) -> [UInt8]? {
        for index in partitions.indices {
            if let frame = nextFrame(of: index, now: now) { return frame }
        }
        return nil
    }

    private mutating func nextFrame(of index: Int, now: MonotonicTime) -> [UInt8]? {
        if let stall = partitions[index].stall {
            guard partitions[index].awaited == 0, !stall.needsProducer, stall.until <= now else {
                return nil
            }
            requeue(index)
        }
        while partitions[index].next < partitions[index].batches.count {
            let next = partitions[index].next
            partitions[index].next += 1
            guard partitions[index].batches[next].state == .queued else { continue }
            let correlation =
                Self.correlationMark | UInt64(index) << Self.countBits
                | (partitions[index].sentCount & Self.countMask)
            partitions[index].sentCount += 1
            partitions[index].awaited += 1
            partitions[index].batches[next].correlation = correlation
            partitions[index].batches[next].state = .sent
            return FrameHeader(
                opcode: .publish,
                correlation: correlation,
                stream: partitions[index].id,
                argument: deadlineMicroseconds,
                tlvBytes: UInt16(optionalFields.count)
            ).frame(body: optionalFields + partitions[index].batches[next].bytes)
        }
        return nil
    }

    /// Everything unconfirmed of a partition is to be sent again.
    private mutating func requeue(_ index: Int) {
        partitions[index].stall = nil
        partitions[index].awaited = 0
        partitions[index].next = partitions[index].first
        for at in partitions[index].first..<partitions[index].batches.count
        where partitions[index].batches[at].state != .confirmed {
            partitions[index].batches[at].state = .queued
        }
    }

    /// Notes that no answer will come any more: the connection is another one.
    package mutating func reconnected() {
        for index in partitions.indices {
            let needsProducer = partitions[index].stall?.needsProducer ?? false
            requeue(index)
            if needsProducer {
                partitions[index].stall = Stall(until: .zero, needsProducer: true)
            }
        }
    }

    /// When a stalled partition may be tried again; `nil` when none waits for a time.
    package var retryTime: MonotonicTime? {
        partitions.compactMap { partition in
            partition.awaited == 0 && partition.first < partition.batches.count
                ? partition.stall?.until : nil
        }.min()
    }

    /// The partitions that wait for a new producer, and for no answer any more.
    package var partitionsToRenumber: [Int] {
        partitions.indices.filter {
            partitions[$0].awaited == 0 && partitions[$0].stall?.needsProducer == true
        }
    }

    /// Numbers everything unconfirmed of partition `index` anew, as `producer`, from 0.
    package mutating func renumber(_ index: Int, as producer: Producer) {
        partitions[index].producer = producer
        partitions[index].nextSequence = 0
        partitions[index].stall?.needsProducer = false
        for at in partitions[index].first..<partitions[index].batches.count
        where partitions[index].batches[at].state != .confirmed {
            let sequence = partitions[index].nextSequence
            partitions[index].batches[at].sequence = sequence
            partitions[index].nextSequence += UInt64(partitions[index].batches[at].records)
            partitions[index].batches[at].bytes.withUnsafeMutableBytes { buffer in
                guard let base = buffer.baseAddress else { return }
                let header = BatchHeader(at: UnsafeRawPointer(base))
                BatchBuilder.seal(
                    base,
                    batchBytes: buffer.count,
                    recordCount: header.recordCount,
                    producer: producer.id,
                    epoch: producer.epoch,
                    sequence: sequence,
                    timestamp: header.baseTimestamp
                )
            }
        }
    }

    /// Takes the body of a `confirm` frame.
    package mutating func confirm(_ body: [UInt8]) throws(ClientError) -> [Confirm] {
        guard body.count % ConfirmEntry.byteCount == 0 else {
            throw .protocolError("a confirm of \(body.count) bytes is not a list of entries")
        }
        let entries = body.withUnsafeBytes { buffer in
            stride(from: 0, to: buffer.count, by: ConfirmEntry.byteCount).compactMap { at in
                buffer.baseAddress.map { ConfirmEntry(at: $0 + at) }
            }
        }
        var confirms: [Confirm] = []
        for entry in entries { confirms += try confirm(entry) }
        return confirms
    }

    /// Takes one run: as many confirms as it covers batches.
    package mutating func confirm(_ entry: ConfirmEntry) throws(ClientError) -> [Confirm] {
        guard let (index, at) = find(entry.correlation), entry.requests > 0,
            partitions[index].id == entry.partition
        else {
            throw .protocolError(
                "a confirm of \(entry.requests) requests from \(entry.correlation) of partition "
                    + "\(entry.partition) matches nothing that was sent"
            )
        }
        // The whole run is checked before any of it counts.
        let end = at + Int(entry.requests)
        var records = 0
        var correlation = entry.correlation
        for place in at..<end {
            guard place < partitions[index].next,
                partitions[index].batches[place].state == .sent,
                partitions[index].batches[place].correlation == correlation
            else {
                throw .protocolError(
                    "a confirm of \(entry.requests) requests covers one that was not sent"
                )
            }
            records += partitions[index].batches[place].records
            correlation &+= 1
        }
        guard records == Int(entry.records) else {
            throw .protocolError(
                "a confirm says \(entry.records) records where \(records) were sent"
            )
        }
        let isPlaceKnown = entry.baseOffset != Offset.unknown.rawValue
        guard !isPlaceKnown || entry.baseOffset <= UInt64.max - UInt64(records) else {
            throw .protocolError("a confirm has base offset \(entry.baseOffset)")
        }

        var confirms: [Confirm] = []
        var offset = entry.baseOffset
        for batch in partitions[index].batches[at..<end] {
            confirms.append(
                Confirm(
                    number: batch.number,
                    partition: entry.partition,
                    index: index,
                    offset: isPlaceKnown ? offset : nil,
                    count: batch.records,
                    epoch: entry.epoch,
                    level: entry.level,
                    isDuplicate: entry.flags & ConfirmEntry.duplicateFlag != 0
                )
            )
            offset &+= UInt64(batch.records)
            unconfirmedBytes -= batch.bytes.count
        }
        for done in at..<end {
            partitions[index].batches[done].state = .confirmed
            partitions[index].batches[done].bytes = []
        }
        partitions[index].awaited -= Int(entry.requests)
        unconfirmedBatches -= Int(entry.requests)
        unconfirmedRecords -= records
        partitions[index].trim()
        return confirms
    }

    /// Takes the refusal of one publish.
    ///
    /// - Parameter backoffNanoseconds: the least time until the next attempt.
    /// - Returns: `nil` when `correlation` is not one of this ledger's that awaits an answer.
    package mutating func refuse(
        _ correlation: UInt64,
        _ refused: Refused,
        now: MonotonicTime,
        backoffNanoseconds: UInt64
    ) -> Refusal? {
        guard let (index, at) = find(correlation) else { return nil }
        partitions[index].batches[at].state = .refused
        partitions[index].awaited -= 1

        let isFirst = at == partitions[index].first
        let answer: Refusal
        switch refused.status {
        case .sequenceGap where !isFirst: answer = .resend
        // Everything before it is confirmed, so what the server misses it had promised to keep.
        case .sequenceGap: answer = policy.renumberAfterLoss ? .renumber : .fatal
        case .producerUnknown: answer = policy.resendWhenUnknown ? .renumber : .fatal
        default: answer = refused.mayRetry ? .resend : .fatal
        }
        guard answer != .fatal else { return .fatal }
        let wait = max(backoffNanoseconds, .milliseconds(UInt64(refused.retryAfterMilliseconds)))
        let earlier = partitions[index].stall
        partitions[index].stall = Stall(
            until: max(earlier?.until ?? .zero, now + wait),
            needsProducer: answer == .renumber || earlier?.needsProducer == true
        )
        return answer
    }

    /// The partition and the place of the batch that was sent as `correlation`.
    private func find(_ correlation: UInt64) -> (index: Int, at: Int)? {
        guard correlation & Self.correlationMark != 0 else { return nil }
        let index = Int((correlation & ~Self.correlationMark) >> Self.countBits)
        guard partitions.indices.contains(index) else { return nil }
        let partition = partitions[index]
        guard partition.first < partition.next else { return nil }
        // Ids are given in the order of the batches, so the place follows from the distance,
        // unless a confirm came out of order before.
        let distance = correlation &- partition.batches[partition.first].correlation
        if distance < UInt64(partition.next - partition.first) {
            let at = partition.first + Int(distance)
            if partition.batches[at].correlation == correlation,
                partition.batches[at].state == .sent
            {
                return (index, at)
            }
        }
        let found = partition.batches[partition.first..<partition.next].firstIndex {
            $0.correlation == correlation && $0.state == .sent
        }
        return found.map { (index, $0) }
    }
}
