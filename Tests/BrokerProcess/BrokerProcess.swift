package import Foundation
internal import Glibc

/// A real `brokerd` on free ports, with its data in a temporary directory, for tests.
///
/// One test's, on one thread at a time. What is still running when this goes is killed; a data
/// directory that it made is removed, unless it is taken over with `keepData()`.
package final class BrokerProcess {
    package struct Failure: Error, CustomStringConvertible {
        package var description: String
    }

    /// What the line with event `ready` said.
    package struct Ready: Sendable {
        package var listen: [String]
        package var admin: String
        package var serverID: String
        package var epoch: Int
        package var loop: String
        package var recoverySeconds: Double

        /// The first TCP address.
        package var address: String { listen.first { !$0.hasPrefix("unix:") } ?? "" }
        package var unixPath: String? {
            listen.first { $0.hasPrefix("unix:") }.map { String($0.dropFirst(5)) }
        }
    }

    package let dataDirectory: String
    package let processID: pid_t
    private let logPath: String
    private var ownsData: Bool
    private var exitCode: Int32?

    /// Starts it; `waitUntilReady()` waits for its `ready` line.
    ///
    /// - Parameters:
    ///   - dataDirectory: that of an earlier run, or `nil` for a new one.
    ///   - options: come after the helper's own (free ports, a small journal for a new directory,
    ///     JSON lines), each of which is left out when it is among them.
    ///   - environment: added to this process's, from which MILLRACE_ variables are taken out.
    ///   - launcher: a program built beside it, and its arguments, that ends by executing brokerd.
    package init(
        dataDirectory: String? = nil,
        options: [String] = [],
        environment: [String: String] = [:],
        launcher: [String] = []
    ) throws {
        let name = "millrace-\(UUID().uuidString)"
        let temporary = FileManager.default.temporaryDirectory.path
        self.dataDirectory = dataDirectory ?? "\(temporary)/\(name)"
        ownsData = dataDirectory == nil
        logPath = "\(temporary)/\(name).log"
        let standard = [
            ("--data-dir", self.dataDirectory), ("--listen", "127.0.0.1:0"),
            ("--admin", "127.0.0.1:0"), ("--journal-size", "64MiB"), ("--log-format", "json"),
            // The process that runs the tests may have few descriptors.
            ("--connections-max", "256"), ("--files-max", "256"),
        ]
        var arguments: [String] = []
        for (flag, value) in standard
        where !options.contains(where: { $0 == flag || $0.hasPrefix(flag + "=") }) {
            arguments += [flag, value]
        }
        var command = [try Self.program()] + arguments + options
        if let first = launcher.first {
            command = [try Self.program(first)] + launcher.dropFirst() + command
        }
        processID = try Self.spawn(
            command[0],
            Array(command.dropFirst()),
            environment,
            output: logPath
        )
    }

    deinit {
        kill()
        unlink(logPath)
        if ownsData { try? FileManager.default.removeItem(atPath: dataDirectory) }
    }

    /// The data stays when this goes.
    package func keepData() { ownsData = false }

    /// Everything that it has written to standard output and standard error.
    package var log: String { (try? String(contentsOfFile: logPath, encoding: .utf8)) ?? "" }

    /// The log's lines that are JSON objects; others, such as a usage error, are left out.
    package var logLines: [[String: Any]] {
        log.split(separator: "\n").compactMap {
            (try? JSONSerialization.jsonObject(with: Data($0.utf8))) as? [String: Any]
        }
    }

    package func logLines(event: String) -> [[String: Any]] {
        logLines.filter { $0["event"] as? String == event }
    }

    // MARK: waiting

    /// - Throws: when it ends instead, or takes longer; with its log.
    @discardableResult
    package func waitUntilReady(seconds: Double = 30) throws -> Ready {
        let deadline = Date().addingTimeInterval(seconds)
        while Date() < deadline {
            if let line = logLines(event: "ready").first {
                return Ready(
                    listen: line["listen"] as? [String] ?? [],
                    admin: line["admin"] as? String ?? "",
                    serverID: line["server_id"] as? String ?? "",
                    epoch: (line["epoch"] as? NSNumber)?.intValue ?? 0,
                    loop: line["loop"] as? String ?? "",
                    recoverySeconds: (line["recovery_seconds"] as? NSNumber)?.doubleValue ?? 0
                )
            }
            if let code = reap() {
                throw Failure(
                    description: "brokerd ended with \(code) before it was ready:\n\(log)"
                )
            }
            usleep(5000)
        }
        throw Failure(description: "brokerd was not ready after \(seconds) s:\n\(log)")
    }

    /// - Returns: the exit code, or 128 and the signal's number.
    package func waitForEnd(seconds: Double = 30) throws -> Int32 {
        let deadline = Date().addingTimeInterval(seconds)
        while Date() < deadline {
            if let code = reap() { return code }
            usleep(2000)
        }
        throw Failure(description: "brokerd did not end within \(seconds) s:\n\(log)")
    }

    package var isRunning: Bool { reap() == nil }

    private func reap() -> Int32? {
        if let exitCode { return exitCode }
        var status: Int32 = 0
        guard waitpid(processID, &status, WNOHANG) == processID else { return nil }
        let signal = status & 0x7F
        exitCode = signal == 0 ? (status >> 8) & 0xFF : 128 + signal
        return exitCode
    }

    // MARK: ending it

    package func send(signal: Int32) {
        if reap() == nil { Glibc.kill(processID, signal) }
    }

    /// SIGTERM, and the exit code.
    package func stop(seconds: Double = 30) throws -> Int32 {
        send(signal: SIGTERM)
        return try waitForEnd(seconds: seconds)
    }

    /// SIGKILL; it is gone, and its data unlocked, when this returns.
    package func kill() {
        guard reap() == nil else { return }
        Glibc.kill(processID, SIGKILL)
        var status: Int32 = 0
        while waitpid(processID, &status, 0) < 0, errno == EINTR {}
        exitCode = 128 + SIGKILL
    }

    // MARK: starting it

    /// A program beside the tests that run, or in the build directory below where they run.
    package static func program(_ name: String = "brokerd") throws -> String {
        var candidates: [String] = []
        if let own = try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe") {
            candidates.append(URL(filePath: own).deletingLastPathComponent().path + "/\(name)")
        }
        candidates.append(FileManager.default.currentDirectoryPath + "/.build/release/\(name)")
        for candidate in candidates where access(candidate, X_OK) == 0 { return candidate }
        throw Failure(description: "there is no \(name) at \(candidates.joined(separator: " or "))")
    }

    private static func spawn(
        _ program: String,
        _ arguments: [String],
        _ environment: [String: String],
        output: String
    ) throws -> pid_t {
        var variables = ProcessInfo.processInfo.environment.filter {
            !$0.key.hasPrefix("MILLRACE_")
        }
        variables.merge(environment) { _, new in new }

        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_addopen(&actions, 1, output, O_WRONLY | O_CREAT | O_APPEND, 0o600)
        posix_spawn_file_actions_adddup2(&actions, 1, 2)
        // Sockets and files of other tests stay here.
        for descriptor in Int32(3) ..< 512 {
            posix_spawn_file_actions_addclose(&actions, descriptor)
        }

        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var mask = sigset_t()
        sigemptyset(&mask)
        posix_spawnattr_setsigmask(&attributes, &mask)
        posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK))

        var argv = ([program] + arguments).map { strdup($0) } + [nil]
        var envp = variables.map { strdup("\($0.key)=\($0.value)") } + [nil]
        defer { (argv + envp).forEach { free($0) } }
        var process: pid_t = 0
        let error = posix_spawn(&process, program, &actions, &attributes, &argv, &envp)
        guard error == 0 else {
            throw Failure(description: "starting \(program): \(String(cString: strerror(error)))")
        }
        return process
    }
}
