// How it works. It shares no code with the broker, its client or its simulator, so that a mistake
// in what they share does not excuse itself.
//
// A history is judged when all of it is known. Records are found by the hash of their bytes; each
// says where it belongs and, if it was confirmed, at which offset it must be. Every reader's way
// through a partition, from a `began` to the next, is walked once: what comes must be at the next
// offset, be what was confirmed there and what other readers got there, come once, and come behind
// what its producer published before. Offsets that a reader passed over in silence are a gap; they
// are judged last, when it is known what others got there.
//
// What is lawful at `memory` and not at `synced`: offsets said to be lost, once the broker has
// crashed. A record that a live reader got there before is taken back with them: it may come again,
// behind later ones, when its producer had no confirm and sends it again.
//
// Bounded by memory alone: about 100 bytes per event.

/// A promise that the history shows to be broken.
package struct LogFault: Equatable, Sendable, CustomStringConvertible {
    package enum Kind: String, Hashable, Sendable, CaseIterable {
        /// Confirmed, and neither there nor, at `memory` and after a crash, said to be lost. Also a
        /// range said to be lost of what may not be.
        case lost
        /// Delivered or confirmed, and never published; or delivered, and then not in the log.
        case phantom
        /// One record twice, one offset twice, or one answer twice.
        case duplicate
        /// Behind what its producer published later, or behind a higher offset or epoch.
        case reordered
        /// Other bytes, another epoch, another place or another level than what was said before.
        case changed
        /// Offsets that a reader was not given, that hold nothing known, and that are not said to
        /// be lost.
        case skipped
    }

    package var kind: Kind
    package var text: String
    package var description: String { "\(kind.rawValue): \(text)" }
}

/// What a history comes to.
package struct LogReport: Sendable {
    package var published = 0
    package var confirmed = 0
    package var delivered = 0
    package var crashes = 0
    /// Confirmed, and in a range that is lawfully said to be lost.
    package var lostAsSaid = 0
    package var counts: [LogFault.Kind: Int] = [:]
    /// The first faults of each kind.
    package var faults: [LogFault] = []

    package var isGood: Bool { counts.isEmpty }

    private static let faultsMax = 10

    mutating func add(_ kind: LogFault.Kind, _ text: String) {
        counts[kind, default: 0] += 1
        if counts[kind, default: 0] <= Self.faultsMax {
            faults.append(LogFault(kind: kind, text: text))
        }
    }
}

/// Judges one history.
package struct LogChecker {
    /// - Throws: when the history contradicts itself, so that nothing can be said of the broker.
    package static func check(_ history: LogHistory) throws(HistoryError) -> LogReport {
        var checker = LogChecker()
        for (index, event) in history.events.enumerated() { try checker.take(event, index + 1) }
        return checker.judge()
    }

    private struct Name: Hashable {
        var producer: Int
        var sequence: UInt64
    }
    private struct Place: Hashable {
        var partition: UInt64
        var offset: UInt64
    }
    private struct PublishedRecord {
        var producer: Int
        var sequence: UInt64
        var partition: UInt64
        var payload: UInt64
        var level: LogEvent.Level
        var isConfirmed = false
        /// Where, if the confirm said so.
        var offset: UInt64?
        /// Its confirm said "stored before, I no longer know where".
        var isPlaceless = false
    }
    private struct Content {
        var payload: UInt64
        var epoch: UInt64
    }
    private enum Step {
        case delivered(offset: UInt64, epoch: UInt64, payload: UInt64)
        case lost(Range<UInt64>, epoch: UInt64)
    }
    /// One way of a reader through a partition.
    private struct Walk {
        var reader: Int
        var partition: UInt64
        var began: UInt64?
        var steps: [Step] = []
        var end: UInt64?
    }
    private struct WalkID: Hashable {
        var reader: Int
        var partition: UInt64
    }

    private var report = LogReport()
    private var names: [String] = []
    private var numbers: [String: Int] = [:]
    private var records: [PublishedRecord] = []
    private var byName: [Name: Int] = [:]
    private var byPayload: [UInt64: Int] = [:]
    private var confirms: [(confirmed: LogEvent.Confirmed, producer: Int)] = []
    private var walks: [Walk] = []
    private var openWalks: [WalkID: Int] = [:]
    private var orders: [Int: UInt64] = [:]
    /// The highest level that was published to each partition.
    private var levels: [UInt64: LogEvent.Level] = [:]

    // MARK: taking in

    private mutating func number(_ name: String) -> Int {
        if let known = numbers[name] { return known }
        numbers[name] = names.count
        names.append(name)
        return names.count - 1
    }

    private mutating func take(_ event: LogEvent, _ index: Int) throws(HistoryError) {
        func contradiction(_ text: String) -> HistoryError {
            HistoryError(line: index, reason: text)
        }
        switch event {
        case .published(let published):
            let producer = number(published.producer)
            let name = Name(producer: producer, sequence: published.sequence)
            guard byName.updateValue(records.count, forKey: name) == nil else {
                throw contradiction(
                    "\(published.producer) published sequence \(published.sequence) twice"
                )
            }
            guard byPayload.updateValue(records.count, forKey: published.payload) == nil else {
                throw contradiction("two records have the payload of this one")
            }
            let level = levels[published.partition] ?? .memory
            levels[published.partition] = max(level, published.level)
            records.append(
                PublishedRecord(
                    producer: producer,
                    sequence: published.sequence,
                    partition: published.partition,
                    payload: published.payload,
                    level: published.level
                )
            )
        case .confirmed(let confirmed):
            confirms.append((confirmed, number(confirmed.producer)))
        case .began(let reader, let partition, let offset):
            let id = WalkID(reader: number(reader), partition: partition)
            openWalks[id] = walks.count
            walks.append(Walk(reader: id.reader, partition: partition, began: offset))
        case .delivered(let delivered):
            report.delivered += 1
            let reader = number(delivered.reader)
            try count(reader, delivered.order, index)
            walks[walk(reader, delivered.partition)].steps.append(
                .delivered(
                    offset: delivered.offset,
                    epoch: delivered.epoch,
                    payload: delivered.payload
                )
            )
        case .lost(let lost):
            let reader = number(lost.reader)
            try count(reader, lost.order, index)
            walks[walk(reader, lost.partition)].steps.append(.lost(lost.offsets, epoch: lost.epoch))
        case .end(let reader, let partition, let offset):
            let place = walk(number(reader), partition)
            guard walks[place].end == nil else {
                throw contradiction("\(reader) ended partition \(partition) twice")
            }
            walks[place].end = offset
        case .crash: report.crashes += 1
        }
    }

    private mutating func count(
        _ reader: Int,
        _ order: UInt64,
        _ index: Int
    ) throws(HistoryError) {
        let expected = orders[reader] ?? 0
        guard order == expected else {
            throw HistoryError(
                line: index,
                reason: "\(names[reader]) has order \(order) where \(expected) was to come"
            )
        }
        orders[reader] = expected + 1
    }

    private mutating func walk(_ reader: Int, _ partition: UInt64) -> Int {
        let id = WalkID(reader: reader, partition: partition)
        if let open = openWalks[id] { return open }
        openWalks[id] = walks.count
        walks.append(Walk(reader: reader, partition: partition))
        return walks.count - 1
    }

    // MARK: judging

    private var confirmedAt: [Place: Int] = [:]
    /// Per partition, in order.
    private var confirmedOffsets: [UInt64: [UInt64]] = [:]
    private var contents: [Place: Content] = [:]
    /// Per partition: what was lawfully said to be lost, in order, without overlaps.
    private var takenBack: [UInt64: [Range<UInt64>]] = [:]
    /// Places whose content was found to be another than it should be: said once.
    private var changedPlaces: Set<Place> = []
    private var gaps: [(walk: Int, offsets: Range<UInt64>)] = []

    private mutating func judge() -> LogReport {
        report.published = records.count
        judgeConfirms()
        collectTakenBack()
        for index in walks.indices { judge(walk: index) }
        judgeGaps()
        judgeConfirmsWithoutPlace()
        for record in records {
            guard let offset = record.offset else { continue }
            if isTakenBack(record.partition, offset) { report.lostAsSaid += 1 }
        }
        return report
    }

    private func name(_ record: PublishedRecord) -> String {
        "record \(record.sequence) of \(names[record.producer])"
    }

    private mutating func judgeConfirms() {
        for (confirmed, producer) in confirms {
            let text = "\(names[producer]) sequence \(confirmed.sequence)"
            guard let index = byName[Name(producer: producer, sequence: confirmed.sequence)] else {
                report.add(.phantom, "\(text) was confirmed and never published")
                continue
            }
            guard !records[index].isConfirmed else {
                report.add(.duplicate, "\(text) was confirmed twice")
                continue
            }
            report.confirmed += 1
            records[index].isConfirmed = true
            if confirmed.partition != records[index].partition {
                report.add(
                    .changed,
                    "\(text), for partition \(records[index].partition), was confirmed in "
                        + "\(confirmed.partition)"
                )
                continue
            }
            if confirmed.level < records[index].level {
                report.add(
                    .changed,
                    "\(text), for \(records[index].level), was confirmed at \(confirmed.level)"
                )
            }
            guard let offset = confirmed.offset else {
                records[index].isPlaceless = true
                continue
            }
            let place = Place(partition: confirmed.partition, offset: offset)
            if let other = confirmedAt[place] {
                report.add(
                    .duplicate,
                    "offset \(offset) of partition \(confirmed.partition) was confirmed to \(text) "
                        + "and to \(name(records[other]))"
                )
                continue
            }
            confirmedAt[place] = index
            records[index].offset = offset
        }
        for place in confirmedAt.keys {
            confirmedOffsets[place.partition, default: []].append(place.offset)
        }
        for partition in confirmedOffsets.keys { confirmedOffsets[partition]?.sort() }
        judgeConfirmedOrder()
    }

    /// A producer's sequences and their offsets rise together.
    private mutating func judgeConfirmedOrder() {
        struct Lane: Hashable {
            var producer: Int
            var partition: UInt64
        }
        var last: [Lane: PublishedRecord] = [:]
        let confirmed = records.filter { $0.offset != nil }.sorted { $0.sequence < $1.sequence }
        for record in confirmed {
            let lane = Lane(producer: record.producer, partition: record.partition)
            if let before = last[lane], (before.offset ?? 0) > (record.offset ?? 0) {
                report.add(
                    .reordered,
                    "\(name(record)) was confirmed at \(record.offset ?? 0), sequence "
                        + "\(before.sequence) before it at \(before.offset ?? 0)"
                )
            }
            last[lane] = record
        }
    }

    private mutating func collectTakenBack() {
        var said: [UInt64: [Range<UInt64>]] = [:]
        for walk in walks {
            for case .lost(let offsets, _) in walk.steps {
                if let level = levels[walk.partition], level > .memory {
                    report.add(
                        .lost,
                        "\(place(walk)): \(offsets) of a \(level) partition are said to be lost"
                    )
                    continue
                }
                if report.crashes == 0 {
                    report.add(
                        .lost,
                        "\(place(walk)): \(offsets) are said to be lost, without a crash"
                    )
                    continue
                }
                said[walk.partition, default: []].append(offsets)
            }
        }
        for (partition, ranges) in said {
            var merged: [Range<UInt64>] = []
            for range in ranges.sorted(by: { $0.lowerBound < $1.lowerBound }) {
                if let last = merged.last, range.lowerBound <= last.upperBound {
                    merged[merged.count - 1] =
                        last.lowerBound..<max(last.upperBound, range.upperBound)
                } else {
                    merged.append(range)
                }
            }
            takenBack[partition] = merged
        }
    }

    private func isTakenBack(_ partition: UInt64, _ offset: UInt64) -> Bool {
        let ranges = takenBack[partition] ?? []
        let index = Self.firstIndex(0..<ranges.count) { ranges[$0].upperBound > offset }
        return index < ranges.count && ranges[index].contains(offset)
    }

    /// The first index for which `isBehind` holds, which then holds for all that follow.
    private static func firstIndex(_ indexes: Range<Int>, _ isBehind: (Int) -> Bool) -> Int {
        var (low, high) = (indexes.lowerBound, indexes.upperBound)
        while low < high {
            let middle = low + (high - low) / 2
            if isBehind(middle) { high = middle } else { low = middle + 1 }
        }
        return low
    }

    private func place(_ walk: Walk) -> String {
        "\(names[walk.reader]), partition \(walk.partition)"
    }

    /// What a walk has seen so far.
    private struct Progress {
        var next: UInt64?
        var epoch: UInt64 = 0
        var gaps: [Range<UInt64>] = []
        var lost: [Range<UInt64>] = []
        var seen: Set<Int> = []
        /// By producer.
        var sequences: [Int: UInt64] = [:]
    }

    private mutating func judge(walk index: Int) {
        let walk = walks[index]
        walks[index].steps = []
        var progress = Progress(next: walk.began)
        for step in walk.steps {
            switch step {
            case .delivered(let offset, let epoch, let payload):
                judge(walk, &progress, offset, Content(payload: payload, epoch: epoch))
            case .lost(let offsets, let epoch):
                judgeEpoch(walk, &progress, offsets.lowerBound, epoch)
                if let next = progress.next, offsets.lowerBound < next {
                    report.add(
                        .duplicate,
                        "\(place(walk)): \(offsets) are said to be lost, \(next) was to come"
                    )
                }
                pass(&progress, to: offsets.lowerBound)
                progress.next = max(progress.next ?? 0, offsets.upperBound)
                progress.lost.append(offsets)
            }
        }
        if let end = walk.end {
            if let next = progress.next, next > end {
                report.add(.phantom, "\(place(walk)): delivered up to \(next), the end is \(end)")
            }
            pass(&progress, to: end)
            judgeBeyond(walk, end)
        }
        gaps += progress.gaps.map { (index, $0) }
    }

    /// Notes what lies between what was to come and `offset`.
    private func pass(_ progress: inout Progress, to offset: UInt64) {
        if let next = progress.next, next < offset { progress.gaps.append(next..<offset) }
        progress.next = max(progress.next ?? 0, offset)
    }

    private mutating func judgeEpoch(
        _ walk: Walk,
        _ progress: inout Progress,
        _ offset: UInt64,
        _ epoch: UInt64
    ) {
        if epoch < progress.epoch {
            report.add(
                .reordered,
                "\(place(walk)) offset \(offset): epoch \(epoch) behind \(progress.epoch)"
            )
        }
        progress.epoch = max(progress.epoch, epoch)
    }

    private mutating func judge(
        _ walk: Walk,
        _ progress: inout Progress,
        _ offset: UInt64,
        _ content: Content
    ) {
        let text = "\(place(walk)) offset \(offset)"
        var isLate = false
        if let next = progress.next, offset < next {
            if let gap = progress.gaps.firstIndex(where: { $0.contains(offset) }) {
                report.add(.reordered, "\(text) came behind offset \(next - 1)")
                let passed = progress.gaps.remove(at: gap)
                let parts = [passed.lowerBound..<offset, offset + 1..<passed.upperBound]
                progress.gaps += parts.filter { !$0.isEmpty }
                isLate = true
            } else if progress.lost.contains(where: { $0.contains(offset) }) {
                report.add(.phantom, "\(text) was delivered, and before said to be lost")
                return
            } else {
                report.add(.duplicate, "\(text) was delivered twice")
                return
            }
        } else {
            pass(&progress, to: offset)
            progress.next = offset + 1
            judgeEpoch(walk, &progress, offset, content.epoch)
        }
        guard let index = identify(walk, offset, content, text) else { return }
        // What was taken back may come again, and what was published before it as well.
        if isTakenBack(walk.partition, offset) { return }
        let record = records[index]
        guard progress.seen.insert(index).inserted else {
            report.add(.duplicate, "\(text) is \(name(record)), which came before")
            return
        }
        guard !isLate else { return }
        if let last = progress.sequences[record.producer], record.sequence < last {
            report.add(.reordered, "\(text) is \(name(record)), behind \(last)")
        }
        progress.sequences[record.producer] = max(
            progress.sequences[record.producer] ?? 0,
            record.sequence
        )
    }

    /// Whose record it is; `nil` when it is none that could be there, which is then said.
    private mutating func identify(
        _ walk: Walk,
        _ offset: UInt64,
        _ content: Content,
        _ text: String
    ) -> Int? {
        let place = Place(partition: walk.partition, offset: offset)
        if let known = contents[place] {
            if known.payload != content.payload || known.epoch != content.epoch {
                if changedPlaces.insert(place).inserted {
                    report.add(.changed, "\(text) is another than another reader got there")
                }
                return nil
            }
        } else {
            contents[place] = content
        }
        if let expected = confirmedAt[place], records[expected].payload != content.payload {
            if changedPlaces.insert(place).inserted {
                report.add(.changed, "\(text) is not \(name(records[expected])), confirmed there")
            }
            return nil
        }
        guard let index = byPayload[content.payload], records[index].partition == walk.partition
        else {
            report.add(.phantom, "\(text) was never published to this partition")
            return nil
        }
        return index
    }

    /// What was confirmed must lie below the end.
    private mutating func judgeBeyond(_ walk: Walk, _ end: UInt64) {
        let offsets = confirmedOffsets[walk.partition] ?? []
        let first = Self.firstIndex(0..<offsets.count) { offsets[$0] >= end }
        for offset in offsets[first...] {
            report.add(.lost, "\(place(walk)): confirmed at \(offset), the end is \(end)")
        }
    }

    private mutating func judgeGaps() {
        var known: [UInt64: [UInt64]] = [:]
        if !gaps.isEmpty {
            for place in contents.keys { known[place.partition, default: []].append(place.offset) }
            for partition in known.keys { known[partition]?.sort() }
        }
        for (index, gap) in gaps {
            let walk = walks[index]
            let confirmed = Self.part(confirmedOffsets[walk.partition] ?? [], gap)
            for offset in confirmed {
                report.add(.lost, "\(place(walk)): nothing at \(offset), which was confirmed")
            }
            let others = Self.part(known[walk.partition] ?? [], gap).filter { offset in
                confirmedAt[Place(partition: walk.partition, offset: offset)] == nil
            }
            for offset in others {
                report.add(.phantom, "\(place(walk)): nothing at \(offset), which another got")
            }
            let count = gap.upperBound - gap.lowerBound
            let rest = count - UInt64(confirmed.count + others.count)
            if rest > 0 {
                report.add(
                    .skipped, "\(place(walk)): \(rest) offsets of \(gap) are not accounted for")
            }
        }
    }

    private static func part(_ offsets: [UInt64], _ range: Range<UInt64>) -> ArraySlice<UInt64> {
        let first = firstIndex(0..<offsets.count) { offsets[$0] >= range.lowerBound }
        let last = firstIndex(first..<offsets.count) { offsets[$0] >= range.upperBound }
        return offsets[first..<last]
    }

    /// "Stored before, I no longer know where": it must be somewhere, where somebody read all.
    private mutating func judgeConfirmsWithoutPlace() {
        let whole = Set(walks.filter { $0.began == 0 && $0.end != nil }.map(\.partition))
        let payloads = Set(contents.values.map(\.payload))
        for record in records
        where record.isPlaceless && whole.contains(record.partition)
            && !payloads.contains(record.payload)
        {
            if record.level == .memory, takenBack[record.partition] != nil {
                report.lostAsSaid += 1
            } else {
                report.add(.lost, "\(name(record)) was confirmed, and is nowhere")
            }
        }
    }
}
