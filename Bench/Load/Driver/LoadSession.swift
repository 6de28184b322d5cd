package import BrokerBasics
internal import Glibc
package import WireProtocol

/// The queues of one run: made at its start, gone at its end, also when it fails or is interrupted.
package final class LoadSession {
    package let address: ServerAddress
    private var control: ControlConnection
    private var ownQueues: [String] = []
    /// In both directions: what the broker takes, and at most what this client said it takes.
    package var frameBytesMax: Int {
        Int(min(control.hello.frameBytesMax, FrameHeader.defaultFrameBytesMax))
    }

    package init(address: ServerAddress) throws(LoadError) {
        self.address = address
        control = try ControlConnection(to: address, name: "brokerload")
    }

    /// A name that no other run uses: `load-publish-4711-1a2b3c-0`.
    package static func queueName(_ purpose: String, _ index: Int) -> String {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        let unique = String(
            UInt64(time.tv_sec) &* 1_000_000 &+ UInt64(time.tv_nsec) / 1000,
            radix: 36
        )
        return "load-\(purpose)-\(getpid())-\(unique)-\(index)"
    }

    /// Makes a queue that `removeQueues()` deletes.
    package func createQueue(
        _ name: String,
        partitions: Int,
        level: DurabilityLevel
    ) throws(LoadError) -> QueueInfo {
        let info = try create(name, partitions: partitions, level: level)
        ownQueues.append(name)
        return info
    }

    /// Of one of `count` queues that stay.
    package static func keptName(_ name: String, _ index: Int, of count: Int) -> String {
        count == 1 ? name : "\(name)-\(index)"
    }

    /// The queue of this name as it is, or a new one; it is kept.
    package func keptQueue(
        _ name: String,
        partitions: Int,
        level: DurabilityLevel
    ) throws(LoadError) -> QueueInfo {
        do {
            return try create(name, partitions: partitions, level: level)
        } catch .refused(_, StatusCode.queueExists.rawValue, _) {
            return try control.ask(
                .queueDescribe,
                QueueNameRequest(name: name),
                as: QueueInfo.self,
                "describing queue \(name)"
            )
        }
    }

    private func create(
        _ name: String,
        partitions: Int,
        level: DurabilityLevel
    ) throws(LoadError) -> QueueInfo {
        let info = try control.ask(
            .queueCreate,
            QueueCreateRequest(name: name, partitions: UInt32(partitions), level: level),
            as: QueueInfo.self,
            "creating queue \(name)"
        )
        guard info.partitions.count == partitions, info.level == level.rawValue else {
            throw .protocolBroken(
                operation: "creating queue \(name)",
                reason: "asked for \(partitions) partitions at \(level.name), got "
                    + "\(info.partitions.count) at level \(info.level)"
            )
        }
        return info
    }

    /// Deletes what `createQueue` made; a lost connection is made anew once.
    package func removeQueues() {
        var reconnected = false
        while let name = ownQueues.last {
            do {
                _ = try control.ask(
                    .queueDelete,
                    QueueNameRequest(name: name),
                    as: Empty.self,
                    "deleting queue \(name)"
                )
                ownQueues.removeLast()
            } catch {
                if case .refused = error {
                    StandardError.print("brokerload: \(error)")
                    ownQueues.removeLast()
                    continue
                }
                guard !reconnected,
                    let fresh = try? ControlConnection(to: address, name: "brokerload")
                else {
                    StandardError.print(
                        "brokerload: \(error); \(ownQueues.count) queues are left behind, from "
                            + "\(name)"
                    )
                    return
                }
                reconnected = true
                control = fresh
            }
        }
    }

    /// A data connection with one producer per partition.
    package func openPublisher(
        partitions: [UInt32]
    ) throws(LoadError) -> (connection: ControlConnection, producers: [ProducerOpenReply]) {
        let connection = try ControlConnection(to: address, name: "brokerload publisher")
        var producers: [ProducerOpenReply] = []
        producers.reserveCapacity(partitions.count)
        for partition in partitions {
            producers.append(
                try connection.ask(
                    .producerOpen,
                    stream: partition,
                    ProducerOpenRequest(),
                    as: ProducerOpenReply.self,
                    "opening a producer"
                )
            )
        }
        return (connection, producers)
    }
}
