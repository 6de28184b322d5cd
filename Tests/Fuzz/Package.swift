// swift-tools-version: 6.2
import PackageDescription

// A package of its own, so that nothing else is instrumented for fuzzing, and `make test` builds as
// before: the pure modules once more, through the link `repository`, and a program per target. It
// needs no other package.

let house: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .treatAllWarnings(as: .error),
]

// What is fuzzed: its coverage leads the way, and every access to memory is checked. Comparisons are
// not reported: an input is made of choices, not of values to be guessed, and reporting them took a
// fifth of the time. `-sanitize=fuzzer` would report them, whatever else is asked for.
let fuzzed: [SwiftSetting] = [
    .unsafeFlags([
        "-sanitize=address",
        "-sanitize-coverage=edge,indirect-calls,inline-8bit-counters,pc-table",
    ])
]
// What stands around it, the simulator first: where an input leads there is of no interest, and
// counting it costs time.
let around: [SwiftSetting] = [.unsafeFlags(["-sanitize=address"])]
let inC: [CSetting] = [.unsafeFlags(["-fsanitize=address"])]

func library(
    _ name: String,
    _ path: String,
    uses: [Target.Dependency] = [],
    exclude: [String] = [],
    settings: [SwiftSetting] = fuzzed
) -> Target {
    .target(
        name: name,
        dependencies: uses,
        path: path,
        exclude: exclude,
        swiftSettings: house + settings
    )
}
/// `main` is libFuzzer's.
func fuzzTarget(
    _ name: String,
    _ path: String,
    uses: [Target.Dependency],
    settings: [SwiftSetting] = around
) -> Target {
    .executableTarget(
        name: name,
        dependencies: uses,
        path: path,
        swiftSettings: house + settings + [.unsafeFlags(["-parse-as-library"])],
        linkerSettings: [.unsafeFlags(["-sanitize=fuzzer,address"])]
    )
}

let package = Package(
    name: "fuzz",
    targets: [
        // As in the Package.swift of the repository.
        .target(name: "CChecksum", path: "repository/Protocol/CChecksum", cSettings: inC),
        .target(name: "CProcessor", path: "repository/Protocol/CProcessor", cSettings: inC),
        library(
            "BrokerBasics", "repository/Protocol/Basics", uses: ["CChecksum", "CProcessor"]),
        library("WireProtocol", "repository/Protocol/Wire", uses: ["BrokerBasics"]),
        library(
            "LogStorage",
            "repository/Broker/Log",
            uses: ["BrokerBasics", "WireProtocol"],
            exclude: ["README.md"]
        ),
        library(
            "BrokerCore",
            "repository/Broker/Core",
            uses: ["BrokerBasics", "WireProtocol", "LogStorage"]
        ),
        library(
            "BrokerShard",
            "repository/Broker/Shard",
            uses: ["BrokerBasics", "WireProtocol", "LogStorage", "BrokerCore"]
        ),
        library(
            "BrokerTestSupport",
            "repository/Tests/Support",
            uses: ["BrokerBasics", "WireProtocol", "LogStorage", "BrokerCore", "BrokerShard"],
            settings: around
        ),

        library("FuzzInput", "Input", uses: ["BrokerBasics"], settings: around),
        library(
            "FuzzDirectory",
            "Directory",
            uses: [
                "BrokerBasics", "WireProtocol", "LogStorage", "BrokerCore", "BrokerShard",
                "BrokerTestSupport", "FuzzInput",
            ],
            settings: around
        ),
        // What is inlined into it is what it fuzzes.
        fuzzTarget(
            "fuzz-frames",
            "Frames",
            uses: ["BrokerBasics", "WireProtocol", "FuzzInput"],
            settings: fuzzed
        ),
        fuzzTarget(
            "fuzz-connections",
            "Connections",
            uses: [
                "BrokerBasics", "WireProtocol", "LogStorage", "BrokerShard", "BrokerTestSupport",
                "FuzzInput",
            ]
        ),
        fuzzTarget(
            "fuzz-journal",
            "Journal",
            uses: [
                "BrokerBasics", "LogStorage", "BrokerTestSupport", "FuzzInput", "FuzzDirectory",
            ]
        ),
        fuzzTarget(
            "fuzz-segments",
            "Segments",
            uses: [
                "BrokerBasics", "LogStorage", "BrokerTestSupport", "FuzzInput", "FuzzDirectory",
            ]
        ),
    ]
)
