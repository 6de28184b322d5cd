internal import BrokerBasics
internal import Glibc
package import Logging
internal import ShardRuntime

/// Writes each entry as one line with one write(2), so that lines of different threads never mix.
///
/// The metadata key `event` is the line's event. Never used on a shard's thread: standard error may
/// be a pipe that nobody reads. A shard's events come through `EventRelay`.
package struct LineLogHandler: LogHandler {
    package static let eventKey = "event"

    package var logLevel: Logger.Level
    package var metadata: Logger.Metadata = [:]
    package var metadataProvider: Logger.MetadataProvider?
    private let format: LogFormat
    private let write: @Sendable (String) -> Void

    package init(
        level: Logger.Level,
        format: LogFormat,
        write: @escaping @Sendable (String) -> Void = Self.writeToStandardError
    ) {
        logLevel = level
        self.format = format
        self.write = write
    }

    package subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    package func log(event entry: LogEvent) {
        var fields = metadata
        if let provided = metadataProvider?.get() {
            fields.merge(provided) { _, new in new }
        }
        if let given = entry.metadata { fields.merge(given) { _, new in new } }
        var name: String?
        if let value = fields.removeValue(forKey: Self.eventKey) { name = "\(value)" }
        write(
            LogLine(
                time: Clock.wall.nanoseconds,
                level: entry.level,
                event: name,
                message: "\(entry.message)",
                fields: fields
            ).rendered(format)
        )
    }

    @Sendable package static func writeToStandardError(_ line: String) {
        var line = line
        line.withUTF8 { bytes in
            var done = 0
            while done < bytes.count {
                let count = Glibc.write(2, bytes.baseAddress.map { $0 + done }, bytes.count - done)
                if count < 0, errno == EINTR { continue }
                // A log that can't be written is not a reason to stop serving.
                guard count > 0 else { return }
                done += count
            }
        }
    }
}

extension Logger {
    /// One line with a stable event name.
    package func record(
        _ level: Logger.Level,
        _ event: String,
        _ message: @autoclosure () -> Logger.Message,
        _ fields: @autoclosure () -> Logger.Metadata = [:]
    ) {
        guard logLevel <= level else { return }
        var metadata = fields()
        metadata[LineLogHandler.eventKey] = .string(event)
        log(level: level, message(), metadata: metadata)
    }
}
