internal import Glibc
internal import Synchronization

/// How a process ended.
package enum ChildEnd: Equatable, Sendable, CustomStringConvertible {
    case exited(Int32)
    case signalled(Int32)

    package var description: String {
        switch self {
        case .exited(let code): "exit code \(code)"
        case .signalled(let number): "signal \(number)"
        }
    }
}

/// Why a process could not be started, read or awaited: one line for a person.
package struct ChildFailure: Error, Equatable, CustomStringConvertible {
    package let description: String
    package init(_ description: String) { self.description = description }
}

/// A process that this one started. It is killed and reaped when the object goes.
///
/// It inherits no descriptor but its standard streams, and gets the signals' default actions, so
/// that it neither holds its parent's pipes open nor ignores what the parent ignores. Any thread
/// may use it.
package final class SpawnedChild: Sendable {
    /// Where a standard stream goes.
    package enum Output: Sendable {
        case none
        /// Appended to the file, which is made when it is missing.
        case file(String)
        /// A descriptor that the caller owns, the writing end of a pipe for example.
        case descriptor(Int32)
    }

    package let processID: Int32
    /// `nil` until it is reaped. The lock keeps a signal from reaching a process that got the same
    /// number after that.
    private let end = Mutex<ChildEnd?>(nil)

    /// - Parameters:
    ///   - executable: a path, or a name that is searched for in `PATH`.
    ///   - hiddenVariables: it does not get the environment's variables that begin so.
    ///   - variables: it gets these, in place of others of their names.
    package init(
        _ executable: String,
        arguments: [String],
        input: String? = nil,
        output: Output = .none,
        errors: Output = .none,
        hiddenVariables: String? = nil,
        variables: [String: String] = [:]
    ) throws(ChildFailure) {
        var actions = posix_spawn_file_actions_t()
        var attributes = posix_spawnattr_t()
        posix_spawn_file_actions_init(&actions)
        posix_spawnattr_init(&attributes)
        defer {
            posix_spawn_file_actions_destroy(&actions)
            posix_spawnattr_destroy(&attributes)
        }
        posix_spawn_file_actions_addopen(&actions, 0, input ?? "/dev/null", O_RDONLY, 0)
        for (number, stream) in [(Int32(1), output), (Int32(2), errors)] {
            switch stream {
            case .none: posix_spawn_file_actions_addopen(&actions, number, "/dev/null", O_WRONLY, 0)
            case .file(let path):
                let flags = O_WRONLY | O_CREAT | O_APPEND
                posix_spawn_file_actions_addopen(&actions, number, path, flags, 0o600)
            case .descriptor(let descriptor):
                posix_spawn_file_actions_adddup2(&actions, descriptor, number)
            }
        }
        // Closing one that has gone meanwhile is no error (posix_spawn_file_actions_addclose(3)).
        for descriptor in Directory.entries("/proc/self/fd").compactMap({ Int32($0) })
        where descriptor > 2 {
            posix_spawn_file_actions_addclose(&actions, descriptor)
        }
        var every = sigset_t()
        var none = sigset_t()
        sigfillset(&every)
        sigemptyset(&none)
        posix_spawnattr_setsigdefault(&attributes, &every)
        posix_spawnattr_setsigmask(&attributes, &none)
        // A group of its own: what a terminal sends at Ctrl-C reaches the parent, who then decides.
        posix_spawnattr_setpgroup(&attributes, 0)
        posix_spawnattr_setflags(
            &attributes,
            Int16(POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETPGROUP)
        )
        var words: [UnsafeMutablePointer<CChar>?] = ([executable] + arguments).map { strdup($0) }
        words.append(nil)
        defer { for word in words { free(word) } }
        let added: [UnsafeMutablePointer<CChar>?] = variables.map {
            strdup("\($0.key)=\($0.value)")
        }
        defer { for variable in added { free(variable) } }
        // Of two that have a name getenv(3) finds the first, and a shell keeps the last.
        let inherited = Self.variables(hiding: hiddenVariables, and: Array(variables.keys))
        let environment = added + inherited + [nil]
        var process: pid_t = 0
        let code = posix_spawnp(&process, executable, &actions, &attributes, words, environment)
        guard code == 0 else {
            throw ChildFailure("starting \(executable) failed: \(String(cString: strerror(code)))")
        }
        processID = process
    }

    /// The environment without those that begin with `prefix` or have one of `names`.
    private static func variables(
        hiding prefix: String?,
        and names: [String]
    ) -> [UnsafeMutablePointer<CChar>?] {
        let hidden = names.map { $0 + "=" } + (prefix.map { [$0] } ?? [])
        var kept: [UnsafeMutablePointer<CChar>?] = []
        var next = environ
        while let variable = next.pointee {
            if !hidden.contains(where: { strncmp(variable, $0, strlen($0)) == 0 }) {
                kept.append(variable)
            }
            next += 1
        }
        return kept
    }

    deinit {
        signal(SIGKILL)
        _ = wait(timeoutMilliseconds: 10_000)
    }

    /// - Returns: false when it has been reaped, and nothing was sent.
    @discardableResult
    package func signal(_ number: Int32) -> Bool {
        end.withLock { $0 == nil && kill(processID, number) == 0 }
    }

    /// How it ended, waiting up to the time given.
    ///
    /// - Returns: `nil` while it runs.
    package func wait(timeoutMilliseconds: Int) -> ChildEnd? {
        let clock = ContinuousClock()
        let deadline = clock.now + .milliseconds(timeoutMilliseconds)
        while true {
            let known = end.withLock { end in
                if end == nil { end = reap() }
                return end
            }
            if let known { return known }
            guard clock.now < deadline else { return nil }
            // waitpid(2) knows no time limit.
            usleep(500)
        }
    }

    private func reap() -> ChildEnd? {
        var status: Int32 = 0
        guard waitpid(processID, &status, WNOHANG) == processID else { return nil }
        // wait(2): the low seven bits are the signal, 0 for an exit, whose code is above them.
        let number = status & 0x7F
        return number == 0 ? .exited((status >> 8) & 0xFF) : .signalled(number)
    }
}
