internal import ArgumentParser
internal import Glibc

/// Measures a broker over its wire protocol, and the machine beside it.
@main
struct BrokerLoad: ParsableCommand {
    static let version = "0.1.0"

    static let configuration = CommandConfiguration(
        commandName: "brokerload",
        abstract: "Measure a Millrace broker over its wire protocol, and the machine beside it.",
        discussion: """
            One thread drives all connections and spins; give it a core with --cpu.
            Exit status: 0 done, 1 errors were counted, 2 usage, 3 the server can't be reached.

            Examples:
              brokerload publish --durability memory --size 64 --window 1 --cpu 1
              brokerload baseline --dir /var/lib/millrace --frame-sizes 138 --out baseline.json
            """,
        version: version,
        subcommands: [
            PublishCommand.self, EndToEndCommand.self, ConsumeCommand.self, ReplayCommand.self,
            BaselineCommand.self, HoldCommand.self, MakeCommand.self,
        ]
    )

    static func main() {
        do {
            var command = try parseAsRoot()
            try command.run()
        } catch let error as LoadError {
            StandardError.print("brokerload: \(error)")
            Glibc.exit(error.exitStatus)
        } catch {
            let code = exitCode(for: error)
            let text = fullMessage(for: error)
            if code.isSuccess {
                if !text.isEmpty { print(text) }
                Glibc.exit(0)
            }
            StandardError.print(text)
            Glibc.exit(2)
        }
    }
}
