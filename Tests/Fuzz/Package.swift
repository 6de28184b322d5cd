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

func library(
    _ name: String,
    _ path: String,
    uses: [Target.Dependency] = [],
    exclude: [String] = []
) -> Target {
    .target(name: name, dependencies: uses, path: path, exclude: exclude, swiftSettings: house)
}
/// `main` is libFuzzer's.
func fuzzTarget(_ name: String, _ path: String, uses: [Target.Dependency]) -> Target {
    .executableTarget(
        name: name,
        dependencies: uses,
        path: path,
        swiftSettings: house + [.unsafeFlags(["-parse-as-library"])]
    )
}

let package = Package(
    name: "fuzz",
    targets: [
        // As in the Package.swift of the repository.
        .target(name: "CChecksum", path: "repository/Protocol/CChecksum"),
        .target(name: "CProcessor", path: "repository/Protocol/CProcessor"),
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
            uses: ["BrokerBasics", "WireProtocol", "LogStorage", "BrokerCore", "BrokerShard"]
        ),

        library("FuzzInput", "Input", uses: ["BrokerBasics"]),
        library(
            "FuzzDirectory",
            "Directory",
            uses: [
                "BrokerBasics", "WireProtocol", "LogStorage", "BrokerCore", "BrokerShard",
                "BrokerTestSupport", "FuzzInput",
            ]
        ),
        fuzzTarget("fuzz-frames", "Frames", uses: ["BrokerBasics", "WireProtocol", "FuzzInput"]),
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
