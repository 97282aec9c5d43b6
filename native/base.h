/* base.h -- results, assertions and small helpers that every other file uses.
 *
 * Owns no shared bytes. Includes no Python.h, like everything below the py_*.c files.
 */
#ifndef SHMRT_BASE_H
#define SHMRT_BASE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Outcome of an operation. 0 is success; a negative value says why not. EMPTY and FULL are
 * ordinary answers, not errors. With SHMRT_SYSTEM the reason is in errno. */
enum shmrt_result {
	SHMRT_OK = 0,
	SHMRT_EMPTY = -1,
	SHMRT_FULL = -2,
	SHMRT_TIMEOUT = -3,
	SHMRT_CLOSED = -4,
	SHMRT_TOO_LARGE = -5,   /* can never fit */
	SHMRT_NO_SPACE = -6,    /* a limit would be passed; see struct shmrt_shortage */
	SHMRT_CORRUPT = -7,     /* shared bytes that no correct writer leaves */
	SHMRT_FOREIGN = -8,     /* wrong magic, version, kind, owner or mode */
	SHMRT_STALE = -9,       /* a reference to a block or slot that was re-used since */
	SHMRT_SYSTEM = -10,     /* a system call failed: errno */
	SHMRT_INTERRUPTED = -11, /* a signal came; the caller may look at it and go on */
	SHMRT_INVALID = -12,    /* an argument out of range */
};

#define SHMRT_MUST_USE __attribute__((warn_unused_result))
#define SHMRT_LIKELY(x) __builtin_expect(!!(x), 1)
#define SHMRT_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define SHMRT_LINE 128 /* two cache lines: the adjacent-line prefetcher pulls pairs */

/* A broken promise of our own code: stop at once, in release builds too. */
#define SHMRT_ASSERT(condition)                                                                \
	do {                                                                                   \
		if (SHMRT_UNLIKELY(!(condition))) {                                            \
			fprintf(stderr, "shmrt: internal error at %s:%d: %s\n", __FILE__,      \
				__LINE__, #condition);                                         \
			abort();                                                               \
		}                                                                              \
	} while (0)

#ifdef SHMRT_DEBUG
#define SHMRT_DEBUG_ASSERT(condition) SHMRT_ASSERT(condition)
#else
#define SHMRT_DEBUG_ASSERT(condition) ((void)0)
#endif

static inline uint64_t shmrt_align_up(uint64_t value, uint64_t alignment) {
	return (value + alignment - 1) & ~(alignment - 1);
}

static inline bool shmrt_is_power_of_two(uint64_t value) {
	return value != 0 && (value & (value - 1)) == 0;
}

/* The smallest power of two that is at least `value`; `value` is at most 2^63. */
static inline uint64_t shmrt_power_of_two_at_least(uint64_t value) {
	return value <= 1 ? 1 : UINT64_C(1) << (64 - __builtin_clzll(value - 1));
}

/* A line that is going to be written soon: hints, which never fault. */
static inline void shmrt_prefetch_write(const void *address) {
#if defined(__x86_64__)
	__asm__ __volatile__("prefetchw %0" : : "m"(*(const char *)address)); /* the builtin asks for it only with -mprfchw */
#else
	__builtin_prefetch(address, 1);
#endif
}

static inline void shmrt_pause(void) {
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ __volatile__("yield");
#endif
}

#endif
