import BrokerBasics
import Testing
import WireProtocol
import brokerload

extension SpinningTests {
    /// The whole driver over a real ring and real sockets, against a stub on another thread.
    @Suite struct WorkloadTests {
        private func run(
            _ kind: Workload.Kind,
            fault: StubBroker.Fault = .none,
            change: (inout Workload) -> Void = { _ in }
        ) throws -> (report: LoadReport, seen: StubBroker.Seen) {
            var factor: UInt64 = 1
            while true {
                let (report, seen) = try run(kind, fault, longer: factor, change)
                // A machine that gave the two threads no turn in the time measured gets more of it.
                guard report.records == 0, report.failures.total == 0, factor < 64 else {
                    return (report, seen)
                }
                factor *= 4
            }
        }

        private func run(
            _ kind: Workload.Kind,
            _ fault: StubBroker.Fault,
            longer factor: UInt64,
            _ change: (inout Workload) -> Void
        ) throws -> (report: LoadReport, seen: StubBroker.Seen) {
            let stub = try StubBroker(fault: fault)
            var workload = Workload(
                kind: kind,
                server: try #require(ServerAddress(stub.address)),
                level: .memory,
                size: 64
            )
            workload.warmupNanoseconds = 20_000_000
            workload.durationNanoseconds = 200_000_000
            change(&workload)
            workload.durationNanoseconds *= factor
            let result = Result { try workload.run() }
            // What the stub saw of the last requests is published at the end of its turn.
            stub.stop()
            return (try result.get(), stub.seen)
        }

        @Test("one in flight: every record is confirmed once and has a latency")
        func publishOne() throws {
            let (report, seen) = try run(.publish)
            #expect(report.failures.total == 0, "\(report.failures.summary)")
            #expect(seen.invalid == [])
            #expect(report.records > 0)
            #expect(report.latency.samples == report.records)
            #expect(report.records <= UInt64(seen.records))
            #expect(seen.firstPayload.count == 64)
            #expect(seen.liveQueues == [])
            #expect(seen.deletedQueues.count == 1)
            #expect(report.latency.max ?? 0 > 1)
            let records = try #require(
                report.settings.first { $0.0 == "records_with_warmup" }?.1
            )
            #expect(records == .integer(seen.records))
        }

        @Test(
            "every frame is a valid batch with the next sequence, whatever the shape",
            arguments: [
                (1000, 1, 1, 1, 1, 64), (64, 32, 1, 1, 1, 256), (16, 1, 8, 1, 1, 64),
                (7, 3, 2, 5, 2, 100), (1, 1, 1, 20, 1, 0), (3, 1, 1, 1, 1, 20_000),
            ]
        )
        func publishShapes(
            window: Int,
            batch: Int,
            connections: Int,
            queues: Int,
            partitions: Int,
            size: Int
        ) throws {
            let (report, seen) = try run(.publish) {
                $0.window = window
                $0.batch = batch
                $0.connections = connections
                $0.queues = queues
                $0.partitions = partitions
                $0.size = size
            }
            #expect(report.failures.total == 0, "\(report.failures.summary)")
            #expect(seen.invalid == [])
            #expect(report.records > 0)
            #expect(report.records == report.latency.samples * UInt64(batch))
            #expect(seen.deletedQueues.count == queues)
            #expect(seen.liveQueues == [])
        }

        @Test(
            "deliveries are counted, in order, and credit is topped up",
            arguments: [(1, 1, 1, 1), (1000, 1, 1, 1), (16, 32, 4, 3)]
        )
        func endToEnd(window: Int, batch: Int, connections: Int, partitions: Int) throws {
            let (report, seen) = try run(.endToEnd) {
                $0.window = window
                $0.batch = batch
                $0.connections = connections
                $0.partitions = partitions
                $0.durationNanoseconds = 400_000_000
            }
            #expect(report.failures.total == 0, "\(report.failures.summary)")
            #expect(seen.invalid == [])
            #expect(report.records > 0)
            #expect(report.latency.samples * UInt64(batch) == report.records)
            #expect(seen.liveQueues == [])
            for (earlier, later) in zip(seen.credits, seen.credits.dropFirst()) {
                #expect(earlier.records < later.records)
            }
            if seen.records > 100_000 { #expect(!seen.credits.isEmpty) }
            let checked = try #require(report.settings.first { $0.0 == "batches_checksummed" }?.1)
            #expect(checked != .integer(0))
        }

        @Test("units that arrive in pieces are put together")
        func dribble() throws {
            for pieces in [1, 7, 33, 1000] {
                for kind in [Workload.Kind.publish, .endToEnd] {
                    let (report, seen) = try run(kind, fault: .dribbles(pieces)) { $0.window = 50 }
                    #expect(report.failures.total == 0, "\(report.failures.summary)")
                    #expect(seen.invalid == [])
                    #expect(report.records > 0)
                }
            }
        }

        @Test(
            "what the broker gets wrong is named",
            arguments: [
                (StubBroker.Fault.confirmsTwice(500), "confirm-duplicate"),
                (.confirmsNot(500), "unconfirmed"),
                (.confirmsAtLevel(1), "confirm-level"),
                (.refusesPublish(500), "storage-failed"),
                (.hangsUpAt(500), "connection-closed"),
            ]
        )
        func publishFaults(fault: StubBroker.Fault, name: String) throws {
            let (report, seen) = try run(.publish, fault: fault) {
                $0.window = 10
                // Long enough that the run ends by the failure; a lost confirm stops the load.
                $0.durationNanoseconds = fault == .confirmsNot(500) ? 300_000_000 : 3_000_000_000
                $0.drainNanoseconds = 200_000_000
            }
            #expect(report.failures.counts[name] ?? 0 >= 1, "\(report.failures.summary)")
            #expect(seen.liveQueues == [])
        }

        @Test(
            "what the broker delivers wrongly is named",
            arguments: [
                (StubBroker.Fault.leavesOutDelivery(500), "delivery-gap"),
                // The 65th batch is one of those whose checksum is computed.
                (.flipsDeliveredBit(65), "delivery-checksum"),
            ]
        )
        func deliveryFaults(fault: StubBroker.Fault, name: String) throws {
            let (report, seen) = try run(.endToEnd, fault: fault) {
                $0.window = 10
                $0.durationNanoseconds = 3_000_000_000
                $0.drainNanoseconds = 200_000_000
            }
            #expect(report.failures.counts[name] ?? 0 >= 1, "\(report.failures.summary)")
            #expect(seen.liveQueues == [])
        }

        @Test("nobody there is unreachable, exit status 3")
        func unreachable() throws {
            let workload = Workload(
                kind: .publish,
                server: .tcp(host: "127.0.0.1", port: 1),
                level: .memory,
                size: 64
            )
            let error = #expect(throws: LoadError.self) { try workload.run() }
            #expect(error?.exitStatus == 3)
        }
    }
}
