/// Counts durations in log-linear buckets: 8 per power of two, so a bucket is within 12.5 % of the
/// values in it. Fixed memory, mergeable, one writer.
///
/// Owned by a shard; a copy of it is what other threads see.
public struct LatencyHistogram: Sendable {
    public static let bucketsPerOctave = 8
    public static let octaves = 40
    public static let bucketCount = octaves * bucketsPerOctave

    public private(set) var counts: [UInt64]
    public private(set) var count: UInt64 = 0
    public private(set) var sumNanoseconds: UInt64 = 0
    public private(set) var maxNanoseconds: UInt64 = 0

    public init() { counts = [UInt64](repeating: 0, count: Self.bucketCount) }

    /// The bucket of `nanoseconds`; every value has one, the last also holds what is beyond it.
    public static func bucket(of nanoseconds: UInt64) -> Int {
        guard nanoseconds >= 8 else { return Int(nanoseconds) }
        let octave = 63 - nanoseconds.leadingZeroBitCount
        let within = Int((nanoseconds >> UInt64(octave - 3)) & 7)
        return min((octave - 2) * bucketsPerOctave + within, bucketCount - 1)
    }

    /// The first value above bucket `index`, in nanoseconds.
    public static func upperBound(of index: Int) -> UInt64 {
        let next = index + 1
        guard next >= 8 else { return UInt64(next) }
        let octave = next / bucketsPerOctave + 2
        let within = UInt64(next % bucketsPerOctave)
        return (8 + within) << UInt64(octave - 3)
    }

    public mutating func record(_ nanoseconds: UInt64) {
        counts[Self.bucket(of: nanoseconds)] &+= 1
        count &+= 1
        sumNanoseconds &+= nanoseconds
        maxNanoseconds = max(maxNanoseconds, nanoseconds)
    }

    /// The bound below which at least `quantile` (0 ... 1) of the values lie; 0 when there are none.
    public func quantile(_ quantile: Double) -> UInt64 {
        let wanted = UInt64((Double(count) * quantile).rounded(.up))
        var seen: UInt64 = 0
        for (index, bucketed) in counts.enumerated() where bucketed > 0 {
            seen += bucketed
            if seen >= wanted { return min(Self.upperBound(of: index), maxNanoseconds) }
        }
        return maxNanoseconds
    }
}
