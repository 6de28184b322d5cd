import LogStorage
import Testing

@Suite("File names")
struct FileNameTests {
    private static let named: [(file: FileName, name: String)] = [
        (.identity, "millrace.identity"),
        (.reserve, "millrace.reserve"),
        (.journal(0), "0000.journal"),
        (.journal(9999), "9999.journal"),
        (.checkpoint(7), "00000000000000000007.checkpoint"),
        (.checkpoint(.max), "18446744073709551615.checkpoint"),
        (
            .segment(partition: 3, baseOffset: 41, term: 2),
            "0000000003-00000000000000000041-0000000002.segment"
        ),
        (
            .segment(partition: .max, baseOffset: .max, term: .max),
            "4294967295-18446744073709551615-18446744073709551615.segment"
        ),
    ]

    @Test("a file has one name, and the name is that file", arguments: named.indices)
    func bothWays(place: Int) {
        let (file, name) = Self.named[place]
        #expect(file.name == name)
        #expect(FileName(directory: file.directory, name: name) == file)
        for directory in StorageDirectory.allCases where directory != file.directory {
            #expect(FileName(directory: directory, name: name) == nil)
        }
    }

    @Test(
        "what is not exactly a name of ours is nobody's",
        arguments: [
            (StorageDirectory.root, ""), (.root, "identity"), (.root, "millrace.identity2"),
            (.journal, "0000.journal2"), (.journal, "000.journal"), (.journal, "00000.journal"),
            (.journal, "10000.journal"), (.journal, "+000.journal"), (.journal, "0000"),
            (.journal, ".journal"), (.journal, "0000.segment"), (.journal, "000a.journal"),
            (.checkpoints, "7.checkpoint"), (.checkpoints, "000000000000000000007.checkpoint"),
            (.checkpoints, "18446744073709551616.checkpoint"),
            (.checkpoints, "99999999999999999999999.checkpoint"),
            (.checkpoints, "-0000000000000000007.checkpoint"),
            (.segments, "0000000003-00000000000000000041.segment"),
            (.segments, "0000000003-00000000000000000041-0000000002-0000000002.segment"),
            (.segments, "4294967296-00000000000000000041-0000000002.segment"),
            (.segments, "0000000003-00000000000000000041-00000000002.segment"),
            (.segments, "0000000003_00000000000000000041-0000000002.segment"),
            (.segments, "0000000003-00000000000000000041-0000000002.segment "),
        ])
    func others(directory: StorageDirectory, name: String) {
        #expect(FileName(directory: directory, name: name) == nil)
    }
}
