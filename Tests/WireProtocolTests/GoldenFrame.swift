import BrokerBasics
import Foundation
import Testing
import WireProtocol

/// One frame of `Golden/`: the bytes in the file, and the values that its comments give.
struct GoldenFrame: Sendable, CustomTestStringConvertible {
    let name: String
    let header: FrameHeader
    /// The optional fields as bytes.
    let fields: [UInt8]
    /// What the codec makes of the values.
    let body: [UInt8]
    /// True when the bytes decode to the values.
    let decodes: @Sendable (UnsafeRawBufferPointer) throws -> Bool

    var testDescription: String { name }

    static let directory = URL(fileURLWithPath: #filePath)
        .deletingLastPathComponent()
        .appendingPathComponent("Golden")

    /// The bytes in the file: hexadecimal digits, `#` begins a comment, white space means nothing.
    func stored() throws -> [UInt8] {
        let file = Self.directory.appendingPathComponent("\(name).hex")
        let text = try String(contentsOf: file, encoding: .utf8)
        let digits = text.split(separator: "\n", omittingEmptySubsequences: true)
            .flatMap { $0.prefix { $0 != "#" } }
            .filter { !$0.isWhitespace }
        try #require(digits.count.isMultiple(of: 2))
        return try stride(from: 0, to: digits.count, by: 2).map { at in
            try #require(UInt8(String(digits[at...at + 1]), radix: 16))
        }
    }

    init(
        _ name: String,
        _ opcode: Opcode,
        flags: UInt8 = 0,
        correlation: UInt64 = 0,
        stream: UInt32 = 0,
        argument: UInt32 = 0,
        status: StatusCode = .ok,
        fields: [UInt8] = [],
        body: [UInt8],
        decodes: @escaping @Sendable (UnsafeRawBufferPointer) throws -> Bool
    ) {
        self.name = name
        self.fields = fields
        self.body = body
        self.decodes = decodes
        header = FrameHeader(
            opcode: opcode,
            bodyBytes: fields.count + body.count,
            flags: flags,
            correlation: correlation,
            stream: stream,
            argument: argument,
            status: status,
            tlvBytes: UInt16(fields.count)
        )
    }

    init(
        _ name: String,
        _ opcode: Opcode,
        flags: UInt8 = 0,
        correlation: UInt64 = 0,
        stream: UInt32 = 0,
        argument: UInt32 = 0,
        status: StatusCode = .ok,
        fields: [UInt8] = [],
        _ message: some WireMessage = Empty()
    ) {
        self.init(
            name,
            opcode,
            flags: flags,
            correlation: correlation,
            stream: stream,
            argument: argument,
            status: status,
            fields: fields,
            body: message.encoded,
            decodes: { try Self.decode($0, as: message) }
        )
    }

    private static func decode<Message: WireMessage>(
        _ body: UnsafeRawBufferPointer,
        as message: Message
    ) throws -> Bool {
        var parser = ByteParser(body)
        return try Message(from: &parser) == message && parser.remaining == 0
    }
}

extension GoldenFrame {
    private static let reply = FrameHeader.replyFlag
    private static let push = FrameHeader.pushFlag
    private static let error = FrameHeader.errorFlag

    static let createdAt: UInt64 = 1_760_000_000_000_000_000
    static let batchTime: UInt64 = 1_760_000_001_000_000_000
    static let traceBytes = [UInt8](1...25)

    static let records = [
        Record(
            value: [UInt8]("limit 1.0815".utf8),
            key: [UInt8]("EURUSD".utf8),
            headers: [
                .init(name: "side", value: [UInt8]("buy".utf8)),
                .init(name: "q", value: []),
            ],
            trace: TraceContext(bytes: traceBytes),
            timestamp: batchTime
        ),
        Record(
            value: [UInt8](repeating: UInt8(ascii: "x"), count: 130),
            timestamp: batchTime - 1500
        ),
    ]

    static var producerPart: [UInt8] {
        var builder = BatchBuilder()
        for record in records { _ = builder.append(record) }
        return builder.finish(producer: ProducerID(rawValue: 77), epoch: 2, sequence: 4)
    }

    static var storedBatch: [UInt8] {
        let part = producerPart
        var bytes = [UInt8](repeating: 0, count: StoredBatch.stampBytes) + part
        bytes.withUnsafeMutableBytes { buffer in
            guard let base = buffer.baseAddress else { return }
            StoredBatch.stamp(
                base,
                partition: PartitionID(rawValue: 13),
                baseOffset: 949,
                appendTime: batchTime + 2_000_000,
                epoch: 1,
                producerChecksum: UnsafeRawPointer(base + StoredBatch.stampBytes).u32(4)
            )
        }
        return bytes
    }

    static var lostBatch: [UInt8] {
        StoredBatch.lost(
            951..<991,
            partition: PartitionID(rawValue: 13),
            epoch: 2,
            appendTime: batchTime + 9_000_000
        )
    }

    static let confirms = [
        ConfirmEntry(
            correlation: 100,
            requests: 3,
            partition: 11,
            epoch: 1,
            records: 5,
            baseOffset: 40,
            level: DurabilityLevel.synced.rawValue,
            flags: 0
        ),
        ConfirmEntry(
            correlation: 103,
            requests: 1,
            partition: 12,
            epoch: 1,
            records: 2,
            baseOffset: Offset.unknown.rawValue,
            level: DurabilityLevel.synced.rawValue,
            flags: ConfirmEntry.duplicateFlag
        ),
    ]

    static var confirmBody: [UInt8] {
        var bytes = [UInt8](repeating: 0xEE, count: confirms.count * ConfirmEntry.byteCount)
        bytes.withUnsafeMutableBytes { buffer in
            guard let base = buffer.baseAddress else { return }
            for (index, entry) in confirms.enumerated() {
                entry.encode(at: base + index * ConfirmEntry.byteCount)
            }
        }
        return bytes
    }

    private static func empty(_ id: UInt32, index: UInt32) -> PartitionInfo {
        PartitionInfo(
            id: id,
            index: index,
            shard: UInt16(index),
            epoch: 1,
            startOffset: 0,
            committedOffset: 0,
            endOffset: 0,
            bytes: 0,
            segmentOffset: 0,
            segments: 0,
            records: 0,
            lostRecords: 0
        )
    }

    private static func orders(
        owner: String,
        records: UInt64 = 0,
        bytes: UInt64 = 0,
        partitions: [PartitionInfo]
    ) -> QueueInfo {
        QueueInfo(
            id: 5,
            name: "orders",
            level: 2,
            partitionCount: 2,
            createdAt: createdAt,
            labels: [Pair(name: "owner", value: owner)],
            records: records,
            bytes: bytes,
            partitions: partitions
        )
    }

    private static func ticks(partitions: [PartitionInfo]) -> QueueInfo {
        QueueInfo(
            id: 6,
            name: "ticks",
            level: 0,
            partitionCount: 1,
            createdAt: createdAt,
            labels: [],
            records: 860,
            bytes: 90000,
            partitions: partitions
        )
    }

    private static func booking(cursors: [GroupCursor]) -> GroupInfo {
        GroupInfo(
            id: 4,
            queue: "orders",
            name: "booking",
            mode: "ordered",
            generation: 4,
            members: ["golden/21", "b/1"],
            lagRecords: 8,
            cursors: cursors
        )
    }

    static let dayAndMore = Retention(
        bytes: 1 << 30,
        ageMilliseconds: 86_400_000,
        records: 100_000
    )

    private static func trades(_ partitions: [PartitionInfo]) -> QueueInfo {
        QueueInfo(
            id: 7,
            name: "trades",
            level: 2,
            partitionCount: 1,
            createdAt: createdAt,
            labels: [],
            records: partitions.first?.records ?? 500,
            bytes: partitions.first?.bytes ?? 60000,
            partitions: partitions,
            retention: dayAndMore
        )
    }

    private static func refusal(_ status: StatusCode, after: UInt32 = 0, _ text: String) -> Refusal
    {
        Refusal(
            errorClass: status.errorClass.rawValue,
            retryAfterMilliseconds: after,
            message: text
        )
    }

    /// In the order of SPEC.md, section 11.
    static let all: [GoldenFrame] =
        session + queues + publishing + consuming + groups + errors + optionalFields

    private static let session = [
        GoldenFrame("hello-request", .hello, correlation: 1, HelloRequest(clientName: "golden")),
        GoldenFrame(
            "hello-reply",
            .hello,
            flags: reply,
            correlation: 1,
            HelloReply(
                version: 1,
                features: 0,
                frameBytesMax: 1 << 20,
                serverID: 0x1122_3344_5566_7788,
                serverEpoch: 7,
                shards: [
                    ShardAddress(shard: 0, address: "10.0.0.7:7400"),
                    ShardAddress(shard: 1, address: "unix:/run/m/1"),
                ]
            )
        ),
        GoldenFrame("ping-request", .ping, correlation: 2),
        GoldenFrame("ping-reply", .ping, flags: reply, correlation: 2),
        GoldenFrame(
            "goodbye-push",
            .goodbye,
            flags: push,
            status: .shuttingDown,
            refusal(.shuttingDown, after: 2000, "the server is stopping")
        ),
    ]

    private static let queues = [
        GoldenFrame(
            "queue-create-request",
            .queueCreate,
            correlation: 3,
            argument: 250_000,
            QueueCreateRequest(
                name: "orders",
                partitions: 2,
                level: .synced,
                labels: [Pair(name: "owner", value: "desk-7")]
            )
        ),
        GoldenFrame(
            "queue-create-reply",
            .queueCreate,
            flags: reply,
            correlation: 3,
            orders(owner: "desk-7", partitions: [empty(11, index: 0), empty(12, index: 1)])
        ),
        GoldenFrame(
            "queue-alter-request",
            .queueAlter,
            correlation: 4,
            QueueAlterRequest(
                name: "orders",
                labels: [Pair(name: "owner", value: "desk-9"), Pair(name: "tier", value: "")]
            )
        ),
        GoldenFrame(
            "queue-alter-reply",
            .queueAlter,
            flags: reply,
            correlation: 4,
            orders(owner: "desk-9", partitions: [empty(11, index: 0), empty(12, index: 1)])
        ),
        GoldenFrame(
            "queue-delete-request",
            .queueDelete,
            correlation: 5,
            QueueNameRequest(name: "orders")
        ),
        GoldenFrame("queue-delete-reply", .queueDelete, flags: reply, correlation: 5),
        GoldenFrame(
            "queue-describe-request",
            .queueDescribe,
            correlation: 6,
            QueueNameRequest(name: "ticks")
        ),
        GoldenFrame(
            "queue-describe-reply",
            .queueDescribe,
            flags: reply,
            correlation: 6,
            ticks(partitions: [
                PartitionInfo(
                    id: 13,
                    index: 0,
                    shard: 1,
                    epoch: 2,
                    startOffset: 100,
                    committedOffset: 1000,
                    endOffset: 1000,
                    bytes: 90000,
                    segmentOffset: 900,
                    segments: 3,
                    records: 860,
                    lostRecords: 40
                )
            ])
        ),
        GoldenFrame(
            "queue-list-request",
            .queueList,
            correlation: 7,
            QueueListRequest(after: "a", limit: 2)
        ),
        GoldenFrame(
            "queue-list-reply",
            .queueList,
            flags: reply,
            correlation: 7,
            QueueListReply(
                queues: [
                    orders(owner: "desk-7", records: 10, bytes: 1200, partitions: []),
                    ticks(partitions: []),
                ],
                more: true
            )
        ),
        GoldenFrame(
            "queue-create-retention-request",
            .queueCreate,
            correlation: 18,
            QueueCreateRequest(
                name: "trades",
                partitions: 1,
                level: .synced,
                retention: dayAndMore
            )
        ),
        GoldenFrame(
            "queue-create-retention-reply",
            .queueCreate,
            flags: reply,
            correlation: 18,
            trades([empty(14, index: 0)])
        ),
        GoldenFrame(
            "queue-alter-retention-request",
            .queueAlter,
            correlation: 19,
            QueueAlterRequest(
                name: "trades",
                labels: [],
                retention: Retention(bytes: 2 << 30, ageMilliseconds: 0, records: .max)
            )
        ),
        GoldenFrame(
            "queue-list-retention-reply",
            .queueList,
            flags: reply,
            correlation: 7,
            QueueListReply(queues: [ticks(partitions: []), trades([])], more: false)
        ),
        GoldenFrame(
            "queue-move-request",
            .queueMove,
            correlation: 21,
            QueueMoveRequest(partition: 14, shard: 1)
        ),
        GoldenFrame(
            "queue-move-reply",
            .queueMove,
            flags: reply,
            correlation: 21,
            QueueMoveReply(partition: 14, from: 0, to: 1, pauseNanoseconds: 2_750_000)
        ),
        GoldenFrame(
            "queue-purge-request",
            .queuePurge,
            correlation: 20,
            QueuePurgeRequest(name: "trades", partition: PartitionID(rawValue: 14), before: 500)
        ),
        GoldenFrame(
            "queue-purge-reply",
            .queuePurge,
            flags: reply,
            correlation: 20,
            trades([
                PartitionInfo(
                    id: 14,
                    index: 0,
                    shard: 0,
                    epoch: 1,
                    startOffset: 500,
                    committedOffset: 1000,
                    endOffset: 1000,
                    bytes: 60000,
                    segmentOffset: 900,
                    segments: 1,
                    records: 500,
                    lostRecords: 0
                )
            ])
        ),
    ]

    private static let publishing = [
        GoldenFrame(
            "producer-open-request",
            .producerOpen,
            correlation: 8,
            ProducerOpenRequest(name: "gateway-3")
        ),
        GoldenFrame(
            "producer-open-reply",
            .producerOpen,
            flags: reply,
            correlation: 8,
            ProducerOpenReply(producerID: 77, epoch: 2, expirySeconds: 604_800)
        ),
        GoldenFrame(
            "publish",
            .publish,
            correlation: 100,
            stream: 11,
            argument: 5000,
            body: producerPart,
            decodes: { body in
                let batch = try #require(body.baseAddress)
                let header = BatchHeader(at: batch)
                #expect(BatchHeader.check(batch, count: body.count) == .ok)
                #expect(header.batchBytes == body.count)
                #expect(header.attributes == 0 && !header.isLost)
                #expect(header.recordCount == 2)
                #expect(header.producerEpoch == 2)
                #expect(header.producerID == 77)
                #expect(header.baseSequence == 4)
                #expect(header.baseTimestamp == batchTime)
                return Record.all(in: batch) == records
            }
        ),
        GoldenFrame(
            "publish-confirm-level",
            .publish,
            correlation: 101,
            stream: 11,
            fields: OptionalFields.encode(
                OptionalFields.confirmLevel,
                isMandatory: true,
                [DurabilityLevel.memory.rawValue]
            ),
            body: producerPart,
            decodes: { body in
                let batch = try #require(body.baseAddress)
                return BatchHeader.check(batch, count: body.count) == .ok
                    && Record.all(in: batch) == records
            }
        ),
        GoldenFrame(
            "confirm",
            .confirm,
            flags: push,
            body: confirmBody,
            decodes: { body in
                let base = try #require(body.baseAddress)
                return stride(from: 0, to: body.count, by: ConfirmEntry.byteCount)
                    .map { ConfirmEntry(at: base + $0) } == confirms
            }
        ),
    ]

    private static let consuming = [
        GoldenFrame(
            "subscribe-request",
            .subscribe,
            correlation: 9,
            stream: 21,
            SubscribeRequest(
                queue: "orders",
                group: "booking",
                creditRecords: 1000,
                creditBytes: 1 << 20
            )
        ),
        GoldenFrame(
            "subscribe-offset-request",
            .subscribe,
            correlation: 10,
            stream: 22,
            SubscribeRequest(
                queue: "ticks",
                start: .offset(950),
                partition: PartitionID(rawValue: 13),
                creditRecords: 500,
                creditBytes: 65536
            )
        ),
        GoldenFrame(
            "subscribe-reply",
            .subscribe,
            flags: reply,
            correlation: 9,
            stream: 21,
            Assignment(
                generation: 3,
                partitions: [
                    AssignedPartition(partition: 11, index: 0, epoch: 1, nextOffset: 40),
                    AssignedPartition(partition: 12, index: 1, epoch: 1, nextOffset: 0),
                ]
            )
        ),
        GoldenFrame("unsubscribe-request", .unsubscribe, correlation: 11, stream: 22),
        GoldenFrame("unsubscribe-reply", .unsubscribe, flags: reply, correlation: 11, stream: 22),
        GoldenFrame("credit", .credit, stream: 21, Credit(records: 3000, bytes: 4 << 20)),
        GoldenFrame(
            "deliver",
            .deliver,
            flags: push,
            correlation: 2,
            stream: 22,
            argument: 13,
            body: storedBatch + lostBatch,
            decodes: { body in
                let base = try #require(body.baseAddress)
                let batches = try #require(
                    FrameVerdict.storedBatches(body, partition: PartitionID(rawValue: 13))
                )
                try #require(batches.count == 2)
                let (first, second) = (base, base + batches[1].lowerBound)
                #expect(StoredBatch.bytes(at: first) == batches[0].count)
                #expect(StoredBatch.baseOffset(at: first) == 949)
                #expect(StoredBatch.endOffset(at: first) == 951)
                #expect(StoredBatch.appendTime(at: first) == batchTime + 2_000_000)
                #expect(StoredBatch.epoch(at: first) == 1)
                let lost = BatchHeader(at: second + StoredBatch.stampBytes)
                #expect(lost.isLost && lost.recordCount == 0 && lost.producerID == 0)
                #expect(lost.baseTimestamp == batchTime + 9_000_000)
                #expect(StoredBatch.baseOffset(at: second) == 951)
                #expect(StoredBatch.endOffset(at: second) == 991)
                #expect(StoredBatch.appendTime(at: second) == batchTime + 9_000_000)
                #expect(StoredBatch.epoch(at: second) == 2)
                return Record.all(in: first + StoredBatch.stampBytes) == records
            }
        ),
        GoldenFrame(
            "ack-request",
            .ack,
            correlation: 12,
            stream: 21,
            Ack(partition: 11, epoch: 1, offset: 42)
        ),
        GoldenFrame(
            "ack-reply",
            .ack,
            flags: reply,
            correlation: 12,
            stream: 21,
            Ack(partition: 11, epoch: 1, offset: 42)
        ),
        GoldenFrame(
            "assignment-push",
            .assignment,
            flags: push,
            stream: 21,
            Assignment(
                generation: 4,
                partitions: [AssignedPartition(partition: 12, index: 1, epoch: 1, nextOffset: 6)]
            )
        ),
        GoldenFrame(
            "ended-push",
            .ended,
            flags: push,
            stream: 21,
            status: .queueNotFound,
            refusal(.queueNotFound, "queue orders was deleted")
        ),
        GoldenFrame(
            "skipped-push",
            .skipped,
            flags: push,
            stream: 23,
            Skipped(partition: 14, from: 40, to: 500)
        ),
    ]

    private static let groups = [
        GoldenFrame(
            "group-describe-request",
            .groupDescribe,
            correlation: 13,
            GroupDescribeRequest(queue: "orders", group: "booking")
        ),
        GoldenFrame(
            "group-describe-reply",
            .groupDescribe,
            flags: reply,
            correlation: 13,
            booking(cursors: [
                GroupCursor(
                    partition: 11,
                    index: 0,
                    ackFloor: 42,
                    highWatermark: 50,
                    lagRecords: 8,
                    lagBytes: 960,
                    lagMilliseconds: 1200,
                    member: "b/1",
                    state: "wait-ack",
                    stateMilliseconds: 900
                ),
                GroupCursor(
                    partition: 12,
                    index: 1,
                    ackFloor: 6,
                    highWatermark: 6,
                    lagRecords: 0,
                    lagBytes: 0,
                    lagMilliseconds: 0,
                    member: "golden/21",
                    state: "idle",
                    stateMilliseconds: 15
                ),
            ])
        ),
        GoldenFrame(
            "group-describe-skipped-reply",
            .groupDescribe,
            flags: reply,
            correlation: 21,
            GroupInfo(
                id: 6,
                queue: "trades",
                name: "audit",
                mode: "ordered",
                generation: 0,
                members: [],
                lagRecords: 500,
                cursors: [
                    GroupCursor(
                        partition: 14,
                        index: 0,
                        ackFloor: 500,
                        highWatermark: 1000,
                        lagRecords: 500,
                        lagBytes: 60000,
                        lagMilliseconds: 5000,
                        member: "",
                        state: "unassigned",
                        stateMilliseconds: 0
                    )
                ],
                skippedRecords: [458]
            )
        ),
        GoldenFrame(
            "group-list-request",
            .groupList,
            correlation: 14,
            GroupListRequest(queue: "orders", limit: 100)
        ),
        GoldenFrame(
            "group-list-reply",
            .groupList,
            flags: reply,
            correlation: 14,
            GroupListReply(groups: [booking(cursors: [])], more: false)
        ),
        GoldenFrame("server-describe-request", .serverDescribe, correlation: 15),
        GoldenFrame(
            "server-describe-reply",
            .serverDescribe,
            flags: reply,
            correlation: 15,
            ServerDescription(facts: [
                Pair(name: "version", value: "0.1.0"), Pair(name: "shards", value: "2"),
            ])
        ),
        GoldenFrame("shard-list-request", .shardList, correlation: 16),
        GoldenFrame(
            "shard-list-reply",
            .shardList,
            flags: reply,
            correlation: 16,
            ShardListReply(shards: [
                ShardInfo(shard: 0, facts: [Pair(name: "stage", value: "ready")]),
                ShardInfo(
                    shard: 1,
                    facts: [
                        Pair(name: "stage", value: "ready"),
                        Pair(name: "addresses", value: "127.0.0.1:7402"),
                    ]
                ),
            ])
        ),
        GoldenFrame(
            "storage-describe-request",
            .storageDescribe,
            correlation: 17,
            StorageDescribeRequest(queue: "orders")
        ),
        GoldenFrame(
            "storage-describe-reply",
            .storageDescribe,
            flags: reply,
            correlation: 17,
            StorageReply(
                shards: [
                    ShardStorage(
                        shard: 0,
                        state: .checking,
                        partitions: 2,
                        segments: 3,
                        bytes: 300_032,
                        damagedRanges: 2,
                        damagedBytes: 12_288,
                        passes: 4,
                        lastPassAt: createdAt,
                        checkedBytes: 100_000,
                        checkBytes: 270_336,
                        bandwidth: 8_388_608,
                        begun: 3,
                        done: 2
                    )
                ],
                partitions: [
                    PartitionStorage(
                        partition: 11,
                        queue: "orders",
                        index: 0,
                        shard: 0,
                        segments: 2,
                        bytes: 200_000,
                        syncedBytes: 196_608,
                        firstOffset: 500,
                        endOffset: 1500,
                        oldestAt: createdAt - 60_000_000_000,
                        newestAt: createdAt + 1,
                        verifiedAt: createdAt,
                        verifiedBytes: 196_608,
                        damages: [
                            StorageDamage(
                                base: 500,
                                file: "segments/0000000011-00000000000000000500-0000000003.segment",
                                bytes: 12_288..<20_480,
                                offsets: 530..<544
                            )
                        ]
                    )
                ],
                more: true,
                next: StorageCursor(shard: .max, partition: 11, base: 500, byte: 40_960)
            )
        ),
        GoldenFrame(
            "storage-verify-request",
            .storageVerify,
            correlation: 18,
            StorageVerifyRequest(bandwidth: 67_108_864)
        ),
        GoldenFrame(
            "storage-verify-reply",
            .storageVerify,
            flags: reply,
            correlation: 18,
            StorageVerifyReply(checks: [
                StorageCheck(shard: 0, number: 3), StorageCheck(shard: 1, number: 1),
            ])
        ),
        GoldenFrame(
            "backup-request",
            .backup,
            correlation: 19,
            BackupRequest(name: "nightly", bandwidth: 104_857_600)
        ),
        GoldenFrame(
            "backup-reply",
            .backup,
            flags: reply,
            correlation: 19,
            BackupReply(
                path: "/backup/nightly",
                files: 12,
                linkedFiles: 9,
                copiedBytes: 805_306_368,
                milliseconds: 7_700
            )
        ),
    ]

    private static let errors = [
        GoldenFrame(
            "error-publish",
            .error,
            flags: reply | error,
            correlation: 104,
            stream: 11,
            status: .sequenceGap,
            refusal(.sequenceGap, "publish to orders/0: sequence 9 follows 6")
        ),
        GoldenFrame(
            "error-connection",
            .error,
            flags: push | error,
            status: .badChecksum,
            refusal(.badChecksum, "the frame's checksum is wrong")
        ),
        GoldenFrame(
            "error-busy",
            .error,
            flags: reply | error,
            correlation: 3,
            status: .busy,
            refusal(.busy, after: 50, "create queue orders: too many requests wait")
        ),
        GoldenFrame(
            "error-disk-full",
            .error,
            flags: reply | error,
            correlation: 105,
            stream: 11,
            status: .diskFull,
            refusal(.diskFull, after: 1000, "the disk is 91 % full; nothing was done")
        ),
    ]

    private static let optionalFields = [
        GoldenFrame(
            "tlv-optional",
            .queueDelete,
            correlation: 16,
            fields: [1, 0, 25, 0] + traceBytes + [0xF0, 0x7F, 3, 0] + [UInt8]("abc".utf8),
            QueueNameRequest(name: "orders")
        ),
        GoldenFrame(
            "tlv-mandatory-unknown",
            .queueDelete,
            correlation: 17,
            fields: [0xF0, 0xFF, 2, 0] + [UInt8]("hi".utf8),
            QueueNameRequest(name: "orders")
        ),
    ]
}

extension Record {
    /// The records of the producer's part at `batch`, which `BatchHeader.check` accepts.
    static func all(in batch: UnsafeRawPointer) -> [Record] {
        var reader = RecordReader(batch: batch)
        var records: [Record] = []
        while let record = reader.next() { records.append(record) }
        return records
    }
}
