import BrokerBasics
import BrokerServer
import Foundation
import Glibc
import ShardRuntime
import Synchronization
import Testing

/// A place that the broker before still listens at, for a moment.
@Suite("Listening where somebody still listens")
struct ListenerTests {
    private static func path() -> String { "/tmp/millrace-listen-\(UUID().uuidString).sock" }

    @Test("a place that becomes free within two seconds is taken", arguments: [true, false])
    func becomesFree(isTCP: Bool) throws {
        let wanted: ServerAddress =
            isTCP ? .tcp(host: "127.0.0.1", port: 0) : .unix(path: Self.path())
        let before = Mutex<Holder?>(Holder(try Listener(wanted)))
        let address = try #require(before.withLock { $0?.address })
        #expect(throws: SystemError.self) { _ = try Listener(address, triesWhileInUse: 0) }
        let leaving = LockedHolder(before)
        try DetachedThread.start("leaving") {
            usleep(150_000)
            leaving.release()
        }
        let after = try Listener(address)
        #expect(after.address == address)
    }

    @Test("a place that stays taken is refused, by name")
    func staysTaken() throws {
        let before = try Listener(.tcp(host: "127.0.0.1", port: 0))
        let error = #expect(throws: SystemError.self) {
            _ = try Listener(before.address, triesWhileInUse: 3)
        }
        #expect(error?.errno == EADDRINUSE)
        #expect(error?.description.contains("\(before.address)") == true)
    }
}

private final class Holder: Sendable {
    let listener: Listener
    var address: ServerAddress { listener.address }
    init(_ listener: consuming Listener) { self.listener = listener }
}
private final class LockedHolder: Sendable {
    private let held: Mutex<Holder?>
    init(_ held: consuming Mutex<Holder?>) { self.held = held }
    func release() { held.withLock { $0 = nil } }
}
