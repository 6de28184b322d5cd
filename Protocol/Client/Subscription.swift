internal import BrokerBasics
package import WireProtocol

/// A live subscription on a connection; credit is topped up as events are taken.
///
/// Several may share a connection, and so may a `PublishStream`.
package final class Subscription {
    private let connection: Connection
    package let stream: UInt32
    private var state: SubscriptionState
    private var pending: [SubscriptionEvent] = []
    private var pendingStart = 0

    /// Subscribes; with a group name as one of its members.
    ///
    /// - Parameters:
    ///   - start: where to begin; for a group only where it has no cursor yet.
    ///   - partition: a partition id, or `.all`.
    package init(
        on connection: Connection,
        queue: String,
        group: String = "",
        start: StartPosition = .start,
        partition: PartitionID = .all,
        window: SubscriptionState.Window = .init(),
        timeoutMilliseconds: Int = Connection.timeoutMilliseconds
    ) throws(ClientError) {
        self.connection = connection
        stream = connection.nextStream()
        let assignment = try connection.request(
            .subscribe,
            SubscribeRequest(
                queue: queue,
                group: group,
                start: start,
                partition: partition,
                creditRecords: window.records,
                creditBytes: window.bytes
            ),
            reply: Assignment.self,
            stream: stream,
            timeoutMilliseconds: timeoutMilliseconds
        )
        state = SubscriptionState(assignment: assignment, window: window)
    }

    /// The partitions that are read now.
    package var assignment: Assignment { state.assignment }
    package var hasEnded: Bool { state.hasEnded }
    /// True while `next` has events at hand of a frame that it took before.
    package var hasPending: Bool { pendingStart < pending.count }
    package var unansweredAcks: Int { state.unansweredAcks }

    /// The first offset of `partition` that was not delivered yet; `nil` when it is not assigned.
    package func nextOffset(of partition: UInt32) -> UInt64? { state.nextOffset(of: partition) }

    /// The next event, or `nil` when none came in time. 0 takes only what has arrived.
    package func next(timeoutMilliseconds: Int) throws(ClientError) -> SubscriptionEvent? {
        let deadline = Deadline(milliseconds: timeoutMilliseconds)
        while true {
            if hasPending {
                pendingStart += 1
                return pending[pendingStart - 1]
            }
            guard
                let frame = try connection.receive(
                    timeoutMilliseconds: deadline.remainingMilliseconds,
                    where: { state.owns($0, stream: stream) }
                )
            else { return nil }
            pending = try state.receive(frame)
            pendingStart = 0
            if let credit = state.creditDue() {
                let header = FrameHeader(opcode: .credit, stream: stream)
                try connection.send(header.frame(body: credit.encoded))
            }
        }
    }

    /// Tells the group that everything below `offset` of `partition` is done; does not wait.
    ///
    /// The answer is an event, `acked` or `ackRefused`. An ack for a partition that is no longer
    /// this member's is not sent: the next member gets those records again.
    /// - Returns: false when it was not sent.
    @discardableResult
    package func ack(partition: UInt32, below offset: UInt64) throws(ClientError) -> Bool {
        let correlation = connection.nextCorrelation()
        guard
            let ack = state.makeAck(partition: partition, offset: offset, correlation: correlation)
        else { return false }
        let header = FrameHeader(opcode: .ack, correlation: correlation, stream: stream)
        try connection.send(header.frame(body: ack.encoded))
        return true
    }

    /// Ends the subscription; the connection stays.
    package func unsubscribe(
        timeoutMilliseconds: Int = Connection.timeoutMilliseconds
    ) throws(ClientError) {
        _ = try connection.request(
            .unsubscribe,
            stream: stream,
            timeoutMilliseconds: timeoutMilliseconds
        )
    }
}
