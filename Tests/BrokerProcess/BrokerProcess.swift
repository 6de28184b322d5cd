package import ChildProcess
internal import Foundation

/// A real `brokerd` on free ports, whose log is JSON lines, for tests of what an operator sees.
///
/// One test's, on one thread at a time. What is still running when this goes is killed, and what it
/// wrote is removed with it: a data directory only if it is this one's own.
package final class BrokerProcess {
    /// What the line with event `ready` said.
    package struct Ready: Sendable {
        package var listen: [String]
        package var admin: String
        package var serverID: String
        package var epoch: Int
        package var loop: String

        /// The first TCP address.
        package var address: String { listen.first { !$0.hasPrefix("unix:") } ?? "" }
        package var unixPath: String? {
            listen.first { $0.hasPrefix("unix:") }.map { String($0.dropFirst(5)) }
        }
    }

    package let dataDirectory: String
    private let directory: TemporaryDirectory
    private let child: BrokerChild

    /// How long it may take to do what it was told: as long as a machine that does other things.
    private static let patienceMilliseconds = 600_000

    /// Starts it; `waitUntilReady()` waits for its `ready` line.
    ///
    /// - Parameters:
    ///   - dataDirectory: that of an earlier run, or `nil` for a new one.
    ///   - options: come after the helper's own, each of which is left out when it is among them.
    ///   - environment: added to this process's, from which MILLRACE_ variables are taken out.
    ///   - launcher: a program built beside it, or the path of one, and its arguments, that ends by
    ///     executing brokerd.
    package init(
        dataDirectory: String? = nil,
        options: [String] = [],
        environment: [String: String] = [:],
        launcher: [String] = []
    ) throws {
        directory = try TemporaryDirectory(prefix: "millrace-test")
        self.dataDirectory = dataDirectory ?? directory.path + "/data"
        var settings = BrokerChild.Options(
            executable: try Executable.named("brokerd"),
            dataDirectory: self.dataDirectory,
            logPath: directory.path + "/log"
        )
        settings.standard = [
            ("--listen", "\(BrokerChild.host):0"), ("--admin", "\(BrokerChild.host):0"),
            ("--journal-size", "64MiB"), ("--log-format", "json"),
            // The process that runs the tests may have few descriptors.
            ("--connections-max", "256"), ("--files-max", "256"),
        ]
        settings.more = options
        if let program = launcher.first {
            let path = program.hasPrefix("/") ? program : try Executable.named(program)
            settings.launcher = [path] + launcher.dropFirst()
        }
        settings.variables = environment
        child = try BrokerChild(settings)
    }

    deinit {
        // Before its directory goes.
        child.kill()
    }

    /// Everything that it has written to standard output and standard error.
    package var log: String { child.log }

    /// The log's lines that are JSON objects; others, such as a usage error, are left out.
    package var logLines: [[String: Any]] { Self.lines(log) }

    package func logLines(event: String) -> [[String: Any]] {
        logLines.filter { $0["event"] as? String == event }
    }

    private static func lines(_ log: String) -> [[String: Any]] {
        log.split(separator: "\n").compactMap {
            (try? JSONSerialization.jsonObject(with: Data($0.utf8))) as? [String: Any]
        }
    }

    /// - Throws: when it ends instead; with its log.
    @discardableResult
    package func waitUntilReady() throws -> Ready {
        try child.waitUntilReady(timeoutMilliseconds: Self.patienceMilliseconds) { log in
            Self.lines(log).first { $0["event"] as? String == "ready" }.map { line in
                Ready(
                    listen: line["listen"] as? [String] ?? [],
                    admin: line["admin"] as? String ?? "",
                    serverID: line["server_id"] as? String ?? "",
                    epoch: (line["epoch"] as? NSNumber)?.intValue ?? 0,
                    loop: line["loop"] as? String ?? ""
                )
            }
        }
    }

    /// How it ended by itself, or after a signal; `nil` when it does not.
    package func waitForEnd() -> ChildEnd? {
        child.wait(timeoutMilliseconds: Self.patienceMilliseconds)
    }

    package var isRunning: Bool { child.end == nil }

    package var processID: Int32 { child.processID }

    package func send(signal: Int32) { child.signal(signal) }

    /// SIGTERM, and how it ended.
    package func stop() -> ChildEnd? {
        child.stop(timeoutMilliseconds: Self.patienceMilliseconds)
    }

    /// SIGKILL; it is gone, and its data unlocked, when this returns.
    package func kill() { child.kill() }
}
