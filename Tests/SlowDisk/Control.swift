internal import FuseDisk
internal import Glibc
internal import ReplayHarness

/// Takes one line per connection on a Unix socket, and answers with one:
///
/// | line | answer |
/// |---|---|
/// | `delay WRITE FLUSH` | `ok`; from now on each takes so many milliseconds longer |
/// | `hold` | `ok`; from now on nothing is written or flushed |
/// | `release` | `ok` |
/// | `counts` | `WRITES FLUSHES HELD` that waited so far |
/// | `moment` | how many writes and flushes there were so far |
/// | `flushed MOMENT TEXT` | `yes` when TEXT was written since that moment, and a flush followed |
final class Control {
    private let descriptor: Int32
    private let worker: Worker<Void>

    init(_ disk: RecordedDisk, at path: String) throws {
        descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { throw SystemFailure("making a socket") }
        var place = sockaddr_un()
        place.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        guard bytes.count < MemoryLayout.size(ofValue: place.sun_path) else {
            throw SystemFailure(text: "\(path) is too long for a socket")
        }
        withUnsafeMutableBytes(of: &place.sun_path) { $0.copyBytes(from: bytes) }
        unlink(path)
        let listener = descriptor
        let bound = withUnsafePointer(to: &place) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(listener, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        guard bound == 0, listen(listener, 4) == 0 else {
            throw SystemFailure("listening at \(path)")
        }
        worker = try Worker { Self.serve(listener, disk) }
    }

    /// Ends the thread.
    func stop() {
        shutdown(descriptor, Int32(SHUT_RDWR))
        _ = worker.join()
        close(descriptor)
    }

    private static func serve(_ listener: Int32, _ disk: RecordedDisk) {
        while true {
            let peer = accept(listener, nil, nil)
            if peer < 0, errno == EINTR { continue }
            guard peer >= 0 else { return }
            var line = [UInt8](repeating: 0, count: 4096)
            let count = read(peer, &line, line.count)
            let text = String(decoding: line[..<max(0, count)], as: UTF8.self)
            let said = Array(answer(text.filter { $0 != "\n" }, disk).utf8)
            _ = write(peer, said, said.count)
            close(peer)
        }
    }

    private static func answer(_ line: String, _ disk: RecordedDisk) -> String {
        let words = line.split(separator: " ", maxSplits: 2).map(String.init)
        let numbers = words.dropFirst().map { Int($0) ?? 0 }
        switch (words.first, numbers.count) {
        case ("delay", 2):
            disk.slowness.delay(writeMilliseconds: numbers[0], flushMilliseconds: numbers[1])
        case ("hold", 0): disk.slowness.hold()
        case ("release", 0): disk.slowness.release()
        case ("counts", 0):
            let counts = disk.slowness.counts
            return "\(counts.writes) \(counts.flushes) \(counts.held)"
        case ("moment", 0): return "\(disk.moment)"
        case ("flushed", 2):
            let log = disk.log
            let start = min(max(0, numbers[0]), log.entries.count)
            return log.hasFlushed(Array(words[2].utf8), in: start..<log.entries.count)
                ? "yes" : "no"
        default: return "unknown: \(line)"
        }
        return "ok"
    }
}
