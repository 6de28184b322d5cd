package import BlockingClient
package import BrokerBasics
internal import Synchronization

/// Where the broker is now, for threads that come back to it; nowhere while it is down.
package final class BrokerPlace: Sendable {
    private let address = Mutex<ServerAddress?>(nil)

    package init() {}

    package var current: ServerAddress? {
        get { address.withLock { $0 } }
        set { address.withLock { $0 = newValue } }
    }

    package func connect(
        clientName: String,
        timeoutMilliseconds: Int = 2_000
    ) throws(ClientError) -> Connection {
        guard let address = current else {
            throw .unreachable(address: "brokerd", reason: "it is down")
        }
        return try Connection(
            to: address,
            clientName: clientName,
            timeoutMilliseconds: timeoutMilliseconds
        )
    }
}
