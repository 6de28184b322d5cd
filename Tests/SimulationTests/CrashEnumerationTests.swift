internal import BrokerBasics
internal import BrokerTestSupport
internal import Glibc
internal import Testing

@Suite("Crash enumeration", .serialized)
struct CrashEnumerationTests {
    @Test(
        "no crash point of any scenario breaks a promise, over at least 100,000 points, 60,000 of them of several shards"
    )
    func everyScenario() throws {
        let isLong = getenv("MILLRACE_TORTURE") != nil
        let seeds: [UInt64] =
            getenv("SEED").flatMap { UInt64(String(cString: $0)) }.map { [$0] }
            ?? (isLong ? Array(1...40) : [1])
        let isWhole = getenv("SEED") == nil
        var shardedPoints = 0
        var points = 0
        var states: Set<UInt64> = []
        var shardedRecoveries = RecoveryCrashes()
        // SCENARIO=shards: only those with this in their names, while one is being worked on.
        let wanted = getenv("SCENARIO").map { String(cString: $0) }
        for scenario in Scenario.all where wanted.map(scenario.name.contains) ?? true {
            // Stories of several shards are quick, and their orders are many.
            let isSharded = Scenario.sharded.contains { $0.name == scenario.name }
            var recoveries = RecoveryCrashes()
            let isMore = isSharded && isWhole
            for seed in isMore ? Array(1...(isLong ? 90 : 12)) : seeds {
                let result = CrashEnumerator(scenario: scenario, seed: seed)
                try result.run()
                print(
                    "crash enumeration: \(scenario.name), seed \(seed): \(result.points) points, "
                        + "\(result.states.count) states, \(result.completions) completions, "
                        + "\(result.recoveryCrashes.all) crashes in recovery, "
                        + "\(result.sectorsLost) sectors lost")
                points += result.points
                if isSharded { shardedPoints += result.points }
                recoveries.add(result.recoveryCrashes)
                states.formUnion(result.states)
                #expect(result.sectorsLost > 0, "the power cuts of \(scenario.name) took nothing")
            }
            #expect(recoveries.all > 0, "no recovery of \(scenario.name) was cut short")
            #expect(recoveries.late > 0, "no recovery of \(scenario.name) was cut short late")
            guard scenario.changesShards else { continue }
            print("crash enumeration: \(scenario.name): in recovery: \(recoveries)")
            #expect(recoveries.amongCheckpoints > 0, "\(scenario.name)")
            #expect(recoveries.inRetirement > 0, "\(scenario.name)")
            shardedRecoveries.add(recoveries)
        }
        print("crash enumeration: \(points) points, \(states.count) distinct recovered states")
        guard wanted == nil else { return }
        if isWhole {
            #expect(points >= (isLong ? 1_000_000 : 100_000))
            #expect(shardedPoints >= (isLong ? 1_000_000 : 60_000))
        }
        // Between the tails that go to another shard, which not every story has at any time.
        #expect(shardedRecoveries.betweenTails > 0)
        #expect(Scenario.all.count >= 12)
    }
}
