internal import BlockingClient

/// Why a command did not do what it was told, each with its exit code and its one line.
enum Failure: Error {
    /// `attempt` says what was tried, on what.
    case client(attempt: String, ClientError)
    /// The command line, or a file that it names, is at fault.
    case usage(String)
    /// A question was answered with no.
    case declined(String)
    /// It was looked for, and found.
    case damaged(String)
    /// Nobody reads standard output any more, which is a way to say "enough".
    case outputClosed
    case outputFailed(String)

    var exitCode: Int32 {
        switch self {
        case .client(_, .refused), .declined, .outputFailed: ControlTool.refused
        case .client(_, .unreachable), .client(_, .closed), .client(_, .timeout),
            // Whatever listens there does not speak our protocol.
            .client(_, .protocolError):
            ControlTool.unreachable
        case .usage: ControlTool.usage
        case .damaged: ControlTool.damaged
        case .outputClosed: ControlTool.done
        }
    }

    /// `nil`: nothing is to be said.
    var line: String? {
        switch self {
        case .client(let attempt, let error): "\(attempt) failed: \(error)"
        case .usage(let text), .declined(let text), .damaged(let text): text
        case .outputFailed(let reason): "writing to standard output failed: \(reason)"
        case .outputClosed: nil
        }
    }
}

/// Runs `work`, and says what was tried where it fails.
@discardableResult
func attempting<Result>(
    _ attempt: @autoclosure () -> String,
    _ work: () throws(ClientError) -> Result
) throws(Failure) -> Result {
    do throws(ClientError) {
        return try work()
    } catch {
        throw .client(attempt: attempt(), error)
    }
}
