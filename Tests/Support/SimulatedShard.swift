package import BrokerBasics
package import BrokerCore
package import BrokerShard
package import LogStorage
internal import WireProtocol

/// Another loop around the same machine: one thread, a disk in memory, connections in memory, and
/// clocks that are turned by hand. The order in which operations complete comes from a seed.
package final class SimulatedShard {
    package struct Settings: Sendable {
        package var limits: ShardLimits
        package var geometry = JournalGeometry(fileBytes: 64 * 1024, fileCount: 4)
        package var faults = StorageFaults()
        package var effectsPerCycle = 64
        /// How long an operation takes at most, in virtual nanoseconds.
        package var latencyMax: UInt64 = 200_000
        /// What a write to a segment takes longer.
        package var segmentDelay: UInt64 = 0

        package init() {
            var limits = ShardLimits()
            limits.connectionsMax = 64
            limits.frameBytesMax = 8192
            limits.sendBytesMax = 16 * 1024
            limits.groupBytes = 12 * 1024
            limits.stagingBytes = 64 * 1024
            limits.tailBytesMax = 1 << 20
            limits.chunkBytes = 8192
            limits.segmentBytes = 48 * 1024
            limits.filesMax = 64
            limits.coldReadsMax = 2
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
        var finish: () -> Int32
        /// Completions that a crash is tried around; others finish quietly.
        var name: String
    }

    package let settings: Settings
    package let disk: SimulatedDisk
    package var random: SeededRandom
    package var machine: ShardMachine
    package private(set) var report: RecoveryReport
    private var effects: EffectBuffer
    private var operations: [Operation] = []
    private var order = 0
    private var inodes: [FileSlot: Int] = [:]
    package private(set) var clients: [Int32: SimulatedClient] = [:]
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
    private var fileNames: [FileSlot: FileName] = [:]
    /// Emits twice in a row, and counts what the second has that was not announced: the loop would
    /// have slept over it.
    package var looksForUnannounced = false
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
        let recovered = try Recovery(storage: disk, options: options).run()
        report = recovered.report
        machine = ShardMachine(
            recovered: recovered, limits: settings.limits, addresses: [],
            now: Instant(
                monotonic: MonotonicTime(nanoseconds: now), wall: WallTime(nanoseconds: wall)),
            faults: settings.faults)
        effects = EffectBuffer(capacity: settings.effectsPerCycle)
        for index in 0..<settings.geometry.fileCount {
            inodes[FileSlot(index)] = disk.open(.journal(index), create: false)
            fileNames[FileSlot(index)] = .journal(index)
        }
    }

    package var time: MonotonicTime { MonotonicTime(nanoseconds: now) }
    /// Moves the wall clock alone, forwards or back.
    package func stepWall(by nanoseconds: Int64) {
        wall = UInt64(Int64(wall) + nanoseconds)
    }

    // MARK: connections

    package func connect(
        _ name: String = "client", sayingHello: Bool = true
    ) -> SimulatedClient? {
        cycle()
        guard let index = machine.opened(peer: "sim") else { return nil }
        let client = SimulatedClient(index: index, shard: self)
        clients[index] = client
        if sayingHello { client.hello(name) }
        return client
    }

    package func receive(_ index: Int32, _ bytes: [UInt8]) {
        bytes.withUnsafeBytes { buffer in
            guard let base = buffer.baseAddress else { return }
            machine.received(index, base, count: buffer.count)
        }
        cycle()
    }

    /// A client that did not read its socket reads it again.
    package func readAgain(_ client: SimulatedClient) {
        client.isReading = true
        if let (bytes, count) = client.heldSend {
            client.heldSend = nil
            carryOut(.send(connection: client.index, bytes: bytes, count: count))
        }
        cycle()
    }

    package func disconnect(_ index: Int32) {
        machine.ended(index)
        cycle()
    }

    // MARK: time

    /// One duty cycle at the present time.
    package func cycle() {
        machine.begin(
            now: Instant(
                monotonic: MonotonicTime(nanoseconds: now), wall: WallTime(nanoseconds: wall)))
        machine.advance()
        var rounds = 0
        repeat {
            machine.emit(into: &effects)
            let count = effects.count
            var taken: [Effect] = []
            for place in 0..<count { taken.append(effects[place]) }
            effects.removeAll()
            if looksForUnannounced { takeRest(&taken) }
            for effect in taken { carryOut(effect) }
            rounds += 1
            if count == 0 { break }
            machine.advance()
        } while rounds < 1000
    }

    private func takeRest(_ taken: inout [Effect]) {
        let isAnnounced = machine.nextDeadline <= time
        machine.emit(into: &effects)
        if effects.count > 0, !isAnnounced { unannounced += 1 }
        for place in 0..<effects.count { taken.append(effects[place]) }
        effects.removeAll()
    }

    private func carryOut(_ effect: Effect) {
        switch effect {
        case .send(let index, let bytes, let count):
            if clients[index]?.isReading == false {
                clients[index]?.heldSend = (bytes, count)
                return
            }
            clients[index]?.take(
                [UInt8](UnsafeRawBufferPointer(start: bytes, count: count)))
            var rest = machine.sent(index, result: Int32(count))
            while let (_, more) = rest { rest = machine.sent(index, result: Int32(more)) }
        case .pauseReceive(let index): clients[index]?.isPaused = true
        case .resumeReceive(let index): clients[index]?.isPaused = false
        case .close(let index):
            clients[index]?.isClosed = true
            clients.removeValue(forKey: index)
            machine.released(index)
        case .storage(let request): start(request)
        }
    }

    private func describe(_ operation: StorageOperation) -> Asked {
        func of(
            _ kind: Asked.Kind, _ slot: FileSlot, _ position: UInt64 = 0, _ bytes: [UInt8] = []
        ) -> Asked {
            let file = fileNames[slot]
            return Asked(
                kind: kind, file: file, directory: file?.directory ?? .root,
                number: operationNumber,
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
                kind: .syncNames, file: nil, directory: directory, number: operationNumber)
        case .remove(let name):
            return Asked(
                kind: .remove, file: name, directory: name.directory, number: operationNumber)
        }
    }

    private func start(_ request: StorageRequest) {
        let disk = disk
        if case .close = request.operation {} else { operationNumber += 1 }
        if let onStart { onStart(describe(request.operation)) }
        switch request.operation {
        case .open(let slot, let name, let create):
            fileNames[slot] = name
            enqueue(request, "open \(name.path)") { [unowned self] in
                guard let inode = disk.open(name, create: create) else { return -2 }
                inodes[slot] = inode
                return 0
            }
        case .allocate(let slot, let position, let bytes):
            let inode = inodes[slot] ?? 0
            enqueue(request, "allocate") {
                disk.allocate(inode, upTo: Int(position + bytes))
                return 0
            }
        case .write(let slot, let from, let bytes, let position, let synced):
            let inode = inodes[slot] ?? 0
            let id = disk.beginWrite(
                inode, position: Int(position),
                bytes: [UInt8](UnsafeRawBufferPointer(start: from, count: bytes)))
            let delay = fileNames[slot]?.directory == .segments ? settings.segmentDelay : 0
            enqueue(
                request, synced ? "synced write" : "write", delay: delay,
                failed: { disk.completeWrite(inode, id: id, synced: false) }
            ) {
                disk.completeWrite(inode, id: id, synced: synced)
                return Int32(bytes)
            }
        case .read(let slot, let into, let bytes, let position):
            let inode = inodes[slot] ?? 0
            enqueue(request, "read") {
                let found = disk.contents(inode, position: Int(position), count: bytes)
                UnsafeMutableRawBufferPointer(start: into, count: bytes).copyBytes(from: found)
                return Int32(found.count)
            }
        case .sync(let slot):
            let inode = inodes[slot] ?? 0
            let ids = disk.beginSync(inode)
            enqueue(request, "sync") {
                disk.completeSync(inode, ids)
                return 0
            }
        case .close(let slot):
            inodes.removeValue(forKey: slot)
        case .syncDirectory(let directory):
            enqueue(request, "sync names") {
                disk.completeDirectorySync(directory)
                return 0
            }
        case .remove(let name):
            enqueue(request, "remove \(name.path)") {
                disk.unlink(name)
                return 0
            }
        }
    }

    private func enqueue(
        _ request: StorageRequest, _ name: String, delay: UInt64 = 0,
        failed: @escaping () -> Void = {}, _ finish: @escaping () -> Int32
    ) {
        order += 1
        let number = operationNumber
        let asked: Asked? = fault == nil ? nil : describe(request.operation)
        operations.append(
            Operation(
                due: now + 1 + delay + random.next() % settings.latencyMax, order: order,
                token: request.token,
                finish: { [unowned self] in
                    if let answer = override?(name, number) {
                        overridesFired += 1
                        failed()
                        return answer
                    }
                    if let asked, let answer = fault?(asked) {
                        faultsFired.append(asked)
                        failed()
                        return answer
                    }
                    return finish()
                }, name: name))
    }

    /// Completes the operation that is due first, or lets a millisecond pass.
    package func step() {
        guard
            let next = operations.indices.min(by: {
                (operations[$0].due, operations[$0].order)
                    < (operations[$1].due, operations[$1].order)
            })
        else {
            now += 1_000_000
            wall += 1_000_000
            cycle()
            flushClients()
            return
        }
        let operation = operations[next]
        if operation.due > now {
            wall += operation.due - now
            now = operation.due
        }
        aroundCompletion?(operation.name, false)
        operations.remove(at: next)
        completions += 1
        let result = operation.finish()
        machine.begin(
            now: Instant(
                monotonic: MonotonicTime(nanoseconds: now), wall: WallTime(nanoseconds: wall)))
        machine.completed(token: operation.token, result: result)
        cycle()
        aroundCompletion?(operation.name, true)
        flushClients()
    }

    /// What clients held back while they were not read.
    private func flushClients() {
        for client in clients.values.sorted(by: { $0.index < $1.index }) { client.flush() }
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
