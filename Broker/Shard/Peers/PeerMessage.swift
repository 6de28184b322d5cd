/// What one shard says to another, copied through a mailbox. Memory that it names is the sender's, and
/// stays as it is until the other side says `taken`.
package struct PeerMessage: BitwiseCopyable {
    package enum Kind: UInt8, Sendable, BitwiseCopyable {
        /// Frames on a link; in flight until `taken`.
        case bytes
        /// The other side's bytes are done with.
        case taken
        /// The front's client is gone.
        case close
        /// Nothing follows on this link, and its number may be used again.
        case closed

        // The start (`StartTurn`):

        /// To shard 0: the first checkpoint is on stable storage.
        case checkpointed
        /// From shard 0: its own is; who waited for it may write theirs.
        case checkpointNow
        /// From shard 0: all are.
        case serve
    }
    package var kind: Kind
    /// On a link: it goes from the owner to the front.
    package var isReply: Bool
    /// The front's number of the link.
    package var link: Int32
    package var count: Int32
    package var bytes: UnsafeRawPointer?

    package init(
        _ kind: Kind, isReply: Bool = false, link: Int32 = -1, bytes: UnsafeRawPointer? = nil,
        count: Int = 0
    ) {
        self.kind = kind
        self.isReply = isReply
        self.link = link
        self.bytes = bytes
        self.count = Int32(count)
    }
}

/// Messages of one lane never wait for those of another: answers go on while requests are held up.
package enum PeerLane: Int, Sendable, CaseIterable {
    /// What the shards themselves have to say. Taken first.
    case control
    /// From owners to fronts.
    case reply
    /// From fronts to owners.
    case request
}
