import BrokerAdmin
import BrokerBasics
import BrokerCore
import BrokerServer
import ShardRuntime
import Testing

@Suite struct MetricTests {
    private let source = MetricSource(
        version: "9",
        published: ShardControl.Published(),
        isReady: false,
        beatAgeSeconds: 0.5,
        startTimeSeconds: 1.5
    )

    @Test("a metric has its help, its type and a line for each sample")
    func lines() {
        let metric = Metric("lag", .gauge, .records, "How far\nbehind \\ back.") { _ in
            [
                Sample(.whole(7), [("queue", "a"), ("group", "g")]),
                Sample(.real(0.25), [("queue", "b\\c\"d\ne"), ("group", "")]),
                Sample(.real(.infinity)), Sample(.real(.nan)),
            ]
        }
        #expect(
            MetricText.render([metric], [source]) == """
                # HELP millrace_lag How far\\nbehind \\\\ back.
                # TYPE millrace_lag gauge
                millrace_lag{queue="a",group="g"} 7
                millrace_lag{queue="b\\\\c\\"d\\ne",group=""} 0.25
                millrace_lag +Inf
                millrace_lag NaN

                """
        )
    }

    @Test("a histogram's buckets only grow, end at +Inf with the count, and hold what they say")
    func histogram() throws {
        var histogram = LatencyHistogram()
        for nanoseconds: UInt64 in [1, 20_000, 90_000, 90_000, 4_000_000, 60_000_000_000] {
            histogram.record(nanoseconds)
        }
        let sample = histogram
        let metric = Metric("write_seconds", .histogram, .seconds, "Writes.") { _ in
            [Sample(.histogram(sample), [("disk", "a")])]
        }
        let text = MetricText.render([metric], [source])
        let buckets = text.split(separator: "\n").filter { $0.contains("_bucket{") }
        let counts = buckets.compactMap { $0.split(separator: " ").last.flatMap { UInt64($0) } }
        #expect(counts == counts.sorted())
        #expect(counts.count == 41)
        #expect(text.contains("millrace_write_seconds_bucket{disk=\"a\",le=\"1.6384e-05\"} 1\n"))
        #expect(text.contains("le=\"2.4576e-05\"} 2\n"))
        #expect(text.contains("le=\"9.8304e-05\"} 4\n"))
        #expect(text.contains("le=\"0.004194304\"} 5\n"))
        #expect(buckets.last?.hasSuffix("le=\"+Inf\"} 6") == true)
        #expect(text.contains("millrace_write_seconds_sum{disk=\"a\"} 60.004200001\n"))
        #expect(text.contains("millrace_write_seconds_count{disk=\"a\"} 6\n"))
    }

    @Test("the table's names are unique, valid, and say unit and kind by the usual endings")
    func table() {
        let names = MetricTable.metrics.map(\.name)
        #expect(Set(names).count == names.count)
        for metric in MetricTable.metrics {
            #expect(metric.name.hasPrefix("millrace_"))
            #expect(metric.name.allSatisfy { $0 == "_" || ($0.isLowercase && $0.isASCII) })
            #expect(metric.name.hasSuffix("_total") == (metric.kind == .counter), "\(metric.name)")
            if metric.unit == .seconds { #expect(metric.name.contains("_seconds")) }
            if metric.unit == .bytes { #expect(metric.name.contains("_bytes")) }
            if metric.unit == .records { #expect(metric.name.contains("_records")) }
            #expect(metric.help.hasSuffix("."), "\(metric.name)")
        }
    }

    @Test("before the shard has reported, every metric is named and what is known has a value")
    func beforeReports() {
        let text = MetricText.render(MetricTable.metrics, [source])
        for metric in MetricTable.metrics {
            #expect(text.contains("# HELP \(metric.name) "))
            #expect(text.contains("# TYPE \(metric.name) \(metric.kind.rawValue)\n"))
        }
        #expect(text.contains("\nmillrace_build_info{version=\"9\"} 1\n"))
        #expect(text.contains("\nmillrace_ready 0\n"))
        #expect(text.contains("\nmillrace_loop_beat_age_seconds 0.5\n"))
        #expect(text.contains("\nmillrace_storage_failed 0\n"))
    }
}

@Suite struct AdminPagesTests {
    private let pages = AdminPages(controls: [ShardControl()], version: "9")

    @Test("while a shard recovers it is alive, not ready, and its metrics are there")
    func recovering() async {
        #expect(await pages.answer(path: "/healthz", query: []).status == 200)
        let ready = await pages.answer(path: "/readyz", query: [])
        #expect(ready.status == 503)
        #expect(
            ready.body == """
                {"status":"not ready","reason":"recovering: starting","stage":"recovering",\
                "journalBytesRead":0,"entries":0}

                """
        )
        let metrics = await pages.answer(path: "/metrics", query: [])
        #expect(metrics.status == 200)
        #expect(metrics.contentType == "text/plain; version=0.0.4; charset=utf-8")
    }

    @Test("before its loop has run once a shard is alive, however long its recovery takes")
    func recoveringForLong() async {
        let control = ShardControl()
        let pages = AdminPages(controls: [control], version: "9")
        for stage in ["checkpoint", "journal", "segments"] {
            control.publish { $0.progress.stage = stage }
            let health = await pages.answer(path: "/healthz", query: [])
            #expect(health.status == 200)
            // There is no beat to tell the age of.
            #expect(health.body == "{\"status\":\"ok\",\"stage\":\"recovering\"}\n")
            let ready = await pages.answer(path: "/readyz", query: [])
            #expect(ready.status == 503)
            #expect(ready.body.contains("\"reason\":\"recovering: \(stage)\""))
        }
        // From the first beat on only beats count.
        control.beat(MonotonicTime(nanoseconds: 1))
        #expect(await pages.answer(path: "/healthz", query: []).status == 503)
        control.beat(Clock.monotonic)
        #expect(await pages.answer(path: "/healthz", query: []).status == 200)
    }

    @Test(
        "after a storage failure it is alive, not ready, and says what failed, also while it stops")
    func storageFailure() async {
        let control = ShardControl()
        let pages = AdminPages(controls: [control], version: "9")
        control.beat(Clock.monotonic)
        control.publish { $0.stage = "ready" }
        #expect(await pages.answer(path: "/readyz", query: []).status == 200)
        let failure = "writing 4096 bytes at 8192 of journal/0001.journal failed (errno 28)"
        control.publish { $0.failure = failure }
        for stops in [false, true] {
            if stops { pages.beginStop() }
            let ready = await pages.answer(path: "/readyz", query: [])
            #expect(ready.status == 503)
            #expect(ready.body.contains("\"reason\":\"storage failed: \(failure)\""))
            control.beat(Clock.monotonic)
            #expect(await pages.answer(path: "/healthz", query: []).status == 200)
        }
        let text = MetricText.render(
            MetricTable.metrics,
            [
                MetricSource(
                    version: "9", published: control.current, isReady: false, beatAgeSeconds: 0,
                    startTimeSeconds: 0)
            ])
        #expect(text.contains("\nmillrace_storage_failed 1\n"))
    }

    @Test("when the broker stops it is not ready")
    func stopping() async {
        pages.beginStop()
        let ready = await pages.answer(path: "/readyz", query: [])
        #expect(ready.status == 503)
        #expect(ready.body.contains("\"stage\":\"stopping\""))
    }

    @Test("an unknown path is 404, an unknown parameter 400 with its name")
    func unknown() async {
        #expect(await pages.answer(path: "/", query: []).status == 404)
        #expect(await pages.answer(path: "/metrics/", query: []).status == 404)
        let refused = await pages.answer(path: "/metrics", query: ["queue", "a\"b"])
        #expect(refused.status == 400)
        #expect(refused.body.contains("unknown: a\\\"b, queue"))
    }
}
