internal import CLinux
internal import Glibc

/// A thread of the system that nobody joins: for work that would block a core of Swift concurrency.
public enum DetachedThread {
    private final class Work: Sendable {
        let name: String
        let body: @Sendable () -> Void
        init(_ name: String, _ body: @escaping @Sendable () -> Void) {
            self.name = name
            self.body = body
        }
    }

    /// - Parameters:
    ///   - name: what `top -H` and `perf` call it; at most 15 bytes.
    ///   - stackBytes: the system's default when `nil`.
    /// - Throws: when the system has no thread to give; `body` is not called then.
    public static func start(
        _ name: String, stackBytes: Int? = nil, _ body: @escaping @Sendable () -> Void
    ) throws(SystemError) {
        let work = Unmanaged.passRetained(Work(name, body))
        var attributes = pthread_attr_t()
        pthread_attr_init(&attributes)
        defer { pthread_attr_destroy(&attributes) }
        pthread_attr_setdetachstate(&attributes, Int32(PTHREAD_CREATE_DETACHED))
        if let stackBytes { pthread_attr_setstacksize(&attributes, stackBytes) }
        var thread = pthread_t()
        let error = pthread_create(&thread, &attributes, main, work.toOpaque())
        guard error == 0 else {
            work.release()
            throw SystemError("starting the thread \(name)", errno: error)
        }
    }

    private static let main: @convention(c) (UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? =
        {
            pointer in
            guard let pointer else { return nil }
            let work = Unmanaged<Work>.fromOpaque(pointer).takeRetainedValue()
            millrace_name_thread(work.name)
            work.body()
            return nil
        }
}
