import BrokerBasics
import Testing
import WireProtocol

@Suite("frames from a hostile or broken peer")
struct HostileFrameTests {
    @Test("a frame that is cut anywhere is incomplete", arguments: GoldenFrame.all)
    func truncated(golden: GoldenFrame) throws {
        let frame = try golden.stored()
        for count in 0..<frame.count {
            let verdict = withGuardedBytes([UInt8](frame[..<count])) { FrameVerdict.of($0) }
            #expect(verdict == .incomplete, "\(count) of \(frame.count) bytes")
        }
    }

    @Test("a flipped bit never passes, whatever follows the frame", arguments: GoldenFrame.all)
    func flipped(golden: GoldenFrame) throws {
        let frame = try golden.stored()
        let inBatches =
            golden.header.opcode == Opcode.publish.rawValue
            || golden.header.opcode == Opcode.deliver.rawValue
        let firstBatchBit = (FrameHeader.byteCount + Int(golden.header.tlvBytes)) * 8
        for bit in 0..<frame.count * 8 {
            var flipped = frame
            flipped[bit / 8] ^= 1 << UInt8(bit % 8)
            // A frame that claims to be longer takes what follows for its own.
            if bit < 32 { flipped += [UInt8](repeating: 0, count: 1 << 20) }
            switch withGuardedBytes(flipped, { FrameVerdict.of($0) }) {
            case .incomplete:
                Issue.record("bit \(bit): the frame is whole, and what follows it is there")
            case .broken(let error):
                #expect(error.status != .ok && error.status.errorClass == .fatal)
                #expect(
                    bit < firstBatchBit || !inBatches, "bit \(bit): the header vouches for itself")
            case .refused(let status):
                #expect(inBatches && bit >= firstBatchBit, "bit \(bit): \(status)")
                #expect(status != .ok)
            case .accepted(let header):
                Issue.record("bit \(bit) flipped, accepted as \(header)")
            }
        }
    }

    @Test("a flipped bit in the length waits for more when no more is there")
    func flippedLength() throws {
        let frame = FrameHeader(opcode: .ping, correlation: 1).frame(body: [])
        var longer = frame
        longer[1] ^= 1
        #expect(withGuardedBytes(longer) { FrameVerdict.of($0) } == .incomplete)
        var huge = frame
        huge[3] ^= 0x80
        let limit = FrameHeader.defaultFrameBytesMax
        #expect(
            withGuardedBytes(huge) { FrameVerdict.of($0) }
                == .broken(.tooLarge(frameBytes: 0x8000_0020, limitBytes: limit))
        )
    }

    @Test("frame_bytes is 32 at least and the limit at most, told from four bytes")
    func lengths() {
        func verdict(_ frameBytes: UInt32) -> FrameVerdict {
            var builder = ByteBuilder()
            builder.put(frameBytes)
            return withGuardedBytes(builder.bytes) { FrameVerdict.of($0, frameBytesMax: 4096) }
        }
        #expect(verdict(0) == .broken(.tooShort(frameBytes: 0)))
        #expect(verdict(31) == .broken(.tooShort(frameBytes: 31)))
        #expect(verdict(32) == .incomplete)
        #expect(verdict(4096) == .incomplete)
        #expect(verdict(4097) == .broken(.tooLarge(frameBytes: 4097, limitBytes: 4096)))
        #expect(verdict(.max) == .broken(.tooLarge(frameBytes: .max, limitBytes: 4096)))
    }

    /// A ping whose header `change` has altered, with a checksum that fits.
    private func altered(_ change: (inout FrameHeader) -> Void) -> FrameVerdict {
        var header = FrameHeader(opcode: .ping, correlation: 9)
        change(&header)
        return withGuardedBytes(header.frame(body: [])) { FrameVerdict.of($0) }
    }

    @Test("a good checksum does not excuse a wrong version, reserved flag, length or opcode")
    func fields() {
        #expect(altered { $0.version = 2 } == .broken(.version(2)))
        #expect(altered { $0.version = 0 } == .broken(.version(0)))
        for bit in 3..<8 {
            let flags = UInt8(1) << UInt8(bit)
            #expect(altered { $0.flags = flags } == .broken(.reservedFlags(flags)))
        }
        #expect(altered { $0.opcode = 0x0601 } == .refused(.unknownOpcode))
        var tlv = FrameHeader(opcode: .ping).frame(body: [])
        tlv[26] = 1
        #expect(withGuardedBytes(tlv) { FrameVerdict.of($0) } == .broken(.fields))
    }

    @Test("each error of a frame has its status")
    func statuses() {
        #expect(FrameError.tooShort(frameBytes: 1).status == .badFrame)
        #expect(FrameError.tooLarge(frameBytes: 2, limitBytes: 1).status == .frameTooLarge)
        #expect(FrameError.checksum.status == .badChecksum)
        #expect(FrameError.version(2).status == .unsupportedVersion)
        #expect(FrameError.reservedFlags(8).status == .badFrame)
        #expect(FrameError.fields.status == .badFrame)
    }

    @Test("the checksum leaves out the batches of publish and deliver, but not of a reply")
    func coverage() {
        for opcode in Opcode.allCases {
            for flags in [0, FrameHeader.replyFlag] {
                let header = FrameHeader(opcode: opcode, flags: flags, tlvBytes: 4)
                let body: [UInt8] = [5, 0, 0, 0, 9]
                let frame = header.frame(body: body)
                var covered = [UInt8](frame[..<28])
                let bare = (opcode == .publish || opcode == .deliver) && flags == 0
                #expect(opcode.carriesBatches == (opcode == .publish || opcode == .deliver))
                covered += bare ? [UInt8](body[..<4]) : body
                let checksum = covered.withUnsafeBytes { CRC32C.portable(0, $0) }
                frame.withUnsafeBytes { bytes in
                    #expect(bytes.baseAddress?.u32(28) == checksum, "\(opcode), flags \(flags)")
                }
            }
        }
    }

    @Test("random bytes are never a frame, and never read past their end")
    func random() {
        var random = SeededRandom(seed: 0x5EED_0001)
        for _ in 0..<4000 {
            var bytes = (0..<32 + random.below(200)).map { _ in
                UInt8(truncatingIfNeeded: random.next())
            }
            // Half of them with a length that fits, so that the checks behind it are reached.
            if random.chance(1, in: 2) {
                bytes.replaceSubrange(0..<4, with: [UInt8(bytes.count & 0xFF), 0, 0, 0])
            }
            let verdict = withGuardedBytes(bytes) { FrameVerdict.of($0) }
            if case .accepted = verdict { Issue.record("accepted \(bytes)") }
        }
    }
}
