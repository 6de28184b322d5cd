import BrokerProcess
import ChildProcess
import Foundation
import Glibc
import ShardRuntime
import Testing

/// Images that can't be made: nothing that looks like one is left, and the broker goes on.
@Suite(.serialized) struct FailedBackupTests {
    private func names(_ path: String) throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: path)
    }

    private func directory() throws -> String {
        let path = FileManager.default.temporaryDirectory.path + "/images-\(UUID().uuidString)"
        try #require(mkdir(path, 0o700) == 0)
        return path
    }

    private func isServing(_ ready: BrokerProcess.Ready) throws -> Bool {
        let publish = ["queue", "publish", "orders", "--lines", "-"]
        return try ControlTool.result(ready, publish, input: "again\n").code == 0
    }

    @Test("without --backup-dir, and for a name that is a path, no image is made")
    func refused() throws {
        let path = try directory()
        defer { try? FileManager.default.removeItem(atPath: path) }
        let without = try BrokerProcess()
        let off = try ControlTool.result(try without.waitUntilReady(), ["backup", "x"])
        #expect(off.code == 1)
        #expect(off.errors.contains("--backup-dir"))
        let broker = try BrokerProcess(options: ["--backup-dir", path])
        let ready = try broker.waitUntilReady()
        for name in ["../x", "/x", ".x", "a/b", ""] {
            let result = try ControlTool.result(ready, ["backup", name])
            #expect(result.code == 1, "\(name)")
            #expect(result.errors.contains("name-invalid"))
        }
        #expect(try names(path).isEmpty)
        let gone = try BrokerProcess(options: ["--backup-dir", path + "/none"])
        let result = try ControlTool.result(try gone.waitUntilReady(), ["backup", "x"])
        #expect(result.code == 1)
        #expect(result.errors.contains("backup-failed"))
    }

    @Test(
        "where there is no room it is refused with disk-full, and nothing of it is left",
        .enabled(if: SmallFileSystem.isPossible, "a tmpfs can't be mounted here"))
    func noRoom() throws {
        let disk = try #require(SmallFileSystem(bytes: 48 << 20))
        let broker = try BrokerProcess(options: ["--backup-dir", disk.path, "--shards", "2"])
        let ready = try broker.waitUntilReady()
        _ = try ControlTool.run(ready, ["queue", "create", "orders"])
        // Two journals of 64 MiB.
        let result = try ControlTool.result(ready, ["backup", "x"])
        #expect(result.code == 1)
        #expect(result.errors.contains("disk-full"), "\(result.errors)")
        #expect(try names(disk.path).isEmpty)
        #expect(disk.available > 40 << 20)
        #expect(try isServing(ready))
    }

    @Test(
        "whoever leaves or a stop in the middle ends it, and nothing has its name",
        arguments: [(LoopKind.uring, 1), (.uring, 3), (.epoll, 2)])
    func ended(loop: LoopKind, shards: Int) throws {
        let path = try directory()
        defer { try? FileManager.default.removeItem(atPath: path) }
        let broker = try BrokerProcess(
            options: [
                "--backup-dir", path, "--shards", "\(shards)", "--loop", loop.rawValue,
            ])
        let ready = try broker.waitUntilReady()
        _ = try ControlTool.run(ready, ["queue", "create", "orders"])
        // 64 MiB of journal take a minute at this rate.
        let hasty = ["backup", "hasty", "--bandwidth", "1MiB", "--patience", "1"]
        #expect(try ControlTool.result(ready, hasty).code == 3)
        let deadline = Date().addingTimeInterval(60)
        while try !names(path).isEmpty {
            try #require(Date() < deadline)
            usleep(20_000)
        }
        #expect(try isServing(ready))
        let late = Thread {
            let arguments = ["backup", "late", "--bandwidth", "1MiB"]
            // The one before may not be over yet, though nothing of it is left.
            while let result = try? ControlTool.result(ready, arguments),
                result.errors.contains("busy")
            { usleep(20_000) }
        }
        late.start()
        while try !names(path).contains(".late.partial") {
            try #require(Date() < deadline)
            usleep(20_000)
        }
        #expect(broker.stop() == .exited(0))
        #expect(try !names(path).contains("late"))
    }
}
