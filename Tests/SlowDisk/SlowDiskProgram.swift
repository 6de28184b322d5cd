internal import ChildProcess
internal import FuseDisk
internal import Glibc
internal import Synchronization

/// Runs a broker on ext4 on a loop device over a file that this program serves by FUSE, and that is as slow as
/// it is told to be.
///
/// ```
/// slowdisk DIRECTORY BROKERD --data-dir DIRECTORY/mounted/data …    # it is told at DIRECTORY/control
/// slowdisk --probe                                                  # 77: it can't run here, and why
/// ```
///
/// SIGTERM is passed on, and the broker's exit code is this program's. Its mounts are in a namespace of their own
/// and go with it, however it ends; so does the broker.
@main
enum SlowDiskProgram {
    private static let skipped: Int32 = 77
    private static let failed: Int32 = 1
    private static let inNamespace = "--in-namespace"
    private static let diskBytes = 256 << 20

    static func main() {
        do {
            exit(try run(Array(CommandLine.arguments.dropFirst())))
        } catch {
            say("slowdisk: \(error)")
            exit(failed)
        }
    }

    private static func say(_ text: String) {
        let bytes = Array("\(text)\n".utf8)
        _ = write(2, bytes, bytes.count)
    }

    private static func run(_ arguments: [String]) throws -> Int32 {
        guard arguments.first == inNamespace else {
            if let reason = Environment.obstacle() {
                say("skipped: \(reason)")
                return skipped
            }
            try Environment.enterNamespace("slowdisk")
            return failed
        }
        let words = Array(arguments.dropFirst())
        let keeper = try Environment.keepNamespace()
        defer { withExtendedLifetime(keeper) {} }
        guard words.first != "--probe" else {
            do {
                try Environment.tryOut()
                return 0
            } catch {
                say("skipped: \(error)")
                return skipped
            }
        }
        guard words.count >= 2 else {
            throw SystemFailure(text: "usage: slowdisk DIRECTORY PROGRAM [ARGUMENT…]")
        }
        return try serve(in: words[0], Array(words[1...]))
    }

    private static func serve(in directory: String, _ command: [String]) throws -> Int32 {
        let disk = try RecordedDisk(byteCount: diskBytes)
        let mounted = try MountedDisk(disk, .journalled, in: directory, isNew: true)
        Ending.listen()
        let control = try Control(disk, at: directory + "/control")
        let child = try SpawnedChild(
            "setpriv", arguments: ["--pdeathsig", "KILL"] + command, output: .descriptor(1),
            errors: .descriptor(2))
        var isTold = false
        while true {
            if let end = child.wait(timeoutMilliseconds: 20) {
                control.stop()
                disk.slowness.delay(writeMilliseconds: 0, flushMilliseconds: 0)
                disk.slowness.release()
                try mounted.unmount()
                guard case .exited(let code) = end else { return failed }
                return code
            }
            if Ending.isWanted, !isTold {
                isTold = true
                child.signal(SIGTERM)
            }
        }
    }
}

/// Notes SIGTERM, which is for the broker.
private enum Ending {
    private static let flag = Atomic<Bool>(false)

    static var isWanted: Bool { flag.load(ordering: .relaxed) }

    static func listen() {
        // Made before a handler may ask for it: making it is nothing for a handler.
        flag.store(false, ordering: .relaxed)
        signal(SIGTERM) { _ in Ending.flag.store(true, ordering: .relaxed) }
        signal(SIGPIPE, SIG_IGN)
    }
}
