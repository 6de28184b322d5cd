public import BrokerBasics
public import LogStorage
internal import WireProtocol

// How it works. Records go by whole segments, the oldest first, so that removing them is a file less and
// rewrites nothing. Limits say what is kept at least: a segment goes when what is left without it
// reaches the limit still. So a partition keeps up to a segment more than its limit, and what is in the
// active one and in the tail.
//
//     bytes 100     | 40 | 40 | 40 | 30 |        150 kept: the first may go (110 are left),
//                     ^^                         the second may not (70 would be)

extension Partition {
    /// The segment that its file is, while it has one open.
    public func isActive(_ segment: SegmentInfo, term: UInt64) -> Bool {
        file.state != .none && segment.baseOffset == file.nextOffset && segment.term == term
    }

    /// Where the log may start by the partition's retention; the present start when nothing is to go.
    ///
    /// - Parameters:
    ///   - time: what `RetentionClock` says.
    ///   - term: of this start of the broker.
    public func retainedStart(time: WallTime, term: UInt64) -> UInt64 {
        var start = log.startOffset
        if isExpired(lastTime: log.lastAppendTime, time) {
            // All of it is too old. What is not committed yet is not.
            return committed == log.endOffset ? committed : start
        }
        var (bytes, records) = (log.bytes, records)
        for segment in log.segments where segment.endOffset > start {
            guard segment.endOffset <= committed, !isActive(segment, term: term) else { break }
            let kept = max(segment.baseOffset, start)..<segment.endOffset
            bytes -= min(bytes, segment.batchBytes)
            records -= min(records, UInt64(kept.count) - lostRecords(in: kept))
            guard
                (retention.bytes > 0 && bytes >= retention.bytes)
                    || (retention.records > 0 && records >= retention.records)
                    || isExpired(lastTime: segment.lastTime, time)
            else { break }
            start = segment.endOffset
        }
        return start
    }

    private func isExpired(lastTime: UInt64, _ time: WallTime) -> Bool {
        guard retention.ageMilliseconds > 0, log.endOffset > log.startOffset else { return false }
        return isOlder(lastTime, than: .milliseconds(retention.ageMilliseconds), time)
    }

    private func isOlder(_ appendTime: UInt64, than age: UInt64, _ time: WallTime) -> Bool {
        let (end, overflow) = appendTime.addingReportingOverflow(age)
        return !overflow && end < time.nanoseconds
    }

    /// True when something that began at `firstTime` should be closed, so that its records do not stay
    /// for as long as it takes to fill: a quarter of the age in a chunk, and one in a segment.
    public func isRollDue(firstTime: UInt64, time: WallTime) -> Bool {
        retention.ageMilliseconds > 0
            && isOlder(firstTime, than: .milliseconds(retention.ageMilliseconds) / 4, time)
    }
}
