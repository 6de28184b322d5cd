/// The broker's answer when a request can't be done (SPEC.md, section 8). Numbers are never reused.
public enum StatusCode: UInt16, Sendable, CaseIterable {
    case ok = 0

    // The frame.
    case badFrame = 1
    case badChecksum = 2
    case frameTooLarge = 3
    case unknownOpcode = 4
    case unsupportedVersion = 5
    case unknownMandatoryField = 6
    case helloExpected = 7
    case badRequest = 8
    case deadlineExceeded = 9

    // Queues.
    case queueNotFound = 20
    case queueExists = 21
    case partitionNotFound = 22
    case nameInvalid = 23
    case levelNotOffered = 24
    case tooManyPartitions = 25
    case wrongShard = 26
    case tooManyQueues = 27
    case changeNotOffered = 28

    // Publishing.
    case batchInvalid = 40
    case batchTooLarge = 41
    case sequenceGap = 42
    case producerFenced = 43
    case producerUnknown = 44
    case recordTooLarge = 45

    // Consuming.
    case subscriptionNotFound = 60
    case subscriptionExists = 61
    case groupNotFound = 62
    case notAssigned = 63
    case ackOutOfRange = 64
    case epochFenced = 65
    case tooManySubscriptions = 66
    case offsetOutOfRange = 67

    // The server.
    case storageFailed = 80
    case shuttingDown = 81
    case busy = 82
    case dataDamaged = 83
    case recovering = 84
    case limitReached = 85
    case diskFull = 86
    case backupFailed = 87

    /// What the requester may do about it.
    public enum Class: UInt8, Sendable {
        case none = 0
        /// The same request may succeed later, at the same place.
        case retry = 1
        /// The same request may succeed at another place.
        case retryElsewhere = 2
        /// It may or may not have been done.
        case outcomeUnknown = 3
        /// It will never succeed as it is.
        case fatal = 4
    }

    public var errorClass: Class {
        switch self {
        case .ok: .none
        case .deadlineExceeded, .busy, .recovering, .diskFull, .backupFailed: .retry
        case .shuttingDown, .wrongShard: .retryElsewhere
        case .producerUnknown, .storageFailed: .outcomeUnknown
        case .badFrame, .badChecksum, .frameTooLarge, .unknownOpcode, .unsupportedVersion,
            .unknownMandatoryField, .helloExpected, .badRequest, .queueNotFound, .queueExists,
            .partitionNotFound, .nameInvalid, .levelNotOffered, .tooManyPartitions,
            .tooManyQueues, .changeNotOffered, .batchInvalid, .batchTooLarge, .recordTooLarge,
            .sequenceGap,
            .producerFenced, .subscriptionNotFound, .subscriptionExists, .groupNotFound,
            .notAssigned, .ackOutOfRange, .epochFenced, .tooManySubscriptions,
            .offsetOutOfRange, .dataDamaged, .limitReached:
            .fatal
        }
    }

    /// The code as people read it: `queue-not-found`.
    public var name: String {
        var name = ""
        for character in "\(self)" {
            if character.isUppercase { name += "-" }
            name += character.lowercased()
        }
        return name
    }
}
