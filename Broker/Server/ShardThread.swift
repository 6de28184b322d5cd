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
    package var dataDirectory: String
    package var limits: ShardLimits
    package var geometry: JournalGeometry
    package var idle: IdleStrategy
    package var loop: LoopKind
    package var cpu: Int?
    package var listeners: [Int32]
    package var addresses: [ShardAddress]
    package var usesDirectIO: Bool
    package var hostFacts: [Pair]
    /// Take the tails' memory from the system at the start, not as records come.
    package var takesMemory: Bool

    package init(
        dataDirectory: String, limits: ShardLimits, geometry: JournalGeometry,
        idle: IdleStrategy, loop: LoopKind, cpu: Int?, listeners: [Int32],
        addresses: [ShardAddress],
        usesDirectIO: Bool, hostFacts: [Pair], takesMemory: Bool
    ) {
        self.dataDirectory = dataDirectory
        self.limits = limits
        self.geometry = geometry
        self.idle = idle
        self.loop = loop
        self.cpu = cpu
        self.listeners = listeners
        self.addresses = addresses
        self.usesDirectIO = usesDirectIO
        self.hostFacts = hostFacts
        self.takesMemory = takesMemory
    }
}

/// How a shard ended.
package enum ShardEnd: Sendable {
    case stopped
    case failed(String)
}

/// Runs one shard, from recovery to its stop, on a thread of its own.
package enum ShardThread {
    /// Starts the thread; `ended` is called on it, once.
    package static func start(
        _ configuration: ShardConfiguration, control: ShardControl,
        log: @escaping @Sendable (ShardEvent) -> Void,
        ended: @escaping @Sendable (ShardEnd) -> Void
    ) throws(SystemError) {
        try DiskWatch.start(configuration.dataDirectory, control: control)
        try DetachedThread.start("shard-0", stackBytes: 8 << 20) {
            ended(run(configuration, control, log))
        }
    }

    private static func run(
        _ configuration: ShardConfiguration, _ control: ShardControl,
        _ log: @escaping (ShardEvent) -> Void
    ) -> ShardEnd {
        do {
            if let cpu = configuration.cpu { try CoreControl.pin(cpu: cpu) }
            CoreControl.setLongSlice()
            let began = Clock.monotonic
            var options = RecoveryOptions(
                geometry: configuration.geometry, limits: configuration.limits.journal,
                chunkBytesMax: configuration.limits.chunkBytes,
                tailBudgetBytes: configuration.limits.tailBytesMax,
                serverID: UInt64.random(in: 1 ... .max), journalID: UInt64.random(in: 1 ... .max),
                now: Clock.wall)
            options.boot = SystemText.bootID ?? 0
            let recovered = try Recovery(
                storage: PosixStorage(root: configuration.dataDirectory), options: options
            ).run { progress in control.publish { $0.progress = progress } }
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
            let report = recovered.report
            let serverID = recovered.identity.serverID
            let geometry = recovered.identity.geometry
            let seconds = Double(Clock.monotonic.since(began)) / 1e9
            control.publish {
                $0.recovery = report
                $0.serverID = serverID
                $0.geometry = geometry
                $0.recoverySeconds = seconds
                $0.stage = "starting"
            }
            var machine = ShardMachine(
                recovered: recovered, limits: configuration.limits,
                addresses: configuration.addresses, now: Clock.now)
            machine.hostFacts = configuration.hostFacts
            switch configuration.loop {
            case .uring:
                var shard = try Shard<RingPort>(
                    machine: machine, configuration: configuration, control: control, log: log)
                shard.run()
            case .epoll:
                var shard = try Shard<EpollPort>(
                    machine: machine, configuration: configuration, control: control, log: log)
                shard.run()
            }
            return .stopped
        } catch let error as RecoveryError {
            return .failed(error.description)
        } catch let error as SystemError {
            return .failed(error.description)
        } catch {
            return .failed("\(error)")
        }
    }
}
