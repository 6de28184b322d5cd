internal import Glibc
package import Logging

/// How log lines look.
package enum LogFormat: String, Sendable, CaseIterable {
    /// For a person at a terminal.
    case text
    /// One JSON object per line, with ECS names.
    case json
}

/// One line of the log, before it has a format.
package struct LogLine: Sendable {
    /// Nanoseconds since 1970.
    package var time: UInt64
    package var level: Logger.Level
    /// Stable, for alerts and tests: `ready`, `recovered`, `bad-frame`.
    package var event: String?
    package var message: String
    package var fields: Logger.Metadata

    package init(
        time: UInt64,
        level: Logger.Level,
        event: String?,
        message: String,
        fields: Logger.Metadata
    ) {
        self.time = time
        self.level = level
        self.event = event
        self.message = message
        self.fields = fields
    }

    /// With its line end; fields in the order of their names.
    package func rendered(_ format: LogFormat) -> String {
        switch format {
        case .text: text
        case .json: json
        }
    }

    private var sortedFields: [(key: String, value: Logger.MetadataValue)] {
        fields.sorted { $0.key < $1.key }
    }

    private var text: String {
        var line = "\(Self.timestamp(time)) \(Self.padded(level.rawValue)) "
        if let event { line += "\(event): " }
        line += Self.oneLine(message)
        for (name, value) in sortedFields {
            line += " \(name)="
            let text = Self.plain(value)
            let needsQuotes = text.isEmpty || text.contains { $0 == " " || $0 == "\"" || $0 == "=" }
            line += needsQuotes ? Self.quoted(text) : Self.oneLine(text)
        }
        return line + "\n"
    }

    /// ECS: https://www.elastic.co/docs/reference/ecs, with our fields flat beside its own.
    private var json: String {
        var line = "{\"@timestamp\":\"\(Self.timestamp(time))\",\"log.level\":\"\(level.rawValue)\""
        line += ",\"message\":\(Self.quoted(message))"
        if let event { line += ",\"event\":\(Self.quoted(event))" }
        line += ",\"service.name\":\"brokerd\",\"process.pid\":\(getpid())"
        for (name, value) in sortedFields where !Self.reserved.contains(name) {
            line += ",\(Self.quoted(name)):\(Self.json(value))"
        }
        return line + "}\n"
    }

    private static let reserved: Set<String> = [
        "@timestamp", "log.level", "message", "event", "service.name", "process.pid",
    ]

    private static func padded(_ level: String) -> String {
        level + String(repeating: " ", count: max(0, 8 - level.utf8.count))
    }

    /// A line is a line: what would end it is written as an escape.
    private static func oneLine(_ text: String) -> String {
        guard text.unicodeScalars.contains(where: { $0.value < 0x20 || $0.value == 0x7F }) else {
            return text
        }
        return String(quoted(text).dropFirst().dropLast())
    }

    private static func plain(_ value: Logger.MetadataValue) -> String {
        switch value {
        case .string(let text): text
        case .stringConvertible(let value): value.description
        case .array(let values): values.map(plain).joined(separator: ",")
        case .dictionary(let values):
            values.sorted { $0.key < $1.key }.map { "\($0.key):\(plain($0.value))" }
                .joined(separator: ",")
        }
    }

    private static func json(_ value: Logger.MetadataValue) -> String {
        switch value {
        case .string(let text): return quoted(text)
        case .stringConvertible(let value):
            switch value {
            case let number as any BinaryInteger: return "\(number)"
            case let number as Double: return number.isFinite ? "\(number)" : quoted("\(number)")
            case let truth as Bool: return truth ? "true" : "false"
            default: return quoted(value.description)
            }
        case .array(let values): return "[" + values.map(json).joined(separator: ",") + "]"
        case .dictionary(let values):
            let parts = values.sorted { $0.key < $1.key }.map {
                "\(quoted($0.key)):\(json($0.value))"
            }
            return "{" + parts.joined(separator: ",") + "}"
        }
    }

    /// A JSON string, also used for text with spaces.
    package static func quoted(_ text: String) -> String {
        var out = "\""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"": out += "\\\""
            case "\\": out += "\\\\"
            case "\n": out += "\\n"
            case "\r": out += "\\r"
            case "\t": out += "\\t"
            default:
                if scalar.value < 0x20 || scalar.value == 0x7F {
                    let digits = String(scalar.value, radix: 16)
                    out += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
                } else {
                    out.unicodeScalars.append(scalar)
                }
            }
        }
        return out + "\""
    }

    /// UTC with milliseconds: `2026-11-21T07:05:47.123Z`.
    package static func timestamp(_ nanoseconds: UInt64) -> String {
        var seconds = time_t(nanoseconds / 1_000_000_000)
        var parts = tm()
        gmtime_r(&seconds, &parts)
        func digits(_ value: Int32, _ width: Int) -> String {
            let text = String(value)
            return String(repeating: "0", count: max(0, width - text.utf8.count)) + text
        }
        let date =
            "\(digits(parts.tm_year + 1900, 4))-\(digits(parts.tm_mon + 1, 2))-"
            + digits(parts.tm_mday, 2)
        let time =
            "\(digits(parts.tm_hour, 2)):\(digits(parts.tm_min, 2)):\(digits(parts.tm_sec, 2))"
        let milliseconds = digits(Int32(nanoseconds / 1_000_000 % 1000), 3)
        return "\(date)T\(time).\(milliseconds)Z"
    }
}
