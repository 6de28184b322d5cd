internal import ArgumentParser

struct PublishCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "publish",
        abstract: "Time from sending a publish to its confirm.",
        discussion: """
            Makes queues of its own and deletes them at the end, or fills one that stays.

            Examples:
              brokerload publish --durability synced --size 1024 --window 1 --cpu 1
              brokerload publish --durability synced --size 256 --window 1000 --out synced.json
            """
    )

    @OptionGroup var server: ServerOptions
    @OptionGroup var options: WorkloadOptions

    @Option(help: ArgumentHelp("Queues, written in turn.", valueName: "N"))
    var queues = 1

    @Option(
        help: ArgumentHelp(
            "Publish to this queue, made when there is none, and keep it.",
            valueName: "NAME"
        )
    )
    var keep: String?

    func run() throws {
        var workload = try options.workload(.publish, queues: queues, server: server)
        guard keep == nil || queues == 1 else {
            throw ValidationError("--keep names one queue; leave --queues away")
        }
        workload.keptQueue = keep
        Interrupt.install()
        try server.conclude([try workload.run()])
    }
}
