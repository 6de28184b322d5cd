package import BrokerBasics
package import BrokerShard
internal import CLinux
internal import Glibc
package import Logging
internal import ShardRuntime
internal import Synchronization

/// Lets the first few of an event through in each window, and counts the others.
package struct EventLimiter: Sendable {
    package static let linesPerWindow = 5
    package static let windowNanoseconds: UInt64 = .seconds(10)

    private struct Window {
        var began: MonotonicTime
        var lines: Int
        var suppressed: UInt64
    }
    private var windows: [String: Window] = [:]

    package init() {}

    /// - Returns: whether to log this one.
    package mutating func admits(_ event: String, now: MonotonicTime) -> Bool {
        var window = windows[event] ?? Window(began: now, lines: 0, suppressed: 0)
        defer { windows[event] = window }
        if window.lines < Self.linesPerWindow {
            window.lines += 1
            return true
        }
        window.suppressed += 1
        return false
    }

    /// What was held back in windows that are over; those windows begin anew.
    package mutating func takeSuppressed(now: MonotonicTime) -> [(event: String, count: UInt64)] {
        var reports: [(event: String, count: UInt64)] = []
        for (event, window) in windows
        where now.since(window.began) >= Self.windowNanoseconds {
            if window.suppressed > 0 { reports.append((event, window.suppressed)) }
            windows[event] = nil
        }
        return reports.sorted { $0.event < $1.event }
    }

    package var isHolding: Bool { windows.values.contains { $0.suppressed > 0 } }
}

/// Carries a shard's events to the log on a thread of its own: the shard appends to a bounded list
/// and never writes, waits for a slow reader of the log, or formats a line.
package final class EventRelay: Sendable {
    package static let capacity = 1024

    private struct Waiting {
        var events: [ShardEvent] = []
        var dropped: UInt64 = 0
    }
    private let waiting = Mutex(Waiting())
    private let logger: Logger
    private let wake: Int32

    package init(logger: Logger) {
        self.logger = logger
        wake = millrace_event_fd()
        // Without a thread what is appended is logged at the end, by `drain`.
        try? DetachedThread.start("log") { self.run() }
    }

    /// Called on the shard's thread.
    package func append(_ event: ShardEvent) {
        waiting.withLock { waiting in
            if waiting.events.count < Self.capacity {
                waiting.events.append(event)
            } else {
                waiting.dropped += 1
            }
        }
        millrace_event_signal(wake)
    }

    private func run() {
        var limiter = EventLimiter()
        while true {
            var watched = pollfd(fd: wake, events: Int16(POLLIN), revents: 0)
            poll(&watched, 1, limiter.isHolding ? 1000 : -1)
            var count: UInt64 = 0
            _ = read(wake, &count, 8)
            flush(&limiter, now: Clock.monotonic)
        }
    }

    /// For the last lines, when the shard has ended.
    package func drain() {
        var limiter = EventLimiter()
        flush(&limiter, now: Clock.monotonic)
    }

    private func flush(_ limiter: inout EventLimiter, now: MonotonicTime) {
        let taken = waiting.withLock { waiting in
            defer { waiting = Waiting() }
            return waiting
        }
        for (event, count) in limiter.takeSuppressed(now: now) {
            logger.record(
                .warning,
                "suppressed",
                "\(count) more lines of \(event) were held back",
                ["suppressed_event": "\(event)", "suppressed": .stringConvertible(count)]
            )
        }
        for event in taken.events {
            let line = event.line
            guard limiter.admits(line.event, now: now) else { continue }
            logger.record(line.level, line.event, "\(line.message)", line.fields)
        }
        if taken.dropped > 0 {
            logger.record(
                .warning,
                "suppressed",
                "the log was too slow for \(taken.dropped) events",
                ["suppressed_event": "any", "suppressed": .stringConvertible(taken.dropped)]
            )
        }
    }
}

extension ShardEvent {
    /// How the event is said in the log.
    package var line: (level: Logger.Level, event: String, message: String, fields: Logger.Metadata)
    {
        switch self {
        case .storageFailed(let what):
            (.critical, "storage-failed", "confirming has stopped: \(what)", [:])
        case .badFrame(let peer, let what):
            (.warning, "bad-frame", "closed a connection: \(what)", ["peer": .string(peer)])
        case .dataDamaged(let what):
            (.error, "data-damaged", what, [:])
        case .checkpoint(let sequence, let bytes):
            (
                .debug, "checkpoint", "wrote checkpoint \(sequence)",
                ["sequence": .stringConvertible(sequence), "bytes": .stringConvertible(bytes)]
            )
        case .groupChanged(let what):
            (.info, "group-changed", what, [:])
        case .groupSkipped(let what):
            (.warning, "group-skipped", what, [:])
        case .diskLevel(let level, let what):
            (level == .ok ? .notice : .warning, "disk-\(level.name)", what, [:])
        case .spaceAwaited(let what):
            (.error, "disk-full", "waiting for room on the disk: \(what)", [:])
        case .diskSlow(let what):
            (.warning, "disk-slow", what, [:])
        case .diskSteady(let what):
            (.notice, "disk-steady", what, [:])
        case .partitionMove(let what):
            (.notice, "partition-move", what, [:])
        case .spaceFound:
            (.notice, "disk-room", "the disk has room again: what waited is written", [:])
        case .acceptStopped(let code):
            (
                .error, "accept-stopped",
                "no connection can be accepted: \(String(cString: strerror(code))). Those who come wait, "
                    + "and are tried again every 0.1 s",
                ["errno": .stringConvertible(code)]
            )
        case .acceptResumed:
            (.notice, "accept-resumed", "connections are accepted again", [:])
        case .descriptorsAwaited(let what):
            (.error, "descriptors", "waiting for a descriptor: \(what)", [:])
        case .descriptorsFound:
            (.notice, "descriptors-found", "what waited for a descriptor is open", [:])
        case .clockStepped(let what):
            (.warning, "clock-stepped", what, [:])
        }
    }
}
