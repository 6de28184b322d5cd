internal import CLinux
internal import Glibc
package import LogStorage

/// The data directory as recovery sees it, on a real disk: direct reads, one at a time.
package final class PosixStorage: RecoveryStorage {
    private let root: String
    private let folder: ShardFolder
    /// Whole blocks go past the page cache, so that nobody's sync waits for them.
    private let writesDirectly: Bool

    package init(
        root: String, folder: ShardFolder = ShardFolder(shard: 0), writesDirectly: Bool = false
    ) {
        self.root = root
        self.folder = folder
        self.writesDirectly = writesDirectly
    }

    private func path(_ file: FileName) -> String { root + "/" + folder.path(file) }
    private func path(_ directory: StorageDirectory) -> String {
        root + "/" + folder.path(directory)
    }

    private func failure(_ what: String, _ path: String) -> StorageFailure {
        StorageFailure("\(what) \(path): \(String(cString: strerror(errno)))", errno: errno)
    }

    package func list(_ directory: StorageDirectory) throws(StorageFailure) -> [String] {
        let path = path(directory)
        guard let handle = opendir(path) else {
            if errno == ENOENT { return [] }
            throw failure("listing", path)
        }
        defer { closedir(handle) }
        var names: [String] = []
        while let entry = readdir(handle) {
            let name = withUnsafeBytes(of: entry.pointee.d_name) { bytes in
                String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
            }
            if name != ".", name != ".." { names.append(name) }
        }
        return names.sorted()
    }

    package func makeDirectory(_ directory: StorageDirectory) throws(StorageFailure) {
        let path = path(directory)
        guard mkdir(path, 0o750) == 0 || errno == EEXIST else { throw failure("making", path) }
        guard directory == .root else { return }
        // A shard's own folder: its name must last as what is in it.
        let parent = Glibc.open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard parent >= 0 else { throw failure("opening", root) }
        defer { close(parent) }
        guard fsync(parent) == 0 else { throw failure("syncing", root) }
    }

    package func size(_ file: FileName) throws(StorageFailure) -> UInt64? {
        var facts = stat()
        guard stat(path(file), &facts) == 0 else {
            if errno == ENOENT { return nil }
            throw failure("looking at", path(file))
        }
        return UInt64(facts.st_size)
    }

    private func open(_ file: FileName, _ flags: Int32) throws(StorageFailure) -> Int32 {
        let fd = Glibc.open(path(file), flags | O_CLOEXEC, 0o640)
        guard fd >= 0 else { throw failure("opening", path(file)) }
        return fd
    }

    /// For writing.
    private func open(
        _ file: FileName, _ position: UInt64, _ bytes: UnsafeRawBufferPointer
    ) throws(StorageFailure) -> Int32 {
        let address = UInt64(UInt(bitPattern: bytes.baseAddress))
        if writesDirectly, (position | UInt64(bytes.count) | address) % 4096 == 0 {
            let fd = Glibc.open(
                path(file), O_WRONLY | O_CREAT | millrace_direct_flag() | O_CLOEXEC, 0o640)
            if fd >= 0 { return fd }
        }
        return try open(file, O_WRONLY | O_CREAT)
    }

    private var reading: (file: FileName, fd: Int32)?

    deinit { if let reading { close(reading.fd) } }

    package func read(
        _ file: FileName, at position: UInt64, into buffer: UnsafeMutableRawBufferPointer
    ) throws(StorageFailure) -> Int {
        // One file is read many times in a row: it stays open.
        if reading?.file != file {
            if let reading { close(reading.fd) }
            reading = nil
            var fd = Glibc.open(path(file), O_RDONLY | millrace_direct_flag() | O_CLOEXEC)
            if fd < 0, errno == EINVAL { fd = Glibc.open(path(file), O_RDONLY | O_CLOEXEC) }
            guard fd >= 0 else { throw failure("opening", path(file)) }
            reading = (file, fd)
        }
        guard let fd = reading?.fd else { return 0 }
        var count = 0
        while count < buffer.count {
            let part = pread(
                fd, buffer.baseAddress.map { $0 + count }, buffer.count - count,
                off_t(position) + off_t(count))
            if part < 0, errno == EINTR { continue }
            guard part >= 0 else { throw failure("reading \(buffer.count) bytes of", path(file)) }
            if part == 0 { break }
            count += part
            // A direct read that ends off a block is the end of the file.
            if part % 512 != 0 { break }
        }
        return count
    }

    package func write(
        _ file: FileName, at position: UInt64, _ bytes: UnsafeRawBufferPointer
    ) throws(StorageFailure) {
        let fd = try open(file, position, bytes)
        defer { close(fd) }
        var count = 0
        while count < bytes.count {
            let part = pwrite(
                fd, bytes.baseAddress.map { $0 + count }, bytes.count - count,
                off_t(position) + off_t(count))
            if part < 0, errno == EINTR { continue }
            guard part > 0 else { throw failure("writing \(bytes.count) bytes to", path(file)) }
            count += part
        }
    }

    package func makeZeroed(_ file: FileName, bytes: UInt64) throws(StorageFailure) {
        var fd = Glibc.open(
            path(file), O_WRONLY | O_CREAT | O_TRUNC | millrace_direct_flag() | O_CLOEXEC, 0o640)
        if fd < 0, errno == EINVAL { fd = try open(file, O_WRONLY | O_CREAT | O_TRUNC) }
        guard fd >= 0 else { throw failure("making", path(file)) }
        defer { close(fd) }
        let error = posix_fallocate(fd, 0, off_t(bytes))
        guard error == 0 else {
            errno = error
            throw failure("reserving \(bytes) bytes for", path(file))
        }
        // Zeros are written and not only reserved: an append must not change metadata.
        let zeros = AlignedMemory(byteCount: 1 << 20)
        var position: UInt64 = 0
        while position < bytes {
            let part = Int(min(UInt64(zeros.byteCount), bytes - position))
            let written = pwrite(fd, zeros.base, part, off_t(position))
            if written < 0, errno == EINTR { continue }
            guard written > 0 else { throw failure("writing zeros to", path(file)) }
            position += UInt64(written)
        }
    }

    package func sync(_ file: FileName) throws(StorageFailure) {
        let fd = try open(file, O_RDWR)
        defer { close(fd) }
        guard fsync(fd) == 0 else { throw failure("syncing", path(file)) }
    }

    package func syncDirectory(_ directory: StorageDirectory) throws(StorageFailure) {
        let path = path(directory)
        let fd = Glibc.open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard fd >= 0 else { throw failure("opening", path) }
        defer { close(fd) }
        guard fsync(fd) == 0 else { throw failure("syncing", path) }
    }

    package func remove(_ file: FileName) throws(StorageFailure) {
        guard unlink(path(file)) == 0 || errno == ENOENT else {
            throw failure("removing", path(file))
        }
    }
}
