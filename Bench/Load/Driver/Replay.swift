package import BrokerBasics
package import WireProtocol

/// Publishes recordings, each to its own queue over its own connection, as fast as the window allows.
///
/// All frames are made before the first is sent.
package struct Replay {
    package struct Source: Sendable {
        package var path: String
        package var format: Recording.Format
        /// `nil`: a queue of the run's own, deleted at its end.
        package var queue: String?
        package var level: DurabilityLevel
        package init(
            path: String,
            format: Recording.Format,
            queue: String?,
            level: DurabilityLevel
        ) {
            self.path = path
            self.format = format
            self.queue = queue
            self.level = level
        }
    }

    package var server: ServerAddress
    package var sources: [Source]
    package var partitions = 1
    package var batch = 1
    package var window = 1000
    package var cpu: Int?

    package init(server: ServerAddress, sources: [Source]) {
        self.server = server
        self.sources = sources
    }

    package func run() throws(LoadError) -> [LoadReport] {
        let longSlice = try OwnCore.take(cpu: cpu)
        var recordings: [Recording] = []
        for source in sources {
            recordings.append(try Recording(path: source.path, format: source.format))
        }
        let session = try LoadSession(address: server)
        defer { session.removeQueues() }
        return try measure(session, recordings, longSlice: longSlice)
    }

    private func measure(
        _ session: LoadSession,
        _ recordings: [Recording],
        longSlice: Bool
    ) throws(LoadError) -> [LoadReport] {
        var driver = try Driver(laneMax: sources.count, meterCount: sources.count)
        var names: [String] = []
        for (index, source) in sources.enumerated() {
            let name = source.queue ?? LoadSession.queueName("replay", index)
            let info =
                source.queue == nil
                ? try session.createQueue(name, partitions: partitions, level: source.level)
                : try session.keptQueue(name, partitions: partitions, level: source.level)
            guard info.level == source.level.rawValue else {
                throw .usage("queue \(name) is not at \(source.level.name)")
            }
            names.append(name)
            let ids = info.partitions.sorted { $0.index < $1.index }.map(\.id)
            let (connection, producers) = try session.openPublisher(partitions: ids)
            let targets = zip(ids, producers).map { partition, producer in
                FrameSupply.Target(
                    partition: partition,
                    producer: producer.producerID,
                    epoch: producer.epoch
                )
            }
            let first = connection.nextCorrelation
            let frames = recordings[index].frames(
                targets: targets,
                firstCorrelation: first,
                batch: batch
            )
            if let longest = zip(frames.starts, frames.starts.dropFirst()).map({ $1 - $0 }).max(),
                longest > session.frameBytesMax
            {
                throw .usage(
                    "\(source.path): a frame of \(longest) bytes is above the broker's limit of "
                        + "\(session.frameBytesMax); lower --batch"
                )
            }
            let lane = Lane(
                fd: try connection.takeSocket(),
                firstCorrelation: first,
                level: source.level.rawValue,
                meter: index,
                window: window,
                untilDelivered: false,
                checksOffsets: source.queue == nil,
                slots: Lane.slots(window: window, outOfOrder: true),
                supply: FrameSupply(recorded: frames, targets: targets),
                inbound: Inbound(frameBytesMax: session.frameBytesMax)
            )
            driver.add(lane, producers: producers.map(\.producerID))
        }
        let result = driver.run(.untilDone)
        var reports: [LoadReport] = []
        for (index, source) in sources.enumerated() {
            let meter = result.meters[index]
            let events = recordings[index].events
            var payload = UInt64(events.reduce(0) { $0 + $1.payload.count })
            if meter.records < events.count {
                // Cut short: in proportion, since frames and not records are followed.
                payload = payload * meter.records / UInt64(events.count)
            }
            // Each queue's time ends with its own last confirm.
            let nanoseconds =
                meter.lastNanoseconds > result.beganNanoseconds
                ? meter.lastNanoseconds - result.beganNanoseconds : 0
            let settings: [(String, JSON)] = [
                ("server", .string(server.description)),
                ("mode", .string("closed-loop")),
                ("recording", .string(source.path)),
                ("queue", .string(names[index])),
                ("queue_kept", .bool(source.queue != nil)),
                ("records_in_recording", .integer(recordings[index].events.count)),
                ("batch", .integer(batch)),
                ("window", .integer(window)),
                ("partitions", .integer(partitions)),
                ("level_asked", .string(source.level.name)),
                (
                    "level_confirmed",
                    result.failures.counts["confirm-level"] == nil && meter.recordsEver > 0
                        ? .string(source.level.name) : .null
                ),
                ("interrupted", .bool(result.interrupted)),
            ]
            reports.append(
                LoadReport(
                    command: "replay",
                    workload: "\(source.format.rawValue) to \(names[index])",
                    durability: source.level.name,
                    records: meter.records,
                    seconds: Double(nanoseconds) / 1e9,
                    bytes: payload,
                    latency: LatencySummary(meter.histogram),
                    // The two share one thread: what fails for one fails the run.
                    failures: result.failures,
                    settings: settings
                        + OwnCore.settings(
                            cpu: cpu,
                            longSlice: longSlice,
                            busy: result.busyCycles,
                            empty: result.emptyCycles
                        )
                )
            )
        }
        return reports
    }
}
