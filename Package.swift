// swift-tools-version: 6.2
import PackageDescription

// One list, applied to every Swift target: there is one dialect of Swift in this repository.
let house: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .treatAllWarnings(as: .error),
    // The hot path crosses modules: without it each step is a call, and a getter of a partition
    // copies it. Measured with 64 B publishes, 1000 in flight: see Bench/Results.
    .unsafeFlags(["-cross-module-optimization"], .when(configuration: .release)),
]

func library(
    _ name: String,
    _ path: String,
    uses: [Target.Dependency] = [],
    exclude: [String] = []
) -> Target {
    .target(name: name, dependencies: uses, path: path, exclude: exclude, swiftSettings: house)
}
func tool(
    _ name: String,
    _ path: String,
    uses: [Target.Dependency],
    except: [String] = []
) -> Target {
    .executableTarget(
        name: name,
        dependencies: uses,
        path: path,
        exclude: except,
        swiftSettings: house
    )
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

// Hummingbird and NIO are for Broker/Server/Admin, and imported nowhere else.
let hummingbird = Target.Dependency.product(name: "Hummingbird", package: "hummingbird")
let nioCore = Target.Dependency.product(name: "NIOCore", package: "swift-nio")
let system = Target.Dependency.product(name: "SystemPackage", package: "swift-system")
let nioPosix = Target.Dependency.product(name: "NIOPosix", package: "swift-nio")
let configuration = Target.Dependency.product(name: "Configuration", package: "swift-configuration")
let yams = Target.Dependency.product(name: "Yams", package: "Yams")
let logging = Target.Dependency.product(name: "Logging", package: "swift-log")
let arguments = Target.Dependency.product(name: "ArgumentParser", package: "swift-argument-parser")
let histogram = Target.Dependency.product(name: "Histogram", package: "hdrhistogram-swift")

let package = Package(
    name: "millrace",
    platforms: [.macOS(.v15)],
    products: [
        .library(name: "WireProtocol", targets: ["WireProtocol"]),
        .executable(name: "brokerload", targets: ["brokerload"]),
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
        .package(url: "https://github.com/apple/swift-nio.git", from: "2.101.0"),
        .package(url: "https://github.com/apple/swift-system.git", from: "1.5.0"),
        .package(url: "https://github.com/jpsim/Yams", from: "6.2.0"),
        .package(url: "https://github.com/HdrHistogram/hdrhistogram-swift.git", from: "0.2.0"),
    ],
    targets: [
        // Read downwards: a target may only use targets above it.
        .target(name: "CChecksum", path: "Protocol/CChecksum"),
        .target(name: "CProcessor", path: "Protocol/CProcessor"),
        library("BrokerBasics", "Protocol/Basics", uses: ["CChecksum", "CProcessor"]),
        library("WireProtocol", "Protocol/Wire", uses: ["BrokerBasics"]),

        library(
            "LogStorage",
            "Broker/Log",
            uses: ["BrokerBasics", "WireProtocol"],
            exclude: ["README.md"]
        ),
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
                "ShardRuntime", logging,
            ],
            exclude: ["Admin"]
        ),
        // Apart from BrokerServer: what these two bring along sees C types of its own.
        library(
            "BrokerConfiguration",
            "Broker/Configuration",
            uses: [
                "BrokerBasics", "LogStorage", "BrokerShard", "ShardRuntime", "BrokerServer",
                configuration, system, yams, logging,
            ]
        ),
        library(
            "BrokerAdmin",
            "Broker/Server/Admin",
            uses: [
                "BrokerBasics", "BrokerCore", "BrokerShard", "ShardRuntime", "BrokerServer",
                hummingbird, nioCore, nioPosix, logging,
            ]
        ),
        tool(
            "brokerd",
            "Broker/brokerd",
            uses: [
                "BrokerBasics", "WireProtocol", "LogStorage", "BrokerCore", "BrokerShard",
                "ShardRuntime", "BrokerServer", "BrokerConfiguration", "BrokerAdmin", logging,
            ]
        ),
        library(
            "BrokerTestSupport",
            "Tests/Support",
            uses: ["BrokerBasics", "WireProtocol", "LogStorage", "BrokerCore", "BrokerShard"]
        ),
        tests(
            "SimulationTests",
            of: [
                "BrokerBasics", "WireProtocol", "LogStorage", "BrokerCore", "BrokerShard",
                "BrokerTestSupport",
            ]
        ),
        // Counts allocations while a flag is set; stands in front of malloc in the test program.
        .target(name: "CAllocationCount", path: "Tests/CAllocationCount"),
        tests(
            "BrokerShardTests",
            of: [
                "BrokerBasics", "WireProtocol", "LogStorage", "BrokerCore", "BrokerShard",
                "BrokerTestSupport", "CAllocationCount",
            ]
        ),
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

        // The load tool: its own io_uring driver, and the yardsticks in C.
        .target(
            name: "CBaseline",
            path: "Bench/CBaseline",
            linkerSettings: [.linkedLibrary("uring")]
        ),
        tool(
            "brokerload",
            "Bench/Load",
            uses: [
                "BrokerBasics", "WireProtocol", "CLinux", "ShardRuntime", "CBaseline", arguments,
                histogram,
            ],
            except: ["README.md"]
        ),
        tests(
            "BrokerloadTests",
            of: ["brokerload", "BrokerBasics", "WireProtocol", "CBaseline", histogram]
        ),

        // Judges what clients saw, and shares no code with what it judges: keep it so.
        library("LogChecker", "Tests/LogChecker"),
        tests("LogCheckerTests", of: ["LogChecker"]),

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
            of: [
                "BrokerBasics", "WireProtocol", "BlockingClient", "ShardRuntime", "ChildProcess",
                "ReplayHarness", "LogChecker",
            ]
        ),
        library(
            "BrokerProcess",
            "Tests/BrokerProcess",
            uses: ["BrokerBasics", "ChildProcess"]
        ),
        // Stands in for a broker that forgets its syncs.
        .executableTarget(name: "withoutsync", path: "Tests/WithoutSync"),
        // A disk as a file that a program serves by FUSE.
        library("FuseDisk", "Tests/FuseDisk", uses: ["ChildProcess", "ReplayHarness"]),
        // Cuts the power of a real broker's disk.
        tool(
            "powercut",
            "Tests/PowerCut",
            uses: [
                "BrokerBasics", "WireProtocol", "BlockingClient", "ChildProcess", "ReplayHarness",
                "LogChecker", "FuseDisk", arguments,
            ]
        ),
        // Runs a broker on a disk that takes its time.
        tool("slowdisk", "Tests/SlowDisk", uses: ["ChildProcess", "ReplayHarness", "FuseDisk"]),
        // Stands in for a container that refuses io_uring.
        .executableTarget(name: "withouturing", path: "Tests/WithoutUring"),
        tests(
            "BrokerServerTests",
            of: [
                "BrokerBasics", "WireProtocol", "LogStorage", "BrokerCore", "BrokerShard",
                "ShardRuntime", "BrokerServer", "BrokerConfiguration", "BrokerAdmin",
                "BlockingClient", "ChildProcess", "BrokerProcess", "BrokerTestSupport",
                "ReplayHarness", "brokerd", "brokerctl", "withouturing", logging,
            ]
        ),
    ]
)
