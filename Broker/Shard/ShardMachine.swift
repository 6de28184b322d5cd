package import BrokerBasics
package import BrokerCore
package import LogStorage
package import WireProtocol

// How it works. Inputs (bytes received, sends and storage operations completed, connections opened
// and closed) change state and mark what is dirty. Once per duty cycle `advance` draws the
// conclusions in a fixed order: what became durable is committed, committed records are delivered,
// confirms follow, then the slow work (write-behind, checkpoint, timers) takes a step. `emit` turns
// what is pending into effects until the buffer is full; the rest comes in the next cycle.
//
// What leaves is only what may: a delivery waits for `committed`, an answer for its journal group.
// What does not fit parks: the connection's input is kept, its socket is not read, and it goes on
// when there is room.

/// One shard: its partitions, groups and connections, with no kernel. Input and `now` go in, effects
/// come out. Used by one thread.
package struct ShardMachine: ~Copyable {
    package let limits: ShardLimits
    package let identity: Identity
    package let addresses: [ShardAddress]
    package let faults: StorageFaults
    /// This run of the machine below: what is written survives as long as it lasts.
    let boot: UInt64

    package var now: Instant
    package var state: DurableState
    package var journal: Journal
    package var connections: StablePool<Connection>
    package var subscriptions: StablePool<Subscription>
    package var readers: StablePool<Reader>
    package var sendPool: SendPool
    package var writeBehind: WriteBehind
    var sweep: JournalSweep
    package var checkpointer: Checkpointer
    package var coldReader: ColdReader
    package var peers: Peers
    /// Of them, those that are sockets.
    package var socketCount = 0
    /// Memory of what was received from them and is not worked on.
    package var inputMemoryBytes = 0
    /// A listener found no descriptor, and none has accepted since.
    private var isAcceptStopped = false
    /// The next connection that `visitConnections` looks at.
    var visitedConnection = 0
    package var scrubber = Scrubber()
    var quarantine = Quarantine()
    package var backup = BackupHold()
    /// On shard 0: what was asked for.
    var backupJob: BackupJob?
    /// The operator has said where images go.
    package var offersBackups = false

    /// What journal groups commit when they are on stable storage, and when they are written.
    var syncedNotes = CommitNotes()
    var writtenNotes = CommitNotes()
    /// Offsets of a partition that may be given out when the group is durable.
    struct Reservation {
        var group: UInt64
        var partitionID: UInt32
        var end: UInt64
    }
    var reservations: Fifo<Reservation>
    /// A start offset that moved, and waits for its group.
    struct StartMove {
        var group: UInt64
        var partition: Int32
        var partitionID: UInt32
    }
    var startMoves: Fifo<StartMove>
    /// Partitions with something below their start that could not be given up yet.
    var untrimmed: [Int32] = []
    var retention: RetentionHand
    var disk = DiskGauge()
    var hold = SpaceHold()
    var pace = DiskPace()
    var reserve = SpaceReserve()
    /// What `diskLevel` says, for publishes.
    var refusesPublishes = false { didSet { updateHold() } }
    /// Publishes are looked at one by one: there is no room, or one partition is on its way elsewhere.
    var holdsPublishes = false
    /// Control replies that wait for a group.
    struct DeferredReply {
        var group: UInt64
        var connection: Int32
        var generation: UInt32
        var frame: [UInt8]

        var header: FrameHeader? {
            frame.withUnsafeBytes { bytes in
                bytes.baseAddress.flatMap { try? FrameHeader.decode($0) }
            }
        }
    }
    var deferred: Fifo<DeferredReply>
    /// Frames for connections without room for them now.
    var blocked: Fifo<DeferredReply>
    var blockedPass: UInt64 = 0
    var wakesBlocked = false
    /// A subscription that can't go on.
    struct Ending {
        var subscription: Int32
        var status: StatusCode
        var message: String
    }
    var endings: [Ending] = []
    /// The last group with a change that a control reply may show.
    var lastChangeGroup: UInt64?
    var appliedGroup: UInt64 = 0
    private var writtenGroup: UInt64 = 0

    // Work lists; an item's flag tells whether it is in its list.
    var dirtyPartitions: Fifo<Int32>
    var sendList: Fifo<Int32>
    var immediateList: Fifo<Int32>
    var waitingList: Fifo<Int32>
    var dispatchList: Fifo<Int32>
    /// Connections whose readers found no memory for a send buffer, and have nothing in flight whose
    /// completion would wake them.
    var starved: Fifo<Int32>
    var wakesStarved = false
    var parkedList: Fifo<Int32>
    var flowList: Fifo<Int32>
    var closeList: Fifo<Int32>
    var dyingPartitions: [Int32] = []
    var wakesParked = false

    var nextGeneration: UInt32 = 1
    var lastHousekeeping = MonotonicTime.zero
    var lastFlushScan = MonotonicTime.zero
    var expiry = ProducerExpiry()
    var sealDue = MonotonicTime.never
    package internal(set) var stage = Stage.starting
    package var counters = ShardCounters()
    /// What the loop says of host and settings, for `server describe`.
    package var hostFacts: [Pair] = []
    var stopDeadline = MonotonicTime.never
    private var failureIsUntold = false
    /// Lines for the log that the loop takes out.
    package var events: [ShardEvent] = []

    package enum Stage: UInt8, Sendable {
        /// The first checkpoint of this term is being written; nobody is served.
        case starting
        case ready
        /// No new work; what is promised is brought to disk.
        case stopping
        case stopped
    }

    package init(
        recovered: consuming RecoveredShard, limits: ShardLimits, addresses: [ShardAddress],
        shards: Int = 1, now: Instant, faults: StorageFaults = StorageFaults()
    ) {
        self.limits = limits
        self.addresses = addresses
        self.faults = faults
        self.now = now
        identity = recovered.identity
        let position = recovered.position
        let term = position.term + 1
        boot = position.boot
        journal = Journal(
            geometry: recovered.identity.geometry, limits: limits.journal,
            journalID: recovered.identity.journalID, term: term, position: position.journal,
            recycleBound: position.replayFrom)
        journal.faults = faults
        // Each other shard may have a link for each of its clients, and one of its own.
        let linksMax = shards > 1 ? (limits.connectionsMax + 1) * shards : 0
        connections = StablePool(capacityMax: limits.connectionsMax + linksMax)
        peers = Peers(
            own: recovered.state.shard, count: shards, turn: recovered.turn, linksMax: linksMax)
        subscriptions = StablePool(capacityMax: 1 << 20)
        readers = StablePool(capacityMax: 1 << 22)
        sendPool = SendPool(
            bufferBytes: limits.sendBytesMax, budgetBytes: limits.sendMemoryBytesMax)
        writeBehind = WriteBehind(
            firstSlot: FileSlot(recovered.identity.geometry.fileCount), slotCount: limits.filesMax,
            term: term)
        sweep = JournalSweep(position: position.journal)
        checkpointer = Checkpointer(
            term: term, termStart: position.journal, sequence: recovered.checkpointSequence,
            lastPosition: position.journal, now: now.monotonic,
            slot: writeBehind.takeSlotForGood())
        coldReader = ColdReader(limits: limits)
        reservations = Fifo(capacity: 64)
        startMoves = Fifo(capacity: 64)
        retention = RetentionHand(lastWall: position.wallTime, now: now)
        deferred = Fifo(capacity: 64)
        blocked = Fifo(capacity: 64)
        dirtyPartitions = Fifo(capacity: 1024)
        sendList = Fifo(capacity: 256)
        immediateList = Fifo(capacity: 256)
        waitingList = Fifo(capacity: 256)
        dispatchList = Fifo(capacity: 256)
        starved = Fifo(capacity: 256)
        parkedList = Fifo(capacity: 256)
        flowList = Fifo(capacity: 256)
        closeList = Fifo(capacity: 256)
        checkpointer.removals = recovered.orphans
        writeBehind.lastWall = position.wallTime
        state = recovered.takeState()
        checkpointer.isDue = true
        // What recovery put into the tails and is complete is written behind at once.
        for index in state.partitions.indices { queueForWriting(index) }
    }

    deinit {
        for index in connections.indices {
            connections[index].pointee.send.free()
            connections[index].pointee.release()
        }
        coldReader.free()
        checkpointer.free()
        writeBehind.free()
    }

    package var isReady: Bool { stage == .ready }
    package var term: UInt64 { journal.term }

    // MARK: inputs

    /// The two clocks of this duty cycle. Wall time may step back; a partition's append times do not
    /// follow it.
    @inline(__always)
    package mutating func begin(now: Instant) { self.now = now }

    /// - Returns: the connection's number, or `nil` when there are `connectionsMax`.
    package mutating func opened(peer: String) -> Int32? {
        if isAcceptStopped {
            isAcceptStopped = false
            events.append(.acceptResumed)
        }
        guard stage == .ready else { return nil }
        let generation = nextGeneration
        guard socketCount < limits.connectionsMax,
            let index = connections.insert(
                Connection(
                    generation: generation, openedAt: now.monotonic, peer: peer,
                    frameBytesMax: limits.frameBytesMax))
        else {
            counters.connectionsRefused += 1
            return nil
        }
        nextGeneration &+= 1
        socketCount += 1
        counters.connectionsOpened += 1
        return index
    }

    /// What a peer is told that `opened` had no number for, before its socket is closed.
    package var refusalOfConnection: [UInt8] {
        let status: StatusCode = stage == .ready ? .busy : .shuttingDown
        let message =
            stage == .ready
            ? "this shard has \(limits.connectionsMax) connections, and takes no more"
            : "the server is stopping"
        let refusal = Refusal(
            errorClass: status.errorClass.rawValue, retryAfterMilliseconds: 1000, message: message)
        return FrameHeader(
            opcode: .error, flags: FrameHeader.pushFlag | FrameHeader.errorFlag, status: status
        ).frame(body: refusal.encoded)
    }

    /// A listener found no descriptor, or no memory, for a connection.
    package mutating func acceptFailed(errno: Int32) {
        if !isAcceptStopped { events.append(.acceptStopped(errno: errno)) }
        isAcceptStopped = true
        counters.acceptFailures &+= 1
    }

    /// The peer is gone, or the socket failed.
    package mutating func ended(_ index: Int32) {
        guard connections.contains(index) else { return }
        close(index, reason: .peer)
    }

    /// Nothing of the connection is in flight any more; its number may be used again.
    package mutating func released(_ index: Int32) {
        guard connections.contains(index) else { return }
        let connection = connections[index]
        dropSubscriptions(of: index)
        if connection.pointee.relay == nil { socketCount -= 1 }
        connection.pointee.send.release(pool: &sendPool)
        wakesStarved = true
        let before = connection.pointee.inputCapacity
        connection.pointee.release()
        noteInput(connection, before: before)
        connections.remove(index)
    }

    /// A send went out: bytes, or a negative errno.
    ///
    /// - Returns: the rest to send, if it was short.
    package mutating func sent(_ index: Int32, result: Int32) -> (UnsafeRawPointer, Int)? {
        guard connections.contains(index) else { return nil }
        let connection = connections[index]
        guard result > 0 else {
            close(index, reason: .peer)
            return nil
        }
        connection.pointee.sentBytes &+= UInt64(result)
        counters.sentBytes &+= UInt64(result)
        if connection.pointee.state == .draining {
            connection.pointee.drainingSince = now.monotonic
        }
        if let rest = connection.pointee.send.sent(Int(result), pool: &sendPool) { return rest }
        wakesStarved = true
        if connection.pointee.send.activeCount > 0 { listForSending(index) }
        if connection.pointee.blockedCount > 0 { wakesBlocked = true }
        if connection.pointee.state == .draining, connection.pointee.send.isEmpty,
            connection.pointee.blockedCount == 0
        {
            close(index, reason: .drained)
        }
        if connection.pointee.isDispatchBlocked, !connection.pointee.isDispatchListed {
            connection.pointee.isDispatchListed = true
            dispatchList.append(index)
        }
        if connection.pointee.isParked { wakesParked = true }
        if connection.pointee.firstUplink >= 0 {
            wakeRouted(index)
            peers.wakesBlocked = true
        }
        return nil
    }

    /// A storage operation is done: bytes, a descriptor's slot, 0, or a negative errno.
    package mutating func completed(token: UInt64, result: Int32) {
        wakesParked = true
        switch Token.kind(token) {
        case .journal: journalCompleted(number: Token.value(token), result: result)
        case .journalSync:
            if let failure = journal.syncCompleted(result: result) { storageFailed(failure) }
        case .chunk, .segment, .seal: writeBehindCompleted(token: token, result: result)
        case .sync, .syncDirectory, .checkpoint: checkpointCompleted(token: token, result: result)
        case .cold: coldReadCompleted(token: token, result: result)
        case .coldOpen: coldOpenCompleted(token: token, result: result)
        case .reserve: reserveCompleted(token: token, result: result)
        case .handOver: handOverCompleted(token: token, result: result)
        case .ignored: break
        }
    }

    // MARK: the cycle

    /// Draws the conclusions of this cycle's inputs. See the top of the file for the order.
    package mutating func advance() {
        coldReader.bytesLeft = limits.coldBytesPerCycle
        if !peers.isAlone { advancePeers() }
        applyDurable()
        resumeBlocked()
        dispatch()
        if failureIsUntold { tellFailure() }
        answerWaiting()
        answerImmediate()
        advanceColdReads()
        if !endings.isEmpty { endSubscriptions() }
        // Before a checkpoint: it may be waiting for the moment between two.
        if backup.isOn { advanceBackup() }
        advanceCheckpoint()
        if now.monotonic.since(lastHousekeeping) >= .milliseconds(1) { housekeep() }
        if wakesParked { wakeParked() }
        if !peers.isAlone { takeOwnMessages() }
    }

    private mutating func wakeParked() {
        // Those who go on may make room for those who can't yet: then it stays set.
        wakesParked = false
        guard !parkedList.isEmpty else { return }
        resumeParked()
        dispatch()
        answerImmediate()
    }

    private mutating func advancePeers() {
        takeOwnMessages()
        advanceBroadcasts()
        if peers.isMoving { advanceMoves() }
        wakeBlockedUplinks()
        if !peers.toClose.isEmpty { closeOverflowed() }
    }

    /// Turns what is pending into effects, as far as they fit. Sends first: what is confirmed or
    /// delivered is ready, and a journal write costs the core 13 µs to submit.
    package mutating func emit(into effects: inout EffectBuffer) {
        emitSends(into: &effects)
        emitFlow(into: &effects)
        emitPosts(into: &effects)
        emitJournal(into: &effects)
        emitWriteBehind(into: &effects)
        emitColdReads(into: &effects)
        emitCheckpoint(into: &effects)
        emitHandOver(into: &effects)
        emitCloses(into: &effects)
    }

    /// When the machine wants to be called even if nothing happens.
    package var nextDeadline: MonotonicTime {
        if hasPendingEffects { return now.monotonic }
        var deadline = now.monotonic + (.milliseconds(10))
        if stage == .stopping { deadline = now.monotonic + (.milliseconds(1)) }
        deadline = min(deadline, checkpointer.syncsResumeAt(limits))
        // Past and done with, it would keep the loop awake for ever.
        let awaitsSeal = journal.needsSeal || (journal.isWrittenOnly && !journal.canSync)
        return awaitsSeal && !hasFailed && stage != .stopped ? min(deadline, sealDue) : deadline
    }

    /// True when `emit` had more to say than fitted, or the next cycle has work without input.
    ///
    /// What waits for a completion is not counted: the loop would never sleep.
    package var hasPendingEffects: Bool {
        !sendList.isEmpty || !flowList.isEmpty || !closeList.isEmpty || !dirtyPartitions.isEmpty
            || !dispatchList.isEmpty || (wakesParked && !parkedList.isEmpty) || hasPendingStorage
            || peers.hasOutgoing
    }

    private var hasPendingStorage: Bool {
        if !writeBehind.retries.isEmpty || !writeBehind.closes.isEmpty
            || !peers.handOverRequests.isEmpty
            || checkpointer.hasRequests(limits, now: now.monotonic)
            || coldReader.hasWork(
                limits, now: now.monotonic, hasFileSlots: !writeBehind.freeSlots.isEmpty)
        {
            return true
        }
        guard stage != .starting else { return !hasFailed && canWriteBehind }
        if mayRemove { return true }
        return !hasFailed && (journal.canWrite || journal.canSync || canWriteBehind)
    }

    private var canWriteBehind: Bool {
        (!writeBehind.queue.isEmpty || !writeBehind.advanced.isEmpty
            || (!writeBehind.starved.isEmpty && !writeBehind.freeSlots.isEmpty))
            && writeBehind.writesInFlight < writesBehindMax
    }

    // MARK: what is durable

    private mutating func journalCompleted(number: UInt64, result: Int32) {
        switch journal.writeCompleted(number: number, result: result, now: now.monotonic) {
        case .applied: break
        case .again(let operation):
            writeBehind.retries.append(
                StorageRequest(token: Token.make(.journal, number), operation: operation))
        case .failed(let failure): storageFailed(failure)
        }
    }

    /// A failed write or sync is never retried as if nothing happened: from here on nothing is
    /// confirmed, and everybody is told why.
    mutating func storageFailed(_ failure: StorageFailure) {
        guard counters.storageFailure == nil else { return }
        counters.storageFailure = failure.description
        events.append(.storageFailed(failure.description))
        failureIsUntold = true
    }

    /// Whoever waits for an answer that can't come any more is told so, request by request: whether it
    /// was stored is unknown.
    private mutating func tellFailure() {
        failureIsUntold = false
        let message = "this shard stopped confirming: \(counters.storageFailure ?? "")"
        for index in connections.indices {
            while let answer = connections[index].pointee.takeWaiting() {
                for request in 0..<UInt64(answer.entry.requests) {
                    refuseLate(
                        index, correlation: answer.entry.correlation + request,
                        stream: answer.kind == .ack ? answer.stream : answer.entry.partition,
                        .storageFailed, message)
                }
            }
        }
        for _ in 0..<peers.broadcasts.count {
            guard let broadcast = peers.broadcasts.first else { break }
            peers.broadcasts.removeFirst()
            guard broadcast.group >= journal.durableGroup else {
                // It is durable: the others hear of it.
                peers.broadcasts.append(broadcast)
                continue
            }
            let refusal = Refusal(
                errorClass: StatusCode.storageFailed.errorClass.rawValue, message: message)
            peers.gatherings[broadcast.gathering]?.refusal = (.storageFailed, refusal.encoded)
            peers.gatherings[broadcast.gathering]?.awaited = 0
            finishGathering(broadcast.gathering)
        }
        while let reply = deferred.first {
            deferred.removeFirst()
            guard isOpen(reply), let header = reply.header else { continue }
            if let opcode = PeerOpcode(rawValue: header.opcode), opcode.isOfSubscriptions {
                // Nothing in it is a promise, and no client would know an error by its number.
                deliver(deferredReply: reply)
                continue
            }
            refuseLate(
                reply.connection, correlation: header.correlation, stream: header.stream,
                .storageFailed, message)
        }
    }

    var hasFailed: Bool { counters.storageFailure != nil }

    private mutating func applyDurable() {
        let durable = faults.confirmBeforeSync ? journal.openGroup + 1 : journal.durableGroup
        if durable != appliedGroup {
            appliedGroup = durable
            sealDue = now.monotonic + limits.sealAfterNanoseconds
            while let reservation = reservations.first, reservation.group < durable {
                reservations.removeFirst()
                if let index = state.index(ofPartition: reservation.partitionID) {
                    state.partitions[index].pointee.reservedEnd = max(
                        state.partitions[index].pointee.reservedEnd, reservation.end)
                }
                wakesParked = true
            }
            while let move = startMoves.first, move.group < durable {
                startMoves.removeFirst()
                if state.index(ofPartition: move.partitionID) == move.partition {
                    startMoved(move.partition)
                }
            }
            while let reply = deferred.first, reply.group < durable {
                deferred.removeFirst()
                deliver(deferredReply: reply)
            }
        }
        let synced = faults.deliverBeforeSync ? journal.openGroup + 1 : durable
        while let note = syncedNotes.take(below: synced) { commit(note) }
        if writtenLimit != writtenGroup {
            writtenGroup = writtenLimit
            sealDue = now.monotonic + limits.sealAfterNanoseconds
        }
        while let note = writtenNotes.take(below: writtenLimit) { commit(note) }
    }

    /// Groups below it are written, as far as confirms and deliveries go.
    private var writtenLimit: UInt64 {
        faults.confirmBeforeSync || faults.writtenBeforeWrite
            ? journal.openGroup + 1 : journal.writtenGroup
    }

    private mutating func commit(_ note: CommitNotes.Note) {
        // The partition may have been deleted, and its slot used again, in between.
        guard state.index(ofPartition: note.partitionID) == note.partition else { return }
        let partition = state.partitions[note.partition]
        partition.pointee.commit(upTo: max(partition.pointee.committed, note.end))
        markDirty(note.partition, partition)
    }

    @inline(__always)
    mutating func markDirty(_ index: Int32, _ partition: UnsafeMutablePointer<Partition>) {
        if !partition.pointee.isDirty, partition.pointee.firstReader >= 0 {
            partition.pointee.isDirty = true
            dirtyPartitions.append(index)
        }
    }

    /// Stages a change of state and applies it at once; what shows it waits for the group.
    ///
    /// - Returns: false when the journal is full for now.
    mutating func change(_ change: StateChange, reserve: UInt64 = 0) -> Bool {
        let payload = change.payload
        guard
            let room = journal.stage(
                change.kind, object: 0, payloadBytes: payload.count, reserve: reserve)
        else { return false }
        payload.withUnsafeBytes { bytes in
            UnsafeMutableRawBufferPointer(start: room, count: payload.count)
                .copyMemory(from: bytes)
        }
        lastChangeGroup = journal.openGroup
        if case .reservation = change { return true }
        state.apply(change)
        return true
    }

    @inline(__always) var marks: JournalMarks { JournalMarks(journal.geometry) }
    var publishReserve: UInt64 { marks.publishReserve + UInt64(limits.journal.groupBytesMax) }

    // MARK: answers

    /// Confirms and ack replies whose group is durable, or written where that is enough.
    private mutating func answerWaiting() {
        guard !waitingList.isEmpty else { return }
        let durable = faults.confirmBeforeSync ? journal.openGroup + 1 : journal.durableGroup
        let written = writtenLimit
        for _ in 0..<waitingList.count {
            guard let index = waitingList.first else { break }
            waitingList.removeFirst()
            guard connections.contains(index) else { continue }
            let connection = connections[index]
            connection.pointee.isWaitingListed = false
            guard connection.pointee.state != .closed else { continue }
            while let first = connection.pointee.waiting.first, first.group < durable {
                guard
                    writeAnswers(index, connection, &connection.pointee.waiting, below: durable)
                else { break }
            }
            while let first = connection.pointee.waitingWritten.first, first.group < written {
                guard
                    writeAnswers(
                        index, connection, &connection.pointee.waitingWritten, below: written)
                else { break }
            }
            if !connection.pointee.waiting.isEmpty || !connection.pointee.waitingWritten.isEmpty {
                connection.pointee.isWaitingListed = true
                waitingList.append(index)
            }
        }
    }

    private mutating func answerImmediate() {
        for _ in 0..<immediateList.count {
            guard let index = immediateList.first else { break }
            immediateList.removeFirst()
            guard connections.contains(index) else { continue }
            let connection = connections[index]
            connection.pointee.isImmediateListed = false
            guard connection.pointee.state != .closed else { continue }
            while !connection.pointee.immediate.isEmpty {
                guard
                    writeAnswers(index, connection, &connection.pointee.immediate, below: .max)
                else { break }
            }
            if !connection.pointee.immediate.isEmpty {
                connection.pointee.isImmediateListed = true
                immediateList.append(index)
            }
        }
    }

    /// Writes one frame of answers; false when the send buffer is full.
    private mutating func writeAnswers(
        _ index: Int32, _ connection: UnsafeMutablePointer<Connection>,
        _ queue: inout ConfirmQueue, below group: UInt64
    ) -> Bool {
        guard let first = queue.first else { return true }
        if first.kind == .ack {
            let frameBytes = FrameHeader.byteCount + Ack.byteCount
            guard let room = connection.pointee.send.reserve(frameBytes, pool: &sendPool) else {
                return false
            }
            let body = room + FrameHeader.byteCount
            body.put(first.entry.partition, 0)
            body.put(first.entry.epoch, 4)
            body.put(first.entry.baseOffset, 8)
            FrameHeader(
                opcode: .ack, bodyBytes: Ack.byteCount, flags: FrameHeader.replyFlag,
                correlation: first.entry.correlation, stream: first.stream
            ).encode(at: room)
            connection.pointee.send.commit(frameBytes)
            queue.removeFirst()
            listForSending(index)
            return true
        }
        var entries = 0
        let entriesMax = min(
            64,
            (Int(connection.pointee.frameBytesMax) - FrameHeader.byteCount) / ConfirmEntry.byteCount
        )
        let bytesMax = FrameHeader.byteCount + entriesMax * ConfirmEntry.byteCount
        let wanted = min(
            bytesMax, FrameHeader.byteCount + queue.count * ConfirmEntry.byteCount)
        guard let room = connection.pointee.send.reserve(wanted, pool: &sendPool) else {
            return false
        }
        while entries < entriesMax, let answer = queue.first,
            answer.kind == .confirm, answer.group < group
        {
            answer.entry.encode(
                at: room + FrameHeader.byteCount + entries * ConfirmEntry.byteCount)
            counters.confirmedRecords &+= UInt64(answer.entry.records)
            entries += 1
            queue.removeFirst()
        }
        let bodyBytes = entries * ConfirmEntry.byteCount
        FrameHeader(opcode: .confirm, bodyBytes: bodyBytes, flags: FrameHeader.pushFlag)
            .encode(at: room)
        connection.pointee.send.commit(FrameHeader.byteCount + bodyBytes)
        listForSending(index)
        return true
    }

    @inline(__always)
    mutating func listForSending(_ index: Int32) {
        let connection = connections[index]
        if !connection.pointee.isSendListed {
            connection.pointee.isSendListed = true
            sendList.append(index)
        }
    }

    // MARK: effects

    private mutating func emitSends(into effects: inout EffectBuffer) {
        for _ in 0..<sendList.count {
            guard !effects.isFull, let index = sendList.first else { return }
            sendList.removeFirst()
            guard connections.contains(index) else { continue }
            let connection = connections[index]
            connection.pointee.isSendListed = false
            guard !connection.pointee.isCloseEmitted,
                let (bytes, count) = connection.pointee.send.startSend()
            else { continue }
            if let relay = connection.pointee.relay {
                peers.post(
                    PeerMessage(
                        .bytes, isReply: true, link: relay.link, bytes: bytes, count: count),
                    to: relay.shard, lane(relay))
                continue
            }
            effects.append(.send(connection: index, bytes: bytes, count: count))
        }
    }

    private mutating func emitFlow(into effects: inout EffectBuffer) {
        while !effects.isFull, let index = flowList.first {
            flowList.removeFirst()
            guard connections.contains(index) else { continue }
            let connection = connections[index]
            guard connection.pointee.state != .closed else { continue }
            if connection.pointee.relay != nil {
                // Its front stops by itself as long as what it sent is not taken.
                if !connection.pointee.isParked { take(index) }
                connection.pointee.needsPause = false
                connection.pointee.needsResume = false
                continue
            }
            if connection.pointee.needsPause, !connection.pointee.isReceivePaused {
                connection.pointee.isReceivePaused = true
                effects.append(.pauseReceive(connection: index))
            } else if connection.pointee.needsResume, connection.pointee.isReceivePaused {
                connection.pointee.isReceivePaused = false
                effects.append(.resumeReceive(connection: index))
            }
            connection.pointee.needsPause = false
            connection.pointee.needsResume = false
        }
    }

    private mutating func emitJournal(into effects: inout EffectBuffer) {
        guard stage != .starting, !hasFailed else { return }
        let isIdle = now.monotonic >= sealDue && stage != .stopped
        while !effects.isFull,
            let operation = journal.nextSync(
                now: now.monotonic, isIdle: isIdle)
        {
            effects.append(
                .storage(
                    StorageRequest(token: Token.make(.journalSync, 0), operation: operation)))
        }
        while !effects.isFull {
            let sealing = journal.needsSeal && isIdle
            guard let (number, operation) = journal.nextWrite(now: now, sealing: sealing) else {
                return
            }
            effects.append(
                .storage(
                    StorageRequest(token: Token.make(.journal, number), operation: operation)))
        }
    }

    private mutating func emitCloses(into effects: inout EffectBuffer) {
        while !effects.isFull, let index = closeList.first {
            closeList.removeFirst()
            guard connections.contains(index), !connections[index].pointee.isCloseEmitted else {
                continue
            }
            connections[index].pointee.isCloseEmitted = true
            if connections[index].pointee.relay != nil {
                finishRelay(index)
            } else {
                effects.append(.close(connection: index))
            }
        }
    }

    // MARK: housekeeping

    private mutating func housekeep() {
        lastHousekeeping = now.monotonic
        flushQuietPartitions()
        sweepJournal()
        retainPartitions()
        retryHeld()
        watchPace()
        advanceScrub()
        evictIfNeeded()
        buryPartitions()
        expireProducers()
        // Memory for send buffers may have come back from another connection.
        wakesBlocked = true
        if !peers.isAlone {
            peers.wakesBlocked = true
            wakesParked = true
            retryPeers()
        }
        visitConnections()
        advanceStop()
    }
}

/// What a storage operation was for, packed into its token: kind in the top byte.
enum Token {
    enum Kind: UInt8 {
        case ignored = 0
        case journal = 1
        case chunk = 2
        case segment = 3
        case seal = 4
        case sync = 5
        case syncDirectory = 6
        case checkpoint = 7
        case cold = 8
        case journalSync = 9
        case reserve = 10
        case coldOpen = 11
        case handOver = 12
    }
    @inline(__always) static func make(_ kind: Kind, _ value: UInt64) -> UInt64 {
        UInt64(kind.rawValue) << 48 | value & 0xFFFF_FFFF_FFFF
    }
    @inline(__always) static func kind(_ token: UInt64) -> Kind {
        Kind(rawValue: UInt8(truncatingIfNeeded: token >> 48)) ?? .ignored
    }
    @inline(__always) static func value(_ token: UInt64) -> UInt64 { token & 0xFFFF_FFFF_FFFF }
}

/// A first-in-first-out buffer that grows by doubling and never shrinks.
struct Fifo<Element> {
    private var elements: [Element?]
    private var head = 0
    private(set) var count = 0

    init(capacity: Int) {
        var rounded = 16
        while rounded < capacity { rounded *= 2 }
        elements = Array(repeating: nil, count: rounded)
    }

    @inline(__always) var isEmpty: Bool { count == 0 }
    @inline(__always) var first: Element? { count == 0 ? nil : elements[head] }

    @inline(__always)
    mutating func append(_ element: Element) {
        if count == elements.count { grow() }
        elements[(head &+ count) & (elements.count &- 1)] = element
        count &+= 1
    }
    @inline(__always)
    mutating func removeFirst() {
        elements[head] = nil
        head = (head &+ 1) & (elements.count &- 1)
        count &-= 1
    }
    func contains(where isWanted: (Element) -> Bool) -> Bool {
        elements.contains { $0.map(isWanted) ?? false }
    }
    mutating func updateFirst(_ body: (inout Element) -> Void) {
        guard var element = elements[head] else { return }
        body(&element)
        elements[head] = element
    }
    /// Changes the element that was appended `back` before the last.
    @inline(__always)
    mutating func updateLast(_ back: Int, _ body: (inout Element) -> Void) {
        let at = (head &+ count &- 1 &- back) & (elements.count &- 1)
        guard var element = elements[at] else { return }
        body(&element)
        elements[at] = element
    }

    @inline(never)
    private mutating func grow() {
        var larger = [Element?](repeating: nil, count: elements.count * 2)
        for place in 0..<count { larger[place] = elements[(head + place) & (elements.count - 1)] }
        elements = larger
        head = 0
    }
}
