/// An answer in rows, printed as a table, JSON or CSV from the same cells.
package struct Rows: Sendable {
    package struct Column: Sendable {
        /// The name in JSON and CSV, with the unit at its end.
        package var key: String
        /// The heading in a table.
        package var title: String
        package init(_ key: String, _ title: String? = nil) {
            self.key = key
            self.title = title ?? key.uppercased()
        }
    }

    package var columns: [Column]
    package private(set) var rows: [[Cell]] = []

    package init(_ columns: [Column]) { self.columns = columns }

    /// Adds a row; it has a cell for each column.
    package mutating func append(_ row: [Cell]) {
        var row = row
        while row.count < columns.count { row.append(.none) }
        rows.append(row)
    }

    /// Aligned columns, numbers to the right; the headings alone when there are no rows.
    package var table: String {
        var widths = columns.map(\.title.count)
        let texts = rows.map { $0.map(\.human) }
        for row in texts {
            for (index, text) in row.enumerated() where index < widths.count {
                widths[index] = max(widths[index], text.count)
            }
        }
        var lines = [line(columns.map(\.title), widths)]
        lines += texts.map { line($0, widths) }
        return lines.map { $0 + "\n" }.joined()
    }

    private func line(_ texts: [String], _ widths: [Int]) -> String {
        var line = ""
        for (index, text) in texts.enumerated() where index < widths.count {
            let space = String(repeating: " ", count: max(0, widths[index] - text.count))
            let isRight = rows.contains { $0[index].isNumber }
            if index > 0 { line += "  " }
            line += isRight ? space + text : text + space
        }
        while line.last == " " { line.removeLast() }
        return line
    }

    /// One object per row.
    package var json: JSONValue {
        .array(
            rows.map { row in
                .object(zip(columns, row).map { ($0.key, $1.json) })
            }
        )
    }

    package var csv: String {
        let lines =
            [columns.map { CSVText.cell($0.key) }] + rows.map { $0.map { CSVText.cell($0.plain) } }
        return lines.map { $0.joined(separator: ",") + "\r\n" }.joined()
    }
}

/// An answer about one thing: its facts, and the rows that belong to it.
package struct Report: Sendable {
    package var facts: [(column: Rows.Column, cell: Cell)]
    /// The name of the rows in JSON.
    package var rowsKey: String?
    package var rows: Rows?

    package init(
        facts: [(column: Rows.Column, cell: Cell)],
        rowsKey: String? = nil,
        rows: Rows? = nil
    ) {
        self.facts = facts
        self.rowsKey = rowsKey
        self.rows = rows
    }

    package var table: String {
        let width = facts.map(\.column.title.count).max() ?? 0
        var text = ""
        for (column, cell) in facts {
            let space = String(repeating: " ", count: width - column.title.count)
            text += "\(column.title)\(space)  \(cell.human)\n"
        }
        if let rows { text += (text.isEmpty ? "" : "\n") + rows.table }
        return text
    }

    /// One object; the rows are an array in it.
    package var json: JSONValue {
        var members = facts.map { ($0.column.key, $0.cell.json) }
        if let rows, let rowsKey { members.append((rowsKey, rows.json)) }
        return .object(members)
    }

    /// The rows, or where there are none one row of the facts.
    package var csv: String {
        if let rows { return rows.csv }
        var single = Rows(facts.map(\.column))
        single.append(facts.map(\.cell))
        return single.csv
    }
}

/// An answer in several tables.
package struct Tables: Sendable {
    /// Each with its name in JSON.
    package var tables: [(key: String, rows: Rows)]
    /// The one that CSV has, which takes no more.
    package var csvKey: String

    package init(tables: [(key: String, rows: Rows)], csvKey: String) {
        self.tables = tables
        self.csvKey = csvKey
    }

    /// One below the other; those without rows are left away, but for the first.
    package var table: String {
        tables.enumerated().filter { $0.offset == 0 || !$0.element.rows.rows.isEmpty }
            .map(\.element.rows.table).joined(separator: "\n")
    }

    /// One object of arrays.
    package var json: JSONValue { .object(tables.map { ($0.key, $0.rows.json) }) }

    package var csv: String { tables.first { $0.key == csvKey }?.rows.csv ?? "" }
}

extension OutputFormat {
    /// Prints an answer in this format, and to the end.
    func print(_ rows: Rows) throws(Failure) { try print(rows.table, rows.json, rows.csv) }
    func print(_ tables: Tables) throws(Failure) {
        try print(tables.table, tables.json, tables.csv)
    }
    func print(_ report: Report) throws(Failure) {
        try print(report.table, report.json, report.csv)
    }

    private func print(
        _ table: @autoclosure () -> String,
        _ json: @autoclosure () -> JSONValue,
        _ csv: @autoclosure () -> String
    ) throws(Failure) {
        var output = StandardOutput()
        switch self {
        case .table: output.write(table())
        case .csv: output.write(csv())
        case .json:
            let value = json()
            output.append { JSONText.append(value, indent: 0, to: &$0) }
            output.write("\n")
        }
        try output.flush()
    }
}
