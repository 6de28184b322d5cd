public import CProcessor

/// Asks the processor for memory before it is needed, so that several misses are waited for at once.
public enum Prefetch {
    public static let lineBytes = 64

    /// Begins to fetch `count` bytes from `address`, to be read or written soon. Any address will do:
    /// one that is not mapped fetches nothing.
    @inlinable @inline(__always)
    public static func fetch(_ address: UnsafeRawPointer, count: Int) {
        var at = 0
        while at < count {
            millrace_prefetch(address + at)
            at &+= lineBytes
        }
    }
}
