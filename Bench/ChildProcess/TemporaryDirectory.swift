internal import Glibc

/// A directory that goes, with all that is in it, when the object does.
package final class TemporaryDirectory: Sendable {
    package let path: String

    package init(prefix: String) throws(ChildFailure) {
        let parent = getenv("TMPDIR").map { String(cString: $0) } ?? "/tmp"
        var template = Array("\(parent)/\(prefix)-XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else {
            throw ChildFailure(
                "making a directory in \(parent) failed: \(String(cString: strerror(errno)))"
            )
        }
        path = template.withUnsafeBufferPointer { buffer in
            String(decoding: buffer.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        }
    }

    deinit { remove() }

    /// Removes it now.
    package func remove() { Directory.remove(path) }
}

/// The little of directories that is needed here.
enum Directory {
    /// The names in it, without `.` and `..`; none when it cannot be read.
    static func entries(_ path: String) -> [String] {
        guard let directory = opendir(path) else { return [] }
        defer { closedir(directory) }
        var names: [String] = []
        while let entry = readdir(directory) {
            let name = withUnsafeBytes(of: entry.pointee.d_name) { bytes in
                String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
            }
            if name != ".", name != ".." { names.append(name) }
        }
        return names
    }

    /// Removes what is there and all that is in it. A link is removed, not followed.
    static func remove(_ path: String) {
        if unlink(path) == 0 || errno == ENOENT { return }
        for name in entries(path) { remove(path + "/" + name) }
        rmdir(path)
    }
}
