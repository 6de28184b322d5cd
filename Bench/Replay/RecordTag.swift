internal import BrokerBasics
package import WireProtocol

/// Which record this is: the `number`-th that `producer` sent, counted from 0 over all partitions.
///
/// It travels as a header, so that the value stays the line, byte for byte, and equal lines can
/// still be told apart.
package struct RecordTag: Hashable, Sendable, CustomStringConvertible {
    package static let headerName = "replay"
    private static let byteCount = 12

    package var producer: UInt32
    package var number: UInt64

    package init(producer: UInt32, number: UInt64) {
        self.producer = producer
        self.number = number
    }

    /// - Returns: `nil` unless `record` has the header, once and of the right length.
    package init?(of record: Record) {
        guard record.headers.count == 1, let header = record.headers.first,
            header.name == Self.headerName, header.value.count == Self.byteCount
        else { return nil }
        let parts = header.value.withUnsafeBytes { bytes in
            bytes.baseAddress.map { ($0.u32(0), $0.u64(4)) }
        }
        guard let parts else { return nil }
        (producer, number) = parts
    }

    package var header: Record.Header {
        var builder = ByteBuilder()
        builder.put(producer)
        builder.put(number)
        return Record.Header(name: Self.headerName, value: builder.bytes)
    }

    package var description: String { "producer \(producer) record \(number)" }
}
