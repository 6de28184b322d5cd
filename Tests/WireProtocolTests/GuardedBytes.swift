import Glibc

/// Runs `body` on a copy of `bytes` that ends where readable memory ends: reading one byte too far
/// stops the test instead of going unnoticed.
func withGuardedBytes<Result>(
    _ bytes: [UInt8],
    _ body: (UnsafeRawBufferPointer) throws -> Result
) rethrows -> Result {
    let page = Int(getpagesize())
    let usable = max(1, (bytes.count + page - 1) / page) * page
    guard
        let mapped = mmap(
            nil,
            usable + page,
            PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS,
            -1,
            0
        ),
        mapped != MAP_FAILED
    else { fatalError("mmap of \(usable + page) bytes failed: errno \(errno)") }
    defer { munmap(mapped, usable + page) }
    guard mprotect(mapped + usable, page, PROT_NONE) == 0 else {
        fatalError("mprotect failed: errno \(errno)")
    }
    let start = mapped + (usable - bytes.count)
    bytes.withUnsafeBytes { source in
        UnsafeMutableRawBufferPointer(start: start, count: bytes.count).copyMemory(from: source)
    }
    return try body(UnsafeRawBufferPointer(start: start, count: bytes.count))
}
