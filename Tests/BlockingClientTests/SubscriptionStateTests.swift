import BlockingClient
import BrokerBasics
import ScriptedServer
import Testing
import WireProtocol

@Suite struct SubscriptionStateTests {
    private func state(
        next: UInt64 = 0,
        window: SubscriptionState.Window = .init(records: 10, bytes: 100_000)
    ) -> SubscriptionState {
        SubscriptionState(
            assignment: Assignment(
                generation: 1,
                partitions: [
                    AssignedPartition(partition: 9, index: 0, epoch: 1, nextOffset: next)
                ]
            ),
            window: window
        )
    }
    private func frame(_ bytes: [UInt8]) throws -> Frame {
        try #require(Scripts.frames(bytes).first)
    }
    private func deliver(
        _ texts: [String],
        offset: UInt64,
        delivered: UInt64 = 0,
        partition: UInt32 = 9
    ) throws -> Frame {
        try frame(
            Scripts.deliver(
                stream: 1,
                partition: partition,
                delivered: delivered,
                [Scripts.stored(texts, partition: partition, offset: offset)]
            )
        )
    }
    private func offsets(_ events: [SubscriptionEvent]) -> [UInt64] {
        events.flatMap { event -> [UInt64] in
            if case .records(let batch) = event { return batch.entries.map(\.offset) }
            return []
        }
    }

    @Test("records below the first offset that was asked for are skipped")
    func skipsTheHead() throws {
        var state = state(next: 6)
        #expect(offsets(try state.receive(deliver(["a", "b", "c"], offset: 4))) == [6])
        #expect(state.nextOffset(of: 9) == 7)
        #expect(offsets(try state.receive(deliver(["d"], offset: 7))) == [7])
    }

    @Test("what was delivered already is not delivered again")
    func skipsRepeats() throws {
        var state = state()
        _ = try state.receive(deliver(["a", "b"], offset: 0))
        #expect(try state.receive(deliver(["a", "b"], offset: 0)).isEmpty)
    }

    @Test("a lost range is cut at the first offset that was asked for")
    func lost() throws {
        var state = state(next: 50)
        let bytes = StoredBatch.lost(
            7..<100,
            partition: PartitionID(rawValue: 9),
            epoch: 3,
            appendTime: 6
        )
        let event = try state.receive(
            frame(Scripts.deliver(stream: 1, partition: 9, delivered: 0, [bytes]))
        )
        #expect(event == [.lost(LostRange(partition: 9, epoch: 3, offsets: 50..<100))])
        #expect(state.nextOffset(of: 9) == 100)
    }

    @Test("credit is a position, topped up when half of the window is used")
    func creditByRecords() throws {
        var state = state()
        _ = try state.receive(deliver(["a", "b", "c", "d"], offset: 0))
        #expect(state.creditDue() == nil)
        _ = try state.receive(deliver(["e"], offset: 4))
        #expect(state.creditDue()?.records == 15)
        #expect(state.creditDue() == nil)
    }

    @Test("credit in bytes counts stored batches")
    func creditByBytes() throws {
        let one = try deliver(["abc"], offset: 0)
        let bytes = UInt64(one.body.count)
        var state = state(window: .init(records: 1_000, bytes: bytes * 2))
        _ = try state.receive(one)
        #expect(state.creditDue() == Credit(records: 1_001, bytes: bytes * 3))
    }

    @Test("the server's higher count of deliveries moves the credit")
    func creditFollowsTheServer() throws {
        var state = state()
        _ = try state.receive(deliver(["a"], offset: 0, delivered: 40))
        #expect(state.creditDue()?.records == 50)
    }

    @Test("a partition that was taken away is neither delivered nor acked")
    func reassigned() throws {
        var state = state()
        _ = try state.receive(deliver(["a", "b"], offset: 0))
        let push = FrameHeader(opcode: .assignment, flags: FrameHeader.pushFlag, stream: 1).frame(
            body: Assignment(
                generation: 2,
                partitions: [
                    AssignedPartition(partition: 8, index: 1, epoch: 4, nextOffset: 20)
                ]
            ).encoded
        )
        let events = try state.receive(frame(push))
        #expect(events.count == 1)
        #expect(try state.receive(deliver(["c"], offset: 2)).isEmpty)
        #expect(state.makeAck(partition: 9, offset: 2, correlation: 1) == nil)
        #expect(
            state.makeAck(partition: 8, offset: 20, correlation: 2)
                == Ack(partition: 8, epoch: 4, offset: 20)
        )
    }

    @Test("a partition that stays keeps its place when the members change")
    func keepsPlace() throws {
        var state = state()
        _ = try state.receive(deliver(["a", "b"], offset: 0))
        let push = FrameHeader(opcode: .assignment, flags: FrameHeader.pushFlag, stream: 1).frame(
            body: Assignment(
                generation: 2,
                partitions: [
                    AssignedPartition(partition: 9, index: 0, epoch: 1, nextOffset: 0)
                ]
            ).encoded
        )
        _ = try state.receive(frame(push))
        #expect(state.nextOffset(of: 9) == 2)
    }

    @Test("one reply answers every ack up to the offset that it names")
    func cumulativeAck() throws {
        var state = state()
        for (correlation, offset) in [(1, 3), (2, 5), (3, 9)] as [(UInt64, UInt64)] {
            _ = state.makeAck(partition: 9, offset: offset, correlation: correlation)
        }
        let reply = FrameHeader(
            opcode: .ack,
            flags: FrameHeader.replyFlag,
            correlation: 2,
            stream: 1
        ).frame(body: Ack(partition: 9, epoch: 1, offset: 5).encoded)
        _ = try state.receive(frame(reply))
        #expect(state.unansweredAcks == 1)
    }

    @Test("a refused ack says which partition, and the subscription goes on")
    func refusedAck() throws {
        var state = state()
        _ = state.makeAck(partition: 9, offset: 3, correlation: 4)
        let request = try frame(
            FrameHeader(opcode: .ack, correlation: 4, stream: 1).frame(body: [])
        )
        let refusal = try frame(Scripts.refuse(request, .epochFenced))
        #expect(state.owns(refusal, stream: 1))
        #expect(
            try state.receive(refusal)
                == [.ackRefused(partition: 9, Refused(.epochFenced, message: "no"))]
        )
        #expect(!state.hasEnded)
        #expect(state.unansweredAcks == 0)
    }

    @Test("a refused publish is not taken for the end of a subscription of the same number")
    func foreignRefusal() throws {
        let state = state()
        let publish = try frame(
            FrameHeader(
                opcode: .publish,
                correlation: PublishLedger.correlationMark | 1,
                stream: 1
            ).frame(body: [])
        )
        #expect(!state.owns(try frame(Scripts.refuse(publish, .busy)), stream: 1))
    }

    @Test("the end says why")
    func ended() throws {
        var state = state()
        let push = FrameHeader(
            opcode: .ended,
            flags: FrameHeader.pushFlag,
            stream: 1,
            status: .queueNotFound
        ).frame(body: Refusal(errorClass: 4, message: "deleted").encoded)
        #expect(
            try state.receive(frame(push)) == [
                .ended(Refused(.queueNotFound, message: "deleted"))
            ]
        )
        #expect(state.hasEnded)
        #expect(state.creditDue() == nil)
    }
}
