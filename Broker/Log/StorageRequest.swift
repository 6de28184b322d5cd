// What the log asks of a disk. The pure side returns these values and is told the result; the
// loop (io_uring, or a simulated disk) carries them out. Nothing here opens a file.

/// A file of the data directory, by meaning; `path` is where it lies.
public enum FileName: Hashable, Sendable {
    /// Who this data directory is, and the shape of its journal.
    case identity
    /// Holds nothing but room on the disk.
    case reserve
    case journal(Int)
    /// A part of one partition's log. The term makes the name unique: the same base offset written
    /// again after a crash is another file.
    case segment(partition: UInt32, baseOffset: UInt64, term: UInt64)
    case checkpoint(UInt64)

    public var directory: StorageDirectory {
        switch self {
        case .identity, .reserve: .root
        case .journal: .journal
        case .segment: .segments
        case .checkpoint: .checkpoints
        }
    }

    /// The name inside `directory`.
    public var name: String {
        switch self {
        case .identity: "millrace.identity"
        case .reserve: "millrace.reserve"
        case .journal(let index): Self.text(".journal") { $0.put(UInt64(index), width: 4) }
        case .segment(let partition, let baseOffset, let term):
            Self.text(".segment") {
                $0.put(UInt64(partition), width: 10)
                $0.put("-")
                $0.put(baseOffset, width: 20)
                $0.put("-")
                $0.put(term, width: 10)
            }
        case .checkpoint(let sequence):
            Self.text(".checkpoint") { $0.put(sequence, width: 20) }
        }
    }

    private static func text(
        _ suffix: StaticString, _ body: (inout FileNameWriter) -> Void
    ) -> String {
        var writer = FileNameWriter()
        body(&writer)
        writer.put(suffix)
        return writer.text
    }

    public var path: String {
        directory == .root ? name : directory.rawValue + "/" + name
    }

    /// The file that `name` in `directory` is, or `nil` for a name we never give.
    public init?(directory: StorageDirectory, name: String) {
        var name = name
        guard
            let file = name.withUTF8({ bytes in
                Self.read(directory, FileNameReader(UnsafeRawBufferPointer(bytes)))
            })
        else { return nil }
        self = file
    }

    private static func read(_ directory: StorageDirectory, _ reader: FileNameReader) -> FileName? {
        var reader = reader
        switch directory {
        case .root:
            if reader.isRest("millrace.identity") { return .identity }
            return reader.isRest("millrace.reserve") ? .reserve : nil
        case .journal:
            guard let index = reader.number(width: 4), index < 10_000, reader.isRest(".journal")
            else { return nil }
            return .journal(Int(index))
        case .segments:
            guard let partition = reader.number(width: 10), reader.take("-"),
                let base = reader.number(width: 20), reader.take("-"),
                let term = reader.number(width: 10), reader.isRest(".segment"),
                partition <= UInt64(UInt32.max)
            else { return nil }
            return .segment(partition: UInt32(partition), baseOffset: base, term: term)
        case .checkpoints:
            guard let sequence = reader.number(width: 20), reader.isRest(".checkpoint") else {
                return nil
            }
            return .checkpoint(sequence)
        }
    }
}

/// The folders of a data directory.
public enum StorageDirectory: String, Hashable, Sendable, CaseIterable {
    case root = "."
    case journal
    case segments
    case checkpoints
}

/// A place in the loop's table of open files, chosen by the machine.
public typealias FileSlot = Int32

/// One operation on the disk. Memory that it names stays valid and unchanged until its completion.
public enum StorageOperation {
    /// Opens, and with `create` makes, a file. Its name is durable after `syncDirectory`.
    case open(slot: FileSlot, name: FileName, create: Bool)
    /// Reserves room so that writes need not change the file's size.
    case allocate(slot: FileSlot, position: UInt64, bytes: UInt64)
    /// With `synced` the completion means "on stable storage".
    case write(
        slot: FileSlot, from: UnsafeRawPointer, bytes: Int, position: UInt64, synced: Bool)
    case read(slot: FileSlot, into: UnsafeMutableRawPointer, bytes: Int, position: UInt64)
    /// Everything written to the file before is on stable storage when this completes.
    case sync(slot: FileSlot)
    case close(slot: FileSlot)
    case syncDirectory(StorageDirectory)
    case remove(FileName)
}

/// An operation and the number under which its completion comes back.
public struct StorageRequest {
    public var token: UInt64
    public var operation: StorageOperation
    public init(token: UInt64, operation: StorageOperation) {
        self.token = token
        self.operation = operation
    }
}

/// Why the log can't go on. `StorageFailure` of a write or sync stops the shard's confirms.
public struct StorageFailure: Error, Equatable, Sendable, CustomStringConvertible {
    public var what: String
    /// A positive errno, or 0 when the failure is not the kernel's.
    public var errno: Int32
    public init(_ what: String, errno: Int32 = 0) {
        self.what = what
        self.errno = errno
    }
    public var description: String { errno == 0 ? what : "\(what) (errno \(errno))" }
}

/// A disk as recovery sees it: one operation at a time, each done when it returns.
///
/// Recovery runs before anybody is served, so it may wait; the simulator's disk implements the same
/// and can crash in the middle of it.
public protocol RecoveryStorage: AnyObject {
    /// Names in a directory; empty when it does not exist.
    func list(_ directory: StorageDirectory) throws(StorageFailure) -> [String]
    func makeDirectory(_ directory: StorageDirectory) throws(StorageFailure)
    /// `nil` when there is no such file.
    func size(_ file: FileName) throws(StorageFailure) -> UInt64?
    /// Reads up to `buffer.count` bytes; fewer at the end of the file. `buffer` is aligned to 4,096.
    func read(
        _ file: FileName, at position: UInt64, into buffer: UnsafeMutableRawBufferPointer
    ) throws(StorageFailure) -> Int
    /// Makes the file when needed. Not durable before `sync`.
    func write(
        _ file: FileName, at position: UInt64, _ bytes: UnsafeRawBufferPointer
    ) throws(StorageFailure)
    /// Makes a file of `bytes` zeros, written and not only reserved.
    func makeZeroed(_ file: FileName, bytes: UInt64) throws(StorageFailure)
    func sync(_ file: FileName) throws(StorageFailure)
    func syncDirectory(_ directory: StorageDirectory) throws(StorageFailure)
    func remove(_ file: FileName) throws(StorageFailure)
}
