package import BrokerBasics
internal import Glibc
package import WireProtocol

/// A synchronous connection to a server, for tools and tests.
///
/// One thread may use it; nothing happens between calls. Memory is bounded: one incomplete frame,
/// received frames up to `inboxBytesMax`, and what the caller has queued for sending, which the
/// caller bounds by `unsentBytes`. It never waits to write without also reading, so two peers that
/// both write cannot block each other.
///
/// A negative timeout waits for ever, as in poll(2).
package final class Connection {
    package static let timeoutMilliseconds = 10_000
    package static let inboxBytesMax = 64 << 20
    private static let readBytes = 256 << 10

    /// For messages; not parsed again.
    package let address: String
    /// What HELLO agreed on.
    package private(set) var hello: HelloReply

    private let descriptor: Int32
    private var accumulator = FrameAccumulator()
    private var readBuffer = [UInt8](repeating: 0, count: Connection.readBytes)
    /// Received and not yet taken, oldest first; those before `inboxStart` have been taken.
    private var inbox: [Frame] = []
    private var inboxStart = 0
    private var inboxBytes = 0
    private var output: [UInt8] = []
    private var outputStart = 0
    private var lastCorrelation: UInt64 = 0
    private var lastStream: UInt32 = 0
    /// Why nothing more will arrive. What arrived before is still handed out.
    private var ending: ClientError?
    /// What the server said about the whole connection, which explains the end that follows.
    private var lastWords: ClientError?

    /// Connects and says HELLO.
    package convenience init(
        to address: ServerAddress,
        clientName: String,
        timeoutMilliseconds: Int = Connection.timeoutMilliseconds
    ) throws(ClientError) {
        let deadline = Deadline(milliseconds: timeoutMilliseconds)
        try self.init(
            descriptor: try Socket.connect(to: address, deadline: deadline),
            address: "\(address)",
            clientName: clientName,
            timeoutMilliseconds: deadline.remainingMilliseconds
        )
    }

    /// Says HELLO on a connected stream socket, which the connection then owns and closes.
    package init(
        descriptor: Int32,
        address: String,
        clientName: String,
        timeoutMilliseconds: Int = Connection.timeoutMilliseconds
    ) throws(ClientError) {
        self.descriptor = descriptor
        self.address = address
        hello = HelloReply(
            version: 0,
            features: 0,
            frameBytesMax: FrameHeader.defaultFrameBytesMax,
            serverID: 0,
            serverEpoch: 0,
            shards: []
        )
        Socket.makeNonBlocking(descriptor)
        hello = try request(
            .hello,
            HelloRequest(clientName: clientName),
            reply: HelloReply.self,
            timeoutMilliseconds: timeoutMilliseconds
        )
        guard hello.version == FrameHeader.version else {
            throw .protocolError("the server chose version \(hello.version), which was not offered")
        }
    }

    deinit { close(descriptor) }

    // MARK: Asking

    /// A correlation id that no other request on this connection has. Bit 63 stays 0: those ids
    /// belong to `PublishStream`.
    package func nextCorrelation() -> UInt64 {
        lastCorrelation += 1
        return lastCorrelation
    }

    /// A subscription id that is unused on this connection.
    package func nextStream() -> UInt32 {
        lastStream += 1
        return lastStream
    }

    /// Sends a request and waits for its answer; other frames that arrive meanwhile are kept.
    ///
    /// The time allowed also travels as the request's deadline, so that the server does not do
    /// what nobody waits for any more.
    package func request(
        _ opcode: Opcode,
        body: [UInt8] = [],
        stream: UInt32 = 0,
        timeoutMilliseconds: Int = Connection.timeoutMilliseconds
    ) throws(ClientError) -> Frame {
        let deadline = Deadline(milliseconds: timeoutMilliseconds)
        let correlation = nextCorrelation()
        let microseconds = UInt64(max(0, timeoutMilliseconds)) &* 1_000
        let header = FrameHeader(
            opcode: opcode,
            correlation: correlation,
            stream: stream,
            argument: UInt32(clamping: microseconds)
        )
        try send(
            header.frame(body: body),
            timeoutMilliseconds: deadline.remainingMilliseconds
        )
        guard
            let frame = try receive(
                timeoutMilliseconds: deadline.remainingMilliseconds,
                where: { $0.answers(correlation) }
            )
        else {
            throw .timeout("no answer to \(opcode) from \(address) in \(timeoutMilliseconds) ms")
        }
        guard !frame.isRefusal else { throw .refused(frame.refused) }
        guard frame.opcode == opcode else {
            throw .protocolError("\(frame.name) answers \(opcode)")
        }
        return frame
    }

    /// Sends a control message and reads the reply's body.
    package func request<Reply: WireMessage>(
        _ opcode: Opcode,
        _ message: some WireMessage,
        reply: Reply.Type,
        stream: UInt32 = 0,
        timeoutMilliseconds: Int = Connection.timeoutMilliseconds
    ) throws(ClientError) -> Reply {
        try request(
            opcode,
            body: message.encoded,
            stream: stream,
            timeoutMilliseconds: timeoutMilliseconds
        ).message(reply)
    }

    // MARK: Sending

    /// Bytes that are queued and that the kernel has not taken yet.
    package var unsentBytes: Int { output.count - outputStart }

    /// Queues a whole frame; `pump` or `send` writes it.
    package func enqueue(_ frame: [UInt8]) throws(ClientError) {
        guard frame.count <= Int(hello.frameBytesMax) else {
            throw .protocolError(
                "a frame of \(frame.count) bytes is over the server's limit of "
                    + "\(hello.frameBytesMax)"
            )
        }
        if outputStart > 0, outputStart == output.count {
            output.removeAll(keepingCapacity: true)
            outputStart = 0
        } else if outputStart > 1 << 20 {
            output.removeFirst(outputStart)
            outputStart = 0
        }
        output.append(contentsOf: frame)
    }

    /// Writes a whole frame, and what was queued before it, while receiving what arrives.
    package func send(
        _ frame: [UInt8],
        timeoutMilliseconds: Int = Connection.timeoutMilliseconds
    ) throws(ClientError) {
        let deadline = Deadline(milliseconds: timeoutMilliseconds)
        try enqueue(frame)
        try write()
        while unsentBytes > 0 {
            if let ending { throw ending }
            guard !deadline.isOver else {
                throw .timeout("\(address) takes no more bytes, \(unsentBytes) are unsent")
            }
            try pump(timeoutMilliseconds: deadline.remainingMilliseconds)
        }
        // A short frame may be in the kernel's hands although the peer has already gone.
        if let ending, inboxStart == inbox.count { throw ending }
    }

    // MARK: Receiving

    /// The oldest received frame that is `wanted`, waiting for it up to the time given.
    ///
    /// - Returns: `nil` when the time is over.
    package func receive(
        timeoutMilliseconds: Int,
        where wanted: (Frame) -> Bool = { _ in true }
    ) throws(ClientError) -> Frame? {
        let deadline = Deadline(milliseconds: timeoutMilliseconds)
        var seen = inboxStart
        while true {
            while seen < inbox.count {
                if wanted(inbox[seen]) { return take(seen) }
                seen += 1
            }
            if let ending { throw ending }
            // With no time given, what the kernel holds is still read once.
            let received = inbox.count
            let over = deadline.isOver
            try pump(timeoutMilliseconds: over ? 0 : deadline.remainingMilliseconds)
            if over, inbox.count == received { return nil }
        }
    }

    private func take(_ index: Int) -> Frame {
        let frame = inbox[index]
        inboxBytes -= FrameHeader.byteCount + frame.body.count
        if index == inboxStart {
            // Released now: the array is only shortened when most of it has been taken.
            inbox[index].body = []
            inboxStart += 1
            if inboxStart == inbox.count || inboxStart > 1024 {
                inbox.removeFirst(inboxStart)
                inboxStart = 0
            }
        } else {
            inbox.remove(at: index)
        }
        return frame
    }

    /// One step: waits until the socket can be read or written as needed, and does it.
    ///
    /// - Parameter input: another descriptor to wait for; −1 for none.
    /// - Returns: true when `input` can be read without waiting.
    /// - Throws: what ended the connection, once there is nothing left to hand out.
    @discardableResult
    package func pump(
        timeoutMilliseconds: Int,
        alsoReadable input: Int32 = -1
    ) throws(ClientError) -> Bool {
        if let ending { throw ending }
        let wanted = unsentBytes > 0 ? POLLIN | POLLOUT : POLLIN
        var waiting = [
            pollfd(fd: descriptor, events: Int16(wanted), revents: 0),
            pollfd(fd: input, events: Int16(POLLIN), revents: 0),
        ]
        let limit = Int32(clamping: max(-1, timeoutMilliseconds))
        guard poll(&waiting, nfds_t(waiting.count), limit) > 0 else { return false }
        let events = Int32(waiting[0].revents)
        if events & (POLLIN | POLLHUP | POLLERR) != 0 { try read() }
        if events & POLLOUT != 0, ending == nil { try write() }
        return waiting[1].revents != 0
    }

    /// Writes as much as the kernel takes now.
    private func write() throws(ClientError) {
        while unsentBytes > 0 {
            let written = output.withUnsafeBytes { buffer in
                let rest = UnsafeRawBufferPointer(rebasing: buffer[outputStart...])
                return Glibc.send(descriptor, rest.baseAddress, rest.count, Int32(MSG_NOSIGNAL))
            }
            if written > 0 {
                outputStart += written
                continue
            }
            switch errno {
            case EINTR: continue
            case EAGAIN: return
            default:
                // The peer has gone, but may have said why: that is read before the error counts.
                let reason = lastSystemError()
                try read()
                if ending == nil { end(reason) }
                return
            }
        }
    }

    /// Reads what the kernel holds, up to one buffer, and cuts it into frames.
    private func read() throws(ClientError) {
        let count = readBuffer.withUnsafeMutableBytes { buffer in
            recv(descriptor, buffer.baseAddress, buffer.count, 0)
        }
        guard count > 0 else {
            if count == 0 {
                end("closed by \(address)")
            } else if errno != EAGAIN, errno != EINTR {
                end(lastSystemError())
            }
            return
        }
        readBuffer.withUnsafeBytes { buffer in
            accumulator.append(UnsafeRawBufferPointer(rebasing: buffer[..<count]))
        }
        do throws(ClientError) {
            while let frame = try accumulator.next() { try keep(frame) }
        } catch {
            // Where the next frame begins is no longer known.
            ending = error
            throw error
        }
    }

    private func keep(_ frame: Frame) throws(ClientError) {
        if frame.opcode == .error, frame.header.correlation == 0, frame.header.stream == 0 {
            lastWords = .refused(frame.refused)
            return
        }
        inboxBytes += FrameHeader.byteCount + frame.body.count
        guard inboxBytes <= Self.inboxBytesMax else {
            throw .protocolError(
                "\(address) sent \(inboxBytes) bytes beyond what credit and window allow"
            )
        }
        inbox.append(frame)
    }

    private func end(_ reason: String) { ending = lastWords ?? .closed(reason: reason) }
}
