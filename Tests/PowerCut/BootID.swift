internal import BrokerBasics
internal import FuseDisk
internal import Glibc

/// The number that tells one start of the machine from the next. A cut of the power is one to the
/// broker only if that number has changed: so another file lies over the kernel's, in this process's
/// mount namespace.
final class BootID {
    private static let place = "/proc/sys/kernel/random/boot_id"
    private let path: String
    private var random: SeededRandom

    init(in directory: String, seed: UInt64) throws {
        path = directory + "/boot_id"
        random = SeededRandom(seed: seed)
        try next()
        // Linux: MS_BIND.
        guard mount(path, Self.place, nil, 1 << 12, nil) == 0 else {
            throw SystemFailure("mounting \(path) over \(Self.place)")
        }
    }

    /// The machine starts again.
    func next() throws {
        let digits = [random.next(), random.next()].map { number in
            let text = String(number, radix: 16)
            return String(repeating: "0", count: 16 - text.count) + text
        }
        let all = Array(digits.joined())
        let parts = [0..<8, 8..<12, 12..<16, 16..<20, 20..<32].map { String(all[$0]) }
        let text = Array((parts.joined(separator: "-") + "\n").utf8)
        let descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { throw SystemFailure("making \(path)") }
        defer { close(descriptor) }
        guard write(descriptor, text, text.count) == text.count else {
            throw SystemFailure("writing \(path)")
        }
    }

    deinit { _ = umount2(Self.place, Int32(MNT_DETACH)) }
}
