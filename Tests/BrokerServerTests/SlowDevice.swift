import ChildProcess
import Foundation
import Glibc
import Testing

/// A disk for one broker, which is as slow as it is told to be: what `slowdisk` serves.
final class SlowDevice {
    private static let skippedCode: Int32 = 77

    /// Why there can be none here, as the program itself says; `nil` when there can.
    static let obstacle: String? = {
        do {
            let directory = try TemporaryDirectory(prefix: "millrace-test")
            let child = try SpawnedChild(
                try Executable.named("slowdisk"), arguments: ["--probe"],
                errors: .file(directory.path + "/said"))
            guard child.wait(timeoutMilliseconds: 60_000) == .exited(skippedCode) else {
                return nil
            }
            return (try? String(contentsOfFile: directory.path + "/said", encoding: .utf8)) ?? ""
        } catch {
            return "\(error)"
        }
    }()
    static let comment = Comment(
        rawValue: "no disk is slow here: \(obstacle ?? "nothing is in the way")")

    private let directory: TemporaryDirectory

    init() throws { directory = try TemporaryDirectory(prefix: "millrace-test") }

    /// What starts the broker on it.
    var launcher: [String] { ["slowdisk", directory.path] }
    var dataDirectory: String { directory.path + "/mounted/data" }

    /// What it tells about itself; see `Tests/SlowDisk/Control.swift`.
    private func ask(_ line: String) throws -> String {
        let descriptor = socket(
            AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { throw failure("socket") }
        defer { close(descriptor) }
        var place = sockaddr_un()
        place.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &place.sun_path) {
            $0.copyBytes(from: Array((directory.path + "/control").utf8).prefix($0.count - 1))
        }
        let code = withUnsafePointer(to: &place) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        guard code == 0, write(descriptor, line, line.utf8.count) == line.utf8.count else {
            throw failure("telling the disk '\(line)'")
        }
        var answer = [UInt8](repeating: 0, count: 256)
        let count = read(descriptor, &answer, answer.count)
        guard count > 0 else { throw failure("an answer to '\(line)'") }
        return String(decoding: answer[..<count], as: UTF8.self)
    }

    private func failure(_ what: String) -> ChildFailure {
        ChildFailure("\(what): \(String(cString: strerror(errno)))")
    }

    private func tell(_ line: String) throws {
        let said = try ask(line)
        guard said == "ok" else { throw ChildFailure("the disk says '\(said)' to '\(line)'") }
    }

    func delay(writeMilliseconds: Int, flushMilliseconds: Int) throws {
        try tell("delay \(writeMilliseconds) \(flushMilliseconds)")
    }
    /// Nothing is written or flushed until `release`.
    func hold() throws { try tell("hold") }
    func release() throws { try tell("release") }

    /// Writes and flushes that took longer, and those that met a disk that stood still.
    func counts() throws -> (writes: Int, flushes: Int, held: Int) {
        let numbers = try ask("counts").split(separator: " ").compactMap { Int($0) }
        try #require(numbers.count == 3)
        return (numbers[0], numbers[1], numbers[2])
    }

    func moment() throws -> Int { try #require(try Int(ask("moment"))) }

    /// Whether these bytes were written since that moment, and a flush followed.
    func hasFlushed(_ text: String, since moment: Int) throws -> Bool {
        try ask("flushed \(moment) \(text)") == "yes"
    }
}
