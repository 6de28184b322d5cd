import BrokerBasics
import BrokerCore
import BrokerShard
import BrokerTestSupport
import LogStorage
import Testing
import WireProtocol

/// A storage operation that fails, and what must be said of it.
struct StorageFault: Sendable, CustomStringConvertible {
    typealias Asked = SimulatedShard.Asked

    var name: String
    /// What the failure says, beside the errno.
    var says: [String]
    var matches: @Sendable (Asked) -> Bool
    /// That there is no room is waited for, where nothing relies on the operation yet.
    var isHeld = false
    var description: String { name }

    static var stopping: [StorageFault] { all.filter { !$0.isHeld } }
    static var held: [StorageFault] { all.filter(\.isHeld) }

    init(
        name: String, says: [String], isHeld: Bool = false,
        matches: @escaping @Sendable (Asked) -> Bool
    ) {
        self.name = name
        self.says = says
        self.isHeld = isHeld
        self.matches = matches
    }

    private static func isSeal(_ asked: Asked) -> Bool {
        asked.kind == .write && asked.directory == .segments && asked.position > 0
            && asked.bytes.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: 12, as: UInt32.self) }
                & ChunkHeader.sealFlag != 0
    }

    static let all: [StorageFault] = [
        StorageFault(name: "a journal write", says: ["writing", "journal/000"]) {
            $0.kind == .syncedWrite
        },
        StorageFault(
            name: "making a segment", says: ["making segments/", ".segment"], isHeld: true
        ) {
            $0.kind == .make && $0.directory == .segments
        },
        StorageFault(
            name: "room for a segment", says: ["reserving", "segments/"], isHeld: true
        ) {
            $0.kind == .allocate
        },
        StorageFault(
            name: "a segment's header", says: ["writing 4096 bytes at 0 of segments/"], isHeld: true
        ) {
            $0.kind == .write && $0.directory == .segments && $0.position == 0
        },
        StorageFault(
            name: "a chunk", says: ["writing", "of segments/"], isHeld: true
        ) {
            $0.kind == .write && $0.directory == .segments && $0.position > 0 && !isSeal($0)
        },
        StorageFault(
            name: "a seal", says: ["writing", "of segments/"], isHeld: true
        ) { isSeal($0) },
        StorageFault(name: "a segment's sync", says: ["syncing segments/", ".segment"]) {
            $0.kind == .sync && $0.directory == .segments
        },
        StorageFault(name: "the sync of segments' names", says: ["syncing the names in segments"]) {
            $0.kind == .syncNames && $0.directory == .segments
        },
        StorageFault(
            name: "making a checkpoint", says: ["making checkpoints/"], isHeld: true
        ) {
            $0.kind == .make && $0.directory == .checkpoints
        },
        StorageFault(
            name: "a checkpoint's write", says: ["writing", "checkpoints/"], isHeld: true
        ) {
            $0.kind == .write && $0.directory == .checkpoints
        },
        StorageFault(name: "a checkpoint's sync", says: ["syncing checkpoints/"]) {
            $0.kind == .sync && $0.directory == .checkpoints
        },
        StorageFault(
            name: "the sync of a checkpoint's name", says: ["syncing the names in checkpoints"]
        ) {
            $0.kind == .syncNames && $0.directory == .checkpoints
        },
    ]
}

@Suite("Storage faults")
struct StorageFaultTests {
    private func settle(_ fixture: Fixture, _ sent: [UInt64]) {
        fixture.shard.run(steps: 2000) { sent.allSatisfy { fixture.client.isAnswered($0) } }
    }

    @Test(
        "when a write or sync fails confirms stop and say of what, all are answered, none is lost",
        arguments: StorageFault.all.map { ($0, Int32(5)) }
            + StorageFault.stopping.map { ($0, Int32(28)) })
    func failure(fault: StorageFault, errno: Int32) throws {
        let fixture = try Fixture { $0.limits.segmentBytes = 32 * 1024 }
        let orders = try fixture.create("orders")[0]
        let ticks = try fixture.create("ticks", level: .memory)[0]
        let client = fixture.client
        _ = try #require(client.subscribe("orders", group: "desk", stream: 1))
        fixture.shard.fault = { fault.matches($0) ? -errno : nil }
        var sent: [UInt32: [UInt64]] = [:]
        var acks: [UInt64] = []
        var number = 0
        while fixture.counters.storageFailure == nil, number < 600 {
            for partition in [orders, ticks] {
                sent[partition, default: []].append(
                    client.publish(batch(["\(number)"], bytes: 900), partition: partition))
            }
            number += 1
            if number % 8 == 0 {
                fixture.shard.pass(milliseconds: 1)
                let offset = UInt64(client.delivered.count)
                acks.append(
                    client.request(
                        .ack, Ack(partition: orders, epoch: 1, offset: offset), stream: 1))
            }
            if number % 150 == 0 { fixture.shard.pass(milliseconds: 11_000) }
        }
        let failure = try #require(fixture.counters.storageFailure)
        #expect(fixture.shard.faultsFired.count > 0)
        for text in fault.says + ["errno \(errno)"] {
            #expect(failure.contains(text), "\(failure) does not say \(text)")
        }
        // What comes after the failure, and what waited for it.
        let late = [orders, ticks].map { client.publish(batch(["late"]), partition: $0) }
        let all = sent.values.flatMap { $0 } + late
        settle(fixture, all)
        #expect(all.allSatisfy { client.isAnswered($0) })
        #expect(acks.allSatisfy { client.replies[$0] != nil })
        for correlation in late {
            #expect(client.status(of: correlation) == .storageFailed)
            let message = try #require(client.refusal(of: correlation)?.message)
            #expect(message.contains(failure))
        }
        // The disk has room again: nothing is taken up as if nothing had happened.
        fixture.shard.fault = nil
        fixture.shard.pass(milliseconds: 12_000)
        #expect(try fixture.refusal(publishing: batch(["later"]), to: orders) == .storageFailed)
        #expect(client.ask(.ping, Empty(), reply: Empty.self) != nil)
        let events = fixture.shard.machine.events
        #expect(events.contains(.storageFailed(failure)))

        // A power cut and a restart: what was confirmed is there, and it goes on.
        var random = SeededRandom(seed: 4)
        for survival in [SimulatedDisk.Survival.none, .all, .some] {
            let after = try Fixture(disk: fixture.shard.disk.afterPowerCut(survival, &random)) {
                $0.limits.segmentBytes = 32 * 1024
            }
            let confirmed = (sent[orders] ?? []).enumerated().filter {
                client.confirm(of: $0.element) != nil
            }
            let found = try after.readBack("orders", records: confirmed.count)
            for (place, _) in confirmed {
                #expect(found.count > place && found[place].text == "\(place)")
            }
            let floor = try #require(
                after.client.ask(
                    .groupDescribe, GroupDescribeRequest(queue: "orders", group: "desk"),
                    reply: GroupInfo.self)?.cursors.first?.ackFloor)
            let acked = acks.filter { client.status(of: $0) == .ok }
                .compactMap { client.replies[$0].flatMap { try? Ack(body: $0.body) }?.offset }.max()
            #expect(floor >= acked ?? 0)
            try after.publish(batch(["on"]), to: orders)
        }
    }

    @Test(
        "what finds no room is held back: no new records, all else goes on, and it resumes by itself",
        arguments: StorageFault.held.map { ($0, Int32(28)) }
            + StorageFault.held.prefix(2).map { ($0, Int32(122)) })
    func noRoom(fault: StorageFault, errno: Int32) throws {
        let fixture = try Fixture { $0.limits.segmentBytes = 32 * 1024 }
        let orders = try fixture.create("orders")[0]
        let brief = try fixture.create("brief")[0]
        let client = fixture.client
        _ = try #require(client.subscribe("orders", group: "desk", stream: 1))
        try fixture.publish(batch(["x"]), to: brief)
        fixture.shard.fault = { fault.matches($0) ? -errno : nil }
        var sent: [UInt64] = []
        var number = 0
        while fixture.counters.heldOperations == 0, number < 600 {
            sent.append(client.publish(batch(["\(number)"], bytes: 900), partition: orders))
            number += 1
            if number % 8 == 0 { fixture.shard.pass(milliseconds: 1) }
            if number % 150 == 0 { fixture.shard.pass(milliseconds: 11_000) }
        }
        #expect(fixture.counters.heldOperations > 0)
        #expect(fixture.shard.faultsFired.count > 0)
        settle(fixture, sent)
        // It says what found no room, and what is refused says when to come again.
        let late = client.publish(batch(["late"]), partition: orders)
        settle(fixture, [late])
        #expect(client.status(of: late) == .diskFull)
        let refusal = try #require(client.refusal(of: late))
        #expect(refusal.errorClass == StatusCode.Class.retry.rawValue)
        #expect(refusal.retryAfterMilliseconds == 1000)
        for text in fault.says + ["errno \(errno)"] { #expect(refusal.message.contains(text)) }
        #expect(
            try fixture.refusal(
                .queueCreate, QueueCreateRequest(name: "late", partitions: 1, level: .synced))
                == .diskFull)
        // What needs no room goes on.
        #expect(
            try fixture.refusal(
                .ack, Ack(partition: orders, epoch: 1, offset: 3), stream: 1) == .ok)
        #expect(
            try fixture.refusal(.queuePurge, QueuePurgeRequest(name: "orders", before: 2)) == .ok)
        #expect(try fixture.refusal(.queueDelete, QueueNameRequest(name: "brief")) == .ok)
        fixture.shard.pass(milliseconds: 3000)
        #expect(fixture.counters.storageFailure == nil)
        let tried = fixture.counters.heldOperations
        #expect(tried >= 4 && tried <= 40, "\(tried) tries in three seconds")

        // There is room again.
        fixture.shard.fault = nil
        fixture.shard.pass(milliseconds: 1100)
        #expect(try fixture.refusal(publishing: batch(["on"], bytes: 900), to: orders) == .ok)
        let events = fixture.shard.machine.events
        #expect(events.count { if case .spaceAwaited = $0 { true } else { false } } == 1)
        #expect(events.count { $0 == .spaceFound } == 1)
        let done = fixture.counters.checkpoints
        try fixture.publish(40, to: orders, bytes: 900, from: 1000)
        fixture.shard.pass(milliseconds: 11_000)
        #expect(fixture.counters.checkpoints > done)

        var random = SeededRandom(seed: 4)
        for survival in [SimulatedDisk.Survival.none, .all, .some] {
            let after = try Fixture(disk: fixture.shard.disk.afterPowerCut(survival, &random)) {
                $0.limits.segmentBytes = 32 * 1024
            }
            let confirmed = sent.filter { client.confirm(of: $0) != nil }.count
            let found = try after.readBack("orders", records: confirmed + 41 - 2)
                .filter { $0.offset >= 2 }
            #expect(found.map(\.offset) == Array(2..<UInt64(confirmed + 41)))
        }
    }

    @Test("a stop that finds no room ends, and says so; nothing is lost")
    func noRoomToStop() throws {
        let fixture = try Fixture()
        let orders = try fixture.create("orders")[0]
        try fixture.publish(5, to: orders)
        fixture.shard.fault = { $0.directory == .checkpoints && $0.kind == .make ? -28 : nil }
        fixture.shard.machine.beginStop()
        #expect(fixture.shard.run(steps: 20_000) { fixture.shard.machine.stage == .stopped })
        #expect(fixture.shard.faultsFired.count > 1)
        let failure = try #require(fixture.counters.storageFailure)
        #expect(failure.contains("found no room") && failure.contains("checkpoints/"))
        var random = SeededRandom(seed: 4)
        let after = try Fixture(disk: fixture.shard.disk.afterPowerCut(.none, &random))
        #expect(try after.readBack("orders", records: 5).count == 5)
    }

    @Test("the reserve is made, given up when there is no room, and made again")
    func reserve() throws {
        let fixture = try Fixture { $0.limits.reserveBytes = 64 * 1024 }
        let orders = try fixture.create("orders")[0]
        fixture.shard.pass(milliseconds: 20)
        #expect(fixture.shard.disk.length(.reserve) == 64 * 1024)
        // A disk whose only room is what the reserve holds.
        let disk = fixture.shard.disk
        fixture.shard.fault = {
            $0.kind == .allocate && disk.length(.reserve) > 0 ? -28 : nil
        }
        let sent = (0..<20).map {
            fixture.client.publish(batch(["\($0)"], bytes: 900), partition: orders)
        }
        fixture.shard.run(steps: 3000) { disk.length(.reserve) == 0 }
        #expect(fixture.shard.faultsFired.count > 0)
        #expect(disk.length(.reserve) == 0)
        #expect(fixture.shard.run(steps: 200) { fixture.counters.chunksWritten > 0 })
        settle(fixture, sent)
        #expect(fixture.counters.storageFailure == nil)
        try fixture.publish(1, to: orders, from: 20)
        fixture.shard.fault = nil
        fixture.shard.pass(milliseconds: 11_000)
        #expect(disk.length(.reserve) == 64 * 1024)
        #expect(fixture.counters.checkpoints > 1)
    }

    @Test("a full disk waits with the first checkpoint, and serves when there is room")
    func noRoomToStart() throws {
        let shard = try SimulatedShard(
            disk: SimulatedDisk(), settings: SimulatedShard.Settings(), seed: 1)
        shard.fault = { $0.directory == .checkpoints && $0.kind == .make ? -28 : nil }
        shard.pass(milliseconds: 1200)
        #expect(shard.faultsFired.count > 1)
        #expect(shard.machine.stage == .starting)
        #expect(shard.machine.counters.storageFailure == nil)
        shard.fault = nil
        shard.pass(milliseconds: 600)
        let isReady = shard.machine.isReady
        #expect(isReady)
    }

    @Test("publishers that a full journal parked are answered when storage fails")
    func parked() throws {
        let fixture = try Fixture { $0.latencyMax = 2_000_000 }
        let partitions = try fixture.create("orders", partitions: 2)
        let others = try (0..<3).map { try fixture.connect("other \($0)") }
        var sent: [(SimulatedClient, UInt64)] = []
        for number in 0..<120 {
            for client in others {
                let values = (0..<4).map { "\(number) \($0)" }
                sent.append(
                    (
                        client,
                        client.publish(
                            batch(values, bytes: 1200), partition: partitions[number % 2])
                    ))
            }
        }
        let create = fixture.client.request(
            .queueCreate, QueueCreateRequest(name: "late", partitions: 1, level: .synced))
        fixture.shard.run { fixture.counters.parks >= 3 }
        #expect(fixture.counters.parks >= 3)
        fixture.shard.fault = { $0.directory == .segments ? -5 : nil }
        fixture.shard.run { fixture.counters.storageFailure != nil }
        fixture.shard.run(steps: 3000) { sent.allSatisfy { $0.0.isAnswered($0.1) } }
        #expect(fixture.shard.faultsFired.count > 0)
        #expect(sent.allSatisfy { $0.0.isAnswered($0.1) })
        #expect(sent.contains { $0.0.status(of: $0.1) == .storageFailed })
        #expect(sent.contains { $0.0.confirm(of: $0.1) != nil })
        #expect(fixture.client.replies[create] != nil)
    }

    @Test("a file that can't be removed stays, costs nothing, and goes at the next start")
    func failedRemoval() throws {
        let fixture = try Fixture { $0.limits.segmentBytes = 32 * 1024 }
        let brief = try fixture.create("brief")[0]
        for number in 0..<120 { try fixture.publish(batch(["\(number)"], bytes: 900), to: brief) }
        fixture.shard.pass(milliseconds: 12_000)
        fixture.shard.fault = { $0.kind == .remove ? -5 : nil }
        #expect(
            fixture.client.ask(.queueDelete, QueueNameRequest(name: "brief"), reply: Empty.self)
                != nil)
        fixture.shard.pass(milliseconds: 25_000)
        let kept = fixture.shard.disk.allNames.filter { $0.directory == .segments }
        #expect(kept.count >= 2)
        #expect(fixture.shard.faultsFired.count >= kept.count)
        #expect(fixture.counters.storageFailure == nil)
        let orders = try fixture.create("orders")[0]
        try fixture.publish(3, to: orders)
        var random = SeededRandom(seed: 1)
        let after = try Fixture(disk: fixture.shard.disk.afterPowerCut(.all, &random))
        #expect(after.shard.report.removedFiles >= kept.count)
        after.shard.pass(milliseconds: 20)
        #expect(!after.shard.disk.allNames.contains { kept.contains($0) })
        #expect(after.shard.disk.allNames.count { $0.directory == .checkpoints } == 1)
        #expect(try after.readBack("orders", records: 3).count == 3)
    }

    @Test("a read that fails ends the subscription by name; confirms and other readers go on")
    func failedRead() throws {
        for kind in [SimulatedShard.Asked.Kind.open, .read] {
            let fixture = try Fixture {
                $0.limits.tailBytesMax = 64 * 1024
                $0.limits.segmentBytes = 32 * 1024
            }
            let orders = try fixture.create("orders")[0]
            for number in 0..<100 {
                try fixture.publish(batch(["\(number)"], bytes: 900), to: orders)
            }
            fixture.shard.pass(milliseconds: 12_000)
            fixture.shard.fault = { $0.kind == kind ? -5 : nil }
            _ = try #require(fixture.client.subscribe("orders", stream: 1))
            fixture.shard.run(steps: 500) { !fixture.client.pushes.isEmpty }
            #expect(fixture.shard.faultsFired.count > 0)
            let push = try #require(fixture.client.pushes.first)
            #expect(StatusCode(rawValue: push.header.status) == .dataDamaged)
            let message = try Refusal(body: push.body).message
            #expect(message.contains("segments/") && message.contains("errno 5"))
            #expect(fixture.counters.storageFailure == nil)
            fixture.shard.fault = nil
            try fixture.publish(batch(["100"], bytes: 900), to: orders)
            #expect(try fixture.readBack("orders", records: 101).count == 101)
        }
    }

    @Test("a failure while the first checkpoint is written keeps everybody out, and stops in order")
    func failureWhileStarting() throws {
        var settings = SimulatedShard.Settings()
        settings.limits.segmentBytes = 32 * 1024
        let disk = SimulatedDisk()
        let shard = try SimulatedShard(disk: disk, settings: settings, seed: 1)
        shard.fault = { $0.directory == .checkpoints && $0.kind == .sync ? -28 : nil }
        shard.run(steps: 200) { shard.machine.counters.storageFailure != nil }
        #expect(shard.faultsFired.count == 1)
        shard.pass(milliseconds: 50)
        let isReady = shard.machine.isReady
        #expect(!isReady)
        #expect(shard.connect() == nil)
        shard.machine.beginStop()
        #expect(shard.run(steps: 50) { shard.machine.stage == .stopped })
        var random = SeededRandom(seed: 1)
        let after = try Fixture(disk: disk.afterPowerCut(.some, &random))
        _ = try after.create("orders")
    }

    @Test("a failure during an orderly stop answers whoever waits, and the stop ends")
    func failureWhileStopping() throws {
        let fixture = try Fixture()
        let orders = try fixture.create("orders")[0]
        try fixture.publish(5, to: orders)
        fixture.shard.fault = { $0.kind == .syncedWrite ? -5 : nil }
        let waiting = fixture.client.publish(batch(["5"]), partition: orders)
        fixture.shard.machine.beginStop()
        #expect(fixture.shard.run(steps: 300) { fixture.shard.machine.stage == .stopped })
        #expect(fixture.shard.faultsFired.count > 0)
        #expect(fixture.client.status(of: waiting) == .storageFailed)
        #expect(fixture.client.isClosed)
    }
}
