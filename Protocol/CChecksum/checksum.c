// How it works: one crc32 instruction has a latency of three cycles and a throughput of one, so a
// single stream runs at a third of what the core can do. From 96 bytes on three lanes of equal length
// are computed side by side and joined: appending n zero bytes to a message multiplies its CRC by
// x^(8n) modulo the polynomial. One carry-less multiplication by x^(8n-33), then one crc32 instruction
// over the 64-bit product, which multiplies by x^32 and reduces; the missing x is the bit by which a
// product of two reflected polynomials is off. (Gopal et al., "Fast CRC Computation for iSCSI
// Polynomial Using CRC32 Instruction", Intel, 2011.)
//
// From 512 bytes on, where a processor multiplies eight words at once, the message is folded instead:
// 256 bytes in four registers, each multiplied by x^2048 and added to the 256 bytes behind it, until
// 16 bytes of the same CRC are left. (Gopal et al., "Fast CRC Computation for Generic Polynomials
// Using PCLMULQDQ Instruction", Intel, 2009; the constants are computed here.)
#include "checksum.h"

#include <string.h>

#define POLYNOMIAL 0x82F63B78u
#define LANE_WORDS_MIN 4u
#define LANE_WORDS_MAX 256u

static uint32_t byte_table[256];
/// x^(64 n - 33) modulo the polynomial, reflected: what skipping n words multiplies by.
static uint32_t skip_words[2 * LANE_WORDS_MAX + 1];
int millrace_crc32c_has_steps;
static int has_steps_and_product;

static uint32_t extend_bytewise(uint32_t state, const uint8_t *bytes, size_t count) {
    for (size_t i = 0; i < count; i++) {
        state = byte_table[(state ^ bytes[i]) & 0xFF] ^ (state >> 8);
    }
    return state;
}

static uint32_t times_x(uint32_t value) {
    return (value >> 1) ^ ((value & 1) ? POLYNOMIAL : 0);
}

#if defined(__x86_64__)
#define FOLD_BYTES 256u
#define FOLD_BYTES_MIN 512u
static int has_wide_product;

/// What moves 16 bytes of a message some bits to the front: the factors of its first word and of its
/// second one. A word is 64 bits of the polynomial, reflected.
struct fold {
    uint64_t first, second;
};
static struct fold fold_2048, fold_512, fold_128;

/// x^bits modulo the polynomial, as the upper half of a reflected word.
static uint64_t power_of_x(size_t bits) {
    uint32_t power = 1u << 31;
    for (size_t bit = 0; bit < bits; bit++) power = times_x(power);
    return (uint64_t)power << 32;
}

/// One less than the distance: a product of two reflected words is off by one bit.
static struct fold fold_by(size_t bits) {
    return (struct fold){power_of_x(bits + 64 - 1), power_of_x(bits - 1)};
}
#endif

__attribute__((constructor)) static void prepare(void) {
    for (uint32_t value = 0; value < 256; value++) {
        uint32_t state = value;
        for (int bit = 0; bit < 8; bit++) state = times_x(state);
        byte_table[value] = state;
    }
    uint32_t power = 1;  // x^31: the highest bit is x^0
    for (size_t words = 1; words <= 2 * LANE_WORDS_MAX; words++) {
        skip_words[words] = power;
        for (int bit = 0; bit < 64; bit++) power = times_x(power);
    }
#if defined(__x86_64__)
    __builtin_cpu_init();
    millrace_crc32c_has_steps = __builtin_cpu_supports("sse4.2");
    has_steps_and_product = millrace_crc32c_has_steps && __builtin_cpu_supports("pclmul");
    has_wide_product = has_steps_and_product && __builtin_cpu_supports("avx512f")
        && __builtin_cpu_supports("vpclmulqdq");
    fold_2048 = fold_by(2048);
    fold_512 = fold_by(512);
    fold_128 = fold_by(128);
#elif defined(__ARM_FEATURE_CRC32)
    has_steps_and_product = 1;
#endif
}

uint32_t millrace_crc32c_portable(uint32_t crc, const void *bytes, size_t count) {
    return ~extend_bytewise(~crc, bytes, count);
}

static inline uint64_t load8(const uint8_t *bytes) {
    uint64_t value;
    memcpy(&value, bytes, 8);
    return value;
}
static inline uint32_t load4(const uint8_t *bytes) {
    uint32_t value;
    memcpy(&value, bytes, 4);
    return value;
}
static inline uint16_t load2(const uint8_t *bytes) {
    uint16_t value;
    memcpy(&value, bytes, 2);
    return value;
}

#if defined(__x86_64__)
#include <immintrin.h>
#define TARGET __attribute__((target("sse4.2,pclmul")))
#define STEP8(state, value) ((uint32_t)_mm_crc32_u64((state), (value)))
#define STEP4(state, value) _mm_crc32_u32((state), (value))
#define STEP2(state, value) _mm_crc32_u16((state), (value))
#define STEP1(state, value) _mm_crc32_u8((state), (value))

TARGET static inline uint64_t multiply(uint32_t one, uint32_t other) {
    return (uint64_t)_mm_cvtsi128_si64(
        _mm_clmulepi64_si128(_mm_cvtsi32_si128((int)one), _mm_cvtsi32_si128((int)other), 0));
}

/// Three lanes of `words` each, joined.
TARGET static inline uint32_t three_lanes(uint32_t state, const uint8_t *bytes, size_t words) {
    const uint8_t *end = bytes + 8 * words;
    uint32_t second = 0, third = 0;
    size_t lane = 8 * words;
    for (; bytes < end; bytes += 8) {
        state = STEP8(state, load8(bytes));
        second = STEP8(second, load8(bytes + lane));
        third = STEP8(third, load8(bytes + 2 * lane));
    }
    uint64_t both =
        multiply(state, skip_words[2 * words]) ^ multiply(second, skip_words[words]);
    return third ^ STEP8(0, both);
}

#define TARGET_WIDE __attribute__((target("sse4.2,pclmul,avx512f,vpclmulqdq")))

TARGET_WIDE static inline __m512i folded(__m512i value, __m512i by, __m512i next) {
    return _mm512_ternarylogic_epi64(
        _mm512_clmulepi64_epi128(value, by, 0x00), _mm512_clmulepi64_epi128(value, by, 0x11), next,
        0x96);  // the exclusive or of the three
}

TARGET static inline __m128i folded_once(__m128i value, __m128i by, __m128i next) {
    __m128i both = _mm_xor_si128(
        _mm_clmulepi64_si128(value, by, 0x00), _mm_clmulepi64_si128(value, by, 0x11));
    return _mm_xor_si128(both, next);
}

/// `count` is a multiple of FOLD_BYTES, and not 0.
TARGET_WIDE static uint32_t extend_folding(uint32_t state, const uint8_t *bytes, size_t count) {
    __m512i by = _mm512_set_epi64(
        (int64_t)fold_2048.second, (int64_t)fold_2048.first, (int64_t)fold_2048.second,
        (int64_t)fold_2048.first, (int64_t)fold_2048.second, (int64_t)fold_2048.first,
        (int64_t)fold_2048.second, (int64_t)fold_2048.first);
    __m512i lanes[4];
    for (int lane = 0; lane < 4; lane++) lanes[lane] = _mm512_loadu_si512(bytes + 64 * lane);
    lanes[0] = _mm512_xor_si512(
        lanes[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)state)));
    for (count -= FOLD_BYTES; count > 0; count -= FOLD_BYTES) {
        bytes += FOLD_BYTES;
        for (int lane = 0; lane < 4; lane++) {
            lanes[lane] = folded(lanes[lane], by, _mm512_loadu_si512(bytes + 64 * lane));
        }
    }
    by = _mm512_set_epi64(
        (int64_t)fold_512.second, (int64_t)fold_512.first, (int64_t)fold_512.second,
        (int64_t)fold_512.first, (int64_t)fold_512.second, (int64_t)fold_512.first,
        (int64_t)fold_512.second, (int64_t)fold_512.first);
    __m512i last = lanes[0];
    for (int lane = 1; lane < 4; lane++) last = folded(last, by, lanes[lane]);

    __m128i by_one = _mm_set_epi64x((int64_t)fold_128.second, (int64_t)fold_128.first);
    __m128i rest = _mm512_extracti32x4_epi32(last, 0);
    rest = folded_once(rest, by_one, _mm512_extracti32x4_epi32(last, 1));
    rest = folded_once(rest, by_one, _mm512_extracti32x4_epi32(last, 2));
    rest = folded_once(rest, by_one, _mm512_extracti32x4_epi32(last, 3));
    state = STEP8(0, (uint64_t)_mm_cvtsi128_si64(rest));
    return STEP8(state, (uint64_t)_mm_extract_epi64(rest, 1));
}

TARGET static uint32_t extend_in_lanes(uint32_t state, const uint8_t *bytes, size_t count) {
    while (count >= 3 * 8 * LANE_WORDS_MIN) {
        size_t words = count / 24;
        if (words > LANE_WORDS_MAX) words = LANE_WORDS_MAX;
        state = three_lanes(state, bytes, words);
        bytes += 24 * words;
        count -= 24 * words;
    }
    for (; count >= 8; bytes += 8, count -= 8) state = STEP8(state, load8(bytes));
    // The rest in three steps at most.
    if (count & 4) state = STEP4(state, load4(bytes)), bytes += 4;
    if (count & 2) state = STEP2(state, load2(bytes)), bytes += 2;
    if (count & 1) state = STEP1(state, *bytes);
    return state;
}

static uint32_t extend_fast(uint32_t state, const uint8_t *bytes, size_t count) {
    if (count >= FOLD_BYTES_MIN && has_wide_product) {
        size_t whole = count - count % FOLD_BYTES;
        state = extend_folding(state, bytes, whole);
        bytes += whole;
        count -= whole;
    }
    return extend_in_lanes(state, bytes, count);
}
#elif defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
// One lane: there is no machine here to measure a join on.
static uint32_t extend_fast(uint32_t state, const uint8_t *bytes, size_t count) {
    for (; count >= 8; bytes += 8, count -= 8) state = __crc32cd(state, load8(bytes));
    if (count & 4) state = __crc32cw(state, load4(bytes)), bytes += 4;
    if (count & 2) state = __crc32ch(state, load2(bytes)), bytes += 2;
    if (count & 1) state = __crc32cb(state, *bytes);
    return state;
}
#endif

uint32_t millrace_crc32c(uint32_t crc, const void *bytes, size_t count) {
#if defined(__x86_64__) || defined(__ARM_FEATURE_CRC32)
    if (__builtin_expect(has_steps_and_product, 1)) return ~extend_fast(~crc, bytes, count);
#endif
    return millrace_crc32c_portable(crc, bytes, count);
}

uint32_t millrace_crc32c_in_lanes(uint32_t crc, const void *bytes, size_t count) {
#if defined(__x86_64__)
    if (has_steps_and_product) return ~extend_in_lanes(~crc, bytes, count);
#endif
    return millrace_crc32c(crc, bytes, count);
}
