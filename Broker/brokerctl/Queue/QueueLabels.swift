internal import ArgumentParser
internal import WireProtocol

/// `NAME=VALUE`, as `--label` takes it.
struct Label: ExpressibleByArgument {
    let name: String
    let value: String

    init?(argument: String) {
        guard let equals = argument.firstIndex(of: "="), equals > argument.startIndex else {
            return nil
        }
        name = String(argument[..<equals])
        value = String(argument[argument.index(after: equals)...])
        // On the wire an empty value removes a label.
        guard !value.isEmpty else { return nil }
    }

    var pair: Pair { Pair(name: name, value: value) }
}

/// The durability levels by their names.
enum Durability: String, ExpressibleByArgument, CaseIterable {
    case memory
    case written
    case synced

    var level: DurabilityLevel {
        switch self {
        case .memory: .memory
        case .written: .written
        case .synced: .synced
        }
    }
}
