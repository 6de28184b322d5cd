// Raw appends: O_DIRECT writes over a file whose blocks are already written, which is the cheapest
// durable append that ext4 and XFS have (no extent changes, so a sync has no metadata to write).
// And raw reads of the same file.
#include "internal.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { in_flight_max = 32, streams_max = 2, zeroing_bytes = 1 << 20 };
/// How far one of two streams may be ahead of the other.
static const uint64_t ahead_bytes_max = 512 * 1024;
static const uint64_t token_sync = UINT64_MAX;

/// struct statx with the fields of Linux 6.1, which glibc 2.36 does not name.
struct statx_direct {
    uint8_t before[0x98];
    uint32_t memory_alignment;
    uint32_t offset_alignment;
    uint8_t after[0x60];
};

int baseline_file_open(
    const char *directory, uint64_t bytes, struct baseline_file *file, char *error,
    size_t error_bytes
) {
    char path[4096];
    const char *step = "creating";
    void *zeros = NULL;
    memset(file, 0, sizeof(*file));
    snprintf(path, sizeof(path), "%s/brokerload-XXXXXX", directory);
    file->fd = mkostemp(path, O_CLOEXEC);
    if (file->fd < 0) goto failed;
    unlink(path);
    step = "opening with O_DIRECT";
    if (fcntl(file->fd, F_SETFL, O_DIRECT) != 0) goto failed;
    struct statx_direct facts;
    memset(&facts, 0, sizeof(facts));
    step = "asking for the O_DIRECT alignment of";
    if (syscall(SYS_statx, file->fd, "", AT_EMPTY_PATH, 0x2000u /* STATX_DIOALIGN */, &facts) != 0)
        goto failed;
    errno = ENOTSUP;
    if (!facts.memory_alignment || !facts.offset_alignment) goto failed;
    file->memory_alignment = facts.memory_alignment;
    file->offset_alignment = facts.offset_alignment;
    file->bytes = (bytes + zeroing_bytes - 1) / zeroing_bytes * zeroing_bytes;
    step = "allocating";
    if (fallocate(file->fd, 0, 0, (off_t)file->bytes) != 0 && errno != EOPNOTSUPP) goto failed;
    step = "writing zeros to";
    errno = posix_memalign(&zeros, zeroing_bytes, zeroing_bytes);
    if (errno) goto failed;
    memset(zeros, 0, zeroing_bytes);
    for (uint64_t at = 0; at < file->bytes; at += zeroing_bytes) {
        ssize_t written = pwrite(file->fd, zeros, zeroing_bytes, (off_t)at);
        if (written == zeroing_bytes) continue;
        if (written >= 0) errno = EIO;
        goto failed;
    }
    step = "syncing";
    if (fsync(file->fd) != 0) goto failed;
    free(zeros);
    return 0;
failed:
    snprintf(error, error_bytes, "%s a file of %llu bytes in %s: %s", step,
             (unsigned long long)bytes, directory, strerror(errno));
    free(zeros);
    if (file->fd >= 0) close(file->fd);
    file->fd = -1;
    return -1;
}

void baseline_file_close(struct baseline_file *file) {
    if (file->fd >= 0) close(file->fd);
    file->fd = -1;
}

struct writer {
    const struct baseline_stream *options;
    unsigned index;       ///< of the stream, of its registered file
    uint64_t position;    ///< the next write's place in the file
    uint64_t submitted;   ///< bytes
    uint64_t unsynced;    ///< bytes finished since the last fdatasync was asked for
    _Bool syncing;
    unsigned free_count;
    unsigned free_slots[in_flight_max];
    uint64_t stamps[in_flight_max];
    uint8_t *buffers;     ///< one per slot, registered
};

struct run {
    const struct baseline_stream *streams;
    unsigned count;
    int cpu;
    uint64_t warmup_ns, duration_ns;
    struct baseline_result *results;
};

static inline void submit_write(struct io_uring *ring, struct writer *w, unsigned slots_before) {
    const struct baseline_stream *o = w->options;
    unsigned slot = w->free_slots[--w->free_count];
    struct io_uring_sqe *entry = io_uring_get_sqe(ring);
    uint8_t *buffer = w->buffers + (size_t)slot * o->write_bytes;
    int number = (int)(slots_before + slot);
    if (o->reads)
        io_uring_prep_read_fixed(
            entry, (int)w->index, buffer, o->write_bytes, w->position, number
        );
    else
        io_uring_prep_write_fixed(
            entry, (int)w->index, buffer, o->write_bytes, w->position, number
        );
    entry->flags |= IOSQE_FIXED_FILE;
    if (o->dsync) entry->rw_flags = RWF_DSYNC;
    entry->user_data = (uint64_t)w->index << 32 | slot;
    w->position += o->write_bytes;
    if (w->position + o->write_bytes > o->file->bytes) w->position = 0;
    w->submitted += o->write_bytes;
    w->stamps[slot] = now_ns();
}

static void write_streams(struct run *run, struct io_uring *ring, struct writer *writers) {
    unsigned flying = 0;
    uint64_t begin = now_ns() + run->warmup_ns, end = begin + run->duration_ns;
    _Bool measuring = 0, stopping = 0;
    while (!stopping || flying) {
        for (unsigned i = 0; i < run->count && !stopping; i++) {
            struct writer *w = &writers[i];
            uint64_t limit =
                run->count == 2 ? writers[1 - i].submitted + ahead_bytes_max : UINT64_MAX;
            unsigned slots_before = i == 0 ? 0 : writers[0].options->in_flight;
            while (w->free_count && w->submitted < limit) {
                submit_write(ring, w, slots_before);
                flying++;
            }
            if (w->options->sync_every_bytes && !w->syncing &&
                w->unsynced >= w->options->sync_every_bytes) {
                struct io_uring_sqe *entry = io_uring_get_sqe(ring);
                io_uring_prep_fsync(entry, (int)w->index, IORING_FSYNC_DATASYNC);
                entry->flags |= IOSQE_FIXED_FILE;
                entry->user_data = token_sync - w->index;
                w->syncing = 1;
                w->unsynced = 0;
                flying++;
            }
        }
        int ready;
        do ready = ring_cycle(ring, 0);
        while (ready == 0);
        if (ready < 0) return fail(run->results, "append: io_uring_enter", -ready);
        uint64_t now = now_ns();
        if (!measuring && now >= begin) {
            measuring = 1;
            begin = now;
        }
        if (!stopping && now >= end) {
            stopping = 1;
            for (unsigned i = 0; i < run->count; i++) run->results[i].nanoseconds = now - begin;
        }
        unsigned head;
        struct io_uring_cqe *entry;
        io_uring_for_each_cqe(ring, head, entry) {
            flying--;
            if (entry->user_data > UINT64_MAX - streams_max) {
                if (entry->res < 0) return fail(run->results, "append: fdatasync", -entry->res);
                writers[token_sync - entry->user_data].syncing = 0;
                continue;
            }
            struct writer *w = &writers[entry->user_data >> 32];
            unsigned slot = (unsigned)entry->user_data;
            if (entry->res != (int)w->options->write_bytes)
                return fail(run->results, w->options->reads ? "read" : "append: write", entry->res < 0 ? -entry->res : EIO);
            w->free_slots[w->free_count++] = slot;
            w->unsynced += w->options->write_bytes;
            if (measuring && !stopping) {
                struct baseline_result *result = &run->results[w->index];
                histogram_record(&result->latency, now - w->stamps[slot]);
                result->bytes += w->options->write_bytes;
            }
        }
        io_uring_cq_advance(ring, (unsigned)ready);
    }
}

static void *write_thread(void *argument) {
    struct run *run = argument;
    struct writer writers[streams_max];
    struct iovec buffers[streams_max * in_flight_max];
    int files[streams_max];
    unsigned buffer_count = 0;
    memset(writers, 0, sizeof(writers));
    int error = baseline_own_core(run->cpu);
    if (error) {
        fail(run->results, "append: pinning to its CPU", error);
        return NULL;
    }
    struct io_uring ring;
    int result = baseline_ring(&ring, 128, 256);
    if (result != 0) {
        fail(run->results, "append: io_uring_setup", -result);
        return NULL;
    }
    for (unsigned i = 0; i < run->count; i++) {
        struct writer *w = &writers[i];
        w->options = &run->streams[i];
        w->index = i;
        files[i] = w->options->file->fd;
        size_t bytes = (size_t)w->options->write_bytes * w->options->in_flight;
        error = posix_memalign((void **)&w->buffers, 4096, bytes);
        if (error) {
            fail(run->results, "append: buffers", error);
            goto done;
        }
        // Not zeros: a host may store those more cheaply.
        uint64_t noise = 0x9E3779B97F4A7C15u + i;
        for (size_t at = 0; at + 8 <= bytes; at += 8) {
            noise = noise * 6364136223846793005u + 1442695040888963407u;
            memcpy(w->buffers + at, &noise, 8);
        }
        for (unsigned slot = 0; slot < w->options->in_flight; slot++) {
            w->free_slots[w->free_count++] = slot;
            buffers[buffer_count].iov_base = w->buffers + (size_t)slot * w->options->write_bytes;
            buffers[buffer_count++].iov_len = w->options->write_bytes;
        }
    }
    result = io_uring_register_buffers(&ring, buffers, buffer_count);
    if (result == 0) result = io_uring_register_files(&ring, files, run->count);
    if (result < 0) fail(run->results, "append: registering buffers", -result);
    else write_streams(run, &ring, writers);
done:
    // Leaving the ring waits for what is in flight, so the buffers go after it.
    io_uring_queue_exit(&ring);
    for (unsigned i = 0; i < run->count; i++) free(writers[i].buffers);
    return NULL;
}

int baseline_write(
    const struct baseline_stream *streams, unsigned stream_count, int cpu, uint64_t warmup_ns,
    uint64_t duration_ns, struct baseline_result *results
) {
    memset(results, 0, sizeof(*results) * stream_count);
    for (unsigned i = 0; i < stream_count; i++) {
        const struct baseline_stream *s = &streams[i];
        if (stream_count > streams_max || s->in_flight < 1 || s->in_flight > in_flight_max ||
            s->write_bytes == 0 || s->write_bytes % s->file->offset_alignment != 0 ||
            s->write_bytes > s->file->bytes) {
            fail(results, "append: one or two streams of 1 ... 32 aligned writes", EINVAL);
            return -1;
        }
    }
    struct run run = {streams, stream_count, cpu, warmup_ns, duration_ns, results};
    pthread_t thread;
    int error = pthread_create(&thread, NULL, write_thread, &run);
    if (error) fail(results, "append: starting a thread", error);
    else pthread_join(thread, NULL);
    for (unsigned i = 0; i < stream_count; i++) results[i].operations = results[i].latency.count;
    return results[0].error[0] ? -1 : 0;
}
