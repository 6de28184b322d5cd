package import BrokerBasics
package import BrokerServer
package import BrokerShard
package import LogStorage
package import Logging
package import ShardRuntime

/// Why a command line, an environment variable or a file can't be meant; the text says what to type.
package struct UsageError: Error, CustomStringConvertible, Equatable {
    package var description: String
    package init(_ description: String) { self.description = description }
}

/// Where the admin port listens.
package struct AdminAddress: Sendable, Equatable, CustomStringConvertible {
    package var host: String
    package var port: UInt16

    package init(host: String, port: UInt16) {
        self.host = host
        self.port = port
    }
    package var description: String {
        ServerAddress.tcp(host: host, port: port).description
    }
}

/// Everything a user can set, after all sources have been merged. `OptionTable` describes each.
package struct ServerOptions: Sendable, Equatable {
    package static let journalBytesDefault: UInt64 = 512 << 20

    package var dataDirectory = ""
    /// `nil`: no images are made.
    package var backupDirectory: String?
    package var listen = [ServerAddress.standard]
    /// `nil` when it is off.
    package var admin: AdminAddress? = AdminAddress(host: "127.0.0.1", port: 7480)
    package var shards = 1
    /// Empty: the scheduler decides.
    package var cpus: [Int] = []
    package var idle = IdleStrategy.adaptive
    package var loop = LoopChoice.auto
    package var journalBytes = Self.journalBytesDefault
    package var journalFiles = 4
    package var limits = ShardLimits()
    package var logLevel = Logger.Level.info
    package var logFormat = LogFormat.text

    package init() {}

    /// What a new data directory gets: the journal is cut into files of whole blocks.
    package var geometry: JournalGeometry {
        let block = UInt64(JournalGeometry.blockBytes)
        let file = journalBytes / UInt64(journalFiles) / block * block
        return JournalGeometry(fileBytes: file, fileCount: journalFiles)
    }

    /// Descriptors that a broker with these bounds can need: connections, files, the journal, and
    /// some for HTTP, the ring and the log.
    package var descriptorsWanted: UInt64 {
        UInt64(limits.connectionsMax) + 128
            + UInt64(shards) * (UInt64(limits.filesMax) + UInt64(journalFiles) + 16)
    }

    /// The CPU of the one shard.
    package var cpu: Int? { cpus.first }

    /// What can be checked without touching the disk, in a sentence that names the options to change.
    package func check(allowedCPUs: [Int]) throws(UsageError) {
        if dataDirectory.isEmpty {
            throw UsageError(
                "--data-dir is required: say where the broker keeps its data, e.g. "
                    + "--data-dir /var/lib/millrace"
            )
        }
        if shards < 1 || shards > ShardFolder.shardsMax {
            throw UsageError("--shards \(shards): 1 to \(ShardFolder.shardsMax) are possible")
        }
        for cpu in cpus where !allowedCPUs.contains(cpu) {
            throw UsageError(
                "--cpus: this process may not run on CPU \(cpu), only on "
                    + allowedCPUs.map(String.init).joined(separator: ",")
            )
        }
        if Set(listen.map(\.description)).count < listen.count,
            let twice = listen.first(where: { address in
                listen.filter { $0 == address }.count > 1 && !address.isAnyPort
            })
        {
            throw UsageError("--listen \(twice) is given twice")
        }
        if let clash = portTakenTwice { throw UsageError(clash) }
        if !geometry.isValid {
            throw UsageError(
                "a journal of \(OptionValue.sizeText(journalBytes)) in \(journalFiles) files can't be "
                    + "used; change --journal-size or --journal-files"
            )
        }
        if let backupDirectory, (backupDirectory + "/").hasPrefix(dataDirectory + "/") {
            throw UsageError(
                "--backup-dir \(backupDirectory) lies in --data-dir: an image would be taken for a shard"
            )
        }
        let marks = limits.diskMarks
        if marks.warn > marks.refuse || marks.refuse > marks.readsOnly {
            throw UsageError(
                "--disk-warn \(marks.warn), --disk-refuse \(marks.refuse) and --disk-reads-only "
                    + "\(marks.readsOnly): each must be as high as the one before, or higher"
            )
        }
        if let conflict = limits.conflict(geometry: geometry) {
            throw UsageError("\(conflict.description); \(Self.advice(conflict.cause))")
        }
    }

    /// The ports where shards are reached follow the one that all share, and must be nobody else's.
    private var portTakenTwice: String? {
        guard shards > 1 else { return nil }
        var taken: [(port: UInt16, what: String)] = listen.compactMap { address in
            if case .tcp(_, let port) = address, port > 0 {
                (port, "--listen \(address)")
            } else {
                nil
            }
        }
        if let admin, admin.port > 0 { taken.append((admin.port, "--admin \(admin.port)")) }
        for case .tcp(_, let port) in listen where port > 0 {
            let own = Int(port) + 1..<Int(port) + 1 + shards
            guard let clash = taken.first(where: { own.contains(Int($0.port)) }) else { continue }
            return
                "shard \(Int(clash.port) - own.lowerBound) would listen at port \(clash.port), which "
                + "is that of \(clash.what): \(shards) shards need the ports \(own.lowerBound) to "
                + "\(own.upperBound - 1) behind \(port)"
        }
        return nil
    }

    private static func advice(_ cause: LimitConflict.Cause) -> String {
        switch cause {
        case .journal: "raise --journal-size, or lower --frame-bytes-max"
        case .journalFile: "raise --journal-size, or lower --journal-files or --frame-bytes-max"
        case .staging: "raise --journal-staging, or lower --frame-bytes-max"
        case .tail: "raise --tail-memory, or lower --chunk-size or --frame-bytes-max"
        case .segment: "raise --segment-size, or lower --chunk-size or --frame-bytes-max"
        case .coldMemory:
            "raise --cold-read-memory, or lower --chunk-size or --frame-bytes-max"
        }
    }
}

extension ServerAddress {
    var isAnyPort: Bool {
        if case .tcp(_, 0) = self { return true }
        return false
    }
}
