internal import Glibc

/// Runs a filter to its end and hands out what it writes.
package enum ChildOutput {
    /// Calls `receive` with each piece of the standard output of `executable`.
    ///
    /// - Parameter receive: returns false when it wants no more; the process is then killed.
    /// - Throws: when it cannot be started, or ends with another code than 0.
    package static func read(
        _ executable: String,
        _ arguments: [String],
        receive: (UnsafeRawBufferPointer) -> Bool
    ) throws(ChildFailure) {
        var ends: [Int32] = [-1, -1]
        guard pipe(&ends) == 0 else {
            throw ChildFailure("making a pipe failed: \(String(cString: strerror(errno)))")
        }
        defer { close(ends[0]) }
        let started = Result { () throws(ChildFailure) in
            try SpawnedChild(executable, arguments: arguments, output: .descriptor(ends[1]))
        }
        // Ours has to go as well, or the end would never come.
        close(ends[1])
        let child = try started.get()
        var buffer = [UInt8](repeating: 0, count: 256 << 10)
        while true {
            let count = Glibc.read(ends[0], &buffer, buffer.count)
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { break }
            let goesOn = buffer.withUnsafeBytes {
                receive(UnsafeRawBufferPointer(rebasing: $0[..<count]))
            }
            guard goesOn else { return }
        }
        let end = child.wait(timeoutMilliseconds: 10_000)
        guard end == .exited(0) else {
            throw ChildFailure(
                "\(executable) \(arguments.joined(separator: " ")): "
                    + (end.map { "\($0)" } ?? "does not end")
            )
        }
    }
}
