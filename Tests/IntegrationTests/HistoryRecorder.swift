import BlockingClient
import ChildProcess
import Glibc
import LogChecker
import ReplayHarness
import Synchronization
import WireProtocol

/// Writes what the clients of one queue did and saw to a file that `LogChecker` reads. Any thread
/// may use it.
final class HistoryRecorder: Sendable {
    private struct State: ~Copyable {
        var text = ""
        /// By reader.
        var orders: [String: UInt64] = [:]
    }
    private static let bufferBytes = 1 << 20

    let path: String
    private let level: LogEvent.Level
    /// Of each partition id.
    private let indexes: [UInt32: UInt64]
    private let descriptor: Int32
    private let state = Mutex(State())

    init(_ queue: QueueInfo, path: String) throws {
        self.path = path
        level =
            DurabilityLevel(rawValue: queue.level).flatMap { LogEvent.Level(rawValue: $0.name) }
            ?? .synced
        indexes = Dictionary(
            uniqueKeysWithValues: queue.partitions.map { ($0.id, UInt64($0.index)) }
        )
        descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else {
            throw ChildFailure("\(path): \(String(cString: strerror(errno)))")
        }
    }

    deinit { close(descriptor) }

    private func write(_ event: LogEvent, _ state: inout State) {
        state.text += event.line
        state.text += "\n"
        if state.text.utf8.count >= Self.bufferBytes { flush(&state) }
    }

    /// What the disk did not take is missing from the history, which the checker will say.
    private func flush(_ state: inout State) {
        var bytes = Array(state.text.utf8)[...]
        while !bytes.isEmpty {
            let count = bytes.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { break }
            bytes = bytes.dropFirst(count)
        }
        state.text = ""
    }

    func flush() { state.withLock { flush(&$0) } }

    func crash() { state.withLock { write(.crash, &$0) } }

    /// The reader asks for every partition from where it begins.
    func began(_ reader: String, at offsets: [UInt64]) {
        state.withLock { state in
            for (index, offset) in offsets.enumerated() {
                write(.began(reader: reader, partition: UInt64(index), offset: offset), &state)
            }
        }
    }

    func end(_ reader: String, at offsets: [UInt64]) {
        state.withLock { state in
            for (index, offset) in offsets.enumerated() {
                write(.end(reader: reader, partition: UInt64(index), offset: offset), &state)
            }
        }
    }

    func got(_ event: SubscriptionEvent, _ reader: String) {
        state.withLock { state in
            switch event {
            case .records(let batch):
                for entry in batch.entries {
                    write(
                        .delivered(
                            .init(
                                reader: reader,
                                order: order(of: reader, &state),
                                partition: indexes[batch.partition] ?? .max,
                                offset: entry.offset,
                                epoch: UInt64(batch.epoch),
                                payload: Self.hash(entry.record)
                            )
                        ),
                        &state
                    )
                }
            case .lost(let range):
                write(
                    .lost(
                        .init(
                            reader: reader,
                            order: order(of: reader, &state),
                            partition: indexes[range.partition] ?? .max,
                            offsets: range.offsets,
                            epoch: UInt64(range.epoch)
                        )
                    ),
                    &state
                )
            case .assigned, .acked, .ackRefused, .ended, .skipped: break
            }
        }
    }

    private func order(of reader: String, _ state: inout State) -> UInt64 {
        defer { state.orders[reader, default: 0] += 1 }
        return state.orders[reader, default: 0]
    }

    /// What a producer sent and was told.
    ///
    /// - Parameter ends: by partition: what was confirmed from there on is left open; `nil`: nothing.
    func published(_ history: SentHistory, confirmedBelow ends: [UInt64]? = nil) {
        state.withLock { state in
            let producer = "\(history.stream.producer)"
            for number in 0..<UInt64(history.sentCount) {
                let partition = UInt64(history.stream.partition(of: number))
                write(
                    .published(
                        .init(
                            producer: producer,
                            sequence: number,
                            partition: partition,
                            payload: Self.hash(history.stream.record(number)),
                            level: level
                        )
                    ),
                    &state
                )
                let offset: UInt64?
                switch history.outcome(number) {
                case .unconfirmed: continue
                case .confirmed(let place): offset = place
                case .confirmedSomewhere: offset = nil
                }
                if let ends, (offset ?? .max) >= ends[Int(partition)] { continue }
                write(
                    .confirmed(
                        .init(
                            producer: producer,
                            sequence: number,
                            partition: partition,
                            offset: offset,
                            level: level
                        )
                    ),
                    &state
                )
            }
        }
    }

    private static func hash(_ record: Record) -> UInt64 {
        var hash = RecordHash()
        hash.add(record.value)
        hash.add(record.key)
        hash.add(record.trace?.bytes)
        hash.add(record.timestamp)
        for header in record.headers {
            hash.add(Array(header.name.utf8))
            hash.add(header.value)
        }
        return hash.value
    }
}
