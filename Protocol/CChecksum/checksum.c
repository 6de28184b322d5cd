// How it works: one crc32 instruction has a latency of three cycles and a throughput of one, so a
// single stream runs at a third of what the core can do. Above 768 bytes three lanes are computed
// side by side and joined: appending n zero bytes to a message is a linear map of its CRC, kept as
// four 256-entry tables for each of the two lane lengths.
#include "checksum.h"

#include <string.h>

#define POLYNOMIAL 0x82F63B78u
#define LONG_LANE 2048u
#define SHORT_LANE 256u

static uint32_t byte_table[256];
static uint32_t long_shift[4][256];
static uint32_t short_shift[4][256];
static int has_instruction;

static uint32_t extend_bytewise(uint32_t state, const uint8_t *bytes, size_t count) {
    for (size_t i = 0; i < count; i++) {
        state = byte_table[(state ^ bytes[i]) & 0xFF] ^ (state >> 8);
    }
    return state;
}

/// The map "append `zeros` zero bytes", as tables indexed by each byte of the CRC.
static void build_shift(uint32_t table[4][256], size_t zeros) {
    uint32_t of_bit[32];
    for (int bit = 0; bit < 32; bit++) {
        uint32_t state = 1u << bit;
        for (size_t i = 0; i < zeros; i++) {
            state = byte_table[state & 0xFF] ^ (state >> 8);
        }
        of_bit[bit] = state;
    }
    for (int byte = 0; byte < 4; byte++) {
        for (int value = 0; value < 256; value++) {
            uint32_t sum = 0;
            for (int bit = 0; bit < 8; bit++) {
                if (value & (1 << bit)) sum ^= of_bit[byte * 8 + bit];
            }
            table[byte][value] = sum;
        }
    }
}

__attribute__((constructor)) static void prepare(void) {
    for (uint32_t value = 0; value < 256; value++) {
        uint32_t state = value;
        for (int bit = 0; bit < 8; bit++) {
            state = (state >> 1) ^ ((state & 1) ? POLYNOMIAL : 0);
        }
        byte_table[value] = state;
    }
    build_shift(long_shift, LONG_LANE);
    build_shift(short_shift, SHORT_LANE);
#if defined(__x86_64__)
    __builtin_cpu_init();
    has_instruction = __builtin_cpu_supports("sse4.2");
#elif defined(__ARM_FEATURE_CRC32)
    has_instruction = 1;
#endif
}

uint32_t millrace_crc32c_portable(uint32_t crc, const void *bytes, size_t count) {
    return ~extend_bytewise(~crc, bytes, count);
}

#if defined(__x86_64__)
#define TARGET __attribute__((target("sse4.2")))
#define STEP8(state, value) ((uint32_t)__builtin_ia32_crc32di((state), (value)))
#define STEP1(state, value) __builtin_ia32_crc32qi((state), (value))
#elif defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#define TARGET
#define STEP8(state, value) __crc32cd((state), (value))
#define STEP1(state, value) __crc32cb((state), (value))
#endif

#ifdef STEP8
static inline uint64_t load8(const uint8_t *bytes) {
    uint64_t value;
    memcpy(&value, bytes, 8);
    return value;
}

static inline uint32_t shift(uint32_t table[4][256], uint32_t crc) {
    return table[0][crc & 0xFF] ^ table[1][(crc >> 8) & 0xFF] ^ table[2][(crc >> 16) & 0xFF] ^
           table[3][crc >> 24];
}

TARGET static inline uint32_t three_lanes(
    uint32_t state, const uint8_t *bytes, size_t lane, uint32_t table[4][256]
) {
    uint32_t second = 0, third = 0;
    for (size_t i = 0; i < lane; i += 8) {
        state = STEP8(state, load8(bytes + i));
        second = STEP8(second, load8(bytes + lane + i));
        third = STEP8(third, load8(bytes + 2 * lane + i));
    }
    return shift(table, shift(table, state) ^ second) ^ third;
}

TARGET static uint32_t extend_fast(uint32_t state, const uint8_t *bytes, size_t count) {
    while (count >= 3 * LONG_LANE) {
        state = three_lanes(state, bytes, LONG_LANE, long_shift);
        bytes += 3 * LONG_LANE;
        count -= 3 * LONG_LANE;
    }
    while (count >= 3 * SHORT_LANE) {
        state = three_lanes(state, bytes, SHORT_LANE, short_shift);
        bytes += 3 * SHORT_LANE;
        count -= 3 * SHORT_LANE;
    }
    for (; count >= 8; bytes += 8, count -= 8) state = STEP8(state, load8(bytes));
    for (; count > 0; bytes++, count--) state = STEP1(state, *bytes);
    return state;
}
#endif

uint32_t millrace_crc32c(uint32_t crc, const void *bytes, size_t count) {
#ifdef STEP8
    if (__builtin_expect(has_instruction, 1)) return ~extend_fast(~crc, bytes, count);
#endif
    return millrace_crc32c_portable(crc, bytes, count);
}
