package import LogStorage

/// The files of a data directory as text that can be reviewed: rows of 32 bytes, those of zeros left
/// out.
///
/// ```
/// # a comment
/// file journal/0000.journal 262144
/// 1000 4d524a47…
/// ```
package struct DirectoryListing {
    package struct ParseError: Error, CustomStringConvertible {
        package var description: String
    }

    package static let rowBytes = 32
    package var files: [(name: FileName, bytes: [UInt8])]

    package init(of disk: SimulatedDisk) {
        files = disk.allNames.map { name in
            (name, disk.bytes(name, at: 0, count: disk.length(name)))
        }
    }

    package init(parsing text: String) throws(ParseError) {
        files = []
        for line in text.split(separator: "\n") where !line.hasPrefix("#") {
            let words = line.split(separator: " ")
            if words.count == 3, words[0] == "file", let length = Int(words[2]) {
                let parts = words[1].split(separator: "/")
                let directory =
                    parts.count == 2 ? StorageDirectory(rawValue: String(parts[0])) : .root
                guard let directory, let last = parts.last,
                    let name = FileName(directory: directory, name: String(last))
                else { throw ParseError(description: "no file of ours: \(line)") }
                files.append((name, [UInt8](repeating: 0, count: length)))
                continue
            }
            guard words.count == 2, let start = Int(words[0], radix: 16), !files.isEmpty else {
                throw ParseError(description: "no row: \(line)")
            }
            let digits = words[1].utf8.compactMap { Character(UnicodeScalar($0)).hexDigitValue }
            guard digits.count == words[1].utf8.count, digits.count % 2 == 0,
                start + digits.count / 2 <= files[files.count - 1].bytes.count
            else { throw ParseError(description: "no bytes of the file: \(line)") }
            for place in 0..<digits.count / 2 {
                files[files.count - 1].bytes[start + place] = UInt8(
                    digits[2 * place] << 4 | digits[2 * place + 1])
            }
        }
    }

    package var text: String {
        var lines: [String] = []
        for (name, bytes) in files {
            lines.append("file \(name.path) \(bytes.count)")
            for start in stride(from: 0, to: bytes.count, by: Self.rowBytes) {
                let row = bytes[start..<min(start + Self.rowBytes, bytes.count)]
                guard row.contains(where: { $0 != 0 }) else { continue }
                let digits = row.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
                lines.append("\(String(start, radix: 16)) \(digits)")
            }
        }
        return lines.joined(separator: "\n") + "\n"
    }

    /// A disk that has these files on stable storage.
    package func disk() throws(StorageFailure) -> SimulatedDisk {
        let disk = SimulatedDisk()
        for (name, bytes) in files {
            var failure: StorageFailure?
            bytes.withUnsafeBytes { source in
                do throws(StorageFailure) { try disk.write(name, at: 0, source) } catch {
                    failure = error
                }
            }
            if let failure { throw failure }
            try disk.sync(name)
        }
        for directory in StorageDirectory.allCases { try disk.syncDirectory(directory) }
        return disk
    }
}
