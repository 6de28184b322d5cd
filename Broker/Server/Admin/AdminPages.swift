internal import BrokerBasics
internal import BrokerCore
package import BrokerServer
internal import ShardRuntime
internal import Synchronization

/// An answer of the admin port, before it is HTTP.
package struct AdminAnswer: Sendable {
    package var status: Int
    package var contentType: String
    package var body: String

    static func json(_ status: Int, _ fields: [(name: String, value: JSON)]) -> AdminAnswer {
        let body = fields.map { "\(LogLine.quoted($0.name)):\($0.value.text)" }
        return AdminAnswer(
            status: status,
            contentType: "application/json",
            body: "{" + body.joined(separator: ",") + "}\n"
        )
    }

    enum JSON {
        case text(String)
        case whole(UInt64)
        case real(Double)

        var text: String {
            switch self {
            case .text(let value): LogLine.quoted(value)
            case .whole(let value): "\(value)"
            case .real(let value): "\(value)"
            }
        }
    }
}

/// What the admin port says. Everything comes from the shard's own words and beats: that HTTP
/// answers says nothing about the shard.
package final class AdminPages: Sendable {
    /// An idle loop beats every 100 ms; ten missed beats are a stall.
    package static let beatAgeMax: UInt64 = .seconds(1)
    package static let reportWaitMax: UInt64 = .seconds(1)
    package static let paths = ["/healthz", "/readyz", "/metrics"]

    private let controls: [ShardControl]
    private let version: String
    private let startTime: WallTime
    private let isStopping = Atomic<Bool>(false)

    /// - Parameter controls: of the shards, from 0.
    package init(controls: [ShardControl], version: String) {
        self.controls = controls
        self.version = version
        startTime = Clock.wall
    }

    /// From now on `/readyz` says no.
    package func beginStop() { isStopping.store(true, ordering: .relaxed) }

    /// - Parameter query: the names of the query's parameters.
    package func answer(path: String, query: [String]) async -> AdminAnswer {
        guard Self.paths.contains(path) else {
            return .json(
                404,
                [
                    ("error", .text("there is no \(path)")),
                    ("paths", .text(Self.paths.joined(separator: " "))),
                ]
            )
        }
        guard query.isEmpty else {
            let names = query.sorted().joined(separator: ", ")
            return .json(
                400,
                [("error", .text("\(path) takes no parameters; unknown: \(names)"))]
            )
        }
        switch path {
        case "/healthz": return health()
        case "/readyz": return readiness(leastReady)
        default: return await metrics()
        }
    }

    // MARK: health

    private static func beatAge(_ control: ShardControl) -> UInt64? {
        let beat = control.lastBeat
        return beat == .zero ? nil : Clock.monotonic.since(beat)
    }

    /// The broker is as healthy as the shard that was silent for longest.
    private var beatAge: UInt64? {
        let ages = controls.compactMap(Self.beatAge)
        return ages.count == controls.count ? ages.max() : nil
    }

    /// The first shard that is not ready, or the first of all.
    private var leastReady: ShardControl.Published {
        let all = controls.map(\.current)
        return all.first { !isReady($0) } ?? all[0]
    }

    /// Before its loop runs, a shard recovers on the same thread and is alive by what it reads; there
    /// `/readyz` tells. After that only beats count.
    private func health() -> AdminAnswer {
        let published = leastReady
        guard let age = beatAge else {
            return .json(200, [("status", .text("ok")), ("stage", .text(published.stage))])
        }
        let isAlive = age <= Self.beatAgeMax
        return .json(
            isAlive ? 200 : 503,
            [
                ("status", .text(isAlive ? "ok" : "stalled")),
                ("stage", .text(stage(published))),
                ("beatAgeSeconds", .real(Double(age) / 1e9)),
            ]
        )
    }

    private func stage(_ published: ShardControl.Published) -> String {
        isStopping.load(ordering: .relaxed) ? "stopping" : published.stage
    }

    private func isReady(_ published: ShardControl.Published) -> Bool {
        stage(published) == "ready" && published.failure == nil
    }

    private func readiness(_ published: ShardControl.Published) -> AdminAnswer {
        if isReady(published) {
            return .json(200, [("status", .text("ready")), ("stage", .text("ready"))])
        }
        var fields: [(String, AdminAnswer.JSON)] = [("stage", .text(stage(published)))]
        let reason: String
        if let failure = published.failure {
            reason = "storage failed: \(failure)"
        } else {
            reason =
                switch stage(published) {
                case "recovering": "recovering: \(published.progress.stage)"
                case "starting": "writing the first checkpoint of this start"
                case "stopping": "stopping"
                default: stage(published)
                }
        }
        fields = [("status", .text("not ready")), ("reason", .text(reason))] + fields
        fields += [
            ("journalBytesRead", .whole(published.progress.journalBytesRead)),
            ("entries", .whole(published.progress.entries)),
        ]
        return .json(503, fields)
    }

    // MARK: metrics

    private func metrics() async -> AdminAnswer {
        // Until its loop runs, a shard can't report; what is known of the recovery is shown.
        let running = controls.filter { Self.beatAge($0) != nil }
        let seen = running.map(\.current.reportNumber)
        for control in running { control.askForReport() }
        let began = Clock.monotonic
        for (control, number) in zip(running, seen) {
            while control.current.reportNumber <= number {
                guard Clock.monotonic.since(began) < Self.reportWaitMax, !Task.isCancelled else {
                    return AdminAnswer(
                        status: 503,
                        contentType: "text/plain; charset=utf-8",
                        body: "the shard did not report within 1 s\n"
                    )
                }
                try? await Task.sleep(for: .milliseconds(1))
            }
        }
        let sources = controls.map { control in
            let published = control.current
            return MetricSource(
                version: version,
                published: published,
                isReady: isReady(published),
                beatAgeSeconds: Double(Self.beatAge(control) ?? 0) / 1e9,
                startTimeSeconds: Double(startTime.nanoseconds) / 1e9
            )
        }
        return AdminAnswer(
            status: 200,
            contentType: MetricText.contentType,
            body: MetricText.render(MetricTable.metrics, sources)
        )
    }
}
