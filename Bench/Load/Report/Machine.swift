internal import Glibc

/// What the numbers were measured on; what can't be found out is `null`.
package struct Machine: Sendable {
    package var json: JSON

    /// - Parameter directory: on the disk that the numbers depend on, when it is known.
    package init(diskOf directory: String?) {
        var facts = utsname()
        uname(&facts)
        let release = withUnsafeBytes(of: &facts.release) { bytes in
            String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        }
        let architecture = withUnsafeBytes(of: &facts.machine) { bytes in
            String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        }
        let memory = Self.value(of: "MemTotal", in: "/proc/meminfo")
            .flatMap { Int($0.prefix { $0.isNumber }) }
        json = .object([
            ("cpu", .optional(Self.value(of: "model name", in: "/proc/cpuinfo"))),
            ("architecture", .string(architecture)),
            ("cores", .integer(sysconf(Int32(_SC_NPROCESSORS_ONLN)))),
            ("kernel", .string(release)),
            ("memory_bytes", .optional(memory.map { $0 * 1024 })),
            ("disk", directory.map(Self.disk) ?? .null),
        ])
    }

    /// Text of a small file of the kernel's; `nil` when it can't be read.
    static func text(_ path: String) -> String? {
        guard let bytes = try? FileBytes.read(path) else { return nil }
        return String(decoding: bytes, as: UTF8.self)
    }

    private static func line(_ path: String) -> String? {
        text(path).map { $0.split(separator: "\n").first.map(String.init) ?? "" }
    }

    /// The text behind `name` and a colon.
    private static func value(of name: String, in path: String) -> String? {
        for line in (text(path) ?? "").split(separator: "\n") where line.hasPrefix(name) {
            guard let colon = line.firstIndex(of: ":") else { continue }
            return String(line[line.index(after: colon)...].drop { $0 == " " || $0 == "\t" })
        }
        return nil
    }

    private static func disk(of directory: String) -> JSON {
        guard let resolved = realpath(directory, nil) else { return .null }
        defer { free(resolved) }
        let path = String(cString: resolved)
        var best: (mount: String, device: String, kind: String, source: String)?
        for line in (text("/proc/self/mountinfo") ?? "").split(separator: "\n") {
            // 36 35 98:0 / /mnt rw,noatime master:1 - ext4 /dev/vda rw
            let fields = line.split(separator: " ").map(String.init)
            guard fields.count > 5, let dash = fields.firstIndex(of: "-"),
                fields.count > dash + 2
            else { continue }
            let mount = fields[4]
            guard path == mount || mount == "/" || path.hasPrefix(mount + "/") else { continue }
            // The later of two at one place is the one that shows.
            if let best, best.mount.count > mount.count { continue }
            best = (mount, fields[2], fields[dash + 1], fields[dash + 2])
        }
        guard let best else { return .null }
        // A partition's queue is its disk's, one directory up.
        let block = "/sys/dev/block/\(best.device)"
        let queue =
            line("\(block)/queue/write_cache") != nil ? "\(block)/queue" : "\(block)/../queue"
        return .object([
            ("filesystem", .string(best.kind)),
            ("source", .string(best.source)),
            ("write_cache", .optional(line("\(queue)/write_cache"))),
            ("fua", .optional(line("\(queue)/fua").map { $0 == "1" })),
            ("interrupt_cpu", .optional(interruptCPU(block: block))),
        ])
    }

    /// The CPU that takes the disk's interrupt, where the disk has a single request queue.
    private static func interruptCPU(block: String) -> Int? {
        guard let resolved = realpath("\(block)/device", nil) ?? realpath("\(block)/../device", nil)
        else { return nil }
        defer { free(resolved) }
        guard let device = String(cString: resolved).split(separator: "/").last else { return nil }
        let lines = (text("/proc/interrupts") ?? "").split(separator: "\n")
            .filter { $0.contains("\(device)-req") || $0.contains("\(device)-requests") }
        guard lines.count == 1, let number = lines[0].split(separator: ":").first else {
            return nil
        }
        let interrupt = number.drop { $0 == " " }
        return line("/proc/irq/\(interrupt)/effective_affinity_list").flatMap { Int($0) }
    }
}
