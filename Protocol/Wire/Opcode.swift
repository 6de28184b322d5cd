/// What a frame asks or says (SPEC.md, section 3). A reply carries the opcode of its request.
public enum Opcode: UInt16, Sendable, CaseIterable {
    case hello = 0x0001
    case ping = 0x0002
    case goodbye = 0x0003

    case queueCreate = 0x0101
    case queueAlter = 0x0102
    case queueDelete = 0x0103
    case queueDescribe = 0x0104
    case queueList = 0x0105
    case queuePurge = 0x0106
    case queueMove = 0x0107

    case producerOpen = 0x0201
    case publish = 0x0202
    case confirm = 0x0203

    case subscribe = 0x0301
    case unsubscribe = 0x0302
    case credit = 0x0303
    case deliver = 0x0304
    case ack = 0x0305
    case assignment = 0x0306
    case ended = 0x0307
    case skipped = 0x0308

    case groupDescribe = 0x0401
    case groupList = 0x0402

    case serverDescribe = 0x0501
    case shardList = 0x0502
    case storageDescribe = 0x0503
    case storageVerify = 0x0504
    case backup = 0x0505

    // 0x0600 ..< 0x0700 cache, 0x0700 ..< 0x0800 what shards say to each other: reserved.

    case error = 0xFF01

    /// True for control requests that change what must survive.
    @inlinable public var changesState: Bool {
        switch self {
        case .queueCreate, .queueAlter, .queueDelete, .queuePurge, .queueMove, .producerOpen,
            .subscribe:
            true
        case .hello, .ping, .goodbye, .queueDescribe, .queueList, .publish, .confirm, .unsubscribe,
            .credit, .deliver, .ack, .assignment, .ended, .skipped, .groupDescribe, .groupList,
            .serverDescribe, .shardList, .storageDescribe, .storageVerify, .backup, .error:
            false
        }
    }

    /// True when the frame's checksum covers its header and TLVs only, because the body is batches,
    /// which carry their own.
    @inlinable public var carriesBatches: Bool { self == .publish || self == .deliver }
}
