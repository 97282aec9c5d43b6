/* watch.c -- sleeps until some process of the table dies.
 *
 * futex_waitv sleeps on the death words of all living slots at once, on the caller's bell, and on a word
 * private to this process that a claim pokes. The kernel wakes a sleeper only when FUTEX_WAITERS stands
 * in the word, so that is set by compare-and-swap first, and only in a word that names an owner: set in
 * a word that says 0 it would keep the owner from ever locking. (An owner that locks later sets it
 * itself.) A word changed between the look and the sleep ends the sleep at once: no death is missed.
 *
 * A death is news once per life of a slot: this thread remembers the epoch whose death it has reported,
 * so a death between two calls is reported by the second, and one that was reported does not turn the
 * second into a busy loop. Nothing is remembered in shared memory: one that dies leaves nothing.
 */
#define _GNU_SOURCE
#include "slots.h"
#include "watch.h"

#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif
#define WAITV_FUTEX_32 2
#define WAITV_PRIVATE 128
#define WAITV_MAX 128
#define SCAN_NS INT64_C(2000000)

struct waiter { /* struct futex_waitv of newer headers */
	uint64_t value;
	uint64_t address;
	uint32_t flags;
	uint32_t reserved;
};
_Static_assert(sizeof(struct waiter) == 24, "the kernel's struct futex_waitv");

/* Raised by claims of this process while a watch is in its loop. */
static _Atomic uint32_t poke_word;
static _Atomic uint32_t watchers;

/* Which death of which table this thread has reported. */
static _Thread_local struct {
	const struct shmrt_control *control;
	uint64_t token[2];                  /* another table may be mapped at the same address */
	uint32_t reported[SHMRT_SLOTS_MAX]; /* epoch; 0: none */
} memory;

void shmrt_watch_poke(void) {
	atomic_thread_fence(memory_order_seq_cst); /* W1: state STARTING, then the look for a watcher */
	if (atomic_load_explicit(&watchers, memory_order_relaxed) == 0) /* W1 */
		return;
	atomic_fetch_add_explicit(&poke_word, 1, memory_order_release); /* W1 */
	syscall(SYS_futex, &poke_word, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, INT32_MAX, NULL, NULL, 0);
}

/* What one look at the table found. */
struct look {
	bool news;     /* a death not reported before */
	bool overflow; /* more living slots than fit one sleep */
	uint32_t count;
	struct waiter waiters[WAITV_MAX];
};

static void look_add(struct look *look, _Atomic uint32_t *word, uint32_t value, uint32_t flags) {
	look->waiters[look->count++] = (struct waiter){
		.value = value, .address = (uint64_t)(uintptr_t)word, .flags = flags};
}

static void look_at_slot(struct look *look, struct shmrt_slot *slot, uint32_t *reported) {
	if (atomic_load_explicit(&slot->state, memory_order_acquire) == SHMRT_SLOT_EMPTY) /* F2 */
		return;
	_Atomic uint32_t *word = shmrt_death_word(slot);
	uint32_t epoch = atomic_load_explicit(&slot->epoch, memory_order_relaxed); /* F2 */
	uint32_t value = atomic_load_explicit(word, memory_order_acquire);         /* F4 */
	if ((value & FUTEX_OWNER_DIED) == 0 && (value & FUTEX_TID_MASK) != 0 && (value & FUTEX_WAITERS) == 0) {
		/* Fails only if the owner died or set the bit itself; either is in `value` then. */
		if (atomic_compare_exchange_strong_explicit(word, &value, value | FUTEX_WAITERS,
							    memory_order_acq_rel, memory_order_acquire)) /* F4 */
			value |= FUTEX_WAITERS;
	}
	if ((value & FUTEX_OWNER_DIED) != 0) {
		look->news |= *reported != epoch;
		*reported = epoch;
		return;
	}
	*reported = 0;
	if (look->count == WAITV_MAX)
		look->overflow = true;
	else
		look_add(look, word, value, WAITV_FUTEX_32);
}

/* Sleeps on the chosen words until `deadline_ns`. OK: something happened or changed. */
static int sleep_on_all(struct look *look, uint64_t deadline_ns) {
	struct timespec deadline = {.tv_sec = (time_t)(deadline_ns / UINT64_C(1000000000)),
				    .tv_nsec = (long)(deadline_ns % UINT64_C(1000000000))};
	if (syscall(SYS_futex_waitv, look->waiters, look->count, 0,
		    deadline_ns == UINT64_MAX ? NULL : &deadline, CLOCK_MONOTONIC) >= 0)
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

static int watch(struct shmrt_control *control, uint32_t first, uint32_t end, _Atomic uint32_t *bell,
		 uint64_t deadline_ns) {
	/* Older kernels and sandboxes have no futex_waitv; asked once per process. */
	static _Atomic bool scan_only;
	static _Atomic uint32_t no_bell = 1;
	if (bell == NULL)
		bell = &no_bell;
	struct look look; /* its waiters are written before they are counted */
	for (;;) {
		look.news = look.overflow = false;
		look.count = 0;
		uint32_t poked = atomic_load_explicit(&poke_word, memory_order_acquire); /* W1 */
		look_add(&look, &poke_word, poked, WAITV_FUTEX_32 | WAITV_PRIVATE);
		look_add(&look, bell, 1, WAITV_FUTEX_32);
		for (uint32_t i = first; i < end; i++)
			look_at_slot(&look, &control->slots[i], &memory.reported[i]);
		if (look.news || atomic_load_explicit(bell, memory_order_acquire) != 1) /* B1 */
			return SHMRT_OK;
		uint64_t now_ns = shmrt_now_ns();
		if (now_ns >= deadline_ns)
			return SHMRT_TIMEOUT;

		bool scan = look.overflow || atomic_load_explicit(&scan_only, memory_order_relaxed); /* a hint */
		int64_t left_ns = deadline_ns - now_ns < (uint64_t)SCAN_NS ? (int64_t)(deadline_ns - now_ns)
									   : SCAN_NS;
		int result;
		if (scan) {
			result = shmrt_futex_wait(bell, 1, left_ns);
		} else {
			result = sleep_on_all(&look, deadline_ns);
			if (result == SHMRT_SYSTEM && (errno == ENOSYS || errno == EPERM)) {
				atomic_store_explicit(&scan_only, true, memory_order_relaxed); /* a hint */
				continue;
			}
		}
		if (result == SHMRT_INTERRUPTED || result == SHMRT_SYSTEM)
			return result;
	}
}

int shmrt_slots_watch(struct shmrt_control *control, uint32_t first, uint32_t count, _Atomic uint32_t *bell,
		      int64_t timeout_ns) {
	uint32_t slot_count = control->slot_count;
	if (slot_count > SHMRT_SLOTS_MAX)
		return SHMRT_CORRUPT;
	if (first > slot_count || count > slot_count - first)
		return SHMRT_INVALID;
	if (memory.control != control || memcmp(memory.token, control->header.token, sizeof memory.token) != 0) {
		memset(&memory, 0, sizeof memory);
		memory.control = control;
		memcpy(memory.token, control->header.token, sizeof memory.token);
	}
	uint64_t deadline_ns = UINT64_MAX;
	if (timeout_ns != SHMRT_FOREVER)
		deadline_ns = shmrt_now_ns() + (timeout_ns > 0 ? (uint64_t)timeout_ns : 0);

	atomic_fetch_add_explicit(&watchers, 1, memory_order_relaxed); /* W1 */
	atomic_thread_fence(memory_order_seq_cst); /* W1: announced, then the look at the states */
	int result = watch(control, first, first + count, bell, deadline_ns);
	atomic_fetch_sub_explicit(&watchers, 1, memory_order_relaxed); /* W1: no longer asleep */
	return result;
}
