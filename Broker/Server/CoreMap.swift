internal import CLinux
internal import Glibc
internal import ShardRuntime

/// Which threads run where, and what the process may use.
package enum CoreMap {
    /// Keeps the threads that the process has, and those that they start, off the shards' CPUs; a shard
    /// that starts later pins itself. Best effort: when the process has no other CPU they share it.
    ///
    /// - Returns: the CPUs that are left, empty when nothing was changed.
    @discardableResult
    package static func keepOff(cpus: [Int]) -> [Int] {
        let others = CoreControl.allowedCPUs.filter { !cpus.contains($0) }
        guard !others.isEmpty, !cpus.isEmpty else { return [] }
        let map = others.reduce(UInt64(0)) { $0 | 1 << UInt64($1) }
        guard let threads = opendir("/proc/self/task") else { return [] }
        defer { closedir(threads) }
        while let entry = readdir(threads) {
            let name = withUnsafeBytes(of: entry.pointee.d_name) { bytes in
                String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
            }
            guard let thread = Int32(name) else { continue }
            _ = millrace_set_affinity(thread, map)
        }
        return others
    }
}

/// Descriptors that the process may have open.
package struct DescriptorLimit: Sendable, Equatable {
    /// As it is after `raise()`.
    package var limit: UInt64

    /// Raises the soft limit to the hard one: the soft default of 1,024 is for programs that use
    /// select(2).
    package static func raise() -> DescriptorLimit {
        var limits = rlimit()
        let files = __rlimit_resource_t(UInt32(RLIMIT_NOFILE.rawValue))
        guard getrlimit(files, &limits) == 0 else { return DescriptorLimit(limit: 0) }
        if limits.rlim_cur < limits.rlim_max {
            limits.rlim_cur = limits.rlim_max
            setrlimit(files, &limits)
            getrlimit(files, &limits)
        }
        return DescriptorLimit(limit: UInt64(limits.rlim_cur))
    }
}
