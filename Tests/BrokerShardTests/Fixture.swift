import BrokerBasics
import BrokerCore
import BrokerShard
import BrokerTestSupport
import Foundation
import LogStorage
import Testing
import WireProtocol

/// A broker in the simulator that serves, and what tests ask of it again and again.
final class Fixture {
    let shard: SimulatedShard
    let client: SimulatedClient

    init(
        disk: SimulatedDisk = SimulatedDisk(), seed: UInt64 = 1,
        settings change: (inout SimulatedShard.Settings) -> Void = { _ in }
    ) throws {
        var settings = SimulatedShard.Settings()
        change(&settings)
        shard = try SimulatedShard(disk: disk, settings: settings, seed: seed)
        let shard = shard
        let isReady = shard.run(until: { shard.isReady })
        try #require(isReady)
        client = try #require(shard.connect())
    }

    var counters: ShardCounters { shard.machine.counters }

    func create(
        _ name: String, partitions: UInt32 = 1, level: DurabilityLevel = .synced
    ) throws -> [UInt32] {
        let info = client.ask(
            .queueCreate, QueueCreateRequest(name: name, partitions: partitions, level: level),
            reply: QueueInfo.self)
        return try #require(info).partitions.map(\.id)
    }

    func connect(_ name: String = "other") throws -> SimulatedClient {
        try #require(shard.connect(name))
    }

    /// Publishes and waits for the answer.
    @discardableResult
    func publish(
        _ batch: [UInt8], to partition: UInt32, by other: SimulatedClient? = nil
    ) throws -> ConfirmEntry {
        let client = other ?? client
        let correlation = client.publish(batch, partition: partition)
        shard.run { client.isAnswered(correlation) }
        return try #require(client.confirm(of: correlation))
    }

    /// Publishes `count` batches of one record each, and waits.
    func publish(
        _ count: Int, to partition: UInt32, bytes: Int = 16, from first: Int = 0
    ) throws {
        for number in first..<first + count {
            try publish(batch(["\(number)"], bytes: bytes), to: partition)
        }
    }

    /// - Returns: what the request is refused with, `.ok` when it is not.
    func refusal(
        _ opcode: Opcode, _ message: some WireMessage, stream: UInt32 = 0,
        by other: SimulatedClient? = nil
    ) throws -> StatusCode {
        let client = other ?? client
        let correlation = client.request(opcode, message, stream: stream)
        shard.run { client.replies[correlation] != nil || client.isClosed }
        return try #require(client.status(of: correlation))
    }

    /// What a publish is answered with, by status.
    func refusal(publishing batch: [UInt8], to partition: UInt32) throws -> StatusCode {
        let correlation = client.publish(batch, partition: partition)
        let client = client
        shard.run { client.isAnswered(correlation) }
        return client.confirm(of: correlation) != nil
            ? .ok : try #require(client.status(of: correlation))
    }

    /// Everything of a queue, read from its start by a new connection.
    func readBack(_ queue: String, records: Int) throws -> [SimulatedClient.Delivered] {
        let reader = try connect("reader")
        _ = try #require(reader.subscribe(queue, stream: 1))
        shard.run(steps: 3000) { reader.delivered.count >= records }
        shard.pass(milliseconds: 3)
        return reader.delivered
    }

    func isServing() -> Bool {
        guard let other = shard.connect("witness") else { return false }
        defer { shard.disconnect(other.index) }
        return other.ask(.ping, Empty(), reply: Empty.self) != nil
    }
}

extension SimulatedClient {
    func confirm(of correlation: UInt64) -> ConfirmEntry? {
        confirms.first {
            $0.correlation <= correlation && correlation < $0.correlation + UInt64($0.requests)
        }
    }
    func isAnswered(_ correlation: UInt64) -> Bool {
        confirm(of: correlation) != nil || replies[correlation] != nil || isClosed
    }
    func refusal(of correlation: UInt64) -> Refusal? {
        replies[correlation].flatMap { try? Refusal(body: $0.body) }
    }
}

/// A batch of text records, each filled up to `bytes`.
func batch(
    _ values: [String], bytes: Int = 0, producer: UInt64 = 0, epoch: UInt16 = 0,
    sequence: UInt64 = 0
) -> [UInt8] {
    var builder = BatchBuilder()
    for value in values {
        var bytesOfValue = Array(value.utf8)
        while bytesOfValue.count < bytes { bytesOfValue.append(UInt8(ascii: " ")) }
        _ = builder.append(Record(value: bytesOfValue, timestamp: 1))
    }
    return builder.finish(
        producer: ProducerID(rawValue: producer), epoch: epoch, sequence: sequence)
}

extension SimulatedClient.Delivered {
    var text: String {
        String(decoding: value, as: UTF8.self).trimmingCharacters(in: .whitespaces)
    }
}

/// The frames of the protocol's examples.
enum Golden {
    static let directory = URL(fileURLWithPath: #filePath)
        .deletingLastPathComponent().deletingLastPathComponent()
        .appendingPathComponent("WireProtocolTests/Golden")

    static func bytes(_ name: String) throws -> [UInt8] {
        let text = try String(
            contentsOf: directory.appendingPathComponent("\(name).hex"), encoding: .utf8)
        var digits: [UInt8] = []
        for line in text.split(separator: "\n") {
            for character in line.prefix(while: { $0 != "#" }) {
                if let digit = character.hexDigitValue { digits.append(UInt8(digit)) }
            }
        }
        return stride(from: 0, to: digits.count, by: 2).map { digits[$0] << 4 | digits[$0 + 1] }
    }

    private static func deletes(_ name: String) -> Bool {
        name == "queue-delete-request" || name.hasPrefix("tlv-")
    }

    /// Every frame that a client may send, by name; what deletes comes last.
    static func requests() throws -> [(name: String, bytes: [UInt8])] {
        let names = try FileManager.default.contentsOfDirectory(atPath: directory.path)
            .filter { $0.hasSuffix(".hex") }.map { String($0.dropLast(4)) }
            .filter {
                $0.hasSuffix("-request") || $0.hasPrefix("tlv-") || $0 == "publish"
                    || $0 == "credit"
            }
            .sorted { (deletes($0) ? 1 : 0, $0) < (deletes($1) ? 1 : 0, $1) }
        return try names.map { ($0, try bytes($0)) }
    }
}
