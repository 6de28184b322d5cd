package import BrokerBasics
internal import Glibc
package import WireProtocol

/// Publishes batches to one queue, many in flight, each stored once however often it is sent.
///
/// Nothing blocks but `pump`: `publish` queues, `pump` sends, receives and, when the connection is
/// lost, makes another one and sends again what is unconfirmed, with the same sequences. A refusal
/// that a retry can mend is retried; any other ends the stream with its status. Retrying goes on
/// for `retrySeconds` without a confirm, then the last error is thrown.
///
/// ```
/// let stream = try PublishStream(to: .standard, queue: "orders")
/// while stream.hasRoom == false { try stream.pump(timeoutMilliseconds: 1_000) }
/// try stream.publish(batch, to: 0)
/// for confirm in try stream.finish() { … }
/// ```
package final class PublishStream {
    package struct Options: Sendable {
        package var clientName = "millrace-client"
        /// A lasting producer's name: opening it fences whoever still publishes under it. Empty: a
        /// producer of this stream's own.
        package var producerName = ""
        /// How long a publish may wait at the server before its work begins; 0: for ever.
        package var deadlineMicroseconds: UInt32 = 0
        /// Be content with a confirm at this level, lower than the queue's; the record goes its way as
        /// ever. `nil`: the queue's level.
        package var confirmLevel: DurabilityLevel?
        /// Batches in flight.
        package var window = 256
        package var unconfirmedBytesMax = 16 << 20
        /// When the server does not know the producer any more: publish what is unconfirmed under a
        /// new one, which may store it twice, instead of ending with `producer-unknown`.
        package var resendWhenUnknown = false
        /// How long to retry without progress; 0: never.
        package var retrySeconds = 30
        /// The first wait before a retry; it doubles up to a second.
        package var backoffMilliseconds = 20
        /// How long a connected server may leave batches unanswered.
        package var answerSeconds = 30
        package init() {}
    }

    /// Makes a connection within the milliseconds given.
    package typealias Connector = (Int) throws(ClientError) -> Connection

    package let queue: QueueInfo
    private let options: Options
    private let connector: Connector
    private let serverID: UInt64
    private var connection: Connection?
    private var ledger: PublishLedger
    private var confirms: [Confirm] = []
    /// Since when nothing succeeds, and the last reason.
    private var trouble: (since: MonotonicTime, error: ClientError)?
    private var lastAnswer: MonotonicTime
    private var backoffMilliseconds: Int
    package private(set) var reconnects = 0

    package convenience init(
        to address: ServerAddress,
        queue: String,
        options: Options = .init()
    ) throws(ClientError) {
        try self.init(queue: queue, options: options) { (timeout) throws(ClientError) in
            try Connection(
                to: address,
                clientName: options.clientName,
                timeoutMilliseconds: timeout
            )
        }
    }

    /// Connects, describes the queue and opens a producer.
    package init(
        queue name: String,
        options: Options = .init(),
        connector: @escaping Connector
    ) throws(ClientError) {
        self.options = options
        self.connector = connector
        let connection = try connector(Connection.timeoutMilliseconds)
        queue = try connection.request(
            .queueDescribe,
            QueueNameRequest(name: name),
            reply: QueueInfo.self
        )
        guard !queue.partitions.isEmpty else {
            throw .protocolError("the server describes queue \(name) without partitions")
        }
        serverID = connection.hello.serverID
        // A crash may take records that were confirmed below `synced`, and their sequences with them.
        // Those confirmed at `synced` it may not, so there a gap is an error to be seen.
        let level = min(options.confirmLevel?.rawValue ?? .max, queue.level)
        let policy = PublishLedger.Policy(
            renumberAfterLoss: level < DurabilityLevel.synced.rawValue,
            resendWhenUnknown: options.resendWhenUnknown
        )
        ledger = PublishLedger(
            partitions: queue.partitions.sorted { $0.index < $1.index }.map(\.id),
            producer: try Self.openProducer(on: connection, name: options.producerName),
            policy: policy,
            deadlineMicroseconds: options.deadlineMicroseconds,
            confirmLevel: options.confirmLevel
        )
        self.connection = connection
        lastAnswer = ClientClock.monotonic()
        backoffMilliseconds = min(max(1, options.backoffMilliseconds), 1_000)
    }

    private static func openProducer(
        on connection: Connection,
        name: String
    ) throws(ClientError) -> Producer {
        let reply = try connection.request(
            .producerOpen,
            ProducerOpenRequest(name: name),
            reply: ProducerOpenReply.self
        )
        return Producer(id: reply.producerID, epoch: reply.epoch)
    }

    package var partitionCount: Int { ledger.partitionCount }
    package var unconfirmedRecords: Int { ledger.unconfirmedRecords }
    package var isIdle: Bool { ledger.unconfirmedBatches == 0 }
    /// False from the loss of a connection until the next one is made.
    package var isConnected: Bool { connection != nil }

    /// False while the window is used up. Publishing regardless is allowed, and bounded by the
    /// caller alone.
    package var hasRoom: Bool {
        ledger.unconfirmedBatches < options.window
            && ledger.unconfirmedBytes < options.unconfirmedBytesMax
    }

    /// The largest batch that travels both ways: a delivery adds the server's stamp.
    package var batchBytesMax: Int {
        let frameBytesMax = min(
            connection?.hello.frameBytesMax ?? FrameHeader.defaultFrameBytesMax,
            FrameHeader.defaultFrameBytesMax
        )
        return Int(frameBytesMax) - FrameHeader.byteCount - StoredBatch.stampBytes
    }

    /// Queues a batch for the partition with this index; `pump` sends it.
    ///
    /// - Returns: the batch's number, which its confirm repeats: 0, 1, 2…
    @discardableResult
    package func publish(_ batch: BatchBuilder, to index: Int) throws(ClientError) -> UInt64 {
        guard (0..<partitionCount).contains(index), batch.recordCount > 0,
            batch.recordCount <= BatchBuilder.recordCountMax
        else {
            throw .protocolError(
                "a batch of \(batch.recordCount) records for partition \(index) of "
                    + "\(partitionCount)"
            )
        }
        guard batch.byteCount <= batchBytesMax else {
            throw .protocolError(
                "a batch of \(batch.byteCount) bytes is over the limit of \(batchBytesMax)"
            )
        }
        if isIdle { lastAnswer = ClientClock.monotonic() }
        return ledger.add(batch, to: index)
    }

    /// Drops the connection; the next batch, or what is unconfirmed, makes another one.
    package func disconnect() { connection = nil }

    /// What was confirmed since the last call, in the order of arrival.
    package func takeConfirms() -> [Confirm] {
        defer { confirms.removeAll(keepingCapacity: true) }
        return confirms
    }

    /// Pumps until everything is confirmed.
    package func finish() throws(ClientError) -> [Confirm] {
        while !isIdle { try pump(timeoutMilliseconds: 1_000) }
        return takeConfirms()
    }

    /// One step: sends what may be sent, waits for something to happen, and handles it.
    ///
    /// - Parameter input: another descriptor to wait for; −1 for none.
    /// - Returns: true when `input` can be read without waiting.
    @discardableResult
    package func pump(
        timeoutMilliseconds: Int,
        alsoReadable input: Int32 = -1
    ) throws(ClientError) -> Bool {
        do throws(ClientError) {
            return try step(timeoutMilliseconds: timeoutMilliseconds, alsoReadable: input)
        } catch {
            // Answers that arrived before the end have been taken; the rest is sent again.
            connection = nil
            guard error.mayReconnect, options.retrySeconds > 0 else { throw error }
            // An idle stream needs no connection; the next batch makes one.
            if !isIdle { try note(error, sleeping: true) }
            return false
        }
    }

    private func step(
        timeoutMilliseconds: Int,
        alsoReadable input: Int32
    ) throws(ClientError) -> Bool {
        guard let connection = try connected() else {
            // Nothing to send: whoever publishes next makes the connection.
            var waiting = pollfd(fd: input, events: Int16(POLLIN), revents: 0)
            return poll(&waiting, 1, Int32(clamping: timeoutMilliseconds)) > 0
        }
        try renumber(on: connection)
        let now = ClientClock.monotonic()
        while connection.unsentBytes < 1 << 20, let frame = ledger.nextFrame(now: now) {
            try connection.enqueue(frame)
        }
        var wait = timeoutMilliseconds
        if let retry = ledger.retryTime {
            let milliseconds = Int((retry.since(now) + 999_999) / 1_000_000)
            wait = wait < 0 ? milliseconds : min(wait, milliseconds)
        }
        if !isIdle { wait = wait < 0 ? 1_000 : min(wait, 1_000) }
        let isReadable = try connection.pump(timeoutMilliseconds: wait, alsoReadable: input)
        try receive(on: connection)
        return isReadable
    }

    /// The connection, made anew when it was lost and something is unconfirmed.
    private func connected() throws(ClientError) -> Connection? {
        if let connection { return connection }
        guard !isIdle else { return nil }
        let fresh = try connector(2_000)
        guard fresh.hello.serverID == serverID else {
            // Its records and its producers are others: the same sequences mean nothing there.
            throw .protocolError(
                "another server answers at \(fresh.address): it has id "
                    + "\(fresh.hello.serverID), not \(serverID)"
            )
        }
        ledger.reconnected()
        lastAnswer = ClientClock.monotonic()
        connection = fresh
        reconnects += 1
        return fresh
    }

    private func renumber(on connection: Connection) throws(ClientError) {
        let waiting = ledger.partitionsToRenumber
        guard !waiting.isEmpty else { return }
        // Without the name: its next epoch would fence the partitions that are not renumbered.
        let producer = try Self.openProducer(on: connection, name: "")
        for index in waiting { ledger.renumber(index, as: producer) }
    }

    private func receive(on connection: Connection) throws(ClientError) {
        let isOurs = { (frame: Frame) in
            frame.opcode == .confirm
                || (frame.header.correlation & PublishLedger.correlationMark != 0
                    && frame.isRefusal)
        }
        while let frame = try connection.receive(timeoutMilliseconds: 0, where: isOurs) {
            lastAnswer = ClientClock.monotonic()
            if frame.isRefusal {
                try refuse(frame)
            } else {
                confirms += try ledger.confirm(frame.body)
                trouble = nil
                backoffMilliseconds = min(max(1, options.backoffMilliseconds), 1_000)
            }
        }
        let answerBy = lastAnswer + .seconds(UInt64(max(1, options.answerSeconds)))
        guard isIdle || answerBy > ClientClock.monotonic() else {
            throw .timeout(
                "no answer from \(connection.address) in \(options.answerSeconds) s, "
                    + "\(unconfirmedRecords) records are unconfirmed"
            )
        }
    }

    private func refuse(_ frame: Frame) throws(ClientError) {
        let refused = frame.refused
        let outcome = ledger.refuse(
            frame.header.correlation,
            refused,
            now: ClientClock.monotonic(),
            backoffNanoseconds: .milliseconds(UInt64(backoffMilliseconds))
        )
        switch outcome {
        case .resend, .renumber:
            guard options.retrySeconds > 0 else { throw .refused(refused) }
            try note(.refused(refused), sleeping: false)
        case .fatal: throw .refused(refused)
        case nil:
            throw .protocolError("a refusal, \(refused.name), matches nothing that was sent")
        }
    }

    /// Counts a failed attempt, waits before the next, and gives up when the time is over.
    private func note(_ error: ClientError, sleeping: Bool) throws(ClientError) {
        let now = ClientClock.monotonic()
        let since = trouble?.since ?? now
        trouble = (since, error)
        guard since + .seconds(UInt64(max(0, options.retrySeconds))) > now else { throw error }
        if sleeping { usleep(UInt32(backoffMilliseconds) * 1_000) }
        backoffMilliseconds = min(backoffMilliseconds * 2, 1_000)
    }
}
