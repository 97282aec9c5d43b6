/* sanitizer_forks.c -- lets a process fork while another of its threads is inside AddressSanitizer's allocator.
 *
 * glibc takes the locks of its own allocator around a fork, so that the child finds them free. AddressSanitizer before LLVM 18
 * and GCC 15 does not: a child that is forked while another thread allocates, begins or ends sleeps for ever in its next malloc.
 * This library is loaded in front of the sanitizer's. Its one lock is held by whoever is in there, and by whoever forks.
 *
 * Not covered: C++'s operator new, and the copies of strings that the sanitizer makes itself.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

extern void *__interceptor_malloc(size_t size);
extern void *__interceptor_calloc(size_t count, size_t size);
extern void *__interceptor_realloc(void *block, size_t size);
extern void *__interceptor_reallocarray(void *block, size_t count, size_t size);
extern void *__interceptor_aligned_alloc(size_t alignment, size_t size);
extern void *__interceptor_memalign(size_t alignment, size_t size);
extern int __interceptor_posix_memalign(void **block, size_t alignment, size_t size);
extern void __interceptor_free(void *block);
extern int __interceptor_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *),
					void *argument);

/* 0: free, 1: held, 2: held, and somebody sleeps. Not a pthread mutex: the sanitizer allocates before it can lock one. */
static _Atomic int lock;
static __thread int depth __attribute__((tls_model("initial-exec"))); /* how often this thread holds the lock */

static void enter(void) {
	if (depth++ != 0)
		return;
	int kept = errno, found = 0;
	if (atomic_compare_exchange_strong(&lock, &found, 1))
		return;
	while (atomic_exchange(&lock, 2) != 0)
		syscall(SYS_futex, &lock, FUTEX_WAIT_PRIVATE, 2, NULL);
	errno = kept;
}
static void leave(void) {
	int kept = errno;
	if (--depth == 0 && atomic_exchange(&lock, 0) == 2)
		syscall(SYS_futex, &lock, FUTEX_WAKE_PRIVATE, 1);
	errno = kept;
}

/* ---- blocks */
#define HELD(type, call)         \
	enter();                 \
	type result = call;      \
	leave();                 \
	return result

void *malloc(size_t size) { HELD(void *, __interceptor_malloc(size)); }
void *calloc(size_t count, size_t size) { HELD(void *, __interceptor_calloc(count, size)); }
void *realloc(void *block, size_t size) { HELD(void *, __interceptor_realloc(block, size)); }
void *reallocarray(void *block, size_t count, size_t size) { HELD(void *, __interceptor_reallocarray(block, count, size)); }
void *aligned_alloc(size_t alignment, size_t size) { HELD(void *, __interceptor_aligned_alloc(alignment, size)); }
void *memalign(size_t alignment, size_t size) { HELD(void *, __interceptor_memalign(alignment, size)); }
int posix_memalign(void **block, size_t alignment, size_t size) {
	HELD(int, __interceptor_posix_memalign(block, alignment, size));
}
void free(void *block) {
	enter();
	__interceptor_free(block);
	leave();
}

/* ---- threads: no fork from their creation to their first line, nor while the sanitizer takes them out of its books */
struct beginning {
	void *(*start)(void *);
	void *argument;
};
static _Atomic int unborn; /* threads that are in the making: they allocate, so that the lock cannot be held for them */
static pthread_key_t ending;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* Destructors run in rounds, those of older keys first. The sanitizer ends the thread in the last round, and its key is older. */
static void at_end(void *rounds) {
	size_t round = (size_t)rounds;
	if (round == PTHREAD_DESTRUCTOR_ITERATIONS) {
		leave();
		return;
	}
	if (round == PTHREAD_DESTRUCTOR_ITERATIONS - 1)
		enter();
	pthread_setspecific(ending, (void *)(round + 1));
}
static void make_key(void) { pthread_key_create(&ending, at_end); }

static void born(void) {
	atomic_fetch_sub(&unborn, 1);
	syscall(SYS_futex, &unborn, FUTEX_WAKE_PRIVATE, INT_MAX);
}
static void *begin(void *argument) {
	struct beginning beginning = *(struct beginning *)argument;
	born();
	free(argument);
	pthread_setspecific(ending, (void *)1);
	return beginning.start(beginning.argument);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument) {
	pthread_once(&once, make_key);
	struct beginning *beginning = malloc(sizeof(*beginning));
	if (beginning == NULL)
		return EAGAIN;
	*beginning = (struct beginning){start, argument};
	enter();
	atomic_fetch_add(&unborn, 1);
	leave();
	int result = __interceptor_pthread_create(thread, attributes, begin, beginning);
	if (result != 0) {
		born();
		free(beginning);
	}
	return result;
}

/* ---- forks. Handlers that were registered before others run last before a fork, and first after it. */
static void before(void) {
	for (int found; enter(), (found = atomic_load(&unborn)) != 0;) {
		leave();
		syscall(SYS_futex, &unborn, FUTEX_WAIT_PRIVATE, found, NULL);
	}
}
static void in_child(void) {
	atomic_store(&lock, 0);
	depth--;
}
__attribute__((constructor)) static void at_start(void) { pthread_atfork(before, leave, in_child); }
