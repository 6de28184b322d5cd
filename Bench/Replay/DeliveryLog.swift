/// What one reader got, in the order in which it came. Filled by the reader's thread.
package struct DeliveryLog: Sendable {
    package struct Delivery: Sendable, CustomStringConvertible {
        /// The partition's index in its queue.
        package var partition: UInt32
        package var offset: UInt64
        package var tag: RecordTag

        package init(partition: UInt32, offset: UInt64, tag: RecordTag) {
            self.partition = partition
            self.offset = offset
            self.tag = tag
        }
        package var description: String { "\(tag) at offset \(offset) of partition \(partition)" }
    }

    package var deliveries: [Delivery] = []
    /// What was wrong with a delivery by itself.
    package private(set) var violations: [(Violation, String)] = []
    private static let violationsMax = 1_000

    package init() {}

    package mutating func add(_ violation: Violation, _ text: @autoclosure () -> String) {
        if violations.count < Self.violationsMax { violations.append((violation, text())) }
    }
}
