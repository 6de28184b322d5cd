import LogChecker
import Testing

@Suite struct LogCheckerTests {
    @Test("a good history has no fault", arguments: Histories.good)
    func good(history: NamedHistory) throws {
        let report = try LogChecker.check(LogHistory(history.events))
        #expect(report.isGood, "\(report.faults)")
    }

    @Test("a bad history has exactly its fault", arguments: Histories.bad)
    func bad(history: NamedHistory) throws {
        let report = try LogChecker.check(LogHistory(history.events))
        #expect(report.counts == history.faults, "\(report.faults)")
        #expect(report.faults.map(\.kind).allSatisfy { history.faults[$0] != nil })
    }

    @Test("every kind of fault is in a bad history")
    func kinds() {
        let kinds = Set(Histories.bad.flatMap(\.faults.keys))
        #expect(kinds == Set(LogFault.Kind.allCases))
    }

    @Test("it does not matter in which order the clients' lines stand", arguments: Histories.bad)
    func mixed(history: NamedHistory) throws {
        // Producers behind readers; what each client says stays in its order.
        let ofReaders = history.events.filter { event in
            switch event {
            case .began, .delivered, .lost, .end: true
            case .published, .confirmed, .crash: false
            }
        }
        let others = history.events.filter { !ofReaders.contains($0) }
        let report = try LogChecker.check(LogHistory(ofReaders + others))
        #expect(report.counts == history.faults, "\(report.faults)")
    }

    @Test("what is lawful is counted")
    func counts() throws {
        let history = try #require(Histories.good.first { $0.name.hasPrefix("lost at memory") })
        let report = try LogChecker.check(LogHistory(history.events))
        #expect(report.published == 3)
        #expect(report.confirmed == 3)
        #expect(report.delivered == 2)
        #expect(report.crashes == 1)
        #expect(report.lostAsSaid == 1)
    }

    @Test(
        "a history that contradicts itself is refused by line",
        arguments: [
            ([published(0), published(0)], 2),
            (
                [
                    .published(
                        .init(
                            producer: "a",
                            sequence: 0,
                            partition: 0,
                            payload: 1,
                            level: .synced
                        )
                    ),
                    .published(
                        .init(
                            producer: "a",
                            sequence: 1,
                            partition: 0,
                            payload: 1,
                            level: .synced
                        )
                    ),
                ], 2
            ),
            ([began(), end(0), end(0)], 3),
            ([published(0), got(0, at: 0), got(0, at: 0)], 3),
        ] as [([LogEvent], Int)]
    )
    func contradictions(events: [LogEvent], line: Int) {
        let error = #expect(throws: HistoryError.self) {
            try LogChecker.check(LogHistory(events))
        }
        #expect(error?.line == line)
    }
}
