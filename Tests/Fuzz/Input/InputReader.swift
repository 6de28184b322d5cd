/// Takes an input apart from its front: small choices, numbers, stretches of bytes. Behind its end
/// everything is 0, so that every input means something.
package struct InputReader {
    private let bytes: UnsafeRawBufferPointer
    private var at = 0

    /// `bytes` must outlive the reader.
    package init(_ bytes: UnsafePointer<UInt8>, count: Int) {
        self.bytes = UnsafeRawBufferPointer(start: bytes, count: count)
    }

    package var isAtEnd: Bool { at >= bytes.count }

    package mutating func u8() -> UInt8 {
        guard !isAtEnd else { return 0 }
        defer { at += 1 }
        return bytes[at]
    }

    private mutating func wide(_ count: Int) -> UInt64 {
        var value: UInt64 = 0
        for place in 0..<count { value |= UInt64(u8()) << UInt64(8 * place) }
        return value
    }
    package mutating func u16() -> UInt16 { UInt16(truncatingIfNeeded: wide(2)) }
    package mutating func u32() -> UInt32 { UInt32(truncatingIfNeeded: wide(4)) }
    package mutating func u64() -> UInt64 { wide(8) }

    /// A number in `0 ..< bound`; `bound` is 1 ... 256.
    package mutating func choice(_ bound: Int) -> Int { Int(u8()) % bound }

    /// A place in `0 ..< bound`, for larger bounds; 0 when `bound` is 0.
    package mutating func place(_ bound: Int) -> Int {
        bound == 0 ? 0 : Int(u32()) % bound
    }

    /// Any number, those at the edges of a width more often.
    package mutating func number() -> UInt64 {
        switch choice(12) {
        case 0: 0
        case 1: .max
        case 2: UInt64.max - UInt64(u8())
        case 3: UInt64(UInt32.max) + UInt64(u8())
        case 4: 1 << 63
        case 5: UInt64(Int64.max)
        case 6: 1 << UInt64(choice(64))
        case 7: UInt64(u16())
        case 8: UInt64(u32())
        case 9: u64()
        default: UInt64(u8())
        }
    }

    /// At most `max` bytes, as many as the next byte says.
    package mutating func bytes(max: Int = 255) -> [UInt8] {
        let count = min(Int(u8()), max, bytes.count - at)
        defer { at += count }
        return [UInt8](UnsafeRawBufferPointer(rebasing: bytes[at..<at + count]))
    }

    /// All that is left.
    package mutating func rest() -> UnsafeRawBufferPointer {
        defer { at = bytes.count }
        return UnsafeRawBufferPointer(rebasing: bytes[at...])
    }
}

/// A copy in memory of its very length, so that a read behind its end is caught.
package func withCopy<T>(
    of bytes: UnsafeRawBufferPointer, _ body: (UnsafeMutableRawBufferPointer) -> T
) -> T {
    let copy = UnsafeMutableRawBufferPointer.allocate(byteCount: bytes.count, alignment: 8)
    defer { copy.deallocate() }
    copy.copyMemory(from: bytes)
    return body(copy)
}
