/* test_breaker_look.c -- who looks at a breaker without its mutex, while others change it between any two instructions.
 *
 * The reader is stepped. Behind the entry lies a word that changes at every step, so that the judge is asked at every step; at one
 * of them it puts the bytes there that the writers had made by then: any state of two changes in a row, since the second writes
 * over the side that the reader may be reading. What the reader makes of it must be what it was before, between or after.
 */
#include "guards_world.h"
#include "sweep.h"

#define SECOND UINT64_C(1000000000)
#define REGION 4096
#define CLOCK (REGION - sizeof(uint64_t))
#define STATES_MAX 400
#define ENOUGH (-2) /* ends the stepping: the rest runs at full speed */

static uint8_t region[REGION] __attribute__((aligned(4096)));
static uint8_t ground[REGION], states[STATES_MAX][REGION];
static size_t states_count, runs;
static struct shmrt_breaker *breaker;

static const struct shmrt_breaker_settings settings = {
	.failure_threshold = 1, .success_threshold = 1, .half_open_max = 2, .reset_ns = 10 * SECOND, .reset_max_ns = 40 * SECOND, .growth = 2.0,
	.trial_ns = 10 * SECOND, .window = SHMRT_WINDOW_CALLS, .window_size = 30, .min_calls = 29, .failure_rate = 1.0};

static void make(void) {
	breaker = (struct shmrt_breaker *)(void *)region;
	CHECK(guard_make(region, sizeof(region), SHMRT_GUARD_BREAKER, shmrt_breaker_body_bytes(&settings), shmrt_breaker_fill, &settings) <= CLOCK);
}

/* ---- what the writers do ------------------------------------------------------------------------ */

static void set(enum shmrt_breaker_state state, uint64_t now) {
	struct shmrt_breaker_change change;
	CHECK(shmrt_breaker_set(breaker, state, now, 0, &change) == SHMRT_OK);
}
static void fail_twice(void *context) {
	struct shmrt_admission admission = {.era = shmrt_gate_era(shmrt_breaker_gate(breaker))};
	struct shmrt_breaker_change change;
	(void)context;
	for (int i = 0; i < 2; i++)
		CHECK(shmrt_breaker_settle(breaker, &admission, SHMRT_VERDICT_FAILURE, false, AT, 0, &change) == SHMRT_OK);
}
static void trip_twice(void *context) {
	(void)context;
	set(SHMRT_BREAKER_OPEN, AT + 2 * SECOND), set(SHMRT_BREAKER_OPEN, AT + 4 * SECOND);
}
static int keep_state(void *copy, size_t step, void *context) {
	(void)step, (void)context;
	CHECK(states_count < STATES_MAX);
	memcpy(states[states_count++], copy, REGION);
	return SWEEP_BEFORE;
}

/* ---- what readers do ---------------------------------------------------------------------------- */

static struct { struct shmrt_breaker_side *side; uint32_t trials; int rc; uint64_t retry; } seen;

static void look(void *context) {
	(void)context;
	shmrt_breaker_look(breaker, seen.side, &seen.trials);
}
static void ask(void *context) {
	struct shmrt_admission admission;
	struct shmrt_breaker_change change;
	(void)context;
	seen.rc = shmrt_breaker_admit(breaker, &table.control, holder_in(ALIVE), AT + 5 * SECOND, 0, &admission, &seen.retry, &change);
}
static bool look_is_right(void) {
	uint64_t failed = seen.side->failed; /* none, one or two: all the numbers say the same */
	return seen.side->state == SHMRT_BREAKER_CLOSED && failed <= 2 && seen.side->results == failed && seen.side->position == failed &&
	       seen.trials == 0;
}
static bool look_at_open_is_right(void) {
	uint64_t later = seen.side->since_ns - AT, until = open_until(seen.side);
	return seen.side->state == SHMRT_BREAKER_OPEN && later % (2 * SECOND) == 0 && later <= 4 * SECOND && until == seen.side->since_ns + 10 * SECOND &&
	       seen.side->era == 1 + later / (2 * SECOND);
}
static bool answer_is_right(void) { /* open until AT + 10, 12 or 14 s; or a writer has the mutex just now */
	return seen.rc == SHMRT_INTERRUPTED || (seen.rc == SHMRT_FULL && (seen.retry == 5 * SECOND || seen.retry == 7 * SECOND || seen.retry == 9 * SECOND));
}

static struct { size_t at, state; } meanwhile;

static int change_meanwhile(void *copy, size_t step, void *context) {
	(void)copy, (void)context;
	if (step == meanwhile.at) {
		memcpy(region, states[meanwhile.state], CLOCK);
		return ENOUGH;
	}
	++*(uint64_t *)(void *)(region + CLOCK);
	return SWEEP_BEFORE;
}

static void read_beside(const char *name, void (*write)(void *), void (*read)(void *), bool (*is_right)(void), size_t every) {
	memcpy(ground, region, REGION);
	states_count = 0;
	struct sweep_report report = sweep_run(write, NULL, region, REGION, keep_state, NULL);
	sweep_expect_clean(&report, name);
	for (meanwhile.state = 0; meanwhile.state < states_count; meanwhile.state += every) {
		report.broken = ENOUGH;
		for (meanwhile.at = 0; report.broken == ENOUGH; meanwhile.at++, runs++) {
			memcpy(region, ground, REGION);
			report = sweep_run(read, NULL, region, REGION, change_meanwhile, NULL);
			CHECK(report.broken == ENOUGH || report.broken == 0);
			if (report.skipped)
				return; /* nothing is stepped here */
			if (!is_right()) {
				fprintf(stderr, "%s: state %zu of the writers at step %zu of the reader\n", name, meanwhile.state, meanwhile.at);
				exit(1);
			}
		}
	}
}

/* A carry that asks for a fresh breaker, and somebody changes it just before the mutex is its own. */
static int change_before_the_mutex(void *copy, size_t step, void *context) {
	(void)step, (void)context;
	if (!mutex_is_held(&((struct shmrt_breaker *)copy)->guard.mutex))
		return SWEEP_BEFORE;
	struct shmrt_breaker_side *side = side_now(breaker);
	side->era = 1, side->state = SHMRT_BREAKER_FORCED_OPEN;
	atomic_store_explicit(&breaker->gate, UINT64_C(1) << 32 | 1 << 8 | SHMRT_BREAKER_FORCED_OPEN, memory_order_relaxed); /* as a commit does */
	return ENOUGH;
}
static void carry(void *context) { shmrt_breaker_carry(breaker, context, true); }

int main(void) {
	seen.side = calloc(1, sizeof(*seen.side));
	CHECK(seen.side != NULL);
	world_begin();
	if (SWEEP_SANITIZED || getenv("SWEEP_PTRACE") != NULL) {
		puts("SKIPPED: the judge must run in the process of the reader, one instruction at a time");
		return 0;
	}
#if !defined(__x86_64__)
	puts("SKIPPED: there is no trap flag here");
	return 0;
#endif
	make();
	read_beside("a look beside results", fail_twice, look, look_is_right, 1);
	make(), set(SHMRT_BREAKER_OPEN, AT);
	read_beside("a look beside trips", trip_twice, look, look_at_open_is_right, 1);
	make(), set(SHMRT_BREAKER_OPEN, AT);
	read_beside("a call beside trips", trip_twice, ask, answer_is_right, 3);

	static struct shmrt_breaker_side from = {.state = SHMRT_BREAKER_OPEN, .since_ns = AT, .open_until_ns = AT + 10 * SECOND};
	make();
	struct sweep_report report = sweep_run(carry, &from, region, REGION, change_before_the_mutex, NULL);
	CHECK(report.broken == ENOUGH);
	CHECK(shmrt_gate_state(shmrt_breaker_gate(breaker)) == SHMRT_BREAKER_FORCED_OPEN && !mutex_is_held(&breaker->guard.mutex));
	printf("%zu looks beside writers\n", runs);
	return 0;
}
