internal import CLinux
internal import Glibc

/// Why io_uring can't be used here, and what a person can do about it.
public struct RingRefusal: Error, Sendable, Equatable, CustomStringConvertible {
    public enum Cause: String, Sendable, CaseIterable {
        /// Too old, or built without it.
        case kernel
        /// The sysctl of that name.
        case uringDisabled = "io_uring_disabled"
        /// A container's filter of system calls, as a rule.
        case seccomp
        case memlock
        case descriptors
        case unknown
    }
    public var cause: Cause
    /// What was tried, what happened, what to change.
    public var description: String

    /// What the machine says of itself where io_uring is concerned.
    public struct Host: Sendable, Equatable {
        /// As `uname -r` prints it.
        public var release: String
        /// Of /proc/sys/kernel/io_uring_disabled; `nil` where there is none.
        public var uringDisabled: String?
        /// A filter of system calls is set on this process.
        public var hasSeccompFilter: Bool
        /// RLIMIT_MEMLOCK in bytes.
        public var memlockBytes: UInt64

        public init(
            release: String, uringDisabled: String?, hasSeccompFilter: Bool, memlockBytes: UInt64
        ) {
            self.release = release
            self.uringDisabled = uringDisabled
            self.hasSeccompFilter = hasSeccompFilter
            self.memlockBytes = memlockBytes
        }

        /// Major and minor number, `(0, 0)` when they can't be read.
        var version: (Int, Int) {
            let numbers = release.split { !$0.isNumber }.prefix(2).compactMap { Int($0) }
            return numbers.count == 2 ? (numbers[0], numbers[1]) : (0, 0)
        }
    }

    /// - Parameter error: of the call that was refused.
    public init(_ error: SystemError, host: Host) {
        let (cause, advice) = Self.explain(error.errno, host)
        self.cause = cause
        description = "\(error); \(advice)"
    }

    private static func explain(_ code: Int32, _ host: Host) -> (Cause, String) {
        let calls = "io_uring_setup, io_uring_enter and io_uring_register"
        let seccomp = (
            Cause.seccomp,
            "a seccomp filter refuses it, as the default profiles of containers do: let \(calls) "
                + "through"
        )
        let kernel = (
            Cause.kernel,
            "Linux 6.1 or later is needed, built with io_uring; this is \(host.release)"
        )
        switch code {
        case EPERM, EACCES:
            if let value = host.uringDisabled, value != "0" {
                return (
                    .uringDisabled,
                    "/proc/sys/kernel/io_uring_disabled is \(value)"
                        + (value == "1" ? " (only members of kernel.io_uring_group may)" : "")
                        + "; `sysctl kernel.io_uring_disabled=0` allows it"
                )
            }
            if host.hasSeccompFilter { return seccomp }
            return (.unknown, "look for a security module (SELinux, AppArmor) that refuses it")
        case ENOSYS:
            // io_uring came with Linux 5.1; a filter may answer like a kernel without it.
            return host.hasSeccompFilter && host.version >= (5, 1) ? seccomp : kernel
        case EINVAL, EOPNOTSUPP:
            return kernel
        case ENOMEM:
            return (
                .memlock,
                "not enough locked memory; raise RLIMIT_MEMLOCK (`ulimit -l`, LimitMEMLOCK) from "
                    + "\(host.memlockBytes) bytes to 64 MiB"
            )
        case EMFILE, ENFILE:
            return (
                .descriptors, "no file descriptors are left; raise RLIMIT_NOFILE (`ulimit -n`)"
            )
        default:
            return (.unknown, "no cause is known for this")
        }
    }
}

extension RingRefusal.Host {
    /// This machine and process.
    public static var current: RingRefusal.Host {
        let status = text("/proc/self/status") ?? ""
        // proc(5): 0 none, 1 strict, 2 a filter.
        let mode = status.split(separator: "\n").first { $0.hasPrefix("Seccomp:") }
        return RingRefusal.Host(
            release: text("/proc/sys/kernel/osrelease") ?? "unknown",
            uringDisabled: text("/proc/sys/kernel/io_uring_disabled"),
            hasSeccompFilter: mode?.hasSuffix("2") ?? false,
            memlockBytes: millrace_memlock_limit())
    }

    /// A small file without the end of its last line.
    private static func text(_ path: String) -> String? {
        let fd = open(path, O_RDONLY | O_CLOEXEC)
        guard fd >= 0 else { return nil }
        defer { close(fd) }
        var buffer = [UInt8](repeating: 0, count: 16 * 1024)
        let count = read(fd, &buffer, buffer.count)
        guard count >= 0 else { return nil }
        let text = String(decoding: buffer[..<count], as: UTF8.self)
        return text.hasSuffix("\n") ? String(text.dropLast()) : text
    }
}

extension Ring {
    /// Tries all that a shard asks of io_uring before it needs it: set-up, operations, receive
    /// buffers, and one submission that comes back. Everything is given back.
    public static func refusal(
        entries: UInt32, completions: UInt32, buffers: Int, bufferBytes: Int
    ) -> RingRefusal? {
        do throws(SystemError) {
            var ring = try Ring(entries: entries, completions: completions)
            _ = try BufferPool(ring: ring, count: buffers, bufferBytes: bufferBytes)
            try ring.tryOut()
            return nil
        } catch {
            return RingRefusal(error, host: .current)
        }
    }

    private mutating func tryOut() throws(SystemError) {
        guard let entry = submission(token: 1) else { return }
        io_uring_prep_nop(entry)
        entry.pointee.user_data = 1
        let result = enter()
        guard result >= 0 else { throw SystemError("io_uring_enter", errno: -result) }
        advance(completionCount)
    }
}
