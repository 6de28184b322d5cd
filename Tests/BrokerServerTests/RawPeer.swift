import BlockingClient
import BrokerBasics
import ChildProcess
import Glibc
import WireProtocol

/// A client that does what no library would: a socket, and bytes.
final class RawPeer {
    private let descriptor: Int32
    /// Read by `take`, and not part of a frame yet.
    private var early: [UInt8] = []

    /// Connects; says nothing.
    ///
    /// - Parameter receiveBytes: what the kernel keeps for it, roughly; `nil`: as much as it likes.
    init(_ address: String, receiveBytes: Int32? = nil) throws {
        guard case .tcp(let host, let port) = try ServerAddress(parsing: address) else {
            throw ChildFailure("\(address) is no TCP address")
        }
        descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { throw Self.failure("socket") }
        var patience = timeval(tv_sec: 60, tv_usec: 0)
        setsockopt(
            descriptor, SOL_SOCKET, SO_RCVTIMEO, &patience,
            socklen_t(MemoryLayout<timeval>.size))
        if var receiveBytes {
            // Before it connects: the window is agreed on with it.
            setsockopt(
                descriptor, SOL_SOCKET, SO_RCVBUF, &receiveBytes,
                socklen_t(MemoryLayout<Int32>.size))
        }
        var peer = sockaddr_in()
        peer.sin_family = sa_family_t(AF_INET)
        peer.sin_port = port.bigEndian
        inet_pton(AF_INET, host, &peer.sin_addr)
        let code = withUnsafePointer(to: &peer) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        guard code == 0 else { throw Self.failure("connecting to \(address)") }
    }

    deinit { close(descriptor) }

    private static func failure(_ what: String) -> ChildFailure {
        ChildFailure("\(what): \(String(cString: strerror(errno)))")
    }

    /// - Returns: false when the other end has closed.
    @discardableResult
    func say(_ bytes: some Sequence<UInt8>) -> Bool {
        let bytes = Array(bytes)
        return bytes.withUnsafeBytes {
            send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) == $0.count
        }
    }

    func hello() {
        say(
            FrameHeader(opcode: .hello, correlation: 1)
                .frame(body: HelloRequest(clientName: "raw").encoded))
    }

    func ping() { say(FrameHeader(opcode: .ping, correlation: 2).frame(body: [])) }

    /// The next whole frame; `nil` when the connection ends, or after a minute.
    func frame() -> (header: FrameHeader, body: [UInt8])? {
        guard let front = bytes(4) else { return nil }
        let count = front.withUnsafeBytes { $0.loadUnaligned(as: UInt32.self) }
        guard count >= FrameHeader.byteCount, let rest = bytes(Int(count) - 4) else { return nil }
        let frame = front + rest
        guard
            let header = frame.withUnsafeBytes({ bytes in
                bytes.baseAddress.flatMap { try? FrameHeader.decode($0) }
            })
        else { return nil }
        return (header, Array(frame[FrameHeader.byteCount...]))
    }

    private func bytes(_ count: Int) -> [UInt8]? {
        var bytes = [UInt8](repeating: 0, count: count)
        var got = min(count, early.count)
        bytes.replaceSubrange(..<got, with: early[..<got])
        early.removeFirst(got)
        while got < count {
            let part = bytes.withUnsafeMutableBytes {
                recv(descriptor, $0.baseAddress.map { $0 + got }, count - got, 0)
            }
            guard part > 0 else { return nil }
            got += part
        }
        return bytes
    }

    /// Reads so many bytes that are there now, and no more; `frame` begins with them.
    ///
    /// - Returns: how many there were.
    @discardableResult
    func take(_ count: Int) -> Int {
        var bytes = [UInt8](repeating: 0, count: count)
        let got = recv(descriptor, &bytes, count, Int32(MSG_DONTWAIT))
        early += bytes[..<max(0, got)]
        return max(0, got)
    }

    /// True when there is something to read now.
    var hasAnswer: Bool {
        var watched = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        return poll(&watched, 1, 0) == 1
    }

    /// From now on nothing that is sent to this socket reaches it, not even for the kernel to acknowledge:
    /// to the other end its machine is gone.
    func vanish() throws {
        // linux/filter.h, which Swift can't import: one instruction, "take 0 bytes of every packet".
        struct Instruction {
            var code: UInt16 = 0x06  // BPF_RET | BPF_K
            var jumpTrue: UInt8 = 0
            var jumpFalse: UInt8 = 0
            var operand: UInt32 = 0
        }
        struct Program {
            var length: UInt16
            var instructions: UnsafeMutablePointer<Instruction>
        }
        var instruction = Instruction()
        let code = withUnsafeMutablePointer(to: &instruction) { instructions in
            var program = Program(length: 1, instructions: instructions)
            return setsockopt(
                descriptor, SOL_SOCKET, SO_ATTACH_FILTER, &program,
                socklen_t(MemoryLayout<Program>.size))
        }
        guard code == 0 else { throw Self.failure("SO_ATTACH_FILTER") }
    }
}
