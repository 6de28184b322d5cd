internal import ArgumentParser

struct ConsumeCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "consume",
        abstract: "Read a queue from its start, as fast as it comes.",
        discussion: """
            One subscription reads every partition to where it was committed when the run began, again
            and again until the time is over. Offsets must have no gap, and one batch in 64 is checked.

            Examples:
              brokerload consume orders --duration 5
              brokerload consume orders --once --out replay.json
            """
    )

    @OptionGroup var server: ServerOptions

    @Argument(help: ArgumentHelp("The queue to read.", valueName: "QUEUE"))
    var queue: String

    @Option(help: ArgumentHelp("Read for so long.", valueName: "SECONDS"))
    var duration = 10.0

    @Flag(help: "Read it once, however long that takes.")
    var once = false

    func run() throws {
        guard duration > 0, duration <= 86_400 else {
            throw ValidationError("--duration must be above 0 and at most a day")
        }
        var consume = Consume(address: server.server, queue: queue)
        consume.durationNanoseconds = once ? nil : UInt64(duration * 1e9)
        consume.cpu = server.cpu
        Interrupt.install()
        try server.conclude([try consume.run()])
    }
}
