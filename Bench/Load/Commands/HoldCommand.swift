internal import ArgumentParser
internal import BrokerBasics
internal import Glibc

struct HoldCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "hold",
        abstract: "Hold connections that say HELLO and nothing more.",
        discussion: """
            They are opened one after the other, held for the time given, and closed. It fails when the
            broker closes one of them meanwhile.

            Examples:
              brokerload hold --connections 10000 --duration 30
            """
    )

    @OptionGroup var server: ServerOptions

    @Option(help: ArgumentHelp("How many.", valueName: "N"))
    var connections = 1000

    @Option(help: ArgumentHelp("Hold them for so long.", valueName: "SECONDS"))
    var duration = 10.0

    func run() throws {
        guard duration > 0, duration <= 86_400, (1...50_000).contains(connections) else {
            throw ValidationError(
                "--duration must be above 0 and at most a day, --connections 1 to 50000"
            )
        }
        var limit = rlimit()
        let files = __rlimit_resource_t(UInt32(RLIMIT_NOFILE.rawValue))
        getrlimit(files, &limit)
        limit.rlim_cur = min(limit.rlim_max, rlim_t(connections + 64))
        setrlimit(files, &limit)
        Interrupt.install()
        var held: [ControlConnection] = []
        for _ in 0..<connections where !Interrupt.isRaised {
            held.append(try ControlConnection(to: server.server, name: "brokerload hold"))
        }
        StandardError.print("brokerload: \(held.count) connections are held")
        let ticks = UInt64(duration * 1e9) / .milliseconds(50)
        for _ in 0..<max(1, ticks) where !Interrupt.isRaised { usleep(50_000) }
        for connection in held { try connection.checkIsOpen() }
    }
}
