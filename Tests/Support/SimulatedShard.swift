package import BrokerBasics
package import BrokerCore
package import BrokerShard
package import LogStorage
internal import WireProtocol

/// Another loop around the same machine, or around several that are one broker: one thread, a disk in
/// memory, connections and mailboxes in memory, and clocks that are turned by hand. The order in which
/// operations complete and messages arrive comes from a seed.
package final class SimulatedShard {
    package struct Settings: Sendable {
        package var limits: ShardLimits
        package var geometry = JournalGeometry(fileBytes: 64 * 1024, fileCount: 4)
        package var faults = StorageFaults()
        package var effectsPerCycle = 64
        package var shards = 1
        /// What a mailbox holds, per lane.
        package var mailboxMessages = 4
        /// How long an operation takes at most, in virtual nanoseconds.
        package var latencyMax: UInt64 = 200_000
        /// What a write to a segment takes longer.
        package var segmentDelay: UInt64 = 0
        /// With nothing under way the clocks go on to when a loop would wake, up to 10 ms; otherwise by
        /// 1 ms at a time.
        package var sleepsWhenIdle = false

        package init() {
            var limits = ShardLimits()
            limits.connectionsMax = 64
            limits.frameBytesMax = 8192
            limits.sendBytesMax = 16 * 1024
            limits.groupBytes = 12 * 1024
            // Staging holds few groups: more than two writes are in flight as soon as one waits.
            limits.backlogGroups = 1
            limits.stagingBytes = 64 * 1024
            limits.tailBytesMax = 1 << 20
            limits.chunkBytes = 8192
            limits.segmentBytes = 48 * 1024
            limits.filesMax = 64
            limits.coldReadsMax = 2
            limits.coldPieceBytes = 64 * 1024
            limits.scrubBytesPerSecond = 0
            limits.reservationStep = 64
            limits.effectsMax = 64
            limits.reserveBytes = 0
            self.limits = limits
        }
    }

    /// A storage operation, as fault injection sees it.
    package struct Asked {
        package enum Kind: String, Sendable {
            case open, make, allocate, write, syncedWrite, read, sync, syncNames, remove
        }
        package var kind: Kind
        /// `nil` for the names of a directory.
        package var file: FileName?
        package var directory: StorageDirectory
        package var shard: UInt16 = 0
        /// Counts from 1 in this life.
        package var number: Int
        /// Of a write.
        package var position: UInt64 = 0
        package var bytes: [UInt8] = []
    }

    private struct Operation {
        var due: UInt64
        var order: Int
        var token: UInt64
        var shard: Int
        var number: Int
        var work: Work
        /// For `fault`, when there was one as it began.
        var asked: Asked?
    }

    /// What is done when an operation is due.
    private enum Work {
        /// It arrives in a mailbox; nothing is completed.
        case message(PeerMessage, from: Int, place: Int)
        case open(FileSlot, FileName, create: Bool)
        case allocate(inode: Int, end: Int)
        case write(inode: Int, id: Int, bytes: Int, synced: Bool)
        case read(inode: Int, into: UnsafeMutableRawPointer, bytes: Int, position: Int)
        case sync(inode: Int, ids: [Int])
        case syncNames(StorageDirectory)
        case remove(FileName)

        /// Completions that a crash is tried around have one each.
        var name: String {
            switch self {
            case .message: "message"
            case .open(_, let name, _): "open \(name.path)"
            case .allocate: "allocate"
            case .write(_, _, _, let synced): synced ? "synced write" : "write"
            case .read: "read"
            case .sync: "sync"
            case .syncNames: "sync names"
            case .remove(let name): "remove \(name.path)"
            }
        }
    }

    /// One machine and what its loop has.
    private final class Cell {
        /// At an address of its own: an accessor that lends it out of this object was seen to read what
        /// was there at another time.
        let place: UnsafeMutablePointer<ShardMachine>
        var machine: ShardMachine {
            unsafeAddress { UnsafePointer(place) }
            unsafeMutableAddress { place }
        }
        var effects: EffectBuffer
        var inodes: [FileSlot: Int] = [:]
        var fileNames: [FileSlot: FileName] = [:]
        /// By shard and lane: messages on their way there, and when the last arrives.
        var underway: [Int]
        var arrival: [UInt64]

        init(machine: consuming ShardMachine, effects: Int, shards: Int) {
            place = .allocate(capacity: 1)
            place.initialize(to: machine)
            self.effects = EffectBuffer(capacity: effects)
            underway = Array(repeating: 0, count: shards * PeerLane.allCases.count)
            arrival = Array(repeating: 0, count: shards * PeerLane.allCases.count)
        }
        deinit {
            place.deinitialize(count: 1)
            place.deallocate()
        }
    }
    private struct ClientKey: Hashable {
        var shard: Int
        var index: Int32
    }

    package let settings: Settings
    package let disk: SimulatedDisk
    package var random: SeededRandom
    private let cells: [Cell]
    package private(set) var report: RecoveryReport
    /// Partitions that moved because the number of shards changed.
    package private(set) var partitionsMoved = 0
    private var retired: [UInt16] = []
    private var operations: [Operation] = []
    private var order = 0
    private var clients: [ClientKey: SimulatedClient] = [:]
    package private(set) var messages = 0
    private var now: UInt64
    package private(set) var wall: UInt64
    package private(set) var completions = 0

    /// Called before and after every completion of a disk operation.
    package var aroundCompletion: ((_ operation: String, _ isAfter: Bool) -> Void)?
    /// Answers an operation's result instead of the disk: fault injection.
    package var override: ((_ name: String, _ number: Int) -> Int32?)?
    /// The same by what the operation is. A write that is answered so is over, and what of it reached the
    /// disk is open; of anything else nothing is done.
    package var fault: ((Asked) -> Int32?)?
    /// Sees each operation as it begins.
    package var onStart: ((Asked) -> Void)?
    package private(set) var operationNumber = 0
    package private(set) var overridesFired = 0
    /// The operations that `fault` answered.
    package private(set) var faultsFired: [Asked] = []
    /// Emits twice in a row, and counts what the second has that was not announced: the loop would
    /// have slept over it.
    package var looksForUnannounced = false
    /// The most journal writes of one shard that were under way at once.
    package private(set) var journalWritesMax = 0
    package private(set) var unannounced = 0

    package init(
        disk: SimulatedDisk, settings: Settings, seed: UInt64,
        wall: UInt64 = 1_700_000_000_000_000_000
    ) throws(RecoveryError) {
        self.disk = disk
        self.settings = settings
        self.wall = wall
        random = SeededRandom(seed: seed)
        now = 1_000_000_000
        var options = RecoveryOptions(
            geometry: settings.geometry, limits: settings.limits.journal,
            chunkBytesMax: settings.limits.chunkBytes,
            tailBudgetBytes: settings.limits.tailBytesMax, serverID: 7, journalID: 11,
            now: WallTime(nanoseconds: wall))
        options.boot = disk.boot
        options.faults = settings.faults
        let outcome = try BrokerRecovery(
            options: options, segmentBytes: settings.limits.segmentBytes
        ) { disk.folder($0) }.run(shards: settings.shards)
        partitionsMoved = outcome.partitionsMoved
        retired = outcome.retired
        var cells: [Cell] = []
        var report: RecoveryReport?
        for slot in outcome.shards {
            guard let recovered = slot.take() else { fatalError("taken once") }
            if report == nil { report = recovered.report }
            let machine = ShardMachine(
                recovered: recovered, limits: settings.limits, addresses: [],
                shards: settings.shards,
                now: Instant(
                    monotonic: MonotonicTime(nanoseconds: now), wall: WallTime(nanoseconds: wall)),
                faults: settings.faults)
            let cell = Cell(
                machine: machine, effects: settings.effectsPerCycle, shards: settings.shards)
            for index in 0..<settings.geometry.fileCount {
                cell.inodes[FileSlot(index)] = disk.open(
                    .journal(index), create: false, shard: UInt16(cells.count))
                cell.fileNames[FileSlot(index)] = .journal(index)
            }
            cells.append(cell)
        }
        self.cells = cells
        guard let report else { fatalError("a broker has a shard") }
        self.report = report
    }

    /// Of shard 0.
    package var machine: ShardMachine {
        unsafeAddress { UnsafePointer(cells[0].place) }
        unsafeMutableAddress { cells[0].place }
    }
    /// Of any shard.
    package func withMachine<Result>(
        _ shard: Int, _ body: (inout ShardMachine) -> Result
    ) -> Result { body(&cells[shard].machine) }
    package var isReady: Bool { cells.allSatisfy { $0.machine.isReady } }
    package var isStopped: Bool { cells.allSatisfy { $0.machine.stage == .stopped } }
    package func beginStop() { for cell in cells { cell.machine.beginStop() } }
    /// Removes what shards that do not run any more have left.
    package func retire() throws(StorageFailure) {
        for shard in retired {
            try ShardAssembly.retire(disk.folder(shard), faults: settings.faults)
        }
        retired = []
    }

    package var time: MonotonicTime { MonotonicTime(nanoseconds: now) }
    /// Moves the wall clock alone, forwards or back.
    package func stepWall(by nanoseconds: Int64) {
        wall = UInt64(Int64(wall) + nanoseconds)
    }

    // MARK: connections

    package func connect(
        _ name: String = "client", sayingHello: Bool = true, to shard: Int = 0
    ) -> SimulatedClient? {
        cycle()
        guard let index = cells[shard].machine.opened(peer: "sim") else { return nil }
        let client = SimulatedClient(index: index, shard: self, number: shard)
        clients[ClientKey(shard: shard, index: index)] = client
        if sayingHello { client.hello(name) }
        return client
    }

    package func receive(_ index: Int32, _ bytes: [UInt8], shard: Int = 0) {
        bytes.withUnsafeBytes { buffer in
            guard let base = buffer.baseAddress else { return }
            cells[shard].machine.received(index, base, count: buffer.count)
        }
        cycle(shard)
    }

    /// A client that did not read its socket reads it again.
    package func readAgain(_ client: SimulatedClient) {
        client.isReading = true
        if let (bytes, count) = client.heldSend {
            client.heldSend = nil
            carryOut(.send(connection: client.index, bytes: bytes, count: count), client.number)
        }
        cycle(client.number)
    }

    /// A client that does not read its socket takes a little of what is on its way to it.
    package func takeSome(_ count: Int, _ client: SimulatedClient) {
        guard let (bytes, held) = client.heldSend else { return }
        let taken = min(count, held)
        client.take([UInt8](UnsafeRawBufferPointer(start: bytes, count: taken)))
        client.heldSend = nil
        if let rest = cells[client.number].machine.sent(client.index, result: Int32(taken)) {
            client.heldSend = rest
        }
        cycle(client.number)
    }

    package func disconnect(_ index: Int32, shard: Int = 0) {
        cells[shard].machine.ended(index)
        cycle(shard)
    }

    // MARK: time

    private var instant: Instant {
        Instant(monotonic: MonotonicTime(nanoseconds: now), wall: WallTime(nanoseconds: wall))
    }

    /// One duty cycle of every shard at the present time.
    package func cycle() { for shard in cells.indices { cycle(shard) } }

    private func cycle(_ shard: Int) {
        let cell = cells[shard]
        cell.machine.begin(now: instant)
        cell.machine.advance()
        var rounds = 0
        repeat {
            tellRoom(cell, shard)
            cell.machine.emit(into: &cell.effects)
            let count = cell.effects.count
            if looksForUnannounced {
                var taken: [Effect] = []
                for place in 0..<count { taken.append(cell.effects[place]) }
                cell.effects.removeAll()
                takeRest(&taken, cell)
                for effect in taken { carryOut(effect, shard) }
            } else {
                for place in 0..<count { carryOut(cell.effects[place], shard) }
                cell.effects.removeAll()
            }
            rounds += 1
            if count == 0 { break }
            cell.machine.advance()
        } while rounds < 1000
    }

    private func takeRest(_ taken: inout [Effect], _ cell: Cell) {
        let isAnnounced = cell.machine.nextDeadline <= time
        cell.machine.emit(into: &cell.effects)
        if cell.effects.count > 0, !isAnnounced { unannounced += 1 }
        for place in 0..<cell.effects.count { taken.append(cell.effects[place]) }
        cell.effects.removeAll()
    }

    // MARK: mailboxes

    private func place(_ shard: UInt16, _ lane: PeerLane) -> Int {
        Int(shard) * PeerLane.allCases.count + lane.rawValue
    }

    private func tellRoom(_ cell: Cell, _ shard: Int) {
        for other in cells.indices where other != shard {
            for lane in PeerLane.allCases {
                let room = settings.mailboxMessages - cell.underway[place(UInt16(other), lane)]
                cell.machine.setRoom(UInt16(other), lane, room)
            }
        }
    }

    private func post(_ message: PeerMessage, _ lane: PeerLane, from: Int, to: UInt16) {
        let place = place(to, lane)
        let due = max(
            cells[from].arrival[place] + 1, now + 1 + random.next() % (settings.latencyMax / 10))
        cells[from].arrival[place] = due
        cells[from].underway[place] += 1
        order += 1
        operations.append(
            Operation(
                due: due, order: order, token: 0, shard: Int(to), number: 0,
                work: .message(message, from: from, place: place)))
    }

    private func carryOut(_ effect: Effect, _ shard: Int) {
        let cell = cells[shard]
        switch effect {
        case .send(let index, let bytes, let count):
            let client = clients[ClientKey(shard: shard, index: index)]
            if client?.isReading == false {
                client?.heldSend = (bytes, count)
                return
            }
            client?.take([UInt8](UnsafeRawBufferPointer(start: bytes, count: count)))
            var rest = cell.machine.sent(index, result: Int32(count))
            while let (_, more) = rest { rest = cell.machine.sent(index, result: Int32(more)) }
        case .pauseReceive(let index):
            clients[ClientKey(shard: shard, index: index)]?.isPaused = true
        case .resumeReceive(let index):
            clients[ClientKey(shard: shard, index: index)]?.isPaused = false
        case .close(let index):
            let key = ClientKey(shard: shard, index: index)
            clients[key]?.isClosed = true
            clients.removeValue(forKey: key)
            cell.machine.released(index)
        case .storage(let request): start(request, shard)
        case .post(let other, let lane, let message): post(message, lane, from: shard, to: other)
        }
    }

    private func describe(_ operation: StorageOperation, _ shard: Int) -> Asked {
        func of(
            _ kind: Asked.Kind, _ slot: FileSlot, _ position: UInt64 = 0, _ bytes: [UInt8] = []
        ) -> Asked {
            let file = cells[shard].fileNames[slot]
            return Asked(
                kind: kind, file: file, directory: file?.directory ?? .root,
                shard: UInt16(shard), number: operationNumber,
                position: position, bytes: bytes)
        }
        switch operation {
        case .open(let slot, _, let create):
            return of(create ? .make : .open, slot)
        case .allocate(let slot, let position, _): return of(.allocate, slot, position)
        case .write(let slot, let from, let bytes, let position, let synced):
            return of(
                synced ? .syncedWrite : .write, slot, position,
                [UInt8](UnsafeRawBufferPointer(start: from, count: min(bytes, 64))))
        case .read(let slot, _, _, let position): return of(.read, slot, position)
        case .sync(let slot): return of(.sync, slot)
        case .close(let slot): return of(.open, slot)
        case .syncDirectory(let directory):
            return Asked(
                kind: .syncNames, file: nil, directory: directory, shard: UInt16(shard),
                number: operationNumber)
        case .remove(let name):
            return Asked(
                kind: .remove, file: name, directory: name.directory, shard: UInt16(shard),
                number: operationNumber)
        }
    }

    private func start(_ request: StorageRequest, _ shard: Int) {
        let cell = cells[shard]
        if case .close = request.operation {} else { operationNumber += 1 }
        if let onStart { onStart(describe(request.operation, shard)) }
        func inode(_ slot: FileSlot) -> Int { cell.inodes[slot] ?? 0 }
        switch request.operation {
        case .open(let slot, let name, let create):
            cell.fileNames[slot] = name
            enqueue(request, shard, .open(slot, name, create: create))
        case .allocate(let slot, let position, let bytes):
            enqueue(request, shard, .allocate(inode: inode(slot), end: Int(position + bytes)))
        case .write(let slot, let from, let bytes, let position, let synced):
            let id = disk.beginWrite(
                inode(slot), position: Int(position),
                bytes: [UInt8](UnsafeRawBufferPointer(start: from, count: bytes)))
            let delay = cell.fileNames[slot]?.directory == .segments ? settings.segmentDelay : 0
            enqueue(
                request, shard, .write(inode: inode(slot), id: id, bytes: bytes, synced: synced),
                delay: delay)
            if cell.fileNames[slot]?.directory == .journal { noteJournalWrites(shard) }
        case .read(let slot, let into, let bytes, let position):
            enqueue(
                request, shard,
                .read(inode: inode(slot), into: into, bytes: bytes, position: Int(position)))
        case .sync(let slot):
            enqueue(request, shard, .sync(inode: inode(slot), ids: disk.beginSync(inode(slot))))
        case .close(let slot):
            cell.inodes.removeValue(forKey: slot)
        case .syncDirectory(let directory): enqueue(request, shard, .syncNames(directory))
        case .remove(let name): enqueue(request, shard, .remove(name))
        }
    }

    private func noteJournalWrites(_ shard: Int) {
        let journal = Set(
            cells[shard].fileNames.filter { $0.value.directory == .journal }
                .compactMap { cells[shard].inodes[$0.key] })
        let underway = operations.count { operation in
            guard operation.shard == shard, case .write(let inode, _, _, _) = operation.work else {
                return false
            }
            return journal.contains(inode)
        }
        journalWritesMax = max(journalWritesMax, underway)
    }

    private func enqueue(
        _ request: StorageRequest, _ shard: Int, _ work: Work, delay: UInt64 = 0
    ) {
        order += 1
        operations.append(
            Operation(
                due: now + 1 + delay + random.next() % settings.latencyMax, order: order,
                token: request.token, shard: shard, number: operationNumber, work: work,
                asked: fault == nil ? nil : describe(request.operation, shard)))
    }

    /// - Returns: its result, the disk's or an injected one.
    private func finish(_ operation: Operation) -> Int32 {
        if let override, let answer = override(operation.work.name, operation.number) {
            overridesFired += 1
            refuse(operation.work)
            return answer
        }
        if let asked = operation.asked, let answer = fault?(asked) {
            faultsFired.append(asked)
            refuse(operation.work)
            return answer
        }
        let cell = cells[operation.shard]
        let folder = UInt16(operation.shard)
        switch operation.work {
        case .message: break
        case .open(let slot, let name, let create):
            guard let inode = disk.open(name, create: create, shard: folder) else { return -2 }
            cell.inodes[slot] = inode
        case .allocate(let inode, let end): disk.allocate(inode, upTo: end)
        case .write(let inode, let id, let bytes, let synced):
            disk.completeWrite(inode, id: id, synced: synced)
            return Int32(bytes)
        case .read(let inode, let into, let bytes, let position):
            return Int32(
                disk.read(
                    inode, position: position,
                    into: UnsafeMutableRawBufferPointer(start: into, count: bytes)))
        case .sync(let inode, let ids): disk.completeSync(inode, ids)
        case .syncNames(let directory): disk.completeDirectorySync(directory, shard: folder)
        case .remove(let name): disk.unlink(name, shard: folder)
        }
        return 0
    }

    /// A write that is answered by a fault is over.
    private func refuse(_ work: Work) {
        guard case .write(let inode, let id, _, _) = work else { return }
        disk.completeWrite(inode, id: id, synced: false)
    }

    /// How far the clocks go when nothing is under way.
    private var idleNanoseconds: UInt64 {
        guard settings.sleepsWhenIdle else { return 1_000_000 }
        var deadline = MonotonicTime.never
        for cell in cells { deadline = min(deadline, cell.machine.nextDeadline) }
        return max(1_000_000, deadline.since(time))
    }

    /// Completes the operation that is due first, or lets time pass.
    package func step() {
        guard
            let next = operations.indices.min(by: {
                (operations[$0].due, operations[$0].order)
                    < (operations[$1].due, operations[$1].order)
            })
        else {
            let idle = idleNanoseconds
            now += idle
            wall += idle
            cycle()
            flushClients()
            return
        }
        let operation = operations[next]
        if operation.due > now {
            wall += operation.due - now
            now = operation.due
        }
        if case .message(let message, let from, let place) = operation.work {
            operations.remove(at: next)
            cells[operation.shard].machine.begin(now: instant)
            messages += 1
            cells[from].underway[place] -= 1
            cells[operation.shard].machine.posted(message, from: UInt16(from))
            cycle(operation.shard)
            flushClients()
            return
        }
        if let aroundCompletion { aroundCompletion(operation.work.name, false) }
        operations.remove(at: next)
        completions += 1
        let result = finish(operation)
        cells[operation.shard].machine.begin(now: instant)
        cells[operation.shard].machine.completed(token: operation.token, result: result)
        cycle(operation.shard)
        if let aroundCompletion { aroundCompletion(operation.work.name, true) }
        flushClients()
    }

    /// What clients held back while they were not read.
    private func flushClients() {
        guard clients.values.contains(where: \.hasHeldBack) else { return }
        let order = clients.keys.sorted { ($0.shard, $0.index) < ($1.shard, $1.index) }
        for key in order { clients[key]?.flush() }
    }

    /// Steps until `condition` holds; false when it does not within `steps`.
    @discardableResult
    package func run(steps: Int = 20_000, until condition: () -> Bool) -> Bool {
        for _ in 0..<steps {
            if condition() { return true }
            step()
        }
        return condition()
    }

    /// Lets virtual time pass, completing what falls due.
    package func pass(milliseconds: UInt64) {
        let end = now + milliseconds * 1_000_000
        while now < end { step() }
    }
}
