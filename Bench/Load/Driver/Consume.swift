package import BrokerBasics
internal import Glibc
internal import Histogram
internal import ShardRuntime
internal import WireProtocol

/// Reads a queue from its start with blocking calls: the other end of a replay.
package struct Consume {
    package var address: ServerAddress
    package var queue: String
    /// `nil`: until it has been read once.
    package var durationNanoseconds: UInt64?
    package var cpu: Int?

    private static let subscription: UInt32 = 1
    private static let receiveBytes = 256 * 1024
    private static let checkEvery: UInt64 = 64

    private var records: UInt64 = 0
    private var bytes: UInt64 = 0
    private var batches: UInt64 = 0
    private var passes = 0
    private var failures = Failures()

    package init(address: ServerAddress, queue: String) {
        self.address = address
        self.queue = queue
    }

    package mutating func run() throws(LoadError) -> LoadReport {
        if let cpu {
            do { try CoreControl.pin(cpu: cpu) } catch { throw .system(error) }
        }
        let began = Clock.monotonic.nanoseconds
        let end = durationNanoseconds.map { began + $0 } ?? .max
        repeat {
            try readOnce(until: end)
        } while durationNanoseconds != nil && Clock.monotonic.nanoseconds < end
            && failures.total == 0 && !Interrupt.isRaised
        return LoadReport(
            command: "consume",
            workload: "a queue from its start",
            durability: nil,
            records: records,
            seconds: Double(Clock.monotonic.nanoseconds - began) / 1e9,
            bytes: bytes,
            latency: LatencySummary(Histogram(numberOfSignificantValueDigits: .two)),
            failures: failures,
            settings: [("queue", .string(queue)), ("passes", .integer(passes))]
        )
    }

    /// One subscription, to what is committed now or until `end`.
    private mutating func readOnce(until end: UInt64) throws(LoadError) {
        let connection = try ControlConnection(to: address, name: "brokerload consumer")
        let info = try connection.ask(
            .queueDescribe,
            QueueNameRequest(name: queue),
            as: QueueInfo.self,
            "describing queue \(queue)"
        )
        // Without credit nothing comes before the socket is ours.
        let assignment = try connection.ask(
            .subscribe,
            stream: Self.subscription,
            SubscribeRequest(queue: queue, start: .start, creditRecords: 0, creditBytes: 0),
            as: Assignment.self,
            "subscribing to \(queue)"
        )
        var left: [UInt32: (next: UInt64, end: UInt64)] = [:]
        for partition in assignment.partitions {
            let committed =
                info.partitions.first { $0.id == partition.partition }?.committedOffset ?? 0
            if partition.nextOffset < committed {
                left[partition.partition] = (partition.nextOffset, committed)
            }
        }
        var inbound = Inbound(frameBytesMax: Int(connection.hello.frameBytesMax))
        try connection.send(
            .credit,
            stream: Self.subscription,
            Credit(records: .max, bytes: .max).encoded,
            "giving credit"
        )
        let socket = try connection.takeSocket()
        defer { close(socket) }
        let buffer = UnsafeMutableRawBufferPointer.allocate(
            byteCount: Self.receiveBytes,
            alignment: 64
        )
        defer { buffer.deallocate() }
        while !left.isEmpty, failures.total == 0, !Interrupt.isRaised {
            let count = recv(socket, buffer.baseAddress, buffer.count, 0)
            if count < 0, errno == EINTR { continue }
            guard count > 0, let base = buffer.baseAddress else {
                return failures.add(
                    "connection-closed",
                    message: count == 0 ? "the server hung up" : LoadError.kernelReason
                )
            }
            take(UnsafeRawPointer(base), count, &inbound, &left)
            if Clock.monotonic.nanoseconds >= end { return }
        }
        passes += 1
    }

    private mutating func take(
        _ buffer: UnsafeRawPointer,
        _ count: Int,
        _ inbound: inout Inbound,
        _ left: inout [UInt32: (next: UInt64, end: UInt64)]
    ) {
        var bytes = buffer
        var available = count
        do throws(FrameError) {
            while let (unit, size) = try inbound.next(&bytes, &available) {
                if inbound.deliverBytesLeft > 0 {
                    inbound.takeBatch(size)
                    take(batch: unit, size, inbound.deliverPartition, &left)
                    continue
                }
                let header = try FrameHeader.decode(unit)
                if header.opcode == Opcode.deliver.rawValue {
                    inbound.beginDeliver(header)
                } else if header.status != 0 {
                    failures.add(LoadError.name(header.status))
                }
            }
        } catch {
            failures.add("frame", message: "\(error)")
        }
    }

    @inline(__always)
    private mutating func take(
        batch: UnsafeRawPointer,
        _ size: Int,
        _ partition: UInt32,
        _ left: inout [UInt32: (next: UInt64, end: UInt64)]
    ) {
        let base = StoredBatch.baseOffset(at: batch)
        let end = StoredBatch.endOffset(at: batch)
        batches &+= 1
        records &+= end &- base
        bytes &+= UInt64(size)
        if batches % Self.checkEvery == 0,
            StoredBatch.verify(
                batch,
                available: size,
                partition: PartitionID(rawValue: partition)
            ) != size
        {
            failures.add("delivery-checksum")
        }
        // What comes behind the end that the run began with is not asked for.
        guard let place = left[partition] else { return }
        if base != place.next { failures.add("delivery-gap") }
        if end >= place.end {
            left[partition] = nil
        } else {
            left[partition] = (end, place.end)
        }
    }
}
