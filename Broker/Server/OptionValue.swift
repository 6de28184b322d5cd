/// Turns what a person wrote into numbers, and back.
package enum OptionValue {
    private static let sizeUnits: [(suffix: String, bytes: UInt64)] = [
        ("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10),
        ("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1000),
        ("B", 1), ("", 1),
    ]
    private static let timeUnits: [(suffix: String, nanoseconds: UInt64)] = [
        ("ms", 1_000_000), ("us", 1000), ("ns", 1), ("s", 1_000_000_000),
        ("m", 60_000_000_000), ("h", 3_600_000_000_000), ("d", 86_400_000_000_000),
    ]

    /// Decimal digits only: no sign, no separators.
    package static func number(_ text: some StringProtocol) -> UInt64? {
        guard !text.isEmpty, text.utf8.allSatisfy({ $0 >= 48 && $0 <= 57 }) else { return nil }
        return UInt64(text)
    }

    /// Bytes: `64MiB`, `1GB`, `4096`.
    package static func size(_ text: String) -> UInt64? {
        scaled(text, sizeUnits.map { ($0.suffix, $0.bytes) })
    }

    /// Nanoseconds: `10s`, `100ms`, `7d`. A unit is required: a bare number would be a guess.
    package static func duration(_ text: String) -> UInt64? {
        scaled(text, timeUnits.map { ($0.suffix, $0.nanoseconds) })
    }

    private static func scaled(_ text: String, _ units: [(String, UInt64)]) -> UInt64? {
        for (suffix, scale) in units where text.hasSuffix(suffix) {
            let digits = text.dropLast(suffix.count)
            guard let count = number(digits) else { continue }
            let (product, overflow) = count.multipliedReportingOverflow(by: scale)
            return overflow ? nil : product
        }
        return nil
    }

    /// The shortest exact spelling with a binary unit.
    package static func sizeText(_ bytes: UInt64) -> String {
        for (suffix, scale) in sizeUnits.prefix(4) where bytes >= scale && bytes % scale == 0 {
            return "\(bytes / scale)\(suffix)"
        }
        return "\(bytes)"
    }

    /// The shortest exact spelling.
    package static func durationText(_ nanoseconds: UInt64) -> String {
        for suffix in ["d", "h", "m", "s", "ms", "us"] {
            guard let unit = timeUnits.first(where: { $0.suffix == suffix }) else { continue }
            if nanoseconds >= unit.nanoseconds, nanoseconds % unit.nanoseconds == 0 {
                return "\(nanoseconds / unit.nanoseconds)\(suffix)"
            }
        }
        return "\(nanoseconds)ns"
    }

    /// CPU numbers: `0`, `0-1,3`; in the order written, each once.
    package static func cpuList(_ text: String) -> [Int]? {
        var cpus: [Int] = []
        for part in text.split(separator: ",", omittingEmptySubsequences: false) {
            let ends = part.split(separator: "-", omittingEmptySubsequences: false)
            guard ends.count <= 2, let first = ends.first.flatMap({ number($0) }),
                let last = ends.last.flatMap({ number($0) }), first <= last, last < 1024
            else { return nil }
            for cpu in first...last where !cpus.contains(Int(cpu)) { cpus.append(Int(cpu)) }
        }
        return cpus.isEmpty ? nil : cpus
    }

    /// The known name nearest to `name`, if one is near enough to have been meant.
    package static func nearest(to name: String, among known: [String]) -> String? {
        let candidates = known.map {
            (name: $0, distance: distance(Array(name.utf8), Array($0.utf8)))
        }
        guard let best = candidates.min(by: { $0.distance < $1.distance }) else { return nil }
        if best.distance <= max(2, name.utf8.count / 3) { return best.name }
        return known.first { $0.hasPrefix(name) || name.hasPrefix($0) }
    }

    /// Levenshtein's edit distance.
    private static func distance(_ left: [UInt8], _ right: [UInt8]) -> Int {
        var row = Array(0...right.count)
        for (i, byte) in left.enumerated() {
            var diagonal = row[0]
            row[0] = i + 1
            for (j, other) in right.enumerated() {
                let next = min(row[j] + 1, row[j + 1] + 1, diagonal + (byte == other ? 0 : 1))
                diagonal = row[j + 1]
                row[j + 1] = next
            }
        }
        return row[right.count]
    }
}
