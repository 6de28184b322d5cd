internal import ReplayHarness
internal import WireProtocol

/// What became of one queue, for a person.
struct LaneReport {
    var queue: String
    var level: DurabilityLevel
    var keyName: String
    var stream: ReplayStream
    var producer: ReplayProducer.Progress
    /// The first read alone, the others were members of a group.
    var readers: [LiveReader.Progress]
    var report: HistoryChecker.Report
    var summary: QueueReader.Summary
    var restartedAt: ContinuousClock.Instant

    var text: String {
        var lines = [
            "\(queue) (\(level.name), \(stream.partitionCount) partitions, "
                + "\(count(stream.keyCount)) keys: \(keyName))",
            published,
            retried,
        ]
        lines += level == .synced ? kept : gap
        lines += live
        for (violation, number) in report.counts.sorted(by: { "\($0.key)" < "\($1.key)" }) {
            lines.append("! \(violation): \(count(number))")
            lines += report.examples.filter { $0.violation == violation }.map { "    \($0.text)" }
        }
        return lines.joined(separator: "\n  ")
    }

    private func count(_ number: some BinaryInteger) -> String { Console.count(number) }

    private var published: String {
        let tenths = report.sent * 10 / stream.lineCount
        return "\(count(report.sent)) records sent, \(count(tenths / 10)).\(tenths % 10) rounds of "
            + "\(count(stream.lineCount)) lines; "
            + "\(count(report.confirmed)) confirmed"
    }

    private var retried: String {
        let unanswered = producer.inFlightAtBreak.reduce(0, +)
        var text =
            "\(count(unanswered)) had no answer at the kill and were sent again, "
            + "\(count(producer.duplicates)) of them had been stored"
        if let first = producer.confirmedAgain.first {
            text += "; first confirm \(Console.seconds(first - restartedAt)) s after the restart"
        }
        return text
    }

    private var kept: [String] {
        var lines: [String] = []
        if report.isGood {
            lines.append(
                "\(count(report.read)) read back: every confirmed record is there once, in order "
                    + "per partition and per key, byte for byte; 0 lost, 0 twice"
            )
        } else {
            lines.append("\(count(report.read)) read back")
        }
        if report.traced > 0 {
            lines.append("\(count(report.traced)) trace contexts among them")
        }
        return lines
    }

    private var gap: [String] {
        var lines = [
            "\(count(report.read)) read back"
                + (report.isGood ? ": each once, in order, byte for byte" : ""),
            "the crash took \(count(report.lostConfirmed)) records that had been confirmed at "
                + "memory",
        ]
        for partition in summary.queue.partitions where partition.lostRecords > 0 {
            lines.append(
                "  partition \(partition.index) says so by a gap of "
                    + "\(count(partition.lostRecords)) offsets, epoch \(partition.epoch)"
            )
        }
        if report.lostOffsets > UInt64(report.lostConfirmed) {
            lines.append("  (offsets are set aside in advance, and not given out again)")
        }
        return lines
    }

    private var live: [String] {
        var lines: [String] = []
        for (index, reader) in readers.enumerated() {
            var text = index == 0 ? "a reader" : "a group's member"
            text +=
                " got \(count(reader.delivered)) over \(reader.connections) connections"
            if reader.acksConfirmed > 0 {
                text += ", \(count(reader.acksConfirmed)) acks confirmed, none fell back"
            }
            lines.append(text)
        }
        if report.isGood {
            lines.append(
                report.deliveredThenLost == 0
                    ? "nothing was delivered that is not there now"
                    : "\(count(report.deliveredThenLost)) were delivered before the crash took them"
            )
        }
        return lines
    }
}
