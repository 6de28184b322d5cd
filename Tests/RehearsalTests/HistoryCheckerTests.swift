import BrokerBasics
import ReplayHarness
import Testing
import WireProtocol

/// Histories that are good, and each kind of bad one made from them by a single change.
@Suite struct HistoryCheckerTests {
    /// What was read back: one list per partition.
    private struct Place {
        var offset: UInt64
        var record: Record
    }
    private struct Story {
        var level: DurabilityLevel
        var history: SentHistory
        var log = DeliveryLog()
        var places: [[Place]]
        var lost: [(partition: Int, range: Range<UInt64>)] = []

        func report() -> HistoryChecker.Report {
            var checker = HistoryChecker(
                level: level,
                startOffsets: [UInt64](repeating: 0, count: places.count),
                histories: [history]
            )
            for (partition, places) in places.enumerated() {
                var gaps = lost.filter { $0.partition == partition }.map(\.range)
                for place in places {
                    while let gap = gaps.first, gap.lowerBound <= place.offset {
                        checker.lost(gap, partition: partition)
                        gaps.removeFirst()
                    }
                    checker.read(place.record, partition: partition, offset: place.offset)
                }
                for gap in gaps { checker.lost(gap, partition: partition) }
                let end = max(
                    places.last.map { $0.offset + 1 } ?? 0,
                    lost.filter { $0.partition == partition }.map(\.range.upperBound).max() ?? 0
                )
                checker.end(end, partition: partition)
            }
            checker.delivered(log, isComplete: true)
            return checker.finish()
        }
    }

    private static let count = 300

    private static let lines = (0..<37).map {
        // Equal lines and equal keys are among them.
        ReplayLine(
            value: Array("event \($0 % 20)".utf8),
            key: Array("order-\($0 % 7)".utf8),
            timestamp: UInt64($0 % 20)
        )
    }

    /// Everything sent, confirmed, stored and delivered as it should be.
    private static func good(_ level: DurabilityLevel = .synced) -> Story {
        let stream = ReplayStream(producer: 4, lines: lines, partitionCount: 3, traceEvery: 5)
        var history = SentHistory(stream: stream)
        var log = DeliveryLog()
        var places = [[Place]](repeating: [], count: 3)
        for _ in 0..<count {
            let number = history.send()
            let partition = stream.partition(of: number)
            let offset = UInt64(places[partition].count)
            places[partition].append(Place(offset: offset, record: stream.record(number)))
            history.confirm(number, offset: offset)
            log.deliveries.append(
                .init(
                    partition: UInt32(partition),
                    offset: offset,
                    tag: RecordTag(producer: 4, number: number)
                )
            )
        }
        return Story(level: level, history: history, log: log, places: places)
    }

    @Test("a history in which every promise was kept has no violation")
    func clean() {
        let report = Self.good().report()
        #expect(report.counts.isEmpty)
        #expect(report.sent == Self.count)
        #expect(report.confirmed == Self.count)
        #expect(report.read == Self.count)
        #expect(report.delivered == Self.count)
        #expect(report.traced == Self.count / 5)
    }

    /// One thing that goes wrong, at a random place of a good history.
    enum Fault: CaseIterable {
        case lostInTheMiddle, lostAtTheEnd, lostOffsetsClosed, twice, twiceAtOnce, swapped
        case swappedOverPartitions, value, key, noTrace, otherTrace, timestamp, header
        case strange, future, hole, lostRange, phantom, phantomElsewhere, undelivered
        case confirmedElsewhere
    }

    @Test("one thing that goes wrong is found, wherever it is", arguments: Fault.allCases)
    func oneFault(fault: Fault) {
        for seed in 0..<40 {
            let (report, expected) = Self.make(fault, seed: UInt64(seed))
            for violation in expected {
                #expect(report.counts[violation] != nil, "\(fault), seed \(seed): \(report.counts)")
            }
        }
    }

    private static func make(
        _ fault: Fault,
        seed: UInt64
    ) -> (HistoryChecker.Report, [Violation]) {
        var random = SeededRandom(seed: seed)
        var story = good()
        let full = story.places.indices.filter { story.places[$0].count > 10 }
        let partition = full[random.below(full.count)]
        let end = story.places[partition].count
        let at = 1 + random.below(end - 3)
        switch fault {
        case .lostInTheMiddle:
            story.places[partition].remove(at: at)
            return (story.report(), [.missing, .hole, .phantom])
        case .lostAtTheEnd:
            story.places[partition].removeLast()
            return (story.report(), [.missing, .phantom])
        case .lostOffsetsClosed:
            // As if it had never been: the offsets behind it move up.
            story.places[partition].remove(at: at)
            for index in at..<story.places[partition].count {
                story.places[partition][index].offset -= 1
            }
            return (story.report(), [.missing, .misplaced])
        case .twice:
            let record = story.places[partition][at].record
            story.places[partition].append(Place(offset: UInt64(end), record: record))
            return (story.report(), [.duplicate])
        case .twiceAtOnce:
            let place = story.places[partition][at]
            story.places[partition].insert(place, at: at + 1)
            for index in (at + 1)..<story.places[partition].count {
                story.places[partition][index].offset += 1
            }
            return (story.report(), [.duplicate, .misplaced])
        case .swapped:
            let record = story.places[partition][at].record
            story.places[partition][at].record = story.places[partition][at + 1].record
            story.places[partition][at + 1].record = record
            return (story.report(), [.reordered, .misplaced])
        case .swappedOverPartitions:
            let other = full.first { $0 != partition } ?? 0
            let record = story.places[partition][at].record
            story.places[partition][at].record = story.places[other][1].record
            story.places[other][1].record = record
            return (story.report(), [.wrongPartition])
        case .value:
            story.places[partition][at].record.value[random.below(5)] ^= 1 << random.below(8)
            return (story.report(), [.changed])
        case .key:
            story.places[partition][at].record.key?[random.below(5)] ^= 1
            return (story.report(), [.changed])
        case .noTrace:
            let traced = story.places[partition].indices.filter {
                story.places[partition][$0].record.trace != nil
            }
            story.places[partition][traced[random.below(traced.count)]].record.trace = nil
            return (story.report(), [.changed])
        case .otherTrace:
            let traced = story.places[partition].indices.filter {
                story.places[partition][$0].record.trace != nil
            }
            let place = traced[random.below(traced.count)]
            story.places[partition][place].record.trace?.bytes[random.below(25)] ^= 0x10
            return (story.report(), [.changed])
        case .timestamp:
            story.places[partition][at].record.timestamp += 1
            return (story.report(), [.changed])
        case .header:
            story.places[partition][at].record.headers.append(.init(name: "x", value: []))
            return (story.report(), [.neverSent, .missing])
        case .strange:
            let record = Record(value: Array("event 1".utf8), key: Array("order-1".utf8))
            story.places[partition].append(Place(offset: UInt64(end), record: record))
            return (story.report(), [.neverSent])
        case .future:
            let record = story.history.stream.record(UInt64(count))
            story.places[partition].append(Place(offset: UInt64(end), record: record))
            return (story.report(), [.neverSent])
        case .hole:
            story.places[partition][end - 1].offset += 5
            return (story.report(), [.hole, .misplaced])
        case .lostRange:
            let offset = story.places[partition].remove(at: at).offset
            story.lost = [(partition, offset..<(offset + 1))]
            return (story.report(), [.lostRange, .missing])
        case .phantom:
            let number = story.history.send()
            let other = UInt32(story.history.stream.partition(of: number))
            let offset = UInt64(story.places[Int(other)].count)
            let tag = RecordTag(producer: 4, number: number)
            story.log.deliveries.append(.init(partition: other, offset: offset, tag: tag))
            return (story.report(), [.phantom])
        case .phantomElsewhere:
            story.log.deliveries[at].offset += 1
            return (story.report(), [.phantom])
        case .undelivered:
            story.log.deliveries.remove(at: at)
            return (story.report(), [.undelivered])
        case .confirmedElsewhere:
            let number = story.history.send()
            let other = story.history.stream.partition(of: number)
            let place = UInt64(story.places[other].count)
            let record = story.history.stream.record(number)
            story.places[other].append(Place(offset: place, record: record))
            story.history.confirm(number, offset: place + 3)
            return (story.report(), [.misplaced])
        }
    }

    @Test("what a memory queue lost is counted exactly, and is no violation when it says so")
    func memoryGap() {
        var story = Self.good(.memory)
        let partition = story.places.indices.first { story.places[$0].count > 20 } ?? 0
        let places = story.places[partition]
        // The last ten are gone, the gap reaches further, and three came behind it.
        story.places[partition] = Array(places.dropLast(10))
        let gap = UInt64(places.count - 10)..<UInt64(places.count + 90)
        story.lost = [(partition, gap)]
        var added: UInt64 = 0
        while added < 3 {
            let number = story.history.send()
            let record = story.history.stream.record(number)
            let other = story.history.stream.partition(of: number)
            guard other == partition else {
                // Sent, never answered, and not there: nothing was promised.
                continue
            }
            let offset = gap.upperBound + added
            story.places[partition].append(Place(offset: offset, record: record))
            story.history.confirm(number, offset: offset)
            let tag = RecordTag(producer: 4, number: number)
            story.log.deliveries.append(
                .init(partition: UInt32(partition), offset: offset, tag: tag)
            )
            added += 1
        }
        let report = story.report()
        #expect(report.counts.isEmpty, "\(report.examples)")
        #expect(report.lostConfirmed == 10)
        #expect(report.lostOffsets == 100)
        #expect(report.deliveredThenLost == 10)
    }

    @Test("a memory queue that loses more than it says is found out")
    func memorySilentLoss() {
        var story = Self.good(.memory)
        let partition = story.places.indices.first { story.places[$0].count > 20 } ?? 0
        let end = UInt64(story.places[partition].count)
        story.places[partition].removeLast(10)
        story.lost = [(partition, (end - 9)..<end)]
        let report = story.report()
        #expect(report.counts[.missing] == 1)
        #expect(report.counts[.hole] != nil)
        #expect(report.lostConfirmed == 9)
    }

    @Test("a record without an answer may be there or not, once at most")
    func unconfirmed() {
        var story = Self.good()
        let there = story.history.send()
        _ = story.history.send()
        let partition = story.history.stream.partition(of: there)
        let offset = UInt64(story.places[partition].count)
        let place = Place(offset: offset, record: story.history.stream.record(there))
        story.places[partition].append(place)
        story.log.deliveries.append(
            .init(
                partition: UInt32(partition),
                offset: offset,
                tag: RecordTag(producer: 4, number: there)
            )
        )
        var report = story.report()
        #expect(report.counts.isEmpty, "\(report.examples)")
        #expect(report.unconfirmedButThere == 1)
        story.places[partition].append(Place(offset: offset + 1, record: place.record))
        report = story.report()
        #expect(report.counts[.duplicate] == 1)
    }

    @Test("a record that is confirmed twice, or without being sent, is a bad answer")
    func confirmedTwice() {
        var story = Self.good()
        story.history.confirm(3, offset: 9)
        story.history.confirm(9_999, offset: 9)
        #expect(story.report().counts == [.badAnswer: 2])
    }

    @Test("producers share a partition in any order, each in its own")
    func twoProducers() {
        let streams = (1...2).map {
            ReplayStream(producer: $0, lines: Self.lines, partitionCount: 1)
        }
        var histories = streams.map { SentHistory(stream: $0) }
        var random = SeededRandom(seed: 5)
        var records: [Record] = []
        for _ in 0..<200 {
            let who = random.below(2)
            let number = histories[who].send()
            histories[who].confirm(number, offset: UInt64(records.count))
            records.append(streams[who].record(number))
        }
        var checker = HistoryChecker(level: .synced, startOffsets: [0], histories: histories)
        for (offset, record) in records.enumerated() {
            checker.read(record, partition: 0, offset: UInt64(offset))
        }
        checker.end(200, partition: 0)
        #expect(checker.finish().counts.isEmpty)
    }
}
