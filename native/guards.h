/* guards.h -- where breakers, bulkheads and rate limits live, how they are found by name, and how they are locked.
 *
 * In a runtime they lie in the area at the end of its control segment, one entry behind the other; an entry never moves and never
 * goes before the runtime does. Outside a runtime an entry lies in memory of its process alone.
 *
 * Who writes what:
 *   head.used, head.reserved   a join, under the head's mutex
 *   an entry's constants       the join that makes it, before `used` passes it
 *   the rest                   see breaker.h, bulkhead.h, bucket.h
 *
 * A join that dies before it has stored `used` leaves bytes behind `used`, which the next join overwrites; one that dies after it
 * leaves a whole entry. Memory that was reserved beyond `reserved` is reserved once more, which changes nothing. So who locks
 * after a death has nothing to repair, here.
 *
 * The mutex of an entry is robust. Its holder makes a change real by one store (breaker: the gate; bulkhead: a permit's or a
 * waiter's word) and whoever locks after its death finds the change made or not made; what can be counted is counted again.
 *
 * Edge G1: join stores used (release) -> find loads it (acquire): the entries below it are whole.
 */
#ifndef SHMRT_GUARDS_H
#define SHMRT_GUARDS_H

#include "segment.h"
#include "slots.h"

/* What a process sees of a runtime's area: a mapping of its own of the whole control segment. */
struct shmrt_guard_area {
	struct shmrt_control *control;
	struct shmrt_guards *head;
	uint8_t *entries;
	uint32_t slot; /* of this process in the table, or SHMRT_GUARD_NO_SLOT */
	int fd;
};

/* Who holds a permit or a trial: enough to find out whether it lives. */
struct shmrt_holder {
	uint32_t owner;
	uint32_t slot;
};

static inline struct shmrt_guards *shmrt_guards_of(const struct shmrt_control *control) {
	return (struct shmrt_guards *)(uintptr_t)&control->slots[control->slot_count];
}
int shmrt_guards_format(struct shmrt_guards *, uint64_t offset); /* SYSTEM where robust mutexes cannot be had */
/* CORRUPT when the area does not fit `size`, the bytes of the segment. */
SHMRT_MUST_USE int shmrt_guards_check(const struct shmrt_control *, uint64_t size);
SHMRT_MUST_USE int shmrt_guard_area_attach(struct shmrt_guard_area *, struct shmrt_control *, uint64_t size, int fd, uint32_t slot);

/* What a guard is made of, for a join. `body` bytes follow the struct shmrt_guard; `fill` writes them into zeros. */
struct shmrt_guard_plan {
	uint32_t kind;
	const char *name, *text;
	size_t name_size, text_size;
	uint64_t body_bytes;
	int (*fill)(struct shmrt_guard *, const void *settings);
	const void *settings;
};
static inline uint64_t shmrt_guard_bytes(uint64_t body) { return shmrt_align_up(sizeof(struct shmrt_guard) + body, SHMRT_LINE); }

/* The entry of that kind and name; made if there is none, and *made says so. FOREIGN: there is one with another text, *guard.
 * NO_SPACE: the area is full (shortage->needed is 0) or memory is short. INTERRUPTED: another process is at it since a while.
 * CORRUPT: what the head says is none that a join leaves; nothing is changed then. */
SHMRT_MUST_USE int shmrt_guard_join(struct shmrt_guard_area *, const struct shmrt_guard_plan *, struct shmrt_guard **guard,
				    bool *made, struct shmrt_shortage *shortage);
/* The next entry after `before` (NULL: the first); NULL after the last. Ends at an entry that no join leaves. */
struct shmrt_guard *shmrt_guard_next(const struct shmrt_guard_area *, const struct shmrt_guard *before);
/* An entry in memory of this process alone: `memory` is zeros, shmrt_guard_bytes(body) of them. */
SHMRT_MUST_USE int shmrt_guard_format(struct shmrt_guard *memory, const struct shmrt_guard_plan *);

/* OK; STALE: OK, but its last holder died holding it: what is counted has to be counted again. INTERRUPTED: not within `patience_ns`
 * (0: looks for a moment only); CORRUPT. */
SHMRT_MUST_USE int shmrt_guard_lock(struct shmrt_guard *, int64_t patience_ns);
void shmrt_guard_unlock(struct shmrt_guard *);

static inline void shmrt_guard_count(struct shmrt_guard *guard, int counter, uint64_t more) {
	atomic_fetch_add_explicit(&guard->counters[counter], more, memory_order_relaxed); /* a count by itself */
}

/* Refusals are reported at most once in SHMRT_GUARD_REPORT_NS, by one process for all: whoever moves counters[TOLD_NS] by
 * compare-and-swap reports what counters[TOLD] is behind, and raises it likewise. If it dies between the two, the next report tells it;
 * if it dies after both, those are counted and never reported. `refusals` is a bit mask of counters. */
#define SHMRT_GUARD_REPORT_NS UINT64_C(1000000000)
bool shmrt_guard_has_news(const struct shmrt_guard *, uint32_t refusals);
/* So many since the last report, which is the caller's to make; 0: it is not its turn, or there are none. */
SHMRT_MUST_USE uint64_t shmrt_guard_take_report(struct shmrt_guard *, uint32_t refusals, uint64_t now_ns);

/* Whether the process that holds something still lives. `control` is NULL outside a runtime. A plain look where it has a slot. */
bool shmrt_holder_is_alive(const struct shmrt_control *, struct shmrt_holder);

#endif
