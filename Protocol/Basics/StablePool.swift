/// Values at addresses that never move, by index; freed slots are used again.
///
/// Grows by blocks of 256, so that an idle server holds little and a full one was never copied.
/// Owned by one thread.
public struct StablePool<Element>: ~Copyable {
    @usableFromInline static var blockShift: Int { 8 }
    @usableFromInline static var blockMask: Int { 255 }

    @usableFromInline var blocks: UnsafeMutablePointer<UnsafeMutablePointer<Element>>
    @usableFromInline var blockCount = 0
    @usableFromInline var blockCapacity: Int
    @usableFromInline var free: [Int32] = []
    /// Slots ever used: `0 ..< limit`.
    public private(set) var limit = 0
    @usableFromInline var inUse: [Bool] = []

    public init(capacityMax: Int) {
        blockCapacity = (capacityMax + 255) / 256
        blocks = .allocate(capacity: max(1, blockCapacity))
    }

    deinit {
        for index in 0..<limit where inUse[index] {
            (blocks[index >> Self.blockShift] + (index & Self.blockMask)).deinitialize(count: 1)
        }
        for block in 0..<blockCount { blocks[block].deallocate() }
        blocks.deallocate()
    }

    /// Puts a value into a free slot; `nil` when the pool has reached its maximum.
    public mutating func insert(_ value: consuming Element) -> Int32? {
        let index: Int
        if let reused = free.popLast() {
            index = Int(reused)
        } else {
            if limit >> Self.blockShift == blockCount {
                guard blockCount < blockCapacity else { return nil }
                blocks[blockCount] = .allocate(capacity: 256)
                blockCount += 1
            }
            index = limit
            limit += 1
            inUse.append(false)
        }
        inUse[index] = true
        (blocks[index >> Self.blockShift] + (index & Self.blockMask)).initialize(to: value)
        return Int32(index)
    }

    public mutating func remove(_ index: Int32) {
        self[index].deinitialize(count: 1)
        inUse[Int(index)] = false
        free.append(index)
    }

    public func contains(_ index: Int32) -> Bool {
        index >= 0 && index < limit && inUse[Int(index)]
    }

    /// The address of a slot in use. The caller knows that it is.
    @inlinable @inline(__always)
    public subscript(index: Int32) -> UnsafeMutablePointer<Element> {
        blocks[Int(index) >> Self.blockShift] + (Int(index) & Self.blockMask)
    }

    /// How many slots are in use.
    public var count: Int { limit - free.count }

    /// The indices in use, ascending.
    public var indices: [Int32] { (0..<limit).filter { inUse[$0] }.map(Int32.init) }
}
