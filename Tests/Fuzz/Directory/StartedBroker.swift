internal import BrokerBasics
internal import BrokerCore
internal import BrokerShard
package import BrokerTestSupport
package import FuzzInput
internal import LogStorage
internal import WireProtocol

/// Starts brokers on edited images.
package enum StartedBroker {
    /// What is quiet is written behind soon, so that it need not be waited for.
    private static let settings: SimulatedShard.Settings = {
        var settings = DirectoryImage.settings
        settings.limits.memoryFlushNanoseconds = .milliseconds(20)
        settings.sleepsWhenIdle = true
        return settings
    }()

    /// Runs recovery alone. What it took in can be put into the next checkpoint, and be read there.
    ///
    /// - Returns: false when recovery stopped and said why.
    @discardableResult
    package static func recover(_ image: DirectoryImage) -> Bool {
        let options = RecoveryOptions(
            geometry: settings.geometry, limits: settings.limits.journal,
            chunkBytesMax: settings.limits.chunkBytes,
            tailBudgetBytes: settings.limits.tailBytesMax, serverID: 7, journalID: 11,
            now: WallTime(nanoseconds: 1_700_000_100_000_000_000))
        do throws(RecoveryError) {
            let recovered = try Recovery(storage: ImageStorage(image), options: options).run()
            let snapshot = recovered.state.snapshot(
                at: recovered.position, faults: options.faults)
            var again = DurableState(
                chunkBytesMax: options.chunkBytesMax, tailBudgetBytes: options.tailBudgetBytes)
            let isRead = snapshot.withUnsafeBytes { bytes in
                do throws(ByteParserError) {
                    return try again.restore(bytes).position == recovered.position
                } catch {
                    return false
                }
            }
            invariant(isRead, "the checkpoint of what was recovered can't be read")
            return true
        } catch {
            invariant(!error.description.isEmpty, "recovery stops without a word")
            return false
        }
    }

    /// Starts a broker, reads every queue as `input` says, publishes to each, and lets it stop.
    ///
    /// - Parameter isDamaged: the image was damaged in one place of up to four bytes and no checksum
    ///   was made right: then whatever is delivered must be what was published.
    package static func serve(
        _ image: DirectoryImage, _ input: inout InputReader, isDamaged: Bool
    ) {
        // brokerd starts on no directory whose journal does not fit its limits.
        if let identity = image.identity,
            settings.limits.conflict(geometry: identity.geometry) != nil
        {
            return
        }
        let shard: SimulatedShard
        do throws(RecoveryError) {
            shard = try SimulatedShard(
                disk: SimulatedDisk(files: image.files), settings: settings, seed: 1,
                wall: 1_700_000_100_000_000_000)
        } catch {
            invariant(!error.description.isEmpty, "recovery stops without a word")
            return
        }
        shard.run(steps: 500) { shard.machine.isReady }
        guard shard.machine.isReady, let client = shard.connect() else { return }
        let list = client.ask(.queueList, QueueListRequest(), reply: QueueListReply.self)
        for (stream, queue) in (list?.queues ?? []).prefix(8).enumerated() {
            let start: StartPosition =
                switch input.choice(5) {
                case 0: .offset(UInt64(input.u8()))
                case 1: .time(1_700_000_000_000_000_000 + UInt64(input.u8()) * 1_000_000_000)
                case 2: .end
                default: .start
                }
            let group = input.choice(4) == 0 ? "desk" : ""
            _ = client.request(
                .subscribe,
                SubscribeRequest(
                    queue: queue.name, group: group, start: start, creditRecords: .max,
                    creditBytes: .max), stream: UInt32(stream + 1))
            _ = client.request(.queueDescribe, QueueNameRequest(name: queue.name))
        }
        shard.run(steps: 400) { client.unanswered.isEmpty }
        for partition in image.values.keys.sorted() {
            var builder = BatchBuilder()
            _ = builder.append(Record(value: [1], timestamp: 1))
            client.publish(builder.finish(), partition: partition)
        }
        shard.pass(milliseconds: 40)
        if isDamaged { judge(client, image) }
        shard.machine.beginStop()
        shard.run(steps: 500) { shard.machine.stage == .stopped }
    }

    private static func judge(_ client: SimulatedClient, _ image: DirectoryImage) {
        invariant(client.badBatches == 0, "a delivered batch does not verify")
        for record in client.delivered {
            let published = image.values[record.partition] ?? []
            guard record.offset < UInt64(published.count) else { continue }
            invariant(
                record.value == published[Int(record.offset)],
                "offset \(record.offset) of partition \(record.partition) is not what was published"
            )
        }
        for lost in client.lost {
            invariant(
                !image.synced.contains(lost.partition),
                "partition \(lost.partition) lost \(lost.range), though it is synced")
        }
    }
}
