internal import BrokerBasics
internal import Glibc

/// Zeroed memory aligned for direct I/O, freed with its owner.
///
/// From 8 MiB on it is mapped in huge pages where the kernel has them: a write of 128 KiB is then one
/// range of physical memory instead of 32, which the kernel and the device handle faster.
public struct AlignedMemory: ~Copyable {
    public static let alignment = 4096
    private static let hugePageBytes = 2 << 20
    private static let hugePagesFrom = 8 << 20

    public let base: UnsafeMutableRawPointer
    public let byteCount: Int
    /// What was mapped; 0 when the memory came from the allocator.
    private let mappedBytes: Int

    public init(byteCount: Int) {
        self.byteCount = byteCount
        if byteCount >= Self.hugePageBytes, let mapped = Self.map(byteCount) {
            (base, mappedBytes) = mapped
        } else {
            base = .allocate(byteCount: max(byteCount, 1), alignment: Self.alignment)
            base.initializeMemory(as: UInt8.self, repeating: 0, count: byteCount)
            mappedBytes = 0
        }
    }

    /// Address space of which perhaps only a part is ever used.
    ///
    /// - Returns: `nil` when the system gives no address space that it has no memory for
    ///   (`vm.overcommit_memory` 2).
    public init?(reserving byteCount: Int) {
        guard let mapped = Self.map(byteCount) else { return nil }
        self.byteCount = byteCount
        (base, mappedBytes) = mapped
    }

    deinit {
        if mappedBytes > 0 {
            munmap(base, mappedBytes)
        } else {
            base.deallocate()
        }
    }

    public var buffer: UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(start: base, count: byteCount)
    }

    /// Maps more than is asked for and gives back what lies outside of whole huge pages; what is
    /// smaller than one begins at any page.
    private static func map(_ byteCount: Int) -> (UnsafeMutableRawPointer, Int)? {
        let unit = byteCount < hugePageBytes ? alignment : hugePageBytes
        let bytes = byteCount.roundedUp(to: unit)
        let mapped = mmap(
            nil, bytes + unit - alignment, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        guard let mapped, mapped != MAP_FAILED else { return nil }
        let before = -Int(bitPattern: mapped) & (unit - 1)
        let base = mapped + before
        let after = unit - alignment - before
        if before > 0 { munmap(mapped, before) }
        if after > 0 { munmap(base + bytes, after) }
        // A little memory is not worth whole huge pages. Refused by a kernel that has none.
        if byteCount >= hugePagesFrom { madvise(base, bytes, MADV_HUGEPAGE) }
        return (base, bytes)
    }

    /// Gives a part back to the system; it is zero when it is used again.
    public func release(_ part: Range<Int>) {
        guard mappedBytes > 0 else { return }
        madvise(base + part.lowerBound, part.count, MADV_DONTNEED)
    }
}
