internal import BrokerBasics

/// The Prometheus text format, version 0.0.4:
/// https://prometheus.io/docs/instrumenting/exposition_formats/
package struct MetricText {
    package static let contentType = "text/plain; version=0.0.4; charset=utf-8"

    package private(set) var text = ""

    package init() {}

    /// Every metric of the table, also those without a sample: a name that is gone would look like a
    /// metric that was removed.
    ///
    /// - Parameter sources: a shard each. With several, each sample says which by the label `shard`.
    package static func render(_ metrics: [Metric], _ sources: [MetricSource]) -> String {
        var out = MetricText()
        for metric in metrics {
            out.begin(metric)
            for (number, source) in sources.enumerated() {
                out.add(metric, source, shard: sources.count > 1 ? number : nil)
            }
        }
        return out.text
    }

    private mutating func begin(_ metric: Metric) {
        text += "# HELP \(metric.name) \(Self.escapedHelp(metric.help))\n"
        text += "# TYPE \(metric.name) \(metric.kind.rawValue)\n"
    }

    private mutating func add(_ metric: Metric, _ source: MetricSource, shard: Int?) {
        for sample in metric.samples(source) {
            let labels = sample.labels + (shard.map { [("shard", "\($0)")] } ?? [])
            switch sample.value {
            case .whole(let value): line(metric.name, labels, "\(value)")
            case .real(let value): line(metric.name, labels, Self.number(value))
            case .histogram(let histogram): add(histogram, metric.name, labels)
            }
        }
    }

    private mutating func line(
        _ name: String,
        _ labels: [(name: String, value: String)],
        _ value: String
    ) {
        text += name
        if !labels.isEmpty {
            text += "{"
            for (index, label) in labels.enumerated() {
                if index > 0 { text += "," }
                text += "\(label.name)=\"\(Self.escapedLabel(label.value))\""
            }
            text += "}"
        }
        text += " \(value)\n"
    }

    /// Two buckets per power of two, from 16 µs to 8.6 s. Our histogram's bounds are exclusive and
    /// `le` is inclusive: a duration of exactly the bound is in the next bucket, one nanosecond late.
    private mutating func add(
        _ histogram: LatencyHistogram,
        _ name: String,
        _ labels: [(name: String, value: String)]
    ) {
        var cumulative: UInt64 = 0
        var next = 0
        for octave in 14...33 {
            for bound in [UInt64(1) << UInt64(octave), UInt64(3) << UInt64(octave - 1)] {
                while next < LatencyHistogram.bucketCount,
                    LatencyHistogram.upperBound(of: next) <= bound
                {
                    cumulative += histogram.counts[next]
                    next += 1
                }
                line(
                    name + "_bucket",
                    labels + [("le", Self.number(Double(bound) / 1e9))],
                    "\(cumulative)"
                )
            }
        }
        line(name + "_bucket", labels + [("le", "+Inf")], "\(histogram.count)")
        line(name + "_sum", labels, Self.number(Double(histogram.sumNanoseconds) / 1e9))
        line(name + "_count", labels, "\(histogram.count)")
    }

    private static func number(_ value: Double) -> String {
        if value.isNaN { return "NaN" }
        if value.isInfinite { return value > 0 ? "+Inf" : "-Inf" }
        return "\(value)"
    }

    package static func escapedLabel(_ value: String) -> String {
        var out = ""
        for scalar in value.unicodeScalars {
            switch scalar {
            case "\\": out += "\\\\"
            case "\"": out += "\\\""
            case "\n": out += "\\n"
            default: out.unicodeScalars.append(scalar)
            }
        }
        return out
    }

    package static func escapedHelp(_ value: String) -> String {
        value.replacing("\\", with: "\\\\").replacing("\n", with: "\\n")
    }
}
