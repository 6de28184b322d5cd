internal import ArgumentParser
internal import WireProtocol

struct MakeCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "make",
        abstract: "Make queues that stay: NAME-0, NAME-1 and so on.",
        discussion: """
            `publish --keep NAME --queues N` writes to them.

            Examples:
              brokerload make many --queues 10000 --partitions 4 --durability synced
            """
    )

    @OptionGroup var server: ServerOptions

    @Argument(help: ArgumentHelp("What their names begin with.", valueName: "NAME"))
    var name: String

    @Option(help: ArgumentHelp("How many.", valueName: "N"))
    var queues = 1000

    @Option(help: ArgumentHelp("Partitions of each.", valueName: "N"))
    var partitions = 1

    @Option(help: ArgumentHelp("Their durability level: memory, written or synced."))
    var durability = DurabilityLevel.synced

    func run() throws {
        guard (1...100_000).contains(queues), (1...65_535).contains(partitions) else {
            throw ValidationError("--queues must be 1 to 100000, --partitions 1 to 65535")
        }
        Interrupt.install()
        let session = try LoadSession(address: server.server)
        for index in 0..<queues where !Interrupt.isRaised {
            _ = try session.keptQueue(
                LoadSession.keptName(name, index, of: queues),
                partitions: partitions,
                level: durability
            )
        }
    }
}
