internal import BrokerAdmin
internal import BrokerBasics
internal import BrokerConfiguration
internal import BrokerCore
internal import BrokerServer
internal import BrokerShard
internal import Glibc
internal import LogStorage
internal import Logging
internal import ShardRuntime
internal import Synchronization
internal import WireProtocol

/// The process around the shard, in the order in which things begin: checks, the lock on the data,
/// the sockets, the admin port, the shard's recovery.
enum Broker {
    static let version = "0.1.0"

    /// How the shards' threads tell that they have ended.
    private final class Ending: Sendable {
        private let shards: Int
        private let ends = Mutex<[ShardEnd]>([])

        init(shards: Int) { self.shards = shards }

        /// How all have ended, or one that failed.
        var value: ShardEnd? {
            ends.withLock { ends in
                for case .failed(let what) in ends { return .failed(what) }
                return ends.count == shards ? .stopped : nil
            }
        }
        func add(_ end: ShardEnd) {
            ends.withLock { $0.append(end) }
            ProcessSignals.poke()
        }
    }

    /// - Returns: the exit code: 0 stopped as asked, 1 failed.
    /// - Throws: `UsageError`, before anything on the disk was touched.
    static func run(_ options: ServerOptions) throws(UsageError) -> Int32 {
        try options.check(allowedCPUs: CoreControl.allowedCPUs)
        let logger = Logger(label: "brokerd") { _ in
            LineLogHandler(level: options.logLevel, format: options.logFormat)
        }
        do {
            return try serve(options, logger)
        } catch {
            logger.record(.critical, "start-failed", "\(error)")
            return 1
        }
    }

    private static func serve(_ options: ServerOptions, _ logger: Logger) throws -> Int32 {
        let descriptors = DescriptorLimit.raise()
        if descriptors.limit < options.descriptorsWanted {
            logger.record(
                .warning,
                "few-descriptors",
                "RLIMIT_NOFILE is \(descriptors.limit): --connections-max and --files-max can need \(options.descriptorsWanted)",
                ["limit": number(descriptors.limit), "wanted": number(options.descriptorsWanted)]
            )
        }
        // Before the disk is touched: without the loop that is wanted nothing was begun.
        let loop = try LoopDecision.make(options.loop)
        if options.limits.writesBehindMax == 0 {
            logger.record(
                .warning,
                "no-write-behind",
                "--writes-behind-max is 0: publishing stops when the journal is full, and a stop waits for a second signal; this is for measuring recovery"
            )
        }
        let takesMemory = checkMemory(UInt64(options.limits.tailBytesMax), logger)
        let directory = try DataDirectory(path: options.dataDirectory)
        // Everything that is started from here on stays off the shard's CPU; the shard pins itself.
        let pinned = Array(options.cpus.prefix(options.shards))
        CoreMap.keepOff(cpus: pinned)
        let host = HostFacts.gather(dataDirectory: options.dataDirectory)
        let facts = host.pairs(
            idle: options.idle,
            loop: loop,
            cpu: options.cpu,
            dataDirectory: options.dataDirectory,
            directAlignment: directory.directAlignment,
            version: version
        )
        say(facts, host, loop, directory.directAlignment, options, logger)

        let sockets = try Sockets(
            options.listen, shards: options.shards, peerNanoseconds: options.limits.peerNanoseconds)
        let controls = (0..<options.shards).map { _ in ShardControl(loop: loop) }
        let pages = AdminPages(controls: controls, version: version)
        let admin = try startAdmin(options, pages, logger)

        let relays = controls.indices.map { number in
            var named = logger
            if controls.count > 1 { named[metadataKey: "shard"] = "\(number)" }
            return EventRelay(logger: named)
        }
        let ending = Ending(shards: controls.count)
        var configuration =
            ShardConfiguration(
                dataDirectory: options.dataDirectory,
                limits: options.limits,
                geometry: options.geometry,
                idle: options.idle,
                loop: loop.kind,
                listeners: sockets.descriptors,
                ownListeners: sockets.ownDescriptors,
                addresses: sockets.shardAddresses,
                usesDirectIO: directory.directAlignment != nil,
                hostFacts: facts,
                takesMemory: takesMemory
            )
        configuration.backupDirectory = options.backupDirectory
        try ShardThread.start(
            configuration,
            cpus: pinned,
            controls: controls,
            log: { relays[Int($0)].append($1) },
            ended: { ending.add($1) }
        )

        let code = watch(controls, ending, pages, logger, options) {
            sayReady(controls, sockets, admin, options, logger)
        }
        for relay in relays { relay.drain() }
        sockets.close()
        return code
    }

    /// The tails' memory is taken at the start where there is enough of it; where not, that is said
    /// now and not at the first busy minute.
    private static func checkMemory(_ wanted: UInt64, _ logger: Logger) -> Bool {
        guard let available = HostFacts.availableMemory(), available < wanted else { return true }
        logger.record(
            .warning,
            "little-memory",
            "--tail-memory is \(OptionValue.sizeText(wanted)), the system has \(OptionValue.sizeText(available)) left: memory is taken as it is used, and may run out",
            ["available": "\(available)", "wanted": "\(wanted)"]
        )
        return false
    }

    private static func startAdmin(
        _ options: ServerOptions,
        _ pages: AdminPages,
        _ logger: Logger
    ) throws -> AdminAddress? {
        guard let wanted = options.admin else { return nil }
        let started = Main.wait {
            do throws(AdminServer.Failure) {
                return Result<UInt16, AdminServer.Failure>.success(
                    try await AdminServer.start(
                        host: wanted.host,
                        port: wanted.port,
                        pages: pages,
                        logger: logger
                    )
                )
            } catch {
                return .failure(error)
            }
        }
        let address = AdminAddress(host: wanted.host, port: try started.get())
        logger.record(
            .info,
            "admin",
            "health, readiness and metrics are served",
            ["admin": .string(address.description)]
        )
        return address
    }

    // MARK: until the end

    /// Waits for signals and for the shard's end.
    private static func watch(
        _ controls: [ShardControl],
        _ ending: Ending,
        _ pages: AdminPages,
        _ logger: Logger,
        _ options: ServerOptions,
        whenReady: () -> Void
    ) -> Int32 {
        var isReady = false
        var isStopping = false
        while true {
            // Readiness is looked for; afterwards nothing wakes this thread but a signal.
            switch ProcessSignals.wait(milliseconds: isReady || isStopping ? nil : 2) {
            case .stop(let name):
                if isStopping {
                    logger.record(.critical, "killed", "\(name) again: ending at once")
                    return 1
                }
                isStopping = true
                logger.record(.notice, "stopping", "\(name): bringing to disk what was promised")
                pages.beginStop()
                for control in controls { control.stop() }
            case .poke, .timeout: break
            }
            if !isReady, controls.allSatisfy({ $0.current.stage == "ready" }) {
                isReady = true
                if !isStopping { whenReady() }
            }
            if let end = ending.value {
                let failure = controls.compactMap(\.current.failure).first
                return finish(end, failure, isStopping, logger)
            }
        }
    }

    private static func finish(
        _ end: ShardEnd,
        _ failure: String?,
        _ wasAsked: Bool,
        _ logger: Logger
    ) -> Int32 {
        switch end {
        case .failed(let what):
            logger.record(.critical, "failed", "\(what)")
            return 1
        case .stopped:
            if let failure {
                logger.record(.critical, "failed", "stopped after a storage failure: \(failure)")
                return 1
            }
            guard wasAsked else {
                logger.record(.critical, "failed", "the shard ended without being asked")
                return 1
            }
            logger.record(.notice, "stopped", "all that was promised is on disk")
            return 0
        }
    }

    // MARK: what is said

    private static func number(_ value: UInt64) -> Logger.MetadataValue {
        .stringConvertible(value)
    }
    private static func number(_ value: Int) -> Logger.MetadataValue { .stringConvertible(value) }

    private static func hex(_ value: UInt64) -> Logger.MetadataValue {
        let digits = String(value, radix: 16)
        return .string(String(repeating: "0", count: 16 - digits.count) + digits)
    }

    private static func say(
        _ facts: [Pair],
        _ host: HostFacts,
        _ loop: LoopDecision,
        _ directAlignment: Int?,
        _ options: ServerOptions,
        _ logger: Logger
    ) {
        var fields: Logger.Metadata = [:]
        for fact in facts { fields[fact.name] = .string(fact.value) }
        fields["pid"] = .stringConvertible(getpid())
        logger.record(.info, "starting", "brokerd \(version)", fields)
        if let refusal = loop.refusal {
            logger.record(
                .warning,
                "loop-fallback",
                "running on epoll, which is slower: io_uring is refused (\(refusal.cause.rawValue)): \(refusal)",
                ["cause": .string(refusal.cause.rawValue)]
            )
        }
        if directAlignment == nil {
            logger.record(
                .warning,
                "no-direct-io",
                "direct I/O: \(HostFacts.directText(nil))",
                ["data_dir": .string(options.dataDirectory)]
            )
        }
        if let conflict = host.interruptConflict(cpu: options.cpu) {
            logger.record(.notice, "disk-interrupt", "\(conflict)")
        }
    }

    private static func sayReady(
        _ controls: [ShardControl],
        _ sockets: Sockets,
        _ admin: AdminAddress?,
        _ options: ServerOptions,
        _ logger: Logger
    ) {
        let published = controls[0].current
        var fields: Logger.Metadata = [
            "listen": .array(sockets.addresses.map { .string($0.description) }),
            "admin": .string(admin?.description ?? "off"),
        ]
        if controls.count > 1 {
            fields["shards"] = number(controls.count)
            fields["shard_addresses"] = .array(
                sockets.shardAddresses.map { .string("\($0.shard)=\($0.address)") }
            )
        }
        for (shard, control) in controls.enumerated().dropFirst() {
            var named = logger
            named[metadataKey: "shard"] = "\(shard)"
            if let recovery = control.current.recovery {
                sayRecovery(recovery, control.current.recoverySeconds ?? 0, named)
            }
        }
        if let loop = published.loop { fields["loop"] = .string(loop.kind.rawValue) }
        if let serverID = published.serverID { fields["server_id"] = hex(serverID) }
        if let recovery = published.recovery {
            let seconds = published.recoverySeconds ?? 0
            fields["epoch"] = number(recovery.term)
            fields["recovery_seconds"] = .stringConvertible(seconds)
            fields["new_directory"] = .stringConvertible(recovery.isNewDirectory)
            fields["clean"] = .stringConvertible(recovery.wasClean)
            fields["journal_bytes_read"] = number(recovery.journalBytesRead)
            fields["journal_entries"] = number(recovery.journalEntries)
            fields["records_replayed"] = number(recovery.recordsReplayed)
            fields["torn_bytes"] = number(recovery.tornBytes)
            fields["lost_ranges"] = number(recovery.lostRanges.count)
            sayRecovery(recovery, seconds, logger)
        }
        if let geometry = published.geometry, geometry != options.geometry {
            logger.record(
                .notice,
                "journal-size",
                "the journal's size is that of the data directory, not --journal-size",
                [
                    "journal_bytes": number(geometry.capacity),
                    "journal_files": number(geometry.fileCount),
                ]
            )
        }
        logger.record(.notice, "ready", "serving clients", fields)
    }

    private static func sayRecovery(
        _ recovery: RecoveryReport,
        _ seconds: Double,
        _ logger: Logger
    ) {
        if recovery.isNewDirectory {
            logger.record(.info, "recovered", "made a new data directory")
            return
        }
        if recovery.tornBytes > 0 {
            logger.record(
                .warning,
                "torn-tail",
                "cut off what a crash left unfinished at the journal's end: nothing of it was confirmed",
                ["torn_bytes": number(recovery.tornBytes)]
            )
        }
        // The report names each range; the log names the first ones.
        for range in recovery.lostRanges.prefix(100) {
            logger.record(.warning, "lost-range", "memory records were lost: \(range)")
        }
        logger.record(
            .info,
            "recovered",
            "\(recovery.wasClean ? "a clean stop" : "a crash") was recovered from",
            [
                "seconds": .stringConvertible(seconds),
                "journal_groups": number(recovery.journalGroups),
                "removed_files": number(recovery.removedFiles),
            ]
        )
    }
}

/// The listening sockets, opened before recovery: a port in use is found out first, and clients wait
/// in the backlog meanwhile.
private struct Sockets {
    private final class Open {
        let listener: Listener
        init(_ listener: consuming Listener) { self.listener = listener }
    }
    private var open: [Open] = []
    /// By shard: where it alone listens. Empty with one shard, which is at every address.
    private var own: [[Open]] = []
    let addresses: [ServerAddress]
    let descriptors: [Int32]

    init(
        _ wanted: [ServerAddress], shards: Int, peerNanoseconds: UInt64
    ) throws(SystemError) {
        func listen(_ address: ServerAddress) throws(SystemError) -> Open {
            Open(try Listener(address, peerNanoseconds: peerNanoseconds))
        }
        var open: [Open] = []
        for address in wanted { open.append(try listen(address)) }
        addresses = open.map { $0.listener.address }
        descriptors = open.map { $0.listener.descriptor }
        self.open = open
        guard shards > 1 else { return }
        for shard in 0..<shards {
            var listeners: [Open] = []
            for address in addresses {
                listeners.append(try listen(address.ofShard(shard, wanted: wanted)))
            }
            own.append(listeners)
        }
    }

    var ownDescriptors: [[Int32]] { own.map { $0.map { $0.listener.descriptor } } }

    /// What HELLO answers: where each shard can be reached directly.
    var shardAddresses: [ShardAddress] {
        guard !own.isEmpty else {
            return addresses.map { ShardAddress(shard: 0, address: $0.description) }
        }
        return own.enumerated().flatMap { shard, listeners in
            listeners.map {
                ShardAddress(
                    shard: UInt16(shard), address: $0.listener.address.description)
            }
        }
    }

    /// Removes the files of Unix sockets as well.
    func close() { withExtendedLifetime((open, own)) {} }
}

extension ServerAddress {
    /// Where one shard listens for itself: the ports behind that of the address, or any where that was
    /// any; a socket file's name with the shard behind it.
    fileprivate func ofShard(_ shard: Int, wanted: [ServerAddress]) -> ServerAddress {
        switch self {
        case .tcp(let host, let port):
            let isAny = !wanted.contains { $0 == self }
            let next = UInt32(port) + 1 + UInt32(shard)
            return .tcp(host: host, port: isAny || next > UInt32(UInt16.max) ? 0 : UInt16(next))
        case .unix(let path): return .unix(path: "\(path).\(shard)")
        }
    }
}
