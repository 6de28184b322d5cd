// The names of files, to and from text, without a piece of text in between: a start names every
// segment of a directory several times, and there may be tens of thousands.

/// Puts a name together.
struct FileNameWriter {
    // The longest has three numbers of up to 20 digits.
    private var bytes = InlineArray<80, UInt8>(repeating: 0)
    private var count = 0

    /// With leading zeros up to `width` digits; a larger number is longer.
    mutating func put(_ number: UInt64, width: Int) {
        var digits = 1
        var rest = number / 10
        while rest > 0 {
            digits += 1
            rest /= 10
        }
        let end = count + max(width, digits)
        var place = end
        rest = number
        while place > count {
            place -= 1
            bytes[place] = UInt8(ascii: "0") + UInt8(rest % 10)
            rest /= 10
        }
        count = end
    }

    mutating func put(_ text: StaticString) {
        for place in 0..<text.utf8CodeUnitCount {
            bytes[count] = text.utf8Start[place]
            count += 1
        }
    }

    var text: String {
        String(unsafeUninitializedCapacity: count) { buffer in
            for place in 0..<count { buffer[place] = bytes[place] }
            return count
        }
    }
}

/// Takes a name apart from its front. What `FileNameWriter` would not write is refused.
struct FileNameReader {
    private let bytes: UnsafeRawBufferPointer
    private var at = 0

    /// `bytes` must outlive the reader.
    init(_ bytes: UnsafeRawBufferPointer) { self.bytes = bytes }

    mutating func number(width: Int) -> UInt64? {
        let start = at
        var value: UInt64 = 0
        while at < bytes.count, case let digit = bytes[at] &- UInt8(ascii: "0"), digit < 10 {
            let (larger, overflows) = value.multipliedReportingOverflow(by: 10)
            let (sum, carries) = larger.addingReportingOverflow(UInt64(digit))
            guard !overflows, !carries else { return nil }
            value = sum
            at += 1
        }
        let digits = at - start
        guard digits >= width, digits == width || bytes[start] != UInt8(ascii: "0") else {
            return nil
        }
        return value
    }

    mutating func take(_ byte: Unicode.Scalar) -> Bool {
        guard at < bytes.count, bytes[at] == UInt8(ascii: byte) else { return false }
        at += 1
        return true
    }

    /// True when nothing is left but `text`.
    func isRest(_ text: StaticString) -> Bool {
        guard bytes.count - at == text.utf8CodeUnitCount else { return false }
        for place in 0..<text.utf8CodeUnitCount where bytes[at + place] != text.utf8Start[place] {
            return false
        }
        return true
    }
}
