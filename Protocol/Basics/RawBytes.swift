// Little-endian loads and stores at any alignment: the one place where Millrace turns bytes into
// integers. Callers have checked the bounds; these do not.

extension UnsafeRawPointer {
    @inlinable @inline(__always) public func u8(_ at: Int) -> UInt8 {
        loadUnaligned(fromByteOffset: at, as: UInt8.self)
    }
    @inlinable @inline(__always) public func u16(_ at: Int) -> UInt16 {
        UInt16(littleEndian: loadUnaligned(fromByteOffset: at, as: UInt16.self))
    }
    @inlinable @inline(__always) public func u32(_ at: Int) -> UInt32 {
        UInt32(littleEndian: loadUnaligned(fromByteOffset: at, as: UInt32.self))
    }
    @inlinable @inline(__always) public func u64(_ at: Int) -> UInt64 {
        UInt64(littleEndian: loadUnaligned(fromByteOffset: at, as: UInt64.self))
    }
}

extension UnsafeMutableRawPointer {
    @inlinable @inline(__always) public func put(_ value: UInt8, _ at: Int) {
        storeBytes(of: value, toByteOffset: at, as: UInt8.self)
    }
    @inlinable @inline(__always) public func put(_ value: UInt16, _ at: Int) {
        storeBytes(of: value.littleEndian, toByteOffset: at, as: UInt16.self)
    }
    @inlinable @inline(__always) public func put(_ value: UInt32, _ at: Int) {
        storeBytes(of: value.littleEndian, toByteOffset: at, as: UInt32.self)
    }
    @inlinable @inline(__always) public func put(_ value: UInt64, _ at: Int) {
        storeBytes(of: value.littleEndian, toByteOffset: at, as: UInt64.self)
    }
}

extension Int {
    /// The smallest multiple of `alignment` that is not below this. `alignment` is a power of two.
    @inlinable @inline(__always) public func roundedUp(to alignment: Int) -> Int {
        (self &+ alignment &- 1) & ~(alignment &- 1)
    }
}

extension UInt64 {
    /// The smallest multiple of `alignment` that is not below this. `alignment` is a power of two.
    @inlinable @inline(__always) public func roundedUp(to alignment: UInt64) -> UInt64 {
        (self &+ alignment &- 1) & ~(alignment &- 1)
    }
}
