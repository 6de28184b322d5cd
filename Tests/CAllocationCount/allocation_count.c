#define _GNU_SOURCE
#include "allocation_count.h"
#include <errno.h>
#include <execinfo.h>
#include <stddef.h>

#define STACK_MAX 32

static __thread int is_counting;
static __thread unsigned long count;
static __thread void *stack[STACK_MAX];
static __thread int depth;

void allocation_count_begin(void) { is_counting = 1; }
void allocation_count_end(void) { is_counting = 0; }
unsigned long allocation_count(void) { return count; }
void allocation_count_reset(void) {
    // The first call loads what it needs, and allocates.
    backtrace(stack, STACK_MAX);
    count = 0;
    depth = 0;
}
void allocation_count_print_stack(void) { backtrace_symbols_fd(stack, depth, 1); }

#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define IS_SANITIZED 1
#endif
#endif
#ifndef IS_SANITIZED

static void note(void) {
    if (!is_counting) return;
    is_counting = 0;
    count++;
    if (depth == 0) depth = backtrace(stack, STACK_MAX);
    is_counting = 1;
}

void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);

void *malloc(size_t bytes) { note(); return __libc_malloc(bytes); }
void *calloc(size_t items, size_t bytes) { note(); return __libc_calloc(items, bytes); }
void *realloc(void *old, size_t bytes) { note(); return __libc_realloc(old, bytes); }
void *memalign(size_t alignment, size_t bytes) { note(); return __libc_memalign(alignment, bytes); }
void *aligned_alloc(size_t alignment, size_t bytes) {
    note();
    return __libc_memalign(alignment, bytes);
}
int posix_memalign(void **out, size_t alignment, size_t bytes) {
    note();
    void *memory = __libc_memalign(alignment, bytes);
    if (!memory) return ENOMEM;
    *out = memory;
    return 0;
}

#endif
#endif
