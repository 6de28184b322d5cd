/// Quantities as people read them.
package enum HumanText {
    /// `0 B`, `1023 B`, `1.5 KiB`, `12.0 GiB`.
    package static func size(_ bytes: UInt64) -> String {
        guard bytes >= 1024 else { return "\(bytes) B" }
        let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
        var value = Double(bytes) / 1024
        var unit = 0
        // What would be shown as 1024.0 belongs to the next unit.
        while value >= 1023.95, unit < units.count - 1 {
            value /= 1024
            unit += 1
        }
        return "\(oneDecimal(value)) \(units[unit])"
    }

    /// `0 s`, `12 ns`, `1.5 ms`, `59.9 s`, `2 min 5 s`, `3 h 4 min`, `2 d 3 h`.
    package static func duration(_ nanoseconds: UInt64) -> String {
        switch nanoseconds {
        case 0: return "0 s"
        case ..<1_000: return "\(nanoseconds) ns"
        case ..<1_000_000: return "\(oneDecimal(Double(nanoseconds) / 1e3)) µs"
        case ..<1_000_000_000: return "\(oneDecimal(Double(nanoseconds) / 1e6)) ms"
        case ..<60_000_000_000: return "\(oneDecimal(Double(nanoseconds) / 1e9)) s"
        default: break
        }
        let seconds = nanoseconds / 1_000_000_000
        if seconds < 3_600 { return "\(seconds / 60) min \(seconds % 60) s" }
        if seconds < 86_400 { return "\(seconds / 3_600) h \(seconds % 3_600 / 60) min" }
        return "\(seconds / 86_400) d \(seconds % 86_400 / 3_600) h"
    }

    private static func oneDecimal(_ value: Double) -> String {
        let tenths = UInt64((value * 10).rounded())
        return "\(tenths / 10).\(tenths % 10)"
    }

    /// The text with its control characters written out.
    package static func visible(_ text: String) -> String {
        guard text.unicodeScalars.contains(where: isControl) else { return text }
        var visible = ""
        for scalar in text.unicodeScalars {
            if isControl(scalar) {
                visible += "\\u{\(String(scalar.value, radix: 16))}"
            } else {
                visible.unicodeScalars.append(scalar)
            }
        }
        return visible
    }

    private static func isControl(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar.properties.generalCategory {
        // Format characters turn the direction of what follows.
        case .control, .format, .lineSeparator, .paragraphSeparator: true
        default: false
        }
    }
}
