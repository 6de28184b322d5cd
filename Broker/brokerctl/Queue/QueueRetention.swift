internal import ArgumentParser
internal import WireProtocol

/// `--retention-bytes`, `--retention-age` and `--retention-records`, as create and alter take them.
struct RetentionOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "Bytes that each partition keeps at least, as 10GiB; 0: no limit.",
            valueName: "size"
        )
    )
    var retentionBytes: ByteSize?
    @Option(
        help: ArgumentHelp(
            "How long each partition keeps records, as 7d or 36h; 0: for ever.",
            valueName: "time"
        )
    )
    var retentionAge: Age?
    @Option(
        help: ArgumentHelp(
            "Records that each partition keeps at least; 0: no limit.",
            valueName: "records"
        )
    )
    var retentionRecords: UInt64?

    var isGiven: Bool {
        retentionBytes != nil || retentionAge != nil || retentionRecords != nil
    }

    func validate() throws {
        guard retentionRecords != .max else {
            throw ValidationError("--retention-records takes a number of records, or 0")
        }
    }

    /// - Parameter absent: what a limit is that is not given.
    func retention(absent: UInt64) -> Retention {
        Retention(
            bytes: retentionBytes?.bytes ?? absent,
            ageMilliseconds: retentionAge?.milliseconds ?? absent,
            records: retentionRecords ?? absent
        )
    }
}

/// `10GiB`, `500MB`, `4096`: a number of bytes.
package struct ByteSize: ExpressibleByArgument, Equatable {
    private static let units: [(suffix: String, scale: UInt64)] = [
        ("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10),
        ("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1000),
        ("B", 1), ("", 1),
    ]
    package var bytes: UInt64

    package init?(argument: String) {
        guard let bytes = ScaledNumber.parse(argument, Self.units), bytes != .max else {
            return nil
        }
        self.bytes = bytes
    }
}

/// `7d`, `36h`, `90s`, `0`: an age that a queue can have.
package struct Age: ExpressibleByArgument, Equatable {
    private static let units: [(suffix: String, scale: UInt64)] = [
        ("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000),
    ]
    package var milliseconds: UInt64

    /// A bare number would be a guess, but for 0.
    package init?(argument: String) {
        guard let time = argument == "0" ? 0 : ScaledNumber.parse(argument, Self.units),
            time == 0 || Retention.ageMillisecondsRange.contains(time)
        else { return nil }
        milliseconds = time
    }
}

private enum ScaledNumber {
    /// Decimal digits and one of the units; `nil` for anything else, and for what is too large.
    static func parse(_ text: String, _ units: [(suffix: String, scale: UInt64)]) -> UInt64? {
        for (suffix, scale) in units where text.hasSuffix(suffix) {
            let digits = text.utf8.dropLast(suffix.utf8.count)
            guard !digits.isEmpty, digits.allSatisfy({ (0x30...0x39).contains($0) }),
                let number = UInt64(String(Substring(digits)))
            else { continue }
            let (product, overflow) = number.multipliedReportingOverflow(by: scale)
            return overflow ? nil : product
        }
        return nil
    }
}
