/// Points in time as people write them: RFC 3339 in UTC, and Unix time.
package enum CivilTime {
    /// `2024-08-08T12:34:56.123456789Z`; zeros at the end of the fraction are left out.
    package static func text(nanoseconds: UInt64) -> String {
        let seconds = nanoseconds / 1_000_000_000
        let (year, month, day) = date(daysSince1970: Int(seconds / 86_400))
        let rest = Int(seconds % 86_400)
        var text =
            "\(padded(year, 4))-\(padded(month, 2))-\(padded(day, 2))"
            + "T\(padded(rest / 3_600, 2)):\(padded(rest % 3_600 / 60, 2)):\(padded(rest % 60, 2))"
        var fraction = padded(Int(nanoseconds % 1_000_000_000), 9)
        while fraction.last == "0" { fraction.removeLast() }
        if !fraction.isEmpty { text += "." + fraction }
        return text + "Z"
    }

    private static func padded(_ number: Int, _ digits: Int) -> String {
        let text = String(number)
        return String(repeating: "0", count: max(0, digits - text.count)) + text
    }

    /// Reads RFC 3339 (`2024-08-08T12:34:56.5+02:00`), or Unix time after an `@`: seconds
    /// (`@1723120496.5`) or nanoseconds (`@1723120496500000000ns`).
    ///
    /// - Returns: nanoseconds since 1970, or `nil` where the text is none of these, or before 1970.
    package static func parse(_ text: String) -> UInt64? {
        text.hasPrefix("@") ? parseUnix(text.dropFirst()) : parseRFC3339(text)
    }

    private static func parseUnix(_ text: Substring) -> UInt64? {
        if text.hasSuffix("ns") { return number(text.dropLast(2)) }
        let parts = text.split(separator: ".", omittingEmptySubsequences: false)
        guard parts.count <= 2, let seconds = number(parts[0]) else { return nil }
        let fraction = parts.count == 2 ? nanoseconds(fraction: parts[1]) : 0
        guard let fraction else { return nil }
        return sum(seconds: seconds, fraction)
    }

    private static func parseRFC3339(_ text: String) -> UInt64? {
        let bytes = Array(text.utf8)
        guard bytes.count >= 20, bytes[4] == UInt8(ascii: "-"), bytes[7] == UInt8(ascii: "-"),
            [UInt8(ascii: "T"), UInt8(ascii: "t"), UInt8(ascii: " ")].contains(bytes[10]),
            bytes[13] == UInt8(ascii: ":"), bytes[16] == UInt8(ascii: ":"),
            let year = digits(bytes, 0..<4), let month = digits(bytes, 5..<7),
            let day = digits(bytes, 8..<10), let hour = digits(bytes, 11..<13),
            let minute = digits(bytes, 14..<16), let second = digits(bytes, 17..<19),
            (1970...9999).contains(year), (1...12).contains(month), hour < 24, minute < 60,
            // A leap second is the first moment of the next minute here, as in Unix time.
            second <= 60, (1...daysOfMonth(year, month)).contains(day)
        else { return nil }

        var at = 19
        var fraction: UInt64 = 0
        if bytes[at] == UInt8(ascii: ".") {
            var end = at + 1
            while end < bytes.count, (0x30...0x39).contains(bytes[end]) { end += 1 }
            let text = String(decoding: bytes[at + 1..<end], as: UTF8.self)
            guard let read = nanoseconds(fraction: Substring(text)) else { return nil }
            fraction = read
            at = end
        }
        guard let zone = zoneSeconds(Array(bytes[at...])) else { return nil }
        let local = days(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second
        guard local - zone >= 0 else { return nil }
        return sum(seconds: UInt64(local - zone), fraction)
    }

    /// `Z`, or `+02:00`.
    private static func zoneSeconds(_ bytes: [UInt8]) -> Int? {
        if bytes == [UInt8(ascii: "Z")] || bytes == [UInt8(ascii: "z")] { return 0 }
        guard bytes.count == 6, bytes[3] == UInt8(ascii: ":"),
            bytes[0] == UInt8(ascii: "+") || bytes[0] == UInt8(ascii: "-"),
            let hours = digits(bytes, 1..<3), let minutes = digits(bytes, 4..<6), hours < 24,
            minutes < 60
        else { return nil }
        let seconds = hours * 3_600 + minutes * 60
        return bytes[0] == UInt8(ascii: "-") ? -seconds : seconds
    }

    private static func digits(_ bytes: [UInt8], _ range: Range<Int>) -> Int? {
        number(Substring(String(decoding: bytes[range], as: UTF8.self))).map { Int($0) }
    }
    private static func number(_ text: Substring) -> UInt64? {
        text.utf8.allSatisfy { (0x30...0x39).contains($0) } ? UInt64(text) : nil
    }
    /// Digits behind a point, to the nanosecond; further ones say nothing here.
    private static func nanoseconds(fraction: Substring) -> UInt64? {
        guard !fraction.isEmpty, fraction.utf8.allSatisfy({ (0x30...0x39).contains($0) }) else {
            return nil
        }
        let nine = fraction.prefix(9)
        return UInt64(nine + String(repeating: "0", count: 9 - nine.count))
    }
    private static func sum(seconds: UInt64, _ nanoseconds: UInt64) -> UInt64? {
        let (product, tooLarge) = seconds.multipliedReportingOverflow(by: 1_000_000_000)
        let (sum, overflow) = product.addingReportingOverflow(nanoseconds)
        return tooLarge || overflow ? nil : sum
    }

    private static func daysOfMonth(_ year: Int, _ month: Int) -> Int {
        switch month {
        case 2: year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) ? 29 : 28
        case 4, 6, 9, 11: 30
        default: 31
        }
    }

    // Days and dates of the Gregorian calendar, in eras of 400 years that begin on March 1
    // (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").

    private static func days(_ year: Int, _ month: Int, _ day: Int) -> Int {
        let shifted = month <= 2 ? year - 1 : year
        let era = shifted / 400
        let yearOfEra = shifted - era * 400
        let dayOfYear = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + day - 1
        let dayOfEra = yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear
        return era * 146_097 + dayOfEra - 719_468
    }

    private static func date(daysSince1970: Int) -> (year: Int, month: Int, day: Int) {
        let shifted = daysSince1970 + 719_468
        let era = shifted / 146_097
        let dayOfEra = shifted - era * 146_097
        let yearOfEra =
            (dayOfEra - dayOfEra / 1_460 + dayOfEra / 36_524 - dayOfEra / 146_096) / 365
        let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
        let month = (5 * dayOfYear + 2) / 153
        let day = dayOfYear - (153 * month + 2) / 5 + 1
        let year = yearOfEra + era * 400
        return month < 10 ? (year, month + 3, day) : (year + 1, month - 9, day)
    }
}
