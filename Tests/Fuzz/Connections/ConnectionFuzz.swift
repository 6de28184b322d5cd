internal import BrokerBasics
internal import BrokerShard
internal import BrokerTestSupport
internal import FuzzInput

/// A broker in the simulator, and whatever clients may say to it.
///
/// An input is what the broker is given room for (one byte), then a list of steps; the first byte of
/// a step says which:
///
/// | mod 16 | the step |
/// |---|---|
/// | 0 ... 7 | a frame with right checksums, made of choices: `FrameChoice` |
/// | 8 | the same, with one bit flipped |
/// | 9 | bytes as they are |
/// | 10, 11 | the disk completes up to 16 operations |
/// | 12 | time passes: up to 255 ms |
/// | 13 | another connection: a new one, with or without HELLO, or one of those that are there |
/// | 14 | the connection ends, stops reading, or reads again |
/// | 15 | the disk refuses one operation of a kind, or makes one short |
///
/// What a client says arrives whole, in two pieces cut anywhere, or byte by byte, and the disk may
/// complete something in between. At the end everybody reads, and the disk completes all.
///
/// Held against it: nothing traps; whatever is answered is a lawful frame, and batches verify; memory
/// kept for a connection is bounded; whoever broke the protocol is closed, whoever asked in order is
/// answered, and the broker goes on serving others.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzConnections(_ bytes: UnsafePointer<UInt8>, _ count: Int) -> CInt {
    withTimeLimit { workOn(bytes, count) }
    return 0
}

private func workOn(_ bytes: UnsafePointer<UInt8>, _ count: Int) {
    var input = InputReader(bytes, count: count)
    guard let session = Session(room: input.u8()) else {
        invariantBroken("a new broker does not start", file: #fileID, line: #line)
    }
    var steps = 0
    while !input.isAtEnd, steps < 256 {
        session.step(&input)
        session.check()
        steps += 1
    }
    session.finish()
}
