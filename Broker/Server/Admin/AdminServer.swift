internal import BrokerServer
internal import Hummingbird
package import Logging
internal import NIOCore
internal import NIOPosix
internal import Synchronization

/// The admin port: HTTP on one event loop of its own, off the shards' threads.
package enum AdminServer {
    package struct Failure: Error, CustomStringConvertible {
        package var description: String
    }

    /// Listens, and serves until the process ends.
    ///
    /// - Returns: the port that the kernel gave.
    package static func start(
        host: String,
        port: UInt16,
        pages: AdminPages,
        logger: Logger
    ) async throws(Failure) -> UInt16 {
        // Whoever waits needs a descriptor of the runtime's, made at the first time: not when there is none.
        try? await Task.sleep(for: .milliseconds(1))
        let address = "\(host):\(port)"
        let (opened, continuation) = AsyncStream.makeStream(of: Result<UInt16, Failure>.self)
        var quiet = logger
        // The library's own lines are about its connections.
        quiet.logLevel = max(logger.logLevel, .error)
        let application = Application(
            responder: CallbackResponder { (request, _: BasicRequestContext) in
                await respond(request, pages)
            },
            configuration: ApplicationConfiguration(
                address: .hostname(host, port: Int(port)),
                serverName: "millrace"
            ),
            onServerRunning: { channel in
                let bound = channel.localAddress?.port.flatMap { UInt16(exactly: $0) }
                continuation.yield(.success(bound ?? port))
                continuation.finish()
            },
            eventLoopGroupProvider: .shared(MultiThreadedEventLoopGroup(numberOfThreads: 1)),
            logger: quiet
        )
        Task.detached {
            do {
                try await application.run()
            } catch {
                continuation.yield(
                    .failure(Failure(description: "listening on \(address) failed: \(error)"))
                )
                continuation.finish()
            }
        }
        for await result in opened { return try result.get() }
        throw Failure(description: "listening on \(address) failed")
    }

    @Sendable
    private static func respond(_ request: Request, _ pages: AdminPages) async -> Response {
        guard request.method == .get || request.method == .head else {
            return response(
                AdminAnswer(
                    status: 405,
                    contentType: "text/plain; charset=utf-8",
                    body: "GET only\n"
                )
            )
        }
        let names = request.uri.queryParameters.map { String($0.key) }
        return response(await pages.answer(path: request.uri.path, query: names))
    }

    private static func response(_ answer: AdminAnswer) -> Response {
        Response(
            status: .init(code: answer.status),
            headers: [.contentType: answer.contentType, .cacheControl: "no-store"],
            body: .init(byteBuffer: ByteBuffer(string: answer.body))
        )
    }
}
