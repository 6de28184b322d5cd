// The little of the FUSE protocol that a filesystem of one file needs. The kernel asks through
// /dev/fuse, one request per read(2), one reply per write(2), integers in the machine's byte order.
//
// Source: include/uapi/linux/fuse.h of Linux 6.1, protocol 7.38; what is given here are the
// structures' byte offsets, behind the header of the request or the reply.
//
// ```
// fuse_in_header   40: 0 u32 len | 4 u32 opcode | 8 u64 unique | 16 u64 nodeid | 24 uid gid pid, extensions
// fuse_out_header  16: 0 u32 len | 4 i32 error, 0 or a negative errno | 8 u64 unique of the request
// fuse_init_in     64: 0 u32 major | 4 u32 minor | 8 u32 max_readahead | 12 u32 flags | 16 u32 flags2
// fuse_init_out    64: as before to 16 | 16 u16 max_background | 18 u16 congestion_threshold
//                      | 20 u32 max_write | 24 u32 time_gran | 28 u16 max_pages | 32 u32 flags2
// fuse_attr_out   104: 0 u64 attr_valid | 8 u32 attr_valid_nsec | 16 fuse_attr
// fuse_attr        88: 0 u64 ino | 8 u64 size | 16 u64 blocks | 24 times | 60 u32 mode | 64 u32 nlink
//                      | 68 u32 uid | 72 u32 gid | 76 u32 rdev | 80 u32 blksize
// fuse_open_out    16: 0 u64 fh | 8 u32 open_flags
// fuse_read_in     40: 0 u64 fh | 8 u64 offset | 16 u32 size
// fuse_write_in    40: 0 u64 fh | 8 u64 offset | 16 u32 size; the bytes follow it
// fuse_write_out    8: 0 u32 size
// ```

/// What the kernel asks of an open file. Everything else is answered with ENOSYS, which makes it do
/// without: no FALLOCATE for example, so that zeroes come as writes, which are recorded.
enum FuseOpcode: UInt32 {
    case forget = 2
    case getAttributes = 3
    case setAttributes = 4
    case open = 14
    case read = 15
    case write = 16
    case release = 18
    case sync = 20
    case flush = 25
    case initialize = 26
    case interrupt = 36
    case destroy = 38
    case batchForget = 42

    /// The protocol knows no reply to these.
    var hasReply: Bool {
        switch self {
        case .forget, .batchForget, .interrupt: false
        default: true
        }
    }
}

enum FuseLimits {
    static let major: UInt32 = 7
    static let minor: UInt32 = 38
    static let inHeaderBytes = 40
    static let outHeaderBytes = 16
    static let writeHeaderBytes = 40
    /// The largest write in one request, in bytes; also the largest read, 256 pages.
    static let writeBytesMax = 1 << 20
    static let pagesMax: UInt16 = 256
    /// FUSE_BIG_WRITES and FUSE_MAX_PAGES: requests of more than a page, up to `pagesMax`.
    static let flags: UInt32 = 1 << 5 | 1 << 22
    /// FOPEN_DIRECT_IO: no page cache in between, so that each write of the block device is a
    /// request at once, with its own offset and length.
    static let openFlags: UInt32 = 1 << 0
    /// FUSE_ROOT_ID: the one file is the root.
    static let rootNode: UInt64 = 1
}
