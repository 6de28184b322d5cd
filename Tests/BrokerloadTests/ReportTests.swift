import CBaseline
import Histogram
import Testing
import WireProtocol
import brokerload

@Suite struct LatencySummaryTests {
    @Test(
        "a percentile needs ten samples beyond it",
        arguments: [
            (19, 0), (20, 1), (99, 1), (100, 2), (999, 2), (1000, 3), (9999, 3), (10_000, 4),
            (99_999, 4), (100_000, 5),
        ]
    )
    func needsSamples(samples: Int, carried: Int) {
        var histogram = Histogram<UInt64>(highestTrackableValue: 1_000_000)
        for value in 0..<samples { _ = histogram.record(UInt64(value % 1000) + 1000) }
        let summary = LatencySummary(histogram)
        #expect(summary.percentiles.compactMap { $0 }.count == carried)
        #expect(summary.max != nil)
    }

    @Test("the C histogram's quantiles are within a percent")
    func baselineQuantile() throws {
        var results = baseline_result()
        var options = baseline_echo_options(
            server_cpu: -1,
            client_cpu: -1,
            connections: 3,
            window: 5,
            frame_bytes: 100,
            blocking: true,
            warmup_ns: 10_000_000,
            duration_ns: 100_000_000
        )
        try #require(baseline_echo(&options, &results) == 0)
        #expect(results.operations > 100)
        let quantiles = [0.5, 0.9, 0.99].map { baseline_quantile(&results.latency, $0) }
        #expect(quantiles == quantiles.sorted())
        #expect(quantiles[2] <= results.latency.max)
        #expect(quantiles[0] > 1000)
    }

    @Test("JSON keeps its order, its nulls and its quotes")
    func json() {
        let value = JSON.object([
            ("b", .integer(1)), ("a", .optional(nil as Double?)), ("t", .string("\"\n\u{1}µ")),
            ("n", .number(1.23456)), ("w", .number(2)), ("l", .array([.bool(true)])),
        ])
        #expect(
            value.text()
                == """
                {
                  "b": 1,
                  "a": null,
                  "t": "\\"\\n\\u0001µ",
                  "n": 1.235,
                  "w": 2,
                  "l": [
                    true
                  ]
                }
                """
        )
    }
}

extension SpinningTests {
    @Suite struct BaselineTests {
        @Test("echo, appends, reads and the two streams give one report each")
        func all() throws {
            var baseline = Baseline()
            baseline.directory = "."
            baseline.frameSizes = [138]
            baseline.appendSizes = [1000, 32_768]
            baseline.connections = 2
            baseline.window = 4
            baseline.fileBytes = 8 << 20
            baseline.warmupNanoseconds = 10_000_000
            baseline.durationNanoseconds = 250_000_000
            let reports = try baseline.run()
            #expect(reports.count == 2 + 4 + 2 + 4)
            for report in reports {
                #expect(report.records > 0, "\(report.workload)")
                #expect(report.bytesPerSecond > 0)
                let json = report.json(machine: Machine(diskOf: ".")).text()
                for key in ["command", "workload", "latency_us", "errors", "machine", "settings"] {
                    #expect(json.contains("\"\(key)\""))
                }
            }
            let (journal, segments) = (reports[8], reports[9])
            #expect(abs(Int(journal.bytes) - Int(segments.bytes)) <= 4 << 20)
        }

        @Test("a directory that isn't there is one sentence")
        func noDirectory() throws {
            var baseline = Baseline()
            baseline.directory = "/nowhere"
            let error = #expect(throws: LoadError.self) { _ = try baseline.run() }
            #expect(error?.description.contains("/nowhere") == true)
            #expect(error?.exitStatus == 1)
        }
    }
}

/// What spins, one after the other: the tests of a spinning thread are not for two cores at once.
@Suite(.serialized) enum SpinningTests {}
