import ChildProcess
import Foundation
import Testing

@Suite struct ChildTests {
    @Test("how a process ended is told: its code, or its signal")
    func ends() throws {
        let exits = try SpawnedChild("sh", arguments: ["-c", "exit 7"])
        #expect(exits.wait(timeoutMilliseconds: 10_000) == .exited(7))
        #expect(exits.signal(SIGTERM) == false)
        let sleeps = try SpawnedChild("sleep", arguments: ["60"])
        #expect(sleeps.wait(timeoutMilliseconds: 1) == nil)
        #expect(sleeps.signal(SIGKILL))
        #expect(sleeps.wait(timeoutMilliseconds: 10_000) == .signalled(SIGKILL))
    }

    @Test("a process goes with the object that stands for it")
    func goes() throws {
        var child: SpawnedChild? = try SpawnedChild("sleep", arguments: ["60"])
        let number = try #require(child?.processID)
        #expect(kill(number, 0) == 0)
        child = nil
        #expect(kill(number, 0) == -1 && errno == ESRCH)
    }

    @Test("a process inherits no descriptor but its three streams")
    func descriptors() throws {
        let kept = open("/dev/null", O_RDONLY)
        defer { close(kept) }
        var text = ""
        try ChildOutput.read("sh", ["-c", "ls /proc/$$/fd"]) {
            text += String(decoding: $0, as: UTF8.self)
            return true
        }
        #expect(
            text.split(separator: "\n").filter { Int($0).map { $0 > 2 && $0 < 10 } ?? true }.isEmpty
        )
    }

    @Test("a process gets the environment but for what is hidden from it")
    func variables() throws {
        setenv("CHILDTEST_A", "1", 1)
        defer { unsetenv("CHILDTEST_A") }
        let script = "test \"$CHILDTEST_A\" = 1 && test -n \"$PATH\""
        for (hidden, code) in [(nil, 0), ("CHILDTEST_", 1), ("CHILDTEST_AB", 0)]
            as [(String?, Int32)]
        {
            let child = try SpawnedChild("sh", arguments: ["-c", script], hiddenVariables: hidden)
            #expect(child.wait(timeoutMilliseconds: 10_000) == .exited(code))
        }
    }

    @Test("a process gets the variables that are given to it, in place of others of the name")
    func givenVariables() throws {
        setenv("CHILDTEST_B", "1", 1)
        defer { unsetenv("CHILDTEST_B") }
        let child = try SpawnedChild(
            "sh",
            arguments: ["-c", "test \"$CHILDTEST_B$CHILDTEST_C\" = 23 && test -n \"$PATH\""],
            variables: ["CHILDTEST_B": "2", "CHILDTEST_C": "3"]
        )
        #expect(child.wait(timeoutMilliseconds: 600_000) == .exited(0))
    }

    @Test("a broker's standard options give way to those that are asked for")
    func options() {
        var options = BrokerChild.Options(executable: "b", dataDirectory: "d", logPath: "l")
        #expect(
            options.arguments == [
                "--data-dir", "d", "--listen", "127.0.0.1:0", "--admin", "off", "--journal-size",
                "64MiB",
            ]
        )
        options.more = ["--listen", "unix:x", "--listen", "unix:y", "--journal-size=1GiB"]
        #expect(
            options.arguments == ["--data-dir", "d", "--admin", "off"] + options.more
        )
    }

    @Test("a program that is not there, or fails, is said by name")
    func failures() {
        #expect(throws: ChildFailure.self) {
            try SpawnedChild("/no/such/program", arguments: [])
        }
        #expect(throws: ChildFailure("sh -c exit 3: exit code 3")) {
            try ChildOutput.read("sh", ["-c", "exit 3"]) { _ in true }
        }
    }

    @Test(
        "the port is read from the line whose event is ready, once it is whole",
        arguments: [
            ("event=ready addresses=127.0.0.1:7400\n", 7400),
            (#"{"event":"ready","addresses":["unix:/x","127.0.0.1:41000"]}"# + "\n", 41_000),
            ("2025-01-01T10:00:00 info [event: ready, listen: 127.0.0.1:1] x\nmore\n", 1),
            ("event=starting listen=127.0.0.1:9\nevent=ready at=127.0.0.1:10\n", 10),
            ("event=ready addresses=127.0.0.1:74", nil),
            ("event=already addresses=127.0.0.1:7400\n", nil),
            ("not-ready 127.0.0.1:7400\n", nil),
            ("event=ready addresses=127.0.0.1:0\n", nil),
            ("", nil),
        ] as [(String, UInt16?)]
    )
    func ready(log: String, port: UInt16?) {
        #expect(BrokerChild.readyPort(in: log) == port)
    }
}
