package import BlockingClient
package import BrokerBasics
internal import Foundation
internal import Glibc
internal import Synchronization
internal import WireProtocol

/// A server for tests that answers each frame as a script says, on a Unix socket of its own.
///
/// Every connection has a thread, which runs the script and writes what it returns. It ends when
/// the object does.
package final class ScriptServer: Sendable {
    package enum Action: Sendable {
        case send([UInt8])
        case close
    }
    /// `connection` counts from 0. HELLO is answered before the script is asked, unless it wants to.
    package typealias Script = @Sendable (_ connection: Int, _ frame: Frame) -> [Action]

    package let address: ServerAddress
    private let path: String
    private let listener: Int32
    private let open = Mutex<Set<Int32>>([])
    private static let made = Mutex(0)

    package init(_ script: @escaping Script, answersHello: Bool = true) {
        let number = Self.made.withLock { count in
            count += 1
            return count
        }
        let path = "/tmp/millrace-script-\(getpid())-\(number).sock"
        unlink(path)
        address = .unix(path: path)
        let listener = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        var name = sockaddr_un()
        name.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &name.sun_path) { $0.copyBytes(from: path.utf8) }
        withUnsafePointer(to: &name) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { generic in
                _ = bind(listener, generic, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        listen(listener, 8)
        self.listener = listener
        self.path = path
        Thread.detachNewThread { [weak self] in
            var count = 0
            while true {
                let descriptor = accept(listener, nil, nil)
                // Only `deinit` ends it: who connects and is gone at once, or a lack of descriptors,
                // does not.
                guard descriptor >= 0 else {
                    if errno == EINVAL || errno == EBADF { break }
                    usleep(1000)
                    continue
                }
                let connection = count
                count += 1
                self?.open.withLock { _ = $0.insert(descriptor) }
                Thread.detachNewThread { [weak self] in
                    Self.serve(descriptor, connection, script, answersHello)
                    self?.open.withLock { _ = $0.remove(descriptor) }
                    Glibc.close(descriptor)
                }
            }
            Glibc.close(listener)
        }
    }

    deinit {
        unlink(path)
        shutdown(listener, Int32(SHUT_RDWR))
        open.withLock { $0.forEach { shutdown($0, Int32(SHUT_RDWR)) } }
    }

    private static func serve(
        _ descriptor: Int32,
        _ connection: Int,
        _ script: Script,
        _ answersHello: Bool
    ) {
        var accumulator = FrameAccumulator()
        var buffer = [UInt8](repeating: 0, count: 65_536)
        while true {
            let count = recv(descriptor, &buffer, buffer.count, 0)
            guard count > 0 else { return }
            buffer.withUnsafeBytes { accumulator.append(.init(rebasing: $0[..<count])) }
            while let frame = try? accumulator.next() {
                let actions =
                    frame.opcode == .hello && answersHello
                    ? [.send(Scripts.reply(to: frame, Scripts.hello))] : script(connection, frame)
                for action in actions {
                    switch action {
                    case .close:
                        shutdown(descriptor, Int32(SHUT_RDWR))
                        return
                    case .send(let bytes):
                        var sent = 0
                        while sent < bytes.count {
                            let written = bytes.withUnsafeBytes {
                                send(
                                    descriptor,
                                    $0.baseAddress.map { $0 + sent },
                                    $0.count - sent,
                                    Int32(MSG_NOSIGNAL)
                                )
                            }
                            guard written > 0 else { return }
                            sent += written
                        }
                    }
                }
            }
        }
    }
}
