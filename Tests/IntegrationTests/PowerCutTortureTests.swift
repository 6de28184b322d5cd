import ChildProcess
import Foundation
import Testing

/// The program that cuts the power of a real broker's disk: what it finds, and that it would find it.
///
/// 8 cuts as a rule, 400 with `MILLRACE_TORTURE=1`; `MILLRACE_SEED=N` repeats a run's choices.
@Suite(
    .serialized,
    .enabled(if: PowerCutRun.obstacle == nil, PowerCutRun.comment)
)
struct PowerCutTortureTests {
    private static let environment = ProcessInfo.processInfo.environment
    private static let isLong = !(environment["MILLRACE_TORTURE"] ?? "").isEmpty
    private static let seed =
        environment["MILLRACE_SEED"].flatMap(UInt64.init) ?? UInt64.random(in: 1...999_999)

    /// A long run takes about a second per cut on two cores that others use as well.
    private static let patienceMilliseconds = 3_600_000

    private func run(_ arguments: [String]) throws -> PowerCutRun {
        let run = try PowerCutRun(arguments + ["--seed", "\(Self.seed)"])
        let again = "again: powercut \(arguments.joined(separator: " ")) --seed \(Self.seed)"
        #expect(
            run.wait(milliseconds: Self.patienceMilliseconds) == .exited(0),
            "\(again)\n\(run.output)"
        )
        print(run.output)
        try run.expectNothingRuns()
        return run
    }

    @Test(
        "the power cut at any place, with any part of what was not flushed: every promise is kept")
    func cuts() throws {
        let length = Self.isLong ? ["--cuts", "400", "--steps", "2000"] : ["--steps", "400"]
        let run = try run((Self.isLong ? [] : ["--cuts", "8"]) + length)
        #expect(run.output.contains("\n0 cuts broke a promise\n"))
        #expect(run.output.contains(" cuts of several shards, "))
    }

    @Test(
        "a disk that answers flushes and does nothing is found out by every cut that takes records")
    func lyingDisk() throws {
        let run = try run(
            ["--lying", "--cuts", Self.isLong ? "40" : "6", "--steps", "300"]
        )
        #expect(run.output.contains(" and 0 of them were not found\n"))
    }

    @Test("a broker whose fsyncs do nothing is found out")
    func withoutSync() throws {
        let run = try run(
            ["--without-sync", "--cuts", Self.isLong ? "60" : "15", "--steps", "300"]
        )
        #expect(run.output.contains("broken on purpose: withoutSync"))
    }

    @Test(
        "ended in the middle, it leaves no mount, no loop device and no broker behind",
        arguments: [SIGINT, SIGKILL]
    )
    func ended(number: Int32) throws {
        let run = try PowerCutRun(["--steps", "1000000"])
        let limit = ContinuousClock().now + .seconds(120)
        while try !run.hasServingBroker(), ContinuousClock().now < limit { usleep(20_000) }
        #expect(try run.hasServingBroker())
        run.child.signal(number)
        let end = run.wait(milliseconds: 60_000)
        #expect(end == (number == SIGKILL ? .signalled(SIGKILL) : .exited(1)), "\(run.output)")
        // The kernel ends the broker and takes the mounts down in its own time.
        let gone = ContinuousClock().now + .seconds(30)
        while try run.isLeft(), ContinuousClock().now < gone { usleep(20_000) }
        try run.expectNothingRuns()
    }
}
