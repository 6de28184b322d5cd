internal import CLinux
internal import Glibc
internal import LogStorage
internal import ShardRuntime
internal import Synchronization

/// One storage operation on its way to a thread that may block.
///
/// Sendable although it names memory: the machine leaves that memory alone until the completion
/// (`StorageOperation`), and the queue's lock orders both sides.
struct StorageJob: @unchecked Sendable {
    var token: UInt64
    var operation: StorageOperation
    /// Of the file, or of the data directory that names are below.
    var descriptor: Int32
    var folder: ShardFolder
    /// Of an `open`.
    var flags: Int32 = 0

    /// - Returns: bytes, a descriptor, 0, or a negative errno: what io_uring would answer.
    func carryOut() -> Int32 {
        switch operation {
        case .write(_, let from, let bytes, let position, let synced):
            Int32(millrace_write_at(descriptor, from, bytes, Int64(position), synced))
        case .read(_, let into, let bytes, let position):
            Int32(millrace_read_at(descriptor, into, bytes, Int64(position)))
        case .sync: answer(fdatasync(descriptor))
        case .syncDirectory: answer(fsync(descriptor))
        case .allocate(_, let position, let bytes):
            millrace_allocate(descriptor, Int64(position), Int64(bytes))
        case .open(_, let name, _):
            answer(openat(descriptor, folder.path(name), flags, OpenFiles.mode))
        case .close: answer(Glibc.close(descriptor))
        case .remove(let name): answer(unlinkat(descriptor, folder.path(name), 0))
        }
    }

    private func answer(_ result: Int32) -> Int32 { result < 0 ? -errno : result }
}

struct StorageAnswer: Sendable {
    var token: UInt64
    var result: Int32
}

/// A few threads that carry out storage operations, for a loop that must not block.
///
/// The loop submits and takes answers; it is woken by an eventfd. Jobs are begun in the order in
/// which they were submitted and may end in any, as submissions to io_uring do. The queue is bounded:
/// `submit` says when it is full, and the loop comes again after an answer.
final class StorageWorkers: Sendable {
    private struct Lane {
        var jobs: [StorageJob?]
        var first = 0
        var count = 0
        var answers: [StorageAnswer] = []
        var isEnding = false
    }

    static let capacity = 256

    private let lane: Mutex<Lane>
    private let waiting: Semaphore
    private let ended: Semaphore
    private let threads: Int
    private let eventDescriptor: Int32

    /// - Parameters:
    ///   - name: of the threads, at most 15 bytes.
    ///   - eventDescriptor: is signalled when there are answers; it outlives this.
    init(name: String, threads: Int, eventDescriptor: Int32) throws(SystemError) {
        var lane = Lane(jobs: Array(repeating: nil, count: Self.capacity))
        lane.answers.reserveCapacity(Self.capacity)
        self.lane = Mutex(lane)
        waiting = Semaphore()
        ended = Semaphore()
        self.threads = threads
        self.eventDescriptor = eventDescriptor
        for index in 0..<threads {
            do {
                try DetachedThread.start(name) { self.work() }
            } catch {
                end(started: index)
                throw error
            }
        }
    }

    // The loop:

    /// - Returns: false when the queue is full.
    func submit(_ job: StorageJob) -> Bool {
        let isTaken = lane.withLock { lane in
            guard lane.count < lane.jobs.count else { return false }
            lane.jobs[(lane.first + lane.count) % lane.jobs.count] = job
            lane.count += 1
            return true
        }
        if isTaken { waiting.signal() }
        return isTaken
    }

    /// Moves what is done to the end of `answers`.
    func takeAnswers(into answers: inout [StorageAnswer]) {
        // The copy keeps the closure from capturing an inout.
        let taken = lane.withLock { lane in
            let taken = lane.answers
            lane.answers.removeAll(keepingCapacity: true)
            return taken
        }
        answers += taken
    }

    /// Waits until all that was submitted is done and the threads are gone.
    func end() { end(started: threads) }

    private func end(started: Int) {
        lane.withLock { $0.isEnding = true }
        for _ in 0..<started { waiting.signal() }
        for _ in 0..<started { ended.wait() }
    }

    // The threads:

    private func work() {
        // The shard that made this thread may be pinned, and spins: its CPU is not for us. Nor is its
        // long slice: a thread with one waits behind everybody's short ones when it wakes up.
        _ = millrace_set_affinity(0, millrace_process_cpus())
        _ = millrace_set_slice(100_000)
        while let job = next() {
            let answer = StorageAnswer(token: job.token, result: job.carryOut())
            let isFirst = lane.withLock { lane in
                lane.answers.append(answer)
                return lane.answers.count == 1
            }
            // Whoever takes the first takes those behind it as well.
            if isFirst { millrace_event_signal(eventDescriptor) }
        }
        ended.signal()
    }

    /// - Returns: `nil` when all is done and no more will come.
    private func next() -> StorageJob? {
        while true {
            waiting.wait()
            let (job, isEnding) = lane.withLock { lane -> (StorageJob?, Bool) in
                guard lane.count > 0 else { return (nil, lane.isEnding) }
                let job = lane.jobs[lane.first]
                lane.jobs[lane.first] = nil
                lane.first = (lane.first + 1) % lane.jobs.count
                lane.count -= 1
                return (job, false)
            }
            if let job { return job }
            if isEnding { return nil }
        }
    }
}

/// A counting semaphore of POSIX (sem_overview(7)).
private final class Semaphore: @unchecked Sendable {
    // All access goes through sem_post and sem_wait, which any thread may call.
    private let semaphore: UnsafeMutablePointer<sem_t>

    init() {
        semaphore = .allocate(capacity: 1)
        sem_init(semaphore, 0, 0)
    }
    deinit {
        sem_destroy(semaphore)
        semaphore.deallocate()
    }
    func signal() { sem_post(semaphore) }
    func wait() { while sem_wait(semaphore) != 0, errno == EINTR {} }
}
