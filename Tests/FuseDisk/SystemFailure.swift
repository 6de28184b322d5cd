internal import Glibc

/// Why the machine did not do something: one line for a person.
package struct SystemFailure: Error, CustomStringConvertible {
    package let description: String
    /// Something failed just now, and errno says why.
    package init(_ attempt: String) {
        description = "\(attempt) failed: \(String(cString: strerror(errno)))"
    }
    package init(text: String) { description = text }
}
