import Foundation
import Testing

/// `ops/install-dependencies.sh` among programs that only say how they were called.
@Suite struct InstallDependenciesTests {
    private struct Run {
        var code: Int32
        var output: String
        var errors: String
        /// What the stubs were called with, in order.
        var calls: [String]
    }

    /// Stubs that bash has as functions, and nothing else in PATH. They are no programs of their own:
    /// one that was just written may be busy, while another test starts a process.
    private final class Machine {
        let directory: String
        init(_ stubs: [String: String]) throws {
            directory = FileManager.default.temporaryDirectory.path + "/stubs-\(UUID().uuidString)"
            try FileManager.default.createDirectory(
                atPath: directory, withIntermediateDirectories: true)
            let functions = stubs.map { name, body in
                "\(name)() { echo \"\(name) $*\" >> '\(directory)/.calls'; \(body); }\n"
            }
            try functions.sorted().joined().write(
                toFile: directory + "/.stubs", atomically: false, encoding: .utf8)
        }
        deinit { try? FileManager.default.removeItem(atPath: directory) }

        func run() throws -> Run {
            let script = URL(filePath: #filePath).deletingLastPathComponent()
                .deletingLastPathComponent().deletingLastPathComponent()
                .appending(path: "ops/install-dependencies.sh")
            let process = Process()
            process.executableURL = URL(filePath: "/bin/bash")
            process.arguments = [script.path]
            process.environment = [
                "PATH": directory, "BASH_ENV": directory + "/.stubs", "STUBS": directory,
            ]
            let (output, errors) = (Pipe(), Pipe())
            process.standardOutput = output
            process.standardError = errors
            process.standardInput = FileHandle.nullDevice
            try process.run()
            let said = output.fileHandleForReading.readDataToEndOfFile()
            let complained = errors.fileHandleForReading.readDataToEndOfFile()
            process.waitUntilExit()
            let calls = (try? String(contentsOfFile: directory + "/.calls", encoding: .utf8)) ?? ""
            return Run(
                code: process.terminationStatus, output: String(decoding: said, as: UTF8.self),
                errors: String(decoding: complained, as: UTF8.self),
                calls: calls.split(separator: "\n").map(String.init))
        }
    }

    private static let installed = "printf installed"
    private static let missing = "return 1"
    /// Only the package that is asked for last is missing.
    private static let oneMissing = "[[ $* == *libssl-dev ]] && return 1; printf installed"
    private static let root = "echo 0"
    private static let user = "echo 1000"
    private static let environment = "while [[ $1 == *=* ]]; do shift; done; \"$@\""

    @Test("with nothing missing it says nothing and changes nothing")
    func nothingMissing() throws {
        let run = try Machine([
            "dpkg-query": Self.installed, "apt-get": "return 1", "id": Self.user,
        ]).run()
        #expect(run.code == 0)
        #expect(run.output.isEmpty && run.errors.isEmpty)
        #expect(run.calls.count == 2)
        #expect(run.calls.allSatisfy { $0.hasPrefix("dpkg-query ") })
    }

    @Test(
        "without the right to install it says what to type, for what is missing only, and ends with 1"
    )
    func noRight() throws {
        for (query, packages) in [
            (Self.missing, "liburing-dev libssl-dev"), (Self.oneMissing, "libssl-dev"),
        ] {
            // Without sudo, and with one that would ask for a password.
            for sudo in [nil, "return 1"] {
                var stubs = ["dpkg-query": query, "apt-get": "return 0", "id": Self.user]
                stubs["sudo"] = sudo
                let run = try Machine(stubs).run()
                #expect(run.code == 1)
                #expect(run.output.isEmpty)
                #expect(
                    run.errors.contains(
                        "\n    sudo apt-get update && sudo apt-get install -y \(packages)\n"),
                    "\(run.errors)")
                #expect(!run.calls.contains { $0.hasPrefix("apt-get") })
            }
        }
    }

    @Test("root installs what is missing, and fetches the lists when they are too old")
    func root() throws {
        let installs = try Machine([
            "dpkg-query": Self.oneMissing, "apt-get": "return 0", "id": Self.root,
            "env": Self.environment,
        ]).run()
        #expect(installs.code == 0)
        #expect(installs.output == "installing libssl-dev\n")
        let calls = installs.calls.filter { $0.hasPrefix("apt-get") }
        #expect(calls.count == 1)
        #expect(calls.first?.hasSuffix("install -y libssl-dev") == true)

        let updates = try Machine([
            "dpkg-query": Self.missing, "id": Self.root, "env": Self.environment,
            // The first install does not find the packages.
            "apt-get": "[[ $* == *update* ]] && : > $STUBS/updated; [[ -e $STUBS/updated ]]",
        ]).run()
        #expect(updates.code == 0, "\(updates.errors)")
        let verbs = updates.calls.filter { $0.hasPrefix("apt-get") }.map { call in
            call.contains("update") ? "update" : "install"
        }
        #expect(verbs == ["install", "update", "install"])

        let fails = try Machine([
            "dpkg-query": Self.missing, "apt-get": "echo 'no network' >&2; return 100",
            "id": Self.root, "env": Self.environment,
        ]).run()
        #expect(fails.code != 0)
        #expect(fails.errors.contains("no network"))
    }

    @Test("with sudo that asks for nothing it installs through it")
    func sudo() throws {
        let run = try Machine([
            "dpkg-query": Self.missing, "apt-get": "return 0", "id": Self.user,
            "env": Self.environment, "sudo": "shift; \"$@\"",
        ]).run()
        #expect(run.code == 0, "\(run.errors)")
        #expect(run.calls.contains { $0.hasPrefix("sudo -n env DEBIAN_FRONTEND") })
        #expect(run.calls.contains { $0.hasSuffix("install -y liburing-dev libssl-dev") })
    }

    @Test("on a system without apt-get it names what is missing and ends with 1")
    func otherSystem() throws {
        let run = try Machine(["dpkg-query": Self.missing, "id": Self.root]).run()
        #expect(run.code == 1)
        #expect(run.errors.contains("Missing: liburing-dev libssl-dev (Debian's names)"))
    }
}
