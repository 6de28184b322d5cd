internal import ArgumentParser
internal import BlockingClient
internal import WireProtocol

struct Backup: ParsableCommand {
    static var configuration: CommandConfiguration {
        CommandConfiguration(
            abstract: "Make an image of the data directory while the broker serves.",
            discussion: """
                The server makes it on its own machine, below its --backup-dir, and it holds at least \
                what was confirmed when this was asked for. Restore it by a start on it, or on a copy: \
                brokerd --data-dir IMAGE. An image on the file system of the data directory shares \
                files with it: copy it away, and check it by brokerd --data-dir IMAGE --check-only.

                Examples:
                  brokerctl backup 2026-11-22
                  brokerctl backup before-upgrade --bandwidth 100MiB -o json
                """
        )
    }

    @OptionGroup var global: GlobalOptions
    @Argument(help: "The image's name: a folder below the server's --backup-dir.")
    var name: String
    @Option(
        help: ArgumentHelp(
            "What may be written per second; without it as fast as it goes.",
            valueName: "size"
        )
    )
    var bandwidth: ByteSize?
    @Option(
        help: ArgumentHelp("How long to wait until it is whole.", valueName: "seconds")
    )
    var patience: UInt32 = 86_400

    func run() throws {
        let connection = try global.connect()
        let made = try attempting("backup \(name)") { () throws(ClientError) in
            try connection.request(
                .backup,
                BackupRequest(name: name, bandwidth: bandwidth?.bytes ?? 0),
                reply: BackupReply.self,
                timeoutMilliseconds: Int(patience) * 1000
            )
        }
        try global.output.print(
            Report(facts: [
                (.init("path"), .text(made.path)), (.init("segments"), .count(made.files)),
                (.init("linked_segments", "LINKED"), .count(made.linkedFiles)),
                (.init("copied_bytes", "COPIED"), .bytes(made.copiedBytes)),
                (
                    .init("nanoseconds", "TIME"),
                    .duration(min(made.milliseconds, 1 << 40) * 1_000_000)
                ),
            ])
        )
    }
}
