// A TCP echo over io_uring: multishot receive into provided buffers, and at most one send per
// connection and cycle. The server returns the bytes from the very buffers they arrived in (no
// copy): one buffer by SEND, several by SENDMSG.
#include "internal.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum { connections_max = 64, buffer_count = 64, buffer_bytes = 32768 };
enum { token_recv = 0, token_send = 1 };

/// Provided buffers. 2 MiB per side: larger pools are slower, because the kernel walks through all
/// of them and they leave the cache.
struct pool {
    struct io_uring_buf_ring *ring;
    uint8_t *memory;
    int released;
};

static int pool_open(struct pool *pool, struct io_uring *ring) {
    size_t ring_bytes = buffer_count * sizeof(struct io_uring_buf);
    size_t bytes = (size_t)buffer_count * buffer_bytes;
    pool->ring = mmap(NULL, ring_bytes, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE, -1, 0);
    pool->memory = mmap(
        NULL, bytes, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE | MAP_POPULATE, -1, 0
    );
    if (pool->ring == MAP_FAILED || pool->memory == MAP_FAILED) return -ENOMEM;
    struct io_uring_buf_reg registration;
    memset(&registration, 0, sizeof(registration));
    registration.ring_addr = (uint64_t)(uintptr_t)pool->ring;
    registration.ring_entries = buffer_count;
    int result = io_uring_register_buf_ring(ring, &registration, 0);
    if (result != 0) return result;
    io_uring_buf_ring_init(pool->ring);
    for (int id = 0; id < buffer_count; id++) {
        io_uring_buf_ring_add(
            pool->ring, pool->memory + (size_t)id * buffer_bytes, buffer_bytes,
            (unsigned short)id, buffer_count - 1, id
        );
    }
    io_uring_buf_ring_advance(pool->ring, buffer_count);
    pool->released = 0;
    return 0;
}

static inline void pool_release(struct pool *pool, unsigned id) {
    io_uring_buf_ring_add(
        pool->ring, pool->memory + (size_t)id * buffer_bytes, buffer_bytes, (unsigned short)id,
        buffer_count - 1, pool->released++
    );
}

static inline void pool_publish(struct pool *pool) {
    if (pool->released) io_uring_buf_ring_advance(pool->ring, pool->released);
    pool->released = 0;
}

static void pool_close(struct pool *pool) {
    if (pool->ring && pool->ring != MAP_FAILED)
        munmap(pool->ring, buffer_count * sizeof(struct io_uring_buf));
    if (pool->memory && pool->memory != MAP_FAILED)
        munmap(pool->memory, (size_t)buffer_count * buffer_bytes);
}

static inline void receive(struct io_uring *ring, int fd, uint64_t index) {
    struct io_uring_sqe *entry = io_uring_get_sqe(ring);
    io_uring_prep_recv_multishot(entry, fd, NULL, 0, 0);
    entry->flags |= IOSQE_BUFFER_SELECT;
    entry->buf_group = 0;
    entry->user_data = index << 1 | token_recv;
}

struct echo {
    const struct baseline_echo_options *options;
    struct baseline_result *client_result;
    struct baseline_result server_result;
    int server_fds[connections_max];
    int client_fds[connections_max];
};

static void hang_up(const int *fds, unsigned count) {
    for (unsigned index = 0; index < count; index++) shutdown(fds[index], SHUT_RDWR);
}

// Server.

/// Buffers that wait for their turn, or that a send is reading.
struct batch {
    unsigned count;
    uint16_t ids[buffer_count];
    struct iovec pieces[buffer_count];
};
struct server_connection {
    _Bool sending;
    struct batch *waiting, *flying;
    struct batch storage[2];
    struct msghdr message;
};

static inline void server_send(struct io_uring *ring, struct server_connection *c, int fd, uint64_t index) {
    struct batch *batch = c->waiting;
    c->waiting = c->flying;
    c->flying = batch;
    c->sending = 1;
    struct io_uring_sqe *entry = io_uring_get_sqe(ring);
    if (batch->count == 1) {
        io_uring_prep_send(
            entry, fd, batch->pieces[0].iov_base, batch->pieces[0].iov_len,
            MSG_NOSIGNAL | MSG_WAITALL
        );
    } else {
        c->message.msg_iov = batch->pieces;
        c->message.msg_iovlen = batch->count;
        io_uring_prep_sendmsg(entry, fd, &c->message, MSG_NOSIGNAL | MSG_WAITALL);
    }
    entry->user_data = index << 1 | token_send;
}

static void serve(struct echo *echo, struct io_uring *ring, struct pool *pool,
                  struct server_connection *connections) {
    unsigned count = echo->options->connections, open = count;
    for (unsigned index = 0; index < count; index++) {
        connections[index].waiting = &connections[index].storage[0];
        connections[index].flying = &connections[index].storage[1];
        receive(ring, echo->server_fds[index], index);
    }
    while (open) {
        int ready = ring_cycle(ring, echo->options->blocking);
        if (ready < 0) return fail(&echo->server_result, "echo server: io_uring_enter", -ready);
        if (ready == 0) continue;
        uint64_t touched = 0;
        unsigned head;
        struct io_uring_cqe *entry;
        io_uring_for_each_cqe(ring, head, entry) {
            uint64_t index = entry->user_data >> 1;
            struct server_connection *c = &connections[index];
            if ((entry->user_data & 1) == token_send) {
                if (entry->res < 0) return fail(&echo->server_result, "echo server: send", -entry->res);
                for (unsigned i = 0; i < c->flying->count; i++) pool_release(pool, c->flying->ids[i]);
                c->flying->count = 0;
                c->sending = 0;
                touched |= 1ull << index;
                continue;
            }
            if (entry->res > 0) {
                unsigned id = entry->flags >> IORING_CQE_BUFFER_SHIFT;
                struct batch *batch = c->waiting;
                batch->ids[batch->count] = (uint16_t)id;
                batch->pieces[batch->count].iov_base = pool->memory + (size_t)id * buffer_bytes;
                batch->pieces[batch->count].iov_len = (size_t)entry->res;
                batch->count++;
                touched |= 1ull << index;
            } else if (entry->res != -ENOBUFS) {
                open--;  // 0 or an error: the client has hung up, and says itself why.
                continue;
            }
            if (!(entry->flags & IORING_CQE_F_MORE)) receive(ring, echo->server_fds[index], index);
        }
        io_uring_cq_advance(ring, (unsigned)ready);
        pool_publish(pool);
        while (touched) {
            uint64_t index = (uint64_t)__builtin_ctzll(touched);
            touched &= touched - 1;
            struct server_connection *c = &connections[index];
            if (!c->sending && c->waiting->count) server_send(ring, c, echo->server_fds[index], index);
        }
    }
}

static void *server_thread(void *argument) {
    struct echo *echo = argument;
    struct io_uring ring;
    struct pool pool = {0};
    int error = baseline_own_core(echo->options->server_cpu);
    if (error) fail(&echo->server_result, "echo server: pinning to its CPU", error);
    int result = error ? -error : baseline_ring(&ring, 256, 1024);
    if (result != 0) {
        fail(&echo->server_result, "echo server: io_uring_setup", -result);
    } else {
        struct server_connection *connections =
            calloc(echo->options->connections, sizeof(struct server_connection));
        result = connections ? pool_open(&pool, &ring) : -ENOMEM;
        if (result != 0) fail(&echo->server_result, "echo server: receive buffers", -result);
        else serve(echo, &ring, &pool, connections);
        io_uring_queue_exit(&ring);
        pool_close(&pool);
        free(connections);
    }
    hang_up(echo->server_fds, echo->options->connections);
    return NULL;
}

// Client.

struct client_connection {
    unsigned due;       ///< frames to send at the next chance
    _Bool sending;
    uint64_t partial;   ///< bytes of a frame that has not wholly come back
    unsigned sent, received;  ///< places in `stamps`, below the window
    uint64_t *stamps;
};

static void load(struct echo *echo, struct io_uring *ring, struct pool *pool,
                 struct client_connection *connections, const uint8_t *frames) {
    const struct baseline_echo_options *o = echo->options;
    struct baseline_result *result = echo->client_result;
    for (unsigned index = 0; index < o->connections; index++) {
        receive(ring, echo->client_fds[index], index);
        connections[index].due = o->window;
    }
    uint64_t touched = o->connections == 64 ? UINT64_MAX : (1ull << o->connections) - 1;
    uint64_t begin = now_ns() + o->warmup_ns, end = begin + o->duration_ns;
    _Bool measuring = 0;
    for (;;) {
        uint64_t stamp = now_ns();
        while (touched) {
            uint64_t index = (uint64_t)__builtin_ctzll(touched);
            touched &= touched - 1;
            struct client_connection *c = &connections[index];
            if (c->sending || !c->due) continue;
            struct io_uring_sqe *entry = io_uring_get_sqe(ring);
            io_uring_prep_send(
                entry, echo->client_fds[index], frames, (size_t)c->due * o->frame_bytes,
                MSG_NOSIGNAL | MSG_WAITALL
            );
            entry->user_data = index << 1 | token_send;
            for (; c->due; c->due--) {
                c->stamps[c->sent] = stamp;
                if (++c->sent == o->window) c->sent = 0;
            }
            c->sending = 1;
        }
        int ready;
        do ready = ring_cycle(ring, o->blocking);
        while (ready == 0);
        if (ready < 0) return fail(result, "echo client: io_uring_enter", -ready);
        uint64_t now = now_ns();
        if (!measuring && now >= begin) {
            measuring = 1;
            begin = now;
        }
        if (now >= end) {
            result->nanoseconds = now - begin;
            return;
        }
        unsigned head;
        struct io_uring_cqe *entry;
        io_uring_for_each_cqe(ring, head, entry) {
            uint64_t index = entry->user_data >> 1;
            struct client_connection *c = &connections[index];
            touched |= 1ull << index;
            if ((entry->user_data & 1) == token_send) {
                if (entry->res < 0) return fail(result, "echo client: send", -entry->res);
                c->sending = 0;
                continue;
            }
            if (entry->res > 0) {
                pool_release(pool, entry->flags >> IORING_CQE_BUFFER_SHIFT);
                uint64_t bytes = c->partial + (uint64_t)entry->res;
                while (bytes >= o->frame_bytes) {
                    bytes -= o->frame_bytes;
                    if (measuring) histogram_record(&result->latency, now - c->stamps[c->received]);
                    if (++c->received == o->window) c->received = 0;
                    c->due++;
                }
                c->partial = bytes;
            } else if (entry->res != -ENOBUFS) {
                return fail(result, "echo client: receive", entry->res ? -entry->res : ECONNRESET);
            }
            if (!(entry->flags & IORING_CQE_F_MORE)) receive(ring, echo->client_fds[index], index);
        }
        io_uring_cq_advance(ring, (unsigned)ready);
        pool_publish(pool);
    }
}

static void *client_thread(void *argument) {
    struct echo *echo = argument;
    const struct baseline_echo_options *o = echo->options;
    struct io_uring ring;
    struct pool pool = {0};
    int error = baseline_own_core(o->client_cpu);
    if (error) fail(echo->client_result, "echo client: pinning to its CPU", error);
    int result = error ? -error : baseline_ring(&ring, 256, 1024);
    if (result != 0) {
        fail(echo->client_result, "echo client: io_uring_setup", -result);
    } else {
        struct client_connection *connections = calloc(o->connections, sizeof(*connections));
        uint64_t *stamps = calloc((size_t)o->connections * o->window, sizeof(*stamps));
        uint8_t *frames = calloc(o->window, o->frame_bytes);
        result = connections && stamps && frames ? pool_open(&pool, &ring) : -ENOMEM;
        if (result != 0) {
            fail(echo->client_result, "echo client: receive buffers", -result);
        } else {
            memset(frames, 0xA5, (size_t)o->window * o->frame_bytes);
            for (unsigned i = 0; i < o->connections; i++)
                connections[i].stamps = stamps + (size_t)i * o->window;
            load(echo, &ring, &pool, connections, frames);
        }
        hang_up(echo->client_fds, o->connections);
        io_uring_queue_exit(&ring);
        pool_close(&pool);
        free(connections);
        free(stamps);
        free(frames);
    }
    hang_up(echo->client_fds, o->connections);
    return NULL;
}

static int connect_pair(int listener, const struct sockaddr_in *address, int *server, int *client) {
    int on = 1;
    *client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (*client < 0) return errno;
    if (connect(*client, (const struct sockaddr *)address, sizeof(*address)) != 0) return errno;
    *server = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (*server < 0) return errno;
    setsockopt(*client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    setsockopt(*server, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    return 0;
}

int baseline_echo(
    const struct baseline_echo_options *options, struct baseline_result *result
) {
    memset(result, 0, sizeof(*result));
    if (options->connections < 1 || options->connections > connections_max ||
        options->window < 1 || options->frame_bytes < 1) {
        fail(result, "echo: 1 ... 64 connections, a window and a frame size", EINVAL);
        return -1;
    }
    struct echo *echo = calloc(1, sizeof(*echo));
    if (!echo) {
        fail(result, "echo", ENOMEM);
        return -1;
    }
    echo->options = options;
    echo->client_result = result;
    for (int i = 0; i < connections_max; i++) echo->server_fds[i] = echo->client_fds[i] = -1;

    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, length) != 0 ||
        listen(listener, connections_max) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &length) != 0) {
        fail(result, "echo: listening on 127.0.0.1", errno);
    }
    for (unsigned i = 0; i < options->connections && !result->error[0]; i++) {
        int error = connect_pair(listener, &address, &echo->server_fds[i], &echo->client_fds[i]);
        if (error) fail(result, "echo: connecting to itself", error);
    }
    if (!result->error[0]) {
        pthread_t server, client;
        int error = pthread_create(&server, NULL, server_thread, echo);
        if (error) {
            fail(result, "echo: starting a thread", error);
        } else {
            error = pthread_create(&client, NULL, client_thread, echo);
            if (error) {
                fail(result, "echo: starting a thread", error);
                hang_up(echo->client_fds, options->connections);
            } else {
                pthread_join(client, NULL);
            }
            pthread_join(server, NULL);
        }
    }
    // The server's own failure shows at the client as a closed connection: its reason is better.
    if (echo->server_result.error[0])
        memcpy(result->error, echo->server_result.error, sizeof(result->error));
    for (int i = 0; i < connections_max; i++) {
        if (echo->server_fds[i] >= 0) close(echo->server_fds[i]);
        if (echo->client_fds[i] >= 0) close(echo->client_fds[i]);
    }
    if (listener >= 0) close(listener);
    free(echo);
    result->operations = result->latency.count;
    result->bytes = result->operations * options->frame_bytes;
    return result->error[0] ? -1 : 0;
}
