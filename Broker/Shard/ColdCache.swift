internal import BrokerBasics
internal import LogStorage

// How it works. A segment is read in stretches that begin where its index points: each is about a MiB, begins
// and ends with whole chunks, and is the same for whoever reads there. So readers of the same range find
// what one of them had read. A stretch's memory is filled from its front, by reads of at most `pieceBytes`
// and only as far as somebody wants; what came can be delivered while the rest is on its way.
//
//     segment    | header | chunk chunk chunk chunk | chunk chunk chunk chunk | ...
//     stretches           |<-- 0 ------------------>|<-- 1 ------------------>|
//     of 1       filled ------->|  asked ---->|  wanted ->|
//
// A stretch that somebody holds stays. One that nobody holds stays until its memory is needed for another, the
// longest unused first. All memory together is within a budget.

/// Which file of a partition's log.
struct SegmentKey: Hashable {
    var partition: UInt32
    var base: UInt64
    var term: UInt64

    var file: FileName { .segment(partition: partition, baseOffset: base, term: term) }
}

/// Part of one segment in memory, or on its way there.
struct ColdStretch {
    fileprivate(set) var segment = SegmentKey(partition: 0, base: 0, term: 0)
    /// Of its first byte, in the file.
    fileprivate(set) var position: UInt64 = 0
    fileprivate(set) var bytes = 0
    fileprivate(set) var memory: UnsafeMutableRawPointer?
    fileprivate(set) var capacity = 0
    /// Where it is open; -1: nowhere.
    var file = -1

    fileprivate(set) var pieceBytes = 0
    fileprivate(set) var wanted = 0
    fileprivate(set) var asked = 0
    /// From the front, without a hole.
    fileprivate(set) var filled = 0
    fileprivate var donePieces: UInt64 = 0
    fileprivate var shortReads = 0
    fileprivate(set) var inFlight = 0
    /// Where what could not be read begins; beyond the end when all could.
    fileprivate(set) var brokenAt = Int.max
    /// Why; 0: the file ends there.
    fileprivate(set) var errno: Int32 = 0

    fileprivate(set) var users = 0
    fileprivate var lastUse: UInt64 = 0
    fileprivate var isPending = false
    /// Blocks at which a chunk begins whose checksum was found to hold.
    private var verified: [UInt64] = []
    /// Readers that are to be tried again when more of it came.
    var waiters: [Int32] = []

    fileprivate var isIdle: Bool { users == 0 && inFlight == 0 }
    var isBroken: Bool { brokenAt != .max }
    var needsFile: Bool { file < 0 && asked < wanted && !isBroken }

    fileprivate mutating func begin(_ segment: SegmentKey, position: UInt64, bytes: Int) {
        self.segment = segment
        self.position = position
        self.bytes = bytes
        file = -1
        wanted = 0
        asked = 0
        filled = 0
        donePieces = 0
        shortReads = 0
        brokenAt = .max
        errno = 0
        isPending = false
        waiters.removeAll(keepingCapacity: true)
        let words = (bytes / ChunkHeader.blockBytes + 64) / 64
        verified.removeAll(keepingCapacity: true)
        verified.append(contentsOf: repeatElement(0, count: words))
    }

    func isVerified(at byte: Int) -> Bool {
        let block = byte / ChunkHeader.blockBytes
        return verified[block / 64] & 1 << UInt64(block % 64) != 0
    }
    mutating func noteVerified(at byte: Int) {
        let block = byte / ChunkHeader.blockBytes
        verified[block / 64] |= 1 << UInt64(block % 64)
    }

    fileprivate func pieceSize(at byte: Int) -> Int { min(pieceBytes, bytes - byte) }

    fileprivate mutating func fill() {
        while filled < asked, filled % pieceBytes == 0, filled / pieceBytes < 64,
            donePieces & 1 << UInt64(filled / pieceBytes) != 0
        {
            filled += pieceSize(at: filled)
        }
        // The front of a read that came back short.
        if isBroken, filled <= brokenAt, brokenAt - filled < pieceBytes { filled = brokenAt }
    }
}

/// The memory through which segments are read, within its budget.
struct ColdCache {
    let budgetBytes: Int
    /// What a stretch has as a rule, and what one chunk can make it have.
    let stretchBytes: Int
    let stretchBytesMax: Int
    let pieceBytes: Int

    private(set) var stretches: [ColdStretch] = []
    private(set) var usedBytes = 0
    private(set) var readsInFlight = 0
    private var pending = Fifo<Int32>(capacity: 16)
    /// Reads that came back short, to be done again.
    private var retries: [StorageRequest] = []
    private var uses: UInt64 = 0

    static let shortReadsMax = 4
    /// Of one stretch: there is a bit for each.
    private static let piecesMax = 64

    init(budgetBytes: Int, stretchBytes: Int, stretchBytesMax: Int, pieceBytes: Int) {
        self.budgetBytes = budgetBytes
        self.stretchBytes = stretchBytes
        self.stretchBytesMax = stretchBytesMax
        self.pieceBytes = pieceBytes
    }

    func free() { for stretch in stretches { stretch.memory?.deallocate() } }

    subscript(index: Int32) -> ColdStretch {
        _read { yield stretches[Int(index)] }
        _modify { yield &stretches[Int(index)] }
    }

    // MARK: memory

    /// The stretch that has `bytes` at `position`, in memory or on its way.
    func find(_ segment: SegmentKey, at position: UInt64, bytes: Int) -> Int32? {
        for index in stretches.indices {
            guard stretches[index].segment == segment, stretches[index].bytes > 0,
                !stretches[index].isBroken, stretches[index].position <= position,
                position + UInt64(bytes)
                    <= stretches[index].position + UInt64(stretches[index].bytes)
            else { continue }
            return Int32(index)
        }
        return nil
    }

    /// Memory for a stretch, or `nil` when all within the budget is held.
    mutating func take(_ segment: SegmentKey, at position: UInt64, bytes: Int) -> Int32? {
        let capacity = max(stretchBytes, bytes.roundedUp(to: ChunkHeader.blockBytes))
        while usedBytes + capacity > budgetBytes {
            guard let oldest = oldestIdle else { return nil }
            if stretches[oldest].capacity >= capacity {
                return begin(oldest, segment, position, bytes)
            }
            giveMemory(oldest)
        }
        let place = emptyPlace()
        stretches[place].memory = .allocate(
            byteCount: capacity, alignment: AlignedMemory.alignment)
        stretches[place].capacity = capacity
        usedBytes += capacity
        return begin(place, segment, position, bytes)
    }

    private mutating func begin(
        _ place: Int, _ segment: SegmentKey, _ position: UInt64, _ bytes: Int
    ) -> Int32 {
        stretches[place].begin(segment, position: position, bytes: bytes)
        let least = (bytes + Self.piecesMax - 1) / Self.piecesMax
        stretches[place].pieceBytes = max(
            pieceBytes, least.roundedUp(to: ChunkHeader.blockBytes))
        uses += 1
        stretches[place].lastUse = uses
        return Int32(place)
    }

    private mutating func giveMemory(_ place: Int) {
        usedBytes -= stretches[place].capacity
        stretches[place].memory?.deallocate()
        stretches[place].memory = nil
        stretches[place].capacity = 0
        stretches[place].bytes = 0
    }

    private mutating func emptyPlace() -> Int {
        if let empty = stretches.firstIndex(where: { $0.memory == nil }) { return empty }
        stretches.append(ColdStretch())
        return stretches.count - 1
    }

    private var oldestIdle: Int? {
        stretches.indices.filter { stretches[$0].memory != nil && stretches[$0].isIdle }
            .min { stretches[$0].lastUse < stretches[$1].lastUse }
    }

    /// True when a stretch as they are as a rule would find memory.
    var hasRoom: Bool {
        usedBytes + stretchBytes <= budgetBytes
            || stretches.contains { $0.memory != nil && $0.isIdle }
    }

    mutating func hold(_ index: Int32) {
        uses += 1
        self[index].lastUse = uses
        self[index].users += 1
    }

    /// - Returns: true when nobody holds it any more: nothing more of it is read.
    mutating func release(_ index: Int32) -> Bool {
        invariant(self[index].users > 0, "stretch \(index) is held by nobody")
        self[index].users -= 1
        guard self[index].users == 0 else { return false }
        self[index].wanted = self[index].asked
        return self[index].inFlight == 0
    }

    // MARK: reading

    /// Asks for the front of a stretch, up to `bytes`.
    mutating func want(_ index: Int32, upTo bytes: Int) {
        let wanted = min(bytes.roundedUp(to: self[index].pieceBytes), self[index].bytes)
        guard wanted > self[index].wanted else { return }
        self[index].wanted = wanted
        list(index)
    }

    /// Notes that there may be something to read: its file is open, or more is wanted.
    mutating func list(_ index: Int32) {
        guard !self[index].isPending, self[index].asked < self[index].wanted,
            self[index].file >= 0, !self[index].isBroken
        else { return }
        self[index].isPending = true
        pending.append(index)
    }

    func canRead(inFlightMax: Int) -> Bool {
        !retries.isEmpty || (!pending.isEmpty && readsInFlight < inFlightMax)
    }

    /// The next read, each stretch in its turn; `slot` tells where its file is open, or that it is not yet.
    mutating func nextRead(
        inFlightMax: Int, slot: (_ file: Int) -> FileSlot?
    ) -> StorageRequest? {
        if let retry = retries.popLast() { return retry }
        guard readsInFlight < inFlightMax else { return nil }
        while let index = pending.first {
            pending.removeFirst()
            self[index].isPending = false
            guard self[index].asked < self[index].wanted, !self[index].isBroken,
                self[index].file >= 0, let slot = slot(self[index].file)
            else { continue }
            let at = self[index].asked
            self[index].asked += self[index].pieceSize(at: at)
            self[index].inFlight += 1
            readsInFlight += 1
            list(index)
            return request(index, at, slot: slot)
        }
        return nil
    }

    private func request(_ index: Int32, _ at: Int, slot: FileSlot) -> StorageRequest? {
        guard let memory = self[index].memory else { return nil }
        return StorageRequest(
            token: Token.make(
                .cold, UInt64(index) << 8 | UInt64(at / self[index].pieceBytes)),
            operation: .read(
                slot: slot, into: memory + at, bytes: self[index].pieceSize(at: at),
                position: self[index].position + UInt64(at)))
    }

    /// A read is done.
    ///
    /// - Returns: the stretch, if readers that wait for it are to be tried again.
    mutating func completed(
        _ value: UInt64, result: Int32, slot: (_ file: Int) -> FileSlot?
    ) -> Int32? {
        let index = Int32(truncatingIfNeeded: value >> 8)
        let piece = Int(value & 0xFF)
        let at = piece * self[index].pieceBytes
        let wanted = self[index].pieceSize(at: at)
        if result >= 0, result < wanted, self[index].shortReads < Self.shortReadsMax,
            self[index].users > 0, let slot = slot(self[index].file),
            let again = request(index, at, slot: slot)
        {
            self[index].shortReads += 1
            retries.append(again)
            return nil
        }
        readsInFlight -= 1
        self[index].inFlight -= 1
        if result >= wanted {
            self[index].donePieces |= 1 << UInt64(piece)
        } else if at < self[index].brokenAt {
            self[index].brokenAt = at + Int(max(0, result))
            self[index].errno = result < 0 ? -result : 0
        }
        self[index].fill()
        return index
    }

    /// The file can't be opened: nothing of the stretch comes.
    mutating func fail(_ index: Int32, errno: Int32) {
        self[index].brokenAt = min(self[index].brokenAt, self[index].asked)
        self[index].errno = errno
    }
}
