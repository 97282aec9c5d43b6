/* breaker_gate.c -- how the processes of a runtime share what a breaker knows: see breaker.h.
 *
 * A change: lock, copy the side that counts, decide there, write that onto the other side, store the gate, unlock. Nothing that a
 * death leaves behind counts, so EOWNERDEAD (SHMRT_STALE) needs no repair.
 */
#include "breaker.h"

#define SIDE_SHIFT 3
#define WATCHED_SHIFT 4
#define COMMITS_SHIFT 8
#define COMMITS_MASK UINT64_C(0xFFFFFF)
#define CARRY_PATIENCE_NS INT64_C(1000000000)
#define LOOKS_MAX 1024 /* then the side has moved under our eyes so often that any answer is as good */

static struct shmrt_breaker_side *side_of(const struct shmrt_breaker *breaker, uint32_t which) {
	return (struct shmrt_breaker_side *)(void *)((uint8_t *)(uintptr_t)breaker->sides + which * breaker->side_bytes);
}
static uint32_t which_of(uint64_t gate) { return (uint32_t)(gate >> SIDE_SHIFT & 1); }
static void *window_of(struct shmrt_breaker *breaker) { return (uint8_t *)breaker + breaker->window_offset; }

static uint64_t gate_for(const struct shmrt_breaker *breaker, const struct shmrt_breaker_side *side, uint32_t which, uint64_t commits) {
	const struct shmrt_breaker_settings *s = &breaker->settings;
	bool closed = side->state == SHMRT_BREAKER_CLOSED;
	bool watched = side->state == SHMRT_BREAKER_HALF_OPEN ||
		       (closed && (side->row != 0 || s->window != SHMRT_WINDOW_NONE || s->slow_ns != 0));
	return (uint64_t)side->era << 32 | (commits & COMMITS_MASK) << COMMITS_SHIFT | (uint64_t)watched << WATCHED_SHIFT |
	       (uint64_t)which << SIDE_SHIFT | side->state;
}

/* ---- making ------------------------------------------------------------------------------------- */

uint64_t shmrt_breaker_body_bytes(const struct shmrt_breaker_settings *settings) {
	return sizeof(struct shmrt_breaker) - sizeof(struct shmrt_guard) + 2 * shmrt_breaker_side_bytes(settings) +
	       shmrt_breaker_window_bytes(settings);
}

int shmrt_breaker_fill(struct shmrt_guard *guard, const void *settings) {
	struct shmrt_breaker *breaker = (struct shmrt_breaker *)(void *)guard;
	breaker->settings = *(const struct shmrt_breaker_settings *)settings;
	breaker->side_bytes = (uint32_t)shmrt_breaker_side_bytes(&breaker->settings);
	breaker->window_offset = (uint32_t)sizeof(struct shmrt_breaker) + 2 * breaker->side_bytes;
	uint64_t now = shmrt_now_ns();
	side_of(breaker, 0)->since_ns = now;
	/* A ticket of another entry, taken before its process came to this one, is no ticket here. */
	side_of(breaker, 0)->tickets = (uint32_t)(now ^ now >> 29) * UINT32_C(2654435761);
	/* G1 or a process of its own */
	atomic_store_explicit(&breaker->gate, gate_for(breaker, side_of(breaker, 0), 0, 0), memory_order_release); /* Q1 */
	return SHMRT_OK;
}

bool shmrt_breaker_is_sound(const struct shmrt_breaker *breaker) {
	const struct shmrt_breaker_settings *s = &breaker->settings;
	return breaker->guard.kind == SHMRT_GUARD_BREAKER && breaker->guard.size >= sizeof(*breaker) &&
	       shmrt_breaker_settings_are_sound(s) && breaker->side_bytes == shmrt_breaker_side_bytes(s) &&
	       breaker->window_offset == sizeof(*breaker) + 2 * breaker->side_bytes &&
	       breaker->guard.size == shmrt_guard_bytes(shmrt_breaker_body_bytes(s));
}

/* ---- a change ----------------------------------------------------------------------------------- */

/* What is decided on, beside the shared memory: a side there is read by others while it is written, so it is written word by
 * word, atomically, and once. Its constants, too: they say how long it is, and others can write them. */
struct draft {
	struct shmrt_breaker_settings settings;
	_Alignas(8) uint8_t bytes[sizeof(struct shmrt_breaker_side) + SHMRT_TRIALS_MAX * sizeof(struct shmrt_trial)];
};
#define SIDE_WORDS (sizeof(struct shmrt_breaker_side) / sizeof(uint64_t))

static uint64_t trials_bytes(const struct shmrt_breaker_settings *s, uint32_t state) {
	uint64_t bytes = 0;
	if (state == SHMRT_BREAKER_HALF_OPEN)
		bytes += s->half_open_max * sizeof(struct shmrt_trial);
	return bytes;
}

static void put_word(uint8_t *to, const uint8_t *from, uint64_t at) {
	uint64_t word;
	memcpy(&word, from + at * sizeof(word), sizeof(word));
	atomic_store_explicit((_Atomic uint64_t *)(void *)to + at, word, memory_order_relaxed); /* Q1 follows */
}

/* Under the mutex: a copy of what counts, to be decided on. */
static struct shmrt_breaker_side *begin(struct shmrt_breaker *breaker, uint64_t *gate, struct draft *draft) {
	*gate = atomic_load_explicit(&breaker->gate, memory_order_relaxed); /* the mutex orders it */
	draft->settings = breaker->settings;
	if (SHMRT_UNLIKELY(draft->settings.half_open_max > SHMRT_TRIALS_MAX))
		draft->settings.half_open_max = SHMRT_TRIALS_MAX;
	const struct shmrt_breaker_side *counts = side_of(breaker, which_of(*gate));
	struct shmrt_breaker_side *next = (struct shmrt_breaker_side *)(void *)draft->bytes;
	memcpy(draft->bytes, counts, sizeof(*counts));
	uint64_t more = trials_bytes(&draft->settings, next->state);
	if (SHMRT_UNLIKELY(more != 0))
		memcpy(next->trials, counts->trials, more);
	next->state = shmrt_breaker_state_of(next->state);
	return next;
}

static void commit(struct shmrt_breaker *breaker, uint64_t gate, const struct draft *draft, struct shmrt_breaker_change *change) {
	const struct shmrt_breaker_side *next = (const struct shmrt_breaker_side *)(const void *)draft->bytes;
	uint8_t *side = (uint8_t *)side_of(breaker, which_of(gate) ^ 1);
	uint64_t words = SIDE_WORDS + trials_bytes(&draft->settings, next->state) / sizeof(uint64_t);
	*change = (struct shmrt_breaker_change){shmrt_gate_state(gate), (enum shmrt_breaker_state)next->state};
	atomic_thread_fence(memory_order_release); /* Q2: who still reads the side written now finds that the gate has moved */
#pragma GCC unroll 12
	for (uint64_t at = 0; at < SIDE_WORDS; at++)
		put_word(side, draft->bytes, at);
	for (uint64_t at = SIDE_WORDS; at < words; at++)
		put_word(side, draft->bytes, at);
	uint64_t commits = (gate >> COMMITS_SHIFT & COMMITS_MASK) + 1;
	atomic_store_explicit(&breaker->gate, gate_for(breaker, next, which_of(gate) ^ 1, commits), memory_order_release); /* Q1 */
	if (change->to != change->from && change->to == SHMRT_BREAKER_OPEN)
		shmrt_guard_count(&breaker->guard, SHMRT_BREAKER_OPENED, 1);
	if (change->to != change->from && change->to == SHMRT_BREAKER_CLOSED)
		shmrt_guard_count(&breaker->guard, SHMRT_BREAKER_CLOSED_AGAIN, 1);
}

/* Its constants were looked at when it was joined; but other processes can write them, and they say how long it is. */
static int enter(struct shmrt_breaker *breaker, int64_t patience_ns) {
	if (SHMRT_UNLIKELY(!shmrt_breaker_is_sound(breaker)))
		return SHMRT_CORRUPT;
	int outcome = shmrt_guard_lock(&breaker->guard, patience_ns);
	return outcome == SHMRT_STALE ? SHMRT_OK : outcome;
}

/* HALF_OPEN: trials that will have no result. */
static void look_for_the_lost(struct shmrt_breaker *breaker, const struct shmrt_control *control, struct draft *draft, uint64_t now) {
	const struct shmrt_breaker_settings *s = &draft->settings;
	struct shmrt_breaker_side *side = (struct shmrt_breaker_side *)(void *)draft->bytes;
	for (uint32_t i = 0; i < s->half_open_max && side->state == SHMRT_BREAKER_HALF_OPEN; i++) {
		const struct shmrt_trial *trial = &side->trials[i];
		if (trial->owner == 0)
			continue;
		struct shmrt_holder holder = {trial->owner, trial->slot};
		if (now <= trial->until_ns && shmrt_holder_is_alive(control, holder))
			continue;
		shmrt_guard_count(&breaker->guard, SHMRT_BREAKER_LOST, 1);
		shmrt_breaker_decide_lose(s, side, i, now);
	}
}

int shmrt_breaker_admit(struct shmrt_breaker *breaker, const struct shmrt_control *control, struct shmrt_holder holder, uint64_t now,
			int64_t patience_ns, struct shmrt_admission *admission, uint64_t *retry_ns, struct shmrt_breaker_change *change) {
	uint64_t gate = shmrt_breaker_gate(breaker);
	*retry_ns = 0;
	*change = (struct shmrt_breaker_change){shmrt_gate_state(gate), shmrt_gate_state(gate)};
	*admission = (struct shmrt_admission){.era = shmrt_gate_era(gate)};
	if (change->from == SHMRT_BREAKER_CLOSED || change->from == SHMRT_BREAKER_DISABLED)
		return SHMRT_OK;
	if (SHMRT_UNLIKELY(!shmrt_breaker_is_sound(breaker)))
		return SHMRT_CORRUPT;
	if (change->from == SHMRT_BREAKER_OPEN) { /* refused, most of the time: no need for the mutex then */
		uint64_t until = atomic_load_explicit(&side_of(breaker, which_of(gate))->open_until_ns, memory_order_relaxed); /* Q2 */
		atomic_thread_fence(memory_order_acquire); /* Q2 */
		if (atomic_load_explicit(&breaker->gate, memory_order_relaxed) == gate && now <= until) { /* Q2 */
			*retry_ns = until - now;
			shmrt_guard_count(&breaker->guard, SHMRT_BREAKER_REFUSED, 1);
			return SHMRT_FULL;
		}
	}
	int outcome = enter(breaker, patience_ns);
	if (outcome != SHMRT_OK)
		return outcome;
	struct draft draft;
	struct shmrt_breaker_side *side = begin(breaker, &gate, &draft);
	if (side->state == SHMRT_BREAKER_HALF_OPEN)
		look_for_the_lost(breaker, control, &draft, now);
	outcome = shmrt_breaker_decide_admit(&draft.settings, side, holder, now, admission, retry_ns);
	commit(breaker, gate, &draft, change);
	shmrt_guard_unlock(&breaker->guard);
	if (outcome == SHMRT_FULL)
		shmrt_guard_count(&breaker->guard, SHMRT_BREAKER_REFUSED, 1);
	else if (admission->trial != 0)
		shmrt_guard_count(&breaker->guard, SHMRT_BREAKER_TRIALS, 1);
	return outcome;
}

int shmrt_breaker_settle(struct shmrt_breaker *breaker, const struct shmrt_admission *admission, enum shmrt_verdict result, bool slow,
			 uint64_t now, int64_t patience_ns, struct shmrt_breaker_change *change) {
	static const int counters[] = {SHMRT_BREAKER_SUCCESSES, SHMRT_BREAKER_FAILURES, SHMRT_BREAKER_IGNORED};
	uint64_t gate = shmrt_breaker_gate(breaker);
	*change = (struct shmrt_breaker_change){shmrt_gate_state(gate), shmrt_gate_state(gate)};
	bool current = shmrt_gate_era(gate) == admission->era;
	bool idle = change->from == SHMRT_BREAKER_DISABLED || (change->from == SHMRT_BREAKER_CLOSED && !shmrt_gate_is_watched(gate));
	bool told = !current || (idle && (result != SHMRT_VERDICT_FAILURE || change->from == SHMRT_BREAKER_DISABLED));
	if (!told && (result != SHMRT_VERDICT_IGNORED || admission->trial != 0)) {
		int outcome = enter(breaker, patience_ns);
		if (outcome != SHMRT_OK)
			return outcome;
		struct draft draft;
		struct shmrt_breaker_side *side = begin(breaker, &gate, &draft);
		current = shmrt_breaker_decide_settle(&draft.settings, side, window_of(breaker), admission, result, slow, now);
		if (current)
			commit(breaker, gate, &draft, change);
		shmrt_guard_unlock(&breaker->guard);
	}
	shmrt_guard_count(&breaker->guard, counters[result], 1);
	if (slow)
		shmrt_guard_count(&breaker->guard, SHMRT_BREAKER_SLOW, 1);
	if (!current)
		shmrt_guard_count(&breaker->guard, SHMRT_BREAKER_LATE, 1);
	return SHMRT_OK;
}

int shmrt_breaker_set(struct shmrt_breaker *breaker, enum shmrt_breaker_state state, uint64_t now, int64_t patience_ns,
		      struct shmrt_breaker_change *change) {
	uint64_t gate;
	int outcome = enter(breaker, patience_ns);
	if (outcome != SHMRT_OK)
		return outcome;
	struct draft draft;
	struct shmrt_breaker_side *side = begin(breaker, &gate, &draft);
	shmrt_breaker_decide_set(&draft.settings, side, state, now);
	commit(breaker, gate, &draft, change);
	shmrt_guard_unlock(&breaker->guard);
	return SHMRT_OK;
}

/* ---- looks -------------------------------------------------------------------------------------- */

void shmrt_breaker_look(const struct shmrt_breaker *breaker, struct shmrt_breaker_side *side, uint32_t *trials) {
	*side = (struct shmrt_breaker_side){.state = SHMRT_BREAKER_FORCED_OPEN};
	if (trials != NULL)
		*trials = 0;
	if (SHMRT_UNLIKELY(!shmrt_breaker_is_sound(breaker)))
		return;
	for (int tries = 0; tries < LOOKS_MAX; tries++) {
		uint64_t gate = shmrt_breaker_gate(breaker);
		const struct shmrt_breaker_side *counts = side_of(breaker, which_of(gate));
		uint32_t held = 0;
		for (uint64_t at = 0; at < SIDE_WORDS; at++) {
			/* Q2: it may be written meanwhile; then the gate has moved */
			uint64_t word = atomic_load_explicit((const _Atomic uint64_t *)(const void *)counts + at, memory_order_relaxed);
			memcpy((uint8_t *)side + at * sizeof(word), &word, sizeof(word));
		}
		if (trials != NULL && side->state == SHMRT_BREAKER_HALF_OPEN)
			for (uint32_t i = 0; i < breaker->settings.half_open_max; i++)
				held += atomic_load_explicit((const _Atomic uint32_t *)(const void *)&counts->trials[i].owner,
							     memory_order_relaxed) != 0; /* Q2 */
		if (trials != NULL)
			*trials = held;
		atomic_thread_fence(memory_order_acquire); /* Q2 */
		if (atomic_load_explicit(&breaker->gate, memory_order_relaxed) == gate) /* Q2 */
			return;
	}
}

void shmrt_breaker_pass(struct shmrt_breaker *breaker, uint64_t now) {
	struct shmrt_breaker_change change;
	uint64_t gate = shmrt_breaker_gate(breaker);
	if (breaker->settings.window != SHMRT_WINDOW_TIME || shmrt_gate_state(gate) != SHMRT_BREAKER_CLOSED || enter(breaker, 0) != SHMRT_OK)
		return;
	struct draft draft;
	struct shmrt_breaker_side *side = begin(breaker, &gate, &draft);
	shmrt_breaker_window_pass(&draft.settings, side, window_of(breaker), now);
	commit(breaker, gate, &draft, &change);
	shmrt_guard_unlock(&breaker->guard);
}

enum shmrt_breaker_state shmrt_breaker_state_at(const struct shmrt_breaker *breaker, uint64_t now, uint64_t *left_ns) {
	struct shmrt_breaker_side side;
	shmrt_breaker_look(breaker, &side, NULL);
	return shmrt_breaker_side_state(&side, now, left_ns);
}

enum shmrt_breaker_state shmrt_breaker_side_state(const struct shmrt_breaker_side *side, uint64_t now, uint64_t *left_ns) {
	*left_ns = 0;
	if (side->state != SHMRT_BREAKER_OPEN)
		return shmrt_breaker_state_of(side->state);
	uint64_t until = atomic_load_explicit(&side->open_until_ns, memory_order_relaxed); /* a copy of our own */
	if (now > until)
		return SHMRT_BREAKER_HALF_OPEN;
	*left_ns = until - now;
	return SHMRT_BREAKER_OPEN;
}

void shmrt_breaker_carry(struct shmrt_breaker *to, const struct shmrt_breaker_side *from, bool only_fresh) {
	uint64_t gate = shmrt_breaker_gate(to);
	if ((only_fresh && shmrt_gate_era(gate) != 0) || enter(to, CARRY_PATIENCE_NS) != SHMRT_OK)
		return;
	struct draft draft;
	struct shmrt_breaker_side *side = begin(to, &gate, &draft);
	if (only_fresh && side->era != 0) { /* somebody changed it while we waited for the mutex */
		shmrt_guard_unlock(&to->guard);
		return;
	}
	struct shmrt_breaker_change change;
	uint32_t era = side->era > from->era ? side->era : from->era; /* the results of calls of either come late now */
	uint32_t tickets = side->tickets;
	memcpy(side, from, sizeof(*side));
	side->era = era + 1;
	side->tickets = tickets;
	side->results = side->failed = side->slow = 0;
	side->bucket_calls = side->bucket_failed = side->bucket_slow = 0;
	if (side->state == SHMRT_BREAKER_HALF_OPEN) { /* its trials stay behind: the next call is tried anew */
		side->state = SHMRT_BREAKER_OPEN;
		atomic_store_explicit(&side->open_until_ns, side->since_ns, memory_order_relaxed); /* Q1 follows */
		side->row = 0;
	}
	commit(to, gate, &draft, &change);
	shmrt_guard_unlock(&to->guard);
}
