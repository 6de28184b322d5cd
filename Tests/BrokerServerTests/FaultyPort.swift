import BrokerServer
import BrokerShard
import LogStorage
import ShardRuntime
import Synchronization

/// What becomes of the operation that fails.
enum PortFault: Equatable, CustomStringConvertible {
    case errno(Int32)
    /// A write is answered with half of its bytes; another operation is done as it should be.
    case short

    var description: String {
        switch self {
        case .errno(let number): "errno \(number)"
        case .short: "a short write"
        }
    }

    /// What the broker says when it stops for it. Of short writes that is a checkpoint's alone: others are
    /// written again.
    var trace: String {
        switch self {
        case .errno(let number): "errno \(number)"
        case .short: "it was written to byte"
        }
    }
}

/// Which of a loop's storage operations fails, and what has become of that. One at a time in a process.
final class FaultPlan: Sendable {
    private struct State {
        var number = 0
        var fault = PortFault.short
        var asked = 0
        var fired = 0
    }
    private let state = Mutex(State())

    static let current = FaultPlan()

    /// The operation with this number, counted from 1, fails; 0: none.
    func begin(number: Int, _ fault: PortFault) {
        state.withLock { $0 = State(number: number, fault: fault) }
    }
    var asked: Int { state.withLock { $0.asked } }
    var fired: Int { state.withLock { $0.fired } }

    /// - Returns: what the next operation is answered with instead of being done.
    func next(_ operation: StorageOperation) -> Int32? {
        state.withLock { state in
            state.asked += 1
            guard state.asked == state.number else { return nil }
            switch (state.fault, operation) {
            case (.errno(let number), _):
                state.fired += 1
                return -number
            case (.short, .write(_, _, let bytes, _, _)):
                state.fired += 1
                return Int32(bytes / 2)
            case (.short, _): return nil
            }
        }
    }
}

/// A port to the kernel of which one storage operation fails, as the plan says: it is not done, and its
/// completion comes with the next cycle.
struct FaultyPort<Base: ShardPort & ~Copyable>: ~Copyable, ShardPort {
    private var base: Base
    private var failed: [(token: UInt64, result: Int32)] = []

    init(_ setup: borrowing ShardPortSetup) throws(SystemError) { base = try Base(setup) }

    mutating func exchange() { base.exchange() }
    var hasWork: Bool { base.hasWork || !failed.isEmpty }
    mutating func wait(nanoseconds: UInt64) {
        if failed.isEmpty { base.wait(nanoseconds: nanoseconds) }
    }
    mutating func takeCompletions(into machine: inout ShardMachine) -> Int {
        let told = failed
        failed = []
        for one in told { machine.completed(token: one.token, result: one.result) }
        return told.count + base.takeCompletions(into: &machine)
    }

    mutating func start(_ request: StorageRequest, diskIsLate: Bool) {
        // A close is never asked how it went.
        if case .close = request.operation { return base.start(request, diskIsLate: diskIsLate) }
        guard let result = FaultPlan.current.next(request.operation) else {
            return base.start(request, diskIsLate: diskIsLate)
        }
        failed.append((request.token, result))
    }
    mutating func send(_ connection: Int32, _ bytes: UnsafeRawPointer, _ count: Int) {
        base.send(connection, bytes, count)
    }
    mutating func pause(_ connection: Int32) { base.pause(connection) }
    mutating func resume(_ connection: Int32) { base.resume(connection) }

    mutating func startAccepting() { base.startAccepting() }
    mutating func retryAccepting(_ machine: borrowing ShardMachine) {
        base.retryAccepting(machine)
    }
    mutating func beginClosing(_ connection: Int32) { base.beginClosing(connection) }
    func isQuiet(_ connection: Int32) -> Bool { base.isQuiet(connection) }
    mutating func cut(_ connection: Int32) { base.cut(connection) }
    mutating func release(_ connection: Int32) { base.release(connection) }
}
