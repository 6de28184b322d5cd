import BlockingClient
import BrokerBasics
import BrokerProcess
import ChildProcess
import Foundation
import ShardRuntime
import Testing
import WireProtocol

/// A broker of two shards: where each is reached, and what an operator sees of it.
@Suite(.serialized) struct ShardAddressTests {
    private struct Bench {
        let broker: BrokerProcess
        let ready: BrokerProcess.Ready
        let socketPath: String

        init(_ loop: LoopKind) throws {
            socketPath =
                FileManager.default.temporaryDirectory.path + "/\(UUID().uuidString).sock"
            broker = try BrokerProcess(
                options: [
                    "--listen", "127.0.0.1:0", "--listen", "unix:\(socketPath)", "--shards", "2",
                    "--loop", loop.rawValue,
                ])
            ready = try broker.waitUntilReady()
        }

        /// What `shard info` says, by name.
        func facts(of shard: Int) throws -> [String: Any] {
            let text = try ControlTool.run(ready, ["shard", "info", "\(shard)", "-o", "json"])
            return try #require(
                JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any])
        }
        func forwarded(by shard: Int) throws -> Int {
            try #require(try facts(of: shard)["frames_forwarded"] as? Int)
        }
    }

    /// By shard, where it is reached directly, as HELLO says at `address`.
    private func map(at address: String) throws -> [UInt16: [String]] {
        let connection = try Connection(
            to: try ServerAddress(parsing: address), clientName: "test")
        return Dictionary(grouping: connection.hello.shards, by: \.shard)
            .mapValues { $0.map(\.address).sorted() }
    }

    private func publish(_ count: Int, to partition: Int, at address: String) throws {
        let stream = try PublishStream(to: try ServerAddress(parsing: address), queue: "orders")
        for number in 0..<count {
            var batch = BatchBuilder()
            _ = batch.append(Record(value: Array("\(number)".utf8)))
            try stream.publish(batch, to: partition)
        }
        #expect(try stream.finish().count == count)
    }

    @Test(
        "HELLO says where each shard is reached; at its owner's address a publish is not forwarded",
        arguments: LoopKind.allCases
    )
    func direct(loop: LoopKind) throws {
        let bench = try Bench(loop)
        let general = bench.ready.listen
        #expect(general.count == 2)
        let map = try map(at: bench.ready.address)
        #expect(map.keys.sorted() == [0, 1])
        for shard in UInt16(0)..<2 {
            let addresses = try #require(map[shard])
            #expect(addresses.count == 2, "one by TCP, one by a socket file")
            #expect(addresses.contains("unix:\(bench.socketPath).\(shard)"))
            #expect(FileManager.default.fileExists(atPath: "\(bench.socketPath).\(shard)"))
        }
        let everywhere = general + map.values.flatMap { $0 }
        #expect(Set(everywhere).count == 6, "\(everywhere)")
        for address in everywhere { #expect(try self.map(at: address) == map, "\(address)") }

        _ = try ControlTool.run(
            bench.ready, ["queue", "create", "orders", "--partitions", "2"])
        let control = try Connection(
            to: try ServerAddress(parsing: bench.ready.address), clientName: "test")
        let queue = try control.request(
            .queueDescribe, QueueNameRequest(name: "orders"), reply: QueueInfo.self)
        #expect(queue.partitions.map(\.shard).sorted() == [0, 1])
        var stored: UInt64 = 0
        for (shard, addresses) in map {
            let other = Int(1 - shard)
            let own = try #require(queue.partitions.first { $0.shard == shard })
            let foreign = try #require(queue.partitions.first { $0.shard != shard })
            for address in addresses {
                let before = try (0..<2).map { try bench.forwarded(by: $0) }
                try publish(5, to: Int(own.index), at: address)
                #expect(try (0..<2).map { try bench.forwarded(by: $0) } == before, "\(address)")
                try publish(5, to: Int(foreign.index), at: address)
                #expect(try bench.forwarded(by: Int(shard)) == before[Int(shard)] + 5)
                #expect(try bench.forwarded(by: other) == before[other], "\(address)")
                stored += 10
            }
        }
        let after = try control.request(
            .queueDescribe, QueueNameRequest(name: "orders"), reply: QueueInfo.self)
        #expect(after.partitions.map(\.records).reduce(0, +) == stored)
        #expect(bench.broker.stop() == .exited(0))
        for shard in 0..<2 {
            #expect(!FileManager.default.fileExists(atPath: "\(bench.socketPath).\(shard)"))
        }
    }

    @Test("shard ls and shard info say what each shard has and where it is; others are refused")
    func tool() throws {
        let bench = try Bench(.uring)
        _ = try ControlTool.run(bench.ready, ["queue", "create", "orders", "--partitions", "3"])
        let map = try map(at: bench.ready.address)
        let list = try ControlTool.run(bench.ready, ["shard", "ls", "-o", "json"])
        let rows = try #require(
            JSONSerialization.jsonObject(with: Data(list.utf8)) as? [[String: Any]])
        #expect(rows.compactMap { $0["shard"] as? Int } == [0, 1])
        #expect(rows.compactMap { $0["partitions"] as? Int }.reduce(0, +) == 3)
        for (shard, row) in rows.enumerated() {
            #expect(row["stage"] as? String == "ready")
            let addresses = try #require(row["addresses"] as? String)
            #expect(addresses.split(separator: " ").map(String.init).sorted() == map[UInt16(shard)])
            // The same of one alone, with more.
            let facts = try bench.facts(of: shard)
            #expect(facts["shard"] as? Int == shard)
            #expect(facts["partitions"] as? Int == row["partitions"] as? Int)
            #expect(facts["addresses"] as? String == addresses)
            #expect(facts["storage"] as? String == "ok")
            #expect(facts["journal_bytes"] as? Int == 64 << 20)
        }
        let table = try ControlTool.run(bench.ready, ["shard", "ls"]).split(separator: "\n")
        #expect(table.count == 3)
        #expect(table.first?.contains("FORWARDED") == true)
        #expect(try ControlTool.run(bench.ready, ["shard", "info", "1"]).contains("addresses"))

        let none = try ControlTool.result(bench.ready, ["shard", "info", "2", "-o", "json"])
        #expect(none.code == 1)
        #expect(none.output.isEmpty)
        #expect(none.errors.contains("there is no shard 2; the broker has 2, from 0"))
        #expect(try ControlTool.result(bench.ready, ["shard", "info", "x"]).code == 2)
        #expect(try ControlTool.result(bench.ready, ["shard", "info", "-1"]).code == 2)
    }
}
