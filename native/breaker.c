/* breaker.c -- what a circuit breaker decides: see breaker.h. No lock, no clock, no shared word. */
#include "breaker.h"

#define SEEN_FAILED 1
#define SEEN_SLOW 2
#define ATTEMPTS_MAX 65536

/* ---- settings ----------------------------------------------------------------------------------- */

bool shmrt_breaker_settings_are_sound(const struct shmrt_breaker_settings *s) {
	uint32_t most = s->window == SHMRT_WINDOW_CALLS ? SHMRT_WINDOW_CALLS_MAX : SHMRT_WINDOW_BUCKETS_MAX;
	if (s->window > SHMRT_WINDOW_TIME || (s->window != SHMRT_WINDOW_NONE && (s->window_size == 0 || s->window_size > most)))
		return false;
	return (s->window != SHMRT_WINDOW_TIME || s->bucket_ns != 0) && s->half_open_max >= 1 && s->half_open_max <= SHMRT_TRIALS_MAX &&
	       s->failure_threshold >= 1 && s->success_threshold >= 1 && s->growth >= 1.0;
}

uint64_t shmrt_breaker_window_bytes(const struct shmrt_breaker_settings *s) {
	uint64_t places = (uint64_t)s->window_size + 1;
	if (s->window == SHMRT_WINDOW_NONE)
		return 0;
	return shmrt_align_up(places * (s->window == SHMRT_WINDOW_CALLS ? 1 : sizeof(struct shmrt_window_bucket)), 8);
}

uint64_t shmrt_breaker_wait_ns(const struct shmrt_breaker_settings *s, uint32_t attempt) {
	double wait = (double)s->reset_ns;
	if (attempt > ATTEMPTS_MAX) /* it lies in shared memory: no endless loop */
		attempt = ATTEMPTS_MAX;
	for (uint32_t i = 1; i < attempt && wait < (double)s->reset_max_ns && s->growth > 1.0; i++)
		wait *= s->growth;
	return wait < (double)s->reset_max_ns ? (uint64_t)wait : s->reset_max_ns;
}

/* ---- changes of state --------------------------------------------------------------------------- */

static void enter(const struct shmrt_breaker_settings *s, struct shmrt_breaker_side *side, enum shmrt_breaker_state state, uint64_t now) {
	side->state = state;
	side->era++;
	side->since_ns = now;
	side->row = 0;
	side->results = side->failed = side->slow = 0;
	side->bucket_calls = side->bucket_failed = side->bucket_slow = 0;
	side->position = s->window == SHMRT_WINDOW_TIME ? now / s->bucket_ns : 0;
	if (state == SHMRT_BREAKER_OPEN) {
		side->attempt += side->attempt < UINT32_MAX;
		uint64_t wait = shmrt_breaker_wait_ns(s, side->attempt);
		uint64_t until = now + wait < now ? UINT64_MAX : now + wait;
		atomic_store_explicit(&side->open_until_ns, until, memory_order_relaxed); /* Q1 follows */
	} else if (state == SHMRT_BREAKER_HALF_OPEN) {
		memset(side->trials, 0, s->half_open_max * sizeof(struct shmrt_trial));
	} else {
		side->attempt = 0;
	}
}

void shmrt_breaker_decide_set(const struct shmrt_breaker_settings *s, struct shmrt_breaker_side *side, enum shmrt_breaker_state state,
			      uint64_t now) {
	if (state == SHMRT_BREAKER_OPEN && side->state == SHMRT_BREAKER_OPEN)
		side->attempt -= side->attempt > 0; /* tripped again: its wait begins anew, and does not grow */
	enter(s, side, state, now);
}

/* ---- windows ------------------------------------------------------------------------------------ */

static void push_call(const struct shmrt_breaker_settings *s, struct shmrt_breaker_side *side, uint8_t *ring, bool failed, bool slow) {
	uint64_t places = (uint64_t)s->window_size + 1;
	if (side->results == s->window_size) {
		uint8_t oldest = ring[(side->position - s->window_size) % places];
		side->failed -= (oldest & SEEN_FAILED) != 0;
		side->slow -= (oldest & SEEN_SLOW) != 0;
		side->results--;
	}
	ring[side->position % places] = (uint8_t)((failed ? SEEN_FAILED : 0) | (slow ? SEEN_SLOW : 0));
	side->position++;
	side->results++;
	side->failed += failed;
	side->slow += slow;
}

static void drop_bucket(struct shmrt_breaker_side *side, const struct shmrt_window_bucket *bucket, uint64_t number) {
	if (bucket->number != number || bucket->era != side->era || bucket->calls == 0)
		return; /* nobody called in that time */
	side->results -= bucket->calls;
	side->failed -= bucket->failed;
	side->slow -= bucket->slow;
}

void shmrt_breaker_window_pass(const struct shmrt_breaker_settings *s, struct shmrt_breaker_side *side, void *window, uint64_t now) {
	if (s->window != SHMRT_WINDOW_TIME || side->state != SHMRT_BREAKER_CLOSED)
		return;
	struct shmrt_window_bucket *ring = window;
	uint64_t places = (uint64_t)s->window_size + 1, number = now / s->bucket_ns;
	if (number <= side->position)
		return; /* the clock of another CPU may be a little behind */
	ring[side->position % places] = (struct shmrt_window_bucket){.number = side->position,
								     .era = side->era,
								     .calls = (uint32_t)side->bucket_calls,
								     .failed = (uint32_t)side->bucket_failed,
								     .slow = (uint32_t)side->bucket_slow};
	if (number - side->position >= s->window_size) { /* all of it lies before the window */
		side->results = side->failed = side->slow = 0;
	} else {
		/* The window was (position - size, position], and is (number - size, number]. */
		for (uint64_t past = side->position + 1; past <= number; past++)
			if (past >= s->window_size)
				drop_bucket(side, &ring[(past - s->window_size) % places], past - s->window_size);
	}
	side->position = number;
	side->bucket_calls = side->bucket_failed = side->bucket_slow = 0;
}

static void push(const struct shmrt_breaker_settings *s, struct shmrt_breaker_side *side, void *window, bool failed, bool slow, uint64_t now) {
	if (s->window == SHMRT_WINDOW_CALLS) {
		push_call(s, side, window, failed, slow);
		return;
	}
	shmrt_breaker_window_pass(s, side, window, now);
	side->bucket_calls++, side->bucket_failed += failed, side->bucket_slow += slow;
	side->results++, side->failed += failed, side->slow += slow;
}

static bool rate_is_reached(const struct shmrt_breaker_settings *s, const struct shmrt_breaker_side *side) {
	double results = (double)side->results;
	return (s->failure_rate > 0.0 && (double)side->failed / results >= s->failure_rate) ||
	       (s->slow_rate > 0.0 && (double)side->slow / results >= s->slow_rate);
}

/* ---- half-open ---------------------------------------------------------------------------------- */

/* With a window: the results after which there is a verdict. */
static uint64_t results_needed(const struct shmrt_breaker_settings *s) {
	uint64_t needed = s->min_calls < s->half_open_max ? s->min_calls : s->half_open_max;
	return needed > s->success_threshold ? needed : s->success_threshold;
}

static int try_it(const struct shmrt_breaker_settings *s, struct shmrt_breaker_side *side, struct shmrt_holder holder, uint64_t now,
		  struct shmrt_admission *admission, uint64_t *retry_ns) {
	uint32_t held = 0, place = s->half_open_max;
	uint64_t first_end = UINT64_MAX;
	for (uint32_t i = s->half_open_max; i-- > 0;) {
		if (side->trials[i].owner == 0) {
			place = i;
			continue;
		}
		held++;
		if (side->trials[i].until_ns < first_end)
			first_end = side->trials[i].until_ns;
	}
	uint64_t enough = results_needed(s) > s->half_open_max ? results_needed(s) : s->half_open_max;
	if (place == s->half_open_max || (s->window != SHMRT_WINDOW_NONE && held + side->results >= enough)) {
		/* Nobody knows when a trial ends: as long as it was open is a fair guess, and its own limit the latest. */
		uint64_t guess = s->reset_ns, latest = first_end > now ? first_end - now : 0;
		*retry_ns = guess < latest ? guess : latest;
		return SHMRT_FULL;
	}
	uint64_t until = now + s->trial_ns;
	side->tickets++;
	side->trials[place] = (struct shmrt_trial){
		.owner = holder.owner, .slot = holder.slot, .ticket = side->tickets, .until_ns = until < now ? UINT64_MAX : until};
	*admission = (struct shmrt_admission){.era = side->era, .trial = place + 1, .ticket = side->tickets};
	return SHMRT_OK;
}

static void judge(const struct shmrt_breaker_settings *s, struct shmrt_breaker_side *side, bool failed, bool slow, uint64_t now) {
	if (s->window == SHMRT_WINDOW_NONE) {
		if (failed || slow)
			enter(s, side, SHMRT_BREAKER_OPEN, now);
		else if (++side->row >= s->success_threshold)
			enter(s, side, SHMRT_BREAKER_CLOSED, now);
		return;
	}
	side->results++;
	side->failed += failed;
	side->slow += slow;
	if (side->results >= results_needed(s))
		enter(s, side, rate_is_reached(s, side) ? SHMRT_BREAKER_OPEN : SHMRT_BREAKER_CLOSED, now);
}

void shmrt_breaker_decide_lose(const struct shmrt_breaker_settings *s, struct shmrt_breaker_side *side, uint32_t place, uint64_t now) {
	side->trials[place].owner = 0;
	judge(s, side, true, s->slow_ns != 0, now);
}

/* ---- calls -------------------------------------------------------------------------------------- */

int shmrt_breaker_decide_admit(const struct shmrt_breaker_settings *s, struct shmrt_breaker_side *side, struct shmrt_holder holder,
			       uint64_t now, struct shmrt_admission *admission, uint64_t *retry_ns) {
	*retry_ns = 0;
	*admission = (struct shmrt_admission){.era = side->era};
	switch (side->state) {
	case SHMRT_BREAKER_CLOSED:
	case SHMRT_BREAKER_DISABLED:
		return SHMRT_OK;
	case SHMRT_BREAKER_OPEN: {
		uint64_t until = atomic_load_explicit(&side->open_until_ns, memory_order_relaxed); /* under the mutex */
		if (now <= until) {
			*retry_ns = until - now;
			return SHMRT_FULL;
		}
		enter(s, side, SHMRT_BREAKER_HALF_OPEN, now);
		return try_it(s, side, holder, now, admission, retry_ns);
	}
	case SHMRT_BREAKER_HALF_OPEN:
		return try_it(s, side, holder, now, admission, retry_ns);
	default:
		*retry_ns = SHMRT_FOREVER;
		return SHMRT_FULL;
	}
}

bool shmrt_breaker_decide_settle(const struct shmrt_breaker_settings *s, struct shmrt_breaker_side *side, void *window,
				 const struct shmrt_admission *admission, enum shmrt_verdict outcome, bool slow, uint64_t now) {
	bool failed = outcome == SHMRT_VERDICT_FAILURE;
	if (admission->era != side->era)
		return false;
	if (side->state == SHMRT_BREAKER_HALF_OPEN) {
		uint32_t place = admission->trial - 1; /* no trial: a number that is too big */
		if (place >= s->half_open_max || side->trials[place].owner == 0 || side->trials[place].ticket != admission->ticket)
			return false;
		side->trials[place].owner = 0;
		if (outcome != SHMRT_VERDICT_IGNORED)
			judge(s, side, failed, slow, now);
		return true;
	}
	if (side->state != SHMRT_BREAKER_CLOSED || outcome == SHMRT_VERDICT_IGNORED)
		return true;
	if (s->window == SHMRT_WINDOW_NONE) {
		side->row = failed || slow ? side->row + 1 : 0;
		if (side->row >= s->failure_threshold)
			enter(s, side, SHMRT_BREAKER_OPEN, now);
		return true;
	}
	push(s, side, window, failed, slow, now);
	uint64_t least = s->window == SHMRT_WINDOW_CALLS && s->min_calls > s->window_size ? s->window_size : s->min_calls;
	if (side->results >= least && rate_is_reached(s, side))
		enter(s, side, SHMRT_BREAKER_OPEN, now);
	return true;
}
