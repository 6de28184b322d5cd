internal import ChildProcess
internal import Glibc

/// Runs a system program to its end.
package enum Command {
    /// - Returns: what it wrote, without the last newline.
    package static func output(
        _ program: String,
        _ arguments: [String],
        accepting codes: ClosedRange<Int32> = 0...0
    ) throws -> String {
        var ends: [Int32] = [-1, -1]
        guard pipe(&ends) == 0 else { throw SystemFailure("making a pipe") }
        defer { close(ends[0]) }
        let started = Result {
            try SpawnedChild(
                program,
                arguments: arguments,
                output: .descriptor(ends[1]),
                errors: .descriptor(ends[1])
            )
        }
        close(ends[1])
        let child = try started.get()
        var text: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 64 << 10)
        while true {
            let count = read(ends[0], &buffer, buffer.count)
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { break }
            text += buffer[..<count]
        }
        while text.last == UInt8(ascii: "\n") { text.removeLast() }
        let said = String(decoding: text, as: UTF8.self)
        guard case .exited(let code) = child.wait(timeoutMilliseconds: 60_000),
            codes.contains(code)
        else {
            throw SystemFailure(
                text: "\(program) \(arguments.joined(separator: " ")) failed: \(said)"
            )
        }
        return said
    }
}
