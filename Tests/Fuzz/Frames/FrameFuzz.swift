internal import BrokerBasics
internal import FuzzInput
internal import WireProtocol

/// Everything that turns bytes of a connection into values.
///
/// The first byte of an input says what the rest is; where checksums would stop everything, lengths
/// and checksums are made right.
///
/// | first byte, mod 9 | the rest |
/// |---|---|
/// | 0 | a frame as a receiver sees it, with all that its opcode says is in it |
/// | 1 | the same, length and checksum made right |
/// | 2 | the number of a message, then its body |
/// | 3 | a producer's batch |
/// | 4 | the same, length and checksum made right |
/// | 5 | a stored batch: what is read from a disk or delivered |
/// | 6 | the same, length and both checksums made right |
/// | 7 | choices of which records are made, put into a batch and read again |
/// | 8 | bytes whose checksum is taken in every way there is |
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzFrames(_ bytes: UnsafePointer<UInt8>, _ count: Int) -> CInt {
    withTimeLimit { workOn(bytes, count) }
    return 0
}

private func workOn(_ bytes: UnsafePointer<UInt8>, _ count: Int) {
    var input = InputReader(bytes, count: count)
    switch input.choice(9) {
    case 0: withCopy(of: input.rest()) { receive(UnsafeRawBufferPointer($0)) }
    case 1:
        withCopy(of: input.rest()) { frame in
            guard frame.count >= FrameHeader.byteCount, let base = frame.baseAddress else { return }
            var header = FrameHeader(at: UnsafeRawPointer(base))
            header.frameBytes = UInt32(frame.count)
            header.version = FrameHeader.version
            header.flags &= FrameHeader.replyFlag | FrameHeader.errorFlag | FrameHeader.pushFlag
            guard Int(header.tlvBytes) <= header.bodyBytes else { return }
            header.encode(at: base)
            receive(UnsafeRawBufferPointer(frame))
        }
    case 2:
        let number = input.choice(messages.count)
        withCopy(of: input.rest()) { messages[number](UnsafeRawBufferPointer($0)) }
    case 3: withCopy(of: input.rest()) { checkBatch(UnsafeRawBufferPointer($0)) }
    case 4:
        withCopy(of: input.rest()) { batch in
            sealBatch(batch)
            checkBatch(UnsafeRawBufferPointer(batch))
        }
    case 5: withCopy(of: input.rest()) { verifyStored(UnsafeRawBufferPointer($0), partition: 1) }
    case 6:
        withCopy(of: input.rest()) { stored in
            sealStored(stored, partition: 1)
            verifyStored(UnsafeRawBufferPointer(stored), partition: 1)
        }
    case 7: buildAndRead(&input)
    default: withCopy(of: input.rest()) { checksums(UnsafeRawBufferPointer($0)) }
    }
}

/// Reads as a receiver does: length, header, optional fields, then what the opcode says.
private func receive(_ bytes: UnsafeRawBufferPointer) {
    guard let base = bytes.baseAddress else { return }
    let header: FrameHeader
    do throws(FrameError) {
        guard
            let count = try FrameHeader.frameBytes(
                base, available: bytes.count, frameBytesMax: FrameHeader.defaultFrameBytesMax),
            count <= bytes.count
        else { return }
        header = try FrameHeader.decode(base)
    } catch {
        return
    }
    let frame = UnsafeRawBufferPointer(rebasing: bytes[..<Int(header.frameBytes)])
    withCopy(of: frame) { copy in
        guard let place = copy.baseAddress else { return }
        header.encode(at: place)
        invariant(
            frame.elementsEqual(copy), "a header is not written as it was read: \(header)")
    }
    let tlvEnd = FrameHeader.byteCount + Int(header.tlvBytes)
    guard
        OptionalFields.check(
            UnsafeRawBufferPointer(rebasing: frame[FrameHeader.byteCount..<tlvEnd]))
            == .ok
    else { return }
    let body = UnsafeRawBufferPointer(rebasing: frame[tlvEnd...])
    switch Opcode(rawValue: header.opcode) {
    case nil: return
    case .publish where !header.isReply: checkBatch(body)
    case .deliver where !header.isReply: verifyStored(body, partition: header.argument)
    case .confirm: checkConfirms(body)
    case let opcode?:
        guard header.flags & FrameHeader.errorFlag == 0 else {
            roundTrip(Refusal.self, body)
            return
        }
        receive(opcode, isRequest: header.flags == 0, body)
    }
}

private func receive(_ opcode: Opcode, isRequest: Bool, _ body: UnsafeRawBufferPointer) {
    switch opcode {
    case .hello:
        if isRequest {
            roundTrip(HelloRequest.self, body)
        } else {
            roundTrip(HelloReply.self, body)
        }
    case .queueCreate:
        if isRequest {
            roundTrip(QueueCreateRequest.self, body)
        } else {
            roundTrip(QueueInfo.self, body)
        }
    case .queueAlter: roundTrip(QueueAlterRequest.self, body)
    case .queueMove:
        if isRequest {
            roundTrip(QueueMoveRequest.self, body)
        } else {
            roundTrip(QueueMoveReply.self, body)
        }
    case .queuePurge: roundTrip(QueuePurgeRequest.self, body)
    case .skipped: roundTrip(Skipped.self, body)
    case .queueDelete, .queueDescribe: roundTrip(QueueNameRequest.self, body)
    case .queueList:
        if isRequest {
            roundTrip(QueueListRequest.self, body)
        } else {
            roundTrip(QueueListReply.self, body)
        }
    case .producerOpen:
        if isRequest {
            roundTrip(ProducerOpenRequest.self, body)
        } else {
            roundTrip(ProducerOpenReply.self, body)
        }
    case .subscribe:
        if isRequest {
            roundTrip(SubscribeRequest.self, body)
        } else {
            roundTrip(Assignment.self, body)
        }
    case .credit: roundTrip(Credit.self, body)
    case .ack: roundTrip(Ack.self, body)
    case .assignment: roundTrip(Assignment.self, body)
    case .ended, .error: roundTrip(Refusal.self, body)
    case .groupDescribe:
        if isRequest {
            roundTrip(GroupDescribeRequest.self, body)
        } else {
            roundTrip(GroupInfo.self, body)
        }
    case .groupList:
        if isRequest {
            roundTrip(GroupListRequest.self, body)
        } else {
            roundTrip(GroupListReply.self, body)
        }
    case .serverDescribe: roundTrip(ServerDescription.self, body)
    case .shardList: roundTrip(ShardListReply.self, body)
    case .storageDescribe:
        if isRequest {
            roundTrip(StorageDescribeRequest.self, body)
        } else {
            roundTrip(StorageReply.self, body)
        }
    case .backup:
        if isRequest {
            roundTrip(BackupRequest.self, body)
        } else {
            roundTrip(BackupReply.self, body)
        }
    case .storageVerify:
        if isRequest {
            roundTrip(StorageVerifyRequest.self, body)
        } else {
            roundTrip(StorageVerifyReply.self, body)
        }
    case .ping, .goodbye, .unsubscribe, .publish, .confirm, .deliver: roundTrip(Empty.self, body)
    }
}

/// Every message, so that none is out of reach behind a frame.
private let messages: [@Sendable (UnsafeRawBufferPointer) -> Void] = [
    { roundTrip(Ack.self, $0) }, { roundTrip(AssignedPartition.self, $0) },
    { roundTrip(Assignment.self, $0) }, { roundTrip(Credit.self, $0) },
    { roundTrip(Empty.self, $0) }, { roundTrip(GroupCursor.self, $0) },
    { roundTrip(GroupDescribeRequest.self, $0) }, { roundTrip(GroupInfo.self, $0) },
    { roundTrip(GroupListReply.self, $0) }, { roundTrip(GroupListRequest.self, $0) },
    { roundTrip(HelloReply.self, $0) }, { roundTrip(HelloRequest.self, $0) },
    { roundTrip(Pair.self, $0) }, { roundTrip(PartitionInfo.self, $0) },
    { roundTrip(ProducerOpenReply.self, $0) }, { roundTrip(ProducerOpenRequest.self, $0) },
    { roundTrip(QueueAlterRequest.self, $0) }, { roundTrip(QueueCreateRequest.self, $0) },
    { roundTrip(QueueInfo.self, $0) }, { roundTrip(QueueListReply.self, $0) },
    { roundTrip(QueueListRequest.self, $0) }, { roundTrip(QueueNameRequest.self, $0) },
    { roundTrip(QueuePurgeRequest.self, $0) }, { roundTrip(Retention.self, $0) },
    { roundTrip(Skipped.self, $0) }, { roundTrip(Refusal.self, $0) },
    { roundTrip(ServerDescription.self, $0) }, { roundTrip(ShardListReply.self, $0) },
    { roundTrip(ShardAddress.self, $0) }, { roundTrip(SubscribeRequest.self, $0) },
    { checkConfirms($0) }, { checkFields($0) },
    { roundTrip(StorageDescribeRequest.self, $0) }, { roundTrip(StorageReply.self, $0) },
    { roundTrip(StorageVerifyRequest.self, $0) }, { roundTrip(StorageVerifyReply.self, $0) },
    { roundTrip(BackupRequest.self, $0) }, { roundTrip(BackupReply.self, $0) },
]

/// Optional fields that are in order can be looked up, whichever is asked for.
private func checkFields(_ bytes: UnsafeRawBufferPointer) {
    guard OptionalFields.check(bytes) == .ok else { return }
    for number in [OptionalFields.traceContext, OptionalFields.confirmLevel, 3] {
        guard let value = OptionalFields.find(number, in: bytes) else { continue }
        let again = OptionalFields.encode(number, isMandatory: false, [UInt8](value))
        let isFound = again.withUnsafeBytes { fields in
            OptionalFields.find(number, in: fields)?.elementsEqual(value) ?? false
        }
        invariant(isFound, "optional field \(number) is not found in what was written")
    }
}

/// What can be read is written so that it reads the same again.
private func roundTrip<Message: WireMessage>(_: Message.Type, _ body: UnsafeRawBufferPointer) {
    guard let message = try? Message(body: body) else { return }
    let encoded = message.encoded
    let again = try? Message(body: encoded)
    invariant(again == message, "\(message) is read again as \(String(describing: again))")
}

private func checkConfirms(_ body: UnsafeRawBufferPointer) {
    var at = 0
    while let base = body.baseAddress, body.count - at >= ConfirmEntry.byteCount {
        let entry = ConfirmEntry(at: base + at)
        withUnsafeTemporaryAllocation(byteCount: ConfirmEntry.byteCount, alignment: 8) { room in
            guard let place = room.baseAddress else { return }
            entry.encode(at: place)
            let again = ConfirmEntry(at: UnsafeRawPointer(place))
            invariant(again == entry, "\(entry) is read again as \(again)")
        }
        at += ConfirmEntry.byteCount
    }
}

/// Each way to take a checksum gives the same, over any split of the bytes.
private func checksums(_ bytes: UnsafeRawBufferPointer) {
    let whole = CRC32C.of(bytes)
    invariant(whole == CRC32C.portable(0, bytes), "checksum and table differ")
    invariant(whole == CRC32C.inLanes(0, bytes), "checksum and lanes differ")
    guard let base = bytes.baseAddress, let first = bytes.first else { return }
    let cut = Int(first) % (bytes.count + 1)
    let split = CRC32C.extend(
        CRC32C.extend(0, base, count: cut), base + cut, count: bytes.count - cut)
    invariant(split == whole, "a checksum in two parts differs")
}
