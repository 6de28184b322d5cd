internal import BrokerBasics
internal import BrokerTestSupport
internal import FuzzDirectory
internal import FuzzInput
internal import LogStorage

/// What every input begins with: the directory of a broker that was used.
private let used = DirectoryImage.used()

/// Recovery, with arbitrary bytes as journal and checkpoint.
///
/// An input is a byte of settings and a list of edits of a used directory. Settings, by bit: 0, the
/// checksums of what was edited are made right, so that recovery looks at it; 1, a broker is started
/// on it, reads all queues and publishes, where otherwise recovery runs alone; 2, with 0 clear, one
/// edit of at most four bytes is made and no other: then whatever is delivered must be right. The
/// first byte of an edit says which:
///
/// | mod 10 | the edit |
/// |---|---|
/// | 0 | bytes at any place of a journal file |
/// | 1 | one field of a group's header |
/// | 2 | bytes behind the header of a group |
/// | 3 | another group behind the last, with entries of any kind |
/// | 4 | one block of the journal becomes a copy of another |
/// | 5 | a journal file gets another length, or is gone |
/// | 6 | bytes in the payload of the checkpoint |
/// | 7 | a number in the payload of the checkpoint |
/// | 8 | bytes in the header of the checkpoint, or its length |
/// | 9 | bytes of the identity |
///
/// Held against it: nothing traps, loops or takes much memory; recovery goes on or says why not; what
/// it took in can be checkpointed and read again; what is served after damage is what was published.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzJournal(_ bytes: UnsafePointer<UInt8>, _ count: Int) -> CInt {
    withTimeLimit { workOn(bytes, count) }
    return 0
}

private func workOn(_ bytes: UnsafePointer<UInt8>, _ count: Int) {
    guard var image = used else {
        invariantBroken("there is no used directory", file: #fileID, line: #line)
    }
    var input = InputReader(bytes, count: count)
    let settings = input.u8()
    let isSealed = settings & 1 != 0
    let isOnePlace = settings & 5 == 4
    var editor = JournalEditor(image: image, isSealed: isSealed)
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
    if settings & 2 == 0 {
        StartedBroker.recover(image)
    } else {
        StartedBroker.serve(image, &input, isDamaged: isOnePlace)
    }
}
