internal import BrokerBasics
internal import BrokerCore
package import BrokerShard
internal import CLinux
internal import Glibc
package import LogStorage
package import ShardRuntime
package import WireProtocol

/// What a shard needs to start.
package struct ShardConfiguration: Sendable {
    var shard: UInt16 = 0
    package var dataDirectory: String
    package var limits: ShardLimits
    package var geometry: JournalGeometry
    package var idle: IdleStrategy
    package var loop: LoopKind
    var cpu: Int?
    /// Sockets that every shard accepts from.
    package var listeners: [Int32]
    /// By shard: sockets that it alone accepts from.
    package var ownListeners: [[Int32]]
    package var addresses: [ShardAddress]
    package var usesDirectIO: Bool
    package var hostFacts: [Pair]
    /// Take the tails' memory from the system at the start, not as records come.
    package var takesMemory: Bool
    /// Where images go; `nil`: none are made.
    package var backupDirectory: String?

    package init(
        dataDirectory: String, limits: ShardLimits, geometry: JournalGeometry,
        idle: IdleStrategy, loop: LoopKind, listeners: [Int32], ownListeners: [[Int32]],
        addresses: [ShardAddress],
        usesDirectIO: Bool, hostFacts: [Pair], takesMemory: Bool
    ) {
        self.dataDirectory = dataDirectory
        self.limits = limits
        self.geometry = geometry
        self.idle = idle
        self.loop = loop
        self.listeners = listeners
        self.ownListeners = ownListeners
        self.addresses = addresses
        self.usesDirectIO = usesDirectIO
        self.hostFacts = hostFacts
        self.takesMemory = takesMemory
    }

    func listeners(of shard: Int) -> [Int32] {
        listeners + (shard < ownListeners.count ? ownListeners[shard] : [])
    }
}

/// How a shard ended.
package enum ShardEnd: Sendable {
    case stopped
    case failed(String)
}

/// Runs the shards of a broker, from recovery to their stop, each on a thread of its own.
package enum ShardThread {
    /// What the threads share.
    private struct Crew: Sendable {
        var configuration: ShardConfiguration
        var cpus: [Int]
        var controls: [ShardControl]
        var mail: MailRoom?
        var backups: BackupRunner?
        var log: @Sendable (UInt16, ShardEvent) -> Void
        var ended: @Sendable (UInt16, ShardEnd) -> Void
    }

    /// Starts the threads; `ended` is called once for each shard, on its thread.
    ///
    /// - Parameters:
    ///   - configuration: of all shards; the memory limits are divided among them.
    ///   - cpus: of the shards in their order; those without one run where the scheduler puts them.
    package static func start(
        _ configuration: ShardConfiguration, cpus: [Int], controls: [ShardControl],
        log: @escaping @Sendable (UInt16, ShardEvent) -> Void,
        ended: @escaping @Sendable (UInt16, ShardEnd) -> Void
    ) throws(SystemError) {
        for control in controls {
            try DiskWatch.start(configuration.dataDirectory, control: control)
        }
        var configuration = configuration
        configuration.limits = configuration.limits.divided(among: controls.count)
        let crew = Crew(
            configuration: configuration, cpus: cpus, controls: controls,
            mail: controls.count > 1 ? MailRoom(controls) : nil,
            backups: BackupRunner(configuration, controls: controls), log: log, ended: ended)
        try DetachedThread.start("shard-0", stackBytes: 8 << 20) { begin(crew) }
    }

    /// The first shard's thread recovers all, and starts the others.
    private static func begin(_ crew: Crew) {
        do {
            try take(cpu: crew.cpus.first)
            let began = Clock.monotonic
            let outcome = try recover(crew)
            let seconds = Double(Clock.monotonic.since(began)) / 1e9
            for (number, slot) in outcome.shards.enumerated() {
                slot.tell { shard in
                    crew.controls[number].publish {
                        $0.recovery = shard.report
                        $0.serverID = shard.serverID
                        $0.geometry = shard.geometry
                        $0.recoverySeconds = seconds
                        $0.stage = "starting"
                    }
                }
            }
            for number in 1..<crew.controls.count {
                let slot = outcome.shards[number]
                try DetachedThread.start("shard-\(number)", stackBytes: 8 << 20) {
                    crew.ended(UInt16(number), run(number, slot, crew))
                }
            }
            if !outcome.retired.isEmpty { try retire(outcome.retired, crew) }
            crew.ended(0, run(0, outcome.shards[0], crew))
        } catch let error as RecoveryError {
            crew.ended(0, .failed(error.description))
        } catch let error as SystemError {
            crew.ended(0, .failed(error.description))
        } catch {
            crew.ended(0, .failed("\(error)"))
        }
    }

    private static func take(cpu: Int?) throws(SystemError) {
        if let cpu { try CoreControl.pin(cpu: cpu) }
        CoreControl.setLongSlice()
    }

    private static func recover(_ crew: Crew) throws -> BrokerRecovery.Outcome {
        let configuration = crew.configuration
        var options = RecoveryOptions(
            geometry: configuration.geometry, limits: configuration.limits.journal,
            chunkBytesMax: configuration.limits.chunkBytes,
            tailBudgetBytes: configuration.limits.tailBytesMax,
            serverID: UInt64.random(in: 1 ... .max), journalID: UInt64.random(in: 1 ... .max),
            now: Clock.wall)
        options.boot = SystemText.bootID ?? 0
        let root = configuration.dataDirectory
        let controls = crew.controls
        return try BrokerRecovery(
            options: options, segmentBytes: configuration.limits.segmentBytes
        ) { PosixStorage(root: root, folder: ShardFolder(shard: $0)) }
        .run(shards: controls.count) { shard, progress in
            controls[min(Int(shard), controls.count - 1)].publish { $0.progress = progress }
        }
    }

    /// Removes what shards that do not run any more have left, once the others serve: on a thread of its
    /// own, for it waits for that and then deletes large files.
    private static func retire(_ shards: [UInt16], _ crew: Crew) throws(SystemError) {
        let root = crew.configuration.dataDirectory
        try DetachedThread.start("retire") {
            while !crew.controls.allSatisfy({ $0.current.stage == "ready" }) { usleep(10_000) }
            for shard in shards {
                let storage = PosixStorage(root: root, folder: ShardFolder(shard: shard))
                // What is left by an error here is found, and removed, by the next start.
                try? ShardAssembly.retire(storage)
            }
        }
    }

    private static func run(_ number: Int, _ slot: RecoveredSlot, _ crew: Crew) -> ShardEnd {
        var configuration = crew.configuration
        configuration.shard = UInt16(number)
        configuration.cpu = number < crew.cpus.count ? crew.cpus[number] : nil
        let control = crew.controls[number]
        let log: (ShardEvent) -> Void = { crew.log(UInt16(number), $0) }
        do {
            if number > 0 { try take(cpu: configuration.cpu) }
            guard let recovered = slot.take() else { return .failed("nothing was recovered") }
            if let conflict = configuration.limits.conflict(
                geometry: recovered.identity.geometry)
            {
                return .failed(
                    "\(conflict) (the journal's size is that of the data directory, set when it was "
                        + "made)")
            }
            if configuration.takesMemory {
                MemoryTaker.start(recovered.state.pool.budget, avoiding: configuration.cpu)
            }
            let owned = configuration.listeners(of: number)
            configuration.listeners = owned
            var machine = ShardMachine(
                recovered: recovered, limits: configuration.limits,
                addresses: configuration.addresses, shards: crew.controls.count, now: Clock.now)
            machine.hostFacts = configuration.hostFacts
            machine.offersBackups = crew.backups != nil
            switch configuration.loop {
            case .uring:
                var shard = try Shard<RingPort>(
                    machine: machine, configuration: configuration, control: control,
                    mail: crew.mail, backups: crew.backups, log: log)
                shard.run()
            case .epoll:
                var shard = try Shard<EpollPort>(
                    machine: machine, configuration: configuration, control: control,
                    mail: crew.mail, backups: crew.backups, log: log)
                shard.run()
            }
            return .stopped
        } catch {
            return .failed(error.description)
        }
    }
}
