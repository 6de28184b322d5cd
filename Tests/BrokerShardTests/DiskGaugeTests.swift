import BrokerBasics
import BrokerCore
import BrokerShard
import BrokerTestSupport
import Testing
import WireProtocol

@Suite("A disk that fills up")
struct DiskGaugeTests {
    private func used(_ percent: UInt64, of total: UInt64 = 1000) -> DiskSpace {
        DiskSpace(usedBytes: total / 100 * percent, availableBytes: total / 100 * (100 - percent))
    }

    @Test("a level begins at its mark, and ends two per cent below")
    func hysteresis() {
        var gauge = DiskGauge()
        var changes: [DiskLevel] = []
        let steps: [(UInt64, DiskLevel)] = [
            (0, .ok), (79, .ok), (80, .warn), (79, .warn), (78, .warn), (77, .ok), (79, .ok),
            (80, .warn), (89, .warn), (90, .refuse), (89, .refuse), (88, .refuse), (87, .warn),
            (89, .warn), (90, .refuse), (95, .readsOnly), (93, .readsOnly), (92, .refuse),
            (94, .refuse), (100, .readsOnly), (10, .ok), (96, .readsOnly), (80, .warn),
        ]
        for (percent, level) in steps {
            let before = gauge.level
            let isOther = gauge.observe(used(percent), DiskMarks())
            #expect(gauge.level == level, "\(percent)")
            #expect(isOther == (before != level))
            if isOther { changes.append(level) }
        }
        #expect(changes.count == 12)
    }

    @Test("percentages are exact at any size, and an empty answer is a full disk")
    func sizes() {
        let huge = DiskSpace(usedBytes: 9 << 59, availableBytes: 1 << 59)
        #expect(huge.isUsed(percent: 90) && !huge.isUsed(percent: 91))
        let odd = DiskSpace(usedBytes: 899_999, availableBytes: 100_001)
        #expect(!odd.isUsed(percent: 90) && odd.isUsed(percent: 89))
        #expect(odd.usedPercent == 89)
        let nothing = DiskSpace(usedBytes: 0, availableBytes: 0)
        #expect(nothing.usedPercent == 100 && nothing.isUsed(percent: 100))
    }

    @Test("each level refuses what it says, tells it once, and ends without a restart")
    func levels() throws {
        let fixture = try Fixture { $0.limits.diskMarks.warn = 70 }
        let orders = try fixture.create("orders")[0]
        let client = fixture.client
        try fixture.publish(10, to: orders)
        _ = try #require(client.subscribe("orders", group: "desk", stream: 1))
        var queues = 0
        func observe(_ percent: UInt64) {
            fixture.shard.machine.observed(used(percent, of: 1 << 40))
            fixture.shard.cycle()
        }
        func check(_ level: DiskLevel) throws {
            #expect(fixture.shard.machine.diskLevel == level)
            let full = level >= .refuse ? StatusCode.diskFull : .ok
            #expect(try fixture.refusal(publishing: batch(["x"]), to: orders) == full)
            let strict = level == .readsOnly ? StatusCode.diskFull : .ok
            queues += 1
            #expect(
                try fixture.refusal(
                    .queueCreate,
                    QueueCreateRequest(name: "q\(queues)", partitions: 1, level: .synced)) == strict
            )
            #expect(
                try fixture.refusal(.producerOpen, ProducerOpenRequest(name: "")) == strict)
            // What needs no room, or makes some, is done at every level.
            #expect(
                try fixture.refusal(
                    .ack, Ack(partition: orders, epoch: 1, offset: UInt64(queues % 8)), stream: 1)
                    == .ok)
            #expect(
                try fixture.refusal(.queuePurge, QueuePurgeRequest(name: "orders", before: 0))
                    == .ok)
            #expect(
                try fixture.refusal(
                    .queueAlter,
                    QueueAlterRequest(name: "orders", labels: [], retention: .keepAll)) == .ok)
            if strict == .ok {
                #expect(
                    try fixture.refusal(.queueDelete, QueueNameRequest(name: "q\(queues)")) == .ok)
            }
            #expect(
                fixture.shard.machine.facts.contains(Pair(name: "disk_level", value: level.name)))
        }
        for (percent, level) in [
            (UInt64(50), DiskLevel.ok), (70, .warn), (89, .warn), (90, .refuse), (94, .refuse),
            (95, .readsOnly), (99, .readsOnly), (92, .refuse), (87, .warn), (60, .ok),
        ] {
            observe(percent)
            observe(percent)
            try check(level)
        }
        let told = fixture.shard.machine.events.compactMap { event -> DiskLevel? in
            if case .diskLevel(let level, _) = event { level } else { nil }
        }
        #expect(told == [.warn, .refuse, .readsOnly, .refuse, .warn, .ok])
        #expect(try fixture.readBack("orders", records: 10).count >= 10)
        #expect(fixture.counters.storageFailure == nil)
    }

    @Test("publishes that a full journal parked are refused when the disk becomes full")
    func parked() throws {
        let fixture = try Fixture { $0.latencyMax = 2_000_000 }
        let orders = try fixture.create("orders")[0]
        var sent: [UInt64] = []
        for number in 0..<300 {
            sent.append(
                fixture.client.publish(batch(["\(number)"], bytes: 1500), partition: orders))
        }
        fixture.shard.run { fixture.counters.parks > 0 }
        #expect(fixture.counters.parks > 0)
        fixture.shard.machine.observed(used(99))
        fixture.shard.run { sent.allSatisfy { fixture.client.isAnswered($0) } }
        #expect(sent.allSatisfy { fixture.client.isAnswered($0) })
        #expect(sent.contains { fixture.client.status(of: $0) == .diskFull })
        #expect(sent.contains { fixture.client.confirm(of: $0) != nil })
    }
}
