package import BrokerBasics
package import LogStorage

// How it works. A file is its durable bytes plus the writes that came since and are not known to be
// on stable storage, in order. A sync, or a synced write's completion, makes writes durable. A power
// cut keeps any subset of the sectors of the others; a killed process leaves the completed ones in
// the device's cache, where the next power cut may still take them. Names are treated alike: made or
// removed names are durable only after a sync of their directory.

/// A disk in memory that loses what a real one may lose.
package final class SimulatedDisk {
    package static let sectorBytes = 512

    private struct PendingWrite {
        var id: Int
        var position: Int
        var bytes: [UInt8]
        var isComplete: Bool
    }
    private struct Inode {
        var durable: [UInt8] = []
        var pending: [PendingWrite] = []
        /// The length with everything that was done, durable or not.
        var length = 0
        var durableLength = 0
    }
    /// A file of one shard's folder; segments are everybody's.
    private struct Name: Hashable {
        var shard: UInt16
        var file: FileName
        init(_ file: FileName, _ shard: UInt16) {
            self.shard = file.directory == .segments ? 0 : shard
            self.file = file
        }
    }
    private enum NameChange {
        case made(Name, Int)
        case removed(Name)
        var name: Name {
            switch self {
            case .made(let name, _), .removed(let name): name
            }
        }
    }

    /// By number; 0 is nobody's, and what is done to it is lost.
    private var inodes = [Inode()]
    private var names: [Name: Int] = [:]
    private var durableNames: [Name: Int] = [:]
    private var pendingNames: [NameChange] = []
    private var nextWrite = 1

    /// Recovery's operations until it crashes; `nil`: never.
    package var operationsUntilCrash: Int?
    package private(set) var operations = 0
    /// How many of them came before the first that writes to a segment; `nil` when none does.
    package private(set) var operationsBeforeSegment: Int?
    /// Recovery's operation with this number, counted from 1 with those that only look, fails as the
    /// kernel would have it; the disk goes on.
    package var failingOperation: (number: Int, errno: Int32)?
    package private(set) var looks = 0
    package private(set) var failures = 0
    /// Counts what a power cut took or tore: a test that needs it asserts that it is not 0.
    package private(set) var sectorsLost = 0
    package private(set) var sectorsKept = 0
    /// This run of the simulated machine: a power cut ends it, a killed process does not.
    package private(set) var boot: UInt64 = 1

    package init() {}

    /// A disk with these files, all on stable storage.
    package convenience init(files: [FileName: [UInt8]]) {
        self.init()
        inodes.reserveCapacity(files.count + 16)
        names.reserveCapacity(files.count + 8)
        // In a fixed order: what a crash keeps is drawn inode by inode.
        let files = files.sorted { $0.key.orderInDirectory < $1.key.orderInDirectory }
        for (name, bytes) in files {
            names[Name(name, 0)] = inodes.count
            inodes.append(
                Inode(durable: bytes, pending: [], length: bytes.count, durableLength: bytes.count))
        }
        durableNames = names
    }

    // MARK: what a crash leaves

    /// How much of what is not on stable storage a power cut keeps.
    package enum Survival: Sendable {
        case none
        case all
        /// Each sector, and each name, by a coin.
        case some
        /// The later half of the writes, whole, and not the earlier: reordering.
        case latest
    }

    /// The disk after a power cut now.
    package func afterPowerCut(
        _ survival: Survival, _ random: inout SeededRandom
    ) -> SimulatedDisk {
        let disk = SimulatedDisk()
        disk.boot = boot + 1
        disk.inodes = Array(repeating: Inode(), count: inodes.count)
        disk.durableNames = durableNames
        for change in pendingNames where keeps(survival, &random) {
            switch change {
            case .made(let name, let inode): disk.durableNames[name] = inode
            case .removed(let name): disk.durableNames.removeValue(forKey: name)
            }
        }
        disk.names = disk.durableNames
        for inode in Set(disk.names.values).sorted() {
            let file = inodes[inode]
            var bytes = file.durable
            let keptLength =
                keeps(survival, &random) ? max(file.length, bytes.count) : file.durableLength
            for (place, write) in file.pending.enumerated() {
                switch survival {
                case .none: disk.sectorsLost += write.bytes.count / Self.sectorBytes
                case .all: disk.applyWhole(write, to: &bytes)
                case .some:
                    // A write is whole or absent more often than torn.
                    switch random.below(4) {
                    case 0: disk.sectorsLost += write.bytes.count / Self.sectorBytes
                    case 1: disk.applyWhole(write, to: &bytes)
                    default: disk.apply(write, to: &bytes, keep: { random.chance(1, in: 2) })
                    }
                case .latest:
                    if place * 2 >= file.pending.count {
                        disk.applyWhole(write, to: &bytes)
                    }
                }
            }
            if bytes.count < keptLength {
                bytes += [UInt8](repeating: 0, count: keptLength - bytes.count)
            }
            disk.inodes[inode] = Inode(
                durable: bytes, pending: [], length: bytes.count, durableLength: bytes.count)
        }
        return disk
    }

    private func keeps(_ survival: Survival, _ random: inout SeededRandom) -> Bool {
        switch survival {
        case .none: false
        case .all, .latest: true
        case .some: random.chance(1, in: 2)
        }
    }

    /// All sectors of a write at once.
    private func applyWhole(_ write: PendingWrite, to bytes: inout [UInt8]) {
        sectorsKept += (write.bytes.count + Self.sectorBytes - 1) / Self.sectorBytes
        if write.position == 0, write.bytes.count >= bytes.count {
            bytes = write.bytes
            return
        }
        let end = write.position + write.bytes.count
        if bytes.count < end { bytes += [UInt8](repeating: 0, count: end - bytes.count) }
        bytes.withUnsafeMutableBytes { target in
            UnsafeMutableRawBufferPointer(rebasing: target[write.position..<end])
                .copyBytes(from: write.bytes)
        }
    }

    private func apply(_ write: PendingWrite, to bytes: inout [UInt8], keep: () -> Bool) {
        var at = 0
        while at < write.bytes.count {
            let count = min(Self.sectorBytes, write.bytes.count - at)
            if keep() {
                let position = write.position + at
                if bytes.count < position + count {
                    bytes += [UInt8](repeating: 0, count: position + count - bytes.count)
                }
                bytes.replaceSubrange(
                    position..<position + count, with: write.bytes[at..<at + count])
                sectorsKept += 1
            } else {
                sectorsLost += 1
            }
            at += count
        }
    }

    /// The disk after the process was killed now: what completed stays visible, though not on stable
    /// storage; of what was in flight each write is done or not.
    package func afterKill(_ random: inout SeededRandom) -> SimulatedDisk {
        let disk = SimulatedDisk()
        disk.boot = boot
        disk.nextWrite = nextWrite
        disk.names = names
        disk.durableNames = durableNames
        disk.pendingNames = pendingNames
        disk.inodes = inodes
        for inode in disk.inodes.indices {
            disk.inodes[inode].pending.removeAll { !$0.isComplete && random.chance(1, in: 2) }
            for place in disk.inodes[inode].pending.indices {
                disk.inodes[inode].pending[place].isComplete = true
            }
        }
        return disk
    }

    /// A copy of what is on stable storage.
    package func copy() -> SimulatedDisk {
        var random = SeededRandom(seed: 1)
        return afterPowerCut(.none, &random)
    }

    /// Bytes of a file, as a read sees them; fewer at its end.
    package func bytes(
        _ name: FileName, at position: Int, count: Int, shard: UInt16 = 0
    ) -> [UInt8] {
        names[Name(name, shard)].map { contents($0, position: position, count: count) } ?? []
    }

    /// Flips one bit of a file's durable bytes; for tests of damage.
    package func flip(_ name: FileName, bit: Int, shard: UInt16 = 0) {
        guard let inode = names[Name(name, shard)] else { return }
        inodes[inode].durable[bit / 8] ^= 1 << UInt8(bit % 8)
    }

    package func length(_ name: FileName, shard: UInt16 = 0) -> Int {
        names[Name(name, shard)].map { inodes[$0].length } ?? 0
    }
    /// Of shard 0, with the segments.
    package var allNames: [FileName] { names(ofShard: 0) }
    package func names(ofShard shard: UInt16) -> [FileName] {
        names.keys.filter { $0.shard == shard }.map(\.file).sorted { $0.path < $1.path }
    }

    // MARK: the machine's operations

    package func open(_ file: FileName, create: Bool, shard: UInt16 = 0) -> Int? {
        let name = Name(file, shard)
        if let inode = names[name] { return inode }
        guard create else { return nil }
        let inode = inodes.count
        inodes.append(Inode())
        names[name] = inode
        pendingNames.append(.made(name, inode))
        return inode
    }

    package func allocate(_ inode: Int, upTo length: Int) {
        guard inode > 0 else { return }
        inodes[inode].length = max(inodes[inode].length, length)
    }

    /// A write begins; its sectors may reach the disk from now on.
    package func beginWrite(_ inode: Int, position: Int, bytes: [UInt8]) -> Int {
        let id = nextWrite
        nextWrite += 1
        guard inode > 0 else { return id }
        inodes[inode].pending.append(
            PendingWrite(id: id, position: position, bytes: bytes, isComplete: false))
        inodes[inode].length = max(inodes[inode].length, position + bytes.count)
        return id
    }

    package func completeWrite(_ inode: Int, id: Int, synced: Bool) {
        guard let place = inodes[inode].pending.firstIndex(where: { $0.id == id }) else { return }
        inodes[inode].pending[place].isComplete = true
        if synced { makeDurable(inode) { $0 == id } }
    }

    /// Makes the writes durable whose number `isMeant`.
    private func makeDurable(_ inode: Int, _ isMeant: (Int) -> Bool) {
        var file = Inode()
        swap(&file, &inodes[inode])
        for write in file.pending where isMeant(write.id) {
            applyWhole(write, to: &file.durable)
            // What was written to the same place before, and is over, can't come back.
            let last = write.position + write.bytes.count
            file.pending.removeAll {
                $0.isComplete && $0.id < write.id && $0.position >= write.position
                    && $0.position + $0.bytes.count <= last
            }
        }
        file.pending.removeAll { isMeant($0.id) }
        file.durableLength = max(file.durableLength, file.durable.count)
        inodes[inode] = file
    }

    /// What a sync that begins now will make durable.
    package func beginSync(_ inode: Int) -> [Int] {
        inodes[inode].pending.lazy.filter(\.isComplete).map(\.id)
    }
    package func completeSync(_ inode: Int, _ ids: [Int]) {
        if !ids.isEmpty { makeDurable(inode, ids.contains) }
        inodes[inode].durableLength = max(inodes[inode].durableLength, inodes[inode].length)
    }

    package func completeDirectorySync(_ directory: StorageDirectory, shard: UInt16 = 0) {
        func isThere(_ change: NameChange) -> Bool {
            change.name.file.directory == directory
                && (directory == .segments || change.name.shard == shard)
        }
        for change in pendingNames where isThere(change) {
            switch change {
            case .made(let name, let inode): durableNames[name] = inode
            case .removed(let name): durableNames.removeValue(forKey: name)
            }
        }
        pendingNames.removeAll(where: isThere)
    }

    package func unlink(_ file: FileName, shard: UInt16 = 0) {
        let name = Name(file, shard)
        guard names.removeValue(forKey: name) != nil else { return }
        pendingNames.append(.removed(name))
    }

    /// What a read sees: everything done, durable or not.
    package func contents(_ inode: Int, position: Int, count: Int) -> [UInt8] {
        let length = inodes[inode].length
        return [UInt8](unsafeUninitializedCapacity: max(0, min(count, length - position))) {
            buffer, filled in
            filled = read(inode, position: position, into: UnsafeMutableRawBufferPointer(buffer))
        }
    }

    /// The same into memory of the caller's.
    ///
    /// - Returns: how many bytes there were.
    package func read(
        _ inode: Int, position: Int, into buffer: UnsafeMutableRawBufferPointer
    ) -> Int {
        let file = inodes[inode]
        guard position < file.length else { return 0 }
        let end = min(file.length, position + buffer.count)
        func lay(_ source: [UInt8], at start: Int) -> Int {
            let from = max(position, start)
            let to = min(end, start + source.count)
            guard from < to else { return position }
            source.withUnsafeBytes { bytes in
                UnsafeMutableRawBufferPointer(rebasing: buffer[from - position..<to - position])
                    .copyMemory(from: UnsafeRawBufferPointer(rebasing: bytes[from - start..<to - start]))
            }
            return to
        }
        // Behind the durable bytes there are zeros, until a write comes.
        let zeroes = lay(file.durable, at: 0)
        if zeroes < end {
            UnsafeMutableRawBufferPointer(rebasing: buffer[zeroes - position..<end - position])
                .initializeMemory(as: UInt8.self, repeating: 0)
        }
        for write in file.pending where write.isComplete {
            _ = lay(write.bytes, at: write.position)
        }
        return end - position
    }

    // MARK: recovery's operations

    /// Makes recovery's operations fail from now on as `failing` says, counted from 1.
    package func fail(_ failing: (number: Int, errno: Int32)?) {
        failingOperation = failing
        looks = 0
    }

    private func look(_ what: @autoclosure () -> String) throws(StorageFailure) {
        looks += 1
        guard let failing = failingOperation, failing.number == looks else { return }
        failures += 1
        throw StorageFailure(what(), errno: failing.errno)
    }

    private func step(_ what: @autoclosure () -> String) throws(StorageFailure) {
        try look(what())
        operations += 1
        if let left = operationsUntilCrash {
            guard left > 0 else { throw StorageFailure("the simulated machine crashed") }
            operationsUntilCrash = left - 1
        }
    }

    fileprivate func list(
        _ directory: StorageDirectory, shard: UInt16
    ) throws(StorageFailure) -> [String] {
        try look("listing \(directory.rawValue)")
        let shard = directory == .segments ? 0 : shard
        return names.keys.filter { $0.file.directory == directory && $0.shard == shard }
            .map(\.file.name).sorted()
    }
    fileprivate func size(_ file: FileName, shard: UInt16) throws(StorageFailure) -> UInt64? {
        try look("looking at \(file.path)")
        return names[Name(file, shard)].map { UInt64(inodes[$0].length) }
    }
    fileprivate func read(
        _ file: FileName, at position: UInt64, into buffer: UnsafeMutableRawBufferPointer,
        shard: UInt16
    ) throws(StorageFailure) -> Int {
        try look("reading \(file.path)")
        guard let inode = names[Name(file, shard)] else {
            throw StorageFailure("no file \(file.path)", errno: 2)
        }
        return read(inode, position: Int(position), into: buffer)
    }
    fileprivate func write(
        _ file: FileName, at position: UInt64, _ bytes: UnsafeRawBufferPointer, shard: UInt16
    ) throws(StorageFailure) {
        guard let inode = open(file, create: true, shard: shard) else { return }
        let id = beginWrite(inode, position: Int(position), bytes: [UInt8](bytes))
        if file.directory == .segments, operationsBeforeSegment == nil {
            operationsBeforeSegment = operations
        }
        try step("writing \(file.path)")
        completeWrite(inode, id: id, synced: false)
    }
    fileprivate func makeZeroed(
        _ file: FileName, bytes: UInt64, shard: UInt16
    ) throws(StorageFailure) {
        guard let inode = open(file, create: true, shard: shard) else { return }
        try step("making \(file.path)")
        let id = beginWrite(
            inode, position: 0, bytes: [UInt8](repeating: 0, count: Int(bytes)))
        completeWrite(inode, id: id, synced: false)
    }
    fileprivate func sync(_ file: FileName, shard: UInt16) throws(StorageFailure) {
        try step("syncing \(file.path)")
        guard let inode = names[Name(file, shard)] else { return }
        completeSync(inode, beginSync(inode))
    }
    fileprivate func syncDirectory(
        _ directory: StorageDirectory, shard: UInt16
    ) throws(StorageFailure) {
        try step("syncing \(directory.rawValue)")
        completeDirectorySync(directory, shard: shard)
    }
    fileprivate func remove(_ file: FileName, shard: UInt16) throws(StorageFailure) {
        try step("removing \(file.path)")
        unlink(file, shard: shard)
    }

    /// The disk as one shard's recovery sees it.
    package func folder(_ shard: UInt16) -> any RecoveryStorage { Folder(self, shard) }

    private final class Folder: RecoveryStorage {
        private let disk: SimulatedDisk
        private let shard: UInt16
        init(_ disk: SimulatedDisk, _ shard: UInt16) {
            self.disk = disk
            self.shard = shard
        }
        func list(_ directory: StorageDirectory) throws(StorageFailure) -> [String] {
            try disk.list(directory, shard: shard)
        }
        func makeDirectory(_ directory: StorageDirectory) throws(StorageFailure) {}
        func size(_ file: FileName) throws(StorageFailure) -> UInt64? {
            try disk.size(file, shard: shard)
        }
        func read(
            _ file: FileName, at position: UInt64, into buffer: UnsafeMutableRawBufferPointer
        ) throws(StorageFailure) -> Int {
            try disk.read(file, at: position, into: buffer, shard: shard)
        }
        func write(
            _ file: FileName, at position: UInt64, _ bytes: UnsafeRawBufferPointer
        ) throws(StorageFailure) {
            try disk.write(file, at: position, bytes, shard: shard)
        }
        func makeZeroed(_ file: FileName, bytes: UInt64) throws(StorageFailure) {
            try disk.makeZeroed(file, bytes: bytes, shard: shard)
        }
        func sync(_ file: FileName) throws(StorageFailure) { try disk.sync(file, shard: shard) }
        func syncDirectory(_ directory: StorageDirectory) throws(StorageFailure) {
            try disk.syncDirectory(directory, shard: shard)
        }
        func remove(_ file: FileName) throws(StorageFailure) {
            try disk.remove(file, shard: shard)
        }
    }
}

extension FileName {
    /// Tells any two files apart; an order without the text of their names.
    fileprivate var orderInDirectory: (Int, UInt64, UInt64, UInt64) {
        switch self {
        case .identity: (0, 0, 0, 0)
        case .reserve: (1, 0, 0, 0)
        case .journal(let index): (2, UInt64(index), 0, 0)
        case .checkpoint(let sequence): (3, sequence, 0, 0)
        case .segment(let partition, let base, let term): (4, UInt64(partition), base, term)
        }
    }
}

/// As shard 0 sees it.
extension SimulatedDisk: RecoveryStorage {
    package func list(_ directory: StorageDirectory) throws(StorageFailure) -> [String] {
        try list(directory, shard: 0)
    }
    package func makeDirectory(_ directory: StorageDirectory) throws(StorageFailure) {}
    package func size(_ file: FileName) throws(StorageFailure) -> UInt64? {
        try size(file, shard: 0)
    }
    package func read(
        _ file: FileName, at position: UInt64, into buffer: UnsafeMutableRawBufferPointer
    ) throws(StorageFailure) -> Int { try read(file, at: position, into: buffer, shard: 0) }
    package func write(
        _ file: FileName, at position: UInt64, _ bytes: UnsafeRawBufferPointer
    ) throws(StorageFailure) { try write(file, at: position, bytes, shard: 0) }
    package func makeZeroed(_ file: FileName, bytes: UInt64) throws(StorageFailure) {
        try makeZeroed(file, bytes: bytes, shard: 0)
    }
    package func sync(_ file: FileName) throws(StorageFailure) { try sync(file, shard: 0) }
    package func syncDirectory(_ directory: StorageDirectory) throws(StorageFailure) {
        try syncDirectory(directory, shard: 0)
    }
    package func remove(_ file: FileName) throws(StorageFailure) { try remove(file, shard: 0) }
}
