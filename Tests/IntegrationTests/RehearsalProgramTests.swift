import ChildProcess
import Foundation
import Testing

/// The program behind `make run`: it tells by its exit code, and leaves nothing behind.
@Suite(.serialized) struct RehearsalProgramTests {
    private final class Bench {
        /// Its temporary directories are made in here.
        let directory: TemporaryDirectory
        private let program: String

        init() throws {
            directory = try TemporaryDirectory(prefix: "millrace-test")
            program = try #require(Executable.beside("rehearsal"))
        }

        func start(_ arguments: [String]) throws -> SpawnedChild {
            try SpawnedChild(
                "env",
                arguments: ["TMPDIR=\(directory.path)", program] + arguments,
                output: .file(directory.path + "/out"),
                errors: .file(directory.path + "/err")
            )
        }

        var output: String {
            (try? String(contentsOfFile: directory.path + "/out", encoding: .utf8)) ?? ""
        }
        var errors: String {
            (try? String(contentsOfFile: directory.path + "/err", encoding: .utf8)) ?? ""
        }

        func expectNothingLeft() throws {
            let left = try FileManager.default.contentsOfDirectory(atPath: directory.path)
            #expect(Set(left).isSubset(of: ["out", "err"]))
            // A broker that still ran would hold files below the directory.
            for process in try FileManager.default.contentsOfDirectory(atPath: "/proc") {
                guard Int(process) != nil,
                    let line = try? String(
                        contentsOfFile: "/proc/\(process)/cmdline",
                        encoding: .utf8
                    )
                else { continue }
                #expect(!line.contains(directory.path + "/millrace-rehearsal"))
            }
        }
    }

    @Test("a short rehearsal passes and says what ran")
    func passes() throws {
        let bench = try Bench()
        let child = try bench.start(["--seconds", "2", "--rate", "3000", "--seed", "5"])
        #expect(child.wait(timeoutMilliseconds: 60_000) == .exited(0), "\(bench.output)")
        for part in [
            "orders: generated, seed 5, 20,000 lines", "marketdata: generated", "SIGKILL",
            "ready after", "every confirmed record is there once", "trace contexts",
            "the crash took", "\nPASS\n",
        ] {
            #expect(bench.output.contains(part), "\(part) in \(bench.output)")
        }
        try bench.expectNothingLeft()
    }

    @Test("interrupted, it kills its broker and removes its files", arguments: [SIGINT, SIGTERM])
    func interrupted(number: Int32) throws {
        let bench = try Bench()
        let child = try bench.start(["--seconds", "30", "--seed", "5"])
        let limit = ContinuousClock().now + .seconds(20)
        while !bench.output.contains("in flight"), ContinuousClock().now < limit { usleep(5_000) }
        #expect(bench.output.contains("in flight"))
        child.signal(number)
        #expect(child.wait(timeoutMilliseconds: 20_000) == .exited(1))
        #expect(bench.output.contains("interrupted"))
        try bench.expectNothingLeft()
    }

    @Test(
        "what cannot run ends with 1 and one line that says why",
        arguments: [
            (["--orders", "/no/such/file"], "/no/such/file: No such file or directory"),
            (["--brokerd", "/no/such/brokerd"], "/no/such/brokerd"),
            (["--brokerd", "/bin/false"], "brokerd ended with exit code 1"),
        ]
    )
    func cannot(arguments: [String], reason: String) throws {
        let bench = try Bench()
        let child = try bench.start(arguments)
        #expect(child.wait(timeoutMilliseconds: 20_000) == .exited(1))
        #expect(bench.output.contains(reason), "\(bench.output) \(bench.errors)")
        #expect(bench.output.contains("FAIL"))
        try bench.expectNothingLeft()
    }
}
