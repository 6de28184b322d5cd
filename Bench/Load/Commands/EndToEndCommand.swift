internal import ArgumentParser

struct EndToEndCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "e2e",
        abstract: "Time from sending a publish to its delivery on another connection.",
        discussion: """
            A frame is in flight until it is delivered. One subscription reads the whole queue, in
            the same thread, and checks that offsets have no gap.

            Examples:
              brokerload e2e --size 64 --window 1 --cpu 1
              brokerload e2e --size 64 --window 1000 --out e2e.json
            """
    )

    @OptionGroup var server: ServerOptions
    @OptionGroup var options: WorkloadOptions

    func run() throws {
        let workload = try options.workload(.endToEnd, queues: 1, server: server)
        Interrupt.install()
        try server.conclude([try workload.run()])
    }
}
