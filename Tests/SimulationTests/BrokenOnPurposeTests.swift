internal import BrokerBasics
internal import BrokerTestSupport
internal import LogStorage
internal import Testing

/// A way of being wrong, and the scenario whose crash enumeration catches it.
struct BrokenVariant: Sendable, CustomStringConvertible {
    let name: String
    let scenario: Scenario
    let fault: @Sendable (inout StorageFaults) -> Void
    var description: String { name }

    static let all: [BrokenVariant] = [
        BrokenVariant(name: "journal writes are not synced", scenario: .publishSynced) {
            $0.journalNotSynced = true
        },
        BrokenVariant(name: "a confirm leaves before its sync", scenario: .publishSynced) {
            $0.confirmBeforeSync = true
        },
        BrokenVariant(name: "a delivery leaves before its sync", scenario: .publishSynced) {
            $0.deliverBeforeSync = true
        },
        BrokenVariant(name: "an ack is answered before its sync", scenario: .acks) {
            $0.ackBeforeSync = true
        },
        BrokenVariant(
            name: "a second write counts before the first is durable", scenario: .fullJournal
        ) { $0.outOfOrderCompletion = true },
        BrokenVariant(
            name: "the journal's checksum is not seeded and a recycled block is accepted",
            scenario: .recycling
        ) { $0.checksumNotSeeded = true },
        BrokenVariant(name: "sequences are not rebuilt from the journal", scenario: .producerRetry)
        {
            $0.sequenceNotPersisted = true
        },
        BrokenVariant(name: "groups of an older term are accepted", scenario: .killThenPowerCut) {
            $0.oldTermAccepted = true
        },
        BrokenVariant(name: "truncation is off by one group", scenario: .publishSynced) {
            $0.truncationOffByOne = true
        },
        BrokenVariant(name: "new names are not synced", scenario: .recycling) {
            $0.directoryNotSynced = true
        },
        BrokenVariant(name: "segments are not synced before a checkpoint", scenario: .recycling) {
            $0.segmentNotSynced = true
        },
        BrokenVariant(name: "a chunk that is forced out is not synced", scenario: .forcedOut) {
            $0.forcedChunkNotSynced = true
        },
        BrokenVariant(
            name: "the journal is recycled before the checkpoint is durable",
            scenario: .fullJournal
        ) { $0.recycleBeforeCheckpoint = true },
        BrokenVariant(
            name: "the recovered tail is served without a sync", scenario: .killThenPowerCut
        ) { $0.recoveredTailNotSynced = true },
        BrokenVariant(
            name: "a checkpoint that recovery finds is taken for durable", scenario: .shardsChanged
        ) { $0.foundFilesNotSynced = true },
        BrokenVariant(name: "the reservation is ignored", scenario: .publishMemory) {
            $0.reservationIgnored = true
        },
        BrokenVariant(name: "cursors are left out of checkpoints", scenario: .acks) {
            $0.cursorNotCheckpointed = true
        },
        BrokenVariant(
            name: "a synced write goes past plain ones that no sync covered",
            scenario: .writtenAndSynced
        ) { $0.plainWriteOvertaken = true },
        BrokenVariant(
            name: "a written batch counts before its write is complete", scenario: .publishWritten
        ) { $0.writtenBeforeWrite = true },
        BrokenVariant(
            name: "a crash of the machine takes nothing of a written queue",
            scenario: .writtenKillAndCut
        ) { $0.machineCrashIgnored = true },
        BrokenVariant(
            name: "a segment's file goes before the change of the start is durable",
            scenario: .purge
        ) { $0.removedBeforeDurable = true },
        BrokenVariant(name: "the start is left out of checkpoints", scenario: .retention) {
            $0.startNotCheckpointed = true
        },
        BrokenVariant(
            name: "other shards hear of a change before it is durable", scenario: .shardsControl
        ) { $0.broadcastBeforeDurable = true },
        BrokenVariant(
            name: "the new placement counts before the new owner has the partition",
            scenario: .shardsMoveLevels
        ) { $0.placementBeforeAdoption = true },
        BrokenVariant(
            name: "the term of a start that did not end is used again",
            scenario: .shardsMoveLevels
        ) { $0.termUsedAgain = true },
        BrokenVariant(
            name: "a partition's tail is not brought to a segment before it moves",
            scenario: .shardsMoveLevels
        ) { $0.movedTailNotFlushed = true },
        BrokenVariant(
            name: "a tail that moves with the number of shards is written and not synced",
            scenario: .shardsMoveLevels
        ) { $0.movedTailNotSynced = true },
        BrokenVariant(
            name: "a shard that is gone loses its identity behind its checkpoints",
            scenario: .shardsChanged
        ) { $0.identityRetiredLast = true },
        BrokenVariant(
            name: "what only the tail holds stays behind when a partition moves while serving",
            scenario: .shardsMove
        ) { $0.movedTailNotFlushed = true },
        BrokenVariant(
            name: "publishes go on to the old owner while a partition moves", scenario: .shardsMove
        ) { $0.moveNotFenced = true },
        BrokenVariant(
            name: "a move counts before the new owner's copy is durable", scenario: .shardsMove
        ) { $0.adoptedBeforeDurable = true },
    ]
}

@Suite("Broken on purpose")
struct BrokenOnPurposeTests {
    @Test("crash enumeration catches each broken variant", arguments: BrokenVariant.all)
    func isCaught(variant: BrokenVariant) throws {
        var faults = StorageFaults()
        variant.fault(&faults)
        var caught: [String] = []
        for seed in UInt64(1)...12 where caught.isEmpty {
            do {
                try CrashEnumerator(
                    scenario: variant.scenario, seed: seed, subsets: 3, faults: faults
                ).run()
            } catch {
                caught.append("\(error)")
            }
        }
        print("broken on purpose: \(variant.name): \(caught.first ?? "NOT CAUGHT")")
        #expect(!caught.isEmpty, "\(variant.name) is not caught by \(variant.scenario.name)")
    }
}
