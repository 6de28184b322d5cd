internal import BrokerBasics
internal import FuzzInput
internal import WireProtocol

/// A frame whose lengths and checksums are right, and whose fields are what an input says.
struct FrameChoice {
    var bytes: [UInt8]
    var correlation: UInt64
    /// A reply or a confirm with its correlation id must come, as long as the connection lasts.
    var isAnswered: Bool

    private static let names = ["q", "m", "w", "n", "o", "", ".", "q/g"]

    init(_ input: inout InputReader, correlation: UInt64) {
        self.correlation = correlation
        let form = input.choice(25)
        var stream = UInt32(input.choice(8))
        var opcode = Opcode.ping
        var body: [UInt8] = []
        var number: UInt16?
        // An ack's answer may stand for several, and credit has none.
        var isAnswered = true
        switch form {
        case 0:
            opcode = .hello
            body =
                HelloRequest(
                    versionMin: UInt8(input.choice(3)), versionMax: UInt8(input.choice(3)),
                    features: input.number(), frameBytesMax: UInt32(4000 + input.choice(200)),
                    clientName: Self.name(&input)
                ).encoded
        case 1:
            opcode = .queueCreate
            var request = QueueCreateRequest(
                name: Self.name(&input), partitions: UInt32(input.choice(10)), level: .synced,
                labels: Self.labels(&input), retention: Self.retention(&input))
            request.level = UInt8(input.choice(4))
            body = request.encoded
        case 2:
            opcode = .queueAlter
            body =
                QueueAlterRequest(
                    name: Self.name(&input),
                    level: UInt8(255 - input.choice(2) * input.choice(256)),
                    labels: Self.labels(&input)
                ).encoded
        case 3:
            opcode = .queueDelete
            body = QueueNameRequest(name: Self.name(&input)).encoded
        case 4:
            opcode = .queueDescribe
            body = QueueNameRequest(name: Self.name(&input)).encoded
        case 5:
            opcode = .queueList
            body =
                QueueListRequest(
                    after: Self.name(&input), limit: UInt32(truncatingIfNeeded: input.number())
                ).encoded
        case 6:
            opcode = .producerOpen
            body = ProducerOpenRequest(name: Self.name(&input)).encoded
        case 7...12:
            opcode = .publish
            body = Self.batch(&input)
        case 13, 14:
            opcode = .subscribe
            body = Self.subscribe(&input)
        case 15:
            opcode = .unsubscribe
        case 16:
            opcode = .credit
            body = Credit(records: input.number(), bytes: input.number()).encoded
            isAnswered = false
        case 17:
            opcode = .ack
            body =
                Ack(
                    partition: UInt32(input.choice(6)), epoch: UInt32(input.choice(3)),
                    offset: input.number()
                ).encoded
            isAnswered = false
        case 18:
            opcode = .groupDescribe
            body =
                GroupDescribeRequest(queue: Self.name(&input), group: Self.name(&input)).encoded
        case 19:
            opcode = .groupList
            body =
                GroupListRequest(
                    queue: Self.name(&input), after: Self.name(&input),
                    limit: UInt32(truncatingIfNeeded: input.number())
                ).encoded
        case 20:
            opcode = .serverDescribe
        case 21:
            number = input.u16()
            body = input.bytes()
            isAnswered = false
        case 22:
            opcode = Opcode.allCases[input.choice(Opcode.allCases.count)]
            body = input.bytes()
            stream = input.u32()
            isAnswered = false
        case 23:
            opcode = .queuePurge
            body =
                QueuePurgeRequest(
                    name: Self.name(&input),
                    partition: input.choice(2) == 0
                        ? .all : PartitionID(rawValue: UInt32(input.choice(8))),
                    before: input.choice(2) == 0 ? UInt64(input.u8()) : input.number()
                ).encoded
        default: break
        }
        let extra = input.u8()
        // Bytes behind the last field are ignored, those cut off are missed.
        if extra & 15 == 1 { body += input.bytes() }
        if extra & 15 == 2 { body.removeLast(min(body.count, 1 + input.choice(8))) }
        var fields: [UInt8] = []
        if extra & 15 == 3 {
            fields = input.bytes()
            isAnswered = false
        }
        if extra & 15 == 7, opcode == .publish {
            fields = OptionalFields.encode(
                OptionalFields.confirmLevel, isMandatory: input.choice(2) == 0,
                [UInt8(input.choice(4))])
        }
        var header = FrameHeader(
            opcode: opcode, correlation: correlation, stream: stream,
            argument: extra & 15 == 4 ? input.u32() : 0, tlvBytes: UInt16(fields.count))
        if let number { header.opcode = number }
        if extra & 15 == 5 {
            header.flags = UInt8(input.choice(8))
            isAnswered = false
        }
        if extra & 15 == 6 {
            header.correlation = input.number()
            isAnswered = false
        }
        bytes = header.frame(body: fields + body)
        self.isAnswered = isAnswered
    }

    private static func name(_ input: inout InputReader) -> String {
        let choice = input.choice(names.count + 1)
        return choice < names.count
            ? names[choice] : String(decoding: input.bytes(), as: UTF8.self)
    }

    private static func labels(_ input: inout InputReader) -> [Pair] {
        (0..<input.choice(4)).map { _ in Pair(name: name(&input), value: name(&input)) }
    }

    private static func retention(_ input: inout InputReader) -> Retention {
        guard input.choice(3) == 0 else { return .keepAll }
        return Retention(
            bytes: UInt64(input.choice(3)) * 4096, ageMilliseconds: UInt64(input.choice(3)) * 1000,
            records: input.choice(4) == 0 ? input.number() : 0)
    }

    private static func subscribe(_ input: inout InputReader) -> [UInt8] {
        let start: StartPosition =
            switch input.choice(6) {
            case 0: .end
            case 1: .offset(UInt64(input.u8()))
            case 2: .offset(input.number())
            case 3: .time(1_700_000_000_000_000_000 + input.number() % 1_000_000_000)
            case 4: .time(input.number())
            default: .start
            }
        let groups = ["", "g", "h", "-"]
        let partition = input.choice(8)
        return SubscribeRequest(
            queue: name(&input), group: groups[input.choice(groups.count)], start: start,
            partition: partition > 5 ? .all : PartitionID(rawValue: UInt32(partition)),
            creditRecords: input.choice(4) == 0 ? input.number() : .max,
            creditBytes: input.choice(4) == 0 ? input.number() : .max
        ).encoded
    }

    /// A batch whose checksum is right; records, numbers and header are as the input says.
    private static func batch(_ input: inout InputReader) -> [UInt8] {
        let form = input.u8()
        var builder = BatchBuilder()
        let filler = Int(form >> 4) * 250
        for _ in 0...Int(form & 7) {
            var record = Record(
                value: [UInt8](repeating: form, count: filler / (1 + Int(form & 7))), timestamp: 1)
            if form & 8 != 0 {
                record.key = input.bytes(max: 16)
                record.timestamp = input.number()
            }
            _ = builder.append(record)
        }
        let producer = input.choice(6)
        var batch = builder.finish(
            producer: ProducerID(rawValue: producer == 5 ? input.number() : UInt64(producer)),
            epoch: UInt16(input.choice(4)),
            sequence: input.choice(8) == 7 ? input.number() : UInt64(input.choice(16)))
        guard input.choice(8) == 7 else { return batch }
        // One byte is another one.
        let place = input.place(batch.count)
        let value = input.u8()
        batch.withUnsafeMutableBytes { bytes in
            bytes[place] = value
            guard let base = bytes.baseAddress else { return }
            base.put(CRC32C.extend(0, UnsafeRawPointer(base) + 8, count: bytes.count - 8), 4)
        }
        return batch
    }
}
