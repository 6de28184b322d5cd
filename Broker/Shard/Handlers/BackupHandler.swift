internal import BrokerBasics
internal import BrokerCore
internal import LogStorage
package import WireProtocol

/// An image that a client asked for: made by a thread that is no shard's, told by shard 0.
package struct BackupJob: Sendable {
    package var name: String
    /// Bytes per second; 0: as fast as it goes.
    package var bandwidth: UInt64
    let request: LateRequest
    var isTaken = false
}

/// How it ended.
package enum BackupOutcome: Sendable {
    case made(BackupReply)
    case refused(StatusCode, String)
}

extension ShardMachine {
    /// Begins an image of the whole data directory, and answers when it is whole.
    mutating func backUp(_ request: Request) -> Outcome {
        guard let asked = try? BackupRequest(body: request.body) else {
            return refuse(request, .badRequest, "the body of backup can't be read")
        }
        guard offersBackups else {
            return refuse(
                request, .limitReached,
                "no image is made: the server was started without --backup-dir")
        }
        // A name and no path: what is made lies below the operator's directory.
        guard Queue.isValid(name: asked.name), asked.name.utf8.count <= BackupRequest.nameBytesMax
        else {
            return refuse(
                request, .nameInvalid,
                "\"\(asked.name)\" is no name for an image: 1 to \(BackupRequest.nameBytesMax) of "
                    + "a-z A-Z 0-9 . _ - $, not beginning with . or -")
        }
        guard stage == .ready else {
            return refuse(request, .shuttingDown, "the server is stopping; no image is made")
        }
        guard backupJob == nil else {
            return refuse(request, .busy, "an image is being made; one at a time")
        }
        backupJob = BackupJob(
            name: asked.name, bandwidth: asked.bandwidth, request: late(request))
        return .done
    }

    package var hasBackupJob: Bool { backupJob != nil }

    /// What is to be begun, once.
    package mutating func takeBackupJob() -> BackupJob? {
        guard let job = backupJob, !job.isTaken else { return nil }
        backupJob?.isTaken = true
        return job
    }

    /// Nobody waits for the image any more.
    package var backupIsAbandoned: Bool {
        backupJob.map { !isOpen($0.request) } ?? false
    }

    package mutating func backupEnded(_ outcome: BackupOutcome) {
        guard let job = backupJob else { return }
        backupJob = nil
        switch outcome {
        case .refused(let status, let message): refuseLate(job.request, status, message)
        case .made(let made): answerLate(job.request, made.encoded)
        }
    }
}
