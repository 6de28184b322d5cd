internal import BlockingClient
internal import BrokerBasics
internal import Glibc
internal import ReplayHarness
internal import WireProtocol

/// Publishes to one queue, and notes what it sent and was told. Nothing waits but for a connection.
///
/// It owns its producer's number and epoch, unlike `PublishStream`, so that everything can be sent
/// again to the broker that recovered from a cut.
final class CutProducer {
    private(set) var history: ProducerHistory
    private let place: BrokerPlace
    private let moment: () -> Int
    private let level: UInt8
    private var connection: Connection?
    private var ledger: PublishLedger
    private var nextNumber: UInt64 = 0
    private(set) var duplicates = 0
    /// Lost or refused connections since the last confirm.
    private var failures = 0
    private static let failuresMax = 5_000
    private static let pauseMicroseconds: UInt32 = 2_000

    /// Opens a producer.
    init(
        _ name: String,
        queue: QueueInfo,
        at place: BrokerPlace,
        moment: @escaping () -> Int
    ) throws {
        let connection = try place.connect(clientName: name)
        let asked = moment()
        let opened = try connection.request(
            .producerOpen,
            ProducerOpenRequest(name: ""),
            reply: ProducerOpenReply.self
        )
        history = ProducerHistory(
            name: name,
            id: opened.producerID,
            epoch: opened.epoch,
            openedAt: asked
        )
        self.connection = connection
        self.place = place
        self.moment = moment
        level = queue.level
        ledger = Self.ledger(queue, history)
    }

    /// Sends again, under the same numbers, all that `earlier` sent.
    init(
        resending earlier: ProducerHistory,
        queue: QueueInfo,
        at place: BrokerPlace
    ) throws {
        history = earlier
        self.place = place
        moment = { 0 }
        level = queue.level
        connection = try place.connect(clientName: earlier.name)
        ledger = Self.ledger(queue, earlier)
        for number in history.batches.indices {
            history.batches[number].confirmedAt = nil
            history.batches[number].offset = nil
            try add(history.batches[number])
        }
    }

    private static func ledger(_ queue: QueueInfo, _ producer: ProducerHistory) -> PublishLedger {
        PublishLedger(
            partitions: queue.partitions.sorted { $0.index < $1.index }.map(\.id),
            producer: Producer(id: producer.id, epoch: producer.epoch),
            policy: .init(renumberAfterLoss: queue.level < DurabilityLevel.synced.rawValue)
        )
    }

    private func add(_ batch: SentBatch) throws {
        var builder = BatchBuilder()
        for record in batch.records(history.name) { _ = builder.append(record) }
        _ = ledger.add(builder, to: batch.partition)
    }

    var unconfirmedBatches: Int { ledger.unconfirmedBatches }

    /// - Returns: the batch's number, from 0.
    @discardableResult
    func publish(to partition: Int, count: Int, bytes: Int) throws -> Int {
        let batch = SentBatch(
            partition: partition,
            first: nextNumber,
            count: count,
            bytes: bytes,
            sentAt: moment()
        )
        nextNumber += UInt64(count)
        history.batches.append(batch)
        try add(batch)
        return history.batches.count - 1
    }

    /// The connection is gone, with its broker.
    func disconnect() { connection = nil }

    /// Sends what may be sent, and takes what has come.
    func pump(timeoutMilliseconds: Int = 0) throws {
        do throws(ClientError) {
            let connection = try connected()
            try renumber(on: connection)
            let now = ClientClock.monotonic()
            while connection.unsentBytes < 1 << 20, let frame = ledger.nextFrame(now: now) {
                try connection.enqueue(frame)
            }
            try connection.pump(timeoutMilliseconds: timeoutMilliseconds)
            while let frame = try connection.receive(timeoutMilliseconds: 0) { try take(frame) }
        } catch {
            guard error.mayReconnect else { throw error }
            connection = nil
            failures += 1
            guard failures < Self.failuresMax else { throw error }
            usleep(Self.pauseMicroseconds)
        }
    }

    private func connected() throws(ClientError) -> Connection {
        if let connection { return connection }
        let fresh = try place.connect(clientName: history.name)
        ledger.reconnected()
        connection = fresh
        return fresh
    }

    /// A `memory` queue may have lost what it confirmed, and its numbers with it.
    private func renumber(on connection: Connection) throws(ClientError) {
        for index in ledger.partitionsToRenumber {
            let opened = try connection.request(
                .producerOpen,
                ProducerOpenRequest(name: ""),
                reply: ProducerOpenReply.self
            )
            ledger.renumber(index, as: Producer(id: opened.producerID, epoch: opened.epoch))
        }
    }

    private func take(_ frame: Frame) throws(ClientError) {
        if frame.isRefusal {
            let refused = frame.refused
            let answer = ledger.refuse(
                frame.header.correlation,
                refused,
                now: ClientClock.monotonic(),
                backoffNanoseconds: .milliseconds(5)
            )
            guard answer == .resend || answer == .renumber else { throw .refused(refused) }
            return
        }
        guard frame.opcode == .confirm else { return }
        for confirm in try ledger.confirm(frame.body) {
            let number = Int(confirm.number)
            guard confirm.level >= level else {
                throw .protocolError(
                    "confirmed at level \(confirm.level), which is below the queue's")
            }
            failures = 0
            history.batches[number].confirmedAt = moment()
            history.batches[number].offset = confirm.offset
            if confirm.isDuplicate { duplicates += 1 }
        }
    }
}
