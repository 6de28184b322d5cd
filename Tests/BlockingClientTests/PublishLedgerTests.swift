import BlockingClient
import BrokerBasics
import ScriptedServer
import Testing
import WireProtocol

@Suite struct PublishLedgerTests {
    static let producer = Producer(id: 77, epoch: 3)
    static let now = MonotonicTime(nanoseconds: 1_000)

    private func ledger(
        partitions: [UInt32] = [9],
        policy: PublishLedger.Policy = .init()
    ) -> PublishLedger {
        PublishLedger(partitions: partitions, producer: Self.producer, policy: policy)
    }

    /// What would be sent: (correlation, partition, sequence, records).
    private struct Sent: Equatable {
        var correlation: UInt64
        var partition: UInt32
        var sequence: UInt64
        var records: Int
        var producer: UInt64
        var status: StatusCode
    }
    private func send(
        _ ledger: inout PublishLedger,
        at time: MonotonicTime = Self.now
    ) -> [Sent] {
        var sent: [Sent] = []
        while let bytes = ledger.nextFrame(now: time) {
            for frame in Scripts.frames(bytes) {
                frame.body.withUnsafeBytes { body in
                    guard let base = body.baseAddress else { return }
                    let header = BatchHeader(at: base)
                    sent.append(
                        Sent(
                            correlation: frame.header.correlation,
                            partition: frame.header.stream,
                            sequence: header.baseSequence,
                            records: header.recordCount,
                            producer: header.producerID,
                            status: BatchHeader.check(base, count: body.count)
                        )
                    )
                }
            }
        }
        return sent
    }
    private func run(
        _ first: Sent,
        requests: Int,
        records: Int,
        offset: UInt64,
        flags: UInt8 = 0
    ) -> ConfirmEntry {
        ConfirmEntry(
            correlation: first.correlation,
            requests: UInt32(requests),
            partition: first.partition,
            epoch: 1,
            records: UInt32(records),
            baseOffset: offset,
            level: 2,
            flags: flags
        )
    }
    private func refuse(
        _ ledger: inout PublishLedger,
        _ sent: Sent,
        _ status: StatusCode,
        retryAfter: UInt32 = 0
    ) -> PublishLedger.Refusal? {
        ledger.refuse(
            sent.correlation,
            Refused(status, retryAfterMilliseconds: retryAfter),
            now: Self.now,
            backoffNanoseconds: 500
        )
    }

    @Test("records are numbered per partition, and the batches pass the server's check")
    func numbers() {
        var ledger = ledger(partitions: [9, 4])
        #expect(ledger.add(Scripts.batch(["a", "b"]), to: 0) == 0)
        #expect(ledger.add(Scripts.batch(["c"]), to: 1) == 1)
        #expect(ledger.add(Scripts.batch(["d"]), to: 0) == 2)
        let sent = send(&ledger)
        #expect(sent.map(\.partition) == [9, 9, 4])
        #expect(sent.map(\.sequence) == [0, 2, 0])
        #expect(sent.allSatisfy { $0.status == .ok && $0.producer == 77 })
        #expect(Set(sent.map(\.correlation)).count == 3)
        #expect(sent[1].correlation == sent[0].correlation + 1)
        #expect(ledger.unconfirmedRecords == 4)
    }

    @Test("a run confirms its batches one by one, at consecutive offsets")
    func confirmsRun() throws {
        var ledger = ledger()
        for texts in [["a", "b"], ["c"], ["d", "e", "f"]] {
            _ = ledger.add(Scripts.batch(texts), to: 0)
        }
        let sent = send(&ledger)
        let confirms = try ledger.confirm(run(sent[0], requests: 2, records: 3, offset: 10))
        #expect(confirms.map(\.number) == [0, 1])
        #expect(confirms.map(\.offset) == [10, 12])
        #expect(confirms.map(\.count) == [2, 1])
        #expect(ledger.unconfirmedBatches == 1)
        let rest = try ledger.confirm(run(sent[2], requests: 1, records: 3, offset: 13))
        #expect(rest.map(\.offset) == [13])
        #expect(ledger.unconfirmedBatches == 0)
        #expect(ledger.unconfirmedBytes == 0)
    }

    @Test("a duplicate says so, and may have no place any more")
    func duplicates() throws {
        var ledger = ledger()
        _ = ledger.add(Scripts.batch(["a"]), to: 0)
        let sent = send(&ledger)
        let confirms = try ledger.confirm(
            run(
                sent[0],
                requests: 1,
                records: 1,
                offset: Offset.unknown.rawValue,
                flags: ConfirmEntry.duplicateFlag
            )
        )
        #expect(confirms.map(\.isDuplicate) == [true])
        #expect(confirms.map(\.offset) == [nil])
    }

    @Test("a confirm of what was not sent, or was confirmed before, is the server's mistake")
    func wrongConfirms() throws {
        var ledger = ledger(partitions: [9, 4])
        _ = ledger.add(Scripts.batch(["a"]), to: 0)
        _ = ledger.add(Scripts.batch(["b"]), to: 0)
        let sent = send(&ledger)
        var wrong = [
            run(sent[0], requests: 3, records: 3, offset: 0),
            run(sent[0], requests: Int(UInt32.max), records: 3, offset: 0),
            run(sent[0], requests: 2, records: 1, offset: 0),
            run(sent[0], requests: 0, records: 0, offset: 0),
            run(sent[0], requests: 2, records: 2, offset: .max - 1),
        ]
        var other = run(sent[0], requests: 1, records: 1, offset: 0)
        other.partition = 4
        wrong.append(other)
        other = run(sent[0], requests: 1, records: 1, offset: 0)
        other.correlation = 1
        wrong.append(other)
        other.correlation = .max
        wrong.append(other)
        for entry in wrong {
            #expect(throws: ClientError.self) { try ledger.confirm(entry) }
        }
        #expect(ledger.unconfirmedBatches == 2)
        _ = try ledger.confirm(run(sent[0], requests: 2, records: 2, offset: 0))
        #expect(throws: ClientError.self) {
            try ledger.confirm(run(sent[0], requests: 2, records: 2, offset: 0))
        }
        #expect(throws: ClientError.self) { try ledger.confirm([1, 2, 3]) }
    }

    @Test("after a lost connection everything unconfirmed goes again, with the same sequences")
    func reconnect() throws {
        var ledger = ledger()
        for text in ["a", "b", "c"] { _ = ledger.add(Scripts.batch([text]), to: 0) }
        let before = send(&ledger)
        _ = try ledger.confirm(run(before[0], requests: 1, records: 1, offset: 0))
        #expect(send(&ledger).isEmpty)
        ledger.reconnected()
        let after = send(&ledger)
        #expect(after.map(\.sequence) == [1, 2])
        // A late confirm of the old connection could not be mistaken for one of the new.
        #expect(Set(after.map(\.correlation)).isDisjoint(with: before.map(\.correlation)))
        let confirms = try ledger.confirm(
            run(
                after[0],
                requests: 2,
                records: 2,
                offset: 1,
                flags: ConfirmEntry.duplicateFlag
            )
        )
        #expect(confirms.map(\.number) == [1, 2])
    }

    @Test("a refusal that may be retried stalls its partition until every answer has come")
    func retry() throws {
        var ledger = ledger(partitions: [9, 4])
        for text in ["a", "b", "c"] { _ = ledger.add(Scripts.batch([text]), to: 0) }
        let sent = send(&ledger)
        #expect(refuse(&ledger, sent[0], .busy, retryAfter: 1) == .resend)
        #expect(ledger.retryTime == nil)
        _ = ledger.add(Scripts.batch(["d"]), to: 0)
        _ = ledger.add(Scripts.batch(["e"]), to: 1)
        let later = MonotonicTime(nanoseconds: 1_000 + 1_000_000)
        #expect(send(&ledger, at: later).map(\.partition) == [4])
        // The server refuses what follows the gap.
        #expect(refuse(&ledger, sent[1], .sequenceGap) == .resend)
        #expect(refuse(&ledger, sent[2], .sequenceGap) == .resend)
        #expect(ledger.retryTime == later)
        #expect(send(&ledger).isEmpty)
        #expect(send(&ledger, at: later).map(\.sequence) == [0, 1, 2, 3])
        #expect(refuse(&ledger, sent[1], .busy) == nil)
    }

    @Test("an out-of-order confirm is kept, and its batch is not sent again")
    func outOfOrder() throws {
        var ledger = ledger()
        for text in ["a", "b", "c"] { _ = ledger.add(Scripts.batch([text]), to: 0) }
        let sent = send(&ledger)
        _ = try ledger.confirm(run(sent[1], requests: 1, records: 1, offset: 1))
        ledger.reconnected()
        let again = send(&ledger)
        #expect(again.map(\.sequence) == [0, 2])
        _ = try ledger.confirm(run(again[1], requests: 1, records: 1, offset: 2))
        _ = try ledger.confirm(run(again[0], requests: 1, records: 1, offset: 0))
        #expect(ledger.unconfirmedBatches == 0)
    }

    @Test("a refusal that a retry cannot mend is fatal")
    func fatal() {
        for status in [
            StatusCode.queueNotFound, .batchInvalid, .producerFenced, .storageFailed,
            .producerUnknown, .sequenceGap,
        ] {
            var ledger = ledger()
            _ = ledger.add(Scripts.batch(["a"]), to: 0)
            let sent = send(&ledger)
            #expect(refuse(&ledger, sent[0], status) == .fatal, "\(status)")
        }
    }

    @Test("after a crash took confirmed records, the rest is numbered anew where that is allowed")
    func renumber() throws {
        var ledger = ledger(policy: .init(renumberAfterLoss: true))
        for text in ["a", "b", "c"] { _ = ledger.add(Scripts.batch([text]), to: 0) }
        let sent = send(&ledger)
        _ = try ledger.confirm(run(sent[0], requests: 1, records: 1, offset: 0))
        ledger.reconnected()
        let again = send(&ledger)
        #expect(refuse(&ledger, again[0], .sequenceGap) == .renumber)
        #expect(ledger.partitionsToRenumber.isEmpty)
        #expect(refuse(&ledger, again[1], .sequenceGap) == .resend)
        #expect(ledger.partitionsToRenumber == [0])
        let later = MonotonicTime(nanoseconds: 5_000)
        #expect(send(&ledger, at: later).isEmpty)
        ledger.renumber(0, as: Producer(id: 78, epoch: 0))
        _ = ledger.add(Scripts.batch(["d", "e"]), to: 0)
        _ = ledger.add(Scripts.batch(["f"]), to: 0)
        let fresh = send(&ledger, at: later)
        #expect(fresh.map(\.sequence) == [0, 1, 2, 4])
        #expect(fresh.allSatisfy { $0.producer == 78 && $0.status == .ok })
    }

    @Test("a partition that waits for a producer still does after another reconnect")
    func renumberAfterReconnect() {
        var ledger = ledger(policy: .init(resendWhenUnknown: true))
        _ = ledger.add(Scripts.batch(["a"]), to: 0)
        let sent = send(&ledger)
        #expect(refuse(&ledger, sent[0], .producerUnknown) == .renumber)
        ledger.reconnected()
        #expect(ledger.partitionsToRenumber == [0])
        #expect(send(&ledger).isEmpty)
    }

    @Test("a long run of batches stays in order and is forgotten as it is confirmed")
    func many() throws {
        var ledger = ledger()
        var offset: UInt64 = 0
        for _ in 0..<300 {
            for _ in 0..<10 { _ = ledger.add(Scripts.batch(["x"]), to: 0) }
            let sent = send(&ledger)
            #expect(sent.map(\.sequence) == Array(offset..<offset + 10))
            _ = try ledger.confirm(run(sent[0], requests: 10, records: 10, offset: offset))
            offset += 10
        }
        #expect(ledger.unconfirmedBatches == 0)
    }

    @Test("the deadline travels with every publish, and is none unless it is asked for")
    func deadline() {
        for deadline in [UInt32(0), 250_000] {
            var ledger = PublishLedger(
                partitions: [9],
                producer: Self.producer,
                deadlineMicroseconds: deadline
            )
            _ = ledger.add(Scripts.batch(["a"]), to: 0)
            let frames = ledger.nextFrame(now: Self.now).map(Scripts.frames) ?? []
            #expect(frames.map(\.header.argument) == [deadline])
        }
    }
}
