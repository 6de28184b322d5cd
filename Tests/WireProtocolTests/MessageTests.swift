import BrokerBasics
import Testing
import WireProtocol

/// One value of one message type, with the type erased.
struct MessageSample: Sendable, CustomTestStringConvertible {
    let typeName: String
    let encoded: [UInt8]
    /// True when the bytes decode to the value; throws what the message throws.
    let decodes: @Sendable ([UInt8]) throws -> Bool
    /// Where the message may end, without the fields that came later; `nil`: nowhere before its end.
    let earlierEnd: Int?

    var testDescription: String { "\(typeName), \(encoded.count) bytes" }

    init<Message: WireMessage>(_ message: Message, laterBytes: Int = 0) {
        earlierEnd = laterBytes > 0 ? message.encoded.count - laterBytes : nil
        typeName = "\(Message.self)"
        encoded = message.encoded
        decodes = { bytes in
            try withGuardedBytes(bytes) { try Message(body: $0) == message }
        }
    }

    static let all: [MessageSample] = [
        MessageSample(Empty()),
        MessageSample(Pair(name: "n", value: "Zürich")),
        MessageSample(Pair(name: "", value: "")),
        MessageSample(Pair(name: "long", value: String(repeating: "é", count: 32_767))),
        MessageSample(Refusal(errorClass: 1, retryAfterMilliseconds: .max, message: "no")),
        MessageSample(
            HelloRequest(
                versionMin: 1,
                versionMax: 255,
                features: .max,
                frameBytesMax: 4096,
                clientName: "c"
            )
        ),
        MessageSample(ShardAddress(shard: 65_535, address: "[::1]:7400")),
        MessageSample(
            HelloReply(
                version: 1,
                features: 3,
                frameBytesMax: 5,
                serverID: 6,
                serverEpoch: 7,
                shards: [ShardAddress(shard: 1, address: "a"), ShardAddress(shard: 2, address: "")]
            )
        ),
        MessageSample(ServerDescription(facts: [Pair(name: "a", value: "b")])),
        MessageSample(ServerDescription(facts: [])),
        MessageSample(
            QueueCreateRequest(
                name: "q",
                partitions: 3,
                level: .memory,
                labels: [Pair(name: "a", value: "b")],
                retention: retention
            ),
            laterBytes: Retention.byteCount
        ),
        MessageSample(
            QueueAlterRequest(name: "q", labels: [], retention: retention),
            laterBytes: Retention.byteCount
        ),
        MessageSample(retention),
        MessageSample(
            QueuePurgeRequest(name: "q", partition: PartitionID(rawValue: 4), before: 5)
        ),
        MessageSample(Skipped(partition: 1, from: 2, to: 3)),
        MessageSample(QueueNameRequest(name: "q")),
        MessageSample(QueueListRequest(after: "b", limit: 7)),
        MessageSample(partition),
        MessageSample(queue, laterBytes: Retention.byteCount),
        MessageSample(
            QueueListReply(queues: [queue, queue], more: true),
            laterBytes: 4 + 2 * Retention.byteCount
        ),
        MessageSample(ProducerOpenRequest(name: "")),
        MessageSample(ProducerOpenRequest(name: "p")),
        MessageSample(ProducerOpenReply(producerID: 1, epoch: 2, expirySeconds: 3)),
        MessageSample(subscribe(.start)),
        MessageSample(subscribe(.end)),
        MessageSample(subscribe(.offset(.max))),
        MessageSample(subscribe(.time(1))),
        MessageSample(assigned),
        MessageSample(Assignment(generation: 2, partitions: [assigned, assigned])),
        MessageSample(Credit(records: 1, bytes: .max)),
        MessageSample(Ack(partition: 1, epoch: 2, offset: 3)),
        MessageSample(GroupDescribeRequest(queue: "q", group: "g")),
        MessageSample(GroupListRequest(queue: "q", after: "q/g", limit: 1)),
        MessageSample(cursor),
        MessageSample(group, laterBytes: 4 + 2 * 8),
        MessageSample(GroupListReply(groups: [listedGroup], more: false)),
    ]

    private static func subscribe(_ start: StartPosition) -> SubscribeRequest {
        SubscribeRequest(
            queue: "q",
            group: "g",
            start: start,
            partition: PartitionID(rawValue: 4),
            creditRecords: 5,
            creditBytes: 6
        )
    }
    private static let assigned = AssignedPartition(partition: 1, index: 2, epoch: 3, nextOffset: 4)
    // Every field of its own value, so that two in the wrong order are noticed.
    private static let partition = PartitionInfo(
        id: 1,
        index: 2,
        shard: 3,
        epoch: 4,
        startOffset: 5,
        committedOffset: 6,
        endOffset: 7,
        bytes: 8,
        segmentOffset: 9,
        segments: 10,
        records: 11,
        lostRecords: 12
    )
    private static let queue = QueueInfo(
        id: 1,
        name: "q",
        level: 2,
        partitionCount: 3,
        createdAt: 4,
        labels: [Pair(name: "a", value: "b")],
        records: 5,
        bytes: 6,
        partitions: [partition, partition],
        retention: retention
    )
    private static let retention = Retention(bytes: 7, ageMilliseconds: 8, records: 9)
    private static var listedGroup: GroupInfo {
        var listed = group
        listed.skippedRecords = []
        return listed
    }
    private static let cursor = GroupCursor(
        partition: 1,
        index: 2,
        ackFloor: 3,
        highWatermark: 4,
        lagRecords: 5,
        lagBytes: 6,
        lagMilliseconds: 7,
        member: "m",
        state: "idle",
        stateMilliseconds: 8
    )
    private static let group = GroupInfo(
        id: 1,
        queue: "q",
        name: "g",
        mode: "ordered",
        generation: 2,
        members: ["m", ""],
        lagRecords: 3,
        cursors: [cursor, cursor],
        skippedRecords: [4, 5]
    )
}

@Suite("control messages")
struct MessageTests {
    @Test("a message decodes to what was encoded", arguments: MessageSample.all)
    func roundTrip(sample: MessageSample) throws {
        #expect(try sample.decodes(sample.encoded))
    }

    @Test("bytes behind the last known field are ignored", arguments: MessageSample.all)
    func laterFields(sample: MessageSample) throws {
        #expect(try sample.decodes(sample.encoded + [0xFF]))
        #expect(try sample.decodes(sample.encoded + [UInt8](repeating: 0xFF, count: 40)))
    }

    @Test("a message that is cut anywhere is truncated", arguments: MessageSample.all)
    func truncated(sample: MessageSample) {
        // Long texts are cut at their ends and at some places in between.
        let step = sample.encoded.count > 1000 ? 997 : 1
        for count in stride(from: 0, to: sample.encoded.count, by: step)
        where count != sample.earlierEnd {
            #expect(throws: ByteParserError.truncated) {
                try sample.decodes([UInt8](sample.encoded[..<count]))
            }
        }
    }

    @Test("a message with any byte changed decodes or is refused", arguments: MessageSample.all)
    func mutated(sample: MessageSample) {
        for at in 0..<min(sample.encoded.count, 1000) {
            for value: UInt8 in [0, 1, 0x7F, 0x80, 0xFF, sample.encoded[at] ^ 1] {
                var mutated = sample.encoded
                mutated[at] = value
                do {
                    _ = try sample.decodes(mutated)
                } catch {
                    #expect(error is ByteParserError)
                }
            }
        }
    }

    @Test("random bytes decode or are refused", arguments: MessageSample.all)
    func random(sample: MessageSample) {
        var random = SeededRandom(seed: 0x5EED_0004)
        for _ in 0..<300 {
            let bytes = (0..<random.below(200)).map { _ in
                random.chance(1, in: 2) ? 0 : UInt8(truncatingIfNeeded: random.next())
            }
            do {
                _ = try sample.decodes(bytes)
            } catch {
                #expect(error is ByteParserError)
            }
        }
    }

    @Test("a message without the fields that came later means what it always meant")
    func withoutLaterFields() throws {
        for sample in MessageSample.all {
            guard let end = sample.earlierEnd else { continue }
            // It decodes, and to something else.
            #expect(try !sample.decodes([UInt8](sample.encoded[..<end])), "\(sample)")
        }
        let create = QueueCreateRequest(name: "q", partitions: 1, level: .synced)
        #expect(create.encoded == [1, 0, 0x71, 1, 0, 0, 0, 2, 0, 0, 0, 0])
        #expect(try QueueCreateRequest(body: create.encoded).retention == .keepAll)
        let alter = QueueAlterRequest(name: "q", labels: [])
        #expect(alter.encoded == [1, 0, 0x71, 255, 0, 0, 0, 0])
        #expect(try QueueAlterRequest(body: alter.encoded).retention == .unchanged)
    }

    @Test("an item of a list never grows, so what came later stands behind the list")
    func laterBehindLists() throws {
        var queue = QueueInfo(
            id: 1, name: "q", level: 2, partitionCount: 1, createdAt: 0, labels: [], records: 0,
            bytes: 0, partitions: [])
        let plain = QueueListReply(queues: [queue], more: false).encoded
        queue.retention = Retention(records: 5)
        let reply = QueueListReply(queues: [queue], more: false)
        #expect(reply.encoded.starts(with: plain))
        #expect(try QueueListReply(body: reply.encoded).queues == [queue])
        // As many as there are queues, or none.
        let wrong = plain + [2, 0, 0, 0] + [UInt8](repeating: 0, count: 48)
        #expect(throws: ByteParserError.invalid) { try QueueListReply(body: wrong) }
    }

    @Test("a limit changes alone, and an age is one that a clock can count")
    func retention() {
        let kept = Retention(bytes: 1, ageMilliseconds: 2000, records: 3)
        #expect(kept.changed(by: .unchanged) == kept)
        #expect(
            kept.changed(by: Retention(bytes: 0, ageMilliseconds: .max, records: 9))
                == Retention(bytes: 0, ageMilliseconds: 2000, records: 9))
        #expect(Retention.keepAll.isValid && !Retention.unchanged.isValid)
        for (age, isValid) in [
            (UInt64(0), true), (999, false), (1000, true), (3_153_600_000_000, true),
            (3_153_600_000_001, false), (.max, false),
        ] {
            #expect(Retention(ageMilliseconds: age).isValid == isValid, "\(age)")
        }
        #expect(!Retention(bytes: .max).isValid && !Retention(records: .max).isValid)
        #expect(Retention(bytes: .max - 1, records: .max - 1).isValid)
    }

    @Test("a truth value above 1, a text that is not UTF-8 and an unknown start are invalid")
    func invalid() {
        #expect(throws: ByteParserError.invalid) {
            try QueueListReply(body: [0, 0, 0, 0, 2])
        }
        #expect(throws: ByteParserError.invalid) { try QueueNameRequest(body: [2, 0, 0xC3, 0x28]) }
        #expect(throws: ByteParserError.invalid) { try QueueNameRequest(body: [1, 0, 0xC3]) }
        var subscribe = SubscribeRequest(queue: "", creditRecords: 0, creditBytes: 0).encoded
        subscribe[4] = 4
        #expect(throws: ByteParserError.invalid) { try SubscribeRequest(body: subscribe) }
    }

    @Test("a count that the bytes cannot hold is refused before room is made for it")
    func lyingCount() {
        #expect(throws: ByteParserError.truncated) {
            try ServerDescription(
                body: [0xFF, 0xFF, 0xFF, 0xFF] + [UInt8](repeating: 0, count: 99)
            )
        }
        #expect(throws: ByteParserError.truncated) {
            try ServerDescription(body: [2, 0, 0, 0] + [UInt8](repeating: 0, count: 7))
        }
    }

    @Test("a confirm entry decodes to what was encoded and leaves the reserved bytes 0")
    func confirmEntry() {
        let entry = ConfirmEntry(
            correlation: 1,
            requests: 2,
            partition: 3,
            epoch: 4,
            records: 5,
            baseOffset: 6,
            level: 255,
            flags: 255
        )
        var bytes = [UInt8](repeating: 0xEE, count: ConfirmEntry.byteCount)
        bytes.withUnsafeMutableBytes { buffer in
            guard let base = buffer.baseAddress else { return }
            entry.encode(at: base)
            #expect(ConfirmEntry(at: base) == entry)
        }
        #expect(bytes[34...].allSatisfy { $0 == 0 })
    }
}
