internal import ArgumentParser
internal import WireProtocol

struct ReplayCommand: ParsableCommand {
    enum Speed: String, ExpressibleByArgument, CaseIterable { case max }

    static let configuration = CommandConfiguration(
        commandName: "replay",
        abstract: "Publish recordings: order events and a market-data feed.",
        discussion: """
            Each recording goes to its queue over a connection of its own, both at the same time: the
            line is the payload, its time the record's, and the key is the order id or the feed's
            stream. A named queue is made when it is missing, and kept; without a name the queue is
            the run's own and is deleted. Recordings that begin as gzip does are read through gzip.

            Examples:
              brokerload replay --orders orders.csv --feed day.feed.gz
              brokerload replay --feed day.feed.gz --feed-queue marketdata --window 64
            """
    )

    @OptionGroup var server: ServerOptions

    @Option(help: ArgumentHelp("Order events in LOBSTER format.", valueName: "FILE"))
    var orders: String?

    @Option(help: ArgumentHelp("A feed: a time, a space, a JSON object a line.", valueName: "FILE"))
    var feed: String?

    @Option(help: ArgumentHelp("The queue for orders.", valueName: "NAME"))
    var ordersQueue: String?

    @Option(help: ArgumentHelp("The queue for the feed.", valueName: "NAME"))
    var feedQueue: String?

    @Option(help: ArgumentHelp("The level of the queue for orders: memory, written or synced."))
    var ordersDurability = DurabilityLevel.synced

    @Option(help: ArgumentHelp("The level of the queue for the feed: memory, written or synced."))
    var feedDurability = DurabilityLevel.memory

    @Option(help: ArgumentHelp("The level of both queues, over the two above."))
    var durability: DurabilityLevel?

    @Option(help: ArgumentHelp("How fast: as fast as the window allows.", valueName: "max"))
    var speed = Speed.max

    @Flag(help: "Send when an earlier frame is answered: the only mode for now.")
    var closedLoop = false

    @Option(help: ArgumentHelp("Frames in flight per queue.", valueName: "N"))
    var window = 1000

    @Option(help: ArgumentHelp("Records per frame.", valueName: "N"))
    var batch = 1

    @Option(help: ArgumentHelp("Partitions of a queue that is made.", valueName: "N"))
    var partitions = 1

    func run() throws {
        var sources: [Replay.Source] = []
        if let orders {
            sources.append(
                Replay.Source(
                    path: orders,
                    format: .orders,
                    queue: ordersQueue,
                    level: durability ?? ordersDurability
                )
            )
        }
        if let feed {
            sources.append(
                Replay.Source(
                    path: feed,
                    format: .feed,
                    queue: feedQueue,
                    level: durability ?? feedDurability
                )
            )
        }
        guard !sources.isEmpty else {
            throw ValidationError("nothing to replay: give --orders, --feed or both")
        }
        guard (1...Workload.windowMax).contains(window),
            (1...BatchBuilder.recordCountMax).contains(batch), (1...65_535).contains(partitions)
        else { throw ValidationError("--window, --batch or --partitions is out of range") }
        var replay = Replay(server: server.server, sources: sources)
        replay.partitions = partitions
        replay.batch = batch
        replay.window = window
        replay.cpu = server.cpu
        Interrupt.install()
        try server.conclude(try replay.run())
    }
}
