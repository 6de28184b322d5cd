internal import BrokerBasics
internal import BrokerServer
internal import BrokerShard
internal import LogStorage
internal import Logging
internal import ShardRuntime

/// One option of `brokerd`, however it is given.
package struct ServerOption: Sendable {
    /// As on the command line, without the dashes, and as the key in the file. The environment
    /// variable is `MILLRACE_` and the name in capitals with underscores.
    package var name: String
    package var placeholder: String
    /// One line for `--help`.
    package var help: String
    /// What holds when it is not given; empty when it must be.
    package var standard: String
    /// What is accepted, for messages.
    package var range: String
    /// A list in the file, several flags, or commas in the environment.
    package var isRepeatable = false
    /// - Returns: false when the text is not one of `range`.
    package var apply: @Sendable (inout ServerOptions, [String]) -> Bool

    package var environmentName: String {
        "MILLRACE_" + name.uppercased().replacing("-", with: "_")
    }
}

/// The one list of options: the command line, the environment, the file, `--help` and the tests of
/// the example file all walk it.
package enum OptionTable {
    private static let standard = ServerOptions()

    package static let options: [ServerOption] = [
        ServerOption(
            name: "data-dir",
            placeholder: "DIR",
            help: "where the broker keeps its data (required)",
            standard: "",
            range: "a directory; it is made when missing"
        ) { options, values in
            options.dataDirectory = values[0]
            return !values[0].isEmpty
        },
        ServerOption(
            name: "backup-dir",
            placeholder: "DIR|none",
            help: "where brokerctl backup has images made; none: nowhere",
            standard: "none",
            range: "a directory, or none"
        ) { options, values in
            options.backupDirectory = values[0] == "none" ? nil : values[0]
            return !values[0].isEmpty
        },
        ServerOption(
            name: "listen",
            placeholder: "HOST:PORT|unix:PATH",
            help: "where clients connect; may be repeated",
            standard: "\(ServerAddress.standard)",
            range: "\(ServerAddress.forms) (a path of at most "
                + "\(ServerAddress.unixPathBytesMax) bytes); port 0 takes a free one",
            isRepeatable: true
        ) { options, values in
            let addresses = values.compactMap { ServerAddress($0, for: .listening) }
            options.listen = addresses
            return addresses.count == values.count && !values.isEmpty
        },
        ServerOption(
            name: "admin",
            placeholder: "HOST:PORT|off",
            help: "where /healthz, /readyz and /metrics are served",
            standard: "127.0.0.1:7480",
            range: "HOST:PORT, or off"
        ) { options, values in
            if values[0] == "off" {
                options.admin = nil
                return true
            }
            guard case .tcp(let host, let port) = ServerAddress(values[0], for: .listening)
            else { return false }
            options.admin = AdminAddress(host: host, port: port)
            return true
        },
        count("shards", "how many shards", 1...ShardFolder.shardsMax, \.shards),
        ServerOption(
            name: "cpus",
            placeholder: "LIST",
            help: "the CPUs of the shards, one each",
            standard: "any",
            range: "CPU numbers such as 0 or 0-1,3, or any"
        ) { options, values in
            if values[0] == "any" {
                options.cpus = []
                return true
            }
            guard let cpus = OptionValue.cpuList(values[0]) else { return false }
            options.cpus = cpus
            return true
        },
        choice(
            "idle",
            "what a shard does when there is nothing to do",
            IdleStrategy.allCases,
            \.idle
        ),
        choice(
            "loop",
            "what a shard asks the kernel through; auto takes epoll where io_uring is refused",
            LoopChoice.allCases,
            \.loop
        ),

        size(
            "journal-size",
            "the journal of a new data directory, all files together",
            (1 << 20)...(1 << 40),
            \.journalBytes
        ),
        count("journal-files", "how many files that journal has", 2...1024, \.journalFiles),
        size(
            "journal-staging",
            "journal entries in memory that are not durable yet",
            (64 << 10)...(1 << 30),
            \.limits.stagingBytes
        ),
        size(
            "tail-memory",
            "memory for the newest records of all partitions, taken at the start",
            (1 << 20)...(1 << 40),
            \.limits.tailBytesMax
        ),
        size(
            "segment-size",
            "how large a partition's file grows before the next one",
            (1 << 20)...(1 << 36),
            \.limits.segmentBytes
        ),
        size(
            "chunk-size",
            "what is written to a segment at once",
            (16 << 10)...(16 << 20),
            \.limits.chunkBytes
        ),
        count(
            "writes-behind-max",
            "segment writes in flight; 0 lets the journal fill, for measuring recovery",
            0...256,
            \.limits.writesBehindMax
        ),
        count("cold-reads-max", "segment reads in flight", 1...1024, \.limits.coldReadsMax),
        count(
            "cold-reads-beside-max",
            "the same while the journal is in use",
            1...1024,
            \.limits.coldReadsBesideMax
        ),
        size(
            "cold-read-size",
            "what one read of a segment asks for, in blocks of 4 KiB",
            (32 << 10)...(1 << 20),
            \.limits.coldPieceBytes
        ),
        size(
            "cold-read-memory",
            "memory of all that consumers behind the tail read from segments",
            (64 << 10)...(1 << 40),
            \.limits.coldBytesMax
        ),
        size(
            "scrub-bandwidth",
            "what the check of segments may read per second; 0: they are not checked",
            0...(1 << 40),
            \.limits.scrubBytesPerSecond
        ),
        duration(
            "scrub-interval",
            "from the end of one pass of that check to the next",
            .seconds(1) ... .seconds(365 * 86_400),
            \.limits.scrubIntervalNanoseconds
        ),
        duration(
            "move-pause-max",
            "for how long publishes to a partition that moves to another shard are held back, at most",
            .milliseconds(1) ... .seconds(3600),
            \.limits.moveFenceNanoseconds
        ),
        count("files-max", "segment files that are open", 16...1_000_000, \.limits.filesMax),
        duration(
            "checkpoint-interval",
            "how often a checkpoint is written, at most",
            .milliseconds(100) ... .seconds(86_400),
            \.limits.checkpointAfterNanoseconds
        ),
        percent(
            "disk-warn",
            "how full the disk is, in per cent, when that is logged",
            \.limits.diskMarks.warn
        ),
        percent(
            "disk-refuse",
            "how full the disk is when new records are refused",
            \.limits.diskMarks.refuse
        ),
        percent(
            "disk-reads-only",
            "how full the disk is when new queues and producers are refused too",
            \.limits.diskMarks.readsOnly
        ),
        size(
            "disk-reserve",
            "room on the disk that is kept for finishing what was accepted before it was full",
            0...(1 << 40),
            \.limits.reserveBytes
        ),
        duration(
            "disk-slow",
            "how long a journal write or sync may be under way before that is logged",
            .milliseconds(10) ... .seconds(3600),
            \.limits.diskSlowNanoseconds
        ),
        duration(
            "memory-flush-interval",
            "when a quiet memory partition is written to its segment",
            .milliseconds(1) ... .seconds(3600),
            \.limits.memoryFlushNanoseconds
        ),

        size(
            "frame-bytes-max",
            "the largest frame that a client may send",
            4096...(64 << 20),
            \.limits.frameBytesMax
        ),
        size(
            "record-bytes-max",
            "the largest record of a batch; a batch ends it, too",
            64...(64 << 20),
            \.limits.recordBytesMax
        ),
        size(
            "record-headers-bytes-max",
            "the largest headers of a record",
            64...(64 << 20),
            \.limits.recordHeadersBytesMax
        ),
        count(
            "connections-max",
            "client connections at the same time",
            1...1_000_000,
            \.limits.connectionsMax
        ),
        size(
            "send-buffer",
            "what may wait to be sent on one connection",
            4096...(1 << 30),
            \.limits.sendBytesMax
        ),
        size(
            "send-memory",
            "memory of all send buffers together",
            (1 << 20)...(1 << 40),
            \.limits.sendMemoryBytesMax
        ),
        size(
            "input-buffer",
            "bytes received and not worked on before a connection is closed",
            (64 << 10)...(1 << 30),
            \.limits.inputBytesMax
        ),
        size(
            "input-memory",
            "memory of all frames that came in part, or wait behind one that waits for room",
            (1 << 20)...(1 << 40),
            \.limits.inputMemoryBytesMax
        ),
        count(
            "confirms-max",
            "runs of publishes that wait for their confirm, per connection",
            1...(1 << 24),
            \.limits.confirmRunsMax
        ),
        count(
            "subscriptions-max",
            "subscriptions of one connection",
            1...1_000_000,
            \.limits.subscriptionsPerConnectionMax
        ),
        duration(
            "hello-timeout",
            "when a connection that has not said HELLO is closed",
            .milliseconds(10) ... .seconds(3600),
            \.limits.helloNanoseconds
        ),
        duration(
            "frame-timeout",
            "when a connection is closed whose frame began to come and is not whole",
            .milliseconds(10) ... .seconds(3600),
            \.limits.frameNanoseconds
        ),
        duration(
            "peer-timeout",
            "when a connection is closed whose other end answers nothing, or takes next to nothing",
            .seconds(1) ... .seconds(86_400),
            \.limits.peerNanoseconds
        ),
        duration(
            "drain-timeout",
            "when a connection that is to close, and takes nothing more, is closed",
            .milliseconds(10) ... .seconds(3600),
            \.limits.drainNanoseconds
        ),

        count("queues-max", "queues in all", 1...10_000_000, \.limits.queuesMax),
        count(
            "partitions-per-queue-max",
            "partitions of one queue",
            1...65_536,
            \.limits.partitionsPerQueueMax
        ),
        count(
            "partitions-max",
            "partitions of all queues together",
            1...standard.limits.partitionsMax,
            \.limits.partitionsMax
        ),
        count(
            "producers-max",
            "producers that are known, until they expire",
            1...10_000_000,
            \.limits.producersMax
        ),
        count(
            "groups-max",
            "consumer groups of all queues together",
            1...10_000_000,
            \.limits.groupsMax
        ),
        ServerOption(
            name: "producer-expiry",
            placeholder: "TIME",
            help: "how long a silent producer's sequence is kept",
            standard: OptionValue.durationText(
                .seconds(UInt64(standard.limits.producerExpirySeconds))
            ),
            range: "1m to 365d, in whole seconds"
        ) { options, values in
            guard let time = OptionValue.duration(values[0]), time % .seconds(1) == 0,
                (.seconds(60) ... .seconds(365 * 86_400)).contains(time)
            else { return false }
            options.limits.producerExpirySeconds = UInt32(time / .seconds(1))
            return true
        },

        choice(
            "log-level",
            "the least severe line that is logged",
            Logger.Level.allCases,
            \.logLevel
        ),
        choice("log-format", "how log lines look", LogFormat.allCases, \.logFormat),
    ]

    /// Taken from flags and environment only.
    package static let configName = "config"
    package static var names: [String] { options.map(\.name) }

    package static func option(_ name: String) -> ServerOption? {
        options.first { $0.name == name }
    }

    package static var help: String {
        var lines = [
            "Millrace message broker.", "",
            "usage: brokerd --data-dir DIR [options]", "",
            "A flag comes before the environment (MILLRACE_DATA_DIR=…), the environment before the",
            "file given with --config. Sizes are like 64MiB, times like 10s.", "",
        ]
        func add(_ flag: String, _ help: String, _ standard: String) {
            lines.append("  " + flag)
            lines.append("      " + help + (standard.isEmpty ? "" : " [\(standard)]"))
        }
        for option in options {
            add("--\(option.name) \(option.placeholder)", option.help, option.standard)
        }
        add("--config FILE", "a YAML file with any of the options above", "")
        add(
            "--check-only",
            "read everything in the data directory, say what is damaged, and end; changes nothing",
            ""
        )
        add("--version", "print the version and end", "")
        add("--help", "print this and end", "")
        lines += [
            "", "Exit code: 0 stopped as asked, 1 failed, 2 usage. With --check-only: 0 nothing is",
            "damaged, 1 something is, or it could not be read.", "",
            "  brokerd --data-dir ./millrace-data",
            "  brokerd --data-dir /var/lib/millrace --listen 0.0.0.0:7400 --cpus 0 --idle spin",
            "  brokerd --data-dir /var/lib/millrace --check-only",
        ]
        return lines.joined(separator: "\n") + "\n"
    }

    // MARK: kinds of options

    private static func count(
        _ name: String,
        _ help: String,
        _ range: ClosedRange<Int>,
        _ path: any (WritableKeyPath<ServerOptions, Int> & Sendable)
    ) -> ServerOption {
        ServerOption(
            name: name,
            placeholder: "N",
            help: help,
            standard: "\(standard[keyPath: path])",
            range: "\(range.lowerBound) to \(range.upperBound)"
        ) { options, values in
            guard let number = OptionValue.number(values[0]), let value = Int(exactly: number),
                range.contains(value)
            else { return false }
            options[keyPath: path] = value
            return true
        }
    }

    private static func percent(
        _ name: String,
        _ help: String,
        _ path: any (WritableKeyPath<ServerOptions, Int> & Sendable)
    ) -> ServerOption {
        var option = count(name, help, 10...100, path)
        option.placeholder = "PERCENT"
        return option
    }

    private static func size<Value: FixedWidthInteger & Sendable>(
        _ name: String,
        _ help: String,
        _ range: ClosedRange<UInt64>,
        _ path: any (WritableKeyPath<ServerOptions, Value> & Sendable)
    ) -> ServerOption {
        ServerOption(
            name: name,
            placeholder: "SIZE",
            help: help,
            standard: OptionValue.sizeText(UInt64(standard[keyPath: path])),
            range: "\(OptionValue.sizeText(range.lowerBound)) to "
                + OptionValue.sizeText(range.upperBound)
        ) { options, values in
            guard let bytes = OptionValue.size(values[0]), range.contains(bytes),
                let value = Value(exactly: bytes)
            else { return false }
            options[keyPath: path] = value
            return true
        }
    }

    private static func duration(
        _ name: String,
        _ help: String,
        _ range: ClosedRange<UInt64>,
        _ path: any (WritableKeyPath<ServerOptions, UInt64> & Sendable)
    ) -> ServerOption {
        ServerOption(
            name: name,
            placeholder: "TIME",
            help: help,
            standard: OptionValue.durationText(standard[keyPath: path]),
            range: "\(OptionValue.durationText(range.lowerBound)) to "
                + OptionValue.durationText(range.upperBound)
        ) { options, values in
            guard let time = OptionValue.duration(values[0]), range.contains(time) else {
                return false
            }
            options[keyPath: path] = time
            return true
        }
    }

    private static func choice<Value: RawRepresentable<String> & Sendable>(
        _ name: String,
        _ help: String,
        _ choices: [Value],
        _ path: any (WritableKeyPath<ServerOptions, Value> & Sendable)
    ) -> ServerOption {
        let names = choices.map(\.rawValue)
        return ServerOption(
            name: name,
            placeholder: names.joined(separator: "|"),
            help: help,
            standard: standard[keyPath: path].rawValue,
            range: names.joined(separator: ", ")
        ) { options, values in
            guard let value = Value(rawValue: values[0]) else { return false }
            options[keyPath: path] = value
            return true
        }
    }
}
