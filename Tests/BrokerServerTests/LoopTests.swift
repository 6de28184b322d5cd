import BrokerBasics
import BrokerProcess
import BrokerServer
import ChildProcess
import Foundation
import ShardRuntime
import Testing

/// Which loop a broker runs on, and what it says of it.
@Suite struct LoopTests {
    @Test("a spinning loop sleeps only when the disk is overdue")
    func overdue() {
        let since = MonotonicTime(nanoseconds: 1_000_000)
        let soon = since + (IdleStrategy.overdueNanoseconds - 1)
        let late = since + IdleStrategy.overdueNanoseconds
        func sleeps(_ idle: IdleStrategy, _ now: MonotonicTime, awaitsDisk: Bool) -> Bool {
            idle.shouldSleep(now: now, idleSince: since, awaitsDisk: awaitsDisk)
        }
        #expect(!sleeps(.spin, soon, awaitsDisk: true))
        #expect(sleeps(.spin, late, awaitsDisk: true))
        #expect(!sleeps(.spin, late + .seconds(60), awaitsDisk: false))
        #expect(sleeps(.adaptive, late, awaitsDisk: false))
        #expect(sleeps(.block, since, awaitsDisk: false))
    }

    private static let host = RingRefusal.Host(
        release: "6.1.0-18-amd64", uringDisabled: "0", hasSeccompFilter: false, memlockBytes: 65_536
    )

    @Test(
        "a refusal names its cause and what to change",
        arguments: [
            (EPERM, nil, "2", false, .uringDisabled, "io_uring_disabled is 2"),
            (EPERM, nil, "1", true, .uringDisabled, "members of kernel.io_uring_group"),
            (EPERM, nil, "0", true, .seccomp, "let io_uring_setup"),
            (EACCES, nil, nil, false, .unknown, "SELinux"),
            (ENOSYS, nil, nil, false, .kernel, "Linux 6.1 or later is needed"),
            (ENOSYS, nil, "0", true, .seccomp, "let io_uring_setup"),
            (ENOSYS, "4.19.0", nil, true, .kernel, "this is 4.19.0"),
            (EINVAL, "5.15.0", nil, true, .kernel, "this is 5.15.0"),
            (EOPNOTSUPP, "5.19.0", nil, false, .kernel, "this is 5.19.0"),
            (ENOMEM, nil, nil, false, .memlock, "raise RLIMIT_MEMLOCK"),
            (EMFILE, nil, nil, false, .descriptors, "raise RLIMIT_NOFILE"),
            (EIO, nil, nil, false, .unknown, "no cause is known"),
        ] as [(Int32, String?, String?, Bool, RingRefusal.Cause, String)]
    )
    func causes(
        code: Int32, release: String?, disabled: String?, hasFilter: Bool,
        cause: RingRefusal.Cause, advice: String
    ) {
        var host = Self.host
        host.release = release ?? host.release
        host.uringDisabled = disabled
        host.hasSeccompFilter = hasFilter
        let refusal = RingRefusal(SystemError("io_uring_setup", errno: code), host: host)
        #expect(refusal.cause == cause)
        #expect(refusal.description.hasPrefix("io_uring_setup failed: "))
        #expect(refusal.description.contains("(errno \(code))"))
        #expect(refusal.description.contains(advice), "\(refusal)")
    }

    @Test("auto takes io_uring, and epoll only where that is refused; a wish is kept or refused")
    func decisions() throws {
        let refusal = RingRefusal(SystemError("io_uring_setup", errno: EPERM), host: Self.host)
        #expect(try LoopDecision.make(.auto) { nil }.kind == .uring)
        #expect(try LoopDecision.make(.uring) { nil }.kind == .uring)
        #expect(try LoopDecision.make(.epoll) { nil }.kind == .epoll)
        let fallback = try LoopDecision.make(.auto) { refusal }
        #expect(fallback.kind == .epoll)
        #expect(fallback.refusal == refusal)
        #expect(fallback.reason == "io_uring is refused: unknown")
        #expect(try LoopDecision.make(.epoll) { refusal }.refusal == nil)
        #expect(throws: LoopRefused.self) { try LoopDecision.make(.uring) { refusal } }
    }

    /// A system call of io_uring that is refused, and with what.
    static let filters: [(call: String, code: Int32)] = [
        ("setup", EPERM), ("setup", ENOSYS), ("register", EPERM), ("enter", EPERM),
    ]

    @Test(
        "where io_uring is refused it serves on epoll, and log, status and metrics say why",
        arguments: filters
    )
    func fallback(call: String, code: Int32) throws {
        let broker = try BrokerProcess(launcher: ["withouturing", call, "\(code)"])
        let ready = try broker.waitUntilReady()
        #expect(ready.loop == "epoll")
        let warning = try #require(broker.logLines(event: "loop-fallback").first)
        let message = try #require(warning["message"] as? String)
        #expect(message.contains("io_uring is refused (seccomp)"))
        #expect(message.contains("io_uring_\(call) failed"))
        #expect(warning["cause"] as? String == "seccomp")
        let metrics = try HTTPGet.get(ready.admin, "/metrics").body
        #expect(
            metrics.contains(
                "\nmillrace_loop_info{loop=\"epoll\",reason=\"io_uring is refused: seccomp\"} 1\n"
            )
        )
        let status = try ControlTool.run(ready, ["server", "status", "-o", "json"])
        #expect(status.contains("\"loop\": \"epoll\""), "\(status)")
        #expect(status.contains("\"loop_reason\": \"io_uring is refused: seccomp\""), "\(status)")
        _ = try ControlTool.run(ready, ["queue", "create", "orders"])
        _ = try ControlTool.run(
            ready, ["queue", "publish", "orders", "--lines", "-"], input: "a\n")
        #expect(try ControlTool.run(ready, ["queue", "consume", "orders", "--until-end"]) == "a\n")
        #expect(broker.stop() == .exited(0))
    }

    @Test("io_uring or nothing: where it is refused the start fails, says why, and touches no disk")
    func forced() throws {
        let broker = try BrokerProcess(
            options: ["--loop", "io_uring"], launcher: ["withouturing", "setup", "\(EPERM)"])
        #expect(broker.waitForEnd() == .exited(1))
        let line = try #require(broker.logLines(event: "start-failed").first)
        let message = try #require(line["message"] as? String)
        #expect(message.contains("--loop io_uring, but io_uring is refused here (seccomp)"))
        #expect(
            message.contains("let io_uring_setup, io_uring_enter and io_uring_register through"))
        #expect(message.contains("--loop auto"))
        #expect(!FileManager.default.fileExists(atPath: broker.dataDirectory))
    }

    @Test("where io_uring is allowed, auto takes it without a warning")
    func allowed() throws {
        let broker = try BrokerProcess()
        let ready = try broker.waitUntilReady()
        #expect(ready.loop == "io_uring")
        #expect(broker.logLines(event: "loop-fallback").isEmpty)
    }
}
