// What the echo and the appends share: ring set-up, the spinning cycle, pinning, clock, histogram.
#ifndef MILLRACE_CBASELINE_INTERNAL_H
#define MILLRACE_CBASELINE_INTERNAL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <linux/io_uring.h>
#include <liburing.h>

#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "cbaseline.h"

static inline uint64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static inline void histogram_record(struct baseline_histogram *histogram, uint64_t value) {
    if (value > histogram->max) histogram->max = value;
    if (value >= 1ull << 40) value = (1ull << 40) - 1;
    unsigned shift = value < 256 ? 0 : 56u - (unsigned)__builtin_clzll(value);
    histogram->buckets[shift * 128 + (value >> shift)]++;
    histogram->count++;
}

static inline void fail(struct baseline_result *result, const char *what, int error) {
    if (result->error[0]) return;
    snprintf(result->error, sizeof(result->error), "%s: %s (errno %d)", what, strerror(error), error);
}

/// Pins the calling thread and asks for a 100 ms slice (best effort). Returns 0 or an errno.
int baseline_own_core(int cpu);

/// A ring for one spinning thread. Returns 0 or a negative errno.
int baseline_ring(struct io_uring *ring, unsigned entries, unsigned completions);

/// Submits what is queued and takes completions. Spinning, it enters the kernel only when there is
/// something to submit or the kernel says in shared memory that it has work to post; on an empty
/// cycle it yields, so that the kernel's own workers get this core.
/// Returns the number of completions ready, or a negative errno.
static inline int ring_cycle(struct io_uring *ring, _Bool blocking) {
    if (blocking) {
        int result = io_uring_submit_and_wait(ring, 1);
        if (result < 0 && result != -EINTR) return result;
    } else if (io_uring_sq_ready(ring) ||
               (IO_URING_READ_ONCE(*ring->sq.kflags) &
                ((1u << 2 /* IORING_SQ_TASKRUN */) | IORING_SQ_CQ_OVERFLOW))) {
        int result = io_uring_submit_and_get_events(ring);
        if (result < 0 && result != -EINTR && result != -EBUSY && result != -EAGAIN) return result;
    }
    unsigned ready = io_uring_cq_ready(ring);
    if (ready == 0 && !blocking) sched_yield();
    return (int)ready;
}

#endif
