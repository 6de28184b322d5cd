internal import BrokerBasics
package import BrokerShard
internal import CLinux
internal import Glibc
package import LogStorage
package import ShardRuntime

// How it works. Sockets are non-blocking, and epoll says (level-triggered) which of them can be read
// or written. A send is tried when its effect comes, once per connection and cycle; what does not fit
// into the socket goes on when there is room. The disk is not waited for: threads carry out its
// operations and signal an eventfd. Journal writes have threads of their own, so that none waits
// behind the sync of a segment.
//
// As with io_uring, what is done while effects are carried out is told to the machine in the next
// cycle. It costs system calls where io_uring reads memory, and a thread's wake-up per disk write.

/// The portable port: epoll for sockets, `pwritev2` and its kin for files. For where io_uring is
/// refused; it need not be fast.
package struct EpollPort: ~Copyable, ShardPort {
    private struct Link {
        var descriptor: Int32 = -1
        /// What epoll was told.
        var isWatchedForRead = false
        var isWatchedForWrite = false
        var isPaused = false
        var isClosing = false
        var sawEnd = false
        /// From the effect until the machine was told how it went.
        var isSending = false
        /// What of a send waits for room in the socket.
        var rest: UnsafeRawPointer?
        var restCount = 0
    }
    private enum Source: UInt8 {
        case accept = 1
        case socket = 2
        case storage = 3
        case event = 4
    }
    private struct Sent {
        var connection: Int32
        /// Bytes, or a negative errno.
        var result: Int32
    }

    private static let eventsMax = 256
    private static let acceptsMax = 64
    /// Two journal writes are in flight as a rule; more, when groups wait, stand in the threads' queue.
    private static let journalThreads = 2
    private static let fileThreads = 2

    private let poll: Int32
    private let eventDescriptor: Int32
    private let answerDescriptor: Int32
    private let listeners: [Int32]
    private let journalFiles: Int
    private var files: OpenFiles
    private let journalWorkers: StorageWorkers
    private let fileWorkers: StorageWorkers
    private let received: UnsafeMutableRawPointer
    private let receiveBytes: Int
    private let events: UnsafeMutablePointer<millrace_poll_event>
    private var eventCount = 0
    private var links: [Link] = []
    private var tired = TiredListeners()
    private var sent: [Sent] = []
    private var opens: [UInt64: FileSlot] = [:]
    /// What the workers' queues had no room for, oldest first: the machine's limits bound it.
    private var journalBacklog: [StorageJob] = []
    private var fileBacklog: [StorageJob] = []
    private var answers: [StorageAnswer] = []

    package init(_ setup: borrowing ShardPortSetup) throws(SystemError) {
        // Everything that can fail comes before the first property is set.
        let files = try OpenFiles(setup)
        let poll = millrace_poll_open()
        guard poll >= 0 else { throw SystemError("epoll_create1", errno: -poll) }
        let answerDescriptor = millrace_event_fd()
        guard answerDescriptor >= 0 else { throw SystemError("eventfd", errno: errno) }
        try Self.watch(poll, setup.eventDescriptor, Self.token(.event, 0))
        try Self.watch(poll, answerDescriptor, Self.token(.storage, 0))
        let journalWorkers = try StorageWorkers(
            name: "journal-0", threads: Self.journalThreads, eventDescriptor: answerDescriptor)
        let fileWorkers = try StorageWorkers(
            name: "storage-0", threads: Self.fileThreads, eventDescriptor: answerDescriptor)
        self.files = files
        self.poll = poll
        self.answerDescriptor = answerDescriptor
        self.journalWorkers = journalWorkers
        self.fileWorkers = fileWorkers
        eventDescriptor = setup.eventDescriptor
        listeners = setup.listeners
        journalFiles = setup.journalFiles
        receiveBytes = ShardPortSetup.receiveBufferBytes
        received = .allocate(byteCount: receiveBytes, alignment: 64)
        events = .allocate(capacity: Self.eventsMax)
        events.initialize(repeating: millrace_poll_event(), count: Self.eventsMax)
    }

    deinit {
        journalWorkers.end()
        fileWorkers.end()
        for link in links where link.descriptor >= 0 { close(link.descriptor) }
        close(poll)
        close(answerDescriptor)
        events.deallocate()
        received.deallocate()
    }

    private static func token(_ source: Source, _ value: UInt32) -> UInt64 {
        UInt64(source.rawValue) << 56 | UInt64(value)
    }

    /// Watches what is read only, for as long as the port lives.
    private static func watch(
        _ poll: Int32, _ descriptor: Int32, _ token: UInt64
    ) throws(SystemError) {
        let error = millrace_poll_watch(poll, descriptor, token, true, false, false)
        guard error == 0 else { throw SystemError("epoll_ctl", errno: error) }
    }

    // MARK: the cycle

    package mutating func exchange() {
        if eventCount == 0 { look(milliseconds: 0) }
    }

    package var hasWork: Bool { eventCount > 0 || !sent.isEmpty }

    package mutating func wait(nanoseconds: UInt64) {
        // Rounded up: a timer that is due in a part of a millisecond is not spun for.
        look(milliseconds: Int32((nanoseconds + 999_999) / 1_000_000))
    }

    private mutating func look(milliseconds: Int32) {
        eventCount = Int(
            millrace_poll_wait(poll, events, Int32(Self.eventsMax), milliseconds))
    }

    package mutating func takeCompletions(into machine: inout ShardMachine) -> Int {
        let work = eventCount + sent.count
        tellSent(&machine)
        for index in 0..<eventCount {
            let event = events[index]
            let value = UInt32(truncatingIfNeeded: event.token)
            switch Source(rawValue: UInt8(truncatingIfNeeded: event.token >> 56)) {
            case .socket: socketIsReady(Int32(bitPattern: value), event, &machine)
            case .storage: takeAnswers(&machine)
            case .accept: accept(Int(value), &machine)
            case .event: clear(eventDescriptor)
            case nil: break
            }
        }
        eventCount = 0
        return work
    }

    private func clear(_ descriptor: Int32) {
        var count: UInt64 = 0
        _ = read(descriptor, &count, 8)
    }

    // MARK: sockets

    package mutating func startAccepting() {
        for (index, listener) in listeners.enumerated() {
            millrace_set_nonblocking(listener)
            watchListener(index, true)
        }
    }

    /// - Returns: false when the kernel has no room for it.
    @discardableResult
    private func watchListener(_ index: Int, _ isWatched: Bool) -> Bool {
        millrace_poll_watch(
            poll, listeners[index], Self.token(.accept, UInt32(index)), isWatched, false,
            !isWatched) == 0
    }

    package mutating func retryAccepting(_ machine: borrowing ShardMachine) {
        guard machine.now.monotonic >= tired.retryAt, machine.stage == .ready else { return }
        for listener in tired.takeAll() where !watchListener(listener, true) {
            tired.add(listener, now: machine.now.monotonic)
        }
    }

    private mutating func accept(_ listener: Int, _ machine: inout ShardMachine) {
        for _ in 0..<Self.acceptsMax {
            let fd = millrace_accept(listeners[listener])
            if fd == -EAGAIN { return }
            if fd < 0, TiredListeners.isOfPeer(-fd) { continue }
            guard fd >= 0 else {
                // epoll would say without end that somebody is there.
                machine.acceptFailed(errno: -fd)
                tired.add(listener, now: machine.now.monotonic)
                watchListener(listener, false)
                return
            }
            guard let index = machine.opened(peer: PeerName.of(fd)) else {
                TurnedAway.close(fd, saying: machine.refusalOfConnection)
                continue
            }
            while links.count <= Int(index) { links.append(Link()) }
            links[Int(index)] = Link(descriptor: fd)
            watch(index)
        }
    }

    /// Tells epoll what the connection waits for.
    private mutating func watch(_ index: Int32) {
        let link = links[Int(index)]
        let reads = !link.isPaused && !link.sawEnd
        let writes = link.rest != nil
        guard reads != link.isWatchedForRead || writes != link.isWatchedForWrite else { return }
        let error = millrace_poll_watch(
            poll, link.descriptor, Self.token(.socket, UInt32(bitPattern: index)), reads, writes,
            link.isWatchedForRead || link.isWatchedForWrite)
        // epoll_ctl(2) fails for want of memory or watches only: the peer sees its connection end.
        guard error == 0 else {
            links[Int(index)].sawEnd = true
            links[Int(index)].rest = nil
            links[Int(index)].isSending = true
            sent.append(Sent(connection: index, result: -error))
            return
        }
        links[Int(index)].isWatchedForRead = reads
        links[Int(index)].isWatchedForWrite = writes
    }

    private mutating func socketIsReady(
        _ index: Int32, _ event: millrace_poll_event, _ machine: inout ShardMachine
    ) {
        if event.writable, links[Int(index)].rest != nil { transmit(index) }
        if event.readable, links[Int(index)].isWatchedForRead { receive(index, &machine) }
    }

    /// One receive per connection and cycle: nobody's flood holds others up.
    private mutating func receive(_ index: Int32, _ machine: inout ShardMachine) {
        let count = recv(links[Int(index)].descriptor, received, receiveBytes, 0)
        if count > 0 {
            if !links[Int(index)].isClosing { machine.received(index, received, count: count) }
            return
        }
        if count < 0, errno == EAGAIN || errno == EINTR { return }
        links[Int(index)].sawEnd = true
        watch(index)
        if !links[Int(index)].isClosing { machine.ended(index) }
    }

    package mutating func pause(_ index: Int32) {
        links[Int(index)].isPaused = true
        watch(index)
    }

    package mutating func resume(_ index: Int32) {
        links[Int(index)].isPaused = false
        watch(index)
    }

    package mutating func send(_ index: Int32, _ bytes: UnsafeRawPointer, _ count: Int) {
        links[Int(index)].isSending = true
        links[Int(index)].rest = bytes
        links[Int(index)].restCount = count
        transmit(index)
    }

    /// Sends what the socket takes. The machine answers a part with its rest.
    private mutating func transmit(_ index: Int32) {
        let link = links[Int(index)]
        guard let rest = link.rest else { return }
        let count = Glibc.send(link.descriptor, rest, link.restCount, Int32(MSG_NOSIGNAL))
        if count < 0, errno == EAGAIN || errno == EINTR {
            watch(index)
            return
        }
        sent.append(Sent(connection: index, result: count < 0 ? -errno : Int32(count)))
        links[Int(index)].rest = nil
        links[Int(index)].restCount = 0
        watch(index)
    }

    private mutating func tellSent(_ machine: inout ShardMachine) {
        guard !sent.isEmpty else { return }
        // What is sent on the way is told in the next cycle.
        let told = sent
        sent.removeAll(keepingCapacity: true)
        for one in told {
            links[Int(one.connection)].isSending = false
            if let (rest, count) = machine.sent(one.connection, result: one.result) {
                send(one.connection, rest, count)
            }
        }
    }

    package mutating func beginClosing(_ index: Int32) {
        links[Int(index)].isClosing = true
        shutdown(
            links[Int(index)].descriptor, Int32(links[Int(index)].sawEnd ? SHUT_RDWR : SHUT_WR))
        // What still waits for room fails now, and is told.
        transmit(index)
        if links[Int(index)].isPaused { resume(index) }
    }

    package func isQuiet(_ index: Int32) -> Bool {
        links[Int(index)].sawEnd && !links[Int(index)].isSending
    }

    package mutating func cut(_ index: Int32) {
        shutdown(links[Int(index)].descriptor, Int32(SHUT_RDWR))
        links[Int(index)].sawEnd = true
        watch(index)
    }

    package mutating func release(_ index: Int32) {
        // Nothing else has the socket open: closing it takes it out of epoll as well (epoll(7)).
        close(links[Int(index)].descriptor)
        links[Int(index)] = Link()
    }

    // MARK: files

    package mutating func start(_ request: StorageRequest, diskIsLate: Bool) {
        var job = StorageJob(
            token: request.token, operation: request.operation, descriptor: files.root,
            folder: files.folder)
        var isJournal = false
        switch request.operation {
        case .write(let slot, _, _, _, _), .sync(let slot):
            job.descriptor = files[slot]
            isJournal = slot < journalFiles
        case .read(let slot, _, _, _), .allocate(let slot, _, _):
            job.descriptor = files[slot]
        case .open(let slot, _, let create):
            opens[request.token] = slot
            job.flags = files.openFlags(create: create)
        case .close(let slot):
            job.descriptor = files[slot]
            files[slot] = -1
        case .syncDirectory(let directory): job.descriptor = files.descriptor(of: directory)
        case .remove: break
        }
        if isJournal {
            Self.submit(job, to: journalWorkers, behind: &journalBacklog)
        } else {
            Self.submit(job, to: fileWorkers, behind: &fileBacklog)
        }
    }

    private static func submit(
        _ job: StorageJob, to workers: StorageWorkers, behind backlog: inout [StorageJob]
    ) {
        if !backlog.isEmpty || !workers.submit(job) { backlog.append(job) }
    }

    private static func resubmit(_ backlog: inout [StorageJob], to workers: StorageWorkers) {
        guard !backlog.isEmpty else { return }
        let taken = backlog.prefix { workers.submit($0) }.count
        backlog.removeFirst(taken)
    }

    private mutating func takeAnswers(_ machine: inout ShardMachine) {
        // First the signal, then the answers: one that comes in between signals again.
        clear(answerDescriptor)
        answers.removeAll(keepingCapacity: true)
        journalWorkers.takeAnswers(into: &answers)
        fileWorkers.takeAnswers(into: &answers)
        Self.resubmit(&journalBacklog, to: journalWorkers)
        Self.resubmit(&fileBacklog, to: fileWorkers)
        for answer in answers {
            var result = answer.result
            if !opens.isEmpty, let slot = opens.removeValue(forKey: answer.token), result >= 0 {
                files[slot] = result
                result = 0
            }
            machine.completed(token: answer.token, result: result)
        }
    }
}
