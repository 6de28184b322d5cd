internal import BrokerBasics
package import WireProtocol

/// An answer that waits for a journal group: a run of publishes, or an ack.
package struct PendingAnswer {
    package enum Kind: UInt8 {
        case confirm
        case ack
    }
    package var entry: ConfirmEntry
    /// The answer may leave when every group up to this one is durable.
    package var group: UInt64
    package var kind: Kind
    /// Of an ack: the subscription.
    package var stream: UInt32

    package init(entry: ConfirmEntry, group: UInt64, kind: Kind, stream: UInt32 = 0) {
        self.entry = entry
        self.group = group
        self.kind = kind
        self.stream = stream
    }
}

/// The answers of one connection in the order of their groups. Consecutive publishes that lie side by
/// side become one run, so that a confirm is cumulative.
package struct ConfirmQueue {
    private var entries: UnsafeMutablePointer<PendingAnswer>?
    private var capacity = 0
    private var head = 0
    package private(set) var count = 0

    package init() {}

    @inline(__always) package var isEmpty: Bool { count == 0 }
    @inline(__always) package var first: PendingAnswer? { count > 0 ? entries?[head] : nil }

    /// Adds a confirmed publish: extends the last run or begins a new one.
    ///
    /// - Returns: false when `runsMax` runs wait; the publish must wait too.
    @inline(__always)
    package mutating func add(_ answer: PendingAnswer, runsMax: Int) -> Bool {
        if count > 0, let entries {
            let last = entries + ((head &+ count &- 1) & (capacity &- 1))
            // Overflow is impossible: a run is at most 2^31 requests, see the guard.
            if answer.kind == .confirm, last.pointee.kind == .confirm,
                last.pointee.group == answer.group,
                last.pointee.entry.partition == answer.entry.partition,
                last.pointee.entry.correlation &+ UInt64(last.pointee.entry.requests)
                    == answer.entry.correlation,
                last.pointee.entry.endOffset == answer.entry.baseOffset,
                last.pointee.entry.epoch == answer.entry.epoch,
                last.pointee.entry.flags == answer.entry.flags,
                last.pointee.entry.level == answer.entry.level,
                last.pointee.entry.records < 1 << 31
            {
                last.pointee.entry.requests &+= 1
                last.pointee.entry.records &+= answer.entry.records
                return true
            }
        }
        return append(answer, runsMax: runsMax)
    }

    private mutating func append(_ answer: PendingAnswer, runsMax: Int) -> Bool {
        if count == capacity {
            guard capacity < runsMax else { return false }
            grow()
        }
        guard let entries else { return false }
        (entries + ((head + count) & (capacity - 1))).initialize(to: answer)
        count += 1
        return true
    }

    private mutating func grow() {
        let larger = max(16, capacity * 2)
        let fresh = UnsafeMutablePointer<PendingAnswer>.allocate(capacity: larger)
        for place in 0..<count {
            if let entries {
                (fresh + place).initialize(to: entries[(head + place) & (capacity - 1)])
            }
        }
        entries?.deallocate()
        entries = fresh
        capacity = larger
        head = 0
    }

    @inline(__always) package mutating func removeFirst() {
        head = (head &+ 1) & (capacity &- 1)
        count &-= 1
    }

    package mutating func release() {
        entries?.deallocate()
        self = ConfirmQueue()
    }
}
