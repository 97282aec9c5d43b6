/* bell.h -- one futex word per process on which it sleeps until somebody rings.
 *
 *   sleeper: arm (word = 1), look again at everything it waits for, sleep while word == 1
 *   ringer:  make the change visible, then if word == 1: word = 0 and wake all
 *
 * Several threads of a process may sleep on one bell, if none of them disarms it and all of them look for the same: a ring wakes
 * all, but one that arms while another is about to sleep may have that one sleep through what the first has found. The threads
 * of a hub look each for its own, so they arm with numbers, and one may sleep behind the others, to be woken only by a ring that
 * woke nobody else: see hub.h. Written by: the sleeper (1, or its number), any ringer (0).
 * A ringer that dies between its change and the ring, or between its two wakes, leaves a sleeper asleep: after every death the
 * root and the hub ring every bell, which is why no sleeper needs a timer.
 *
 * Edge B1 (Dekker): the ringer's change, then a seq_cst fence, then its load of the word; the
 * sleeper's arming store, then a seq_cst fence, then its second look. One of the two sees the other.
 * Spinning before sleeping is worth it only where two CPUs are usable; the caller decides.
 */
#ifndef SHMRT_BELL_H
#define SHMRT_BELL_H

#include "ops.h"

/* Kinds of sleepers. Whoever says nothing of the kind is of both. */
#define SHMRT_BELL_FRONT UINT32_C(1)
#define SHMRT_BELL_BEHIND UINT32_C(2)

static inline void shmrt_bell_arm(_Atomic uint32_t *bell) {
	atomic_store_explicit(bell, 1, memory_order_relaxed);      /* B1: ordered by the fence */
	atomic_thread_fence(memory_order_seq_cst);                 /* B1 */
}
static inline void shmrt_bell_disarm(_Atomic uint32_t *bell) {
	atomic_store_explicit(bell, 0, memory_order_relaxed); /* ours alone: we are awake */
}
/* After arming and a second look that found nothing. */
SHMRT_MUST_USE static inline int shmrt_bell_sleep(_Atomic uint32_t *bell, int64_t timeout_ns) {
	return shmrt_futex_wait(bell, 1, timeout_ns);
}
/* As bell_sleep, on a word that the caller knows. OK: a ring woke it; STALE: the word is another one. Behind whoever sleeps in front:
 * who is woken there has to stand in for it. */
SHMRT_MUST_USE static inline int shmrt_bell_sleep_on(_Atomic uint32_t *bell, uint32_t word, int64_t timeout_ns, bool behind) {
	return shmrt_futex_wait_as(bell, word, timeout_ns, behind ? SHMRT_BELL_BEHIND : SHMRT_BELL_FRONT | SHMRT_BELL_BEHIND);
}
static inline int shmrt_bell_wake_behind(_Atomic uint32_t *bell) {
	return shmrt_futex_wake_those(bell, INT32_MAX, SHMRT_BELL_BEHIND);
}
/* Returns whether a sleeper was (probably) woken: the caller paid for a system call. */
static inline bool shmrt_bell_ring(_Atomic uint32_t *bell) {
	atomic_thread_fence(memory_order_seq_cst);                               /* B1 */
	if (SHMRT_LIKELY(atomic_load_explicit(bell, memory_order_relaxed) == 0)) /* B1: after the fence */
		return false;
	if (atomic_exchange_explicit(bell, 0, memory_order_acq_rel) == 0) /* B1: one ringer pays */
		return false;
	return shmrt_futex_wake_those(bell, INT32_MAX, SHMRT_BELL_FRONT) > 0 || shmrt_bell_wake_behind(bell) > 0;
}
/* Unconditional: after a death the word may say 0 while a sleeper sleeps. */
static inline void shmrt_bell_ring_always(_Atomic uint32_t *bell) {
	atomic_store_explicit(bell, 0, memory_order_release); /* B1: wakes follow */
	shmrt_futex_wake(bell, INT32_MAX);
}

/* How long to look before sleeping, learned from wait to wait in a word of this process's own (0 at first): how many looks
 * were in vain. Up to SHMRT_SPIN_INSIST of them are long, which gives the scheduler time to put the two sides on a CPU each;
 * then they have one between them, most likely, where each has to sleep for the other to go on, and the next
 * SHMRT_SPIN_REST looks are short. A short look that sees something says that there are two CPUs again. */
#define SHMRT_SPIN_MOST_NS 50000u
#define SHMRT_SPIN_LEAST_NS 2000u
#define SHMRT_SPIN_INSIST 32u
#define SHMRT_SPIN_REST 2048u

static inline uint32_t shmrt_spin_budget(_Atomic uint32_t *vain) {
	/* relaxed: private; any value is right */
	return atomic_load_explicit(vain, memory_order_relaxed) < SHMRT_SPIN_INSIST ? SHMRT_SPIN_MOST_NS : SHMRT_SPIN_LEAST_NS;
}
static inline void shmrt_spin_learn(_Atomic uint32_t *vain, bool saw) {
	uint32_t now = atomic_load_explicit(vain, memory_order_relaxed); /* private; any value is right */
	if (saw)
		now = now >= SHMRT_SPIN_INSIST || now < 4 ? 0 : now - 4;
	else
		now = now + 1 < SHMRT_SPIN_INSIST + SHMRT_SPIN_REST ? now + 1 : 0;
	atomic_store_explicit(vain, now, memory_order_relaxed); /* private */
}

#endif
