/* ops.c -- see ops.h. The only file that makes system calls on memory, words and processes. */
#define _GNU_SOURCE
#include "ops.h"

#include "cgroup.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

#define FALLOCATE_STEP (UINT64_C(16) << 20)
#define OWNER_START_BITS 10
#define OWNER_PID_BITS 22

uint64_t shmrt_now_ns(void) {
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

/* ---- sleeping ------------------------------------------------------------------------------------ */

int shmrt_mutex_make(pthread_mutex_t *mutex) {
	pthread_mutexattr_t attributes;
	int error = pthread_mutexattr_init(&attributes);
	if (error == 0)
		error = pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
	if (error == 0)
		error = pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
	memset(mutex, 0, sizeof *mutex); /* a dead owner's list pointers go, too */
	if (error == 0)
		error = pthread_mutex_init(mutex, &attributes);
	pthread_mutexattr_destroy(&attributes);
	errno = error;
	return error == 0 ? SHMRT_OK : SHMRT_SYSTEM;
}

bool shmrt_mutex_is_sound(const pthread_mutex_t *mutex) {
	static _Atomic int known; /* kind of a mutex of ours + 1; 0: not yet asked for */
	/* relaxed: every thread finds the same */
	int kind = atomic_load_explicit(&known, memory_order_relaxed);
	if (SHMRT_UNLIKELY(kind == 0)) {
		pthread_mutex_t fresh;
		if (shmrt_mutex_make(&fresh) != SHMRT_OK)
			return true; /* nothing to compare with */
		kind = fresh.__data.__kind + 1;
		atomic_store_explicit(&known, kind, memory_order_relaxed);
	}
	return mutex->__data.__kind == kind - 1;
}

/* The kernel marks the mutex of a thread that ends, unless it cannot: the page was gone by then, or the list that leads to it was
 * overwritten. Then the word names a thread that does not exist, and all would wait for it for ever: mark it as the kernel does. */
static void mutex_let_go(pthread_mutex_t *mutex) {
	_Atomic uint32_t *word = (_Atomic uint32_t *)(void *)&mutex->__data.__lock;
	/* M1, acquire: what its holder did to the memory is over */
	uint32_t seen = atomic_load_explicit(word, memory_order_acquire), thread = seen & FUTEX_TID_MASK;
	if (seen == 0 || (seen & FUTEX_OWNER_DIED) != 0)
		return;
	if (thread != 0 && (syscall(SYS_tkill, (pid_t)thread, 0) == 0 || errno != ESRCH))
		return;
	/* M1. From exactly that word: of two that see it one changes it, and never the word of a new holder. */
	atomic_compare_exchange_strong_explicit(word, &seen, (seen & FUTEX_WAITERS) | FUTEX_OWNER_DIED, memory_order_acq_rel,
						memory_order_relaxed);
}

static int mutex_wait(pthread_mutex_t *mutex, uint64_t patience_ns) {
#if defined(__GLIBC_PREREQ) && !defined(__SANITIZE_THREAD__) /* ThreadSanitizer does not know this call for a lock */
#if __GLIBC_PREREQ(2, 30)
	uint64_t until = shmrt_now_ns() + patience_ns;
	struct timespec at = {.tv_sec = (time_t)(until / 1000000000), .tv_nsec = (long)(until % 1000000000)};
	return pthread_mutex_clocklock(mutex, CLOCK_MONOTONIC, &at);
#endif
#endif
	(void)patience_ns;
	return pthread_mutex_lock(mutex);
}

int shmrt_mutex_lock_within(pthread_mutex_t *mutex, uint64_t patience_ns) {
	int error = mutex_wait(mutex, patience_ns);
	if (SHMRT_LIKELY(error != ETIMEDOUT))
		return error;
	mutex_let_go(mutex);
	error = pthread_mutex_trylock(mutex);
	return error == EBUSY ? ETIMEDOUT : error;
}

bool shmrt_signals_are_looked_for;

int shmrt_futex_wait_looking(_Atomic uint32_t *word, uint32_t expected, int64_t timeout_ns) {
	bool looks = shmrt_signals_are_looked_for && timeout_ns > SHMRT_SIGNAL_LOOK_NS && syscall(SYS_gettid) == getpid();
	int result = shmrt_futex_wait(word, expected, looks ? SHMRT_SIGNAL_LOOK_NS : timeout_ns);
	return looks && result == SHMRT_TIMEOUT ? SHMRT_INTERRUPTED : result;
}

static struct timespec timespec_of(int64_t ns) {
	return (struct timespec){.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
}

static int how_it_ended(long result) {
	if (result == 0)
		return SHMRT_OK;
	switch (errno) {
	case EAGAIN:
		return SHMRT_OK;
	case ETIMEDOUT:
		return SHMRT_TIMEOUT;
	case EINTR:
		return SHMRT_INTERRUPTED;
	default:
		return SHMRT_SYSTEM;
	}
}

int shmrt_futex_wait(_Atomic uint32_t *word, uint32_t expected, int64_t timeout_ns) {
	if (timeout_ns <= 0) /* acquire: pairs with whatever release changed the word (the caller's edge, mostly B1) */
		return atomic_load_explicit(word, memory_order_acquire) == expected ? SHMRT_TIMEOUT
										    : SHMRT_OK;
	struct timespec timeout = timespec_of(timeout_ns);
	/* Not FUTEX_PRIVATE: the sleeper and its waker are different processes. */
	return how_it_ended(syscall(SYS_futex, word, FUTEX_WAIT, expected, timeout_ns == SHMRT_FOREVER ? NULL : &timeout, NULL, 0));
}

int shmrt_futex_wait_as(_Atomic uint32_t *word, uint32_t expected, int64_t timeout_ns, uint32_t kinds) {
	if (timeout_ns <= 0)
		return shmrt_futex_wait(word, expected, timeout_ns);
	/* This operation takes the time at which it is to end. */
	struct timespec end = timespec_of(timeout_ns == SHMRT_FOREVER ? 0 : (int64_t)shmrt_now_ns() + timeout_ns);
	long result = syscall(SYS_futex, word, FUTEX_WAIT_BITSET, expected, timeout_ns == SHMRT_FOREVER ? NULL : &end, NULL, kinds);
	return result < 0 && errno == EAGAIN ? SHMRT_STALE : how_it_ended(result);
}

int shmrt_futex_wake(_Atomic uint32_t *word, int count) {
	long woken = syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0);
	return woken < 0 ? 0 : (int)woken;
}

int shmrt_futex_wake_those(_Atomic uint32_t *word, int count, uint32_t kinds) {
	long woken = syscall(SYS_futex, word, FUTEX_WAKE_BITSET, count, NULL, NULL, kinds);
	return woken < 0 ? 0 : (int)woken;
}

/* ---- memory -------------------------------------------------------------------------------------- */

int shmrt_memfd_create(const char *name, uint64_t size) {
	if (size == 0 || size > INT64_MAX)
		return SHMRT_INVALID;
	/* Newer kernels warn about, or refuse, memory that could be executed; older ones refuse the flag. */
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
	if (fd < 0 && errno == EINVAL)
		fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return SHMRT_SYSTEM;
	if (fchmod(fd, 0600) != 0 || ftruncate(fd, (off_t)size) != 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
		int error = errno;
		close(fd);
		errno = error;
		return SHMRT_SYSTEM;
	}
	return fd;
}

int shmrt_fallocate(int fd, uint64_t offset, uint64_t size) {
	if (size > INT64_MAX || offset > INT64_MAX - size)
		return SHMRT_INVALID;
	while (size > 0) {
		uint64_t step = size < FALLOCATE_STEP ? size : FALLOCATE_STEP;
		/* A signal undoes the step it interrupts, nothing before it. */
		if (fallocate(fd, 0, (off_t)offset, (off_t)step) != 0) {
			if (errno == EINTR)
				continue;
			return SHMRT_SYSTEM;
		}
		offset += step;
		size -= step;
	}
	return SHMRT_OK;
}

int shmrt_punch_hole(int fd, uint64_t offset, uint64_t size) {
	if (size > INT64_MAX || offset > INT64_MAX - size)
		return SHMRT_INVALID;
	if (size == 0)
		return SHMRT_OK;
	while (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)size) != 0)
		if (errno != EINTR)
			return SHMRT_SYSTEM;
	return SHMRT_OK;
}

int shmrt_map(int fd, uint64_t offset, uint64_t size, bool writable, void **address) {
	int protection = PROT_READ | (writable ? PROT_WRITE : 0);
	void *at = mmap(NULL, size, protection, MAP_SHARED, fd, (off_t)offset);
	if (at == MAP_FAILED)
		return SHMRT_SYSTEM;
	*address = at;
	return SHMRT_OK;
}

void shmrt_unmap(void *address, uint64_t size) { SHMRT_ASSERT(munmap(address, size) == 0); }

/* ---- processes ----------------------------------------------------------------------------------- */

int shmrt_pidfd_open(int32_t pid) {
	long fd = syscall(SYS_pidfd_open, pid, 0);
	return fd < 0 ? SHMRT_SYSTEM : (int)fd;
}

bool shmrt_pidfd_is_gone(int pidfd) {
	struct pollfd polled = {.fd = pidfd, .events = POLLIN};
	int count;
	do
		count = poll(&polled, 1, 0);
	while (count < 0 && errno == EINTR);
	return count == 1 && (polled.revents & POLLIN) != 0;
}

int shmrt_pidfd_signal(int pidfd, int signal_number) {
	return syscall(SYS_pidfd_send_signal, pidfd, signal_number, NULL, 0) == 0 ? SHMRT_OK : SHMRT_SYSTEM;
}

static _Atomic uint32_t cached_owner; /* private to the process; 0: not known yet */
static _Atomic int cached_cpus;

static void forget_after_fork(void) {
	/* relaxed: a fresh child has one thread */
	atomic_store_explicit(&cached_owner, 0, memory_order_relaxed);
	atomic_store_explicit(&cached_cpus, 0, memory_order_relaxed);
}

static void register_fork_handler(void) { (void)pthread_atfork(NULL, NULL, forget_after_fork); }

static void prepare_cache(void) {
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	(void)pthread_once(&once, register_fork_handler);
}

enum existence { NO_PROCESS, PROCESS, UNKNOWN };

/* Looks for a process and its start time. A leader that has ended while other threads run is still a
 * process; a zombie without threads is none. UNKNOWN when /proc does not answer (no descriptor left,
 * not mounted): nobody may be taken for dead because of that. */
static enum existence find_process(int32_t pid, uint64_t *start_ticks) {
	char path[32], text[1024];
	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t length = -1;
	if (fd >= 0) {
		do
			length = read(fd, text, sizeof(text) - 1);
		while (length < 0 && errno == EINTR);
		close(fd);
	}
	if (length <= 0)
		return kill(pid, 0) != 0 && errno == ESRCH ? NO_PROCESS : UNKNOWN;
	text[length] = 0;
	const char *fields = strrchr(text, ')'); /* the name before may hold spaces and brackets */
	char state;
	long threads;
	unsigned long long start;
	if (fields == NULL || sscanf(fields + 1,
				     " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d"
				     " %*d %ld %*d %llu",
				     &state, &threads, &start) != 3)
		return UNKNOWN;
	*start_ticks = start;
	return state == 'X' || (state == 'Z' && threads <= 1) ? NO_PROCESS : PROCESS;
}

/* Start bits are never 0 for a known start; 0 stands for "could not be read". */
static uint32_t make_owner(int32_t pid, uint64_t start_ticks) {
	uint32_t start = 1 + (uint32_t)(start_ticks % ((1U << OWNER_START_BITS) - 1));
	return (uint32_t)pid | start << OWNER_PID_BITS;
}

uint32_t shmrt_owner_of(int32_t pid) {
	uint64_t start;
	if (pid <= 0 || pid >= 1 << OWNER_PID_BITS || find_process(pid, &start) != PROCESS)
		return 0;
	return make_owner(pid, start);
}

uint32_t shmrt_owner_self(void) {
	/* relaxed: the value depends on nothing else, and every thread computes the same one */
	uint32_t owner = atomic_load_explicit(&cached_owner, memory_order_relaxed);
	if (SHMRT_LIKELY(owner != 0))
		return owner;
	prepare_cache();
	owner = shmrt_owner_of((int32_t)getpid());
	if (owner == 0) /* the pid alone still tells living processes apart */
		owner = (uint32_t)getpid();
	atomic_store_explicit(&cached_owner, owner, memory_order_relaxed);
	return owner;
}

bool shmrt_owner_is_alive(uint32_t owner) {
	uint64_t start = 0;
	int32_t pid = shmrt_owner_pid(owner);
	if (pid == 0)
		return false;
	/* relaxed: see shmrt_owner_self */
	if (owner == atomic_load_explicit(&cached_owner, memory_order_relaxed))
		return true;
	switch (find_process(pid, &start)) {
	case NO_PROCESS:
		return false;
	case UNKNOWN:
		return true;
	default:
		return owner >> OWNER_PID_BITS == 0 || owner == make_owner(pid, start);
	}
}

/* ---- CPUs ---------------------------------------------------------------------------------------- */

static int affinity_cpus(void) {
	/* The kernel's mask may be wider than cpu_set_t: grow until it fits. */
	for (int bits = 1024; bits <= 1 << 20; bits *= 2) {
		cpu_set_t *set = CPU_ALLOC((size_t)bits);
		if (set == NULL)
			break;
		size_t size = CPU_ALLOC_SIZE((size_t)bits);
		CPU_ZERO_S(size, set);
		int outcome = sched_getaffinity(0, size, set), error = errno;
		int count = outcome == 0 ? CPU_COUNT_S(size, set) : 0;
		CPU_FREE(set);
		if (outcome == 0)
			return count;
		if (error != EINVAL)
			break;
	}
	long online = sysconf(_SC_NPROCESSORS_ONLN);
	return online > 0 && online < INT32_MAX ? (int)online : 1;
}

int shmrt_usable_cpus(void) {
	/* relaxed: see shmrt_owner_self */
	int cpus = atomic_load_explicit(&cached_cpus, memory_order_relaxed);
	if (cpus > 0)
		return cpus;
	prepare_cache();
	cpus = affinity_cpus();
	uint64_t quota = shmrt_cgroup_cpus();
	if (quota < (uint64_t)cpus)
		cpus = (int)quota;
	if (cpus < 1)
		cpus = 1;
	atomic_store_explicit(&cached_cpus, cpus, memory_order_relaxed);
	return cpus;
}
