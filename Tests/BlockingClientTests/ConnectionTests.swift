import BlockingClient
import BrokerBasics
import ScriptedServer
import Testing
import WireProtocol

@Suite struct ConnectionTests {
    @Test("HELLO agrees on a version and says who the server is")
    func hello() throws {
        let server = ScriptServer { _, _ in [] }
        let connection = try Connection(to: server.address, clientName: "test")
        #expect(connection.hello == Scripts.hello)
    }

    @Test("an address where nobody listens is unreachable")
    func unreachable() {
        for address in [ServerAddress.tcp(host: "127.0.0.1", port: 1), .unix(path: "/nowhere")] {
            let error = #expect(throws: ClientError.self) {
                try Connection(to: address, clientName: "test")
            }
            guard case .unreachable = error else {
                Issue.record("\(String(describing: error))")
                return
            }
        }
    }

    @Test("a refused HELLO throws its status")
    func refusedHello() {
        let server = ScriptServer(
            { _, frame in [.send(Scripts.refuse(frame, .recovering, retryAfter: 100))] },
            answersHello: false
        )
        #expect(
            throws: ClientError.refused(
                Refused(.recovering, message: "no", retryAfterMilliseconds: 100)
            )
        ) {
            try Connection(to: server.address, clientName: "test")
        }
    }

    @Test("pushes that arrive before the answer are kept, in order")
    func pushes() throws {
        let server = ScriptServer { _, frame in
            let pushes = (1...3).map { count in
                Scripts.deliver(
                    stream: 1,
                    partition: 9,
                    delivered: UInt64(frame.header.correlation),
                    [Scripts.stored(["x"], partition: 9, offset: UInt64(count))]
                )
            }
            return pushes.map { .send($0) } + [.send(Scripts.reply(to: frame, Empty()))]
        }
        let connection = try Connection(to: server.address, clientName: "test")
        _ = try connection.request(.ping)
        let offsets = try (1...3).map { _ in
            let frame = try #require(try connection.receive(timeoutMilliseconds: 0))
            return try Delivery.decode(frame.body, partition: 9).map(\.endOffset)
        }
        #expect(offsets == [[2], [3], [4]])
        #expect(try connection.receive(timeoutMilliseconds: 0) == nil)
    }

    @Test("no answer in time is a timeout, and the late one is not taken for the next")
    func timeout() throws {
        let server = ScriptServer { _, frame in
            frame.opcode == .ping
                ? [] : [.send(Scripts.reply(to: frame, Scripts.queue("orders", ids: [9])))]
        }
        let connection = try Connection(to: server.address, clientName: "test")
        let error = #expect(throws: ClientError.self) {
            try connection.request(.ping, timeoutMilliseconds: 20)
        }
        guard case .timeout = error else {
            Issue.record("\(String(describing: error))")
            return
        }
        let queue = try connection.request(
            .queueDescribe,
            QueueNameRequest(name: "orders"),
            reply: QueueInfo.self
        )
        #expect(queue.name == "orders")
    }

    @Test("an end says what the server said of the connection, after what came before it")
    func lastWords() throws {
        let server = ScriptServer { _, frame in
            let error = FrameHeader(
                opcode: .error,
                flags: FrameHeader.errorFlag,
                status: .shuttingDown
            ).frame(body: Refusal(errorClass: 2, message: "bye").encoded)
            return [.send(Scripts.reply(to: frame, Empty())), .send(error), .close]
        }
        let connection = try Connection(to: server.address, clientName: "test")
        _ = try connection.request(.ping)
        #expect(throws: ClientError.refused(Refused(.shuttingDown, message: "bye"))) {
            try connection.receive(timeoutMilliseconds: 5_000)
        }
    }

    @Test("bytes that are no frame end the connection with a protocol error")
    func garbage() throws {
        let server = ScriptServer { _, _ in [.send(Array("HTTP/1.1 400 Bad Request\r\n".utf8))] }
        let connection = try Connection(to: server.address, clientName: "test")
        let error = #expect(throws: ClientError.self) { try connection.request(.ping) }
        guard case .protocolError = error else {
            Issue.record("\(String(describing: error))")
            return
        }
    }

    @Test("two peers that both write do not block each other")
    func bothWrite() throws {
        // Each frame is answered by one as large: neither side's socket buffer holds them all.
        let size = 200_000
        let server = ScriptServer { _, frame in
            [
                .send(
                    FrameHeader(
                        opcode: .ping,
                        flags: FrameHeader.replyFlag,
                        correlation: frame.header.correlation
                    ).frame(body: frame.body)
                )
            ]
        }
        let connection = try Connection(to: server.address, clientName: "test")
        let body = [UInt8](repeating: 0x5A, count: size)
        for count in 1...50 {
            try connection.send(
                FrameHeader(opcode: .ping, correlation: UInt64(1_000 + count)).frame(body: body)
            )
        }
        for count in 1...50 {
            let frame = try #require(try connection.receive(timeoutMilliseconds: 5_000))
            #expect(frame.header.correlation == UInt64(1_000 + count))
            #expect(frame.body.count == size)
        }
    }

    @Test("a frame over the agreed size is not sent")
    func tooLarge() throws {
        let server = ScriptServer { _, _ in [] }
        let connection = try Connection(to: server.address, clientName: "test")
        #expect(throws: ClientError.self) {
            try connection.send(
                FrameHeader(opcode: .ping).frame(body: [UInt8](repeating: 0, count: 1 << 20))
            )
        }
    }
}
