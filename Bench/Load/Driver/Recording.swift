internal import BrokerBasics
internal import Glibc
internal import WireProtocol

/// A recording in memory: one event a line, each with a time and perhaps a key.
///
/// The record's payload is the whole line, so that what is consumed can be compared with the file.
package struct Recording: Sendable {
    package enum Format: String, Sendable {
        /// `seconds after midnight, type, order id, shares, price × 10,000, side` (LOBSTER). The key
        /// is the order id; the file has no date, so its day is 1970-01-01.
        case orders
        /// `receive time in ns since 1970, a space, a JSON object`. The key is the object's
        /// `stream`; an event without one has no key and goes to the first partition.
        case feed
    }

    package struct Event: Equatable, Sendable {
        /// Nanoseconds since 1970.
        package var timestamp: UInt64
        package var key: Range<Int>?
        package var payload: Range<Int>
    }

    package let bytes: [UInt8]
    package private(set) var events: [Event] = []

    /// Reads the file; one that begins as gzip does goes through `gzip -dc`.
    package init(path: String, format: Format) throws(LoadError) {
        let bytes = try Self.read(path)
        try self.init(bytes: bytes, format: format, path: path)
    }

    package init(bytes: [UInt8], format: Format, path: String) throws(LoadError) {
        self.bytes = bytes
        var at = 0
        var line = 0
        while at < bytes.count {
            line += 1
            let end = bytes[at...].firstIndex(of: UInt8(ascii: "\n")) ?? bytes.count
            var payload = at..<end
            if let last = bytes[payload].last, last == UInt8(ascii: "\r") {
                payload = at..<end - 1
            }
            at = end + 1
            guard !payload.isEmpty else { continue }
            let event: Event? =
                switch format {
                case .orders: Self.order(bytes, payload)
                case .feed: Self.feedEvent(bytes, payload)
                }
            guard let event else {
                throw .recording(path: path, line: line, reason: "not a line of \(format.rawValue)")
            }
            events.append(event)
        }
        guard !events.isEmpty else { throw .file(path: path, reason: "no events in it") }
    }

    // MARK: Lines

    private static func order(_ bytes: [UInt8], _ line: Range<Int>) -> Event? {
        let fields = bytes[line].split(
            separator: UInt8(ascii: ","),
            omittingEmptySubsequences: false
        )
        guard fields.count >= 6, !fields[2].isEmpty else { return nil }
        let parts = fields[0].split(separator: UInt8(ascii: "."), maxSplits: 1)
        guard let whole = parts.first, let seconds = integer(whole), seconds < 1 << 32 else {
            return nil
        }
        var nanoseconds: UInt64 = 0
        if parts.count == 2 {
            guard let fraction = integer(parts[1].prefix(9)) else { return nil }
            nanoseconds = fraction
            for _ in parts[1].prefix(9).count..<9 { nanoseconds *= 10 }
        }
        return Event(
            timestamp: seconds * 1_000_000_000 + nanoseconds,
            key: fields[2].startIndex..<fields[2].endIndex,
            payload: line
        )
    }

    private static func feedEvent(_ bytes: [UInt8], _ line: Range<Int>) -> Event? {
        guard let space = bytes[line].firstIndex(of: UInt8(ascii: " ")),
            let time = integer(bytes[line.lowerBound..<space]), space + 1 < line.upperBound,
            bytes[space + 1] == UInt8(ascii: "{")
        else { return nil }
        return Event(
            timestamp: time,
            key: stream(in: bytes, space + 1..<line.upperBound),
            payload: line
        )
    }

    private static func integer(_ digits: ArraySlice<UInt8>) -> UInt64? {
        guard !digits.isEmpty, digits.count <= 20 else { return nil }
        var value: UInt64 = 0
        for digit in digits {
            guard digit >= 0x30, digit <= 0x39 else { return nil }
            let (scaled, overflow) = value.multipliedReportingOverflow(by: 10)
            let (sum, carry) = scaled.addingReportingOverflow(UInt64(digit - 0x30))
            guard !overflow, !carry else { return nil }
            value = sum
        }
        return value
    }

    /// The text of the outermost object's member `stream`, as it stands between its quotes.
    static func stream(in bytes: [UInt8], _ object: Range<Int>) -> Range<Int>? {
        let name = Array("stream".utf8)
        let (quote, backslash) = (UInt8(ascii: "\""), UInt8(ascii: "\\"))
        var depth = 0
        var at = object.lowerBound
        var found = false
        while at < object.upperBound {
            switch bytes[at] {
            case UInt8(ascii: "{"), UInt8(ascii: "["): depth += 1
            case UInt8(ascii: "}"), UInt8(ascii: "]"): depth -= 1
            case quote:
                let start = at + 1
                at = start
                while at < object.upperBound, bytes[at] != quote {
                    at += bytes[at] == backslash ? 2 : 1
                }
                guard at < object.upperBound else { return nil }
                if found { return start..<at }
                if depth == 1, bytes[start..<at].elementsEqual(name), at + 1 < object.upperBound,
                    bytes[at + 1] == UInt8(ascii: ":")
                {
                    found = true
                    at += 1
                }
            case UInt8(ascii: " "), UInt8(ascii: ":"): break
            default:
                // A value that is not a text.
                if found { return nil }
            }
            at += 1
        }
        return nil
    }

    // MARK: Frames

    /// All publish frames of the recording, in the order of its lines within each partition.
    func frames(
        targets: [FrameSupply.Target],
        firstCorrelation: UInt64,
        batch: Int
    ) -> RecordedFrames {
        var frames = RecordedFrames()
        var targets = targets
        var builders = targets.map { _ in BatchBuilder() }
        func finish(_ place: Int) {
            let builder = builders[place]
            guard builder.recordCount > 0 else { return }
            let target = targets[place]
            let part = builder.finish(
                producer: ProducerID(rawValue: target.producer),
                epoch: target.epoch,
                sequence: target.sequence
            )
            targets[place].sequence += UInt64(builder.recordCount)
            frames.bytes += FrameHeader(
                opcode: .publish,
                correlation: firstCorrelation + UInt64(frames.targetOf.count),
                stream: target.partition
            ).frame(body: part)
            frames.starts.append(frames.bytes.count)
            frames.recordsBefore.append(
                frames.recordsBefore[frames.recordsBefore.count - 1] + UInt64(builder.recordCount)
            )
            frames.targetOf.append(UInt32(place))
            builders[place] = BatchBuilder()
        }
        for event in events {
            let key = event.key.map { Array(bytes[$0]) }
            let place = key.map { KeyHash.partition(of: $0, partitionCount: targets.count) } ?? 0
            let isTaken = builders[place].append(
                Record(value: Array(bytes[event.payload]), key: key, timestamp: event.timestamp)
            )
            invariant(isTaken, "a batch of more than \(batch) records")
            if builders[place].recordCount == batch { finish(place) }
        }
        for place in targets.indices { finish(place) }
        return frames
    }

    // MARK: Files

    private static func read(_ path: String) throws(LoadError) -> [UInt8] {
        let bytes = try FileBytes.read(path)
        return bytes.starts(with: [0x1F, 0x8B]) ? try unzipped(path) : bytes
    }

    private static func unzipped(_ path: String) throws(LoadError) -> [UInt8] {
        var ends: [Int32] = [-1, -1]
        guard pipe(&ends) == 0 else {
            throw .file(path: path, reason: "pipe: \(LoadError.kernelReason)")
        }
        defer { close(ends[0]) }
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO)
        // The path goes in by descriptor, so none is mistaken for an option.
        posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, path, O_RDONLY, 0)
        var arguments: [UnsafeMutablePointer<CChar>?] = [strdup("gzip"), strdup("-dc"), nil]
        defer { for argument in arguments { free(argument) } }
        var child: pid_t = 0
        let result = posix_spawnp(&child, "gzip", &actions, nil, &arguments, environ)
        close(ends[1])
        guard result == 0 else {
            throw .file(path: path, reason: "running gzip: \(String(cString: strerror(result)))")
        }
        let read = Result { () throws(LoadError) in try FileBytes.readAll(ends[0], name: path) }
        var status: Int32 = 0
        while waitpid(child, &status, 0) < 0, errno == EINTR {}
        guard status == 0 else { throw .file(path: path, reason: "gzip can't read it") }
        return try read.get()
    }
}
