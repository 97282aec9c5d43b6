/* breaker.h -- a circuit breaker: what it decides (breaker.c), and how its processes share that (breaker_gate.c).
 *
 * The decisions are functions of (settings, side, event, now); they touch no lock and no clock. Rules: resilience4j's
 * CircuitBreaker for windows, rates and half-open; Nygard, Release It!, for the rest.
 *
 *   CLOSED      calls pass. The results of calls that were admitted in this era are looked at: `failure_threshold` failures in a
 *               row, or a rate over the window once it has `min_calls` results, open it.
 *   OPEN        calls are refused. The first that comes after open_until_ns makes it HALF_OPEN and is tried.
 *   HALF_OPEN   at most half_open_max calls at once are tried; each holds a trial until it has a result. The verdict closes it, or
 *               opens it for longer than the last time.
 *   FORCED_OPEN calls are refused until it is reset. DISABLED calls pass, and nothing is looked at.
 *
 * A change of state raises the era: the result of a call that was admitted in another era changes nothing but counters.
 *
 * In shared memory: every word of the side that does not count, and of window places that are not in the window, is written by
 * whoever holds the mutex; the store of `gate` makes that side count. So whoever dies anywhere before that store has changed
 * nothing, and whoever dies after it has changed everything: there is nothing to repair. A window has one place more than
 * results, so a place is written while nobody counts it.
 *
 * A trial whose holder died, or that is older than trial_ns, counts as failed, and as slow where that is looked at: whoever asks a
 * half-open breaker looks first.
 *
 * Edge Q1: a commit stores gate (release) -> everybody loads it (acquire): the side that it names is whole. Edge Q2: who reads that
 * side without the mutex loads the gate again after a fence: it is written only after the gate has moved on from it.
 */
#ifndef SHMRT_BREAKER_H
#define SHMRT_BREAKER_H

#include "guards.h"

enum shmrt_verdict {
	SHMRT_VERDICT_SUCCESS = 0,
	SHMRT_VERDICT_FAILURE = 1,
	SHMRT_VERDICT_IGNORED = 2, /* it says nothing: a trial is given back */
};

/* What a call that was let through keeps until it has a result. */
struct shmrt_admission {
	uint32_t era;
	uint32_t trial; /* 0: none, else its place + 1 */
	uint32_t ticket;
};

/* Counters of a breaker. */
enum {
	SHMRT_BREAKER_SUCCESSES,
	SHMRT_BREAKER_FAILURES,
	SHMRT_BREAKER_IGNORED,
	SHMRT_BREAKER_SLOW,
	SHMRT_BREAKER_REFUSED,
	SHMRT_BREAKER_TRIALS,
	SHMRT_BREAKER_LOST,     /* trials whose process died, or whose time was up */
	SHMRT_BREAKER_LATE,     /* results of calls of another era */
	SHMRT_BREAKER_OPENED,
	SHMRT_BREAKER_CLOSED_AGAIN,
};

/* ---- decisions (breaker.c) ---- */
/* The bytes of one side, without the trials where they mean nothing. */
static inline uint64_t shmrt_breaker_side_bytes(const struct shmrt_breaker_settings *settings) {
	return shmrt_align_up(sizeof(struct shmrt_breaker_side) + settings->half_open_max * sizeof(struct shmrt_trial), 64);
}
uint64_t shmrt_breaker_window_bytes(const struct shmrt_breaker_settings *);
bool shmrt_breaker_settings_are_sound(const struct shmrt_breaker_settings *);
/* How long it stays open when it opens for the attempt-th time in a row. */
uint64_t shmrt_breaker_wait_ns(const struct shmrt_breaker_settings *, uint32_t attempt);
/* OK: the call may go. FULL: refused; *retry_ns is the time until it may be asked again, SHMRT_FOREVER if only a reset helps. */
int shmrt_breaker_decide_admit(const struct shmrt_breaker_settings *, struct shmrt_breaker_side *, struct shmrt_holder, uint64_t now_ns,
			       struct shmrt_admission *, uint64_t *retry_ns);
/* The result of a call. False: it was of another era, or its trial was lost meanwhile. */
bool shmrt_breaker_decide_settle(const struct shmrt_breaker_settings *, struct shmrt_breaker_side *, void *window,
				 const struct shmrt_admission *, enum shmrt_verdict, bool slow, uint64_t now_ns);
/* HALF_OPEN: the trial at `place` will have no result. It failed, and none was slower. */
void shmrt_breaker_decide_lose(const struct shmrt_breaker_settings *, struct shmrt_breaker_side *, uint32_t place, uint64_t now_ns);
/* By hand. OPEN: as if it had just been tripped. */
void shmrt_breaker_decide_set(const struct shmrt_breaker_settings *, struct shmrt_breaker_side *, enum shmrt_breaker_state,
			      uint64_t now_ns);
/* TIME: what lies before the window is counted no more. */
void shmrt_breaker_window_pass(const struct shmrt_breaker_settings *, struct shmrt_breaker_side *, void *window, uint64_t now_ns);

/* ---- in shared memory (breaker_gate.c) ---- */
/* Fills the body in; `settings` is a struct shmrt_breaker_settings. For a struct shmrt_guard_plan. */
int shmrt_breaker_fill(struct shmrt_guard *, const void *settings);
uint64_t shmrt_breaker_body_bytes(const struct shmrt_breaker_settings *);
/* Whether an entry that was found is one that fill makes. */
bool shmrt_breaker_is_sound(const struct shmrt_breaker *);

/* A state that nobody writes refuses calls until a reset, which makes it whole. */
static inline enum shmrt_breaker_state shmrt_breaker_state_of(uint32_t word) {
	return word <= SHMRT_BREAKER_DISABLED ? (enum shmrt_breaker_state)word : SHMRT_BREAKER_FORCED_OPEN;
}
static inline enum shmrt_breaker_state shmrt_gate_state(uint64_t gate) { return shmrt_breaker_state_of(gate & 7); }
/* Whether a good result has to be told: in CLOSED without it, it changes nothing. */
static inline bool shmrt_gate_is_watched(uint64_t gate) { return (gate >> 4 & 1) != 0; }
static inline uint32_t shmrt_gate_era(uint64_t gate) { return (uint32_t)(gate >> 32); }
static inline uint64_t shmrt_breaker_gate(const struct shmrt_breaker *breaker) {
	return atomic_load_explicit(&breaker->gate, memory_order_acquire); /* Q1 */
}

/* What a call did to the state: equal numbers mean nothing. */
struct shmrt_breaker_change {
	enum shmrt_breaker_state from, to;
};

/* Each waits at most patience_ns for the mutex: INTERRUPTED, and nothing has happened; CORRUPT. Otherwise as the decisions, and
 * counted. `control` is NULL outside a runtime. */
int shmrt_breaker_admit(struct shmrt_breaker *, const struct shmrt_control *, struct shmrt_holder, uint64_t now_ns, int64_t patience_ns,
			struct shmrt_admission *, uint64_t *retry_ns, struct shmrt_breaker_change *);
int shmrt_breaker_settle(struct shmrt_breaker *, const struct shmrt_admission *, enum shmrt_verdict, bool slow, uint64_t now_ns,
			 int64_t patience_ns, struct shmrt_breaker_change *);
int shmrt_breaker_set(struct shmrt_breaker *, enum shmrt_breaker_state, uint64_t now_ns, int64_t patience_ns,
		      struct shmrt_breaker_change *);
/* The side that counts, without its trials, as it is at one moment; of a breaker that is not sound, one that refuses calls. `trials`
 * may be NULL: how many are held. */
void shmrt_breaker_look(const struct shmrt_breaker *, struct shmrt_breaker_side *, uint32_t *trials);
/* The state as the next call will find it: an open breaker whose time is over is half-open. */
enum shmrt_breaker_state shmrt_breaker_side_state(const struct shmrt_breaker_side *, uint64_t now_ns, uint64_t *left_ns);
/* TIME: a look at the window shall not show what lies before it. Does nothing while another process is at it. */
void shmrt_breaker_pass(struct shmrt_breaker *, uint64_t now_ns);
enum shmrt_breaker_state shmrt_breaker_state_at(const struct shmrt_breaker *, uint64_t now_ns, uint64_t *left_ns);
/* Makes `to` stand where `from` stood; windows begin anew, half-open becomes open whose time is over. only_fresh: unless
 * somebody has changed its state already. */
void shmrt_breaker_carry(struct shmrt_breaker *to, const struct shmrt_breaker_side *from, bool only_fresh);

#endif
