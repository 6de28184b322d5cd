/// How much room the file system of the data directory has, as `statvfs` tells an ordinary user.
package struct DiskSpace: Sendable, Equatable {
    package var usedBytes: UInt64
    package var availableBytes: UInt64

    package init(usedBytes: UInt64, availableBytes: UInt64) {
        self.usedBytes = usedBytes
        self.availableBytes = availableBytes
    }
    package var totalBytes: UInt64 { usedBytes &+ availableBytes }

    /// True when `percent` of the room or more is used.
    package func isUsed(percent: Int) -> Bool {
        let (used, mark) = (
            usedBytes.multipliedFullWidth(by: 100),
            totalBytes.multipliedFullWidth(by: UInt64(max(0, percent)))
        )
        return (used.high, used.low) >= (mark.high, mark.low)
    }

    /// Rounded down; 100 when there is no room at all.
    package var usedPercent: Int {
        totalBytes == 0 ? 100 : Int(usedBytes.multipliedFullWidth(by: 100).low / totalBytes)
    }
}

/// What is still done on a disk that fills up. Each level does less than the one before.
package enum DiskLevel: UInt8, Sendable, Comparable, CaseIterable {
    case ok
    /// Said, and all is done.
    case warn
    /// No new records.
    case refuse
    /// No new queues and producers either; reads, acks, deletes and purges go on.
    case readsOnly

    package static func < (left: DiskLevel, right: DiskLevel) -> Bool {
        left.rawValue < right.rawValue
    }
    package var name: String {
        switch self {
        case .ok: "ok"
        case .warn: "warn"
        case .refuse: "refuse"
        case .readsOnly: "reads-only"
        }
    }
}

/// At how many per cent each level begins.
package struct DiskMarks: Sendable, Equatable {
    package var warn = 80
    package var refuse = 90
    package var readsOnly = 95

    package init() {}

    func mark(of level: DiskLevel) -> Int {
        switch level {
        case .ok: 0
        case .warn: warn
        case .refuse: refuse
        case .readsOnly: readsOnly
        }
    }
}

/// Turns what is used into a level. A level begins at its mark and ends two per cent below, so that a
/// disk that hovers at a mark is not spoken of all the time.
package struct DiskGauge {
    package static let slackPercent = 2

    package private(set) var space: DiskSpace?
    package private(set) var level = DiskLevel.ok

    package init() {}

    /// - Returns: true when the level is another one now.
    package mutating func observe(_ space: DiskSpace, _ marks: DiskMarks) -> Bool {
        self.space = space
        let before = level
        level = .ok
        for next in DiskLevel.allCases.dropFirst() {
            let slack = next <= before ? Self.slackPercent : 0
            if space.isUsed(percent: marks.mark(of: next) - slack) { level = next }
        }
        return level != before
    }
}
