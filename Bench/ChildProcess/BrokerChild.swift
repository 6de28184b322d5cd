internal import Glibc

/// A `brokerd` on a data directory and a port that the kernel chose.
///
/// ```
/// let broker = try BrokerChild(.init(executable: path, dataDirectory: data, logPath: log))
/// let ready = try broker.waitUntilReady(timeoutMilliseconds: 10_000)   // 127.0.0.1, ready.port
/// broker.kill()                                                        // SIGKILL
/// ```
package final class BrokerChild: Sendable {
    package struct Options: Sendable {
        package var executable: String
        /// A program, and its arguments, that ends by executing the one given to it; empty: none.
        package var launcher: [String] = []
        package var dataDirectory: String
        /// What it writes goes there; each start begins with an empty file.
        package var logPath: String
        /// Flags and their values, each left out when its flag is among `more`.
        package var standard = [
            ("--listen", "\(BrokerChild.host):0"), ("--admin", "off"), ("--journal-size", "64MiB"),
        ]
        package var more: [String] = []
        /// It gets these, and no others that begin with MILLRACE_.
        package var variables: [String: String] = [:]

        package init(executable: String, dataDirectory: String, logPath: String) {
            self.executable = executable
            self.dataDirectory = dataDirectory
            self.logPath = logPath
        }

        package var arguments: [String] {
            let wanted = standard.filter { flag, _ in
                !more.contains { $0 == flag || $0.hasPrefix(flag + "=") }
            }
            return ["--data-dir", dataDirectory] + wanted.flatMap { [$0, $1] } + more
        }
    }

    package struct Ready: Sendable {
        package var port: UInt16
        /// From its start until it said so.
        package var elapsed: Duration
    }

    package static let host = "127.0.0.1"

    private let child: SpawnedChild
    private let logPath: String
    private let started: ContinuousClock.Instant

    /// Starts it; does not wait.
    package init(_ options: Options) throws(ChildFailure) {
        logPath = options.logPath
        unlink(logPath)
        started = ContinuousClock().now
        let command = options.launcher + [options.executable] + options.arguments
        child = try SpawnedChild(
            command[0],
            arguments: Array(command.dropFirst()),
            output: .file(logPath),
            errors: .file(logPath),
            // They would be settings of this broker, or options that it does not know.
            hiddenVariables: "MILLRACE_",
            variables: options.variables
        )
    }

    package var processID: Int32 { child.processID }

    /// Waits for the line that says it serves.
    ///
    /// - Parameter isWanted: asked now and then; false ends the waiting.
    package func waitUntilReady(
        timeoutMilliseconds: Int,
        isWanted: () -> Bool = { true }
    ) throws(ChildFailure) -> Ready {
        let port = try waitUntilReady(
            timeoutMilliseconds: timeoutMilliseconds,
            isWanted: isWanted,
            find: Self.readyPort
        )
        return Ready(port: port, elapsed: ContinuousClock().now - started)
    }

    /// The same, with whatever is to be known of that line.
    ///
    /// - Parameters:
    ///   - isWanted: asked now and then; false ends the waiting.
    ///   - find: looks for the line in the log so far; `nil` while it is not there.
    package func waitUntilReady<Value>(
        timeoutMilliseconds: Int,
        isWanted: () -> Bool = { true },
        find: (String) -> Value?
    ) throws(ChildFailure) -> Value {
        let deadline = started + .milliseconds(timeoutMilliseconds)
        while true {
            // The end before the log: what it said last is then in the log.
            let end = child.wait(timeoutMilliseconds: 0)
            if let value = find(log) { return value }
            if let end { throw ChildFailure("brokerd ended with \(end):\n\(lastWords)") }
            guard isWanted() else { throw ChildFailure("interrupted") }
            guard ContinuousClock().now < deadline else {
                throw ChildFailure(
                    "brokerd was not ready in \(timeoutMilliseconds) ms:\n\(lastWords)"
                )
            }
            usleep(500)
        }
    }

    /// Sends it a signal, unless it has ended.
    package func signal(_ number: Int32) { child.signal(number) }

    /// How it ended, waiting up to the time given; `nil` while it runs.
    package func wait(timeoutMilliseconds: Int) -> ChildEnd? {
        child.wait(timeoutMilliseconds: timeoutMilliseconds)
    }

    /// Kills it with SIGKILL and waits until it is gone.
    ///
    /// - Returns: how it ended: `.signalled(9)`, unless it had ended before.
    @discardableResult
    package func kill() -> ChildEnd? {
        child.signal(SIGKILL)
        return child.wait(timeoutMilliseconds: 30_000)
    }

    /// Asks it to stop, and waits.
    ///
    /// - Returns: `nil` when it still runs.
    package func stop(timeoutMilliseconds: Int) -> ChildEnd? {
        child.signal(SIGTERM)
        return wait(timeoutMilliseconds: timeoutMilliseconds)
    }

    /// How it ended by itself; `nil` while it runs.
    package var end: ChildEnd? { wait(timeoutMilliseconds: 0) }

    /// The last lines of its log, indented.
    package var lastWords: String {
        log.split(separator: "\n").suffix(10).map { "    \($0)" }.joined(separator: "\n")
    }

    /// Everything that it has written to standard output and standard error.
    package var log: String {
        let descriptor = open(logPath, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return "" }
        defer { close(descriptor) }
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 64 << 10)
        while true {
            let count = read(descriptor, &buffer, buffer.count)
            guard count > 0 else { break }
            bytes += buffer[..<count]
        }
        return String(decoding: bytes, as: UTF8.self)
    }

    /// The port in the first whole line whose event is `ready`: a word of its own, and an address
    /// on the host that it was told to listen on.
    package static func readyPort(in log: String) -> UInt16? {
        let whole = log.utf8.lastIndex(of: UInt8(ascii: "\n")).map { log[..<$0] } ?? ""
        for line in whole.split(separator: "\n") {
            let words = line.split { !$0.isLetter && !$0.isNumber && $0 != "_" && $0 != "-" }
            guard words.contains("ready") else { continue }
            var rest = line
            while let found = rest.firstRange(of: "\(host):") {
                rest = rest[found.upperBound...]
                if let port = UInt16(rest.prefix { $0.isASCII && $0.isNumber }), port > 0 {
                    return port
                }
            }
        }
        return nil
    }
}
