internal import FuseDisk
internal import Glibc
internal import Synchronization

/// Standard output, a line at a time, at once.
enum Console {
    static func line(_ text: String) {
        let bytes = Array("\(text)\n".utf8)
        // Where standard output is gone nobody reads; the exit code still tells.
        _ = write(1, bytes, bytes.count)
    }
}

/// Notes that somebody wants the program to end, so that it can clean up and do so.
enum Interrupt {
    private static let flag = Atomic<Bool>(false)

    static var isWanted: Bool { flag.load(ordering: .relaxed) }

    static func listen() {
        // Made before a handler may ask for it: making it is nothing for a handler.
        flag.store(false, ordering: .relaxed)
        for number in [SIGINT, SIGTERM, SIGHUP] {
            signal(number) { _ in Interrupt.flag.store(true, ordering: .relaxed) }
        }
    }

    static func check() throws {
        if isWanted { throw SystemFailure(text: "interrupted") }
    }
}
