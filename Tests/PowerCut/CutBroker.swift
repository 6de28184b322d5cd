internal import BrokerBasics
internal import ChildProcess
internal import FuseDisk
internal import ReplayHarness

/// A real broker whose data is on a disk of ours.
final class CutBroker {
    /// The same for all lives of a disk, so that clients find the next one.
    let place: BrokerPlace
    let ready: Duration
    private let child: BrokerChild
    /// Goes after the child, which uses it.
    private let disk: MountedDisk

    /// Small in everything, so that the journal goes round, segments roll and checkpoints come all
    /// the time.
    private static let options = [
        "--journal-size", "1MiB", "--frame-bytes-max", "64KiB", "--segment-size", "1MiB",
        "--chunk-size", "16KiB",
        "--tail-memory", "8MiB", "--checkpoint-interval", "100ms",
        "--memory-flush-interval", "5ms", "--connections-max", "256", "--files-max", "256",
        "--idle", "block",
    ]

    /// Starts it and waits until it serves: it never refuses.
    init(
        _ program: String,
        on disk: MountedDisk,
        loop: String,
        shards: Int,
        at place: BrokerPlace = BrokerPlace(),
        launcher: [String] = [],
        log: String
    ) throws {
        self.place = place
        self.disk = disk
        var options = BrokerChild.Options(
            executable: program,
            dataDirectory: disk.path + "/data",
            logPath: log
        )
        options.more = Self.options + ["--loop", loop, "--shards", "\(shards)"]
        // It ends with this process, however that ends, and so does the mount that it uses.
        options.launcher = ["setpriv", "--pdeathsig", "KILL"] + launcher
        child = try BrokerChild(options)
        let ready = try child.waitUntilReady(
            timeoutMilliseconds: 60_000,
            isWanted: { !Interrupt.isWanted }
        )
        self.ready = ready.elapsed
        place.current = .tcp(host: BrokerChild.host, port: ready.port)
    }

    /// It must not have ended by itself.
    func check() throws {
        if let end = child.end {
            throw SystemFailure(text: "brokerd ended with \(end):\n\(child.lastWords)")
        }
    }

    func kill() {
        place.current = nil
        child.kill()
    }

    /// SIGTERM, and its end with exit code 0.
    func stop() throws {
        place.current = nil
        guard let end = child.stop(timeoutMilliseconds: 60_000) else {
            throw SystemFailure(text: "brokerd does not stop:\n\(child.lastWords)")
        }
        guard end == .exited(0) else {
            throw SystemFailure(text: "brokerd ended with \(end):\n\(child.lastWords)")
        }
    }

    deinit { child.kill() }
}
