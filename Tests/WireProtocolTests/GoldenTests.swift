import Foundation
import Testing
import WireProtocol

@Suite("golden frames")
struct GoldenTests {
    @Test("a golden frame decodes to the values of its comments", arguments: GoldenFrame.all)
    func decodes(golden: GoldenFrame) throws {
        try withGuardedBytes(golden.stored()) { bytes in
            let base = try #require(bytes.baseAddress)
            let count = try FrameHeader.frameBytes(
                base,
                available: bytes.count,
                frameBytesMax: FrameHeader.defaultFrameBytesMax
            )
            #expect(count == bytes.count)
            let header = try FrameHeader.decode(base)
            #expect(header == golden.header)
            let body = FrameHeader.byteCount + Int(header.tlvBytes)
            #expect([UInt8](bytes[FrameHeader.byteCount..<body]) == golden.fields)
            #expect(try golden.decodes(UnsafeRawBufferPointer(rebasing: bytes[body...])))
        }
    }

    @Test("the values of a golden frame encode to its bytes", arguments: GoldenFrame.all)
    func encodes(golden: GoldenFrame) throws {
        #expect(try golden.header.frame(body: golden.fields + golden.body) == golden.stored())
    }

    @Test("a receiver takes every golden frame but the one with an unknown mandatory field")
    func accepted() throws {
        for golden in GoldenFrame.all {
            let verdict = try withGuardedBytes(golden.stored()) { FrameVerdict.of($0) }
            let expected: FrameVerdict =
                golden.name == "tlv-mandatory-unknown"
                ? .refused(.unknownMandatoryField) : .accepted(golden.header)
            #expect(verdict == expected, "\(golden.name)")
        }
    }

    @Test("every file has its values here, and every opcode a file")
    func complete() throws {
        let files = try FileManager.default.contentsOfDirectory(atPath: GoldenFrame.directory.path)
        #expect(Set(files) == Set(GoldenFrame.all.map { "\($0.name).hex" }))
        #expect(Set(GoldenFrame.all.map(\.header.opcode)) == Set(Opcode.allCases.map(\.rawValue)))
    }
}
