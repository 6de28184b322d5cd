import BrokerBasics
import Testing

@Suite("the latency histogram")
struct LatencyHistogramTests {
    /// All small values, those around each bound, and random ones of every magnitude.
    private static let values: [UInt64] = {
        var values = [UInt64](0..<5000)
        for index in 0..<LatencyHistogram.bucketCount {
            let bound = LatencyHistogram.upperBound(of: index)
            values += [bound - 1, bound, bound + 1]
        }
        var random = SeededRandom(seed: 0x5EED_0012)
        for _ in 0..<20_000 { values.append(random.next() >> UInt64(random.below(64))) }
        return values + [.max]
    }()

    @Test("a value lies below the upper bound of its bucket and not below that of the one before")
    func bounds() {
        let last = LatencyHistogram.bucketCount - 1
        for value in Self.values {
            let bucket = LatencyHistogram.bucket(of: value)
            #expect((0...last).contains(bucket))
            if bucket < last { #expect(value < LatencyHistogram.upperBound(of: bucket)) }
            if bucket > 0 { #expect(value >= LatencyHistogram.upperBound(of: bucket - 1)) }
        }
    }

    @Test("the bounds rise, and a bucket is at most 12.5 % wide")
    func widths() {
        var lower: UInt64 = 0
        for index in 0..<LatencyHistogram.bucketCount {
            let upper = LatencyHistogram.upperBound(of: index)
            #expect(upper > lower)
            if lower >= 8 { #expect((upper - lower) * 8 <= lower, "bucket \(index)") }
            lower = upper
        }
    }

    @Test("what is beyond the last bound is in the last bucket")
    func beyond() {
        let last = LatencyHistogram.bucketCount - 1
        #expect(LatencyHistogram.upperBound(of: last) == 1 << 42)
        #expect(LatencyHistogram.bucket(of: .max) == last)
        #expect(LatencyHistogram.bucket(of: 1 << 42) == last)
    }

    @Test("a quantile is within 12.5 % above the value at its rank, and never above the largest")
    func quantiles() {
        var random = SeededRandom(seed: 0x5EED_0013)
        var histogram = LatencyHistogram()
        let values = (0..<10_000).map { _ in UInt64(100 + random.below(5_000_000)) }.sorted()
        for value in values { histogram.record(value) }
        #expect(histogram.count == 10_000)
        #expect(histogram.maxNanoseconds == values[9999])
        #expect(histogram.sumNanoseconds == values.reduce(0, +))
        for quantile in [0.001, 0.5, 0.9, 0.99, 0.999, 1] {
            let rank = Int((quantile * 10_000).rounded(.up)) - 1
            let told = histogram.quantile(quantile)
            #expect(told >= values[rank], "\(quantile)")
            #expect(told <= min(values[rank] + values[rank] / 8 + 1, values[9999]), "\(quantile)")
        }
    }

    @Test("without values every quantile is 0")
    func empty() {
        #expect(LatencyHistogram().quantile(0.99) == 0)
    }
}
