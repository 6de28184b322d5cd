internal import Glibc
internal import ReplayHarness
internal import Synchronization

/// Serves a disk as a file: a FUSE filesystem whose root is that file, mounted over an empty one.
///
/// One thread takes one request after the other, so the order of the disk's log is the order in
/// which the kernel was answered. It ends when the filesystem is unmounted and nobody has it open.
final class FuseServer {
    /// Where the file is seen.
    let path: String
    private let descriptor: Int32
    private let worker: Worker<Void>
    private let stopFlag: StopFlag

    /// - Parameter path: a file that does not exist; it is made, and mounted over.
    init(_ disk: RecordedDisk, at path: String) throws {
        self.path = path
        let place = open(path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0o600)
        guard place >= 0 else { throw SystemFailure("making \(path)") }
        close(place)
        descriptor = open("/dev/fuse", O_RDWR | O_CLOEXEC)
        guard descriptor >= 0 else { throw SystemFailure("opening /dev/fuse") }
        let options = "fd=\(descriptor),rootmode=100600,user_id=0,group_id=0"
        guard mount("millrace-disk", path, "fuse", 0, options) == 0 else {
            let failure = SystemFailure("mounting FUSE at \(path)")
            close(descriptor)
            throw failure
        }
        let requests = FuseRequests(descriptor: descriptor, disk: disk)
        let flag = StopFlag()
        stopFlag = flag
        worker = try Worker { requests.serve(until: flag) }
    }

    /// Unmounts; whoever still has it open gets EIO once this returns.
    func stop() {
        _ = umount2(path, Int32(MNT_DETACH))
        stopFlag.stop()
        _ = worker.join()
    }

    deinit {
        stop()
        // Aborts the connection, if somebody still has the file open (fuse(4)).
        close(descriptor)
    }
}

/// Tells a thread that it is wanted no more.
final class StopFlag: Sendable {
    private let isSet = Atomic<Bool>(false)
    func stop() { isSet.store(true, ordering: .relaxed) }
    var isStopped: Bool { isSet.load(ordering: .relaxed) }
}

/// The requests of one connection; only its thread uses the buffers.
private final class FuseRequests: @unchecked Sendable {
    private let descriptor: Int32
    private let disk: RecordedDisk
    private var input = [UInt8](repeating: 0, count: FuseLimits.writeBytesMax + 8192)
    private var output: [UInt8] = []

    init(descriptor: Int32, disk: RecordedDisk) {
        self.descriptor = descriptor
        self.disk = disk
    }

    /// Until it is unmounted, or stopped and quiet for 200 ms.
    func serve(until flag: StopFlag) {
        while true {
            var waiting = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
            let ready = poll(&waiting, 1, 200)
            if ready == 0 {
                if flag.isStopped { return }
                continue
            }
            if Int32(waiting.revents) & POLLERR != 0 { return }
            let count = read(descriptor, &input, input.count)
            if count < 0 {
                switch errno {
                // ENOENT: the request was taken back before it was read.
                case EINTR, EAGAIN, ENOENT: continue
                // ENODEV: unmounted.
                default: return
                }
            }
            guard count >= FuseLimits.inHeaderBytes else { return }
            answer(count)
        }
    }

    private func number<Value: FixedWidthInteger>(_ at: Int, _ type: Value.Type) -> Value {
        input.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: at, as: type) }
    }

    private func answer(_ count: Int) {
        guard let opcode = FuseOpcode(rawValue: number(4, UInt32.self)) else {
            return reply(error: ENOSYS)
        }
        guard opcode.hasReply else { return }
        let body = FuseLimits.inHeaderBytes
        output.removeAll(keepingCapacity: true)
        switch opcode {
        case .initialize: initialize()
        case .getAttributes, .setAttributes: attributes()
        case .open:
            put(UInt64(0))
            put(FuseLimits.openFlags)
            put(UInt32(0))
        case .read:
            let (offset, bytes) = (number(body + 8, UInt64.self), number(body + 16, UInt32.self))
            disk.read(Int(clamping: offset), Int(bytes)) { output += $0 }
        case .write:
            let (offset, bytes) = (number(body + 8, UInt64.self), number(body + 16, UInt32.self))
            let start = body + FuseLimits.writeHeaderBytes
            guard start + Int(bytes) <= count,
                disk.write(Int(clamping: offset), input[start..<start + Int(bytes)])
            else { return reply(error: EIO) }
            put(bytes)
            put(UInt32(0))
        case .sync: disk.flush()
        // FLUSH belongs to close(2); nothing is written back by it.
        case .flush, .release, .destroy: break
        case .forget, .batchForget, .interrupt: return
        }
        reply(error: 0)
    }

    private func initialize() {
        put(FuseLimits.major)
        put(FuseLimits.minor)
        put(UInt32(0))
        put(FuseLimits.flags)
        put(UInt16(64))
        put(UInt16(48))
        put(UInt32(FuseLimits.writeBytesMax))
        put(UInt32(1))
        put(FuseLimits.pagesMax)
        output += [UInt8](repeating: 0, count: 64 - output.count)
    }

    private func attributes() {
        // How long they hold, in seconds: nothing ever changes.
        put(UInt64(3600))
        put(UInt64(0))
        put(FuseLimits.rootNode)
        put(UInt64(disk.byteCount))
        put(UInt64(disk.byteCount / 512))
        output += [UInt8](repeating: 0, count: 36)
        put(UInt32(S_IFREG | 0o600))
        put(UInt32(1))
        output += [UInt8](repeating: 0, count: 12)
        put(UInt32(4096))
        put(UInt32(0))
    }

    private func put(_ value: some FixedWidthInteger) {
        withUnsafeBytes(of: value) { output += $0 }
    }

    private func reply(error: Int32) {
        if error != 0 { output.removeAll(keepingCapacity: true) }
        let body = output
        output.removeAll(keepingCapacity: true)
        put(UInt32(FuseLimits.outHeaderBytes + body.count))
        put(-error)
        put(number(8, UInt64.self))
        output += body
        // ENOENT, when the request was taken back meanwhile, is nobody's loss.
        _ = write(descriptor, output, output.count)
    }
}
