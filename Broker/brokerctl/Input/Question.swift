internal import Glibc

/// A question before something that cannot be undone.
enum Question {
    /// Asks on standard error, so that standard output stays the answer's.
    ///
    /// - Parameter otherwise: what is said when another answer than `expected` is typed.
    static func ask(
        _ question: String,
        expecting expected: String,
        otherwise: String
    ) throws(Failure) {
        let bytes = Array(question.utf8)
        _ = write(ControlTool.streams.errors, bytes, bytes.count)
        var answer: [UInt8] = []
        var byte: UInt8 = 0
        while read(ControlTool.streams.input, &byte, 1) == 1, byte != UInt8(ascii: "\n") {
            answer.append(byte)
        }
        let typed = String(decoding: answer, as: UTF8.self)
        guard typed.split(separator: " ").joined() == expected else { throw .declined(otherwise) }
    }
}
