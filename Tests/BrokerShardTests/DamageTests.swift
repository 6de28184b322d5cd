import BrokerBasics
import BrokerCore
import BrokerShard
import BrokerTestSupport
import LogStorage
import Testing
import WireProtocol

@Suite("Damage")
struct DamageTests {
    private func powerCut(
        _ fixture: Fixture, _ survival: SimulatedDisk.Survival = .none
    ) -> SimulatedDisk {
        var random = SeededRandom(seed: 9)
        return fixture.shard.disk.afterPowerCut(survival, &random)
    }

    /// - Returns: the error with which recovery stops, `nil` when it does not.
    private func recoveryError(_ disk: SimulatedDisk, shards: Int = 1) -> RecoveryError? {
        var settings = SimulatedShard.Settings()
        settings.shards = shards
        do throws(RecoveryError) {
            _ = try SimulatedShard(disk: disk, settings: settings, seed: 1)
            return nil
        } catch {
            return error
        }
    }

    @Test("a flipped bit in the durable part of the journal stops recovery, naming the place")
    func durableJournal() throws {
        let fixture = try Fixture()
        let partition = try fixture.create("orders")[0]
        try fixture.publish(6, to: partition)
        let geometry = fixture.shard.settings.geometry
        let start = fixture.shard.machine.checkpointer.lastPosition
        let end = fixture.shard.machine.journal.durablePosition
        let block = UInt64(JournalGeometry.blockBytes)
        #expect((end - start) / block >= 7)
        var tried = 0
        // The last group is not attested by another: it is the torn tail's.
        for position in stride(from: start, to: end - block, by: Int(block)) {
            for byte in [0, 5, 17, 41, 70, 90] {
                let disk = powerCut(fixture)
                let file = FileName.journal(geometry.file(of: position))
                let offset = geometry.offset(of: position)
                disk.flip(file, bit: (Int(offset) + byte) * 8 + 3)
                guard case .journal(let damage)? = recoveryError(disk) else {
                    Issue.record("byte \(byte) of the group at \(position) is not missed")
                    continue
                }
                #expect(damage.file == file.path)
                #expect(damage.offset == offset)
                #expect(damage.lost.lowerBound == position)
                #expect(damage.description.contains(file.path))
                tried += 1
            }
        }
        #expect(tried >= 36)
        #expect(recoveryError(powerCut(fixture)) == nil)
    }

    /// - Returns: after how many operations of the first start a kill, records that were confirmed by the
    ///   second, and a power cut left a directory without them.
    private func losses(_ faults: StorageFaults) throws -> (lost: Int, kills: Int) {
        var lost = 0
        var random = SeededRandom(seed: 4)
        for kills in 0... {
            let disk = SimulatedDisk()
            disk.operationsUntilCrash = kills
            let first = try? SimulatedShard(
                disk: disk, settings: SimulatedShard.Settings(), seed: 1)
            guard first == nil else { return (lost, kills) }
            disk.operationsUntilCrash = nil
            let fixture = try Fixture(disk: disk.afterKill(&random)) { $0.faults = faults }
            try fixture.publish(3, to: try fixture.create("orders")[0])
            guard let after = try? Fixture(disk: powerCut(fixture)),
                after.client.subscribe("orders", stream: 1) != nil
            else {
                lost += 1
                continue
            }
            after.shard.run(steps: 300) { after.client.delivered.count == 3 }
            if after.client.delivered.map(\.text) != ["0", "1", "2"] { lost += 1 }
        }
        return (lost, .max)
    }

    @Test("what a killed start has made of its directory is durable before anybody is served")
    func killedStart() throws {
        let (lost, kills) = try losses(StorageFaults())
        #expect(lost == 0)
        #expect(kills > 10)
        var broken = StorageFaults()
        broken.foundFilesNotSynced = true
        #expect(try losses(broken).lost > 0)
    }

    @Test("damage in the files of another shard is named by that shard's folder")
    func otherShard() throws {
        let fixture = try Fixture { $0.shards = 2 }
        let queue = try fixture.create("orders", partitions: 2)
        for partition in queue { try fixture.publish(6, to: partition) }
        let (start, geometry, sequence) = fixture.shard.withMachine(1) {
            ($0.checkpointer.lastPosition, $0.journal.geometry, $0.checkpointer.sequence)
        }
        #expect(recoveryError(powerCut(fixture), shards: 2) == nil)
        func text(flipping file: FileName, byte: Int) -> String {
            let disk = powerCut(fixture)
            disk.flip(file, bit: byte * 8 + 3, shard: 1)
            return recoveryError(disk, shards: 2)?.description ?? "nothing is found"
        }
        let file = FileName.journal(geometry.file(of: start))
        let journal = text(flipping: file, byte: Int(geometry.offset(of: start)) + 41)
        #expect(journal.hasPrefix("shard-1/\(file.path) is damaged"))
        let identity = text(flipping: .identity, byte: 20)
        #expect(identity.hasPrefix("shard-1/\(FileName.identity.path) is damaged"))
        let checkpoint = text(flipping: .checkpoint(sequence), byte: 100)
        #expect(checkpoint.hasPrefix("shard-1/checkpoints is damaged"))
    }

    @Test("a flipped bit in what was never confirmed is a torn tail: recovery drops it and goes on")
    func tornTail() throws {
        let fixture = try Fixture()
        let partition = try fixture.create("orders")[0]
        try fixture.publish(4, to: partition)
        fixture.shard.pass(milliseconds: 30)
        let geometry = fixture.shard.settings.geometry
        let position = fixture.shard.machine.journal.writePosition
        fixture.client.publish(batch(["torn"]), partition: partition)
        let file = FileName.journal(geometry.file(of: position))
        for byte in [0, 4, 12, 33, 100] {
            let disk = powerCut(fixture, .all)
            disk.flip(file, bit: (Int(geometry.offset(of: position)) + byte) * 8)
            let after = try Fixture(disk: disk)
            #expect(after.shard.report.tornBytes > 0 || byte == 0)
            #expect(try after.readBack("orders", records: 4).map(\.text) == ["0", "1", "2", "3"])
        }
        // Untouched, it is whole, and may stay.
        let whole = try Fixture(disk: powerCut(fixture, .all))
        #expect(try whole.readBack("orders", records: 5).last?.text == "torn")
    }

    @Test("a flipped bit in a segment ends the subscription that reads it, by name; others go on")
    func segment() throws {
        let before = try Fixture()
        let orders = try before.create("orders")[0]
        let ticks = try before.create("ticks")[0]
        for number in 0..<60 {
            try before.publish(batch(["\(number)"], bytes: 900), to: orders)
            try before.publish(batch(["\(number)"], bytes: 900), to: ticks)
        }
        before.shard.machine.beginStop()
        before.shard.run { before.shard.machine.stage == .stopped }
        let segments = before.shard.disk.allNames.filter {
            if case .segment(orders, _, _) = $0 { true } else { false }
        }
        let file = try #require(segments.first)
        // The header of a chunk, a batch's stamp, a record.
        for byte in [4096 + 4, 4096 + 20, 4096 + 70, 4096 + 500, 8192 + 5000] {
            let disk = powerCut(before)
            disk.flip(file, bit: byte * 8 + 1)
            let fixture = try Fixture(disk: disk)
            let client = fixture.client
            _ = try #require(client.subscribe("orders", stream: 1))
            _ = try #require(client.subscribe("ticks", stream: 2))
            fixture.shard.run(steps: 2000) {
                !client.pushes.isEmpty && client.delivered.count { $0.partition == ticks } == 60
            }
            let push = try #require(client.pushes.first, "byte \(byte)")
            #expect(push.header.opcode == Opcode.ended.rawValue)
            #expect(push.header.stream == 1)
            #expect(StatusCode(rawValue: push.header.status) == .dataDamaged)
            #expect(try Refusal(body: push.body).message.contains(file.path))
            #expect(client.delivered.count { $0.partition == ticks } == 60)
            #expect(client.badBatches == 0)
            #expect(fixture.counters.damagedChunks >= 1)
            // What lies behind the damage can still be had.
            let behind = try fixture.connect()
            _ = try #require(behind.subscribe("orders", start: .offset(55), stream: 1))
            fixture.shard.run(steps: 500) { behind.delivered.last?.offset == 59 }
            #expect(behind.delivered.last?.offset == 59)
            try fixture.publish(batch(["on"]), to: orders)
        }
    }

    @Test("a damaged checkpoint is refused, or the one before it still reaches: nothing is guessed")
    func checkpoint() throws {
        let fixture = try Fixture()
        let partition = try fixture.create("orders")[0]
        try fixture.publish(4, to: partition)
        fixture.shard.pass(milliseconds: 12_000)
        let checkpoints = powerCut(fixture, .all).allNames.filter { $0.directory == .checkpoints }
        let newest = try #require(checkpoints.last)
        for byte in [0, 13, 17, 25, 64, 80, 120] {
            // The removal of the one before is not on stable storage: it and the journal have all.
            let both = powerCut(fixture)
            both.flip(newest, bit: byte * 8)
            let after = try Fixture(disk: both)
            #expect(try after.readBack("orders", records: 4).map(\.text) == ["0", "1", "2", "3"])
            let disk = powerCut(fixture, .all)
            disk.flip(newest, bit: byte * 8)
            let error = recoveryError(disk)
            guard case .damaged(let file, _, let what)? = error else {
                Issue.record("byte \(byte) of the checkpoint: \(String(describing: error))")
                continue
            }
            #expect(file == "checkpoints")
            #expect(what.contains("no whole checkpoint"))
        }
    }

    @Test("a directory or checkpoint of a newer format is refused, with its number")
    func newerFormat() throws {
        let fixture = try Fixture()
        _ = try fixture.create("orders")
        let checkpoint = try #require(
            powerCut(fixture).allNames.last { $0.directory == .checkpoints })
        for file in [FileName.identity, checkpoint] {
            let disk = powerCut(fixture)
            disk.flip(file, bit: 8 * 8 + 7)
            let error = try #require(recoveryError(disk))
            #expect(error.description.contains(file.path))
            #expect(error.description.contains("format \(Identity.format + 128)"))
            #expect(error.description.contains("Use a newer brokerd"))
        }
        let disk = powerCut(fixture)
        disk.flip(.identity, bit: 20 * 8)
        let error = try #require(recoveryError(disk))
        #expect(error.description.contains("millrace.identity is damaged"))
    }
}
