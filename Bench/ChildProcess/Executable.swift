internal import Glibc

/// Finds what was built together with the running program.
package enum Executable {
    /// The same as `beside`, for whom it must be there.
    package static func named(_ name: String) throws(ChildFailure) -> String {
        guard let path = beside(name) else {
            throw ChildFailure("\(name) is not beside this program: build it in the same way")
        }
        return path
    }

    /// The path of `name` in the directory of the running program.
    ///
    /// - Returns: `nil` when there is no such program.
    package static func beside(_ name: String) -> String? {
        var buffer = [UInt8](repeating: 0, count: 4096)
        let count = buffer.withUnsafeMutableBytes { bytes in
            bytes.baseAddress.map { readlink("/proc/self/exe", $0, bytes.count) } ?? -1
        }
        guard count > 0, count < buffer.count else { return nil }
        let own = String(decoding: buffer[..<count], as: UTF8.self)
        guard let slash = own.lastIndex(of: "/") else { return nil }
        let path = own[..<slash] + "/" + name
        return access(String(path), X_OK) == 0 ? String(path) : nil
    }
}
