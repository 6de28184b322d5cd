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

/// The same by table, for machines without the instruction and for tests of the fast form.
uint32_t millrace_crc32c_portable(uint32_t crc, const void *_Nonnull bytes, size_t count);

#endif
