public import ArgumentParser
internal import BrokerBasics
internal import WireProtocol

extension DurabilityLevel: ExpressibleByArgument {
    package init?(argument: String) {
        guard let level = Self(name: argument) else { return nil }
        self = level
    }
    package static var allValueStrings: [String] { Self.allCases.map(\.name) }
}

extension IdleMode: ExpressibleByArgument {}

/// Where, and what to do with the result: every command that talks to a broker.
struct ServerOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "The broker. (default: \(ServerAddress.standard))",
            valueName: "HOST:PORT|unix:PATH"
        ),
        transform: { try ServerAddress(parsing: $0) }
    )
    var server = ServerAddress.standard

    @Option(
        help: ArgumentHelp("Pin the driver to this CPU; keep the broker off it.", valueName: "N")
    )
    var cpu: Int?

    @Option(
        help: ArgumentHelp(
            "Describe the disk of this directory (the broker's) in the result.",
            valueName: "DIR"
        )
    )
    var diskOf: String?

    @Option(
        help: ArgumentHelp("Write the result as JSON; - is standard output.", valueName: "FILE")
    )
    var out: String?
}

/// What `publish` and `e2e` have in common.
struct WorkloadOptions: ParsableArguments {
    @Option(help: ArgumentHelp("The queue's durability level: memory, written or synced."))
    var durability = DurabilityLevel.memory

    @Option(help: ArgumentHelp("Payload bytes per record.", valueName: "BYTES"))
    var size = 64

    @Option(help: ArgumentHelp("Records per frame.", valueName: "N"))
    var batch = 1

    @Flag(help: "Send when an earlier frame is answered: the only mode for now.")
    var closedLoop = false

    @Option(help: ArgumentHelp("Frames in flight per connection.", valueName: "N"))
    var window = 1

    @Option(help: ArgumentHelp("Publishing connections.", valueName: "N"))
    var connections = 1

    @Option(help: ArgumentHelp("Partitions per queue, written in turn.", valueName: "N"))
    var partitions = 1

    @Option(help: ArgumentHelp("Measure for so long.", valueName: "SECONDS"))
    var duration = 10.0

    @Option(help: ArgumentHelp("Run for so long before measuring.", valueName: "SECONDS"))
    var warmup = 1.0

    @Option(
        help: ArgumentHelp(
            "While nothing comes: spin, on a core of its own, or block, on one that it shares."))
    var idle = IdleMode.spin

    func workload(
        _ kind: Workload.Kind,
        queues: Int,
        server: ServerOptions
    ) throws -> Workload {
        guard duration > 0, duration <= 86_400, warmup >= 0, warmup <= 3600 else {
            throw ValidationError(
                "--duration must be above 0 and at most a day, --warmup at most an hour"
            )
        }
        var workload = Workload(kind: kind, server: server.server, level: durability, size: size)
        workload.batch = batch
        workload.window = window
        workload.connections = connections
        workload.partitions = partitions
        workload.queues = queues
        workload.durationNanoseconds = UInt64(duration * 1e9)
        workload.warmupNanoseconds = UInt64(warmup * 1e9)
        workload.cpu = server.cpu
        workload.idle = idle
        if let complaint = workload.complaint { throw ValidationError(complaint) }
        return workload
    }
}

extension ServerOptions {
    /// Writes the reports, then fails when errors were counted.
    func conclude(_ reports: [LoadReport]) throws(LoadError) {
        try LoadReport.publish(reports, machine: Machine(diskOf: diskOf), to: out, asList: false)
        if let failed = reports.first(where: { $0.failures.total > 0 }) {
            throw .counted(errors: failed.failures.total, summary: failed.failures.summary)
        }
        if Interrupt.isRaised { throw .interrupted }
    }
}
