#include "internal.h"

#include <sys/syscall.h>
#include <unistd.h>

uint64_t baseline_quantile(const struct baseline_histogram *histogram, double quantile) {
    uint64_t wanted = (uint64_t)(quantile * (double)histogram->count + 0.999999);
    uint64_t seen = 0;
    for (unsigned index = 0; index < BASELINE_BUCKETS; index++) {
        seen += histogram->buckets[index];
        if (seen >= wanted && histogram->buckets[index]) {
            unsigned shift = index < 256 ? 0 : index / 128 - 1;
            uint64_t top = ((uint64_t)(index - shift * 128 + 1) << shift) - 1;
            return top < histogram->max ? top : histogram->max;
        }
    }
    return histogram->max;
}

int baseline_own_core(int cpu) {
    // sched_attr is not in Debian 12's headers; the layout is include/uapi/linux/sched/types.h.
    struct {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
    } attributes = {.size = 48, .policy = SCHED_OTHER, .runtime = 100000000};
    syscall(SYS_sched_setattr, 0, &attributes, 0);
    if (cpu < 0) return 0;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    return sched_setaffinity(0, sizeof(set), &set) == 0 ? 0 : errno;
}

int baseline_ring(struct io_uring *ring, unsigned entries, unsigned completions) {
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
