internal import BrokerServer
internal import BrokerShard
internal import Glibc
internal import LogStorage
internal import ShardRuntime
internal import WireProtocol

// stub
let dir = CommandLine.arguments[1]
let idle = IdleStrategy(rawValue: CommandLine.arguments.count > 2 ? CommandLine.arguments[2] : "adaptive") ?? .adaptive
signal(SIGPIPE, SIG_IGN)
let data = try DataDirectory(path: dir)
let listener = try Listener(.tcp(host: "127.0.0.1", port: 7400))
let control = ShardControl()
var limits = ShardLimits()
let config = ShardConfiguration(
    dataDirectory: dir, limits: limits,
    geometry: JournalGeometry(fileBytes: 128 << 20, fileCount: 4), idle: idle, cpu: CommandLine.arguments.count > 3 ? Int(CommandLine.arguments[3]) : nil,
    listeners: [listener.descriptor],
    addresses: [.init(shard: 0, address: "127.0.0.1:7400")], usesDirectIO: data.directAlignment != nil, hostFacts: [])
try ShardThread.start(config, control: control, log: { print($0) }) { end in
    print("ended", end)
    exit(0)
}
signal(SIGTERM) { _ in control.stop() }
while true { sleep(1); let c = control.current; print(c.stage, c.progress, c.failure ?? "") }
