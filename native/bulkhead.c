/* bulkhead.c -- see bulkhead.h. */
#include "bulkhead.h"

#define SLOT_SHIFT 21
#define TICKET_MASK ((UINT32_C(1) << SLOT_SHIFT) - 1)

#define LOAD(word) atomic_load_explicit(&(word), memory_order_relaxed) /* the mutex orders it, or it is a hint */
#define STORE(word, value) atomic_store_explicit(&(word), (value), memory_order_relaxed) /* the mutex orders it */

/* Orders the compiler only: a repair reads exactly the stores before the kernel stopped the process. */
static void step(void) { atomic_signal_fence(memory_order_seq_cst); }

static struct shmrt_waiter *waiters_of(struct shmrt_bulkhead *b) {
	return (struct shmrt_waiter *)(void *)((uint8_t *)b->words + (uint64_t)b->capacity * sizeof(uint64_t));
}
static uint32_t places_of(const struct shmrt_bulkhead *b) { return shmrt_bulkhead_places(b->capacity, b->most_waiting); }
static struct shmrt_holder holder_of(uint64_t word) {
	return (struct shmrt_holder){.owner = (uint32_t)(word >> 32), .slot = (uint32_t)word >> SLOT_SHIFT};
}
static uint64_t word_for(struct shmrt_bulkhead *b, struct shmrt_holder holder) {
	uint32_t ticket = LOAD(b->tickets) + 1;
	STORE(b->tickets, ticket);
	return (uint64_t)holder.owner << 32 | (uint64_t)(holder.slot & SHMRT_GUARD_NO_SLOT) << SLOT_SHIFT | (ticket & TICKET_MASK);
}

/* ---- making ------------------------------------------------------------------------------------- */

uint64_t shmrt_bulkhead_body_bytes(const struct shmrt_bulkhead_settings *s) {
	return sizeof(struct shmrt_bulkhead) - sizeof(struct shmrt_guard) + (uint64_t)s->capacity * sizeof(uint64_t) +
	       (uint64_t)shmrt_bulkhead_places(s->capacity, s->most_waiting) * sizeof(struct shmrt_waiter);
}

int shmrt_bulkhead_fill(struct shmrt_guard *guard, const void *settings) {
	const struct shmrt_bulkhead_settings *made = settings;
	struct shmrt_bulkhead *b = (struct shmrt_bulkhead *)(void *)guard;
	b->capacity = made->capacity;
	b->most_waiting = made->most_waiting;
	STORE(b->limit, made->limit);
	return SHMRT_OK;
}

bool shmrt_bulkhead_is_sound(const struct shmrt_bulkhead *b) {
	struct shmrt_bulkhead_settings s = {.capacity = b->capacity, .most_waiting = b->most_waiting};
	return b->guard.kind == SHMRT_GUARD_BULKHEAD && b->guard.size >= sizeof(*b) && s.capacity >= 1 && s.capacity <= SHMRT_PERMITS_MAX &&
	       s.most_waiting <= SHMRT_WAITERS_MAX && b->guard.size == shmrt_guard_bytes(shmrt_bulkhead_body_bytes(&s)) &&
	       LOAD(b->limit) <= s.capacity;
}

/* ---- under the mutex ---------------------------------------------------------------------------- */

static void count_again(struct shmrt_bulkhead *b) {
	uint32_t used = 0, waiting = 0;
	for (uint32_t i = 0; i < b->capacity; i++)
		used += LOAD(b->words[i]) != 0;
	for (uint32_t i = 0; i < places_of(b); i++)
		waiting += LOAD(waiters_of(b)[i].word) != 0;
	STORE(b->used, used);
	STORE(b->waiting, waiting);
}

/* Another process has the mutex, and does not let it go: see bulkhead.h. */
static void clear_without_lock(struct shmrt_bulkhead *b, _Atomic uint64_t *word, uint64_t mine) {
	if (mine == 0 || !atomic_compare_exchange_strong_explicit(word, &mine, 0, memory_order_release, memory_order_relaxed)) /* U1 */
		return;
	atomic_fetch_add_explicit(&b->bell, 1, memory_order_release); /* U1 */
	shmrt_futex_wake(&b->bell, INT32_MAX);
}

/* Its constants were looked at when it was joined; but other processes can write them, and they say how long it is. */
static int enter(struct shmrt_bulkhead *b, int64_t patience_ns) {
	if (SHMRT_UNLIKELY(!shmrt_bulkhead_is_sound(b)))
		return SHMRT_CORRUPT;
	int outcome = shmrt_guard_lock(&b->guard, patience_ns);
	if (outcome != SHMRT_STALE)
		return outcome;
	count_again(b); /* dies here: the next to lock is told of a death once more, since this one held the mutex */
	return SHMRT_OK;
}

/* Wakes are sent after the mutex is free, so that whoever wakes up finds it so. */
static void leave(struct shmrt_bulkhead *b, bool wake) {
	shmrt_guard_unlock(&b->guard);
	if (wake)
		shmrt_futex_wake(&b->bell, INT32_MAX);
}

static bool ring(struct shmrt_bulkhead *b) {
	if (LOAD(b->waiting) == 0)
		return false;
	atomic_fetch_add_explicit(&b->bell, 1, memory_order_release); /* U1 */
	return true;
}

static void free_permit(struct shmrt_bulkhead *b, uint32_t index) {
	STORE(b->words[index], 0);
	step();
	STORE(b->used, LOAD(b->used) - 1);
	STORE(b->hint, index);
}

static void free_place(struct shmrt_bulkhead *b, uint32_t index) {
	STORE(waiters_of(b)[index].word, 0);
	step();
	STORE(b->waiting, LOAD(b->waiting) - 1);
}

/* Takes back what the dead held, and counts again; whether there was something. */
static bool sweep(struct shmrt_bulkhead *b, const struct shmrt_control *control) {
	uint32_t used = LOAD(b->used), waiting = LOAD(b->waiting);
	count_again(b);
	bool found = LOAD(b->used) != used || LOAD(b->waiting) != waiting;
	uint64_t alive = 0; /* the same process holds many, often in a row */
	for (uint32_t i = 0, left = LOAD(b->used); i < b->capacity && left > 0; i++) {
		uint64_t word = LOAD(b->words[i]);
		if (word == 0)
			continue;
		left--;
		if (word >> SLOT_SHIFT == alive || shmrt_holder_is_alive(control, holder_of(word))) {
			alive = word >> SLOT_SHIFT;
			continue;
		}
		free_permit(b, i);
		shmrt_guard_count(&b->guard, SHMRT_BULKHEAD_LOST, 1);
		found = true;
	}
	for (uint32_t i = 0, left = LOAD(b->waiting); i < places_of(b) && left > 0; i++) {
		uint64_t word = LOAD(waiters_of(b)[i].word);
		if (word == 0)
			continue;
		left--;
		if (word >> SLOT_SHIFT == alive || shmrt_holder_is_alive(control, holder_of(word)))
			continue;
		free_place(b, i);
		found = true;
	}
	return found;
}

static uint32_t free_permits(const struct shmrt_bulkhead *b) {
	uint32_t used = LOAD(b->used), limit = LOAD(b->limit);
	return used < limit ? limit - used : 0;
}

/* Waiters that have looked lately and came before `mine`; NULL: all of them, who comes now. */
static uint32_t ahead(struct shmrt_bulkhead *b, const struct shmrt_waiter *mine, uint64_t now) {
	uint64_t order = mine ? mine->order : UINT64_MAX;
	uint32_t count = 0;
	for (uint32_t i = 0, left = LOAD(b->waiting); i < places_of(b) && left > 0; i++) {
		const struct shmrt_waiter *waiter = &waiters_of(b)[i];
		if (LOAD(waiter->word) == 0)
			continue;
		left--;
		count += waiter->order < order && waiter->seen_ns + SHMRT_BULKHEAD_STALE_NS > now;
	}
	return count;
}

/* False: none is 0 after all, so that the counts were foreign bytes. They are right then. */
static bool hold(struct shmrt_bulkhead *b, struct shmrt_holder holder, struct shmrt_permit *permit) {
	uint32_t index = LOAD(b->hint), looked_at = 0;
	if (index >= b->capacity)
		index = 0;
	for (; LOAD(b->words[index]) != 0; looked_at++) { /* used < limit <= capacity: one is 0 */
		if (SHMRT_UNLIKELY(looked_at == b->capacity)) {
			count_again(b);
			return false;
		}
		index = index + 1 < b->capacity ? index + 1 : 0;
	}
	*permit = (struct shmrt_permit){.index = index, .word = word_for(b, holder)};
	STORE(b->words[index], permit->word);
	step();
	uint32_t used = LOAD(b->used) + 1;
	STORE(b->used, used);
	STORE(b->hint, index + 1);
	if (used > LOAD(b->high_water))
		STORE(b->high_water, used);
	return true;
}

/* The place in the line, or NULL: there is none, or it was taken for dead (by a process of another namespace, say). */
static struct shmrt_waiter *place_of(struct shmrt_bulkhead *b, struct shmrt_permit *place) {
	if (place == NULL || place->word == 0)
		return NULL;
	if (place->index < places_of(b) && LOAD(waiters_of(b)[place->index].word) == place->word)
		return &waiters_of(b)[place->index];
	place->word = 0;
	return NULL;
}

/* Who could have a permit already and has not come for it yet waits for nothing: it takes nobody's place in the line. */
static int join_line(struct shmrt_bulkhead *b, struct shmrt_holder holder, uint64_t now, struct shmrt_permit *place) {
	uint32_t places = places_of(b), taken = 0, free_place = places;
	for (uint32_t i = places; i-- > 0;) {
		if (LOAD(waiters_of(b)[i].word) != 0)
			taken++;
		else
			free_place = i;
	}
	if (free_place == places || taken >= b->most_waiting + free_permits(b))
		return SHMRT_FULL;
	struct shmrt_waiter *waiter = &waiters_of(b)[free_place];
	uint64_t order = LOAD(b->orders) + 1;
	STORE(b->orders, order);
	waiter->order = order;
	waiter->seen_ns = now;
	*place = (struct shmrt_permit){.index = free_place, .word = word_for(b, holder)};
	step();
	STORE(waiter->word, place->word);
	step();
	STORE(b->waiting, LOAD(b->waiting) + 1);
	return SHMRT_EMPTY;
}

/* ---- what callers do ---------------------------------------------------------------------------- */

int shmrt_bulkhead_take(struct shmrt_bulkhead *b, const struct shmrt_control *control, struct shmrt_holder holder, int64_t patience_ns,
			struct shmrt_permit *permit, struct shmrt_permit *place, uint32_t *bell) {
	int outcome = enter(b, patience_ns);
	bool wake = false;
	if (outcome != SHMRT_OK)
		return outcome;
	/* U1: before the look, since a permit may come back beside the mutex, too (clear_without_lock). */
	uint32_t heard = atomic_load_explicit(&b->bell, memory_order_acquire);
	/* Nobody asks the time as long as nobody waits. */
	uint64_t now = place != NULL && (place->word != 0 || LOAD(b->waiting) != 0 || free_permits(b) == 0) ? shmrt_now_ns() : 0;
	struct shmrt_waiter *mine = place_of(b, place);
	if (mine != NULL)
		mine->seen_ns = now;
	/* Who does not wait cannot join the line either: it goes by those in it rather than be refused for ever. */
	uint32_t before = place != NULL ? ahead(b, mine, now) : 0;
	if (free_permits(b) <= before && sweep(b, control)) { /* those that hold one, or are before us, may be dead */
		wake = ring(b);
		mine = place_of(b, place);
		before = place != NULL ? ahead(b, mine, now) : 0;
	}
	if (free_permits(b) > before && hold(b, holder, permit)) {
		shmrt_guard_count(&b->guard, SHMRT_BULKHEAD_TAKEN, 1);
		if (mine != NULL)
			free_place(b, place->index), place->word = 0;
	} else if (mine == NULL) {
		outcome = place != NULL ? join_line(b, holder, now, place) : SHMRT_EMPTY;
	} else {
		outcome = SHMRT_EMPTY;
	}
	if (bell != NULL)
		*bell = heard + (wake ? 1 : 0); /* our own ring is no news */
	leave(b, wake);
	return outcome;
}

int shmrt_bulkhead_give_back(struct shmrt_bulkhead *b, int64_t patience_ns, struct shmrt_permit *permit) {
	int outcome = enter(b, patience_ns);
	bool wake = false;
	if (outcome == SHMRT_INTERRUPTED && patience_ns > 0 && permit->index < b->capacity)
		clear_without_lock(b, &b->words[permit->index], permit->word);
	if (outcome != SHMRT_OK)
		return outcome == SHMRT_INTERRUPTED && patience_ns > 0 ? SHMRT_OK : outcome;
	if (permit->word != 0 && permit->index < b->capacity && LOAD(b->words[permit->index]) == permit->word) {
		free_permit(b, permit->index);
		wake = ring(b);
	}
	permit->word = 0;
	leave(b, wake);
	return SHMRT_OK;
}

int shmrt_bulkhead_leave_line(struct shmrt_bulkhead *b, int64_t patience_ns, struct shmrt_permit *place) {
	int outcome = enter(b, patience_ns);
	bool wake = false;
	if (outcome == SHMRT_INTERRUPTED && patience_ns > 0 && place->index < places_of(b))
		clear_without_lock(b, &waiters_of(b)[place->index].word, place->word);
	if (outcome != SHMRT_OK)
		return outcome == SHMRT_INTERRUPTED && patience_ns > 0 ? SHMRT_OK : outcome;
	if (place->word != 0 && place->index < places_of(b) && LOAD(waiters_of(b)[place->index].word) == place->word) {
		free_place(b, place->index);
		wake = ring(b); /* the permit that it was first in line for is the next one's */
	}
	place->word = 0;
	leave(b, wake);
	return SHMRT_OK;
}

int shmrt_bulkhead_resize(struct shmrt_bulkhead *b, int64_t patience_ns, uint32_t limit) {
	if (limit < 1 || limit > b->capacity)
		return SHMRT_INVALID;
	int outcome = enter(b, patience_ns);
	if (outcome != SHMRT_OK)
		return outcome;
	STORE(b->limit, limit);
	leave(b, ring(b));
	return SHMRT_OK;
}

int shmrt_bulkhead_look(struct shmrt_bulkhead *b, const struct shmrt_control *control, int64_t patience_ns, uint32_t *used,
			uint32_t *waiting) {
	int outcome = enter(b, patience_ns);
	if (outcome != SHMRT_OK)
		return outcome;
	bool wake = sweep(b, control) && ring(b);
	*used = LOAD(b->used);
	*waiting = LOAD(b->waiting);
	leave(b, wake);
	return SHMRT_OK;
}
