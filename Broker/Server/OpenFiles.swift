internal import CLinux
internal import Glibc
internal import LogStorage
internal import ShardRuntime

/// The descriptors of a data directory that a shard works on: its folders, the journal's files, and
/// the machine's table of open files. Closed when this goes.
struct OpenFiles: ~Copyable {
    let root: Int32
    let folder: ShardFolder
    private let directories: [StorageDirectory: Int32]
    private var slots: [Int32]
    private let directFlag: Int32

    init(_ setup: borrowing ShardPortSetup) throws(SystemError) {
        // Everything that can fail comes before the first property is set.
        let root = try Self.open(setup.root, AT_FDCWD, O_RDONLY | O_DIRECTORY)
        var directories: [StorageDirectory: Int32] = [:]
        for directory in StorageDirectory.allCases {
            directories[directory] = try Self.open(
                setup.folder.path(directory), root, O_RDONLY | O_DIRECTORY)
        }
        let directFlag = setup.opensDirect ? millrace_direct_flag() : 0
        var slots: [Int32] = Array(
            repeating: -1, count: setup.journalFiles + setup.filesMax + 1)
        for index in 0..<setup.journalFiles {
            slots[index] = try Self.open(
                setup.folder.path(.journal(index)), root, O_RDWR | directFlag)
        }
        self.root = root
        folder = setup.folder
        self.directories = directories
        self.slots = slots
        self.directFlag = directFlag
    }

    deinit {
        for file in slots where file >= 0 { close(file) }
        for directory in directories.values { close(directory) }
        close(root)
    }

    private static func open(
        _ path: String, _ directory: Int32, _ flags: Int32
    ) throws(SystemError) -> Int32 {
        let fd = openat(directory, path, flags | O_CLOEXEC)
        guard fd >= 0 else { throw SystemError("opening \(path)", errno: errno) }
        return fd
    }

    @inline(__always)
    subscript(slot: FileSlot) -> Int32 {
        get { slots[Int(slot)] }
        set { slots[Int(slot)] = newValue }
    }

    func descriptor(of directory: StorageDirectory) -> Int32 { directories[directory] ?? root }

    static let mode: mode_t = 0o640

    func openFlags(create: Bool) -> Int32 {
        (create ? O_RDWR | O_CREAT : O_RDONLY) | directFlag | O_CLOEXEC
    }
}
