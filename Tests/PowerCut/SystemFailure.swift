internal import Glibc

/// Why the machine did not do something: one line for a person.
struct SystemFailure: Error, CustomStringConvertible {
    let description: String
    /// Something failed just now, and errno says why.
    init(_ attempt: String) {
        description = "\(attempt) failed: \(String(cString: strerror(errno)))"
    }
    init(text: String) { description = text }
}
