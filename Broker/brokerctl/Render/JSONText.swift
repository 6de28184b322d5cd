/// A JSON value; the members of an object keep their order.
package indirect enum JSONValue: Equatable, Sendable {
    case null
    case bool(Bool)
    case number(UInt64)
    case string(String)
    /// Bytes that are valid UTF-8, not copied into a string first.
    case utf8([UInt8])
    case array([JSONValue])
    case object([(String, JSONValue)])

    package static func == (left: JSONValue, right: JSONValue) -> Bool {
        JSONText.bytes(left) == JSONText.bytes(right)
    }
}

/// Writes JSON (RFC 8259). Everything outside ASCII stays as it is; numbers are whole.
package enum JSONText {
    package static func bytes(_ value: JSONValue) -> [UInt8] {
        var bytes: [UInt8] = []
        append(value, indent: nil, to: &bytes)
        return bytes
    }

    /// Appends `value`: on one line, or with `indent` as the depth of a readable layout.
    package static func append(_ value: JSONValue, indent: Int?, to bytes: inout [UInt8]) {
        switch value {
        case .null: bytes.append(contentsOf: "null".utf8)
        case .bool(let flag): bytes.append(contentsOf: (flag ? "true" : "false").utf8)
        case .number(let number): bytes.append(contentsOf: String(number).utf8)
        case .string(let text): append(utf8: text.utf8, to: &bytes)
        case .utf8(let text): append(utf8: text, to: &bytes)
        case .array(let items):
            bytes.append(UInt8(ascii: "["))
            for (index, item) in items.enumerated() {
                if index > 0 { bytes.append(UInt8(ascii: ",")) }
                newLine(indent.map { $0 + 1 }, to: &bytes)
                append(item, indent: indent.map { $0 + 1 }, to: &bytes)
            }
            if !items.isEmpty { newLine(indent, to: &bytes) }
            bytes.append(UInt8(ascii: "]"))
        case .object(let members):
            bytes.append(UInt8(ascii: "{"))
            for (index, member) in members.enumerated() {
                if index > 0 { bytes.append(UInt8(ascii: ",")) }
                newLine(indent.map { $0 + 1 }, to: &bytes)
                append(utf8: member.0.utf8, to: &bytes)
                bytes.append(UInt8(ascii: ":"))
                if indent != nil { bytes.append(UInt8(ascii: " ")) }
                append(member.1, indent: indent.map { $0 + 1 }, to: &bytes)
            }
            if !members.isEmpty { newLine(indent, to: &bytes) }
            bytes.append(UInt8(ascii: "}"))
        }
    }

    private static func newLine(_ indent: Int?, to bytes: inout [UInt8]) {
        guard let indent else { return }
        bytes.append(UInt8(ascii: "\n"))
        bytes.append(contentsOf: repeatElement(UInt8(ascii: " "), count: indent * 2))
    }

    private static func append(utf8 text: some Sequence<UInt8>, to bytes: inout [UInt8]) {
        bytes.append(UInt8(ascii: "\""))
        for byte in text {
            switch byte {
            case UInt8(ascii: "\""), UInt8(ascii: "\\"):
                bytes.append(UInt8(ascii: "\\"))
                bytes.append(byte)
            case 0x0A: bytes.append(contentsOf: "\\n".utf8)
            case 0x0D: bytes.append(contentsOf: "\\r".utf8)
            case 0x09: bytes.append(contentsOf: "\\t".utf8)
            // The delete character is lawful in JSON, and unwelcome in a terminal.
            case 0..<0x20, 0x7F:
                bytes.append(contentsOf: "\\u00".utf8)
                let digits = Array("0123456789abcdef".utf8)
                bytes.append(digits[Int(byte >> 4)])
                bytes.append(digits[Int(byte & 15)])
            default: bytes.append(byte)
            }
        }
        bytes.append(UInt8(ascii: "\""))
    }

    /// The member for bytes that may be text: `name`, or `name_base64` where they are not UTF-8.
    package static func member(_ name: String, _ bytes: [UInt8]) -> (String, JSONValue) {
        String(validating: bytes, as: UTF8.self) != nil
            ? (name, .utf8(bytes)) : (name + "_base64", .string(Base64.text(bytes)))
    }
}
