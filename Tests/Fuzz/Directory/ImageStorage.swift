package import BrokerTestSupport
package import LogStorage

/// The files of an image as recovery's disk. Nothing fails here but what is not there.
package final class ImageStorage: RecoveryStorage {
    private var files: [FileName: [UInt8]]

    package init(_ image: DirectoryImage) { files = image.files }

    package func list(_ directory: StorageDirectory) -> [String] {
        files.keys.filter { $0.directory == directory }.map(\.name).sorted()
    }
    package func makeDirectory(_ directory: StorageDirectory) {}
    package func size(_ file: FileName) -> UInt64? { files[file].map { UInt64($0.count) } }

    package func read(
        _ file: FileName, at position: UInt64, into buffer: UnsafeMutableRawBufferPointer
    ) throws(StorageFailure) -> Int {
        guard let bytes = files[file] else {
            throw StorageFailure("no file \(file.path)", errno: 2)
        }
        // As the kernel: what no file can have is refused.
        guard position <= UInt64(Int64.max) else {
            throw StorageFailure("reading \(file.path) at \(position)", errno: 22)
        }
        let at = Int(position)
        guard at < bytes.count else { return 0 }
        let count = min(buffer.count, bytes.count - at)
        bytes.withUnsafeBytes { source in
            buffer.copyMemory(from: UnsafeRawBufferPointer(rebasing: source[at..<at + count]))
        }
        return count
    }

    package func write(
        _ file: FileName, at position: UInt64, _ bytes: UnsafeRawBufferPointer
    ) {
        let end = Int(position) + bytes.count
        var content = files[file] ?? []
        if content.count < end { content += [UInt8](repeating: 0, count: end - content.count) }
        content.replaceSubrange(Int(position)..<end, with: bytes)
        files[file] = content
    }
    package func makeZeroed(_ file: FileName, bytes: UInt64) {
        files[file] = [UInt8](repeating: 0, count: Int(bytes))
    }
    package func sync(_ file: FileName) {}
    package func syncDirectory(_ directory: StorageDirectory) {}
    package func remove(_ file: FileName) { files[file] = nil }
}
