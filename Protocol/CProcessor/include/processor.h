// What a processor can be told that Swift has no word for.
#ifndef MILLRACE_PROCESSOR_H
#define MILLRACE_PROCESSOR_H

/// Begins to fetch the cache line of `address`, to be read or written soon. Never faults.
static inline void millrace_prefetch(const void *_Nullable address) {
    __builtin_prefetch(address, 1, 3);
}

#endif
