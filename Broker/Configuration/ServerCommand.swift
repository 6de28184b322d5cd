internal import BrokerServer
internal import Configuration
internal import SystemPackage
internal import Yams

/// What a command line of `brokerd` asks for.
package enum ServerCommand: Sendable, Equatable {
    case run(ServerOptions)
    /// Read the data directory, say what is damaged, and end.
    case check(ServerOptions)
    case version
    case help

    /// Merges flags, `MILLRACE_*` variables and the file, in this order of precedence. Anything
    /// unknown, in any of the three, is refused by name: a misspelt limit that is silently ignored
    /// is found out on the worst day.
    package static func parse(
        arguments: [String],
        environment: [String: String]
    ) async throws(UsageError) -> ServerCommand {
        let flags: [String: [String]]
        let checksOnly: Bool
        switch try Flags.parse(arguments) {
        case .help: return .help
        case .version: return .version
        case .values(let values, let only): (flags, checksOnly) = (values, only)
        }
        let variables = environment.filter { $0.key.hasPrefix("MILLRACE_") }
        try refuseUnknown(variables: variables)

        var providers: [any ConfigProvider] = [
            InMemoryProvider(name: "flags", values: values(of: flags)),
            EnvironmentVariablesProvider(environmentVariables: variables)
                .prefixKeys(with: "millrace"),
        ]
        let path = flags[OptionTable.configName]?.last ?? variables["MILLRACE_CONFIG"]
        if let path, let file = try await file(path) { providers.append(file) }
        let options = try options(ConfigReader(providers: providers), flags, variables, path)
        return checksOnly ? .check(options) : .run(options)
    }

    private static func values(of flags: [String: [String]]) -> [AbsoluteConfigKey: ConfigValue] {
        var values: [AbsoluteConfigKey: ConfigValue] = [:]
        for (name, given) in flags {
            guard let option = OptionTable.option(name), let last = given.last else { continue }
            let content: ConfigContent = option.isRepeatable ? .stringArray(given) : .string(last)
            values[AbsoluteConfigKey([name])] = ConfigValue(content, isSecret: false)
        }
        return values
    }

    private static func options(
        _ reader: ConfigReader,
        _ flags: [String: [String]],
        _ variables: [String: String],
        _ path: String?
    ) throws(UsageError) -> ServerOptions {
        var options = ServerOptions()
        for option in OptionTable.options {
            let key = ConfigKey([option.name])
            let values =
                option.isRepeatable
                ? reader.stringArray(forKey: key) : reader.string(forKey: key).map { [$0] }
            guard let values else { continue }
            guard !option.apply(&options, values) else { continue }
            let source =
                if flags[option.name] != nil {
                    "--\(option.name)"
                } else if variables[option.environmentName] != nil {
                    option.environmentName
                } else {
                    "\(option.name) in \(path ?? "the file")"
                }
            throw UsageError(
                "\(source): '\(values.joined(separator: ","))' is not accepted; it takes "
                    + option.range
            )
        }
        return options
    }

    private static func refuseUnknown(variables: [String: String]) throws(UsageError) {
        let known = OptionTable.options.map(\.environmentName) + ["MILLRACE_CONFIG"]
        for name in variables.keys.sorted() where !known.contains(name) {
            throw UsageError(
                "unknown environment variable \(name)" + suggestion(for: name, among: known)
            )
        }
    }

    static func suggestion(for name: String, among known: [String]) -> String {
        if let near = OptionValue.nearest(to: name, among: known) {
            return "; did you mean \(near)?"
        }
        return "; known are \(known.joined(separator: ", "))"
    }

    // MARK: the file

    /// The file as a provider, once every key in it is known to be one of ours: the provider itself
    /// would pass over the others.
    ///
    /// - Returns: `nil` when the file holds nothing but comments.
    private static func file(_ path: String) async throws(UsageError) -> (any ConfigProvider)? {
        guard let text = SystemText.read(path) else {
            throw UsageError("--config \(path): it can't be read")
        }
        do {
            guard try check(text, path) else { return nil }
            return try await FileProvider<YAMLSnapshot>(filePath: FilePath(path))
        } catch let error as UsageError {
            throw error
        } catch {
            throw UsageError("--config \(path): \(error)")
        }
    }

    /// - Returns: whether there is anything in it.
    private static func check(_ text: String, _ path: String) throws -> Bool {
        guard let root = try Yams.compose(yaml: text) else { return false }
        guard let mapping = root.mapping else {
            throw UsageError("\(path): it must be a list of `option: value` lines")
        }
        for (key, value) in mapping {
            let place = "\(path):\(key.mark?.line ?? 0)"
            let name = key.string ?? "?"
            guard let option = OptionTable.option(name) else {
                throw UsageError(
                    "\(place): unknown key \(name)"
                        + suggestion(for: name, among: OptionTable.names)
                )
            }
            if option.isRepeatable {
                guard let items = value.sequence, items.allSatisfy({ $0.scalar != nil }) else {
                    throw UsageError("\(place): \(name) takes a list, one `- value` a line")
                }
            } else {
                guard value.scalar != nil else {
                    throw UsageError("\(place): \(name) takes one value")
                }
            }
        }
        return true
    }
}

/// The command line: `--name value` or `--name=value`.
private enum Flags {
    case help
    case version
    case values([String: [String]], checksOnly: Bool)

    static func parse(_ arguments: [String]) throws(UsageError) -> Flags {
        var values: [String: [String]] = [:]
        var checksOnly = false
        var rest = arguments[...]
        while let argument = rest.popFirst() {
            if argument == "--help" || argument == "-h" { return .help }
            if argument == "--version" { return .version }
            if argument == "--check-only" {
                checksOnly = true
                continue
            }
            guard argument.hasPrefix("--"), argument.count > 2 else {
                throw UsageError("unexpected argument '\(argument)'; options begin with --")
            }
            let parts = argument.dropFirst(2).split(
                separator: "=",
                maxSplits: 1,
                omittingEmptySubsequences: false
            )
            let name = String(parts[0])
            let known = OptionTable.names + [OptionTable.configName]
            guard known.contains(name) else {
                let flags = known.map { "--" + $0 } + ["--check-only", "--version", "--help"]
                throw UsageError(
                    "unknown option --\(name)"
                        + ServerCommand.suggestion(for: "--" + name, among: flags)
                )
            }
            let value: String
            if parts.count == 2 {
                value = String(parts[1])
            } else if let next = rest.popFirst() {
                value = next
            } else {
                throw UsageError("--\(name) needs a value")
            }
            let isRepeatable = OptionTable.option(name)?.isRepeatable ?? false
            guard isRepeatable || values[name] == nil else {
                throw UsageError("--\(name) is given twice")
            }
            values[name, default: []].append(value)
        }
        return .values(values, checksOnly: checksOnly)
    }
}
