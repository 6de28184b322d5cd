import BlockingClient
import ScriptedServer
import Testing
import WireProtocol

@Suite struct FrameTests {
    static let frames = [
        FrameHeader(opcode: .ping, correlation: 1).frame(body: []),
        FrameHeader(opcode: .queueDescribe, correlation: 2).frame(
            body: QueueNameRequest(name: "orders").encoded
        ),
        Scripts.deliver(
            stream: 3,
            partition: 9,
            delivered: 1,
            [Scripts.stored(["a"], partition: 9, offset: 4)]
        ),
    ]

    @Test("frames come out whole however the stream is cut")
    func everyCut() throws {
        let stream = Self.frames.flatMap { $0 }
        for cut in 0...stream.count {
            var accumulator = FrameAccumulator()
            var opcodes: [Opcode?] = []
            for part in [stream[..<cut], stream[cut...]] {
                Array(part).withUnsafeBytes { accumulator.append($0) }
                while let frame = try accumulator.next() { opcodes.append(frame.opcode) }
            }
            #expect(opcodes == [.ping, .queueDescribe, .deliver], "cut at \(cut)")
        }
    }

    @Test("a flipped bit of a control frame is an error or an incomplete frame, never a message")
    func everyBit() {
        let frame = Self.frames[1]
        for bit in 0..<frame.count * 8 {
            var damaged = frame
            damaged[bit / 8] ^= 1 << UInt8(bit % 8)
            #expect(Scripts.frames(damaged).isEmpty, "bit \(bit)")
        }
    }

    @Test("a frame over the limit is refused before its bytes have come")
    func tooLarge() {
        var accumulator = FrameAccumulator(frameBytesMax: 64)
        [UInt8]([65, 0, 0, 0]).withUnsafeBytes { accumulator.append($0) }
        #expect(throws: ClientError.self) { try accumulator.next() }
    }

    @Test("an unknown optional field is skipped, an unknown mandatory one refused")
    func optionalFields() throws {
        func frame(_ type: UInt16) -> [UInt8] {
            var header = FrameHeader(opcode: .ping, correlation: 5)
            header.tlvBytes = 5
            let low = UInt8(truncatingIfNeeded: type)
            let high = UInt8(truncatingIfNeeded: type >> 8)
            return header.frame(body: [low, high, 1, 0, 0xAA, 0x55])
        }
        #expect(Scripts.frames(frame(0x7000)).first?.body == [0x55])
        #expect(Scripts.frames(frame(0xF000)).isEmpty)
    }

    @Test("a refusal keeps its status, class, message and retry-after")
    func refusal() throws {
        let request = try #require(Scripts.frames(Self.frames[0]).first)
        let frame = try #require(
            Scripts.frames(Scripts.refuse(request, .busy, message: "full", retryAfter: 50)).first
        )
        #expect(frame.answers(1))
        #expect(frame.refused == Refused(.busy, message: "full", retryAfterMilliseconds: 50))
        #expect(frame.refused.mayRetry)
        #expect(frame.refused.name == "busy")
    }

    @Test("a status of a later version is still a refusal, with its class")
    func unknownStatus() throws {
        var header = FrameHeader(opcode: .error, flags: FrameHeader.errorFlag, correlation: 1)
        header.status = 999
        let body = Refusal(errorClass: 1, message: "new").encoded
        let frame = try #require(Scripts.frames(header.frame(body: body)).first)
        #expect(frame.refused.status == nil)
        #expect(frame.refused.name == "status-999")
        #expect(frame.refused.mayRetry)
    }
}
