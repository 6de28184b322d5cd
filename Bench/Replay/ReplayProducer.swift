package import BlockingClient
internal import BrokerBasics
internal import Synchronization
internal import WireProtocol

/// Publishes a stream to a queue from a thread of its own, through every crash of the broker, and
/// keeps the history.
package final class ReplayProducer: Sendable {
    package struct Settings: Sendable {
        package var queue: String
        package var stream: ReplayStream
        package var options = PublishStream.Options()
        /// At this pace, except while it bursts.
        package var recordsPerSecond = 10_000
        /// Batches have between one and so many records.
        package var batchRecordsMax = 16
        package var seed: UInt64 = 1

        package init(queue: String, stream: ReplayStream) {
            self.queue = queue
            self.stream = stream
        }
    }

    /// What another thread may ask for at any time.
    package struct Progress: Sendable {
        package var sent = 0
        package var confirmed = 0
        package var inFlight = 0
        /// Confirms that said "stored earlier".
        package var duplicates = 0
        /// For each connection that ended: the records that had no answer at that moment.
        package var inFlightAtBreak: [Int] = []
        /// When the first confirm came after each of those.
        package var confirmedAgain: [ContinuousClock.Instant] = []
        package var failure: String?
    }

    private enum Order: Int, Sendable {
        case pace
        case burst
        case finish
        case abort
    }

    private let shared = Mutex<Progress>(Progress())
    private let order = Mutex<Order>(.pace)
    private let place: BrokerPlace
    private let settings: Settings
    private let worker = Mutex<Worker<SentHistory>?>(nil)

    package init(_ settings: Settings, to place: BrokerPlace) {
        self.settings = settings
        self.place = place
    }

    package func start() {
        worker.withLock { worker in
            do throws(WorkerFailure) {
                worker = try Worker { [self] in run() }
            } catch {
                let text = "publishing to \(settings.queue): \(error)"
                shared.withLock { $0.failure = text }
            }
        }
    }

    package var progress: Progress { shared.withLock { $0 } }

    /// From now on as fast as the window allows, so that something is always in flight.
    package func burst() { give(.burst) }
    package func pace() { give(.pace) }
    /// Sends nothing new; the thread ends when all is confirmed.
    package func finish() { give(.finish) }
    /// The thread ends as soon as it can.
    package func abort() { give(.abort) }

    private func give(_ new: Order) {
        order.withLock { if $0.rawValue < Order.finish.rawValue || new == .abort { $0 = new } }
    }

    /// Waits for the thread's end.
    package func join() -> SentHistory {
        let worker = worker.withLock { $0 }
        return worker?.join() ?? SentHistory(stream: settings.stream)
    }

    // The thread:

    private func run() -> SentHistory {
        var history = SentHistory(stream: settings.stream)
        do throws(ClientError) {
            try publish(&history)
        } catch {
            let text = "\(settings.queue): \(error)"
            shared.withLock { $0.failure = text }
        }
        return history
    }

    private func publish(_ history: inout SentHistory) throws(ClientError) {
        let (place, name) = (place, settings.options.clientName)
        let stream = try PublishStream(queue: settings.queue, options: settings.options) {
            (timeout) throws(ClientError) in
            try place.connect(clientName: name, timeoutMilliseconds: timeout)
        }
        let level = stream.queue.level
        var random = SeededRandom(seed: settings.seed)
        var open = [(builder: BatchBuilder, numbers: [UInt64])](
            repeating: (BatchBuilder(), []),
            count: stream.partitionCount
        )
        /// The record numbers in each batch that is not confirmed.
        var batches: [UInt64: [UInt64]] = [:]
        var duplicates = 0
        var awaitsConfirm = false
        /// What is paced: how many records were due when the pace last changed, and since when.
        var due = 0.0
        var lastTime = ContinuousClock().now

        func flush(_ index: Int) throws(ClientError) {
            guard open[index].builder.recordCount > 0 else { return }
            let number = try stream.publish(open[index].builder, to: index)
            batches[number] = open[index].numbers
            open[index] = (BatchBuilder(), [])
        }

        while true {
            let order = order.withLock { $0 }
            if order == .abort { return }
            let now = ContinuousClock().now
            due += Double(settings.recordsPerSecond) * ((now - lastTime) / .seconds(1))
            lastTime = now
            if order != .finish {
                while stream.hasRoom, order == .burst || due >= 1 {
                    due -= 1
                    let number = history.send()
                    let index = settings.stream.partition(of: number)
                    let isTaken = open[index].builder.append(settings.stream.record(number))
                    invariant(isTaken, "a batch of more than \(settings.batchRecordsMax) records")
                    open[index].numbers.append(number)
                    let full = 1 + random.below(settings.batchRecordsMax)
                    if open[index].numbers.count >= full { try flush(index) }
                }
            }
            // What could not be sent because the window was used up is not made up for.
            due = min(max(due, 0), Double(settings.recordsPerSecond) / 10)
            for index in open.indices { try flush(index) }
            if order == .finish, stream.isIdle { break }

            let wasConnected = stream.isConnected
            try stream.pump(timeoutMilliseconds: stream.hasRoom ? 1 : 100)
            let confirms = stream.takeConfirms()
            for confirm in confirms {
                if confirm.isDuplicate { duplicates += confirm.count }
                if confirm.level != level {
                    history.fault("a confirm of level \(confirm.level), the queue's is \(level)")
                }
                let numbers = batches.removeValue(forKey: confirm.number) ?? []
                if numbers.count != confirm.count {
                    history.fault(
                        "a confirm of \(confirm.count) records, \(numbers.count) were sent"
                    )
                }
                for (position, number) in numbers.enumerated() {
                    history.confirm(number, offset: confirm.offset.map { $0 + UInt64(position) })
                }
            }
            let hasBroken = wasConnected && !stream.isConnected
            let (sent, confirmed) = (history.sentCount, history.confirmedCount)
            let (inFlight, repeated) = (stream.unconfirmedRecords, duplicates)
            let isBack = awaitsConfirm && stream.isConnected && !confirms.isEmpty
            if hasBroken { awaitsConfirm = true }
            if isBack { awaitsConfirm = false }
            shared.withLock { progress in
                progress.sent = sent
                progress.confirmed = confirmed
                progress.inFlight = inFlight
                progress.duplicates = repeated
                if hasBroken { progress.inFlightAtBreak.append(inFlight) }
                if isBack { progress.confirmedAgain.append(ContinuousClock().now) }
            }
        }
        let (sent, confirmed) = (history.sentCount, history.confirmedCount)
        shared.withLock { progress in
            progress.sent = sent
            progress.confirmed = confirmed
            progress.inFlight = 0
        }
    }
}
