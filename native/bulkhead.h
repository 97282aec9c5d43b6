/* bulkhead.h -- so many calls at once, over all processes of a runtime: permits, and those that wait for one.
 *
 * A permit is a word that names its holder. Under the mutex: to take one is one store of that word, to give it back one store of 0,
 * so whoever dies anywhere has taken it or not. `used` and `waiting` can be counted from the words, and are, by whoever locks after
 * a death. The words of the dead are set to 0 by whoever gets no permit at once, and by every look (shmrt_bulkhead_look); both count
 * again, too. So who cannot have the mutex, since a process that holds it is stopped, may give back without: its word becomes 0, and
 * until the next count `used` or `waiting` is too high by one, which refuses nobody.
 *
 * Who waits has a word, too, with the order in which it came. A permit that comes back raises `bell` and wakes all that wait; each
 * looks, and takes one if more permits are free than live waiters came before it. A waiter looks at least every SLICE_NS; one that
 * has not looked for STALE_NS (it is stopped) is passed by, and one that is dead at once. So a holder that was killed, a waiter that was killed or stopped, and a
 * wake that was lost with its sender hold up the others for a slice at most.
 *
 * Edge U1: release raises bell (release, under the mutex) -> a waiter reads it under the mutex before it sleeps: no return of a
 * permit falls between its look and its sleep.
 */
#ifndef SHMRT_BULKHEAD_H
#define SHMRT_BULKHEAD_H

#include "guards.h"

#define SHMRT_BULKHEAD_SLICE_NS INT64_C(20000000)
#define SHMRT_BULKHEAD_STALE_NS UINT64_C(200000000)

enum {
	SHMRT_BULKHEAD_TAKEN,
	SHMRT_BULKHEAD_REFUSED,
	SHMRT_BULKHEAD_WAITED,    /* calls that had to wait, however it ended */
	SHMRT_BULKHEAD_TIMED_OUT,
	SHMRT_BULKHEAD_LOST,      /* permits whose process died */
};

struct shmrt_bulkhead_settings {
	uint32_t capacity;
	uint32_t limit;
	uint32_t most_waiting;
};
/* Waiter words: more than may wait, since those for whom a permit is free take nobody's place until they come for it. */
static inline uint32_t shmrt_bulkhead_places(uint32_t capacity, uint32_t most_waiting) {
	return most_waiting == 0 ? 0 : most_waiting + (capacity < SHMRT_WAITERS_MAX ? capacity : SHMRT_WAITERS_MAX);
}
uint64_t shmrt_bulkhead_body_bytes(const struct shmrt_bulkhead_settings *);
int shmrt_bulkhead_fill(struct shmrt_guard *, const void *settings);
bool shmrt_bulkhead_is_sound(const struct shmrt_bulkhead *);

/* A permit, or a place in the line: where it is and what stands there. */
struct shmrt_permit {
	uint32_t index;
	uint64_t word; /* 0: none */
};

/* Each waits at most patience_ns for the mutex: INTERRUPTED, and nothing has happened; but with some patience
 * give_back and leave_line always happen.
 * take: OK, or EMPTY: none is free. With `place` (may be NULL): who finds none free joins the line, FULL when that is full; who is
 * in it (place->word != 0) stays there until it has a permit. *bell is what to sleep on, then. */
SHMRT_MUST_USE int shmrt_bulkhead_take(struct shmrt_bulkhead *, const struct shmrt_control *, struct shmrt_holder, int64_t patience_ns,
				       struct shmrt_permit *, struct shmrt_permit *place, uint32_t *bell);
/* Both do nothing when the word is not there any more. */
SHMRT_MUST_USE int shmrt_bulkhead_give_back(struct shmrt_bulkhead *, int64_t patience_ns, struct shmrt_permit *);
SHMRT_MUST_USE int shmrt_bulkhead_leave_line(struct shmrt_bulkhead *, int64_t patience_ns, struct shmrt_permit *place);
/* More permits or fewer, up to capacity (INVALID beyond). Those that are out stay out. */
SHMRT_MUST_USE int shmrt_bulkhead_resize(struct shmrt_bulkhead *, int64_t patience_ns, uint32_t limit);
/* Takes the permits and places of the dead back; what is left. */
SHMRT_MUST_USE int shmrt_bulkhead_look(struct shmrt_bulkhead *, const struct shmrt_control *, int64_t patience_ns, uint32_t *used,
				       uint32_t *waiting);

#endif
