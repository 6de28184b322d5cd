internal import CBaseline
package import Histogram

/// The percentiles that the sample count carries, in microseconds.
///
/// A percentile is given only when at least ten samples lie beyond it: the 99.99th needs 100,000.
package struct LatencySummary: Sendable {
    package static let names = ["p50", "p90", "p99", "p99_9", "p99_99"]
    private static let quantiles = [0.5, 0.9, 0.99, 0.999, 0.9999]
    private static let samplesBeyond = 10.0

    package var samples: UInt64
    /// In the order of `names`.
    package var percentiles: [Double?]
    package var max: Double?

    /// `value` gives a quantile's value in nanoseconds.
    init(samples: UInt64, maxNanoseconds: UInt64, value: (Double) -> UInt64) {
        self.samples = samples
        max = samples > 0 ? Double(maxNanoseconds) / 1000 : nil
        percentiles = Self.quantiles.map { quantile in
            // A hair of slack: 0.0001 × 100,000 is not ten in binary.
            Double(samples) * (1 - quantile) + 1e-6 >= Self.samplesBeyond
                ? Double(value(quantile)) / 1000 : nil
        }
    }

    package init(_ histogram: Histogram<UInt64>) {
        self.init(
            samples: histogram.totalCount,
            maxNanoseconds: histogram.totalCount > 0 ? histogram.maxRecorded : 0
        ) { histogram.valueAtPercentile($0 * 100) }
    }

    init(_ histogram: UnsafePointer<baseline_histogram>) {
        self.init(samples: histogram.pointee.count, maxNanoseconds: histogram.pointee.max) {
            baseline_quantile(histogram, $0)
        }
    }

    package var json: JSON {
        var members = zip(Self.names, percentiles).map { ($0, JSON.optional($1)) }
        members.append(("max", .optional(max)))
        return .object(members)
    }
}
