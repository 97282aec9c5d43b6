/* ops.h -- every system call of the native core goes through here.
 *
 * Owns no shared bytes. Having one door keeps error handling in one place and lets tests put a
 * fault at each call. Times are CLOCK_MONOTONIC nanoseconds; wall clocks decide nothing.
 */
#ifndef SHMRT_OPS_H
#define SHMRT_OPS_H

#include "base.h"
#include <pthread.h>

#define SHMRT_FOREVER INT64_MAX

uint64_t shmrt_now_ns(void);

/* Sleep while *word == expected, at most timeout_ns (SHMRT_FOREVER: without limit; <= 0: not at all).
 * OK: woken or the word differs; TIMEOUT; INTERRUPTED. `word` lies in shared memory. */
SHMRT_MUST_USE int shmrt_futex_wait(_Atomic uint32_t *word, uint32_t expected, int64_t timeout_ns);
/* The same for a wait of user code. A signal that comes between Python's last look for signals and the sleep, or to another
 * thread, interrupts no sleep, and its handler runs in the main thread alone: that one comes back INTERRUPTED, after
 * SHMRT_SIGNAL_LOOK_NS at the latest. Programs without Python sleep on. */
SHMRT_MUST_USE int shmrt_futex_wait_looking(_Atomic uint32_t *word, uint32_t expected, int64_t timeout_ns);
#define SHMRT_SIGNAL_LOOK_NS INT64_C(250000000)
extern bool shmrt_signals_are_looked_for; /* set once, when Python loads the extension */
/* Wake at most `count` sleepers; returns how many were woken. */
int shmrt_futex_wake(_Atomic uint32_t *word, int count);
/* Sleepers may be of kinds, a bit each: a wake that names some wakes those of them, and those that named none. STALE: the word
 * differs; else as above. */
SHMRT_MUST_USE int shmrt_futex_wait_as(_Atomic uint32_t *word, uint32_t expected, int64_t timeout_ns, uint32_t kinds);
int shmrt_futex_wake_those(_Atomic uint32_t *word, int count, uint32_t kinds);

/* A robust mutex in shared memory, from whatever is there: nobody may hold it or wait for it. SYSTEM: errno. */
SHMRT_MUST_USE int shmrt_mutex_make(pthread_mutex_t *);
/* False: it is none that shmrt_mutex_make makes. Its memory was overwritten, and the C library may abort on what stands there. */
bool shmrt_mutex_is_sound(const pthread_mutex_t *);
/* As pthread_mutex_lock, but ETIMEDOUT after patience_ns; a C library older than glibc 2.30 waits for ever. Of a mutex whose holder
 * is a thread that does not exist (the kernel could not mark it) the caller becomes the holder: EOWNERDEAD, after patience_ns. */
int shmrt_mutex_lock_within(pthread_mutex_t *, uint64_t patience_ns);

/* A memfd of `size` bytes, mode 0600, sealed against shrinking, growing and further seals.
 * Nothing is reserved yet: see shmrt_reserve. Returns a descriptor or SHMRT_SYSTEM. */
SHMRT_MUST_USE int shmrt_memfd_create(const char *name, uint64_t size);
/* fallocate(offset, size) in steps of at most 16 MiB. Does not check limits: segment.h does. */
SHMRT_MUST_USE int shmrt_fallocate(int fd, uint64_t offset, uint64_t size);
/* Give the pages of a range back to the kernel; they read as zeros afterwards. */
SHMRT_MUST_USE int shmrt_punch_hole(int fd, uint64_t offset, uint64_t size);
SHMRT_MUST_USE int shmrt_map(int fd, uint64_t offset, uint64_t size, bool writable, void **address);
void shmrt_unmap(void *address, uint64_t size);

int shmrt_pidfd_open(int32_t pid);
/* True once every thread of the process is gone (its pidfd is readable). */
bool shmrt_pidfd_is_gone(int pidfd);
/* SIGKILL and friends through the pidfd, so that a re-used pid is never hit. */
SHMRT_MUST_USE int shmrt_pidfd_signal(int pidfd, int signal_number);

/* The owner id of a process: pid in the low 22 bits, 10 bits made of its start time above, so that a
 * re-used pid is another owner. 0 is nobody. `shmrt_owner_self` is cached per process and computed
 * anew after fork. Where /proc does not answer, a process that exists counts as alive. */
uint32_t shmrt_owner_self(void);
uint32_t shmrt_owner_of(int32_t pid); /* 0 when there is no such process (a zombie counts as none) */
bool shmrt_owner_is_alive(uint32_t owner);
static inline int32_t shmrt_owner_pid(uint32_t owner) { return (int32_t)(owner & 0x3FFFFF); }

/* The CPUs this process may use: its affinity, cut by the cgroup's quota. At least 1. Cached. */
int shmrt_usable_cpus(void);

#endif
