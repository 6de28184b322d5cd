internal import BrokerBasics
internal import BrokerCore
internal import LogStorage
internal import WireProtocol

// The hottest path: a publish is judged, stamped, put into the tail and the journal, and noted for
// its confirm. Either all of it happens or the frame parks and nothing did.
extension ShardMachine {
    @inline(__always)
    mutating func publish(
        _ connectionIndex: Int32, _ connection: UnsafeMutablePointer<Connection>,
        _ header: FrameHeader, _ frame: UnsafeRawPointer
    ) -> Outcome {
        let tlvBytes = Int(header.tlvBytes)
        let batch = frame + (FrameHeader.byteCount &+ tlvBytes)
        let batchBytes = header.bodyBytes &- tlvBytes
        guard let index = state.index(ofPartition: header.stream) else {
            return publishElsewhere(connectionIndex, header, frame)
        }
        let status = BatchHeader.check(batch, count: batchBytes)
        guard status == .ok, header.argument == 0, tlvBytes == 0, stage == .ready, !hasFailed,
            !holdsPublishes
        else {
            return publishSpecial(
                connectionIndex, connection, header, frame, batchStatus: status)
        }
        return append(connectionIndex, connection, header, batch, batchBytes, index, asked: nil)
    }

    @inline(never)
    private mutating func refuseLargeRecord(
        _ connectionIndex: Int32, _ header: FrameHeader, _ batch: UnsafeRawPointer
    ) -> Outcome? {
        guard
            let found = RecordReader.exceeding(
                batch, recordBytes: Int(limits.recordBytesMax),
                headersBytes: Int(limits.recordHeadersBytesMax))
        else { return nil }
        let part = found.isHeaders ? "headers" : "a length"
        return refusePublish(
            connectionIndex, header, .recordTooLarge,
            "record \(found.record) of the batch has \(part) of \(found.bytes) bytes; "
                + "\(found.isHeaders ? limits.recordHeadersBytesMax : limits.recordBytesMax) are possible"
        )
    }

    /// What is rare: optional fields, a deadline, a batch that is refused, a server that stops.
    @inline(never)
    private mutating func publishSpecial(
        _ connectionIndex: Int32, _ connection: UnsafeMutablePointer<Connection>,
        _ header: FrameHeader, _ frame: UnsafeRawPointer, batchStatus: StatusCode
    ) -> Outcome {
        let tlvBytes = Int(header.tlvBytes)
        let optional = UnsafeRawBufferPointer(
            start: frame + FrameHeader.byteCount, count: tlvBytes)
        let fields = OptionalFields.check(optional)
        guard fields == .ok else {
            return refusePublish(
                connectionIndex, header, fields, "the frame's optional fields: \(fields.name)")
        }
        guard batchStatus == .ok else {
            return refusePublish(
                connectionIndex, header, batchStatus,
                "the batch of \(header.bodyBytes - tlvBytes) bytes: \(batchStatus.name)")
        }
        guard stage == .ready else {
            return refusePublish(
                connectionIndex, header, .shuttingDown, "the server is stopping; nothing was stored"
            )
        }
        if let failure = counters.storageFailure {
            return refusePublish(
                connectionIndex, header, .storageFailed,
                "this shard stopped confirming: \(failure)")
        }
        let request = Request(
            connection: connectionIndex, header: header,
            body: UnsafeRawBufferPointer(start: nil, count: 0))
        if let fenced = fenced(request, partition: header.stream) { return fenced }
        if refusesPublishes {
            return refuseForSpace(request)
        }
        if header.argument != 0, isPastDeadline(connection, header) {
            return refusePublish(
                connectionIndex, header, .deadlineExceeded,
                "the deadline of \(header.argument) µs passed; nothing was stored")
        }
        guard let index = state.index(ofPartition: header.stream) else { return .done }
        var asked: DurabilityLevel?
        if let field = OptionalFields.find(OptionalFields.confirmLevel, in: optional) {
            let level = state.partitions[index].pointee.level
            asked = DurabilityLevel(rawValue: field[0])
            guard let asked, asked <= level else {
                return refusePublish(
                    connectionIndex, header, .levelNotOffered,
                    "a confirm at level \(field[0]) was asked for; the queue is \(level.name), and "
                        + "a publish may ask for less only")
            }
        }
        return append(
            connectionIndex, connection, header, frame + FrameHeader.byteCount + tlvBytes,
            header.bodyBytes - tlvBytes, index, asked: asked)
    }

    @inline(__always)
    private mutating func append(
        _ connectionIndex: Int32, _ connection: UnsafeMutablePointer<Connection>,
        _ header: FrameHeader, _ batch: UnsafeRawPointer, _ batchBytes: Int, _ index: Int32,
        asked: DurabilityLevel?
    ) -> Outcome {
        let partition = state.partitions[index]
        let producer = batch.u64(16)
        let records = UInt64(batch.u16(10))
        let sequence = batch.u64(24)
        let epoch = batch.u16(12)
        let progress = producer != 0 ? state.producers.find(producer, header.stream) : nil
        if producer != 0 {
            let verdict = state.producers.judge(
                progress, producer: producer, epoch: epoch, sequence: sequence, records: records,
                anyStart: partition.pointee.level != .synced)
            guard case .accept = verdict else {
                return notAccepted(
                    verdict, connectionIndex, connection, header, partition, records: records,
                    sequence: sequence, asked: asked)
            }
        }
        let storedBytes = StoredBatch.stampBytes &+ batchBytes
        guard storedBytes &+ FrameHeader.byteCount <= Int(limits.frameBytesMax) else {
            return refusePublish(
                connectionIndex, header, .batchTooLarge,
                "the batch of \(batchBytes) bytes would not fit a deliver frame of "
                    + "\(limits.frameBytesMax) bytes")
        }
        // A batch that is smaller than the limits holds no record that is larger.
        if batchBytes > limits.recordBytesChecked,
            let refused = refuseLargeRecord(
                connectionIndex, header, batch)
        {
            return refused
        }
        let baseOffset = partition.pointee.log.endOffset
        let level = partition.pointee.level
        if level != .synced {
            guard reserveOffsets(partition, upTo: baseOffset &+ records) else { return .park }
        }
        guard connection.pointee.waiting.count < limits.confirmRunsMax,
            connection.pointee.waitingWritten.count < limits.confirmRunsMax,
            connection.pointee.immediate.count < limits.confirmRunsMax, pace(storedBytes)
        else {
            return .park
        }
        guard
            let room = partition.pointee.log.reserve(
                storedBytes: storedBytes, pool: &state.pool, now: now.monotonic)
        else {
            evictIfNeeded(force: true)
            unpace(storedBytes)
            return .park
        }
        let appendTime = max(now.wall.nanoseconds, partition.pointee.log.lastAppendTime)
        var journalPosition = UInt64.max
        var group: UInt64 = 0
        if level != .memory {
            guard
                let entry = journal.stage(
                    .batch, object: header.stream, payloadBytes: storedBytes,
                    reserve: publishReserve, synced: level == .synced)
            else {
                if !journal.hasRoom(payloadBytes: storedBytes, reserve: publishReserve) {
                    checkpointer.isDue = true
                    checkpointer.isPressed = true
                }
                unpace(storedBytes)
                return .park
            }
            journalPosition = journal.openPosition
            group = journal.openGroup
            writeStored(
                entry, batch, batchBytes, header.stream, baseOffset, appendTime,
                partition.pointee.log.epoch)
            if level == .synced {
                syncedNotes.note(partition, index, end: baseOffset &+ records, group: group)
            } else {
                writtenNotes.note(partition, index, end: baseOffset &+ records, group: group)
            }
        }
        writeStored(
            room, batch, batchBytes, header.stream, baseOffset, appendTime,
            partition.pointee.log.epoch)
        partition.pointee.log.appended(
            storedBytes: storedBytes, end: baseOffset &+ records, appendTime: appendTime,
            journalPosition: journalPosition)
        if partition.pointee.log.hasSealedChunk { queueForWriting(index) }
        if producer != 0 {
            (progress ?? state.producers.insert(producer, header.stream, epoch: epoch)).pointee
                .stored(sequence: sequence, count: records, offset: baseOffset, at: appendTime)
        }
        partition.pointee.publishedRecords &+= records
        partition.pointee.publishedBytes &+= UInt64(storedBytes)
        counters.publishedRecords &+= records
        counters.publishedBytes &+= UInt64(storedBytes)
        if level == .memory {
            partition.pointee.commit(upTo: baseOffset &+ records)
            markDirty(index, partition)
        }
        answer(
            connectionIndex, connection,
            ConfirmEntry(
                correlation: header.correlation, requests: 1, partition: header.stream,
                epoch: partition.pointee.log.epoch, records: UInt32(records),
                baseOffset: baseOffset, level: level.rawValue, flags: 0),
            group: group, asked: asked)
        return .done
    }

    @inline(__always)
    private func writeStored(
        _ room: UnsafeMutableRawPointer, _ batch: UnsafeRawPointer, _ batchBytes: Int,
        _ partition: UInt32, _ baseOffset: UInt64, _ appendTime: UInt64, _ epoch: UInt32
    ) {
        StoredBatch.stamp(
            room, partition: PartitionID(rawValue: partition), baseOffset: baseOffset,
            appendTime: appendTime, epoch: epoch, producerChecksum: batch.u32(4))
        (room + StoredBatch.stampBytes).copyMemory(from: batch, byteCount: batchBytes)
    }

    /// Queues the confirm of what `group` holds: for the end of this cycle, or for when that is written
    /// or on stable storage. A connection with `confirmRunsMax` runs waiting parks before it gets here.
    ///
    /// - Parameters:
    ///   - group: `nil` when everything staged is on stable storage.
    ///   - asked: the level that is enough for the producer. It moves the confirm, never the path or
    ///     what readers see. Where a crash could still give the offset to another record, the confirm
    ///     does not tell it.
    @inline(__always)
    mutating func answer(
        _ index: Int32, _ connection: UnsafeMutablePointer<Connection>, _ entry: ConfirmEntry,
        group: UInt64?, asked: DurabilityLevel?
    ) {
        var entry = entry
        // A group with a synced batch is written and synced in one: there is no level between.
        if asked == .memory, group != nil, entry.level != DurabilityLevel.memory.rawValue {
            entry.level = DurabilityLevel.memory.rawValue
            entry.baseOffset = Offset.unknown.rawValue
            counters.downgradedRecords &+= UInt64(entry.records)
        }
        guard let group, entry.level != DurabilityLevel.memory.rawValue else {
            _ = connection.pointee.immediate.add(
                PendingAnswer(entry: entry, group: 0, kind: .confirm), runsMax: .max)
            if !connection.pointee.isImmediateListed {
                connection.pointee.isImmediateListed = true
                immediateList.append(index)
            }
            return
        }
        let answer = PendingAnswer(entry: entry, group: group, kind: .confirm)
        if entry.level == DurabilityLevel.synced.rawValue {
            _ = connection.pointee.waiting.add(answer, runsMax: .max)
        } else {
            _ = connection.pointee.waitingWritten.add(answer, runsMax: .max)
        }
        if !connection.pointee.isWaitingListed {
            connection.pointee.isWaitingListed = true
            waitingList.append(index)
        }
    }

    /// Offsets of a partition that a crash may shorten are given out below a durable reservation only,
    /// so that none is given twice. The next reservation is staged when half of one is used.
    @inline(__always)
    private mutating func reserveOffsets(
        _ partition: UnsafeMutablePointer<Partition>, upTo end: UInt64
    ) -> Bool {
        let step = limits.reservationStep
        if end &+ step / 2 > partition.pointee.reservingEnd {
            guard !partition.pointee.lostIsUnjournalled || journalLost(partition) else {
                return false
            }
            let next = end &+ step
            if change(.reservation(partition: partition.pointee.id, end: next)) {
                partition.pointee.reservingEnd = next
                reservations.append(
                    Reservation(
                        group: journal.openGroup, partitionID: partition.pointee.id, end: next))
            }
        }
        return end <= partition.pointee.reservedEnd
    }

    /// A `written` partition's batches lie in the journal behind each other, without a gap: the range
    /// that recovery declared lost goes in before anything behind it. Recovery left nothing of the
    /// reservation, so the first publish comes by here.
    @inline(never)
    private mutating func journalLost(
        _ partition: UnsafeMutablePointer<Partition>
    ) -> Bool {
        guard let range = partition.pointee.declaredLost.last else { return true }
        // The same bytes as in the tail: nothing was appended since.
        let lost = StoredBatch.lost(
            range, partition: PartitionID(rawValue: partition.pointee.id),
            epoch: partition.pointee.log.epoch, appendTime: partition.pointee.log.lastAppendTime)
        guard
            let room = journal.stage(
                .batch, object: partition.pointee.id, payloadBytes: lost.count, reserve: 0)
        else { return false }
        lost.withUnsafeBytes { bytes in
            UnsafeMutableRawBufferPointer(start: room, count: lost.count).copyMemory(from: bytes)
        }
        if let chunk = partition.pointee.log.chunk(holding: range.lowerBound) {
            chunk.pointee.journalPin = min(chunk.pointee.journalPin, journal.openPosition)
        }
        partition.pointee.lostIsUnjournalled = false
        return true
    }

    /// Falls to the rate of write-behind before journal or tail is full. See `WriteBehind.pace`.
    @inline(__always)
    private mutating func pace(_ bytes: Int) -> Bool {
        guard isUnderPressure else { return true }
        return writeBehind.takePace(bytes)
    }

    /// What `pace` took was not used.
    @inline(never)
    private mutating func unpace(_ bytes: Int) {
        if isUnderPressure { writeBehind.givePace(bytes) }
    }

    /// True when so much of the journal waits for write-behind and a checkpoint.
    var isUnderPressure: Bool { journal.usedBytes > marks.pressureUse }

    @inline(never)
    private mutating func notAccepted(
        _ verdict: ProducerTable.Verdict, _ index: Int32,
        _ connection: UnsafeMutablePointer<Connection>, _ header: FrameHeader,
        _ partition: UnsafeMutablePointer<Partition>, records: UInt64, sequence: UInt64,
        asked: DurabilityLevel?
    ) -> Outcome {
        let name = "partition \(header.stream)"
        switch verdict {
        case .accept: return .done
        case .duplicate(let offset):
            counters.duplicateBatches += 1
            // Stored, but perhaps not durable yet: the confirm waits for what is staged now, and that
            // may be content with less.
            if partition.pointee.level == .synced, journal.isDirty { journal.requireSync() }
            answer(
                index, connection,
                ConfirmEntry(
                    correlation: header.correlation, requests: 1, partition: header.stream,
                    epoch: partition.pointee.log.epoch, records: UInt32(records),
                    baseOffset: offset ?? Offset.unknown.rawValue,
                    level: partition.pointee.level.rawValue, flags: ConfirmEntry.duplicateFlag),
                group: journal.isDirty ? journal.lastStagedGroup : nil, asked: asked)
            return .done
        case .gap(let expected):
            return refusePublish(
                index, header, .sequenceGap,
                "sequence \(sequence) for \(name), but \(expected) is next; resend from there")
        case .overlap(let expected):
            return refusePublish(
                index, header, .batchInvalid,
                "sequences \(sequence) ..< \(sequence + records) for \(name) are stored below "
                    + "\(expected) only; a retry repeats its batch as it was")
        case .fenced:
            return refusePublish(
                index, header, .producerFenced, "another epoch of this producer is at work")
        case .unknown:
            return refusePublish(
                index, header, .producerUnknown,
                "this producer id is expired or was never opened: whether the batch was stored "
                    + "before can't be known")
        }
    }

    @inline(never)
    private mutating func refusePublish(
        _ index: Int32, _ header: FrameHeader, _ status: StatusCode, _ message: String
    ) -> Outcome {
        refuse(
            Request(
                connection: index, header: header,
                body: UnsafeRawBufferPointer(start: nil, count: 0)),
            status, message)
    }
}
