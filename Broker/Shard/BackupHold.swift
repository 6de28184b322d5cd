internal import BrokerBasics
package import BrokerCore
internal import LogStorage

// How it works. A backup wants one moment of the shard (`BackupPlan`). First a checkpoint is waited for, so that little
// of the journal goes with it, and all shards may do so at once; then, in the backup's order, the shard begins to hold:
// no further checkpoint begins, what is staged becomes durable, and the moment is there: the
// latest checkpoint, the journal from where that needs it, and what of each segment is on stable storage. Nothing of it
// may go before it is copied, so until then no file is removed, and as long as the journal is copied no checkpoint
// begins. If the journal is so full meanwhile that publishes wait, for ten seconds at most, or the disk fills up, the image
// is given up.
//
// A stop, or a failure of storage, ends it: what was copied by then is no image.

/// What the shard holds back for a backup.
package struct BackupHold {
    fileprivate enum Phase: Equatable {
        case none
        case awaitingCheckpoint(UInt64)
        case closingGroup
        case awaitingJournal(group: UInt64)
        case holdingJournal
        case holdingFiles
    }
    fileprivate var phase = Phase.none
    package fileprivate(set) var plan: BackupPlan?
    /// It is this shard's turn.
    fileprivate var mayHold = false
    /// No checkpoint began since.
    fileprivate var heldSince = MonotonicTime.zero

    /// No checkpoint begins.
    var holdsCheckpoints: Bool {
        switch phase {
        case .closingGroup, .awaitingJournal, .holdingJournal: true
        case .none, .awaitingCheckpoint, .holdingFiles: false
        }
    }
    /// No segment is removed.
    var holdsFiles: Bool { phase == .holdingJournal || phase == .holdingFiles }
    /// No file at all is.
    var holdsAllFiles: Bool { phase == .holdingJournal }
    package var isOn: Bool { phase != .none }
}

extension ShardMachine {
    /// Waits for a checkpoint, for a backup.
    ///
    /// - Returns: false when there is a backup already, or the shard does not serve.
    package mutating func beginBackup() -> Bool {
        guard stage == .ready, !hasFailed, !backup.isOn else { return false }
        if checkpointer.phase == .idle { checkpointer.isDue = true }
        backup = BackupHold()
        backup.phase = .awaitingCheckpoint(
            checkpointer.hasSnapshot ? checkpointer.sequence : checkpointer.sequence + 1)
        return true
    }

    /// Behind that checkpoint, holds back what a backup needs; `backup.plan` tells when it may copy.
    package mutating func holdForBackup() {
        if backup.isOn { backup.mayHold = true }
    }

    /// Journal and checkpoint are copied.
    package mutating func releaseJournalOfBackup() {
        if backup.phase == .holdingJournal { backup.phase = .holdingFiles }
    }

    /// Nothing is held back any more.
    package mutating func endBackup() { backup = BackupHold() }

    mutating func advanceBackup() {
        guard stage == .ready, !hasFailed else { return endBackup() }
        // Those who publish and those who make room come first: an image can be made again.
        if backup.holdsCheckpoints, isUnderPressure,
            now.monotonic.since(backup.heldSince) > limits.backupPressureNanoseconds
        {
            return endBackup()
        }
        if backup.holdsFiles, diskLevel >= .refuse { return endBackup() }
        switch backup.phase {
        case .none, .holdingJournal, .holdingFiles: return
        case .awaitingCheckpoint(let sequence):
            guard backup.mayHold, checkpointer.phase == .idle, checkpointer.sequence >= sequence
            else { return }
            backup.phase = .closingGroup
            backup.heldSince = now.monotonic
            advanceBackup()
        case .closingGroup:
            guard journal.closeForSnapshot() else { return }
            backup.phase = .awaitingJournal(group: journal.openGroup)
            advanceBackup()
        case .awaitingJournal(let group):
            guard journal.durableGroup >= group else { return }
            backup.plan = backupPlan()
            backup.phase = .holdingJournal
        }
    }

    private func backupPlan() -> BackupPlan {
        var segments: [BackupPlan.Segment] = []
        for index in state.partitions.indices {
            // One that was deleted counts until that is durable, and its files are there as long.
            let partition = state.partitions[index]
            // One that comes from another shard or went there is that one's until shard 0 has said so.
            guard !partition.pointee.keepsFiles,
                state.placement(ofPartition: partition.pointee.id) == peers.own
                    || partition.pointee.isDeleted
            else { continue }
            for segment in partition.pointee.log.segments where segment.syncedBytes > 0 {
                segments.append(
                    BackupPlan.Segment(
                        file: segment.file(partition: partition.pointee.id),
                        bytes: segment.syncedBytes,
                        isFinal: segment.term < writeBehind.term
                            || (segment.isSealed && segment.syncedBytes == segment.bytes)))
            }
        }
        return BackupPlan(
            shard: peers.own, identity: identity, checkpoint: checkpointer.sequence,
            journal: journal.recycleBound..<journal.durablePosition, segments: segments,
            placements: state.placements)
    }
}
