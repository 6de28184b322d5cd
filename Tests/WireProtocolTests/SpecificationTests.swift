import Foundation
import Testing
import WireProtocol

/// The tables of SPEC.md against the code, so that neither changes alone.
@Suite("SPEC.md")
struct SpecificationTests {
    /// The cells of the table rows in section `number`, without back-quotes.
    private func rows(ofSection number: Int) throws -> [[String]] {
        let file = URL(fileURLWithPath: #filePath)
            .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
            .appendingPathComponent("Protocol/SPEC.md")
        let lines = try String(contentsOf: file, encoding: .utf8)
            .split(separator: "\n", omittingEmptySubsequences: false)
        let start = try #require(lines.firstIndex { $0.hasPrefix("## \(number). ") })
        let end = lines[(start + 1)...].firstIndex { $0.hasPrefix("## ") } ?? lines.endIndex
        return lines[start..<end].filter { $0.hasPrefix("|") }.map { line in
            line.dropFirst().dropLast().split(separator: "|", omittingEmptySubsequences: false)
                .map { $0.filter { $0 != "`" }.trimmingCharacters(in: .whitespaces) }
        }
    }

    private func kebab(_ name: String) -> String {
        name.reduce(into: "") { text, character in
            text += (character.isUppercase ? "-" : "") + character.lowercased()
        }
    }

    @Test("the table of opcodes has each with its number")
    func opcodes() throws {
        let told = try rows(ofSection: 3).compactMap { row in
            row[0].hasPrefix("0x") ? "\(row[0].dropFirst(2).uppercased()) \(row[1])" : nil
        }
        let known = Opcode.allCases.map { opcode in
            let digits = String(opcode.rawValue, radix: 16, uppercase: true)
            return String(repeating: "0", count: 4 - digits.count) + digits
                + " " + kebab("\(opcode)")
        }
        #expect(told == known)
    }

    @Test("the table of status codes has each with its name and class")
    func statusCodes() throws {
        let told = try rows(ofSection: 8).compactMap { row in
            UInt16(row[0]).map { "\($0) \(row[1]) \(row[2])" }
        }
        let known = StatusCode.allCases.map {
            "\($0.rawValue) \($0.name) \(kebab("\($0.errorClass)"))"
        }
        #expect(told == known)
    }

    @Test("the table of durability levels has each with its name")
    func levels() throws {
        let told = try rows(ofSection: 6).compactMap { row in
            UInt8(row[0]).map { "\($0) \(row[1])" }
        }
        #expect(told == DurabilityLevel.allCases.map { "\($0.rawValue) \($0.name)" })
    }

    @Test("the list of golden frames has each")
    func goldenFrames() throws {
        let told = try rows(ofSection: 11).dropFirst(2).map { $0[0] }
        #expect(Set(told) == Set(GoldenFrame.all.map(\.name)))
        #expect(told.count == GoldenFrame.all.count)
    }
}
