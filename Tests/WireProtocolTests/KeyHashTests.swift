import BrokerBasics
import Testing
import WireProtocol

@Suite("the key hash")
struct KeyHashTests {
    struct Vector: Sendable, CustomTestStringConvertible {
        let testDescription: String
        let key: [UInt8]
        let hash: UInt64
        /// Of 3, 8, 16 and 1,000 partitions.
        let indices: [Int]

        init(_ name: String, _ key: [UInt8], _ hash: UInt64, _ indices: [Int]) {
            testDescription = name
            self.key = key
            self.hash = hash
            self.indices = indices
        }
        init(_ text: String, _ hash: UInt64, _ indices: [Int]) {
            self.init(text, [UInt8](text.utf8), hash, indices)
        }
    }

    /// The table of SPEC.md, section 5.4, which never changes.
    static let vectors = [
        Vector("no bytes", [], 0xEFD0_1F60_BA99_2926, [2, 7, 14, 936]),
        Vector("zero", [0], 0xB903_4AD3_7056_F5FB, [2, 5, 11, 722]),
        Vector("a", 0x82A2_A958_A9BE_CE5B, [1, 4, 8, 510]),
        Vector("EURUSD", 0x7BB3_8292_0B2B_5D67, [1, 3, 7, 483]),
        Vector("order-1", 0x491B_422E_3AF0_D9A5, [0, 2, 4, 285]),
        Vector("order-2", 0xAACA_0C2A_EAE3_9BAB, [2, 5, 10, 667]),
        Vector("Zürich", 0x24B2_2821_293C_05D0, [0, 1, 2, 143]),
        Vector("0 ... 255", [UInt8](0...255), 0x2067_DB6D_BD4E_FA06, [0, 1, 2, 126]),
    ]

    @Test("the frozen vectors", arguments: vectors)
    func frozen(vector: Vector) {
        #expect(KeyHash.hash(vector.key) == vector.hash)
        for (count, index) in zip([3, 8, 16, 1000], vector.indices) {
            #expect(KeyHash.partition(of: vector.key, partitionCount: count) == index)
        }
        #expect(KeyHash.partition(of: vector.key, partitionCount: 1) == 0)
    }

    @Test("keys spread evenly, also when they count up")
    func spread() {
        var counts = [Int](repeating: 0, count: 7)
        for key in 0..<70_000 {
            counts[KeyHash.partition(of: "order-\(key)".utf8, partitionCount: 7)] += 1
        }
        #expect(counts.allSatisfy { (9_500...10_500).contains($0) }, "\(counts)")
    }

    @Test("the index is below the number of partitions, for every number")
    func bounds() {
        var random = SeededRandom(seed: 0x5EED_0005)
        for _ in 0..<10_000 {
            let count = 1 + random.below(Int(UInt32.max))
            let key = withUnsafeBytes(of: random.next()) { [UInt8]($0) }
            #expect((0..<count).contains(KeyHash.partition(of: key, partitionCount: count)))
        }
    }
}
