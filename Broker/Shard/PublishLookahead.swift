internal import BrokerBasics
internal import BrokerCore
internal import LogStorage
internal import WireProtocol

// How it works. With many busy partitions each publish finds its partition, its producer's progress
// and the end of its tail out of the cache, one miss after the other. The frames behind it lie in the
// receive buffer: their memory is asked for while this one is worked on, in three steps, for the place
// of the tail's end is in a chunk's descriptor, and that is in the partition.
//
//   frame          now      +1              +2                   +3
//   asked for               the tail's end  the chunk's          partition,
//                                           descriptor           producer's progress

/// Runs ahead of the publishes in a receive buffer, and asks for the memory they will need.
struct PublishLookahead {
    /// A shard with no more than that keeps them in the cache without help.
    static let partitionsMin = 8
    private static let distance = 4

    /// Where the first frame lies that was not looked at.
    fileprivate var at = 0
    /// Frames looked at and not worked on.
    fileprivate var ahead = 0
    fileprivate var next: UnsafeMutablePointer<Partition>?
    fileprivate var second: UnsafeMutablePointer<Partition>?
    fileprivate var third: UnsafeMutablePointer<Partition>?

    fileprivate var isFar: Bool { ahead >= Self.distance }

    fileprivate mutating func shift(_ partition: UnsafeMutablePointer<Partition>?) {
        next = second
        second = third
        third = partition
    }
}

extension ShardMachine {
    /// Call it before each frame of the `count` bytes at `base` is worked on.
    @inline(__always)
    func look(_ lookahead: inout PublishLookahead, _ base: UnsafeRawPointer, _ count: Int) {
        lookahead.ahead = max(0, lookahead.ahead &- 1)
        repeat {
            lookahead.shift(peek(&lookahead, base, count))
            if let partition = lookahead.second, let chunk = partition.pointee.log.newest {
                Prefetch.fetch(chunk, count: MemoryLayout<TailChunk>.size)
            }
            if let partition = lookahead.next, let chunk = partition.pointee.log.newest {
                Prefetch.fetch(
                    chunk.pointee.memory + chunk.pointee.used, count: 6 * Prefetch.lineBytes)
            }
            lookahead.ahead &+= 1
        } while !lookahead.isFar
    }

    /// The partition of the next frame, if that is a publish, asked for with its producer's progress.
    @inline(__always)
    private func peek(
        _ lookahead: inout PublishLookahead, _ base: UnsafeRawPointer, _ count: Int
    ) -> UnsafeMutablePointer<Partition>? {
        let frame = base + lookahead.at
        let left = count &- lookahead.at
        guard left >= FrameHeader.byteCount &+ BatchHeader.byteCount else { return nil }
        // Not checked yet: it may be anything.
        let bytes = Int(frame.u32(0))
        guard bytes >= FrameHeader.byteCount, bytes <= left else {
            lookahead.at = count
            return nil
        }
        lookahead.at &+= bytes
        let header = FrameHeader(at: frame)
        guard header.opcode == Opcode.publish.rawValue,
            let index = state.index(ofPartition: header.stream)
        else { return nil }
        let partition = state.partitions[index]
        Prefetch.fetch(partition, count: MemoryLayout<Partition>.size)
        state.producers.prefetch((frame + FrameHeader.byteCount).u64(16), header.stream)
        return partition
    }
}
