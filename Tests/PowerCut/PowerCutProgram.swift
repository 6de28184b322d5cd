internal import ArgumentParser
internal import ChildProcess
internal import FuseDisk
internal import Glibc

/// Cuts the power of a real broker's disk, again and again, and checks what is left.
@main
struct PowerCutProgram: ParsableCommand {
    static var configuration: CommandConfiguration {
        CommandConfiguration(
            commandName: "powercut",
            abstract: "Cut the power of a real broker's disk, and check what is left.",
            discussion: """
                Runs brokerd on ext4 on a loop device over a file that this program serves by FUSE \
                and that records every write and every flush. Then it puts disks together as a \
                power cut could have left them, mounts each, starts brokerd on it, reads \
                everything back and holds it against what the clients had been told by then.

                It wants root, /dev/fuse, loop devices and mkfs.ext4; where one is missing it says \
                so and ends with 77. Its mounts are in a namespace of their own and go with it.

                Exit code 0: every promise was kept, and every kind of fault was met.
                """
        )
    }

    static let skipped: Int32 = 77

    @Option(help: "How many cuts.")
    var cuts = 200
    @Option(help: "Decides what the clients do, and where and how the power is cut.")
    var seed: UInt64?
    @Option(help: ArgumentHelp("What the clients do in each recording.", valueName: "actions"))
    var steps = 1_500
    @Option(
        help: ArgumentHelp(
            "Half of the cuts are of a broker with so many shards; partitions move between them, and the number changes with the cut. 1: all are of one shard.",
            valueName: "count"
        )
    )
    var shards = 2
    @Flag(help: "Control: a disk that answers flushes and does nothing. Losses must be found.")
    var lying = false
    @Flag(help: "Control: a broker whose fsyncs do nothing. Losses must be found.")
    var withoutSync = false
    @Option(
        help: ArgumentHelp("Check again what an earlier run kept.", valueName: "directory")
    )
    var `repeat`: String?
    @Option(help: ArgumentHelp("Where broken cuts are kept.", valueName: "directory"))
    var keepIn = "/tmp"
    @Option(
        help: ArgumentHelp("The broker to run; by default the one beside this.", valueName: "path")
    )
    var brokerd: String?
    @Flag(help: "Only say whether it can run here.")
    var probe = false
    @Flag(help: .hidden)
    var inNamespace = false

    func validate() throws {
        guard cuts >= 1 else { throw ValidationError("--cuts takes 1 or more") }
        guard !lying || !withoutSync else {
            throw ValidationError("--lying and --without-sync are for runs of their own")
        }
        guard (1...8).contains(shards) else { throw ValidationError("--shards takes 1 to 8") }
        guard steps >= 10 else { throw ValidationError("--steps takes 10 or more") }
    }

    func run() throws {
        if let reason = Environment.obstacle() { try skip(reason) }
        if !inNamespace { try Environment.enterNamespace("powercut") }
        let keeper = try Environment.keepNamespace()
        defer { withExtendedLifetime(keeper) {} }
        do {
            try Environment.tryOut()
            try tryBootID()
        } catch {
            try skip("\(error)")
        }
        if probe { return }
        guard let broker = brokerd ?? Executable.beside("brokerd") else {
            throw ValidationError("there is no brokerd beside this program: name one by --brokerd")
        }
        signal(SIGPIPE, SIG_IGN)
        Interrupt.listen()
        var isGood = false
        let seed = seed ?? UInt64.random(in: 1...999_999)
        do {
            isGood = try `repeat`.map { try again($0, broker) } ?? cutAll(seed, broker)
        } catch {
            Console.line("powercut: \(error)")
        }
        Console.line(isGood ? "PASS" : "FAIL (seed \(seed))")
        guard isGood else { throw ExitCode(1) }
    }

    private func tryBootID() throws {
        let directory = try TemporaryDirectory(prefix: "millrace-powercut")
        // Not with its last use, while something is mounted over its file.
        defer { directory.remove() }
        _ = try BootID(in: directory.path, seed: 0)
    }

    private func skip(_ reason: String) throws {
        Console.line("skipped: \(reason)")
        throw ExitCode(Self.skipped)
    }

    private func cutAll(_ seed: UInt64, _ broker: String) throws -> Bool {
        let control: Campaign.Control = lying ? .lyingDisk : withoutSync ? .withoutSync : .none
        Console.line("powercut: seed \(seed), \(cuts) cuts, broken on purpose: \(control)")
        var campaign = try Campaign(
            .init(
                cuts: cuts,
                seed: seed,
                steps: steps,
                shards: shards,
                brokerd: broker,
                control: control,
                keepIn: keepIn
            )
        )
        return try campaign.run()
    }

    private func again(_ path: String, _ broker: String) throws -> Bool {
        let kept = try KeptCut.load(path)
        let directory = try TemporaryDirectory(prefix: "millrace-powercut")
        // Not with its last use, while something is mounted in it.
        defer { directory.remove() }
        let run = CutRun(
            filesystem: kept.filesystem,
            loop: kept.loop,
            shards: kept.shards,
            brokerd: broker,
            directory: directory.path,
            boot: try BootID(in: directory.path, seed: UInt64.random(in: 0...UInt64.max))
        )
        let outcome = try run.judge(
            try KeptCut.image(path),
            kept.history,
            resends: kept.resends
        )
        for fault in outcome.faults { Console.line(fault) }
        return outcome.faults.isEmpty
    }
}
