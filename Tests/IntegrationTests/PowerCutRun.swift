import ChildProcess
import Foundation
import Testing

/// A run of the program that cuts power, with a directory of its own for all that it makes.
final class PowerCutRun {
    private static let skippedCode: Int32 = 77

    /// Why no power can be cut here, as the program itself says; `nil` when it can.
    static let obstacle: String? = {
        do {
            let run = try PowerCutRun(["--probe"])
            return switch run.wait(milliseconds: 60_000) {
            case .exited(skippedCode): run.output
            default: nil
            }
        } catch {
            return "\(error)"
        }
    }()
    static let comment = Comment(
        rawValue: "no power is cut here: \(obstacle ?? "nothing is in the way")"
    )

    let directory: TemporaryDirectory
    let child: SpawnedChild

    init(_ arguments: [String]) throws {
        directory = try TemporaryDirectory(prefix: "millrace-test")
        child = try SpawnedChild(
            "env",
            arguments: ["TMPDIR=\(directory.path)", try Executable.named("powercut")]
                + arguments,
            output: .file(directory.path + "/out"),
            errors: .file(directory.path + "/out")
        )
    }

    func wait(milliseconds: Int) -> ChildEnd? { child.wait(timeoutMilliseconds: milliseconds) }

    var output: String {
        (try? String(contentsOfFile: directory.path + "/out", encoding: .utf8)) ?? ""
    }

    /// Whether a broker runs on a disk below the directory.
    func hasBroker() throws -> Bool {
        try FileManager.default.contentsOfDirectory(atPath: "/proc").contains { process in
            guard Int(process) != nil,
                let line = try? String(
                    contentsOfFile: "/proc/\(process)/cmdline",
                    encoding: .utf8
                )
            else { return false }
            return line.contains("brokerd") && line.contains(directory.path + "/millrace-powercut")
        }
    }

    /// Whether that broker has come so far that it would not end by itself with its disk.
    func hasServingBroker() throws -> Bool {
        try hasBroker()
            && FileManager.default.contentsOfDirectory(atPath: directory.path).contains { name in
                let log = try? String(
                    contentsOfFile: "\(directory.path)/\(name)/brokerd-1.log",
                    encoding: .utf8
                )
                return log?.contains("ready") ?? false
            }
    }

    /// The loop devices over a file below the directory.
    private func devices() throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: "/sys/block").filter { device in
            let file = "/sys/block/\(device)/loop/backing_file"
            let path = (try? String(contentsOfFile: file, encoding: .utf8)) ?? ""
            return path.contains(directory.path)
        }
    }

    func isLeft() throws -> Bool { try hasBroker() || !devices().isEmpty }

    /// Nothing is mounted, attached or running below the directory.
    func expectNothingRuns() throws {
        let mounts = try String(contentsOfFile: "/proc/mounts", encoding: .utf8)
        #expect(!mounts.contains(directory.path))
        #expect(try devices().isEmpty)
        #expect(try !hasBroker())
    }
}
