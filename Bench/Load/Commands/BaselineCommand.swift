internal import ArgumentParser
internal import CBaseline

struct BaselineCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "baseline",
        abstract: "What the machine does without a broker: a C echo and raw appends.",
        discussion: """
            The echo returns frames over loopback TCP, its server on --server-cpu and its client on
            --cpu, at one frame in flight and at --connections × --window. With --dir, raw
            O_DIRECT|RWF_DSYNC appends are made on --server-cpu, and then a journal and a segment
            stream together. The test files have no names and are gone when the run ends.

            Examples:
              brokerload baseline --frame-sizes 138,1100 --server-cpu 0 --cpu 1
              brokerload baseline --dir /var/lib/millrace --out baseline.json
            """
    )

    @Option(help: ArgumentHelp("Append to test files in this directory.", valueName: "DIR"))
    var dir: String?

    @Option(help: ArgumentHelp("Echo frames of these sizes; none: no echo.", valueName: "LIST"))
    var frameSizes = "138"

    @Option(help: ArgumentHelp("Echo connections, besides one.", valueName: "N"))
    var connections = 8

    @Option(
        help: ArgumentHelp("Echo frames in flight per connection, besides one.", valueName: "N")
    )
    var window = 32

    @Option(
        help: ArgumentHelp(
            "Only what is named so, from the front: 'echo 138 B, 1', 'append 131072'. Repeatable.",
            valueName: "NAME"
        )
    )
    var only: [String] = []

    @Flag(help: "Sleep in the kernel instead of spinning (echo only).")
    var blocking = false

    @Option(help: ArgumentHelp("Append so many bytes at a time.", valueName: "LIST"))
    var appendSizes = "1024,4096,32768,131072"

    @Option(help: ArgumentHelp("Size of each test file, in MiB.", valueName: "MIB"))
    var fileMib = 1024

    @Option(
        name: .customLong("server-cpu"),
        help: ArgumentHelp("The CPU of the echo's server and of the appends.", valueName: "N")
    )
    var serverCPU: Int?

    @Option(help: ArgumentHelp("The CPU of the echo's client.", valueName: "N"))
    var cpu: Int?

    @Option(help: ArgumentHelp("Measure each for so long.", valueName: "SECONDS"))
    var duration = 2.0

    @Option(help: ArgumentHelp("Run each for so long before measuring.", valueName: "SECONDS"))
    var warmup = 0.3

    @Option(
        help: ArgumentHelp("Write the results as JSON; - is standard output.", valueName: "FILE")
    )
    var out: String?

    func run() throws {
        guard duration > 0, duration <= 3600, warmup >= 0, warmup <= 3600 else {
            throw ValidationError("--duration must be above 0 and, like --warmup, at most an hour")
        }
        guard (1...64).contains(connections), (1...65_536).contains(window),
            (1...65_536).contains(fileMib)
        else { throw ValidationError("--connections, --window or --file-mib is out of range") }
        var baseline = Baseline()
        baseline.directory = dir
        baseline.frameSizes =
            frameSizes == "none" ? [] : try sizes(frameSizes, limit: 1 << 20, "--frame-sizes")
        baseline.appendSizes = try sizes(appendSizes, limit: 1 << 24, "--append-sizes")
        baseline.connections = connections
        baseline.window = window
        baseline.blocking = blocking
        baseline.only = only
        baseline.fileBytes = UInt64(fileMib) << 20
        baseline.serverCPU = serverCPU
        baseline.clientCPU = cpu
        baseline.warmupNanoseconds = UInt64(warmup * 1e9)
        baseline.durationNanoseconds = UInt64(duration * 1e9)
        let reports = try baseline.run()
        try LoadReport.publish(reports, machine: Machine(diskOf: dir), to: out, asList: true)
    }

    private func sizes(_ list: String, limit: Int, _ option: String) throws -> [Int] {
        try list.split(separator: ",").map { text in
            guard let size = Int(text), (1...limit).contains(size) else {
                throw ValidationError("\(option): \(text) is not 1 to \(limit) bytes")
            }
            return size
        }
    }
}
