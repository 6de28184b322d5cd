// The yardsticks that brokerload puts beside a broker's numbers, in plain C on liburing: a TCP
// echo that does nothing but return bytes, and raw appends to a file. Each is written to be as
// fast as its author could make it on one core per side; a slow yardstick flatters.
#ifndef MILLRACE_CBASELINE_H
#define MILLRACE_CBASELINE_H

#include <stddef.h>
#include <stdint.h>

/// Log-linear, 128 buckets per power of two (0.8 %), up to 2^40 ns.
#define BASELINE_BUCKETS (34 * 128 + 128)

struct baseline_histogram {
    uint64_t count;
    uint64_t max;
    uint64_t buckets[BASELINE_BUCKETS];
};

/// The value that `quantile` (0 ... 1) of the samples don't exceed, in nanoseconds.
uint64_t baseline_quantile(const struct baseline_histogram *_Nonnull histogram, double quantile);

struct baseline_result {
    uint64_t operations;   ///< frames or writes that finished inside the measured interval
    uint64_t bytes;        ///< their bytes, one way
    uint64_t nanoseconds;  ///< the measured interval
    struct baseline_histogram latency;
    char error[200];       ///< what failed, when the call returned -1
};

struct baseline_echo_options {
    int server_cpu;         ///< below 0: not pinned
    int client_cpu;         ///< below 0: not pinned
    unsigned connections;   ///< 1 ... 64
    unsigned window;        ///< frames in flight per connection
    unsigned frame_bytes;
    _Bool blocking;         ///< both sides sleep in the kernel instead of spinning
    uint64_t warmup_ns;
    uint64_t duration_ns;
};

/// Closed-loop echo over loopback TCP, one server and one client thread. Returns 0, or -1 and the
/// reason in `result->error`.
int baseline_echo(
    const struct baseline_echo_options *_Nonnull options, struct baseline_result *_Nonnull result
);

/// A zero-written file without a name: it is gone when it is closed, however the process ends.
struct baseline_file {
    int fd;
    uint64_t bytes;
    uint32_t memory_alignment;
    uint32_t offset_alignment;
};

/// Creates the file in `directory` and writes all of it. Returns 0, or -1 and the reason.
int baseline_file_open(
    const char *_Nonnull directory, uint64_t bytes, struct baseline_file *_Nonnull file,
    char *_Nonnull error, size_t error_bytes
);
void baseline_file_close(struct baseline_file *_Nonnull file);

/// One sequence of O_DIRECT writes, or reads, wrapping at the end of its file.
struct baseline_stream {
    const struct baseline_file *_Nonnull file;
    uint32_t write_bytes;        ///< a multiple of the file's offset alignment
    unsigned in_flight;          ///< 1 ... 32
    _Bool dsync;                 ///< each write with RWF_DSYNC
    uint64_t sync_every_bytes;   ///< an fdatasync each so many bytes; 0: none
    _Bool reads;                 ///< reads instead of writes
};

/// Runs one or two streams on one ring and one spinning thread, pinned to `cpu` (below 0: not);
/// two are held to equal bytes. `results` has one entry per stream. Returns 0, or -1 and the
/// reason in the first result.
int baseline_write(
    const struct baseline_stream *_Nonnull streams, unsigned stream_count, int cpu,
    uint64_t warmup_ns, uint64_t duration_ns, struct baseline_result *_Nonnull results
);

#endif
