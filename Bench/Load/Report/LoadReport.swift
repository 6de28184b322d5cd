internal import Glibc

/// One measured row, as JSON and for people.
package struct LoadReport {
    package var command: String
    /// What was done, in a few words: `64 B, 1 connection × 1 in flight`.
    package var workload: String
    /// `nil` where nothing is stored.
    package var durability: String?
    package var records: UInt64
    package var seconds: Double
    /// Payload bytes, or bytes on the wire or the disk where there are no records.
    package var bytes: UInt64
    package var latency: LatencySummary
    package var failures = Failures()
    package var settings: [(String, JSON)] = []

    package var recordsPerSecond: Double { seconds > 0 ? Double(records) / seconds : 0 }
    package var bytesPerSecond: Double { seconds > 0 ? Double(bytes) / seconds : 0 }

    package func json(machine: Machine) -> JSON {
        .object([
            ("command", .string(command)),
            ("workload", .string(workload)),
            ("durability", .optional(durability)),
            ("records", .integer(Int(records))),
            ("seconds", .number(seconds)),
            ("records_per_second", .number(recordsPerSecond)),
            ("bytes_per_second", .number(bytesPerSecond)),
            ("latency_us", latency.json),
            ("errors", .integer(Int(failures.total))),
            (
                "errors_by_name",
                .object(
                    failures.counts.sorted { $0.key < $1.key }
                        .map { ($0.key, JSON.integer(Int($0.value))) }
                )
            ),
            ("machine", machine.json),
            (
                "settings",
                .object(
                    settings + [
                        ("samples", .integer(Int(latency.samples))),
                        ("version", .string(BrokerLoad.version)),
                    ]
                )
            ),
        ])
    }

    // MARK: For people

    package static func table(_ reports: [LoadReport]) -> String {
        var rows = [
            [
                "what", "level", "per second", "MB/s", "p50", "p90", "p99", "p99.9", "p99.99",
                "max", "errors",
            ]
        ]
        for report in reports {
            rows.append(
                ["\(report.command) \(report.workload)", report.durability ?? "-"]
                    + [count(report.recordsPerSecond), decimal(report.bytesPerSecond / 1e6)]
                    + report.latency.percentiles.map { $0.map(decimal) ?? "-" }
                    + [report.latency.max.map(decimal) ?? "-", "\(report.failures.total)"]
            )
        }
        let widths = rows[0].indices.map { column in rows.map { $0[column].count }.max() ?? 0 }
        return rows.map { row in
            row.enumerated().map { column, text in
                let space = String(repeating: " ", count: widths[column] - text.count)
                return column < 2 ? text + space : space + text
            }
            .joined(separator: "  ")
        }
        .joined(separator: "\n") + "\n(latency in µs)"
    }

    private static func decimal(_ value: Double) -> String {
        let tenths = Int((value * 10).rounded())
        return "\(tenths / 10).\(tenths % 10)"
    }
    private static func count(_ value: Double) -> String {
        var digits = String(Int(value.rounded()))
        var groups: [String] = []
        while digits.count > 3 {
            groups.insert(String(digits.suffix(3)), at: 0)
            digits.removeLast(3)
        }
        return ([digits] + groups).joined(separator: ",")
    }

    /// Writes what was asked for: a file, standard output as JSON (`-`), or a table.
    ///
    /// With `asList` a list even of one, for commands that always write one.
    /// - Throws: `LoadError.file` when the file can't be written.
    package static func publish(
        _ reports: [LoadReport],
        machine: Machine,
        to path: String?,
        asList: Bool
    ) throws(LoadError) {
        guard let path else {
            print(table(reports))
            return
        }
        let values = reports.map { $0.json(machine: machine) }
        let text = (asList || values.count != 1 ? JSON.array(values) : values[0]).text() + "\n"
        if path == "-" {
            print(text, terminator: "")
        } else {
            try FileBytes.write(text, to: path)
        }
    }
}
