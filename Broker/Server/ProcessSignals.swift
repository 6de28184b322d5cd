internal import CLinux
internal import Glibc

/// The signals of the process, taken by one thread that waits for them.
package enum ProcessSignals {
    package enum Wake: Sendable {
        case stop(String)
        case poke
        case timeout
    }

    private static var set: sigset_t {
        var set = sigset_t()
        sigemptyset(&set)
        for number in [SIGTERM, SIGINT, SIGUSR2] { sigaddset(&set, number) }
        return set
    }

    /// Blocks them in this thread and all that it starts: call it before any other thread is there.
    package static func takeOver() {
        // A peer that has gone is an error of the send, not a signal.
        signal(SIGPIPE, SIG_IGN)
        var set = set
        pthread_sigmask(SIG_BLOCK, &set, nil)
    }

    /// - Parameter milliseconds: how long to wait at most; `nil` waits without a bound.
    package static func wait(milliseconds: Int?) -> Wake {
        var set = set
        while true {
            var number: Int32 = -1
            if let milliseconds {
                var time = timespec(
                    tv_sec: milliseconds / 1000,
                    tv_nsec: milliseconds % 1000 * 1_000_000
                )
                number = sigtimedwait(&set, nil, &time)
                if number < 0, errno == EAGAIN { return .timeout }
            } else {
                number = sigwaitinfo(&set, nil)
            }
            switch number {
            case SIGTERM: return .stop("SIGTERM")
            case SIGINT: return .stop("SIGINT")
            case SIGUSR2: return .poke
            default: continue
            }
        }
    }

    /// Ends the waiting of the thread in `wait`.
    package static func poke() { kill(getpid(), SIGUSR2) }
}
