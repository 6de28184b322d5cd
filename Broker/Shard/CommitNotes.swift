internal import BrokerCore

/// What each journal group commits: partition and its end, in the order of groups. One list per
/// durability level that waits for the journal.
struct CommitNotes {
    struct Note {
        var group: UInt64
        var partition: Int32
        var partitionID: UInt32
        var end: UInt64
    }
    private var notes = Fifo<Note>(capacity: 1024)
    /// Notes ever made: a partition's note is found from the end.
    private var made: UInt64 = 0

    /// Notes that `group` commits the partition up to `end`; one note per partition and group.
    @inline(__always)
    mutating func note(
        _ partition: UnsafeMutablePointer<Partition>, _ index: Int32, end: UInt64, group: UInt64
    ) {
        if partition.pointee.touchedGroup == group {
            let back = made &- 1 &- partition.pointee.touchIndex
            notes.updateLast(Int(back)) { $0.end = end }
            return
        }
        partition.pointee.touchedGroup = group
        partition.pointee.touchIndex = made
        made &+= 1
        notes.append(
            Note(group: group, partition: index, partitionID: partition.pointee.id, end: end))
    }

    /// The next note of a group below `group`.
    @inline(__always)
    mutating func take(below group: UInt64) -> Note? {
        guard let note = notes.first, note.group < group else { return nil }
        notes.removeFirst()
        return note
    }
}
