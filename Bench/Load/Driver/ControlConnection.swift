package import BrokerBasics
internal import Glibc
package import WireProtocol

/// A connection used by question and answer with blocking calls, before and after the measured part.
///
/// A data connection begins as one and hands its socket to the ring.
package final class ControlConnection {
    package private(set) var fd: Int32
    private var received: [UInt8] = []
    /// The next request's correlation id; also the first one that a publish may use.
    package private(set) var nextCorrelation: UInt64 = 1
    package private(set) var hello: HelloReply

    private static let timeoutSeconds = 30
    private static let frameBytesMin: UInt32 = 4096

    package init(to address: ServerAddress, name: String) throws(LoadError) {
        fd = try address.connect()
        hello = HelloReply(
            version: 0,
            features: 0,
            frameBytesMax: FrameHeader.defaultFrameBytesMax,
            serverID: 0,
            serverEpoch: 0,
            shards: []
        )
        var limit = timeval(tv_sec: Self.timeoutSeconds, tv_usec: 0)
        let bytes = socklen_t(MemoryLayout<timeval>.size)
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, bytes)
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, bytes)
        do {
            hello = try ask(
                .hello,
                HelloRequest(clientName: name),
                as: HelloReply.self,
                "hello"
            )
        } catch .protocolBroken(_, let reason) {
            throw .unreachable(address: address.description, reason: reason)
        }
        guard hello.version == FrameHeader.version, hello.frameBytesMax >= Self.frameBytesMin else {
            throw .protocolBroken(
                operation: "hello",
                reason: "version \(hello.version), frames of \(hello.frameBytesMax) bytes"
            )
        }
    }

    deinit { if fd >= 0 { close(fd) } }

    /// Gives the socket away: whoever takes it closes it.
    package func takeSocket() throws(LoadError) -> Int32 {
        guard received.isEmpty else {
            throw .protocolBroken(operation: "setting up", reason: "bytes that nobody asked for")
        }
        defer { fd = -1 }
        return fd
    }

    /// - Throws: when the broker has closed it.
    package func checkIsOpen() throws(LoadError) {
        var watched = pollfd(fd: fd, events: Int16(POLLIN), revents: 0)
        guard poll(&watched, 1, 0) != 0 else { return }
        throw .protocolBroken(
            operation: "holding a connection",
            reason: "the broker closed it, or said something that nobody asked for"
        )
    }

    /// Asks and waits for the answer.
    package func ask<Reply: WireMessage>(
        _ opcode: Opcode,
        stream: UInt32 = 0,
        _ request: some WireMessage,
        as _: Reply.Type,
        _ operation: String
    ) throws(LoadError) -> Reply {
        let correlation = try send(opcode, stream: stream, request.encoded, operation)
        return try reply(to: correlation, as: Reply.self, operation)
    }

    @discardableResult
    package func send(
        _ opcode: Opcode,
        stream: UInt32 = 0,
        _ body: [UInt8],
        _ operation: String
    ) throws(LoadError) -> UInt64 {
        let correlation = nextCorrelation
        nextCorrelation += 1
        let frame = FrameHeader(opcode: opcode, correlation: correlation, stream: stream)
            .frame(body: body)
        var sent = 0
        while sent < frame.count {
            let result = frame[sent...].withUnsafeBytes {
                Glibc.send(fd, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
            }
            guard result > 0 else {
                throw .protocolBroken(operation: operation, reason: LoadError.kernelReason)
            }
            sent += result
        }
        return correlation
    }

    /// Waits for the answer to `correlation`; pushes and other answers on the way are dropped, so
    /// answers to several requests are waited for in the order of asking.
    package func reply<Reply: WireMessage>(
        to correlation: UInt64,
        as _: Reply.Type,
        _ operation: String
    ) throws(LoadError) -> Reply {
        while true {
            let (header, body) = try nextFrame(operation)
            guard header.correlation == correlation, header.flags & FrameHeader.pushFlag == 0
            else {
                if header.flags & FrameHeader.errorFlag != 0, header.correlation == 0 {
                    throw refusal(header, body, operation)
                }
                continue
            }
            if header.flags & FrameHeader.errorFlag != 0 || header.opcode == Opcode.error.rawValue {
                throw refusal(header, body, operation)
            }
            do {
                return try Reply(body: Array(body.dropFirst(Int(header.tlvBytes))))
            } catch {
                throw .protocolBroken(operation: operation, reason: "the reply is \(error)")
            }
        }
    }

    private func refusal(
        _ header: FrameHeader,
        _ body: [UInt8],
        _ operation: String
    ) -> LoadError {
        let message = (try? Refusal(body: Array(body.dropFirst(Int(header.tlvBytes)))))?.message
        return .refused(operation: operation, status: header.status, message: message ?? "")
    }

    private func nextFrame(_ operation: String) throws(LoadError) -> (FrameHeader, [UInt8]) {
        while true {
            if let frame = try takeFrame(operation) { return frame }
            var chunk = [UInt8](repeating: 0, count: 65_536)
            let result = chunk.withUnsafeMutableBytes { recv(fd, $0.baseAddress, $0.count, 0) }
            if result == 0 {
                throw .protocolBroken(operation: operation, reason: "the server hung up")
            }
            if result < 0, errno == EINTR { continue }
            guard result > 0 else {
                let reason =
                    errno == EAGAIN
                    ? "no answer in \(Self.timeoutSeconds) s" : LoadError.kernelReason
                throw .protocolBroken(operation: operation, reason: reason)
            }
            received += chunk[..<result]
        }
    }

    private func takeFrame(_ operation: String) throws(LoadError) -> (FrameHeader, [UInt8])? {
        guard received.count >= FrameHeader.byteCount else { return nil }
        let result = received.withUnsafeBytes { buffer -> Result<(FrameHeader, Int)?, FrameError> in
            guard let base = buffer.baseAddress else { return .success(nil) }
            return Result { () throws(FrameError) in
                guard
                    let count = try FrameHeader.frameBytes(
                        base,
                        available: buffer.count,
                        frameBytesMax: FrameHeader.defaultFrameBytesMax
                    ),
                    count <= buffer.count
                else { return nil }
                return (try FrameHeader.decode(base), count)
            }
        }
        switch result {
        case .success(nil): return nil
        case .success(.some((let header, let count))):
            let body = Array(received[FrameHeader.byteCount..<count])
            received.removeFirst(count)
            return (header, body)
        case .failure(let error):
            throw .protocolBroken(operation: operation, reason: "not a frame: \(error)")
        }
    }
}
