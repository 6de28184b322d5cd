internal import ArgumentParser
internal import Glibc

/// Parses and runs one command line; what `main` and the tests share.
package enum ControlTool {
    /// Where a command reads and writes.
    package struct Streams: Sendable {
        package var input: Int32
        package var output: Int32
        package var errors: Int32
        package init(input: Int32 = 0, output: Int32 = 1, errors: Int32 = 2) {
            self.input = input
            self.output = output
            self.errors = errors
        }
        var isTerminal: Bool { isatty(input) == 1 && isatty(errors) == 1 }
    }

    @TaskLocal package static var streams = Streams()

    package static let done: Int32 = 0
    package static let refused: Int32 = 1
    package static let usage: Int32 = 2
    package static let unreachable: Int32 = 3
    package static let damaged: Int32 = 4

    /// - Returns: the exit code: 0 done, 1 the broker said no, 2 usage, 3 unreachable,
    ///   4 something on disk is damaged.
    package static func run(_ arguments: [String]) -> Int32 {
        do {
            var command = try Brokerctl.parseAsRoot(arguments)
            try command.run()
            return done
        } catch let failure as Failure {
            guard let line = failure.line else { return failure.exitCode }
            complain(line)
            return failure.exitCode
        } catch {
            // What the argument parser throws: help and completion scripts are answers.
            let text = Brokerctl.fullMessage(for: error)
            if Brokerctl.exitCode(for: error) == ExitCode.success {
                var output = StandardOutput()
                output.write(text + "\n")
                try? output.flush()
                return done
            }
            let message = Brokerctl.message(for: error)
            complain((message.isEmpty ? "bad arguments" : message) + " (try --help)")
            return usage
        }
    }

    /// One line on standard error.
    static func complain(_ text: String) {
        let line = text.split(whereSeparator: \.isNewline).joined(separator: "; ")
        let bytes = Array("brokerctl: \(line)\n".utf8)
        // Where standard error is gone as well there is nobody left to tell.
        _ = write(streams.errors, bytes, bytes.count)
    }
}
