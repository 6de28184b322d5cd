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
            "Publish to this queue, made when there is none, and keep it; of several: NAME-0 and so on.",
            valueName: "NAME"
        )
    )
    var keep: String?

    @Option(
        help: ArgumentHelp(
            "Open loop: so many records per second in all, as far as the window allows.",
            valueName: "N"
        )
    )
    var rate: Double?

    func run() throws {
        var workload = try options.workload(.publish, queues: queues, server: server)
        workload.keptQueue = keep
        if let rate {
            guard rate > 0, rate <= 1e9, !options.closedLoop else {
                throw ValidationError("--rate must be above 0, and without --closed-loop")
            }
            workload.framesPerSecond = rate / Double(options.batch)
        }
        Interrupt.install()
        try server.conclude([try workload.run()])
    }
}
