// swift-tools-version: 6.2
import PackageDescription

// One list, applied to every Swift target: there is one dialect of Swift in this repository.
let house: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .treatAllWarnings(as: .error),
]

func library(_ name: String, _ path: String, uses: [Target.Dependency] = []) -> Target {
    .target(name: name, dependencies: uses, path: path, swiftSettings: house)
}
func tool(_ name: String, _ path: String, uses: [Target.Dependency]) -> Target {
    .executableTarget(name: name, dependencies: uses, path: path, swiftSettings: house)
}
func tests(_ name: String, of uses: [Target.Dependency], exclude: [String] = []) -> Target {
    .testTarget(
        name: name,
        dependencies: uses,
        path: "Tests/\(name)",
        exclude: exclude,
        swiftSettings: house
    )
}

let hummingbird = Target.Dependency.product(name: "Hummingbird", package: "hummingbird")
let configuration = Target.Dependency.product(name: "Configuration", package: "swift-configuration")
let logging = Target.Dependency.product(name: "Logging", package: "swift-log")
let arguments = Target.Dependency.product(name: "ArgumentParser", package: "swift-argument-parser")

let package = Package(
    name: "millrace",
    platforms: [.macOS(.v15)],
    products: [
        .library(name: "WireProtocol", targets: ["WireProtocol"])
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser.git", from: "1.8.0"),
        .package(
            url: "https://github.com/apple/swift-configuration.git",
            from: "1.4.0",
            traits: ["YAML"]
        ),
        .package(url: "https://github.com/apple/swift-log.git", from: "1.16.0"),
        .package(url: "https://github.com/hummingbird-project/hummingbird.git", from: "2.28.0"),
        .package(url: "https://github.com/HdrHistogram/hdrhistogram-swift.git", from: "0.2.0"),
    ],
    targets: [
        // Read downwards: a target may only use targets above it.
        .target(name: "CChecksum", path: "Protocol/CChecksum"),
        library("BrokerBasics", "Protocol/Basics", uses: ["CChecksum"]),
        library("WireProtocol", "Protocol/Wire", uses: ["BrokerBasics"]),

        library("LogStorage", "Broker/Log", uses: ["BrokerBasics", "WireProtocol"]),
        library("BrokerCore", "Broker/Core", uses: ["BrokerBasics", "WireProtocol", "LogStorage"]),
        library(
            "BrokerShard",
            "Broker/Shard",
            uses: ["BrokerBasics", "WireProtocol", "LogStorage", "BrokerCore"]
        ),

        // The kernel starts here.
        .target(
            name: "CLinux",
            path: "Broker/CLinux",
            linkerSettings: [.linkedLibrary("uring")]
        ),
        library("ShardRuntime", "Broker/Runtime", uses: ["BrokerBasics", "CLinux"]),

        library(
            "BrokerServer",
            "Broker/Server",
            uses: [
                "BrokerBasics", "WireProtocol", "LogStorage", "BrokerCore", "BrokerShard", "CLinux",
                "ShardRuntime",
            ]
        ),
        tool("brokerd", "Broker/brokerd", uses: ["BrokerServer", "BrokerShard", "LogStorage", "ShardRuntime"]),
        tests("BrokerBasicsTests", of: ["BrokerBasics"]),
        tests("WireProtocolTests", of: ["BrokerBasics", "WireProtocol"], exclude: ["Golden"]),
        library("BlockingClient", "Protocol/Client", uses: ["BrokerBasics", "WireProtocol"]),

        tool(
            "brokerctl",
            "Broker/brokerctl",
            uses: ["BrokerBasics", "WireProtocol", "BlockingClient", arguments]
        ),

        library(
            "ScriptedServer",
            "Tests/ScriptedServer",
            uses: ["BrokerBasics", "WireProtocol", "BlockingClient"]
        ),
        tests(
            "BlockingClientTests",
            of: ["BrokerBasics", "WireProtocol", "BlockingClient", "ScriptedServer"]
        ),
        tests(
            "BrokerctlTests",
            of: ["BrokerBasics", "WireProtocol", "BlockingClient", "ScriptedServer", "brokerctl"]
        ),

        // Real brokers, real crashes.
        library("ChildProcess", "Bench/ChildProcess"),
        library(
            "ReplayHarness",
            "Bench/Replay",
            uses: ["BrokerBasics", "WireProtocol", "BlockingClient", "ChildProcess"]
        ),
        tool(
            "rehearsal",
            "Bench/Rehearsal",
            uses: [
                "BrokerBasics", "WireProtocol", "BlockingClient", "ChildProcess", "ReplayHarness",
                arguments,
            ]
        ),
        tests(
            "RehearsalTests",
            of: ["BrokerBasics", "WireProtocol", "ChildProcess", "ReplayHarness"]
        ),
        tests(
            "IntegrationTests",
            of: ["BrokerBasics", "WireProtocol", "BlockingClient", "ChildProcess", "ReplayHarness"]
        ),
    ]
)
