import BrokerBasics
import BrokerServer
import BrokerShard
import Foundation
import Logging
import ShardRuntime
import Synchronization
import Testing
import WireProtocol

@Suite struct LogTests {
    private func line(_ message: String, _ fields: Logger.Metadata) -> LogLine {
        LogLine(
            time: 1_795_245_561_195_999_999,
            level: .notice,
            event: "ready",
            message: message,
            fields: fields
        )
    }

    @Test("a text line has time, level, event, message and fields in order, and is one line")
    func text() {
        let line = line(
            "two\nlines",
            [
                "b": .string("x y"), "a": .array(["1", "2"]), "c": .string(""),
                "d": .string("p\u{1}q"), "e": .stringConvertible(7),
            ]
        )
        #expect(
            line.rendered(.text)
                == "2026-11-21T07:19:21.195Z notice   ready: two\\nlines a=1,2 b=\"x y\" c=\"\" "
                + "d=p\\u0001q e=7\n"
        )
    }

    @Test("a JSON line is one object with ECS names, and values keep their types")
    func json() throws {
        let hostile = "quote\" back\\ line\n tab\t bell\u{7} 字"
        let line = line(
            hostile,
            [
                "n": .stringConvertible(7), "r": .stringConvertible(0.5),
                "t": .stringConvertible(true), "l": .array(["a", "b"]), "o": ["k": "v"],
                "message": "not mine", hostile: .string(hostile),
            ]
        ).rendered(.json)
        #expect(line.hasSuffix("}\n"))
        #expect(line.dropLast().contains("\n") == false)
        let object = try #require(
            try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any]
        )
        #expect(object["@timestamp"] as? String == "2026-11-21T07:19:21.195Z")
        #expect(object["log.level"] as? String == "notice")
        #expect(object["event"] as? String == "ready")
        #expect(object["message"] as? String == hostile)
        #expect(object[hostile] as? String == hostile)
        #expect(object["n"] as? Int == 7)
        #expect(object["r"] as? Double == 0.5)
        #expect(object["t"] as? Bool == true)
        #expect(object["l"] as? [String] == ["a", "b"])
        #expect(object["o"] as? [String: String] == ["k": "v"])
    }

    @Test("the handler writes what is severe enough, with the logger's metadata")
    func handler() {
        final class Lines: Sendable { let all = Mutex<[String]>([]) }
        let lines = Lines()
        var logger = Logger(label: "t") { _ in
            LineLogHandler(level: .info, format: .text) { line in
                lines.all.withLock { $0.append(line) }
            }
        }
        logger[metadataKey: "shard"] = "0"
        logger.debug("not this")
        logger.record(.debug, "no", "nor this")
        logger.info("plain")
        logger.record(.warning, "torn-tail", "cut", ["bytes": .stringConvertible(5)])
        let written = lines.all.withLock { $0 }
        #expect(written.count == 2)
        #expect(written[0].hasSuffix(" info     plain shard=0\n"))
        #expect(written[1].hasSuffix(" warning  torn-tail: cut bytes=5 shard=0\n"))
    }

    @Test("five lines of an event in ten seconds; the others are counted, and then it begins anew")
    func limiter() {
        var limiter = EventLimiter()
        let start = MonotonicTime(nanoseconds: 1)
        let admitted = (0..<1000).filter { _ in limiter.admits("bad-frame", now: start) }
        #expect(admitted.count == 5)
        let other = limiter.admits("other", now: start)
        #expect(other)
        #expect(limiter.isHolding)
        let early = limiter.takeSuppressed(now: start + .seconds(9))
        #expect(early.isEmpty)
        let reports = limiter.takeSuppressed(now: start + .seconds(10))
        #expect(reports.map(\.event) == ["bad-frame"])
        #expect(reports.map(\.count) == [995])
        #expect(!limiter.isHolding)
        let anew = limiter.admits("bad-frame", now: start + .seconds(10))
        #expect(anew)
    }

    @Test("every event of a shard has a line")
    func events() {
        #expect(ShardEvent.badFrame(peer: "1.2.3.4:5", what: "too long").line.level == .warning)
        #expect(ShardEvent.storageFailed("EIO").line.level == .critical)
        #expect(ShardEvent.dataDamaged("x").line.event == "data-damaged")
        #expect(ShardEvent.checkpoint(sequence: 1, bytes: 2).line.level == .debug)
        #expect(ShardEvent.groupChanged("x").line.event == "group-changed")
        #expect(ShardEvent.groupSkipped("x").line.level == .warning)
        #expect(ShardEvent.clockStepped("x").line.event == "clock-stepped")
        #expect(ShardEvent.diskLevel(.readsOnly, "x").line.event == "disk-reads-only")
        #expect(ShardEvent.diskLevel(.ok, "x").line.level == .notice)
        #expect(ShardEvent.spaceAwaited("x").line.level == .error)
        #expect(ShardEvent.spaceFound.line.event == "disk-room")
    }
}

@Suite struct HostFactsTests {
    private let virtio = """
                   CPU0       CPU1
         28:          0          0 PCI-MSIX-0000:00:01.0   0-edge      virtio0-config
         35:          0          1 PCI-MSIX-0000:00:02.0   0-edge      virtio1-config
         36:          3    2137047 PCI-MSIX-0000:00:02.0   1-edge      virtio1-req.0
        136:          3          0 PCI-MSIX-0000:00:12.0   1-edge      virtio11-req.0
        NMI:          0          0   Non-maskable interrupts
        ERR:          0
        """
    private let nvme = """
                    CPU0       CPU2
         30:          9          0  IR-PCI-MSI 1048576-edge      nvme0q0
         31:         10          0  IR-PCI-MSI 1048577-edge      nvme0q1
         32:          0         20  IR-PCI-MSI 1048578-edge      nvme0q2
         33:          0         20  IR-PCI-MSI 1048578-edge      nvme1q1
        """

    @Test("a virtio disk's interrupt is found, on the CPU that took most or that the kernel names")
    func virtioDisk() {
        let counted = BlockDevice.interrupts(of: "vda", driver: "virtio1", table: virtio) { _ in nil
        }
        #expect(counted == [BlockDevice.Interrupt(number: 36, name: "virtio1-req.0", cpus: [1])])
        let named = BlockDevice.interrupts(of: "vda", driver: "virtio1", table: virtio) { number in
            number == 36 ? "0" : nil
        }
        #expect(named.map(\.cpus) == [[0]])
    }

    @Test("an NVMe disk's queues are found without its admin queue or another disk's")
    func nvmeDisk() {
        let found = BlockDevice.interrupts(of: "nvme0n1", driver: "nvme0", table: nvme) { _ in nil }
        #expect(found.map(\.name) == ["nvme0q1", "nvme0q2"])
        #expect(found.map(\.cpus) == [[0], [2]])
    }

    @Test("what is not such a disk, or no table at all, has no interrupts")
    func others() {
        for table in [virtio, nvme, "", "\n\n", "garbage"] {
            #expect(
                BlockDevice.interrupts(of: "sda", driver: "0:0:0:0", table: table) { _ in nil }
                    == []
            )
            #expect(
                BlockDevice.interrupts(of: "dm-0", driver: nil, table: table) { _ in nil } == []
            )
        }
    }

    @Test("a shard pinned to the interrupt's CPU is told so, others are not")
    func conflict() throws {
        var facts = HostFacts.gather(dataDirectory: "/")
        #expect(facts.kernel.hasPrefix("Linux "))
        facts.device = BlockDevice(
            name: "vda",
            writeCache: "write back",
            hasFUA: false,
            interrupts: [.init(number: 36, name: "virtio1-req.0", cpus: [1])]
        )
        #expect(facts.interruptConflict(cpu: 1)?.contains("virtio1-req.0") == true)
        #expect(facts.interruptConflict(cpu: 0) == nil)
        #expect(facts.interruptConflict(cpu: nil) == nil)
        let pairs = facts.pairs(
            idle: .spin,
            loop: try LoopDecision.make(.epoll),
            cpu: 1,
            dataDirectory: "d",
            directAlignment: nil,
            version: "9"
        )
        let values = Dictionary(uniqueKeysWithValues: pairs.map { ($0.name, $0.value) })
        #expect(values["disk"] == "vda, write cache: write back, no FUA")
        #expect(values["disk_interrupts"] == "virtio1-req.0 on CPU 1")
        #expect(values["direct_io"]?.hasPrefix("no: ") == true)
        #expect(values["idle"] == "spin")
        #expect(values["loop"] == "epoll")
        #expect(values["loop_reason"] == "--loop epoll")
    }
}
