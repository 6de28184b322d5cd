internal import Foundation
internal import FuseDisk
internal import Glibc

/// A cut that broke a promise, as it was: the disk and what the clients had been told. In a
/// directory of its own, `disk.image` and `history.json`.
struct KeptCut: Codable {
    var filesystem: Filesystem
    var loop: String
    /// Of the broker that was started on it.
    var shards: Int
    var resends: Bool
    var faults: [String]
    var history: ClientHistory

    func keep(_ image: borrowing DiskMemory, in directory: String) throws {
        mkdir(directory, 0o700)
        let descriptor = open(
            directory + "/disk.image",
            O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC,
            0o600
        )
        guard descriptor >= 0 else { throw SystemFailure("making \(directory)/disk.image") }
        defer { close(descriptor) }
        // Zeroes stay holes.
        let block = 1 << 16
        guard ftruncate(descriptor, image.bytes.count) == 0 else {
            throw SystemFailure("extending \(directory)/disk.image")
        }
        for start in stride(from: 0, to: image.bytes.count, by: block) {
            let end = min(start + block, image.bytes.count)
            let part = UnsafeRawBufferPointer(rebasing: image.bytes[start..<end])
            guard part.contains(where: { $0 != 0 }) else { continue }
            guard pwrite(descriptor, part.baseAddress, part.count, start) == part.count else {
                throw SystemFailure("writing \(directory)/disk.image")
            }
        }
        try JSONEncoder().encode(self).write(to: URL(filePath: directory + "/history.json"))
    }

    static func load(_ directory: String) throws -> KeptCut {
        let path = directory + "/history.json"
        return try JSONDecoder().decode(KeptCut.self, from: Data(contentsOf: URL(filePath: path)))
    }

    static func image(_ directory: String) throws -> DiskMemory {
        let descriptor = open(directory + "/disk.image", O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { throw SystemFailure("opening \(directory)/disk.image") }
        defer { close(descriptor) }
        let size = lseek(descriptor, 0, SEEK_END)
        let memory = DiskMemory(try DiskMemory.take(Int(size)))
        var at = 0
        while at < memory.bytes.count {
            let rest = UnsafeMutableRawBufferPointer(rebasing: memory.bytes[at...])
            let count = pread(descriptor, rest.baseAddress, rest.count, off_t(at))
            guard count > 0 else { throw SystemFailure("reading \(directory)/disk.image") }
            at += count
        }
        return memory
    }
}
