internal import BlockingClient
internal import BrokerBasics
internal import ChildProcess
internal import FuseDisk
internal import Glibc
internal import ReplayHarness
internal import WireProtocol

/// A broker's life on a recorded disk, and what its clients were told in it.
///
/// One thread is all clients in turn; a seed chooses what they do. What the broker and ext4 then
/// write, and when, is theirs, so that no two recordings are alike.
struct Recording {
    struct Settings {
        var filesystem: Filesystem
        var loop: String
        var shards: Int
        var seed: UInt64
        var steps: Int
        var brokerd: String
        /// For the mount and the logs.
        var directory: String
        /// Once the broker serves: flushes do nothing any more.
        var isLying = false
        /// What starts the broker, if it is to be a broken one.
        var launcher: [String] = []
    }

    /// What happened, for a person.
    struct Facts {
        var kills = 0
        /// Partitions that went to another shard.
        var moves = 0
        var duplicates = 0
        var probes = 0
    }

    let settings: Settings
    private(set) var history = ClientHistory()
    private(set) var log = WriteLog()
    private(set) var facts = Facts()
    /// Cuts are made from here, where the disk is formatted, to the end.
    private(set) var start = 0

    /// 192 MiB: the segments of all queues, with room to spare.
    static let diskBytes = 192 << 20

    init(_ settings: Settings) throws {
        self.settings = settings
        let disk = try RecordedDisk(byteCount: Self.diskBytes)
        let mounted = try MountedDisk(
            disk,
            settings.filesystem,
            in: settings.directory,
            isNew: true
        )
        _ = try Command.output("sync", ["--file-system", mounted.path])
        start = disk.moment
        var play = try Play(settings, mounted)
        try play.run()
        log = disk.log
        history = play.history
        facts = play.facts
        try mounted.unmount()
    }
}

/// The clients of a recording.
private struct Play {
    /// One queue and those who use it.
    private struct Lane {
        var history: QueueHistory
        var producers: [CutProducer] = []
        var readers: [CutReader] = []
    }

    var facts = Recording.Facts()
    private let settings: Recording.Settings
    private let mounted: MountedDisk
    private let disk: RecordedDisk
    private var broker: CutBroker
    private var lives = 1
    private var random: SeededRandom
    private var lanes: [Lane] = []
    private var ended: [QueueHistory] = []
    private var temporaryCount = 0

    private static let windowBatches = 32

    init(_ settings: Recording.Settings, _ mounted: MountedDisk) throws {
        self.settings = settings
        self.mounted = mounted
        disk = mounted.disk
        random = SeededRandom(seed: settings.seed)
        broker = try Self.start(settings, mounted, BrokerPlace(), life: 1)
    }

    private static func start(
        _ settings: Recording.Settings,
        _ mounted: MountedDisk,
        _ place: BrokerPlace,
        life: Int
    ) throws -> CutBroker {
        try CutBroker(
            settings.brokerd,
            on: mounted,
            loop: settings.loop,
            shards: settings.shards,
            at: place,
            launcher: settings.launcher,
            log: settings.directory + "/brokerd-\(life).log"
        )
    }

    var history: ClientHistory { ClientHistory(queues: ended + lanes.map(Self.history)) }

    private static func history(of lane: Lane) -> QueueHistory {
        var history = lane.history
        history.producers = lane.producers.map(\.history)
        history.seen = lane.readers.flatMap(\.seen)
        history.acks = lane.readers.flatMap(\.acks)
        return history
    }

    private func moment() -> () -> Int {
        let disk = disk
        return { disk.moment }
    }

    mutating func run() throws {
        if settings.isLying { disk.lie() }
        try makeQueues()
        for step in 0..<settings.steps {
            try Interrupt.check()
            try broker.check()
            try act()
            try pump()
            if step % (settings.steps / 10 + 1) == 3 { try probe() }
            if step == settings.steps / 3 || step == settings.steps * 2 / 3 { try kill() }
        }
        try settle()
        try broker.stop()
    }

    private mutating func makeQueues() throws {
        try make("orders", .synced, partitions: 3, producers: 2, groups: ["desk"])
        try make("trades", .synced, partitions: 1, producers: 1, groups: [])
        try make("ticks", .memory, partitions: 2, producers: 1, groups: ["screen"])
        try make("fills", .written, partitions: 1, producers: 1, groups: ["booking"])
        for number in 0..<12 {
            try make("small-\(number)", .synced, partitions: 1, producers: 1, groups: nil)
        }
    }

    /// - Parameter groups: `nil` for a queue that nobody reads.
    private mutating func make(
        _ name: String,
        _ level: DurabilityLevel,
        partitions: Int,
        producers: Int,
        groups: [String]?
    ) throws {
        let askedAt = disk.moment
        let queue = try broker.place.connect(clientName: "control").request(
            .queueCreate,
            QueueCreateRequest(name: name, partitions: UInt32(partitions), level: level),
            reply: QueueInfo.self
        )
        var lane = Lane(
            history: QueueHistory(
                name: name,
                level: level.rawValue,
                partitionIDs: queue.partitions.map(\.id),
                createAskedAt: askedAt,
                createdAt: disk.moment
            )
        )
        for number in 0..<producers {
            lane.producers.append(
                try CutProducer(
                    "\(name)-\(number)", queue: queue, at: broker.place, moment: moment())
            )
        }
        if let groups {
            lane.readers.append(CutReader("\(name)-alone", queue: queue, moment: moment()))
            for group in groups {
                lane.readers.append(
                    CutReader("\(name)-\(group)", queue: queue, group: group, moment: moment())
                )
            }
        }
        lanes.append(lane)
    }

    /// One thing that some client does.
    private mutating func act() throws {
        switch random.below(100) {
        case ..<30:
            try publish(lanes[0], records: 1 + random.below(4), bytes: 40 + random.below(300))
        case ..<55: try publish(lanes[1], records: 1 + random.below(12), bytes: 600)
        case ..<63: try publish(lanes[2], records: 1 + random.below(20), bytes: 60)
        case ..<70: try publish(lanes[3], records: 1 + random.below(8), bytes: 120)
        case ..<92:
            try publish(lanes[4 + random.below(12)], records: 1, bytes: 30 + random.below(900))
        case ..<94: try temporary()
        // Quiet for long enough that the journal says what is durable, and `memory` is written.
        case ..<96: usleep(15_000)
        // A burst that fills a journal group.
        case ..<97:
            for _ in 0..<12 { try publish(lanes[0], records: 20, bytes: 250) }
        case ..<98: try settle()
        default: try move()
        }
    }

    private mutating func publish(_ lane: Lane, records: Int, bytes: Int) throws {
        let producer = lane.producers[random.below(lane.producers.count)]
        while producer.unconfirmedBatches >= Self.windowBatches { try wait(for: producer) }
        try producer.publish(
            to: random.below(lane.history.partitionIDs.count),
            count: records,
            bytes: bytes
        )
    }

    /// A partition goes to another shard, with what is on its way to it and from it.
    private mutating func move() throws {
        guard settings.shards > 1 else { return try settle() }
        let partitions = lanes[random.below(lanes.count)].history.partitionIDs
        let reply = try broker.place.connect(clientName: "mover").request(
            .queueMove,
            QueueMoveRequest(
                partition: partitions[random.below(partitions.count)],
                shard: UInt16(random.below(settings.shards))
            ),
            reply: QueueMoveReply.self,
            timeoutMilliseconds: 60_000
        )
        if reply.from != reply.to { facts.moves += 1 }
    }

    /// A queue that is made, used, and removed again at some later time, or never.
    private mutating func temporary() throws {
        if lanes.count > 19, random.chance(3, in: 4) {
            let index = 16 + random.below(lanes.count - 16)
            let lane = lanes.remove(at: index)
            var history = Self.history(of: lane)
            history.deleteAskedAt = disk.moment
            _ = try broker.place.connect(clientName: "control").request(
                .queueDelete,
                body: QueueNameRequest(name: history.name).encoded
            )
            history.deletedAt = disk.moment
            ended.append(history)
        } else {
            temporaryCount += 1
            try make(
                "temporary-\(temporaryCount)", .synced, partitions: 2, producers: 1, groups: nil)
            try publish(lanes[lanes.count - 1], records: 10, bytes: 500)
        }
    }

    private mutating func pump() throws {
        for index in lanes.indices {
            for producer in lanes[index].producers where producer.unconfirmedBatches > 0 {
                try producer.pump()
            }
            for reader in lanes[index].readers {
                try reader.drain(at: broker.place) { random.chance(1, in: 3) }
            }
        }
    }

    private mutating func wait(for producer: CutProducer) throws {
        try Interrupt.check()
        try broker.check()
        try producer.pump(timeoutMilliseconds: 100)
    }

    /// Until everybody has the answers.
    private mutating func settle() throws {
        for lane in lanes {
            for producer in lane.producers {
                while producer.unconfirmedBatches > 0 { try wait(for: producer) }
            }
        }
        try pump()
    }

    /// A synced record, alone, must be in a write of the disk with a flush behind it when its
    /// confirm comes. Without this, nothing would say that the disk sees the broker's syncs.
    private mutating func probe() throws {
        try settle()
        // Of what is broken on purpose the cuts have to tell.
        guard !settings.isLying, settings.launcher.isEmpty else { return }
        let producer = lanes[0].producers[0]
        let from = disk.moment
        let number = try producer.publish(to: 0, count: 1, bytes: 100)
        while producer.unconfirmedBatches > 0 { try wait(for: producer) }
        let to = disk.moment
        let record = producer.history.batches[number].records(producer.history.name)[0]
        guard disk.log.hasFlushed(record.value, in: from..<to) else {
            throw SystemFailure(
                text: "a record was confirmed at synced, and the disk has seen no write of it with "
                    + "a flush behind it, in the entries \(from) to \(to)"
            )
        }
        facts.probes += 1
    }

    /// SIGKILL and a new start. What was in flight is sent again.
    private mutating func kill() throws {
        for lane in lanes {
            try publish(lane, records: 3, bytes: 100)
            for producer in lane.producers { try producer.pump() }
        }
        // Some are stored by then, and nobody takes their confirms.
        usleep(UInt32(random.below(3_000)))
        broker.kill()
        facts.kills += 1
        lives += 1
        for lane in lanes {
            for producer in lane.producers { producer.disconnect() }
            for reader in lane.readers { reader.disconnect() }
        }
        broker = try Self.start(settings, mounted, broker.place, life: lives)
        try settle()
        facts.duplicates = lanes.flatMap(\.producers).reduce(0) { $0 + $1.duplicates }
    }
}
