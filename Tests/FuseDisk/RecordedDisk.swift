internal import Glibc
internal import Synchronization

/// A disk in memory with a volatile cache: it has what was written, and knows in which order it was
/// written and when it was flushed. Any thread may use it.
package final class RecordedDisk: Sendable {
    package let byteCount: Int
    private let state: Mutex<State>
    /// What makes it slow; by itself it is not.
    package let slowness = Slowness()
    /// How many entries the log has: the moment of everything that clients are told.
    private let entryCount = Atomic<Int>(0)

    private struct State: ~Copyable {
        var memory: DiskMemory
        var log = WriteLog()
        var ignoresFlushes = false
    }

    package convenience init(byteCount: Int) throws {
        self.init(DiskMemory(try DiskMemory.take(byteCount)))
    }

    /// What a power cut left.
    package init(_ memory: consuming DiskMemory) {
        byteCount = memory.bytes.count
        state = Mutex(State(memory: memory))
    }

    /// A promise that was heard when it was N holds after a cut at N or later.
    package var moment: Int { entryCount.load(ordering: .acquiring) }

    /// The entries so far.
    package var log: WriteLog { state.withLock { $0.log } }

    /// Flushes are answered and do nothing from here on: a disk that lies.
    package func lie() { state.withLock { $0.ignoresFlushes = true } }

    package func read(_ offset: Int, _ count: Int, _ take: (UnsafeRawBufferPointer) -> Void) {
        state.withLock { state in
            let start = min(max(0, offset), byteCount)
            let end = min(byteCount, start + count)
            take(UnsafeRawBufferPointer(rebasing: state.memory.bytes[start..<end]))
        }
    }

    /// - Returns: false when it lies beyond the end.
    package func write(_ offset: Int, _ bytes: ArraySlice<UInt8>) -> Bool {
        guard offset >= 0, offset <= byteCount, bytes.count <= byteCount - offset else {
            return false
        }
        slowness.wait(for: .write)
        state.withLock { state in
            bytes.withUnsafeBytes { state.memory.put($0, at: offset) }
            state.log.append(offset, bytes)
            entryCount.store(state.log.entries.count, ordering: .releasing)
        }
        return true
    }

    package func flush() {
        slowness.wait(for: .flush)
        state.withLock { state in
            state.log.append(state.ignoresFlushes ? .ignoredFlush : .flush)
            entryCount.store(state.log.entries.count, ordering: .releasing)
        }
    }
}

/// The bytes of a disk, zero at first; given back with the value.
package struct DiskMemory: ~Copyable, @unchecked Sendable {
    // Sendable: one owner at a time, as of any value that can't be copied.
    package let bytes: UnsafeMutableRawBufferPointer

    package static func take(_ count: Int) throws -> UnsafeMutableRawBufferPointer {
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
        guard let base = mmap(nil, count, PROT_READ | PROT_WRITE, flags, -1, 0), base != MAP_FAILED
        else { throw SystemFailure("taking \(count) bytes of memory") }
        return UnsafeMutableRawBufferPointer(start: base, count: count)
    }

    package init(_ bytes: UnsafeMutableRawBufferPointer) { self.bytes = bytes }

    package func copy() throws -> DiskMemory {
        let copy = DiskMemory(try DiskMemory.take(bytes.count))
        copy.put(UnsafeRawBufferPointer(bytes), at: 0)
        return copy
    }

    deinit { munmap(bytes.baseAddress, bytes.count) }

    package func put(_ source: UnsafeRawBufferPointer, at offset: Int) {
        UnsafeMutableRawBufferPointer(rebasing: bytes[offset..<offset + source.count])
            .copyMemory(from: source)
    }
}
