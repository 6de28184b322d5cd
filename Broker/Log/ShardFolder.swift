/// Where one shard's files lie in the data directory: shard 0's at its top, those of the others in a
/// folder each. Segments are in one folder for all: a partition that moves to another shard leaves its
/// files where they are.
public struct ShardFolder: Sendable, Hashable {
    /// Shards are numbered below it.
    public static let shardsMax = 256

    public let shard: UInt16
    public init(shard: UInt16) { self.shard = shard }

    /// The path below the data directory.
    public func path(_ directory: StorageDirectory) -> String {
        if shard == 0 || directory == .segments { return directory.rawValue }
        return directory == .root ? name : name + "/" + directory.rawValue
    }
    public func path(_ file: FileName) -> String {
        file.directory == .root && shard == 0 ? file.name : path(file.directory) + "/" + file.name
    }

    private var name: String { "shard-\(shard)" }
}
