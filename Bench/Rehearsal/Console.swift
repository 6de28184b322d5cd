internal import Glibc
internal import Synchronization

/// Standard output, a line at a time, at once.
enum Console {
    static func line(_ text: String) {
        let bytes = Array("\(text)\n".utf8)
        // Where standard output is gone nobody reads; the exit code still tells.
        _ = write(1, bytes, bytes.count)
    }

    /// `1234567` as `1,234,567`.
    static func count(_ number: some BinaryInteger) -> String {
        let digits = Array(String(number))
        var text = ""
        for (index, digit) in digits.enumerated() {
            if index > 0, (digits.count - index) % 3 == 0, text != "-" { text += "," }
            text.append(digit)
        }
        return text
    }

    /// Seconds with so many decimals.
    static func seconds(_ duration: Duration, decimals: Int = 3) -> String {
        let milliseconds =
            duration.components.seconds * 1_000 + duration.components.attoseconds
            / 1_000_000_000_000_000
        let fraction = "\(milliseconds % 1_000 + 1_000)".dropFirst().prefix(decimals)
        return "\(milliseconds / 1_000).\(fraction)"
    }

    static func bytes(_ count: Int) -> String {
        switch count {
        case ..<10_000: "\(count) B"
        case ..<10_000_000: "\(count / 1_000) kB"
        default: "\(count / 1_000_000) MB"
        }
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
}
