internal import BrokerBasics
internal import BrokerTestSupport
internal import Glibc
internal import Testing

@Suite("Crash enumeration", .serialized)
struct CrashEnumerationTests {
    @Test("no crash point of any scenario breaks a promise, over at least 60,000 points")
    func everyScenario() throws {
        let isLong = getenv("MILLRACE_TORTURE") != nil
        let seeds: [UInt64] =
            getenv("SEED").flatMap { UInt64(String(cString: $0)) }.map { [$0] }
            ?? (isLong ? Array(1...40) : [1])
        var points = 0
        var states: Set<UInt64> = []
        // SCENARIO=shards: only those with this in their names, while one is being worked on.
        let wanted = getenv("SCENARIO").map { String(cString: $0) }
        for scenario in Scenario.all where wanted.map(scenario.name.contains) ?? true {
            for seed in seeds {
                let result = CrashEnumerator(scenario: scenario, seed: seed)
                try result.run()
                print(
                    "crash enumeration: \(scenario.name), seed \(seed): \(result.points) points, "
                        + "\(result.states.count) states, \(result.completions) completions, "
                        + "\(result.recoveryCrashes) crashes in recovery, "
                        + "\(result.sectorsLost) sectors lost")
                points += result.points
                states.formUnion(result.states)
                #expect(result.sectorsLost > 0, "the power cuts of \(scenario.name) took nothing")
            }
        }
        print("crash enumeration: \(points) points, \(states.count) distinct recovered states")
        guard wanted == nil else { return }
        #expect(points >= 60_000)
        #expect(Scenario.all.count >= 12)
    }
}
