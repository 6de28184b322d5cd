internal import BrokerBasics
package import BrokerShard
package import LogStorage
package import ShardRuntime

/// The kernel's side of a loop: one shard's sockets and files, and how they are asked for.
///
/// `Shard` is generic over it and specialised for each, so the seam costs nothing. Used by the one
/// thread that made it. What is done comes back with the next `takeCompletions`, never earlier: while
/// effects are carried out the machine is not called.
package protocol ShardPort: ~Copyable {
    /// Opens the journal's files and directories, and what the kernel is asked through.
    init(_ setup: borrowing ShardPortSetup) throws(SystemError)

    // The cycle:

    /// Hands over what was queued and looks for what is done; never waits.
    mutating func exchange()
    /// True when `exchange` or `takeCompletions` would bring something.
    var hasWork: Bool { get }
    /// As `exchange`, but sleeps until something is done, for at most `nanoseconds`.
    mutating func wait(nanoseconds: UInt64)
    /// Tells the machine what is done.
    ///
    /// - Returns: how many things that were.
    mutating func takeCompletions(into machine: inout ShardMachine) -> Int

    // Effects:

    /// - Parameter diskIsLate: even to ask the disk may take long now, and nobody on this thread may wait.
    mutating func start(_ request: StorageRequest, diskIsLate: Bool)
    /// The bytes stay valid until the machine is told that they are sent.
    mutating func send(_ connection: Int32, _ bytes: UnsafeRawPointer, _ count: Int)
    mutating func pause(_ connection: Int32)
    mutating func resume(_ connection: Int32)

    // Connections' beginnings and ends:

    mutating func startAccepting()
    /// Asks those listeners again that found no descriptor or memory, when it is time.
    mutating func retryAccepting(_ machine: borrowing ShardMachine)
    /// What comes is not passed on any more, and the peer is told that nothing follows.
    mutating func beginClosing(_ connection: Int32)
    /// True when a closing connection's peer has ended its side, and no send is in flight.
    func isQuiet(_ connection: Int32) -> Bool
    /// Ends both directions: the connection becomes quiet soon.
    mutating func cut(_ connection: Int32)
    /// Closes the socket of a quiet connection; its number may be used again.
    mutating func release(_ connection: Int32)
}

/// What a port is made from.
package struct ShardPortSetup {
    package var root: String
    package var folder: ShardFolder
    package var listeners: [Int32]
    /// Becomes readable when another thread wants the loop to look around.
    package var eventDescriptor: Int32
    /// What journal writes are written from.
    package var journalMemory: UnsafeMutableRawBufferPointer
    package var journalFiles: Int
    package var filesMax: Int
    package var opensDirect: Bool

    /// What is received at once at most.
    static let receiveBufferBytes = 32 * 1024
}
