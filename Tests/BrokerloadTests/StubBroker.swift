import BrokerBasics
import Glibc
import Synchronization
import WireProtocol
import brokerload

/// A broker of the wire and nothing behind it: one thread, memory only.
///
/// It speaks just enough of protocol version 1 for the load driver. It checks what it is sent as a broker would, and can misbehave.
final class StubBroker: Sendable {
    enum Fault: Sendable, Equatable {
        case none
        /// Refuses the publish with this number, and those that then leave a gap.
        case refusesPublish(Int)
        case confirmsTwice(Int)
        case confirmsNot(Int)
        case confirmsAtLevel(UInt8)
        case leavesOutDelivery(Int)
        case flipsDeliveredBit(Int)
        case hangsUpAt(Int)
        /// Splits every write into pieces of so many bytes, so that units arrive in parts.
        case dribbles(Int)
    }

    struct Seen: Sendable {
        var publishes = 0
        var records = 0
        var firstPayload: [UInt8] = []
        var keys: Set<[UInt8]> = []
        var timestamps: [UInt64] = []
        var invalid: [String] = []
        var liveQueues: [String] = []
        var deletedQueues: [String] = []
        var credits: [Credit] = []
        var confirmFrames = 0
    }

    let port: UInt16
    private let listener: Int32
    private let fault: Fault
    private let stopping = Atomic<Bool>(false)
    private let state = Mutex(Seen())
    private let thread = Mutex<pthread_t?>(nil)

    var seen: Seen { state.withLock { $0 } }
    var address: String { "127.0.0.1:\(port)" }

    init(fault: Fault = .none) throws {
        self.fault = fault
        listener = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let fd = listener
        let bound = withUnsafeMutablePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(fd, $0, length) == 0 && listen(fd, 64) == 0
                    && getsockname(fd, $0, &length) == 0
            }
        }
        guard bound else { throw LoadError.baseline("stub: listening on 127.0.0.1") }
        port = UInt16(bigEndian: address.sin_port)
        // The thread holds a reference of its own until it ends.
        let context = Unmanaged.passRetained(self).toOpaque()
        let started = thread.withLock { thread in
            var id = pthread_t()
            let result = pthread_create(&id, nil, StubBroker.body, context)
            thread = id
            return result == 0
        }
        guard started else { throw LoadError.baseline("stub: starting a thread") }
    }

    private static let body: @convention(c) (UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? =
        { context in
            guard let context else { return nil }
            Unmanaged<StubBroker>.fromOpaque(context).takeRetainedValue().serve()
            return nil
        }

    private func serve() {
        var serving = Serving(listener: listener, fault: fault)
        while !stopping.load(ordering: .relaxed) {
            serving.turn()
            let copy = serving.seen
            state.withLock { $0 = copy }
        }
        serving.close()
    }

    func stop() {
        stopping.store(true, ordering: .relaxed)
        if let id = thread.withLock({ $0 }) { pthread_join(id, nil) }
    }
}

private struct Serving {
    struct Connection {
        var received: [UInt8] = []
        var out: [UInt8] = []
        var confirms: [ConfirmEntry] = []
    }
    struct Partition {
        var id: UInt32
        var level: UInt8
        var queue: String
        var end: UInt64 = 0
        var sequences: [UInt64: UInt64] = [:]
    }
    struct Subscription {
        var fd: Int32
        var stream: UInt32
        var queue: String
        var credit: UInt64
        var delivered: UInt64 = 0
        var waiting: [(partition: UInt32, records: UInt64, bytes: [UInt8])] = []
    }

    let listener: Int32
    let fault: StubBroker.Fault
    var seen = StubBroker.Seen()
    private var connections: [Int32: Connection] = [:]
    private var partitions: [UInt32: Partition] = [:]
    private var queues: [String: QueueInfo] = [:]
    private var subscriptions: [Subscription] = []
    private var nextID: UInt32 = 1
    private var nextProducer: UInt64 = 100
    private var deliveries = 0

    init(listener: Int32, fault: StubBroker.Fault) {
        self.listener = listener
        self.fault = fault
    }

    mutating func close() {
        for fd in connections.keys { Glibc.close(fd) }
        Glibc.close(listener)
    }

    mutating func turn() {
        var watched = [pollfd(fd: listener, events: Int16(POLLIN), revents: 0)]
        for fd in connections.keys {
            watched.append(pollfd(fd: fd, events: Int16(POLLIN), revents: 0))
        }
        guard poll(&watched, nfds_t(watched.count), 10) > 0 else { return }
        for entry in watched where entry.revents != 0 {
            if entry.fd == listener {
                let fd = accept(listener, nil, nil)
                var on: Int32 = 1
                setsockopt(fd, Int32(IPPROTO_TCP), TCP_NODELAY, &on, 4)
                if fd >= 0 { connections[fd] = Connection() }
            } else {
                receive(entry.fd)
            }
        }
        deliver()
        for fd in connections.keys { flush(fd) }
    }

    private mutating func drop(_ fd: Int32) {
        Glibc.close(fd)
        connections[fd] = nil
        subscriptions.removeAll { $0.fd == fd }
    }

    private mutating func receive(_ fd: Int32) {
        var chunk = [UInt8](repeating: 0, count: 1 << 18)
        let count = chunk.withUnsafeMutableBytes { recv(fd, $0.baseAddress, $0.count, 0) }
        guard count > 0, var input = connections[fd]?.received else { return drop(fd) }
        input += chunk[..<count]
        var at = 0
        while input.count - at >= FrameHeader.byteCount, connections[fd] != nil {
            let length = input.withUnsafeBytes {
                Int($0.loadUnaligned(fromByteOffset: at, as: UInt32.self))
            }
            guard length <= input.count - at else { break }
            let frame = Array(input[at..<at + length])
            at += length
            frame.withUnsafeBytes { buffer in
                guard let base = buffer.baseAddress else { return }
                guard let header = try? FrameHeader.decode(base) else {
                    seen.invalid.append("frame")
                    return
                }
                handle(fd, header, UnsafeRawBufferPointer(rebasing: buffer[32...]))
            }
        }
        connections[fd]?.received = Array(input[at...])
    }

    private mutating func reply(_ fd: Int32, _ header: FrameHeader, _ message: some WireMessage) {
        guard let opcode = Opcode(rawValue: header.opcode) else { return }
        connections[fd]?.out += FrameHeader(
            opcode: opcode,
            flags: FrameHeader.replyFlag,
            correlation: header.correlation,
            stream: header.stream
        ).frame(body: message.encoded)
    }

    private mutating func refuse(_ fd: Int32, _ header: FrameHeader, _ status: StatusCode) {
        connections[fd]?.out += FrameHeader(
            opcode: .error,
            flags: FrameHeader.replyFlag | FrameHeader.errorFlag,
            correlation: header.correlation,
            status: status
        ).frame(body: Refusal(errorClass: 4, message: "by the stub").encoded)
    }

    private mutating func handle(_ fd: Int32, _ header: FrameHeader, _ body: UnsafeRawBufferPointer)
    {
        switch Opcode(rawValue: header.opcode) {
        case .hello:
            reply(
                fd,
                header,
                HelloReply(
                    version: 1,
                    features: 0,
                    frameBytesMax: 1 << 20,
                    serverID: 1,
                    serverEpoch: 1,
                    shards: []
                )
            )
        case .queueCreate:
            guard let request = try? QueueCreateRequest(body: body) else { return }
            guard queues[request.name] == nil else { return refuse(fd, header, .queueExists) }
            var info = QueueInfo(
                id: nextID,
                name: request.name,
                level: request.level,
                partitionCount: request.partitions,
                createdAt: 0,
                labels: [],
                records: 0,
                bytes: 0,
                partitions: []
            )
            for index in 0..<request.partitions {
                let id = nextID
                nextID += 1
                partitions[id] = Partition(id: id, level: request.level, queue: request.name)
                info.partitions.append(
                    PartitionInfo(
                        id: id,
                        index: index,
                        shard: 0,
                        epoch: 0,
                        startOffset: 0,
                        committedOffset: 0,
                        endOffset: 0,
                        bytes: 0,
                        segmentOffset: 0,
                        segments: 0,
                        records: 0,
                        lostRecords: 0
                    )
                )
            }
            queues[request.name] = info
            seen.liveQueues.append(request.name)
            reply(fd, header, info)
        case .queueDescribe:
            guard let request = try? QueueNameRequest(body: body),
                let info = queues[request.name]
            else { return refuse(fd, header, .queueNotFound) }
            reply(fd, header, info)
        case .queueDelete:
            guard let request = try? QueueNameRequest(body: body),
                queues.removeValue(forKey: request.name) != nil
            else { return refuse(fd, header, .queueNotFound) }
            seen.liveQueues.removeAll { $0 == request.name }
            seen.deletedQueues.append(request.name)
            reply(fd, header, Empty())
        case .producerOpen:
            reply(
                fd,
                header,
                ProducerOpenReply(producerID: nextProducer, epoch: 3, expirySeconds: 60)
            )
            nextProducer += 1
        case .publish: publish(fd, header, body)
        case .subscribe:
            guard let request = try? SubscribeRequest(body: body),
                let info = queues[request.queue]
            else { return refuse(fd, header, .queueNotFound) }
            subscriptions.append(
                Subscription(
                    fd: fd,
                    stream: header.stream,
                    queue: request.queue,
                    credit: request.creditRecords
                )
            )
            reply(
                fd,
                header,
                Assignment(
                    generation: 0,
                    partitions: info.partitions.map {
                        AssignedPartition(
                            partition: $0.id,
                            index: $0.index,
                            epoch: 0,
                            nextOffset: 0
                        )
                    }
                )
            )
        case .credit:
            guard let credit = try? Credit(body: body) else { return }
            seen.credits.append(credit)
            for index in subscriptions.indices where subscriptions[index].fd == fd {
                subscriptions[index].credit = max(subscriptions[index].credit, credit.records)
            }
        default: refuse(fd, header, .unknownOpcode)
        }
    }

    private mutating func publish(
        _ fd: Int32,
        _ header: FrameHeader,
        _ body: UnsafeRawBufferPointer
    ) {
        let number = seen.publishes
        seen.publishes += 1
        guard let base = body.baseAddress, var partition = partitions[header.stream] else {
            seen.invalid.append("partition")
            return refuse(fd, header, .partitionNotFound)
        }
        let status = BatchHeader.check(base, count: body.count)
        guard status == .ok else {
            seen.invalid.append(status.name)
            return refuse(fd, header, status)
        }
        let batch = BatchHeader(at: base)
        if fault == .hangsUpAt(number) { return drop(fd) }
        if fault == .refusesPublish(number) { return refuse(fd, header, .storageFailed) }
        guard batch.producerEpoch == 3,
            partition.sequences[batch.producerID, default: 0] == batch.baseSequence
        else {
            if case .refusesPublish = fault {} else { seen.invalid.append("sequence") }
            return refuse(fd, header, .sequenceGap)
        }
        if seen.timestamps.count < 2000 {
            var reader = RecordReader(batch: base)
            while let record = reader.next() {
                if seen.firstPayload.isEmpty { seen.firstPayload = record.value }
                if let key = record.key { seen.keys.insert(key) }
                seen.timestamps.append(record.timestamp)
            }
        }
        seen.records += batch.recordCount
        partition.sequences[batch.producerID] = batch.baseSequence + UInt64(batch.recordCount)
        let offset = partition.end
        partition.end += UInt64(batch.recordCount)
        partitions[partition.id] = partition

        var level = partition.level
        if case .confirmsAtLevel(let other) = fault { level = other }
        if fault != .confirmsNot(number) {
            for _ in 0..<(fault == .confirmsTwice(number) ? 2 : 1) {
                let entry = ConfirmEntry(
                    correlation: header.correlation,
                    requests: 1,
                    partition: partition.id,
                    epoch: 0,
                    records: UInt32(batch.recordCount),
                    baseOffset: offset,
                    level: level,
                    flags: 0
                )
                extendConfirms(fd, entry, merging: fault == .none)
            }
        }
        let stored = [UInt8](unsafeUninitializedCapacity: 24 + body.count) { buffer, count in
            guard let to = buffer.baseAddress.map(UnsafeMutableRawPointer.init) else { return }
            (to + 24).copyMemory(from: base, byteCount: body.count)
            StoredBatch.stamp(
                to,
                partition: PartitionID(rawValue: partition.id),
                baseOffset: offset,
                appendTime: 0,
                epoch: 0,
                producerChecksum: batch.checksum
            )
            count = 24 + body.count
        }
        for index in subscriptions.indices where subscriptions[index].queue == partition.queue {
            subscriptions[index].waiting.append(
                (partition.id, UInt64(batch.recordCount), stored)
            )
        }
    }

    /// One entry per run of consecutive requests to one partition, as a broker does.
    private mutating func extendConfirms(_ fd: Int32, _ entry: ConfirmEntry, merging: Bool) {
        if merging, var last = connections[fd]?.confirms.last, last.partition == entry.partition,
            last.correlation + UInt64(last.requests) == entry.correlation,
            last.baseOffset + UInt64(last.records) == entry.baseOffset
        {
            last.requests += 1
            last.records += entry.records
            connections[fd]?.confirms.removeLast()
            connections[fd]?.confirms.append(last)
        } else {
            connections[fd]?.confirms.append(entry)
        }
    }

    private mutating func deliver() {
        for index in subscriptions.indices {
            var subscription = subscriptions[index]
            var sentCount = 0
            var frameBody: [UInt8] = []
            var framePartition: UInt32 = 0
            var frameRecords: UInt64 = 0
            func finish(_ serving: inout Serving) {
                guard !frameBody.isEmpty else { return }
                serving.connections[subscription.fd]?.out += FrameHeader(
                    opcode: .deliver,
                    flags: FrameHeader.pushFlag,
                    correlation: subscription.delivered,
                    stream: subscription.stream,
                    argument: framePartition
                ).frame(body: frameBody)
                subscription.delivered += frameRecords
                frameBody = []
                frameRecords = 0
            }
            for item in subscription.waiting {
                let total = subscription.delivered + frameRecords + item.records
                guard total <= subscription.credit else { break }
                sentCount += 1
                deliveries += 1
                if fault == .leavesOutDelivery(deliveries) { continue }
                if item.partition != framePartition || frameBody.count > 100_000 { finish(&self) }
                framePartition = item.partition
                var bytes = item.bytes
                if fault == .flipsDeliveredBit(deliveries) { bytes[bytes.count - 1] ^= 1 }
                frameBody += bytes
                frameRecords += item.records
            }
            finish(&self)
            subscription.waiting.removeFirst(sentCount)
            subscriptions[index] = subscription
        }
    }

    private mutating func flush(_ fd: Int32) {
        guard var out = connections[fd]?.out, let confirms = connections[fd]?.confirms else {
            return
        }
        if !confirms.isEmpty {
            seen.confirmFrames += 1
            var body = [UInt8](repeating: 0, count: confirms.count * ConfirmEntry.byteCount)
            body.withUnsafeMutableBytes { buffer in
                guard let base = buffer.baseAddress else { return }
                for (index, entry) in confirms.enumerated() {
                    entry.encode(at: base + index * ConfirmEntry.byteCount)
                }
            }
            out += FrameHeader(opcode: .confirm, flags: FrameHeader.pushFlag).frame(body: body)
        }
        connections[fd]?.out = []
        connections[fd]?.confirms = []
        var sent = 0
        while sent < out.count {
            var piece = out.count - sent
            if case .dribbles(let bytes) = fault { piece = min(piece, bytes) }
            let count = out[sent..<sent + piece].withUnsafeBytes {
                send(fd, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
            }
            guard count > 0 else { return drop(fd) }
            sent += count
        }
    }
}
