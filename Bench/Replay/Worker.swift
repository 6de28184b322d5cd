internal import Glibc
internal import Synchronization

/// Why there is no thread: one line for a person.
package struct WorkerFailure: Error, Equatable, CustomStringConvertible {
    package let description: String
}

/// A thread that gives a result. Plain threads, for what is tested here blocks.
package final class Worker<Result: Sendable>: Sendable {
    private let result = Mutex<Result?>(nil)
    private let thread = Mutex<pthread_t?>(nil)

    /// Starts it.
    ///
    /// - Parameter stackBytes: `nil` for the system's standard.
    package init(
        stackBytes: Int? = nil,
        _ body: @escaping @Sendable () -> Result
    ) throws(WorkerFailure) {
        let job = Unmanaged.passRetained(
            WorkerJob { [self] in
                let value = body()
                result.withLock { $0 = value }
            }
        )
        var attributes = pthread_attr_t()
        pthread_attr_init(&attributes)
        defer { pthread_attr_destroy(&attributes) }
        var thread = pthread_t()
        var code: Int32 = 0
        if let stackBytes { code = pthread_attr_setstacksize(&attributes, stackBytes) }
        if code == 0 {
            code = pthread_create(&thread, &attributes, WorkerJob.main, job.toOpaque())
        }
        guard code == 0 else {
            job.release()
            throw WorkerFailure(
                description: "a thread could not be made: \(String(cString: strerror(code)))"
            )
        }
        let made = thread
        self.thread.withLock { $0 = made }
    }

    /// Waits for the end of the thread.
    ///
    /// - Returns: what it gave; the same again for who asks again. `nil` only while another caller
    ///   still waits.
    package func join() -> Result? {
        if let thread = thread.withLock({ $0.take() }) { pthread_join(thread, nil) }
        return result.withLock { $0 }
    }
}

private final class WorkerJob: Sendable {
    let run: @Sendable () -> Void
    init(_ run: @escaping @Sendable () -> Void) { self.run = run }

    static let main: @convention(c) (UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? = {
        pointer in
        if let pointer { Unmanaged<WorkerJob>.fromOpaque(pointer).takeRetainedValue().run() }
        return nil
    }
}
