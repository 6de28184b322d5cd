internal import BrokerConfiguration
internal import BrokerServer
internal import Dispatch
internal import Glibc
internal import Synchronization

@main
enum Main {
    static func main() {
        // Before any other thread is there: all of them leave the signals to this one.
        ProcessSignals.takeOver()
        let arguments = Array(CommandLine.arguments.dropFirst())
        let parsed = wait {
            do throws(UsageError) {
                return Result<ServerCommand, UsageError>.success(
                    try await ServerCommand.parse(
                        arguments: arguments,
                        environment: environment()
                    )
                )
            } catch {
                return .failure(error)
            }
        }
        do {
            switch try parsed.get() {
            case .help: write(OptionTable.help, to: STDOUT_FILENO)
            case .version: write("brokerd \(Broker.version)\n", to: STDOUT_FILENO)
            case .run(let options): exit(try Broker.run(options))
            case .check(let options):
                exit(OfflineCheck(options).run { write($0 + "\n", to: STDOUT_FILENO) })
            }
        } catch {
            write("brokerd: \(error)\n", to: STDERR_FILENO)
            exit(2)
        }
    }

    /// The main thread waits for work of Swift concurrency: at start only, when nothing else runs.
    static func wait<Value: Sendable>(_ body: @escaping @Sendable () async -> Value) -> Value {
        let box = Mutex<Value?>(nil)
        let shared = Shared(box)
        let done = DispatchSemaphore(value: 0)
        Task.detached {
            let value = await body()
            shared.value.withLock { $0 = value }
            done.signal()
        }
        while true {
            done.wait()
            if let value = shared.value.withLock({ $0 }) { return value }
        }
    }

    private final class Shared<Value: Sendable>: Sendable {
        let value: Mutex<Value?>
        init(_ value: consuming Mutex<Value?>) { self.value = value }
    }

    private static func environment() -> [String: String] {
        var variables: [String: String] = [:]
        var next = environ
        while let entry = next.pointee {
            let parts = String(cString: entry).split(
                separator: "=",
                maxSplits: 1,
                omittingEmptySubsequences: false
            )
            if parts.count == 2 { variables[String(parts[0])] = String(parts[1]) }
            next += 1
        }
        return variables
    }

    private static func write(_ text: String, to descriptor: Int32) {
        text.withCString { _ = Glibc.write(descriptor, $0, strlen($0)) }
    }
}
