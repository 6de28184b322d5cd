internal import BrokerBasics
internal import BrokerShard
internal import BrokerTestSupport
internal import Glibc
internal import Testing

/// Stories without crashes, from many seeds: that all who wait are answered depends on the order in which
/// the disk completes, and crash enumeration tries few orders.
@Suite("Many seeds")
struct ManySeedsTests {
    @Test(
        "every scenario comes to its end, whatever the order of completions",
        arguments: Scenario.all)
    func everyScenario(scenario: Scenario) throws {
        let seeds: ClosedRange<UInt64> = getenv("MILLRACE_TORTURE") != nil ? 1...5000 : 1...300
        var journalWritesMax = 0
        for seed in seeds {
            // No checkpoint by the clock comes to the aid of who waits.
            var settings = scenario.settings
            settings.limits.checkpointAfterNanoseconds = .seconds(1000)
            let runner = try ScenarioRunner(settings: settings, seed: seed)
            do {
                try scenario.play(runner)
            } catch {
                throw Violation("\(scenario.name), seed \(seed): \(runner.violation ?? error)")
            }
            if let violation = runner.violation {
                throw Violation("\(scenario.name), seed \(seed): \(violation)")
            }
            journalWritesMax = max(journalWritesMax, runner.shard.journalWritesMax)
        }
        // Groups wait there: the crashes of the same story meet as many writes at once.
        if scenario.name == Scenario.fullJournal.name { #expect(journalWritesMax == 4) }
    }
}
