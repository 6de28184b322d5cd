#define _GNU_SOURCE
#include "clinux.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

int millrace_ring_setup(struct io_uring *ring, unsigned entries, unsigned completions) {
    struct io_uring_params params;
    memset(&params, 0, sizeof(params));
    params.flags = IORING_SETUP_CQSIZE | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN |
                   IORING_SETUP_SINGLE_ISSUER | (1u << 13 /* IORING_SETUP_DEFER_TASKRUN */) |
                   (1u << 9 /* IORING_SETUP_TASKRUN_FLAG */);
    params.cq_entries = completions;
    int result = io_uring_queue_init_params(entries, ring, &params);
    if (result == 0) io_uring_register_ring_fd(ring);
    return result;
}

int millrace_ring_set_worker_cpus(struct io_uring *ring, uint64_t cpus) {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (int cpu = 0; cpu < 64; cpu++) {
        if (cpus & (1ull << cpu)) CPU_SET(cpu, &set);
    }
    return -io_uring_register_iowq_aff(ring, sizeof(set), &set);
}

int millrace_ring_wait(struct io_uring *ring, uint64_t nanoseconds) {
    struct io_uring_cqe *completion = NULL;
    struct __kernel_timespec timeout = {
        .tv_sec = (int64_t)(nanoseconds / 1000000000u),
        .tv_nsec = (long long)(nanoseconds % 1000000000u),
    };
    return io_uring_submit_and_wait_timeout(ring, &completion, 1, &timeout, NULL);
}

int millrace_ring_missing_operation(struct io_uring *ring, int *missing) {
    static const int needed[] = {
        IORING_OP_ACCEPT, IORING_OP_RECV,     IORING_OP_SEND,  IORING_OP_WRITE,
        IORING_OP_READ,   IORING_OP_FSYNC,    IORING_OP_CLOSE, IORING_OP_OPENAT,
        IORING_OP_POLL_ADD, IORING_OP_UNLINKAT, IORING_OP_FALLOCATE, IORING_OP_ASYNC_CANCEL,
        IORING_OP_SEND_ZC,  // not used, but it came with multishot receive (Linux 6.0)
    };
    // As io_uring_get_probe_ring(3), which keeps the reason of its failure to itself.
    size_t bytes = sizeof(struct io_uring_probe) + 256 * sizeof(struct io_uring_probe_op);
    struct io_uring_probe *probe = calloc(1, bytes);
    if (!probe) return ENOMEM;
    int result = io_uring_register_probe(ring, probe, 256);
    *missing = -1;
    if (result == 0) {
        for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]); i++) {
            if (!io_uring_opcode_supported(probe, needed[i])) {
                *missing = needed[i];
                break;
            }
        }
    }
    free(probe);
    return -result;
}

struct io_uring_buf_ring *millrace_buffers_register(
    struct io_uring *ring, unsigned count, int group, int *error
) {
    size_t bytes = count * sizeof(struct io_uring_buf);
    void *memory =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED) {
        *error = errno;
        return NULL;
    }
    struct io_uring_buf_reg registration;
    memset(&registration, 0, sizeof(registration));
    registration.ring_addr = (uint64_t)(uintptr_t)memory;
    registration.ring_entries = count;
    registration.bgid = (uint16_t)group;
    int result = io_uring_register_buf_ring(ring, &registration, 0);
    if (result != 0) {
        munmap(memory, bytes);
        *error = -result;
        return NULL;
    }
    io_uring_buf_ring_init(memory);
    return memory;
}

// Not in Debian 12's headers; the layout is the kernel's (include/uapi/linux/sched/types.h).
struct millrace_sched_attr {
    uint32_t size;
    uint32_t policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime;
    uint64_t deadline;
    uint64_t period;
};

int millrace_set_slice(uint64_t nanoseconds) {
    struct millrace_sched_attr attributes;
    memset(&attributes, 0, sizeof(attributes));
    attributes.size = sizeof(attributes);
    attributes.policy = SCHED_OTHER;
    attributes.flags = 1;  // SCHED_FLAG_RESET_ON_FORK
    attributes.runtime = nanoseconds;
    return syscall(SYS_sched_setattr, 0, &attributes, 0) == 0 ? 0 : errno;
}

void millrace_name_thread(const char *name) { prctl(PR_SET_NAME, name, 0, 0, 0); }

int millrace_pin(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    return sched_setaffinity(0, sizeof(set), &set) == 0 ? 0 : errno;
}

int millrace_set_affinity(int thread, uint64_t cpus) {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (int cpu = 0; cpu < 64; cpu++) {
        if (cpus & (1ull << cpu)) CPU_SET(cpu, &set);
    }
    return sched_setaffinity(thread, sizeof(set), &set) == 0 ? 0 : errno;
}

int millrace_direct_flag(void) { return O_DIRECT; }

static uint64_t cpus_of(pid_t thread) {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(thread, sizeof(set), &set) != 0) return 1;
    uint64_t map = 0;
    for (int cpu = 0; cpu < 64; cpu++) {
        if (CPU_ISSET(cpu, &set)) map |= 1ull << cpu;
    }
    return map;
}

uint64_t millrace_allowed_cpus(void) { return cpus_of(0); }
uint64_t millrace_process_cpus(void) { return cpus_of(getpid()); }

#ifndef STATX_DIOALIGN
#define STATX_DIOALIGN 0x00002000U
#endif
// struct statx with the fields of Linux 6.1, which glibc 2.36 does not name.
struct millrace_statx {
    uint8_t before[0x98];
    uint32_t memory_alignment;
    uint32_t offset_alignment;
    uint8_t after[0x60];
};

int millrace_direct_alignment(int fd, uint32_t *memory_alignment, uint32_t *offset_alignment) {
    struct millrace_statx facts;
    memset(&facts, 0, sizeof(facts));
    if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &facts) != 0) return errno;
    if (facts.memory_alignment == 0 || facts.offset_alignment == 0) return ENOTSUP;
    *memory_alignment = facts.memory_alignment;
    *offset_alignment = facts.offset_alignment;
    return 0;
}

// Accepted sockets inherit what follows. tcp(7): probes begin when nothing came for TCP_KEEPIDLE, and the
// connection ends when TCP_KEEPCNT of them in a row are not answered; TCP_USER_TIMEOUT ends it when what was
// sent is not acknowledged, or the window stays shut, for that long.
static int watch_peers(int fd, uint32_t milliseconds) {
    int on = 1, count = 3;
    int seconds = (int)(milliseconds / 1000);
    // The kernel takes up to 32767 s (MAX_TCP_KEEPIDLE).
    int idle = seconds / 2 < 1 ? 1 : seconds / 2 > 32767 ? 32767 : seconds / 2;
    int interval = seconds / 6 > 1 ? seconds / 6 : 1;
    if (setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on)) != 0
        || setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle)) != 0
        || setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval)) != 0
        || setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count)) != 0
        || setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &milliseconds, sizeof(milliseconds)) != 0)
        return errno;
    return 0;
}

int millrace_listen_tcp(
    const char *host, uint16_t port, int backlog, uint32_t peer_milliseconds, uint16_t *bound_port
) {
    struct addrinfo hints, *found = NULL;
    memset(&hints, 0, sizeof(hints));
    hints.ai_family = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
    char service[8];
    snprintf(service, sizeof(service), "%u", (unsigned)port);
    if (getaddrinfo(host[0] ? host : NULL, service, &hints, &found) != 0) return -EADDRNOTAVAIL;
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int error = fd < 0 ? errno : 0;
    int on = 1;
    if (!error && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0) error = errno;
    // Accepted sockets inherit it: a confirm must not wait for the next one.
    if (!error && setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) != 0) error = errno;
    if (!error) error = watch_peers(fd, peer_milliseconds);
    if (!error && bind(fd, found->ai_addr, found->ai_addrlen) != 0) error = errno;
    if (!error && listen(fd, backlog) != 0) error = errno;
    freeaddrinfo(found);
    struct sockaddr_storage bound;
    socklen_t length = sizeof(bound);
    if (!error && getsockname(fd, (struct sockaddr *)&bound, &length) != 0) error = errno;
    if (error) {
        if (fd >= 0) close(fd);
        return -error;
    }
    *bound_port = ntohs(
        bound.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&bound)->sin6_port
                                    : ((struct sockaddr_in *)&bound)->sin_port
    );
    return fd;
}

int millrace_listen_unix(const char *path, int backlog) {
    struct sockaddr_un address;
    memset(&address, 0, sizeof(address));
    address.sun_family = AF_UNIX;
    if (strlen(path) >= sizeof(address.sun_path)) return -ENAMETOOLONG;
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -errno;
    if (bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0) {
        if (errno != EADDRINUSE) goto failed;
        int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (probe < 0) goto failed;
        int alive = connect(probe, (struct sockaddr *)&address, sizeof(address)) == 0;
        int stale = !alive && errno == ECONNREFUSED;
        close(probe);
        errno = EADDRINUSE;
        if (!stale) goto failed;
        if (unlink(path) != 0) goto failed;
        if (bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0) goto failed;
    }
    if (listen(fd, backlog) == 0) return fd;
failed: {
    int error = errno;
    close(fd);
    return -error;
}
}

int millrace_event_fd(void) { return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); }

void millrace_event_signal(int fd) {
    uint64_t one = 1;
    ssize_t written = write(fd, &one, sizeof(one));
    (void)written;
}

int millrace_poll_open(void) {
    int fd = epoll_create1(EPOLL_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

int millrace_poll_watch(
    int poll, int fd, uint64_t token, _Bool readable, _Bool writable, _Bool is_watched
) {
    struct epoll_event event = {
        .events = (readable ? EPOLLIN : 0u) | (writable ? EPOLLOUT : 0u),
        .data.u64 = token,
    };
    // A hang-up is always reported, whatever is asked for.
    int operation = event.events == 0 ? EPOLL_CTL_DEL
                    : is_watched      ? EPOLL_CTL_MOD
                                      : EPOLL_CTL_ADD;
    if (operation == EPOLL_CTL_DEL && !is_watched) return 0;
    return epoll_ctl(poll, operation, fd, &event) == 0 ? 0 : errno;
}

int millrace_poll_wait(
    int poll, struct millrace_poll_event *events, int capacity, int milliseconds
) {
    struct epoll_event found[256];
    if (capacity > 256) capacity = 256;
    int count = epoll_wait(poll, found, capacity, milliseconds);
    if (count < 0) return 0;
    for (int i = 0; i < count; i++) {
        uint32_t what = found[i].events;
        _Bool ended = (what & (EPOLLERR | EPOLLHUP)) != 0;
        events[i] = (struct millrace_poll_event){
            .token = found[i].data.u64,
            .readable = ended || (what & EPOLLIN) != 0,
            .writable = ended || (what & EPOLLOUT) != 0,
        };
    }
    return count;
}

int millrace_accept(int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

void millrace_set_nonblocking(int fd) { fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); }

int64_t millrace_write_at(int fd, const void *bytes, size_t count, int64_t position, _Bool synced) {
    struct iovec part = {.iov_base = (void *)bytes, .iov_len = count};
    ssize_t written;
    do {
        written = pwritev2(fd, &part, 1, position, synced ? RWF_DSYNC : 0);
    } while (written < 0 && errno == EINTR);
    return written < 0 ? -errno : written;
}

int64_t millrace_read_at(int fd, void *bytes, size_t count, int64_t position) {
    ssize_t taken;
    do {
        taken = pread(fd, bytes, count, position);
    } while (taken < 0 && errno == EINTR);
    return taken < 0 ? -errno : taken;
}

int millrace_allocate(int fd, int64_t position, int64_t bytes) {
    int result;
    do {
        result = fallocate(fd, 0, position, bytes);
    } while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : 0;
}

uint64_t millrace_memlock_limit(void) {
    struct rlimit limit = {0, 0};
    getrlimit(RLIMIT_MEMLOCK, &limit);
    return limit.rlim_cur;
}
