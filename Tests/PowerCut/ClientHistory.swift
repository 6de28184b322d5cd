internal import WireProtocol

// What the clients of a recording did and were told, with its moments. A moment is the number of
// entries that the disk's log had. That of an answer is read after it came, so a cut at that moment
// or later has to keep the promise; that of a request is read before it went, so a cut before it
// cannot know of the request.

/// One batch of one producer.
struct SentBatch: Sendable, Codable {
    var partition: Int
    /// The number of its first record, among all of its producer's.
    var first: UInt64
    var count: Int
    /// Of each of its records' values.
    var bytes: Int
    var sentAt: Int
    var confirmedAt: Int?
    /// `nil` also where the broker said "stored before, I no longer know where".
    var offset: UInt64?

    func records(_ producer: String) -> [Record] {
        (0..<UInt64(count)).map {
            RecordSource.record(producer: producer, number: first + $0, bytes: bytes)
        }
    }
}

struct ProducerHistory: Sendable, Codable {
    var name: String
    var id: UInt64
    var epoch: UInt16
    var openedAt: Int
    /// In the order of sending.
    var batches: [SentBatch] = []
}

/// What a reader of a queue was given, in order.
struct Seen: Sendable, Codable {
    enum What: Sendable, Codable {
        case record(offset: UInt64, epoch: UInt32, payload: UInt64)
        case lost(from: UInt64, to: UInt64, epoch: UInt32)
    }
    var reader: String
    var partition: Int
    var what: What
    var seenAt: Int
    /// By a broker that had recovered from a cut.
    var isRecovered = false
}

/// One group's acks of one partition, each an offset and its moment.
struct AckHistory: Sendable, Codable {
    struct Step: Sendable, Codable {
        var offset: UInt64
        var at: Int
    }
    var group: String
    var partition: Int
    var asked: [Step] = []
    var confirmed: [Step] = []
}

struct QueueHistory: Sendable, Codable {
    var name: String
    var level: UInt8
    var partitionIDs: [UInt32] = []
    var createAskedAt: Int
    var createdAt: Int?
    var deleteAskedAt: Int?
    var deletedAt: Int?
    var producers: [ProducerHistory] = []
    var seen: [Seen] = []
    var acks: [AckHistory] = []

    var isSynced: Bool { level == DurabilityLevel.synced.rawValue }

    /// The same as if it had ended at `place`: what was asked before and told before.
    func before(_ place: Int) -> QueueHistory? {
        guard createAskedAt <= place else { return nil }
        var part = self
        func known(_ moment: Int?) -> Int? { moment.flatMap { $0 <= place ? $0 : nil } }
        part.createdAt = known(createdAt)
        part.deleteAskedAt = known(deleteAskedAt)
        part.deletedAt = known(deletedAt)
        part.producers = producers.filter { $0.openedAt <= place }.map { producer in
            var producer = producer
            producer.batches = producer.batches.filter { $0.sentAt <= place }.map { batch in
                var batch = batch
                if known(batch.confirmedAt) == nil {
                    batch.confirmedAt = nil
                    batch.offset = nil
                }
                return batch
            }
            return producer
        }
        part.seen = seen.filter { $0.seenAt <= place }
        part.acks = acks.map { acks in
            var acks = acks
            acks.asked = acks.asked.filter { $0.at <= place }
            acks.confirmed = acks.confirmed.filter { $0.at <= place }
            return acks
        }
        return part
    }

    /// Every moment at which something was promised.
    var promises: [Int] {
        [createdAt, deletedAt].compactMap { $0 }
            + producers.flatMap { $0.batches.compactMap(\.confirmedAt) }
            + acks.flatMap { $0.confirmed.map(\.at) } + seen.map(\.seenAt)
    }
}

/// What the clients of all queues did and were told.
struct ClientHistory: Sendable, Codable {
    var queues: [QueueHistory] = []

    func before(_ place: Int) -> ClientHistory {
        ClientHistory(queues: queues.compactMap { $0.before(place) })
    }

    var confirmedRecords: Int {
        var count = 0
        for queue in queues {
            for producer in queue.producers {
                for batch in producer.batches where batch.confirmedAt != nil {
                    count += batch.count
                }
            }
        }
        return count
    }
    var confirmedAcks: Int {
        queues.reduce(0) { $0 + $1.acks.reduce(0) { $0 + $1.confirmed.count } }
    }
}
