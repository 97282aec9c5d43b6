/* guards_world.h -- guards in plain memory, processes that live or do not, and what the kernel does for the dead.
 *
 * Holders have slots in a process table of this test: whether one lives is what its slot says. The process that dies in a
 * sweep lives while it runs, and is gone when the judge looks (world_let_die).
 */
#ifndef SHMRT_TEST_GUARDS_WORLD_H
#define SHMRT_TEST_GUARDS_WORLD_H

#include "breaker.h"
#include "bucket.h"
#include "bulkhead.h"
#include "check.h"

#include <linux/futex.h>

#define SLOTS 6
#define AT UINT64_C(1000000000000) /* a time */

enum { ALIVE = 2, OTHER = 3, DYING = 4, DEAD = 5 }; /* slots */

static union {
	struct shmrt_control control;
	uint8_t bytes[sizeof(struct shmrt_control) + SLOTS * sizeof(struct shmrt_slot) + sizeof(struct shmrt_guards)];
} table __attribute__((aligned(4096)));

static inline struct shmrt_holder holder_in(uint32_t slot) { return (struct shmrt_holder){.owner = 0x500000 + slot, .slot = slot}; }

static inline void world_set(uint32_t slot, enum shmrt_slot_state state) {
	atomic_store_explicit(&table.control.slots[slot].owner, holder_in(slot).owner, memory_order_relaxed);
	atomic_store_explicit(&table.control.slots[slot].state, (uint32_t)state, memory_order_relaxed);
}
/* The process of the sweep: true before its operation, false when the judge comes. */
static inline void world_let_die(bool dead) { world_set(DYING, dead ? SHMRT_SLOT_GONE : SHMRT_SLOT_READY); }

static inline void world_begin(void) {
	(void)shmrt_owner_self(); /* known before the first sweep */
	shmrt_control_format(&table.control, SLOTS);
	world_set(ALIVE, SHMRT_SLOT_READY);
	world_set(OTHER, SHMRT_SLOT_STARTING);
	world_set(DEAD, SHMRT_SLOT_GONE);
	world_let_die(false);
}

/* What the kernel does with a robust mutex whose holder ends. In a copy of the memory it is done here. */
static inline void mutex_of_the_dead(pthread_mutex_t *mutex) {
	uint32_t word = (uint32_t)mutex->__data.__lock;
	if ((word & FUTEX_TID_MASK) != 0)
		mutex->__data.__lock = (int)((word & FUTEX_WAITERS) | FUTEX_OWNER_DIED);
}
static inline bool mutex_is_held(const pthread_mutex_t *mutex) { return ((uint32_t)mutex->__data.__lock & FUTEX_TID_MASK) != 0; }

/* An entry in `memory`, whatever lay there; its bytes. */
static inline uint64_t guard_make(void *memory, uint64_t most, uint32_t kind, uint64_t body, int (*fill)(struct shmrt_guard *, const void *),
				  const void *settings) {
	struct shmrt_guard_plan plan = {
		.kind = kind, .name = "g", .name_size = 1, .text = "", .text_size = 0, .body_bytes = body, .fill = fill, .settings = settings};
	CHECK(shmrt_guard_bytes(body) <= most);
	memset(memory, 0, most);
	CHECK(shmrt_guard_format(memory, &plan) == SHMRT_OK);
	return shmrt_guard_bytes(body);
}

static inline uint64_t counter_of(const struct shmrt_guard *guard, int counter) {
	return atomic_load_explicit(&guard->counters[counter], memory_order_relaxed);
}

/* ---- breakers ----------------------------------------------------------------------------------- */
static inline struct shmrt_breaker_side *side_at(struct shmrt_breaker *breaker, uint32_t which) {
	return (struct shmrt_breaker_side *)(void *)(breaker->sides + which * breaker->side_bytes);
}
/* The one that counts. */
static inline struct shmrt_breaker_side *side_now(struct shmrt_breaker *breaker) {
	return side_at(breaker, (uint32_t)(shmrt_breaker_gate(breaker) >> 3 & 1));
}
static inline void *window_now(struct shmrt_breaker *breaker) { return (uint8_t *)breaker + breaker->window_offset; }
static inline uint64_t open_until(const struct shmrt_breaker_side *side) {
	return atomic_load_explicit(&side->open_until_ns, memory_order_relaxed);
}

/* Counts what is in the window, place by place: whether the totals say the same. */
static inline bool window_adds_up(const struct shmrt_breaker_settings *s, const struct shmrt_breaker_side *side, const void *window) {
	uint64_t places = (uint64_t)s->window_size + 1, results = 0, failed = 0, slow = 0;
	if (side->state != SHMRT_BREAKER_CLOSED || s->window == SHMRT_WINDOW_NONE)
		return true;
	if (s->window == SHMRT_WINDOW_CALLS) {
		const uint8_t *ring = window;
		for (uint64_t back = 1; back <= side->results; back++, results++) {
			failed += ring[(side->position - back) % places] & 1;
			slow += ring[(side->position - back) % places] >> 1 & 1;
		}
		return side->results <= s->window_size && failed == side->failed && slow == side->slow;
	}
	const struct shmrt_window_bucket *ring = window;
	for (uint64_t back = 1; back < s->window_size && back <= side->position; back++) {
		const struct shmrt_window_bucket *bucket = &ring[(side->position - back) % places];
		if (bucket->number == side->position - back && bucket->era == side->era)
			results += bucket->calls, failed += bucket->failed, slow += bucket->slow;
	}
	return results + side->bucket_calls == side->results && failed + side->bucket_failed == side->failed &&
	       slow + side->bucket_slow == side->slow;
}

#endif
