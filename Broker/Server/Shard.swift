internal import BrokerBasics
package import BrokerShard
internal import CLinux
internal import Glibc
internal import LogStorage
package import ShardRuntime

// The loop around the machine. It owns the ring, the receive buffers, the sockets and the files;
// completions become inputs, effects become submissions. `runOnce` is the whole of it.

/// One shard's loop: one thread, one ring, one core. Made, run and ended on the same thread.
package struct Shard: ~Copyable {
    private struct Link {
        var descriptor: Int32 = -1
        var isReceiving = false
        var isPaused = false
        var isSending = false
        var isClosing = false
        var sawEnd = false
        var closeBy = MonotonicTime.never
    }
    private enum Source: UInt8 {
        case nothing = 0
        case accept = 1
        case receive = 2
        case send = 3
        case storage = 4
        case event = 5
    }

    private var ring: Ring
    private var buffers: BufferPool
    package var machine: ShardMachine
    private var effects: EffectBuffer
    private let control: ShardControl
    private let idle: IdleStrategy
    private let root: Int32
    private let directories: [StorageDirectory: Int32]
    private let journalMemory: UnsafeMutableRawBufferPointer
    private let journalIsRegistered: Bool
    private let opensDirect: Bool

    private var listeners: [Int32]
    private var links: [Link] = []
    private var closing: [Int32] = []
    private var files: [Int32]
    private var opens: [UInt64: FileSlot] = [:]
    /// Paths that the kernel copies at the next enter.
    private var paths: [UnsafeMutablePointer<CChar>] = []
    private var queued = 0
    private var now: Instant
    private var idleSince: MonotonicTime
    private var duty = DutyCycle()
    private var isAccepting = false
    private let log: (ShardEvent) -> Void

    package struct Settings {
        package var idle = IdleStrategy.adaptive
        package var receiveBuffers = 256
        package var receiveBufferBytes = 32 * 1024
        package var ringEntries: UInt32 = 1024
        package init() {}
    }

    /// Opens the journal's files and directories; the machine has been recovered.
    package init(
        machine: consuming ShardMachine, root path: String, listeners: [Int32],
        control: ShardControl, settings: Settings, opensDirect: Bool,
        log: @escaping (ShardEvent) -> Void
    ) throws(SystemError) {
        // Everything that can fail comes before the first property is set.
        let ring = try Ring(
            entries: settings.ringEntries, completions: settings.ringEntries * 4)
        let buffers = try BufferPool(
            ring: ring, count: settings.receiveBuffers, bufferBytes: settings.receiveBufferBytes)
        let root = try Self.open(path, AT_FDCWD, O_RDONLY | O_DIRECTORY)
        var directories: [StorageDirectory: Int32] = [:]
        for directory in StorageDirectory.allCases {
            directories[directory] = try Self.open(
                directory.rawValue, root, O_RDONLY | O_DIRECTORY)
        }
        let journalFiles = machine.journal.geometry.fileCount
        var files: [Int32] = Array(
            repeating: -1, count: journalFiles + machine.limits.filesMax + 1)
        for index in 0 ..< journalFiles {
            files[index] = try Self.open(
                FileName.journal(index).path, root, O_RDWR | (opensDirect ? millrace_direct_flag() : 0))
        }
        let memory = machine.journal.memory
        var region = iovec(iov_base: memory.baseAddress, iov_len: memory.count)
        journalIsRegistered = io_uring_register_buffers(ring.handle, &region, 1) == 0
        journalMemory = memory
        self.ring = ring
        self.buffers = buffers
        self.root = root
        self.directories = directories
        self.files = files
        self.log = log
        self.control = control
        idle = settings.idle
        self.listeners = listeners
        self.opensDirect = opensDirect
        effects = EffectBuffer(capacity: machine.limits.effectsMax)
        now = Clock.now
        idleSince = now.monotonic
        self.machine = machine
        watchEvents()
    }

    deinit {
        for link in links where link.descriptor >= 0 { close(link.descriptor) }
        for file in files where file >= 0 { close(file) }
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

    // MARK: the cycle

    /// Runs until the machine has stopped.
    package mutating func run() {
        while machine.stage != .stopped || !closing.isEmpty { runOnce() }
    }

    /// One duty cycle: completions in, conclusions, effects out; then idle if there was nothing.
    @inline(__always)
    package mutating func runOnce() {
        if queued > 0 || ring.hasWork {
            queued = 0
            ring.enter()
            freePaths()
        }
        let before = now.monotonic
        now = Clock.now
        machine.begin(now: now)
        let work = takeCompletions() + lookAround()
        machine.advance()
        let isBusy = carryOutEffects() || work > 0
        account(isBusy, since: before)
        if isBusy {
            idleSince = now.monotonic
        } else if !ring.hasWork {
            rest()
        }
    }

    private mutating func rest() {
        let deadline = machine.nextDeadline
        guard idle.shouldSleep(now: now.monotonic, idleSince: idleSince),
            deadline > now.monotonic
        else {
            CoreControl.yield()
            return
        }
        ring.wait(nanoseconds: min(deadline.since(now.monotonic), .milliseconds(100)))
    }

    @inline(__always)
    private mutating func account(_ isBusy: Bool, since before: MonotonicTime) {
        let spent = now.monotonic.since(before)
        duty.cycles &+= 1
        if isBusy {
            duty.busyCycles &+= 1
            duty.busyNanoseconds &+= spent
            duty.longestNanoseconds = max(duty.longestNanoseconds, spent)
        } else {
            duty.idleNanoseconds &+= spent
        }
    }

    /// Flags from other threads, and sockets that linger.
    @inline(__always)
    private mutating func lookAround() -> Int {
        control.beat(now.monotonic)
        var work = 0
        if machine.isReady, !isAccepting { work += startAccepting() }
        if control.stopIsWanted { machine.beginStop() }
        if control.reportIsWanted { publishReport() }
        if !machine.events.isEmpty { reportEvents() }
        if !closing.isEmpty { work += finishClosing() }
        return work
    }

    @inline(__always)
    private mutating func takeCompletions() -> Int {
        let count = ring.completionCount
        for index in 0 ..< count {
            let completion = ring.completion(index)
            let value = completion.token & 0x00FF_FFFF_FFFF_FFFF
            switch Source(rawValue: UInt8(truncatingIfNeeded: completion.token >> 56)) {
            case .receive: received(Int32(truncatingIfNeeded: value), completion)
            case .send: sendCompleted(Int32(truncatingIfNeeded: value), completion)
            case .storage: storageCompleted(value, completion)
            case .accept: accepted(Int(value), completion)
            case .event: eventCompleted(completion)
            case .nothing, nil: break
            }
        }
        ring.advance(count)
        buffers.publish()
        return count
    }

    /// - Returns: true when there were any.
    @inline(__always)
    private mutating func carryOutEffects() -> Bool {
        machine.emit(into: &effects)
        let count = effects.count
        for index in 0 ..< count {
            switch effects[index] {
            case .send(let connection, let bytes, let count): send(connection, bytes, count)
            case .storage(let request): start(request)
            case .pauseReceive(let connection): pause(connection)
            case .resumeReceive(let connection): resume(connection)
            case .close(let connection): beginClosing(connection)
            }
        }
        effects.removeAll()
        return count > 0
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

    private mutating func startAccepting() -> Int {
        isAccepting = true
        control.publish { $0.stage = "ready" }
        for index in listeners.indices { accept(index) }
        return listeners.count
    }

    private mutating func accept(_ listener: Int) {
        guard let entry = submission(.accept, UInt64(listener)) else { return }
        io_uring_prep_multishot_accept(entry, listeners[listener], nil, nil, Int32(SOCK_CLOEXEC.rawValue))
        entry.pointee.user_data = Self.token(.accept, UInt64(listener))
    }

    private mutating func accepted(_ listener: Int, _ completion: Completion) {
        if completion.result >= 0 {
            let fd = completion.result
            if let index = machine.opened(peer: Self.peerName(fd)) {
                while links.count <= Int(index) { links.append(Link()) }
                links[Int(index)] = Link(descriptor: fd)
                receive(index)
            } else {
                close(fd)
            }
        }
        // EMFILE and the like end a multishot accept: it is armed again, and the peer waits in the
        // backlog meanwhile.
        if !completion.hasMore, machine.stage == .ready { accept(listener) }
    }

    private static func peerName(_ fd: Int32) -> String {
        var address = sockaddr_storage()
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        let found = withUnsafeMutablePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { getpeername(fd, $0, &length) }
        }
        guard found == 0, Int32(address.ss_family) != AF_UNIX else { return "unix" }
        var host = [CChar](repeating: 0, count: Int(NI_MAXHOST))
        var port = [CChar](repeating: 0, count: Int(NI_MAXSERV))
        let named = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                getnameinfo(
                    $0, length, &host, socklen_t(host.count), &port, socklen_t(port.count),
                    NI_NUMERICHOST | NI_NUMERICSERV)
            }
        }
        guard named == 0 else { return "unknown" }
        func text(_ characters: [CChar]) -> String {
            String(
                decoding: characters.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) },
                as: UTF8.self)
        }
        return "\(text(host)):\(text(port))"
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
    private mutating func received(_ index: Int32, _ completion: Completion) {
        if let buffer = completion.bufferID {
            if completion.result > 0, !links[Int(index)].isClosing {
                machine.received(index, buffers.bytes(buffer), count: Int(completion.result))
            }
            buffers.release(buffer)
        }
        guard !completion.hasMore else { return }
        links[Int(index)].isReceiving = false
        if completion.result > 0 || completion.result == -ENOBUFS || completion.result == -ECANCELED {
            // Buffers ran out, or a pause: go on unless paused.
            if !links[Int(index)].isPaused { receive(index) }
            return
        }
        links[Int(index)].sawEnd = true
        if !links[Int(index)].isClosing { machine.ended(index) }
    }

    private mutating func pause(_ index: Int32) {
        links[Int(index)].isPaused = true
        guard links[Int(index)].isReceiving, let entry = submission(.nothing, 0) else { return }
        io_uring_prep_cancel64(
            entry, Self.token(.receive, UInt64(UInt32(bitPattern: index))), 0)
        entry.pointee.user_data = 0
    }

    private mutating func resume(_ index: Int32) {
        links[Int(index)].isPaused = false
        if !links[Int(index)].isReceiving, !links[Int(index)].sawEnd { receive(index) }
    }

    @inline(__always)
    private mutating func send(_ index: Int32, _ bytes: UnsafeRawPointer, _ count: Int) {
        let value = UInt64(UInt32(bitPattern: index))
        guard let entry = submission(.send, value) else { return }
        io_uring_prep_send(
            entry, links[Int(index)].descriptor, bytes, count,
            Int32(MSG_NOSIGNAL) | Int32(MSG_WAITALL))
        entry.pointee.user_data = Self.token(.send, value)
        links[Int(index)].isSending = true
    }

    @inline(__always)
    private mutating func sendCompleted(_ index: Int32, _ completion: Completion) {
        links[Int(index)].isSending = false
        if let (rest, count) = machine.sent(index, result: completion.result) {
            send(index, rest, count)
        }
    }

    /// What was sent reaches the peer before the socket goes: it is shut down for writing, and
    /// lingers until the peer ends its side, a second at most.
    private mutating func beginClosing(_ index: Int32) {
        links[Int(index)].isClosing = true
        links[Int(index)].closeBy = now.monotonic + .seconds(1)
        shutdown(
            links[Int(index)].descriptor, Int32(links[Int(index)].sawEnd ? SHUT_RDWR : SHUT_WR))
        if links[Int(index)].isPaused { resume(index) }
        closing.append(index)
    }

    private mutating func finishClosing() -> Int {
        var left: [Int32] = []
        var work = 0
        for index in closing {
            let link = links[Int(index)]
            if !link.isReceiving, !link.isSending {
                close(link.descriptor)
                links[Int(index)] = Link()
                machine.released(index)
                work += 1
            } else {
                if now.monotonic >= link.closeBy {
                    shutdown(link.descriptor, Int32(SHUT_RDWR))
                    links[Int(index)].closeBy = .never
                }
                left.append(index)
            }
        }
        closing = left
        return work
    }

    // MARK: files

    @inline(__always)
    private mutating func start(_ request: StorageRequest) {
        guard let entry = submission(.storage, request.token) else { return }
        switch request.operation {
        case .write(let slot, let from, let bytes, let position, let synced):
            let memory = UnsafeMutableRawPointer(mutating: from)
            if journalIsRegistered, let base = journalMemory.baseAddress, memory >= base,
                memory < base + journalMemory.count
            {
                io_uring_prep_write_fixed(
                    entry, files[Int(slot)], memory, UInt32(bytes), position, 0)
            } else {
                io_uring_prep_write(entry, files[Int(slot)], memory, UInt32(bytes), position)
            }
            entry.pointee.rw_flags = synced ? 2 : 0  // RWF_DSYNC
        case .read(let slot, let into, let bytes, let position):
            io_uring_prep_read(entry, files[Int(slot)], into, UInt32(bytes), position)
        case .sync(let slot):
            io_uring_prep_fsync(entry, files[Int(slot)], UInt32(IORING_FSYNC_DATASYNC))
        case .allocate(let slot, let position, let bytes):
            io_uring_prep_fallocate(
                entry, files[Int(slot)], 0, off_t(position), off_t(bytes))
        case .open(let slot, let name, let create):
            opens[request.token] = slot
            let flags =
                (create ? O_RDWR | O_CREAT : O_RDONLY) | (opensDirect ? millrace_direct_flag() : 0) | O_CLOEXEC
            io_uring_prep_openat(entry, root, keep(name.path), flags, 0o640)
        case .close(let slot):
            io_uring_prep_close(entry, files[Int(slot)])
            files[Int(slot)] = -1
        case .syncDirectory(let directory):
            io_uring_prep_fsync(entry, directories[directory] ?? root, 0)
        case .remove(let name):
            io_uring_prep_unlinkat(entry, root, keep(name.path), 0)
        }
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
    private mutating func storageCompleted(_ token: UInt64, _ completion: Completion) {
        var result = completion.result
        if !opens.isEmpty, let slot = opens.removeValue(forKey: token) {
            if result >= 0 {
                files[Int(slot)] = result
                result = 0
            }
        }
        machine.completed(token: token, result: result)
    }

    // MARK: other threads

    private mutating func watchEvents() {
        guard let entry = submission(.event, 0) else { return }
        io_uring_prep_poll_multishot(entry, control.eventDescriptor, UInt32(POLLIN))
        entry.pointee.user_data = Self.token(.event, 0)
    }

    private mutating func eventCompleted(_ completion: Completion) {
        var count: UInt64 = 0
        _ = read(control.eventDescriptor, &count, 8)
        if !completion.hasMore { watchEvents() }
    }

    private mutating func publishReport() {
        guard control.takeReportRequest() else { return }
        let report = machine.report()
        let duty = duty
        let stage = machine.stage
        control.publish { published in
            published.report = report
            published.reportNumber += 1
            published.duty = duty
            if stage == .stopping { published.stage = "stopping" }
            published.failure = report.counters.storageFailure
        }
    }

    private mutating func reportEvents() {
        let events = machine.events
        machine.events.removeAll()
        for event in events {
            if case .storageFailed(let what) = event { control.publish { $0.failure = what } }
            log(event)
        }
    }
}
