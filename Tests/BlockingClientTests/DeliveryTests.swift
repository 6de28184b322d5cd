import BlockingClient
import BrokerBasics
import ScriptedServer
import Testing
import WireProtocol

@Suite struct DeliveryTests {
    @Test("records and lost ranges come out with their offsets, epochs and times")
    func decode() throws {
        let body =
            Scripts.stored(["a", "", "c"], partition: 9, offset: 4, epoch: 2)
            + StoredBatch.lost(
                7..<100,
                partition: PartitionID(rawValue: 9),
                epoch: 3,
                appendTime: 6
            )
            + Scripts.stored(["d"], partition: 9, offset: 100, epoch: 3)
        let deliveries = try Delivery.decode(body, partition: 9)
        try #require(deliveries.count == 3)
        guard case .records(let first) = deliveries[0] else {
            Issue.record("no records")
            return
        }
        #expect(first.entries.map(\.offset) == [4, 5, 6])
        #expect(first.entries.map(\.record.value) == [[0x61], [], [0x63]])
        #expect(first.epoch == 2)
        #expect(first.appendTime == 5)
        #expect(first.endOffset == 7)
        #expect(deliveries[1] == .lost(LostRange(partition: 9, epoch: 3, offsets: 7..<100)))
        #expect(deliveries[2].endOffset == 101)
    }

    @Test("every truncation and every flipped bit is an error, or an empty delivery")
    func hostile() {
        let batch = Scripts.stored(["abc", "d"], partition: 9, offset: 4)
        let lost = StoredBatch.lost(
            7..<100,
            partition: PartitionID(rawValue: 9),
            epoch: 3,
            appendTime: 6
        )
        for body in [batch, lost] {
            for count in 1..<body.count {
                #expect(throws: ClientError.self) {
                    try Delivery.decode(Array(body[..<count]), partition: 9)
                }
            }
            for bit in 0..<body.count * 8 {
                var damaged = body
                damaged[bit / 8] ^= 1 << UInt8(bit % 8)
                #expect(throws: ClientError.self) {
                    try Delivery.decode(damaged, partition: 9)
                }
            }
        }
        #expect(throws: ClientError.self) { try Delivery.decode(batch, partition: 8) }
    }

    /// A batch whose checksums are right and whose fields are not.
    private func forged(offset: UInt64 = 4, _ change: (inout [UInt8]) -> Void) -> [UInt8] {
        var batch = Scripts.batch(["abc", "d"]).finish()
        change(&batch)
        let checksum = batch[8...].withUnsafeBytes { CRC32C.of($0) }
        withUnsafeBytes(of: checksum.littleEndian) { batch.replaceSubrange(4..<8, with: $0) }
        return Scripts.stored(batch, partition: 9, offset: offset)
    }

    @Test("right checksums over senseless fields do not pass")
    func forgeries() {
        let forgeries = [
            forged { $0[8] = 2 },
            forged { $0[9] = 2 },
            forged { $0[9] = 1 },
            forged { $0[10] = 3 },
            forged { $0[10] = 0 },
            forged { $0[40] = 0xFF },
            forged(offset: .max - 1) { _ in },
        ]
        for (index, body) in forgeries.enumerated() {
            #expect(throws: ClientError.self, "forgery \(index)") {
                try Delivery.decode(body, partition: 9)
            }
        }
    }
}
