internal import BrokerBasics
internal import BrokerCore
internal import BrokerShard
internal import BrokerTestSupport
internal import LogStorage

/// Crashes a scenario before and after every completion of a disk operation, several ways each, and
/// holds what recovery shows against what was promised until then.
final class CrashEnumerator {
    private let scenario: Scenario
    private let seed: UInt64
    /// Random subsets per point, beside "none", "all" and "the later half".
    private let subsets: Int
    /// Every n-th completion only: 1 is all.
    private let stride: Int
    private let settings: SimulatedShard.Settings
    private var random: SeededRandom
    private var number = 0

    private(set) var points = 0
    private(set) var states: Set<UInt64> = []
    private(set) var sectorsLost = 0
    private(set) var recoveryCrashes = RecoveryCrashes()
    var completions: Int { number / 2 }

    init(
        scenario: Scenario, seed: UInt64, subsets: Int = 2, stride: Int = 1,
        faults: StorageFaults = StorageFaults()
    ) {
        self.scenario = scenario
        self.seed = seed
        self.subsets = subsets
        self.stride = stride
        var settings = scenario.settings
        settings.faults = faults
        self.settings = settings
        random = SeededRandom(seed: seed ^ 0x5EED)
    }

    func run() throws {
        let runner = try ScenarioRunner(settings: settings, seed: seed)
        runner.aroundCompletion = { [unowned self] runner, operation in
            try self.crash(runner, operation)
        }
        do {
            try scenario.play(runner)
        } catch {
            throw Violation("\(scenario.name), seed \(seed): \(runner.violation ?? error)")
        }
        if let violation = runner.violation { throw violation }
    }

    private func crash(_ runner: ScenarioRunner, _ operation: String) throws {
        number += 1
        guard number % stride == 0 else { return }
        var survivals: [SimulatedDisk.Survival] = [.none, .all, .latest]
        for _ in 0..<subsets { survivals.append(.some) }
        for survival in survivals {
            let disk = runner.shard.disk.afterPowerCut(survival, &random)
            sectorsLost += disk.sectorsLost
            try verify(disk, runner, "\(survival), \(operation)")
        }
        try verify(
            runner.shard.disk.afterKill(&random), runner, "killed, \(operation)", isKill: true)
    }

    private func verify(
        _ disk: SimulatedDisk, _ runner: ScenarioRunner, _ what: String, isKill: Bool = false
    ) throws {
        points += 1
        let point = points
        do {
            // One crash in four is followed by another in the middle of the recovery.
            let start = random.chance(1, in: 4) ? crashRecovery(of: disk, runner) : disk
            let shard = try SimulatedShard(
                disk: start, settings: settingsAfter(runner), seed: random.next(),
                wall: runner.shard.wall)
            let found = try ReadBack(from: shard)
            // A power cut in the middle of the recovery ended the run of the machine.
            try runner.history.check(found, killed: isKill && start === disk)
            states.insert(found.hash)
            guard random.chance(1, in: 8) else { return }
            // And once more, right after the recovery.
            points += 1
            let again = try SimulatedShard(
                disk: shard.disk.afterPowerCut(.some, &random), settings: settingsAfter(runner),
                seed: random.next(), wall: shard.wall)
            try runner.history.check(try ReadBack(from: again))
        } catch {
            throw Violation("\(scenario.name), seed \(seed): \(error) [\(what), point \(point)]")
        }
    }

    /// As before the crash, or with other shards.
    private func settingsAfter(_ runner: ScenarioRunner) -> SimulatedShard.Settings {
        var settings = runner.settings
        if scenario.changesShards, random.chance(1, in: 2) {
            settings.shards = 1 + random.below(3)
        }
        return settings
    }

    /// The disk that a recovery of `disk` leaves when the power goes in the middle of it. One in four of
    /// them comes after another in the middle of which the process was killed.
    private func crashRecovery(
        of disk: SimulatedDisk, _ runner: ScenarioRunner
    ) -> SimulatedDisk {
        let start = random.chance(1, in: 4) ? crashRecovery(of: disk, runner, .kill) : disk
        return crashRecovery(of: start, runner, .powerCut)
    }

    /// After any of its operations, which are counted first.
    private func crashRecovery(
        of disk: SimulatedDisk, _ runner: ScenarioRunner, _ crash: RecoveryRun.Crash
    ) -> SimulatedDisk {
        let recovery = RecoveryRun(
            disk: disk, settings: settingsAfter(runner), seed: random.next(),
            wall: runner.shard.wall)
        // One that fails is for the check to find.
        guard let length = recovery.length(&random) else { return disk }
        let place = random.below(length.total)
        recoveryCrashes.add(place, of: length)
        points += 1
        return recovery.cut(after: place, of: length, crash, &random)
    }
}
