internal import ArgumentParser
internal import BlockingClient
internal import Glibc
internal import WireProtocol

extension Storage {
    struct Verify: ParsableCommand {
        static var configuration: CommandConfiguration {
            CommandConfiguration(
                abstract: "Check the segments on disk now, and name what is damaged.",
                discussion: """
                    Reads every segment as far as it is on stable storage, within the server's scrub \
                    bandwidth, and says on standard error how far it is. Exits with 0 when all is as \
                    it was written, with 4 when something is damaged or could not be read. The check \
                    goes on when this command is stopped. With -o csv the damages alone.

                    Examples:
                      brokerctl storage verify
                      brokerctl storage verify orders --bandwidth 64MiB -o json
                    """
            )
        }

        @OptionGroup var global: GlobalOptions
        @Argument(help: "Only this queue.")
        var queue: String?
        @Option(
            help: ArgumentHelp(
                "What each shard may read per second; without it what the server is set to.",
                valueName: "size"
            )
        )
        var bandwidth: ByteSize?

        /// How often it is asked how far the check is.
        private static let pauseMicroseconds: UInt32 = 200_000

        func run() throws {
            let connection = try global.connect()
            let what = queue.map { "queue \($0)" } ?? "all queues"
            let asked = try attempting("verify \(what)") { () throws(ClientError) in
                try connection.request(
                    .storageVerify,
                    StorageVerifyRequest(queue: queue ?? "", bandwidth: bandwidth?.bytes ?? 0),
                    reply: StorageVerifyReply.self,
                    timeoutMilliseconds: global.timeoutMilliseconds
                )
            }
            var said = ""
            while true {
                let shards = try StorageFacts.shards(on: connection, global)
                let progress = Progress(asked.checks, shards)
                if progress.isStopped {
                    throw Failure.declined(
                        "verify \(what) failed: a shard's storage failed, and it checks no more"
                    )
                }
                if progress.isDone { break }
                if progress.text != said {
                    said = progress.text
                    ControlTool.complain("verify \(what): \(said)")
                }
                usleep(Self.pauseMicroseconds)
            }
            let facts = try StorageFacts(of: queue ?? "", on: connection, global)
            try global.output.print(StorageRows.verification(facts))
            let (damages, unread) = (
                facts.partitions.reduce(0) { $0 + $1.damages.count },
                facts.partitions.reduce(0) { $0 + Int($1.unreadSegments) }
            )
            guard damages == 0, unread == 0 else {
                throw Failure.damaged(
                    "verify \(what): \(damages) damaged ranges, \(unread) segments that can't be read"
                )
            }
        }
    }
}

/// How far the checks of a request are, over all shards.
struct Progress {
    private(set) var isDone = true
    private(set) var isStopped = false
    private(set) var text = ""

    init(_ checks: [StorageCheck], _ shards: [ShardStorage]) {
        var parts: [String] = []
        for check in checks {
            // A shard that says nothing is asked again.
            guard let shard = shards.first(where: { $0.shard == check.shard }) else {
                isDone = false
                continue
            }
            guard shard.done < check.number else { continue }
            isDone = false
            if shard.state == ShardStorage.State.stopped.rawValue { isStopped = true }
            guard shard.begun >= check.number else {
                parts.append("shard \(check.shard) begins when other checks are done")
                continue
            }
            let checked = HumanText.size(shard.checkedBytes)
            let all = HumanText.size(shard.checkBytes)
            let waits = shard.state == ShardStorage.State.waiting.rawValue
            parts.append(
                "shard \(check.shard) has read \(checked) of \(all)"
                    + (waits ? " and waits for the disk" : "")
            )
        }
        text = parts.joined(separator: ", ")
    }
}
