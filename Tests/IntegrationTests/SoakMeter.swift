import Foundation

/// What a broker used at one moment, and how long a synced publish took.
struct SoakSample {
    var residentKiB: Double
    var descriptors: Double
    var publishMicroseconds: Double

    static func residentKiB(of process: Int32) throws -> Double {
        let status = try String(contentsOfFile: "/proc/\(process)/status", encoding: .utf8)
        let line = status.split(separator: "\n").first { $0.hasPrefix("VmRSS:") }
        return line.flatMap { Double($0.filter(\.isNumber)) } ?? 0
    }
    static func descriptors(of process: Int32) throws -> Double {
        Double(try FileManager.default.contentsOfDirectory(atPath: "/proc/\(process)/fd").count)
    }
}

/// The samples of one life of a broker, between two kills.
///
/// The rule: the median of the last quarter is at most so many times that of the second quarter, and a
/// little. In the first one caches fill and clients come back.
struct SoakMeter {
    struct Rule {
        var name: String
        var value: @Sendable (SoakSample) -> Double
        var factor: Double
        /// What is allowed besides: of small numbers a factor says little.
        var slack: Double
    }
    static let rules = [
        Rule(name: "resident KiB", value: { $0.residentKiB }, factor: 1.1, slack: 8 * 1024),
        Rule(name: "descriptors", value: { $0.descriptors }, factor: 1.0, slack: 16),
        Rule(name: "publish µs", value: { $0.publishMicroseconds }, factor: 2, slack: 2000),
    ]

    var samples: [SoakSample] = []

    static func median(_ values: [Double]) -> Double {
        values.isEmpty ? 0 : values.sorted()[values.count / 2]
    }

    /// The medians of the second and the last quarter.
    func quarters(_ rule: Rule) -> (second: Double, last: Double) {
        let quarter = samples.count / 4
        return (
            Self.median(samples[quarter..<quarter * 2].map(rule.value)),
            Self.median(samples[(quarter * 3)...].map(rule.value))
        )
    }

    /// What grew, in words.
    var complaints: [String] {
        Self.rules.compactMap { rule in
            let (second, last) = quarters(rule)
            guard last > second * rule.factor + rule.slack else { return nil }
            return "\(rule.name): \(Int(second)) in the second quarter, \(Int(last)) in the last"
        }
    }
}
