internal import CLinux
internal import Glibc
package import ShardRuntime
package import WireProtocol

/// The block device below a directory.
package struct BlockDevice: Sendable, Equatable {
    /// As in /sys/block; a partition's is that of its disk.
    package var name: String
    /// `write back` or `write through`.
    package var writeCache: String?
    package var hasFUA: Bool?
    /// The interrupts of its queues, in the order of /proc/interrupts.
    package var interrupts: [Interrupt]

    package init(
        name: String,
        writeCache: String?,
        hasFUA: Bool?,
        interrupts: [Interrupt]
    ) {
        self.name = name
        self.writeCache = writeCache
        self.hasFUA = hasFUA
        self.interrupts = interrupts
    }

    package struct Interrupt: Sendable, Equatable {
        package var number: Int
        package var name: String
        /// Where it is delivered.
        package var cpus: [Int]
        package init(number: Int, name: String, cpus: [Int]) {
            self.number = number
            self.name = name
            self.cpus = cpus
        }
    }

    /// - Returns: `nil` when the filesystem has no block device of its own (overlay, tmpfs, a network
    ///   filesystem).
    package static func below(_ path: String) -> BlockDevice? {
        var facts = stat()
        guard stat(path, &facts) == 0 else { return nil }
        let major = (facts.st_dev >> 8) & 0xFFF
        let minor = (facts.st_dev & 0xFF) | ((facts.st_dev >> 12) & 0xFFF00)
        guard var place = SystemText.resolved("/sys/dev/block/\(major):\(minor)") else {
            return nil
        }
        if access(place + "/partition", F_OK) == 0 {
            place = String(place[..<(place.lastIndex(of: "/") ?? place.endIndex)])
        }
        let name = Self.lastComponent(place)
        let driver = SystemText.resolved(place + "/device").map(lastComponent)
        return BlockDevice(
            name: name,
            writeCache: SystemText.line(place + "/queue/write_cache"),
            hasFUA: SystemText.line(place + "/queue/fua").map { $0 == "1" },
            interrupts: interrupts(
                of: name,
                driver: driver,
                table: SystemText.read("/proc/interrupts") ?? ""
            ) { SystemText.line("/proc/irq/\($0)/effective_affinity_list") }
        )
    }

    private static func lastComponent(_ path: String) -> String {
        String(path[(path.lastIndex(of: "/").map { path.index(after: $0) } ?? path.startIndex)...])
    }

    /// Finds a device's queue lines in the text of /proc/interrupts: `virtio1-req.0` of a virtio
    /// disk, `nvme0q1` of an NVMe disk (q0 is its admin queue). Best effort: other drivers name
    /// theirs otherwise, and then there are none.
    ///
    /// - Parameters:
    ///   - driver: the device's own name, such as `virtio1` or `nvme0`.
    ///   - affinity: what the kernel says of an interrupt's CPUs; where it says nothing, the CPU
    ///     that has taken most of it.
    package static func interrupts(
        of device: String,
        driver: String?,
        table: String,
        affinity: (Int) -> String?
    ) -> [Interrupt] {
        let lines = table.split(separator: "\n")
        guard let header = lines.first else { return [] }
        let cpus = header.split(separator: " ").compactMap { OptionValue.number($0.dropFirst(3)) }
        var found: [Interrupt] = []
        for line in lines.dropFirst() {
            let words = line.split(separator: " ")
            guard words.count > cpus.count + 1, let first = words.first, first.hasSuffix(":"),
                let number = OptionValue.number(first.dropLast()), let last = words.last,
                isQueue(String(last), device, driver)
            else { continue }
            var taken: [Int] = affinity(Int(number)).flatMap { OptionValue.cpuList($0) } ?? []
            if taken.isEmpty {
                let counts = words[1...cpus.count].map { OptionValue.number($0) ?? 0 }
                if let most = counts.max(), most > 0, let index = counts.firstIndex(of: most) {
                    taken = [Int(cpus[index])]
                }
            }
            found.append(Interrupt(number: Int(number), name: String(last), cpus: taken))
        }
        return found
    }

    private static func isQueue(_ name: String, _ device: String, _ driver: String?) -> Bool {
        if let driver, name.hasPrefix(driver + "-req") { return true }
        // nvme0n1 has the queues nvme0q0, nvme0q1, …
        guard device.hasPrefix("nvme"), let end = device.lastIndex(of: "n"), end > device.startIndex
        else { return false }
        let controller = device[..<end]
        return name.hasPrefix(controller + "q") && name != controller + "q0"
    }

    /// The interrupts of this device that `cpu` takes.
    package func interrupts(on cpu: Int) -> [Interrupt] {
        interrupts.filter { $0.cpus.contains(cpu) }
    }

    package var description: String {
        var parts = [name, writeCache.map { "write cache: \($0)" } ?? "write cache unknown"]
        parts.append(hasFUA.map { $0 ? "FUA" : "no FUA" } ?? "FUA unknown")
        return parts.joined(separator: ", ")
    }
    package var interruptText: String {
        guard !interrupts.isEmpty else { return "unknown" }
        return interrupts.map { interrupt in
            let cpus = interrupt.cpus.map(String.init).joined(separator: ",")
            return "\(interrupt.name) on CPU \(cpus.isEmpty ? "?" : cpus)"
        }.joined(separator: "; ")
    }
}

/// What is said of host and settings: at start in the log, later in `server status`.
package struct HostFacts: Sendable {
    package var kernel: String
    package var processor: String
    package var device: BlockDevice?
    package var uring: String

    package static func gather(dataDirectory: String) -> HostFacts {
        let release = SystemText.line("/proc/sys/kernel/osrelease") ?? "unknown"
        let uring =
            switch SystemText.line("/proc/sys/kernel/io_uring_disabled") {
            case "0": "allowed"
            case "1": "only for members of kernel.io_uring_group"
            case "2": "disabled"
            case nil: "no setting"
            case let other?: other
            }
        return HostFacts(
            kernel: "Linux \(release)",
            processor: processorName(),
            device: BlockDevice.below(dataDirectory),
            uring: uring
        )
    }

    /// Memory that can be taken without swapping: what the kernel estimates, or what the control group
    /// leaves when that is less. `nil` when neither says.
    package static func availableMemory() -> UInt64? {
        let table = SystemText.read("/proc/meminfo") ?? ""
        let group = SystemText.line("/sys/fs/cgroup/memory.max").flatMap { OptionValue.number($0) }
        let used = SystemText.line("/sys/fs/cgroup/memory.current").flatMap {
            OptionValue.number($0)
        }
        return availableMemory(table: table, groupLimit: group, groupUsed: used)
    }

    /// - Parameter table: the text of /proc/meminfo.
    package static func availableMemory(
        table: String,
        groupLimit: UInt64?,
        groupUsed: UInt64?
    ) -> UInt64? {
        var found: UInt64?
        for line in table.split(separator: "\n") where line.hasPrefix("MemAvailable:") {
            let words = line.split(separator: " ")
            found = words.count == 3 ? OptionValue.number(words[1]).map { $0 * 1024 } : nil
        }
        guard let groupLimit else { return found }
        let left = groupLimit - min(groupLimit, groupUsed ?? 0)
        return min(found ?? left, left)
    }

    private static func processorName() -> String {
        for line in (SystemText.read("/proc/cpuinfo") ?? "").split(separator: "\n")
        where line.hasPrefix("model name") {
            let parts = line.split(separator: ":", maxSplits: 1)
            return parts.count == 2 ? String(parts[1].drop { $0 == " " }) : "unknown"
        }
        return "unknown"
    }

    /// - Parameter directAlignment: as `DataDirectory` found it.
    package func pairs(
        idle: IdleStrategy,
        loop: LoopDecision,
        cpu: Int?,
        dataDirectory: String,
        directAlignment: Int?,
        version: String
    ) -> [Pair] {
        func pair(_ name: String, _ value: String) -> Pair { Pair(name: name, value: value) }
        return [
            pair("version", version),
            pair("kernel", kernel),
            pair("cpu_model", processor),
            pair("io_uring", uring),
            pair("loop", loop.kind.rawValue),
            pair("loop_reason", loop.reason),
            pair("idle", idle.rawValue),
            pair("cpu", cpu.map(String.init) ?? "any"),
            pair("data_dir", dataDirectory),
            pair("direct_io", Self.directText(directAlignment)),
            pair("disk", device?.description ?? "no block device found"),
            pair("disk_interrupts", device?.interruptText ?? "unknown"),
        ]
    }

    package static func directText(_ alignment: Int?) -> String {
        alignment.map { "yes, aligned to \($0) bytes" }
            ?? "no: the filesystem has none; synced records use buffered writes with RWF_DSYNC"
    }

    /// A sentence when a pinned shard shares its CPU with the disk's interrupt.
    package func interruptConflict(cpu: Int?) -> String? {
        guard let cpu, let device else { return nil }
        let taken = device.interrupts(on: cpu)
        guard !taken.isEmpty else { return nil }
        return
            "CPU \(cpu) also takes the disk's interrupt (\(taken.map(\.name).joined(separator: ", "))):"
            + " synced writes finish on the shard's CPU; another --cpus may be faster"
    }
}
