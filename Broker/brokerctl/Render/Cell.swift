/// One value of an answer, with enough meaning to be shown to people and to programs.
package indirect enum Cell: Equatable, Sendable {
    case none
    case text(String)
    case count(UInt64)
    case flag(Bool)
    /// A size: `1.5 MiB` in a table, bytes elsewhere.
    case bytes(UInt64)
    /// Nanoseconds: `1.5 s` in a table.
    case duration(UInt64)
    /// Nanoseconds since 1970: RFC 3339 in a table.
    case time(UInt64)
    /// `name=value name=value` outside JSON.
    case pairs([(name: String, value: String)])
    case list([String])

    package static func == (left: Cell, right: Cell) -> Bool { left.json == right.json }

    /// As people read it. Control characters are made visible, so that a name that came over the
    /// network cannot steer a terminal.
    package var human: String {
        switch self {
        case .none: "-"
        case .text(let text): text.isEmpty ? "-" : HumanText.visible(text)
        case .count(let count): String(count)
        case .flag(let flag): flag ? "yes" : "no"
        case .bytes(let bytes): HumanText.size(bytes)
        case .duration(let nanoseconds): HumanText.duration(nanoseconds)
        case .time(let nanoseconds): CivilTime.text(nanoseconds: nanoseconds)
        case .pairs(let pairs):
            pairs.isEmpty
                ? "-"
                : HumanText.visible(
                    pairs.map { "\($0.name)=\($0.value)" }.joined(separator: " ")
                )
        case .list(let items):
            items.isEmpty ? "-" : HumanText.visible(items.joined(separator: ","))
        }
    }

    package var json: JSONValue {
        switch self {
        case .none: .null
        case .text(let text): .string(text)
        case .flag(let flag): .bool(flag)
        case .count(let number), .bytes(let number), .duration(let number), .time(let number):
            .number(number)
        case .pairs(let pairs): .object(pairs.map { ($0.name, .string($0.value)) })
        case .list(let items): .array(items.map { .string($0) })
        }
    }

    /// The cell's text in CSV, before quoting.
    package var plain: String {
        switch self {
        case .none: ""
        case .text(let text): text
        case .flag(let flag): flag ? "true" : "false"
        case .count(let number), .bytes(let number), .duration(let number), .time(let number):
            String(number)
        case .pairs(let pairs): pairs.map { "\($0.name)=\($0.value)" }.joined(separator: " ")
        case .list(let items): items.joined(separator: " ")
        }
    }

    var isNumber: Bool {
        switch self {
        case .count, .bytes, .duration: true
        default: false
        }
    }
}
