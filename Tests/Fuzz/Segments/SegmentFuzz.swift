internal import BrokerBasics
internal import BrokerTestSupport
internal import FuzzDirectory
internal import FuzzInput

/// What every input begins with: the directory of a broker that was used.
private let used = DirectoryImage.used()

/// Recovery of segments and reading from them, with arbitrary bytes as segment files of partitions
/// that a checkpoint knows.
///
/// An input is a byte of settings and a list of edits of a used directory. Settings, by bit: 0, the
/// checksums of the chunks that were edited are made right, 1, those of the batches in them too, so
/// that what is behind them is looked at; 2, with 0 clear, one edit of at most four bytes is made and
/// no other: then whatever is delivered must be right; 3, recovery runs alone, where otherwise a
/// broker is started, reads all queues and publishes. The first byte of an edit says which:
///
/// | mod 8 | the edit |
/// |---|---|
/// | 0 | bytes at any place of a segment |
/// | 1 | one field of a chunk's header |
/// | 2 | one field of a batch in a chunk, or of an entry of a seal |
/// | 3 | bytes behind the header of a chunk |
/// | 4 | one block of a segment becomes a copy of another |
/// | 5 | a segment gets another length, or is gone |
/// | 6 | one segment gets the contents of another |
/// | 7 | a field of a segment's header |
///
/// Held against it: nothing traps, loops or takes much memory; recovery goes on or says why not; what
/// is served after damage is what was published.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzSegments(_ bytes: UnsafePointer<UInt8>, _ count: Int) -> CInt {
    withTimeLimit { workOn(bytes, count) }
    return 0
}

private func workOn(_ bytes: UnsafePointer<UInt8>, _ count: Int) {
    guard var image = used else {
        invariantBroken("there is no used directory", file: #fileID, line: #line)
    }
    var input = InputReader(bytes, count: count)
    let settings = input.u8()
    let isOnePlace = settings & 5 == 4
    var editor = SegmentEditor(
        image: image, sealsChunks: settings & 1 != 0, sealsBatches: settings & 2 != 0)
    if isOnePlace {
        editor.damage(&input)
    } else {
        var edits = 0
        while !input.isAtEnd, edits < 32 {
            editor.edit(&input)
            edits += 1
        }
    }
    image = editor.finish()
    if settings & 8 != 0 {
        StartedBroker.recover(image)
    } else {
        StartedBroker.serve(image, &input, isDamaged: isOnePlace)
    }
}
