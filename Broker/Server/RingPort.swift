internal import BrokerBasics
package import BrokerShard
internal import CLinux
internal import Glibc
package import LogStorage
package import ShardRuntime

/// The production port: one io_uring for sockets and files. Effects become submissions, completions
/// become inputs.
package struct RingPort: ~Copyable, ShardPort {
    private struct Link {
        var descriptor: Int32 = -1
        var isReceiving = false
        var isPaused = false
        var isSending = false
        var isClosing = false
        var sawEnd = false
    }
    private enum Source: UInt8 {
        case nothing = 0
        case accept = 1
        case receive = 2
        case send = 3
        case storage = 4
        case event = 5
    }

    private static let entries: UInt32 = 1024
    private static let completions: UInt32 = 4096
    private static let receiveBuffers = 256

    private var ring: Ring
    private var buffers: BufferPool
    private var files: OpenFiles
    private let eventDescriptor: Int32
    private let journalMemory: UnsafeMutableRawBufferPointer
    private let journalIsRegistered: Bool
    private let listeners: [Int32]
    private var links: [Link] = []
    private var tired = TiredListeners()
    private var opens: [UInt64: FileSlot] = [:]
    /// Paths that the kernel copies at the next enter.
    private var paths: [UnsafeMutablePointer<CChar>] = []
    private var queued = 0

    package init(_ setup: borrowing ShardPortSetup) throws(SystemError) {
        // Everything that can fail comes before the first property is set.
        let ring = try Ring(entries: Self.entries, completions: Self.completions)
        let buffers = try BufferPool(
            ring: ring, count: Self.receiveBuffers,
            bufferBytes: ShardPortSetup.receiveBufferBytes)
        ring.keepWorkersOffOwner()
        let files = try OpenFiles(setup)
        journalMemory = setup.journalMemory
        var region = iovec(iov_base: journalMemory.baseAddress, iov_len: journalMemory.count)
        journalIsRegistered = io_uring_register_buffers(ring.handle, &region, 1) == 0
        self.ring = ring
        self.buffers = buffers
        self.files = files
        eventDescriptor = setup.eventDescriptor
        listeners = setup.listeners
        watchEvents()
    }

    deinit {
        for link in links where link.descriptor >= 0 { close(link.descriptor) }
        // Those of the last cycle before a stop: the kernel is not entered any more.
        for path in paths { path.deallocate() }
    }

    /// Why this port can't be made here; `nil` when it can.
    package static func refusal() -> RingRefusal? {
        Ring.refusal(
            entries: entries, completions: completions, buffers: receiveBuffers,
            bufferBytes: ShardPortSetup.receiveBufferBytes)
    }

    // MARK: the cycle

    @inline(__always)
    package mutating func exchange() {
        if queued > 0 || ring.hasWork {
            queued = 0
            ring.enter()
            freePaths()
        }
    }

    @inline(__always) package var hasWork: Bool { ring.hasWork }

    package mutating func wait(nanoseconds: UInt64) { ring.wait(nanoseconds: nanoseconds) }

    @inline(__always)
    package mutating func takeCompletions(into machine: inout ShardMachine) -> Int {
        let count = ring.completionCount
        for index in 0..<count {
            let completion = ring.completion(index)
            let value = completion.token & 0x00FF_FFFF_FFFF_FFFF
            switch Source(rawValue: UInt8(truncatingIfNeeded: completion.token >> 56)) {
            case .receive: received(Int32(truncatingIfNeeded: value), completion, &machine)
            case .send: sendCompleted(Int32(truncatingIfNeeded: value), completion, &machine)
            case .storage: storageCompleted(value, completion, &machine)
            case .accept: accepted(Int(value), completion, &machine)
            case .event: eventCompleted(completion)
            case .nothing, nil: break
            }
        }
        ring.advance(count)
        buffers.publish()
        return count
    }

    private static func token(_ source: Source, _ value: UInt64) -> UInt64 {
        UInt64(source.rawValue) << 56 | value
    }

    @inline(__always)
    private mutating func submission(
        _ source: Source, _ value: UInt64
    ) -> UnsafeMutablePointer<io_uring_sqe>? {
        queued &+= 1
        return ring.submission(token: Self.token(source, value))
    }

    // MARK: sockets

    package mutating func startAccepting() {
        for index in listeners.indices { accept(index) }
    }

    private mutating func accept(_ listener: Int) {
        guard let entry = submission(.accept, UInt64(listener)) else { return }
        io_uring_prep_multishot_accept(
            entry, listeners[listener], nil, nil, Int32(SOCK_CLOEXEC.rawValue))
        entry.pointee.user_data = Self.token(.accept, UInt64(listener))
    }

    private mutating func accepted(
        _ listener: Int, _ completion: Completion, _ machine: inout ShardMachine
    ) {
        if completion.result >= 0 {
            let fd = completion.result
            if let index = machine.opened(peer: PeerName.of(fd)) {
                while links.count <= Int(index) { links.append(Link()) }
                links[Int(index)] = Link(descriptor: fd)
                receive(index)
            } else {
                TurnedAway.close(fd, saying: machine.refusalOfConnection)
            }
        }
        guard !completion.hasMore, machine.stage == .ready else { return }
        if completion.result >= 0 || TiredListeners.isOfPeer(-completion.result) {
            accept(listener)
        } else {
            machine.acceptFailed(errno: -completion.result)
            tired.add(listener, now: machine.now.monotonic)
        }
    }

    @inline(__always)
    package mutating func retryAccepting(_ machine: borrowing ShardMachine) {
        guard machine.now.monotonic >= tired.retryAt, machine.stage == .ready else { return }
        for listener in tired.takeAll() { accept(listener) }
    }

    private mutating func receive(_ index: Int32) {
        guard let entry = submission(.receive, UInt64(UInt32(bitPattern: index))) else { return }
        io_uring_prep_recv_multishot(entry, links[Int(index)].descriptor, nil, 0, 0)
        entry.pointee.user_data = Self.token(.receive, UInt64(UInt32(bitPattern: index)))
        entry.pointee.flags |= UInt8(1 << 5)  // IOSQE_BUFFER_SELECT
        entry.pointee.buf_group = BufferPool.group
        links[Int(index)].isReceiving = true
    }

    @inline(__always)
    private mutating func received(
        _ index: Int32, _ completion: Completion, _ machine: inout ShardMachine
    ) {
        if let buffer = completion.bufferID {
            if completion.result > 0, !links[Int(index)].isClosing {
                machine.received(index, buffers.bytes(buffer), count: Int(completion.result))
            }
            buffers.release(buffer)
        }
        guard !completion.hasMore else { return }
        links[Int(index)].isReceiving = false
        if completion.result > 0 || completion.result == -ENOBUFS || completion.result == -ECANCELED
        {
            // Buffers ran out, or a pause: go on unless paused.
            if !links[Int(index)].isPaused { receive(index) }
            return
        }
        links[Int(index)].sawEnd = true
        if !links[Int(index)].isClosing { machine.ended(index) }
    }

    package mutating func pause(_ index: Int32) {
        links[Int(index)].isPaused = true
        guard links[Int(index)].isReceiving, let entry = submission(.nothing, 0) else { return }
        io_uring_prep_cancel64(
            entry, Self.token(.receive, UInt64(UInt32(bitPattern: index))), 0)
        entry.pointee.user_data = 0
    }

    package mutating func resume(_ index: Int32) {
        links[Int(index)].isPaused = false
        if !links[Int(index)].isReceiving, !links[Int(index)].sawEnd { receive(index) }
    }

    @inline(__always)
    package mutating func send(_ index: Int32, _ bytes: UnsafeRawPointer, _ count: Int) {
        let value = UInt64(UInt32(bitPattern: index))
        guard let entry = submission(.send, value) else { return }
        io_uring_prep_send(
            entry, links[Int(index)].descriptor, bytes, count,
            Int32(MSG_NOSIGNAL) | Int32(MSG_WAITALL))
        entry.pointee.user_data = Self.token(.send, value)
        links[Int(index)].isSending = true
    }

    @inline(__always)
    private mutating func sendCompleted(
        _ index: Int32, _ completion: Completion, _ machine: inout ShardMachine
    ) {
        links[Int(index)].isSending = false
        if let (rest, count) = machine.sent(index, result: completion.result) {
            send(index, rest, count)
        }
    }

    package mutating func beginClosing(_ index: Int32) {
        links[Int(index)].isClosing = true
        shutdown(
            links[Int(index)].descriptor, Int32(links[Int(index)].sawEnd ? SHUT_RDWR : SHUT_WR))
        if links[Int(index)].isPaused { resume(index) }
    }

    package func isQuiet(_ index: Int32) -> Bool {
        !links[Int(index)].isReceiving && !links[Int(index)].isSending
    }

    package mutating func cut(_ index: Int32) {
        shutdown(links[Int(index)].descriptor, Int32(SHUT_RDWR))
    }

    package mutating func release(_ index: Int32) {
        close(links[Int(index)].descriptor)
        links[Int(index)] = Link()
    }

    // MARK: files

    @inline(__always)
    package mutating func start(_ request: StorageRequest, diskIsLate: Bool) {
        guard let entry = submission(.storage, request.token) else { return }
        switch request.operation {
        case .write(let slot, let from, let bytes, let position, let synced):
            let memory = UnsafeMutableRawPointer(mutating: from)
            if journalIsRegistered, let base = journalMemory.baseAddress, memory >= base,
                memory < base + journalMemory.count
            {
                io_uring_prep_write_fixed(entry, files[slot], memory, UInt32(bytes), position, 0)
            } else {
                io_uring_prep_write(entry, files[slot], memory, UInt32(bytes), position)
            }
            entry.pointee.rw_flags = synced ? 2 : 0  // RWF_DSYNC
        case .read(let slot, let into, let bytes, let position):
            io_uring_prep_read(entry, files[slot], into, UInt32(bytes), position)
        case .sync(let slot):
            io_uring_prep_fsync(entry, files[slot], UInt32(IORING_FSYNC_DATASYNC))
        case .allocate(let slot, let position, let bytes):
            io_uring_prep_fallocate(entry, files[slot], 0, off_t(position), off_t(bytes))
        case .open(let slot, let name, let create):
            opens[request.token] = slot
            io_uring_prep_openat(
                entry, files.root, keep(files.folder.path(name)),
                files.openFlags(create: create), OpenFiles.mode)
        case .close(let slot):
            io_uring_prep_close(entry, files[slot])
            files[slot] = -1
        case .syncDirectory(let directory):
            io_uring_prep_fsync(entry, files.descriptor(of: directory), 0)
        case .remove(let name):
            io_uring_prep_unlinkat(entry, files.root, keep(files.folder.path(name)), 0)
        }
        // The kernel's own threads ask then. As a rule they don't: handing over costs more than asking. But a write
        // notes its time in the file's inode before anything else, without regard to who may wait, and while ext4
        // brings that inode to a disk that stands still the writer stands still too (seen on Linux 6.18).
        if diskIsLate { entry.pointee.flags |= UInt8(1 << 4) }  // IOSQE_ASYNC
        entry.pointee.user_data = Self.token(.storage, request.token)
    }

    private mutating func keep(_ path: String) -> UnsafePointer<CChar> {
        let copy = path.withCString { source -> UnsafeMutablePointer<CChar> in
            let count = strlen(source) + 1
            let copy = UnsafeMutablePointer<CChar>.allocate(capacity: count)
            copy.initialize(from: source, count: count)
            return copy
        }
        paths.append(copy)
        return UnsafePointer(copy)
    }

    private mutating func freePaths() {
        guard !paths.isEmpty else { return }
        for path in paths { path.deallocate() }
        paths.removeAll()
    }

    @inline(__always)
    private mutating func storageCompleted(
        _ token: UInt64, _ completion: Completion, _ machine: inout ShardMachine
    ) {
        var result = completion.result
        if !opens.isEmpty, let slot = opens.removeValue(forKey: token) {
            if result >= 0 {
                files[slot] = result
                result = 0
            }
        }
        machine.completed(token: token, result: result)
    }

    // MARK: other threads

    private mutating func watchEvents() {
        guard let entry = submission(.event, 0) else { return }
        io_uring_prep_poll_multishot(entry, eventDescriptor, UInt32(POLLIN))
        entry.pointee.user_data = Self.token(.event, 0)
    }

    private mutating func eventCompleted(_ completion: Completion) {
        var count: UInt64 = 0
        _ = read(eventDescriptor, &count, 8)
        if !completion.hasMore { watchEvents() }
    }
}
