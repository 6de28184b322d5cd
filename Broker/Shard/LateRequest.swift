internal import BrokerBasics
internal import WireProtocol

/// A request that is answered when something has happened, if whoever asked is still there then.
package struct LateRequest: Sendable {
    fileprivate let connection: Int32
    fileprivate let generation: UInt32
    fileprivate let header: FrameHeader
}

extension ShardMachine {
    func late(_ request: Request) -> LateRequest {
        LateRequest(
            connection: request.connection,
            generation: connections[request.connection].pointee.generation, header: request.header)
    }

    func isOpen(_ request: LateRequest) -> Bool { isOpen(answer(to: request, [])) }

    mutating func answerLate(_ request: LateRequest, _ body: [UInt8]) {
        var header = FrameHeader(
            opcode: .ping, flags: FrameHeader.replyFlag, correlation: request.header.correlation,
            stream: request.header.stream)
        header.opcode = request.header.opcode
        deliver(deferredReply: answer(to: request, header.frame(body: body)))
    }

    mutating func refuseLate(_ request: LateRequest, _ status: StatusCode, _ message: String) {
        guard isOpen(request) else { return }
        refuseLate(
            request.connection, correlation: request.header.correlation,
            stream: request.header.stream, status, message)
    }

    private func answer(to request: LateRequest, _ frame: [UInt8]) -> DeferredReply {
        DeferredReply(
            group: 0, connection: request.connection, generation: request.generation, frame: frame)
    }
}
