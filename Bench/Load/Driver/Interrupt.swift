internal import Glibc
internal import Synchronization

/// SIGINT and SIGTERM end a run as its time would: publishing stops, and the queues are deleted.
///
/// A second one kills.
package enum Interrupt {
    private static let flag = Atomic<Bool>(false)

    package static func install() {
        // Touched here first: a handler must not run the initialiser of a global.
        flag.store(false, ordering: .relaxed)
        for number in [SIGINT, SIGTERM] {
            signal(number) { number in
                Interrupt.raise()
                signal(number, SIG_DFL)
            }
        }
        signal(SIGPIPE, SIG_IGN)
    }

    package static func raise() { flag.store(true, ordering: .relaxed) }

    /// Relaxed: the flag carries nothing but itself.
    @inline(__always) package static var isRaised: Bool { flag.load(ordering: .relaxed) }
}
