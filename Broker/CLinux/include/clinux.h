// The part of Linux that Swift can't import as it is: liburing's macros and inline helpers,
// scheduling attributes, and constants that Debian 12's headers are too old to name.
#ifndef MILLRACE_CLINUX_H
#define MILLRACE_CLINUX_H

// The feature macros are settled here, as every other C module has them: liburing.h would define
// _XOPEN_SOURCE, which renames a field of `fd_set`, and Swift refuses two definitions of one type.
// For the same reason there is no _GNU_SOURCE.
#include <features.h>
#include <sys/select.h>
// The kernel's header before liburing's copy: they share an include guard, and a module that also
// sees swift-system's C module must find one definition.
#include <linux/io_uring.h>
#include <liburing.h>

#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/stat.h>

/// Sets up a ring for one thread: single issuer, deferred and cooperative task work, and the flag
/// that says in shared memory when there is work to take (so that spinning needs no system call).
/// Returns 0 or a negative errno.
int millrace_ring_setup(struct io_uring *_Nonnull ring, unsigned entries, unsigned completions);
/// Where the kernel's workers for what would block (opening a file, a sync) may run: a bitmap of the
/// first 64 CPUs. Returns 0 or an errno.
int millrace_ring_set_worker_cpus(struct io_uring *_Nonnull ring, uint64_t cpus);

/// True when completions are in the queue or the kernel has some to post at the next enter.
static inline _Bool millrace_ring_has_work(struct io_uring *_Nonnull ring) {
    return io_uring_cq_ready(ring) != 0 ||
           (IO_URING_READ_ONCE(*ring->sq.kflags) & (1u << 2 /* IORING_SQ_TASKRUN */)) != 0;
}
static inline unsigned millrace_ring_ready(struct io_uring *_Nonnull ring) {
    return io_uring_cq_ready(ring);
}
static inline struct io_uring_cqe millrace_ring_completion(
    struct io_uring *_Nonnull ring, unsigned index
) {
    return ring->cq.cqes[(*ring->cq.khead + index) & *ring->cq.kring_mask];
}
static inline void millrace_ring_advance(struct io_uring *_Nonnull ring, unsigned count) {
    io_uring_cq_advance(ring, count);
}
static inline unsigned millrace_ring_overflow(struct io_uring *_Nonnull ring) {
    return IO_URING_READ_ONCE(*ring->cq.koverflow);
}
/// The next free submission, or NULL when the queue is full.
static inline struct io_uring_sqe *_Nullable millrace_ring_submission(
    struct io_uring *_Nonnull ring
) {
    return io_uring_get_sqe(ring);
}
static inline int millrace_ring_enter(struct io_uring *_Nonnull ring) {
    return io_uring_submit_and_get_events(ring);
}
/// Submits, then waits for one completion or `nanoseconds`.
int millrace_ring_wait(struct io_uring *_Nonnull ring, uint64_t nanoseconds);

/// Sets `missing` to the number of the first operation that the kernel lacks of those the broker
/// needs, or to -1. Returns 0, or an errno when it can't be asked.
int millrace_ring_missing_operation(struct io_uring *_Nonnull ring, int *_Nonnull missing);

// Provided buffers.
struct io_uring_buf_ring *_Nullable millrace_buffers_register(
    struct io_uring *_Nonnull ring, unsigned count, int group, int *_Nonnull error
);
static inline void millrace_buffers_add(
    struct io_uring_buf_ring *_Nonnull buffers, void *_Nonnull base, unsigned bytes,
    unsigned short id, int mask, int offset
) {
    io_uring_buf_ring_add(buffers, base, bytes, id, mask, offset);
}
static inline void millrace_buffers_advance(
    struct io_uring_buf_ring *_Nonnull buffers, int count
) {
    io_uring_buf_ring_advance(buffers, count);
}

/// Sets the calling thread's time slice (SCHED_OTHER, `sched_runtime`), so that a spinning
/// neighbour is preempted less often. Threads that it makes, the kernel's workers for its ring among
/// them, get an ordinary slice. Returns 0 or an errno.
int millrace_set_slice(uint64_t nanoseconds);
void millrace_name_thread(const char *_Nonnull name);
/// Pins the calling thread to one CPU. Returns 0 or an errno.
int millrace_pin(int cpu);
/// Lets `thread` run on the CPUs of a bitmap of the first 64. Returns 0 or an errno.
int millrace_set_affinity(int thread, uint64_t cpus);
/// O_DIRECT, which only _GNU_SOURCE names.
int millrace_direct_flag(void);
/// The CPUs that the process may run on, as a bitmap of the first 64.
uint64_t millrace_allowed_cpus(void);

/// Alignment for O_DIRECT from statx(STATX_DIOALIGN). Returns 0 when O_DIRECT works (then both
/// alignments are set), ENOTSUP when the filesystem has none, or another errno.
int millrace_direct_alignment(
    int fd, uint32_t *_Nonnull memory_alignment, uint32_t *_Nonnull offset_alignment
);

/// Opens a listening TCP socket, whose connections end when their peer answers nothing, or takes nothing, for
/// `peer_milliseconds`. Returns the fd or a negative errno.
int millrace_listen_tcp(
    const char *_Nonnull host, uint16_t port, int backlog, uint32_t peer_milliseconds,
    uint16_t *_Nonnull bound_port
);
/// Opens a listening Unix socket; a stale socket file is replaced, a live one is EADDRINUSE.
int millrace_listen_unix(const char *_Nonnull path, int backlog);

int millrace_event_fd(void);
void millrace_event_signal(int fd);

// epoll, level-triggered. Wrapped, so that no other C module's view of <sys/epoll.h> meets ours.
struct millrace_poll_event {
    uint64_t token;
    _Bool readable;
    /// Also set on an error or a hang-up: a send then says which.
    _Bool writable;
};
/// Returns the descriptor or a negative errno.
int millrace_poll_open(void);
/// Watches `fd` for `readable` and `writable`; for neither, not at all, so that a hang-up wakes
/// nobody. `is_watched` says whether it was watched before. Returns 0 or an errno.
int millrace_poll_watch(
    int poll, int fd, uint64_t token, _Bool readable, _Bool writable, _Bool is_watched
);
/// Waits up to `milliseconds`, 0 for not at all. Returns how many of `events` are filled, none on a
/// signal.
int millrace_poll_wait(
    int poll, struct millrace_poll_event *_Nonnull events, int capacity, int milliseconds
);

/// Accepts one connection as a non-blocking socket. Returns the descriptor or a negative errno.
int millrace_accept(int listener);
void millrace_set_nonblocking(int fd);

// Storage operations, each done when it returns: bytes or 0, or a negative errno.
int64_t millrace_write_at(
    int fd, const void *_Nonnull bytes, size_t count, int64_t position, _Bool synced
);
int64_t millrace_read_at(int fd, void *_Nonnull bytes, size_t count, int64_t position);
int millrace_allocate(int fd, int64_t position, int64_t bytes);

/// RLIMIT_MEMLOCK in bytes.
uint64_t millrace_memlock_limit(void);

/// The CPUs of the process' first thread, as a bitmap of the first 64.
uint64_t millrace_process_cpus(void);

#endif
