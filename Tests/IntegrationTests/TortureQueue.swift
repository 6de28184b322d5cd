import BlockingClient
import BrokerBasics
import ReplayHarness
import WireProtocol

/// A queue of a broker that is killed: who publishes to it, who reads it, and what they saw.
struct TortureQueue {
    static let group = "booking"

    var name: String
    var level: DurabilityLevel
    var partitions: Int
    var producers: [ReplayProducer]
    var alone: LiveReader
    var member: LiveReader
    var recorder: HistoryRecorder

    var readers: [LiveReader] { [alone, member] }

    // MARK: what is replayed

    private static func orders(seed: UInt64) -> [ReplayLine] {
        var generator = OrderGenerator(seed: seed)
        return lines(.orders) { generator.line() }
    }
    private static func feed(seed: UInt64) -> [ReplayLine] {
        var generator = FeedGenerator(seed: seed)
        return lines(.feed) { generator.line() }
    }
    private static func lines(
        _ format: RecordingFormat,
        _ next: () -> String
    ) -> [ReplayLine] {
        (0..<5_000).map { _ in
            let line = Array(next().utf8)
            let parsed = format.parse(line)
            return ReplayLine(
                value: line,
                key: parsed?.key ?? [],
                timestamp: parsed?.timestamp ?? 0
            )
        }
    }

    static func make(
        _ name: String,
        _ level: DurabilityLevel,
        partitions: Int,
        producerNames: [String],
        firstProducer: UInt32,
        recordsPerSecond: Int = 4_000,
        seed: UInt64,
        on broker: LiveBroker
    ) throws -> TortureQueue {
        try broker.create(name, level, partitions: partitions)
        var producers: [ReplayProducer] = []
        var streams: [ReplayStream] = []
        for (number, producerName) in producerNames.enumerated() {
            let id = firstProducer + UInt32(number)
            let lines =
                level > .memory ? orders(seed: UInt64(id)) : feed(seed: UInt64(id))
            let stream = ReplayStream(
                producer: id,
                lines: lines,
                partitionCount: partitions,
                traceEvery: 7
            )
            var settings = ReplayProducer.Settings(queue: name, stream: stream)
            settings.options.producerName = producerName
            settings.options.window = 32
            settings.recordsPerSecond = recordsPerSecond
            settings.seed = seed &+ UInt64(id)
            streams.append(stream)
            producers.append(ReplayProducer(settings, to: broker.place))
        }
        let recorder = try HistoryRecorder(
            broker.describe(name),
            path: "\(broker.path)/\(name).history"
        )
        recorder.began("alone", at: [UInt64](repeating: 0, count: partitions))
        var alone = LiveReader.Settings(queue: name, streams: streams)
        alone.observe = { recorder.got($0, "alone") }
        var member = LiveReader.Settings(queue: name, streams: streams)
        member.group = group
        return TortureQueue(
            name: name,
            level: level,
            partitions: partitions,
            producers: producers,
            alone: LiveReader(alone, from: broker.place),
            member: LiveReader(member, from: broker.place),
            recorder: recorder
        )
    }
}
