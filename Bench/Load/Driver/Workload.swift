package import BrokerBasics
internal import CLinux
internal import ShardRuntime
package import WireProtocol

/// `publish` and `e2e`: records of one size, in a closed loop.
package struct Workload {
    package enum Kind: String, Sendable {
        /// Latency from sending a publish to its confirm.
        case publish
        /// Latency from sending a publish to its arrival at a subscriber on another connection.
        case endToEnd = "e2e"
    }

    package var kind: Kind
    package var server: ServerAddress
    package var level: DurabilityLevel
    /// Of a record's payload.
    package var size: Int
    /// Records per frame.
    package var batch = 1
    /// Frames in flight, per connection.
    package var window = 1
    package var connections = 1
    package var queues = 1
    /// Per queue.
    package var partitions = 1
    package var warmupNanoseconds: UInt64 = .seconds(1)
    package var durationNanoseconds: UInt64 = .seconds(10)
    /// How long what is in flight at the end may take to be answered.
    package var drainNanoseconds: UInt64 = .seconds(30)
    package var cpu: Int?
    package var idle = IdleMode.spin
    /// Frames per second, on all connections together; `nil`: as many as the window allows.
    package var framesPerSecond: Double?
    /// Publish to this queue (of several: `keptName`) and keep it; `nil`: queues of its own.
    package var keptQueue: String?

    package static let connectionsMax = 64
    package static let windowMax = 65_536
    package static let sizeMax = 1 << 20

    package init(kind: Kind, server: ServerAddress, level: DurabilityLevel, size: Int) {
        self.kind = kind
        self.server = server
        self.level = level
        self.size = size
    }

    /// What is wrong with the numbers, for a person.
    package var complaint: String? {
        let sizeMin = kind == .endToEnd ? 8 : 0
        if !(sizeMin...Self.sizeMax).contains(size) {
            return "--size must be \(sizeMin) to \(Self.sizeMax) bytes"
        }
        if !(1...BatchBuilder.recordCountMax).contains(batch) {
            return "--batch must be 1 to \(BatchBuilder.recordCountMax) records"
        }
        if !(1...Self.windowMax).contains(window) {
            return "--window must be 1 to \(Self.windowMax) frames"
        }
        if !(1...Self.connectionsMax).contains(connections) {
            return "--connections must be 1 to \(Self.connectionsMax)"
        }
        if !(1...100_000).contains(queues) { return "--queues must be 1 to 100000" }
        if !(1...65_535).contains(partitions) { return "--partitions must be 1 to 65535" }
        if durationNanoseconds == 0 { return "--duration must be above 0" }
        return nil
    }

    package var frameBytes: Int { FrameSupply.frameBytes(size: size, batch: batch) }

    package var title: String {
        var title =
            "\(size) B, \(connections) connection\(connections == 1 ? "" : "s") × \(window)"
            + " in flight"
        if batch > 1 { title += ", batches of \(batch)" }
        if queues > 1 { title += ", \(queues) queues in turn" }
        if partitions > 1 { title += ", \(partitions) partitions in turn" }
        if let framesPerSecond { title += ", \(Int(framesPerSecond * Double(batch))) records/s" }
        return title
    }

    package func run() throws(LoadError) -> LoadReport {
        let longSlice = try OwnCore.take(cpu: cpu, idle: idle)
        let session = try LoadSession(address: server)
        defer { session.removeQueues() }
        return report(try measure(session), longSlice: longSlice)
    }

    /// Everything from the queues to the last confirm; its connections are closed when it returns,
    /// so the queues are deleted without users.
    private func measure(_ session: LoadSession) throws(LoadError) -> RunResult {
        guard frameBytes <= session.frameBytesMax else {
            throw .usage(
                "a frame of \(frameBytes) bytes is above the broker's limit of "
                    + "\(session.frameBytesMax); lower --size or --batch"
            )
        }

        var partitionIDs: [UInt32] = []
        var firstQueue = ""
        for index in 0..<queues {
            if Interrupt.isRaised { throw .interrupted }
            let name =
                keptQueue.map { LoadSession.keptName($0, index, of: queues) }
                ?? LoadSession.queueName(kind.rawValue, index)
            let info =
                keptQueue == nil
                ? try session.createQueue(name, partitions: partitions, level: level)
                : try session.keptQueue(name, partitions: partitions, level: level)
            if index == 0 { firstQueue = name }
            partitionIDs += info.partitions.map(\.id)
        }

        var driver = try Driver(laneMax: connections, meterCount: 1)
        if kind == .endToEnd {
            driver.add(try subscriber(to: firstQueue, frameBytesMax: session.frameBytesMax))
        }
        for index in 0..<connections {
            if Interrupt.isRaised { throw .interrupted }
            let (connection, producers) = try session.openPublisher(partitions: partitionIDs)
            let slots = Lane.slots(
                window: window,
                outOfOrder: kind == .endToEnd || partitionIDs.count > 1
            )
            let targets = zip(partitionIDs, producers).map { partition, producer in
                FrameSupply.Target(
                    partition: partition,
                    producer: producer.producerID,
                    epoch: producer.epoch
                )
            }
            let first = connection.nextCorrelation
            let lane = Lane(
                fd: try connection.takeSocket(),
                firstCorrelation: first,
                level: level.rawValue,
                meter: 0,
                window: window,
                untilDelivered: kind == .endToEnd,
                checksOffsets: connections == 1,
                slots: slots,
                supply: FrameSupply(
                    size: size,
                    batch: batch,
                    slots: slots,
                    targets: targets,
                    stampsPayload: kind == .endToEnd,
                    seed: UInt64(index) + 1
                ),
                inbound: Inbound(frameBytesMax: session.frameBytesMax)
            )
            driver.add(lane, producers: producers.map(\.producerID))
        }

        driver.drainNanoseconds = drainNanoseconds
        driver.idle = idle
        if let framesPerSecond {
            driver.frameInterval = 1e9 * Double(connections) / framesPerSecond
        }
        let result = driver.run(
            .interval(warmup: warmupNanoseconds, duration: durationNanoseconds)
        )
        if result.interrupted { StandardError.print("brokerload: interrupted; cleaning up") }
        return result
    }

    private func subscriber(
        to queue: String,
        frameBytesMax: Int
    ) throws(LoadError) -> Subscriber {
        let connection = try ControlConnection(to: server, name: "brokerload subscriber")
        let ahead = Subscriber.creditAhead(framesInFlight: window * connections, batch: batch)
        let assignment = try connection.ask(
            .subscribe,
            stream: Subscriber.subscription,
            SubscribeRequest(
                queue: queue,
                creditRecords: ahead,
                creditBytes: Subscriber.creditBytes
            ),
            as: Assignment.self,
            "subscribing to \(queue)"
        )
        guard assignment.partitions.count == partitions else {
            throw .protocolBroken(
                operation: "subscribing to \(queue)",
                reason: "\(assignment.partitions.count) partitions assigned of \(partitions)"
            )
        }
        let first = connection.nextCorrelation
        let headBytes = FrameSupply.varintBytes(1 + size) + 1
        return Subscriber(
            fd: try connection.takeSocket(),
            firstCorrelation: first,
            partitions: assignment.partitions.map(\.partition),
            nextOffsets: assignment.partitions.map(\.nextOffset),
            ahead: ahead,
            partBytes: frameBytes - FrameHeader.byteCount,
            stampOffset: BatchHeader.byteCount + headBytes,
            inbound: Inbound(frameBytesMax: frameBytesMax)
        )
    }

    private func report(_ result: RunResult, longSlice: Bool) -> LoadReport {
        let meter = result.meters[0]
        var settings: [(String, JSON)] = [
            ("server", .string(server.description)),
            ("mode", .string(framesPerSecond == nil ? "closed-loop" : "open-loop")),
            ("rate_asked", framesPerSecond.map { .number($0 * Double(batch)) } ?? .null),
            ("size", .integer(size)),
            ("batch", .integer(batch)),
            ("window", .integer(window)),
            ("connections", .integer(connections)),
            ("queues", .integer(queues)),
            ("partitions", .integer(partitions)),
            ("warmup_seconds", .number(Double(warmupNanoseconds) / 1e9)),
            ("duration_seconds", .number(Double(durationNanoseconds) / 1e9)),
            ("frame_bytes", .integer(frameBytes)),
            ("level_asked", .string(level.name)),
            // Every confirm's level is compared; another one is counted as confirm-level.
            (
                "level_confirmed",
                result.failures.counts["confirm-level"] == nil && meter.recordsEver > 0
                    ? .string(level.name) : .null
            ),
            ("records_with_warmup", .integer(Int(meter.recordsEver))),
            ("interrupted", .bool(result.interrupted)),
        ]
        if kind == .endToEnd {
            settings.append(("batches_checksummed", .integer(Int(result.checkedBatches))))
        }
        settings += OwnCore.settings(
            cpu: cpu,
            idle: idle,
            longSlice: longSlice,
            busy: result.busyCycles,
            empty: result.emptyCycles
        )
        return LoadReport(
            command: kind.rawValue,
            workload: title,
            durability: level.name,
            records: meter.records,
            seconds: Double(result.nanoseconds) / 1e9,
            bytes: meter.records * UInt64(size),
            latency: LatencySummary(meter.histogram),
            failures: result.failures,
            settings: settings
        )
    }
}

/// What the driver's thread does to its core, and what it says of it.
enum OwnCore {
    static func take(cpu: Int?, idle: IdleMode = .spin) throws(LoadError) -> Bool {
        if let cpu {
            do { try CoreControl.pin(cpu: cpu) } catch { throw .system(error) }
        }
        // Who sleeps is to run at once when something comes: a long slice would wait for its turn.
        return idle == .spin && CoreControl.setLongSlice()
    }

    static func settings(
        cpu: Int?,
        idle: IdleMode = .spin,
        longSlice: Bool,
        busy: UInt64,
        empty: UInt64
    ) -> [(String, JSON)] {
        [
            (
                "driver",
                .string(
                    idle == .spin
                        ? "one spinning thread, io_uring, sched_yield in empty cycles"
                        : "one thread, io_uring, asleep while nothing comes")
            ),
            ("cpu", .optional(cpu)),
            ("long_slice", .bool(longSlice)),
            ("busy_cycles", .integer(Int(busy))),
            ("empty_cycles", .integer(Int(empty))),
        ]
    }
}
