internal import CBaseline
internal import Glibc

/// `baseline`: the C yardsticks, one after the other.
package struct Baseline {
    package var directory: String?
    package var frameSizes: [Int] = []
    package var appendSizes: [Int] = []
    package var connections = 8
    package var window = 32
    package var blocking = false
    /// Only the yardsticks whose names begin with one of these; empty: all.
    package var only: [String] = []
    package var fileBytes: UInt64 = 1 << 30
    package var serverCPU: Int?
    package var clientCPU: Int?
    package var warmupNanoseconds: UInt64 = 300_000_000
    package var durationNanoseconds: UInt64 = 2_000_000_000

    /// What a journal writes at a time, and what the write-behind does.
    private static let journalBytes = 128 * 1024
    private static let segmentSizes = [128 * 1024, 256 * 1024]
    private static let streamNames = ["journal", "segments"]
    private static let segmentSyncBytes: UInt64 = 64 << 20
    private static let readBytes = 256 * 1024
    private static let readsInFlight = [1, 4]

    package init() {}

    package func run() throws(LoadError) -> [LoadReport] {
        var reports: [LoadReport] = []
        for size in frameSizes {
            for (connections, window) in connections > 1 || window > 1
                ? [(1, 1), (connections, window)] : [(1, 1)]
            where wants(Self.echoName(size, connections, window)) {
                reports.append(
                    try echo(frameBytes: size, connections: connections, window: window)
                )
            }
        }
        if let directory { reports += try appends(in: directory) }
        guard !reports.isEmpty else { throw .baseline("no yardstick has such a name") }
        return reports
    }

    private func wants(_ name: String) -> Bool {
        only.isEmpty || only.contains { name.hasPrefix($0) }
    }

    private static func echoName(_ size: Int, _ connections: Int, _ window: Int) -> String {
        "echo \(size) B, \(connections) × \(window)"
    }
    private static func appendName(_ size: Int, _ inFlight: Int) -> String {
        "append \(size) B, \(inFlight) in flight"
    }
    private static func streamName(_ stream: String, _ segmentBytes: Int) -> String {
        "\(stream) beside the other, segments by \(segmentBytes / 1024) KiB"
    }

    private static func readName(_ inFlight: Int) -> String {
        "read \(readBytes) B, \(inFlight) in flight"
    }

    private func echo(
        frameBytes: Int,
        connections: Int,
        window: Int
    ) throws(LoadError) -> LoadReport {
        var options = baseline_echo_options(
            server_cpu: Int32(serverCPU ?? -1),
            client_cpu: Int32(clientCPU ?? -1),
            connections: UInt32(connections),
            window: UInt32(window),
            frame_bytes: UInt32(frameBytes),
            blocking: blocking,
            warmup_ns: warmupNanoseconds,
            duration_ns: durationNanoseconds
        )
        let results = Results(count: 1)
        let code = withExtendedLifetime(results) { baseline_echo(&options, results.pointer) }
        guard code == 0 else { throw results.error }
        return report(
            results,
            0,
            workload: Self.echoName(frameBytes, connections, window),
            settings: [
                ("kind", .string("echo")),
                ("frame_bytes", .integer(frameBytes)),
                ("connections", .integer(connections)),
                ("window", .integer(window)),
                ("idle", .string(blocking ? "block" : "spin")),
                ("server_cpu", .optional(serverCPU)),
                ("cpu", .optional(clientCPU)),
            ]
        )
    }

    private func appends(in directory: String) throws(LoadError) -> [LoadReport] {
        var reports: [LoadReport] = []
        let journal = try TestFile(directory: directory, bytes: fileBytes)
        for size in appendSizes {
            let padded = journal.padded(size)
            for inFlight in [1, 2] where wants(Self.appendName(size, inFlight)) {
                let stream = baseline_stream(
                    file: UnsafePointer(journal.pointer),
                    write_bytes: UInt32(padded),
                    in_flight: UInt32(inFlight),
                    dsync: true,
                    sync_every_bytes: 0,
                    reads: false
                )
                let results = try write([stream], to: [journal])
                reports.append(
                    report(
                        results,
                        0,
                        workload: Self.appendName(size, inFlight),
                        settings: [
                            ("kind", .string("append")),
                            ("append_bytes", .integer(size)),
                            ("written_bytes", .integer(padded)),
                            ("in_flight", .integer(inFlight)),
                            ("sync", .string("RWF_DSYNC on each write")),
                        ] + fileSettings(journal)
                    )
                )
            }
        }
        reports += try reads(from: journal)
        let sizes = Self.segmentSizes.filter { size in
            Self.streamNames.contains { wants(Self.streamName($0, size)) }
        }
        guard !sizes.isEmpty else { return reports }
        let segments = try TestFile(directory: directory, bytes: fileBytes)
        for size in sizes {
            let streams = [
                baseline_stream(
                    file: UnsafePointer(journal.pointer),
                    write_bytes: UInt32(Self.journalBytes),
                    in_flight: 2,
                    dsync: true,
                    sync_every_bytes: 0,
                    reads: false
                ),
                baseline_stream(
                    file: UnsafePointer(segments.pointer),
                    write_bytes: UInt32(size),
                    in_flight: 4,
                    dsync: false,
                    sync_every_bytes: Self.segmentSyncBytes,
                    reads: false
                ),
            ]
            let results = try write(streams, to: [journal, segments])
            for (index, name) in Self.streamNames.enumerated() {
                reports.append(
                    report(
                        results,
                        index,
                        workload: Self.streamName(name, size),
                        settings: [
                            ("kind", .string("two-streams")),
                            ("stream", .string(name)),
                            ("written_bytes", .integer(index == 0 ? Self.journalBytes : size)),
                            ("segment_bytes", .integer(size)),
                            ("in_flight", .integer(index == 0 ? 2 : 4)),
                            (
                                "sync",
                                .string(
                                    index == 0
                                        ? "RWF_DSYNC on each write" : "fdatasync each 64 MiB"
                                )
                            ),
                        ] + fileSettings(index == 0 ? journal : segments)
                    )
                )
            }
        }
        return reports
    }

    /// The file read in sequence, as a replay reads a segment.
    private func reads(from file: TestFile) throws(LoadError) -> [LoadReport] {
        var reports: [LoadReport] = []
        for inFlight in Self.readsInFlight where wants(Self.readName(inFlight)) {
            let stream = baseline_stream(
                file: UnsafePointer(file.pointer),
                write_bytes: UInt32(Self.readBytes),
                in_flight: UInt32(inFlight),
                dsync: false,
                sync_every_bytes: 0,
                reads: true
            )
            let results = try write([stream], to: [file])
            reports.append(
                report(
                    results,
                    0,
                    workload: Self.readName(inFlight),
                    settings: [
                        ("kind", .string("read")),
                        ("read_bytes", .integer(Self.readBytes)),
                        ("in_flight", .integer(inFlight)),
                    ] + fileSettings(file)
                )
            )
        }
        return reports
    }

    private func write(
        _ streams: [baseline_stream],
        to files: [TestFile]
    ) throws(LoadError) -> Results {
        let results = Results(count: streams.count)
        // The C side has bare pointers to both.
        let code = withExtendedLifetime((files, results)) {
            streams.withUnsafeBufferPointer { list -> Int32 in
                guard let base = list.baseAddress else { return -1 }
                return baseline_write(
                    base,
                    UInt32(list.count),
                    Int32(serverCPU ?? -1),
                    warmupNanoseconds,
                    durationNanoseconds,
                    results.pointer
                )
            }
        }
        guard code == 0 else { throw results.error }
        return results
    }

    private func fileSettings(_ file: TestFile) -> [(String, JSON)] {
        [
            ("file_bytes", .integer(Int(file.pointer.pointee.bytes))),
            ("alignment", .integer(Int(file.pointer.pointee.offset_alignment))),
            ("server_cpu", .optional(serverCPU)),
        ]
    }

    private func report(
        _ results: Results,
        _ index: Int,
        workload: String,
        settings: [(String, JSON)]
    ) -> LoadReport {
        withExtendedLifetime(results) {
            report(UnsafePointer(results.pointer + index), workload: workload, settings: settings)
        }
    }

    private func report(
        _ result: UnsafePointer<baseline_result>,
        workload: String,
        settings: [(String, JSON)]
    ) -> LoadReport {
        // In place: the histogram is 35 KB.
        let latency = UnsafeRawPointer(result)
            .advanced(by: MemoryLayout<baseline_result>.offset(of: \.latency) ?? 0)
            .assumingMemoryBound(to: baseline_histogram.self)
        return LoadReport(
            command: "baseline",
            workload: workload,
            durability: nil,
            records: result.pointee.operations,
            seconds: Double(result.pointee.nanoseconds) / 1e9,
            bytes: result.pointee.bytes,
            latency: LatencySummary(latency),
            settings: settings + [
                ("warmup_seconds", .number(Double(warmupNanoseconds) / 1e9)),
                ("duration_seconds", .number(Double(durationNanoseconds) / 1e9)),
            ]
        )
    }
}

/// Room for what the C side answers.
private final class Results {
    let pointer: UnsafeMutablePointer<baseline_result>
    init(count: Int) {
        pointer = .allocate(capacity: count)
        pointer.initialize(repeating: baseline_result(), count: count)
    }
    deinit { pointer.deallocate() }

    var error: LoadError {
        let text = withUnsafeBytes(of: &pointer.pointee.error) { bytes in
            String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        }
        return .baseline(text)
    }
}

/// A zero-written file without a name, closed with this.
private final class TestFile {
    let pointer: UnsafeMutablePointer<baseline_file>

    init(directory: String, bytes: UInt64) throws(LoadError) {
        let file = UnsafeMutablePointer<baseline_file>.allocate(capacity: 1)
        var text = [CChar](repeating: 0, count: 512)
        guard baseline_file_open(directory, bytes, file, &text, text.count) == 0 else {
            file.deallocate()
            let reason = text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }
            throw .baseline(String(decoding: reason, as: UTF8.self))
        }
        pointer = file
    }
    deinit {
        baseline_file_close(pointer)
        pointer.deallocate()
    }

    func padded(_ bytes: Int) -> Int {
        let alignment = Int(pointer.pointee.offset_alignment)
        return (bytes + alignment - 1) / alignment * alignment
    }
}
