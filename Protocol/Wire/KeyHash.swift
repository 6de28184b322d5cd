/// The frozen map from a record's key to a partition (SPEC.md, section 5.4); computed by clients.
///
/// FNV-1a, 64 bit, over the key, then MurmurHash3's `fmix64`, then the high 32 bits scaled to the
/// number of partitions (Lemire, 2016).
public enum KeyHash {
    public static func hash(_ key: some Sequence<UInt8>) -> UInt64 {
        var state: UInt64 = 0xCBF2_9CE4_8422_2325
        for byte in key {
            state = (state ^ UInt64(byte)) &* 0x0000_0100_0000_01B3
        }
        state = (state ^ (state >> 33)) &* 0xFF51_AFD7_ED55_8CCD
        state = (state ^ (state >> 33)) &* 0xC4CE_B9FE_1A85_EC53
        return state ^ (state >> 33)
    }

    /// The index of the partition, `0 ..< partitionCount`.
    public static func partition(of key: some Sequence<UInt8>, partitionCount: Int) -> Int {
        Int(((hash(key) >> 32) &* UInt64(max(1, partitionCount))) >> 32)
    }
}
