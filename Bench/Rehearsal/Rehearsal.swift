internal import ArgumentParser
internal import ChildProcess
internal import Glibc

/// Replays real input through a broker, kills it in the middle, and says what became of it.
@main
struct Rehearsal: ParsableCommand {
    static var configuration: CommandConfiguration {
        CommandConfiguration(
            commandName: "rehearsal",
            abstract: "Replay order events and a market-data feed through a broker that is killed.",
            discussion: """
                Starts a brokerd on a data directory of its own, publishes order events to the \
                queue orders (synced) and a market-data feed to the queue marketdata (memory) while \
                others read them, kills the broker with SIGKILL in the middle, restarts it, goes \
                on, and then reads everything back. The exit code is 0 when every promise was kept.

                Without files the input is generated, in the same two formats.

                Examples:
                  rehearsal
                  rehearsal --feed btcusdt.feed.gz --orders aapl.lobster.csv
                """
        )
    }

    @Option(
        help: ArgumentHelp(
            """
            A recorded feed: receive time in ns, a blank, a JSON object with its stream's name, \
            one a line; may be packed by gzip.
            """,
            valueName: "file"
        )
    )
    var feed: String?
    @Option(
        help: ArgumentHelp(
            "Recorded order events in the LOBSTER format, one a line; may be packed by gzip.",
            valueName: "file"
        )
    )
    var orders: String?
    @Option(
        help: ArgumentHelp(
            "Decides the generated input, the batches and the moment of the kill.",
            valueName: "number"
        )
    )
    var seed: UInt64?
    @Option(
        help: ArgumentHelp("The broker to run; by default the one beside this.", valueName: "path")
    )
    var brokerd: String?
    @Option(help: ArgumentHelp("How long to publish.", valueName: "seconds"))
    var seconds = 16
    @Option(help: ArgumentHelp("Records a second, of each of the two.", valueName: "number"))
    var rate = 20_000
    @Option(help: ArgumentHelp("Give up after so long.", valueName: "seconds"))
    var secondsMax = 60

    func validate() throws {
        guard (2...3_600).contains(seconds) else {
            throw ValidationError("--seconds takes 2 to 3600")
        }
        guard (seconds...86_400).contains(secondsMax) else {
            throw ValidationError("--seconds-max takes \(seconds), as --seconds does, to 86400")
        }
        guard (100...1_000_000).contains(rate) else {
            throw ValidationError("--rate takes 100 to 1000000 records a second")
        }
    }

    func run() throws {
        guard let broker = brokerd ?? Executable.beside("brokerd") else {
            throw ValidationError("there is no brokerd beside this program: name one by --brokerd")
        }
        signal(SIGPIPE, SIG_IGN)
        Interrupt.listen()
        let settings = RehearsalRun.Settings(
            feed: feed,
            orders: orders,
            seed: seed ?? UInt64.random(in: 1...999_999),
            brokerd: broker,
            seconds: seconds,
            recordsPerSecond: rate,
            secondsMax: secondsMax
        )
        var isGood = false
        do throws(RunFailure) {
            // What it started and made is gone when it returns, whatever happened.
            isGood = try RehearsalRun(settings).run()
        } catch {
            Console.line("rehearsal: \(error)")
        }
        Console.line(isGood ? "\nPASS" : "\nFAIL (again: --seed \(settings.seed))")
        guard isGood else { throw ExitCode(1) }
    }
}
