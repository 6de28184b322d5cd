import BrokerProcess
import ChildProcess
import Foundation
import Glibc
import ShardRuntime
import Testing

/// A small file system of its own, in memory, for as long as this lives.
final class SmallFileSystem {
    let path: String

    /// - Returns: `nil` where this process may not mount one.
    init?(bytes: Int) {
        path = FileManager.default.temporaryDirectory.path + "/disk-\(UUID().uuidString)"
        guard mkdir(path, 0o700) == 0 else { return nil }
        guard mount("none", path, "tmpfs", 0, "size=\(bytes)") == 0 else {
            rmdir(path)
            return nil
        }
    }
    deinit {
        let detach: Int32 = 2  // MNT_DETACH of <sys/mount.h>, which is no number in Swift.
        umount2(path, detach)
        rmdir(path)
    }

    static let isPossible = SmallFileSystem(bytes: 1 << 20) != nil

    /// What another program leaves there.
    func fill(_ name: String, bytes: Int64) -> Bool {
        let file = open(path + "/" + name, O_WRONLY | O_CREAT, 0o600)
        guard file >= 0 else { return false }
        defer { close(file) }
        return posix_fallocate(file, 0, off_t(bytes)) == 0
    }

    /// Bytes that are left.
    var available: Int64 {
        var facts = statvfs()
        guard statvfs(path, &facts) == 0 else { return 0 }
        return Int64(facts.f_bavail) * Int64(facts.f_frsize)
    }
}

/// A real broker on a file system of 64 MiB that another program fills.
@Suite(.serialized) struct DiskFullTests {
    private func waitFor(_ what: String, _ condition: () throws -> Bool) throws {
        let deadline = Date().addingTimeInterval(120)
        while try !condition() {
            try #require(Date() < deadline, "\(what) did not come")
            usleep(20_000)
        }
    }

    @Test(
        "on a full disk new records are refused, the rest is served, and it goes on by itself",
        .enabled(if: SmallFileSystem.isPossible, "a tmpfs can't be mounted here"),
        arguments: LoopKind.allCases)
    func fills(loop: LoopKind) throws {
        let disk = try #require(SmallFileSystem(bytes: 64 << 20))
        let broker = try BrokerProcess(
            dataDirectory: disk.path + "/data",
            options: [
                "--loop", loop.rawValue, "--journal-size", "16MiB", "--frame-bytes-max", "64KiB",
                "--tail-memory", "16MiB", "--segment-size", "1MiB", "--disk-reserve", "2MiB",
                "--checkpoint-interval", "200ms",
            ])
        let ready = try broker.waitUntilReady()
        func tool(_ arguments: [String], input: String = "") throws -> String {
            try ControlTool.run(ready, arguments, input: input)
        }
        func level() throws -> String {
            let status = try tool(["server", "status", "-o", "json"])
            let object = try JSONSerialization.jsonObject(with: Data(status.utf8))
            return try #require((object as? [String: Any])?["disk_level"] as? String)
        }
        func lines(_ count: Int, from first: Int = 0) -> String {
            (first..<first + count).map { "\($0) " + String(repeating: "x", count: 1000) + "\n" }
                .joined()
        }
        _ = try tool(["queue", "create", "orders"])
        _ = try tool(["queue", "create", "brief"])
        _ = try tool(["queue", "publish", "orders", "--lines", "-"], input: lines(3000))
        _ = try tool(["queue", "publish", "brief", "--lines", "-"], input: lines(2000))
        #expect(try level() == "ok")

        // To the last page.
        let reserve = disk.path + "/data/millrace.reserve"
        try waitFor("the reserve") { access(reserve, F_OK) == 0 }
        #expect(disk.fill("other", bytes: disk.available - (1 << 20)))
        var size = disk.available
        var rests = 0
        while size >= 4096 {
            if disk.fill("rest-\(rests)", bytes: size) { rests += 1 } else { size /= 2 }
            size = min(size, disk.available)
        }
        #expect(rests > 0)
        // A checkpoint may find no room before somebody looks at the disk.
        try waitFor("the level") { broker.logLines(event: "disk-reads-only").count == 1 }
        #expect(try level() == "reads-only")
        let refused = try ControlTool.result(
            ready, ["queue", "publish", "orders", "--lines", "-", "--retry-seconds", "1"],
            input: lines(1))
        #expect(refused.code == 1 && refused.errors.contains("disk-full"), "\(refused.errors)")
        #expect(
            try ControlTool.result(ready, ["queue", "create", "late"]).errors.contains("disk-full"))
        func checkpoints() throws -> Int {
            let name = "millrace_checkpoints_total "
            let lines = try HTTPGet.get(ready.admin, "/metrics").body.split(separator: "\n")
            return lines.first { $0.hasPrefix(name) }.flatMap { Int($0.dropFirst(name.count)) } ?? 0
        }
        let before = try checkpoints()
        // Consumers drain, and their acks are kept.
        let read = try tool([
            "queue", "consume", "orders", "--group", "g", "--from", "start", "--count", "3000",
        ])
        #expect(read.split(separator: "\n").count == 3000)
        let group = try tool(["group", "info", "orders", "g", "-o", "json"])
        #expect(group.contains("\"lag_records\": 0"), "\(group)")
        // And a checkpoint finds its room: that of the one before it, or the reserve's.
        try waitFor("a checkpoint") { try checkpoints() > before }
        #expect(try HTTPGet.get(ready.admin, "/metrics").body.contains("_disk_room_awaited 0\n"))
        #expect(try HTTPGet.get(ready.admin, "/readyz").status == 200)
        let metrics = try HTTPGet.get(ready.admin, "/metrics").body
        #expect(metrics.contains("\nmillrace_disk_level 3\n"))
        #expect(metrics.contains("\nmillrace_storage_failed 0\n"))

        // A kill now, and a start with little room.
        broker.kill()
        for place in 0..<rests { unlink(disk.path + "/rest-\(place)") }
        let again = try BrokerProcess(
            dataDirectory: disk.path + "/data",
            options: [
                "--loop", loop.rawValue, "--frame-bytes-max", "64KiB", "--tail-memory", "16MiB",
                "--segment-size", "1MiB", "--disk-reserve", "2MiB",
            ])
        let second = try again.waitUntilReady()
        #expect(
            try ControlTool.result(
                second, ["queue", "publish", "orders", "--lines", "-", "--retry-seconds", "1"],
                input: lines(1)
            ).errors.contains("disk-full"))
        _ = try ControlTool.run(second, ["queue", "purge", "brief", "--yes"])
        // There is room again: nobody restarts anything.
        unlink(disk.path + "/other")
        try waitFor("the room") { again.logLines(event: "disk-ok").count == 1 }
        _ = try ControlTool.run(
            second, ["queue", "publish", "orders", "--lines", "-"], input: lines(500, from: 3000))
        let all = try ControlTool.run(
            second, ["queue", "consume", "orders", "--from", "start", "--until-end"])
        let numbers = all.split(separator: "\n").compactMap { $0.split(separator: " ").first }
        #expect(numbers.map { Int($0) } == (0..<3500).map { $0 })
        #expect(again.stop() == .exited(0))
        withExtendedLifetime(disk) {}
    }
}
