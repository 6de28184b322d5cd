internal import CLinux
internal import Synchronization

// How it works. A fixed number of places, a power of two, and two counters that only grow: what was put
// in and what was taken out. The writer owns the first, the reader the second; each keeps a copy of the
// other's and looks again only when the copy says full, or empty. What is written becomes visible with
// `publish`, once for a batch. The counters lie on cache lines of their own.

/// A bounded buffer from one thread to one other: nothing waits in it, "full" is an answer.
///
/// Elements are copied as bytes. Made before both threads run, and ended after both have.
public final class Mailbox<Element: BitwiseCopyable>: @unchecked Sendable {
    private struct Padding {
        var bytes: InlineArray<16, UInt64> = .init(repeating: 0)
    }
    public let capacity: Int
    private let places: UnsafeMutablePointer<Element>
    private var before = Padding()
    private let written = Atomic<Int>(0)
    private var between = Padding()
    private let read = Atomic<Int>(0)
    private var behind = Padding()
    // The writer's:
    private var nextWrite = 0
    private var knownRead = 0
    private var after = Padding()
    // The reader's:
    private var nextRead = 0
    private var knownWritten = 0

    /// - Parameter capacity: a power of two.
    public init(capacity: Int) {
        self.capacity = capacity
        places = .allocate(capacity: capacity)
    }
    deinit { places.deallocate() }

    // MARK: the writer

    /// How many elements fit now.
    public func room() -> Int {
        if nextWrite - knownRead >= capacity / 2 { knownRead = read.load(ordering: .acquiring) }
        return capacity - (nextWrite - knownRead)
    }

    /// Puts an element in; there is room. It is seen after `publish`.
    @inline(__always)
    public func put(_ element: Element) {
        (places + (nextWrite & (capacity - 1))).initialize(to: element)
        nextWrite += 1
    }

    /// Shows the reader what was put in.
    ///
    /// - Returns: false when there was nothing new.
    @inline(__always) @discardableResult
    public func publish() -> Bool {
        guard written.load(ordering: .relaxed) != nextWrite else { return false }
        // Sequentially consistent: who sleeps says so before it looks here for the last time.
        written.store(nextWrite, ordering: .sequentiallyConsistent)
        return true
    }

    // MARK: the reader

    @inline(__always)
    public func take() -> Element? {
        if nextRead == knownWritten {
            knownWritten = written.load(ordering: .acquiring)
            guard nextRead != knownWritten else { return nil }
        }
        let element = places[nextRead & (capacity - 1)]
        nextRead += 1
        return element
    }

    /// Gives the places of what was taken back to the writer.
    @inline(__always)
    public func release() {
        if read.load(ordering: .relaxed) != nextRead { read.store(nextRead, ordering: .releasing) }
    }

    /// True when `take` would give nothing; for the last look before a sleep.
    public var isEmpty: Bool { written.load(ordering: .sequentiallyConsistent) == nextRead }

    /// Elements that are on their way; from any thread, so perhaps past.
    public var depth: Int {
        max(0, written.load(ordering: .relaxed) - read.load(ordering: .relaxed))
    }
}
