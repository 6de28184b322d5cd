import BrokerProcess
import Foundation
import ShardRuntime
import Testing

/// A partition is moved by an operator.
@Suite(.serialized) struct MoveToolTests {
    @Test(
        "a move says where the partition was, is, and how long it was held back; so do the metrics",
        arguments: LoopKind.allCases
    )
    func move(loop: LoopKind) throws {
        let broker = try BrokerProcess(options: ["--shards", "2", "--loop", loop.rawValue])
        let ready = try broker.waitUntilReady()
        _ = try ControlTool.run(ready, ["queue", "create", "orders", "--partitions", "2"])
        _ = try ControlTool.run(
            ready, ["queue", "publish", "orders", "--lines", "-"], input: "a\nb\n")
        let moved = try ControlTool.run(
            ready, ["queue", "move", "orders/1", "--to", "0", "-o", "csv"]
        ).split(whereSeparator: \.isNewline)
        let columns = try #require(moved.first).split(separator: ",").map(String.init)
        let cells = try #require(moved.last).split(separator: ",").map(String.init)
        let told = Dictionary(uniqueKeysWithValues: zip(columns, cells))
        #expect(told["from_shard"] == "1" && told["shard"] == "0")
        let pause = try #require(told["pause_nanoseconds"].flatMap(Double.init))
        #expect(pause > 0)
        let lines = try HTTPGet.get(ready.admin, "/metrics").body.split(separator: "\n")
        let counted = lines.first {
            $0.hasPrefix("millrace_partition_move_pause_seconds_total{shard=\"0\"} ")
        }
        let seconds = try #require(counted?.split(separator: " ").last.flatMap { Double($0) })
        #expect(abs(seconds - pause / 1e9) < 1e-6)
        let read = try ControlTool.run(ready, ["queue", "consume", "orders", "--until-end"])
        #expect(read.split(separator: "\n").map(String.init).sorted() == ["a", "b"])
        let nowhere = try ControlTool.result(ready, ["queue", "move", "orders/1", "--to", "2"])
        #expect(nowhere.code == 1 && nowhere.errors.contains("there are 0 to 1"))
        #expect(
            try ControlTool.result(ready, ["queue", "move", "orders/7", "--to", "0"]).code == 2)
    }
}
