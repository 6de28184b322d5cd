/// What one producer sent, and what the broker said of it. Filled by the producer's thread.
package struct SentHistory: Sendable {
    package enum Outcome: Equatable, Sendable {
        /// Sent, and never answered.
        case unconfirmed
        case confirmed(offset: UInt64)
        /// A duplicate whose place the broker no longer knew.
        case confirmedSomewhere
    }

    package let stream: ReplayStream
    /// By record number; the two highest offsets stand for the outcomes without one.
    private var places: [UInt64] = []
    package private(set) var confirmedCount = 0
    /// Confirms that broke the protocol: of a level below the queue's, twice, of nothing.
    package private(set) var faults: [String] = []

    private static let unconfirmed = UInt64.max
    private static let somewhere = UInt64.max - 1

    package init(stream: ReplayStream) { self.stream = stream }

    package var sentCount: Int { places.count }

    /// Notes that the next record is given to the client.
    ///
    /// - Returns: its number.
    package mutating func send() -> UInt64 {
        places.append(Self.unconfirmed)
        return UInt64(places.count - 1)
    }

    /// - Parameter offset: `nil` for a duplicate whose place is not known.
    package mutating func confirm(_ number: UInt64, offset: UInt64?) {
        guard number < UInt64(places.count), places[Int(number)] == Self.unconfirmed else {
            fault("record \(number) was confirmed twice, or never sent")
            return
        }
        places[Int(number)] = offset ?? Self.somewhere
        confirmedCount += 1
    }

    package mutating func fault(_ text: String) {
        if faults.count < 20 { faults.append(text) }
    }

    package func outcome(_ number: UInt64) -> Outcome {
        switch places[Int(number)] {
        case Self.unconfirmed: .unconfirmed
        case Self.somewhere: .confirmedSomewhere
        case let offset: .confirmed(offset: offset)
        }
    }
}
