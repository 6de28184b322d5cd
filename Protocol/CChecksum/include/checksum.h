// CRC32C (Castagnoli, reflected polynomial 0x82F63B78), the one checksum of Millrace's frames,
// batches and files. RFC 3720, appendix B.4; check value of "123456789" is 0xE3069283.
#ifndef MILLRACE_CHECKSUM_H
#define MILLRACE_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

/// A CRC32C.
typedef uint32_t millrace_crc32c_value;

/// Extends `crc` (0 to begin) over `count` bytes. crc(A followed by B) == extend(crc(A), B).
uint32_t millrace_crc32c(uint32_t crc, const void *_Nonnull bytes, size_t count);

/// The same as a processor without eight-word multiplication computes it: for tests.
uint32_t millrace_crc32c_in_lanes(uint32_t crc, const void *_Nonnull bytes, size_t count);

/// Whether `millrace_crc32c_step8` and `_step4` may be used. Set before main, never again.
extern int millrace_crc32c_has_steps;

#if defined(__x86_64__)
// Assembler and not an intrinsic: this is inlined into code that is built for any x86-64.

/// Extends the inverted CRC `state` over the eight bytes of a little-endian word.
static inline uint64_t millrace_crc32c_step8(uint64_t state, uint64_t word) {
    __asm__("crc32q %1, %0" : "+r"(state) : "rm"(word));
    return state;
}
/// The same over four bytes.
static inline uint32_t millrace_crc32c_step4(uint32_t state, uint32_t word) {
    __asm__("crc32l %1, %0" : "+r"(state) : "rm"(word));
    return state;
}
#endif

/// Extends `crc` over a count of bytes that the compiler knows, a multiple of 4: the same value as
/// `millrace_crc32c`, without its call and its choice of method.
static inline uint32_t
millrace_crc32c_fixed(uint32_t crc, const void *_Nonnull bytes, size_t count) {
#if defined(__x86_64__)
    if (__builtin_expect(millrace_crc32c_has_steps, 1)) {
        uint64_t state = (uint32_t)~crc;
        const unsigned char *at = (const unsigned char *)bytes;
        for (; count >= 8; at += 8, count -= 8) {
            uint64_t word;
            __builtin_memcpy(&word, at, 8);
            state = millrace_crc32c_step8(state, word);
        }
        if (count >= 4) {
            uint32_t word;
            __builtin_memcpy(&word, at, 4);
            state = millrace_crc32c_step4((uint32_t)state, word);
        }
        return ~(uint32_t)state;
    }
#endif
    return millrace_crc32c(crc, bytes, count);
}

/// The same by table, for machines without the instruction and for tests of the fast form.
uint32_t millrace_crc32c_portable(uint32_t crc, const void *_Nonnull bytes, size_t count);

#endif
