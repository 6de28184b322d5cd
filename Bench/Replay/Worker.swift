internal import Glibc
internal import Synchronization

/// A thread that gives a result. Plain threads, for what is tested here blocks.
package final class Worker<Result: Sendable>: Sendable {
    private let result = Mutex<Result?>(nil)
    private let thread = Mutex<pthread_t?>(nil)

    package init(_ body: @escaping @Sendable () -> Result) {
        let job = Unmanaged.passRetained(
            WorkerJob { [self] in
                let value = body()
                result.withLock { $0 = value }
            }
        )
        var thread = pthread_t()
        let code = pthread_create(&thread, nil, WorkerJob.main, job.toOpaque())
        guard code == 0 else {
            job.release()
            fatalError("a thread could not be made: \(String(cString: strerror(code)))")
        }
        let made = thread
        self.thread.withLock { $0 = made }
    }

    /// Waits for the end of the thread.
    package func join() -> Result {
        if let thread = thread.withLock({ $0.take() }) { pthread_join(thread, nil) }
        return result.withLock { result in
            guard let result else { fatalError("a joined thread left no result") }
            return result
        }
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
