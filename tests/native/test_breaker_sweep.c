/* test_breaker_sweep.c -- every operation of a breaker dies after every instruction; the others go on.
 *
 * What a death leaves is compared with two breakers that nobody died over: one on which the operation was not done, and one on
 * which it was. The copy must stand where one of them stands, its totals must equal a recount of its window, and whatever the
 * others do next must have the same outcome there as here. In the end it must close: no trial and no state is stuck. Some of
 * the copies become the ground of a second death.
 */
#include "guards_world.h"
#include "sweep.h"

#define SECOND UINT64_C(1000000000)
#define REGION 8192
#define SAMPLES 24 /* the short tier keeps three of them */

typedef uint8_t bytes_of[REGION];

static bytes_of region __attribute__((aligned(4096)));
static bytes_of before __attribute__((aligned(128))), after __attribute__((aligned(128))), model __attribute__((aligned(128)));
static uint64_t entry_bytes;
static struct shmrt_breaker_side carried_open = {.state = SHMRT_BREAKER_OPEN, .era = 12, .attempt = 2, .since_ns = AT, .results = 5, .failed = 7,
						.open_until_ns = AT + 30 * SECOND};
static struct shmrt_breaker_side carried_closed = {.state = SHMRT_BREAKER_CLOSED, .era = 12, .row = 1, .since_ns = AT, .results = 3, .failed = 1,
						  .slow = 1, .bucket_calls = 2, .bucket_slow = 1, .position = AT / SECOND};

/* ---- what is done ------------------------------------------------------------------------------- */

enum kind { ADMIT, SETTLE, SET, CARRY, CARRY_CLOSED };

struct operation {
	const char *name;
	enum kind kind;
	uint32_t slot;
	enum shmrt_verdict outcome;
	bool slow;
	enum shmrt_breaker_state state;
	uint64_t now;
	struct shmrt_admission admission; /* SETTLE */
};
struct outcome {
	int rc;
	struct shmrt_admission admission;
	uint64_t retry;
	struct shmrt_breaker_change change;
};

static struct outcome act(struct shmrt_breaker *breaker, const struct operation *what) {
	struct outcome out = {0};
	switch (what->kind) {
	case ADMIT:
		out.rc = shmrt_breaker_admit(breaker, &table.control, holder_in(what->slot), what->now, 0, &out.admission, &out.retry, &out.change);
		break;
	case SETTLE:
		out.rc = shmrt_breaker_settle(breaker, &what->admission, what->outcome, what->slow, what->now, 0, &out.change);
		break;
	case SET:
		out.rc = shmrt_breaker_set(breaker, what->state, what->now, 0, &out.change);
		break;
	default:
		shmrt_breaker_carry(breaker, what->kind == CARRY ? &carried_open : &carried_closed, false);
	}
	return out;
}

/* ---- what a death leaves ------------------------------------------------------------------------ */

struct scenario {
	char name[120];
	struct operation operation;
	bytes_of samples[SAMPLES];
	unsigned sample_count, seen;
};

#define BROKEN(reason) (fprintf(stderr, "%s: %s (step %zu)\n", scenario->name, reason, step), SWEEP_BROKEN)

static struct shmrt_breaker *breaker_in(uint8_t *bytes) { return (struct shmrt_breaker *)(void *)bytes; }

/* The same gate, the same side behind it, the same results in the window. */
static bool stand_alike(struct shmrt_breaker *one, struct shmrt_breaker *other) {
	const struct shmrt_breaker_side *a = side_now(one), *b = side_now(other);
	if (shmrt_breaker_gate(one) != shmrt_breaker_gate(other) || memcmp(a, b, sizeof(*a)) != 0)
		return false;
	return a->state != SHMRT_BREAKER_HALF_OPEN ||
	       memcmp(a->trials, b->trials, one->settings.half_open_max * sizeof(struct shmrt_trial)) == 0;
}

static bool is_whole(struct shmrt_breaker *breaker) {
	const struct shmrt_breaker_side *side = side_now(breaker);
	uint64_t gate = shmrt_breaker_gate(breaker);
	const struct shmrt_breaker_settings *s = &breaker->settings;
	bool watched = side->state == SHMRT_BREAKER_HALF_OPEN ||
		       (side->state == SHMRT_BREAKER_CLOSED && (side->row != 0 || s->window != SHMRT_WINDOW_NONE || s->slow_ns != 0));
	return shmrt_breaker_is_sound(breaker) && shmrt_gate_state(gate) == side->state && shmrt_gate_era(gate) == side->era &&
	       shmrt_gate_is_watched(gate) == watched && window_adds_up(s, side, window_now(breaker));
}

/* What the others do next, here and on the model: the same comes out. */
static const char *go_on(struct shmrt_breaker *left, struct shmrt_breaker *right, uint64_t now) {
	struct shmrt_admission held[4];
	unsigned count = 0;
	for (unsigned i = 0; i < 14; i++) {
		struct operation next = {.kind = ADMIT, .slot = i % 2 ? ALIVE : OTHER, .now = now};
		if (i % 3 == 2 && count > 0)
			next = (struct operation){.kind = SETTLE, .admission = held[--count], .now = now, .slow = i % 2 == 0,
						  .outcome = i % 4 == 1 ? SHMRT_VERDICT_FAILURE : SHMRT_VERDICT_SUCCESS};
		struct outcome a = act(left, &next), b = act(right, &next);
		if (a.rc == SHMRT_INTERRUPTED)
			return "the mutex is not free";
		if (memcmp(&a, &b, sizeof(a)) != 0 || !stand_alike(left, right))
			return "it goes on in another way than if nobody had died";
		if (!is_whole(left))
			return "it is not whole later on";
		if (next.kind == ADMIT && a.rc == SHMRT_OK && count < 4)
			held[count++] = a.admission;
		now += i == 7 ? 2 * SECOND : SECOND / 2; /* several buckets are passed at once */
	}
	return NULL;
}

/* Good calls close it, whatever it was. */
static const char *close_it(struct shmrt_breaker *left, uint64_t now) {
	enum shmrt_breaker_state state = shmrt_gate_state(shmrt_breaker_gate(left));
	if (state == SHMRT_BREAKER_FORCED_OPEN || state == SHMRT_BREAKER_DISABLED) {
		struct operation reset = {.kind = SET, .state = SHMRT_BREAKER_CLOSED, .now = now};
		(void)act(left, &reset);
	}
	for (unsigned i = 0; i < 12; i++) {
		struct operation try = {.kind = ADMIT, .slot = ALIVE, .now = now};
		struct outcome out = act(left, &try);
		if (out.rc == SHMRT_OK) {
			struct operation good = {.kind = SETTLE, .admission = out.admission, .outcome = SHMRT_VERDICT_SUCCESS, .now = now};
			(void)act(left, &good);
		}
		if (shmrt_gate_state(shmrt_breaker_gate(left)) == SHMRT_BREAKER_CLOSED)
			return is_whole(left) ? NULL : "it is not whole when it is closed";
		now += 100 * SECOND; /* longer than any wait and any trial */
	}
	return "it never closes: something is stuck";
}

static int judge(void *copy, size_t step, void *context) {
	static bytes_of other __attribute__((aligned(128)));
	struct scenario *scenario = context;
	struct shmrt_breaker *left = copy;
	uint64_t now = scenario->operation.now;
	mutex_of_the_dead(&left->guard.mutex);
	if (scenario->seen++ % (sweep_is_long() ? 2 : 5) == (sweep_is_long() ? 1 : 3) && scenario->sample_count < (sweep_is_long() ? SAMPLES : 3))
		memcpy(scenario->samples[scenario->sample_count++], copy, entry_bytes);
	if (!is_whole(left))
		return BROKEN("it is not whole");
	bool is_before = stand_alike(left, breaker_in(before)), is_after = stand_alike(left, breaker_in(after));
	if (!is_before && !is_after)
		return BROKEN("the change is half made");
	for (int i = 0; i < SHMRT_GUARD_COUNTERS; i++)
		if (counter_of(&left->guard, i) < counter_of(&breaker_in(before)->guard, i) ||
		    counter_of(&left->guard, i) > counter_of(&breaker_in(after)->guard, i))
			return BROKEN("a count went astray");
	world_let_die(true);
	memcpy(other, copy, entry_bytes);
	memcpy(model, is_after ? after : before, entry_bytes);
	const char *wrong = go_on(left, breaker_in(model), now);
	if (wrong == NULL)
		wrong = close_it(left, now);
	if (wrong == NULL)
		wrong = close_it(breaker_in(other), now);
	world_let_die(false);
	if (wrong != NULL)
		return BROKEN(wrong);
	return is_after ? SWEEP_AFTER : SWEEP_BEFORE;
}

static struct outcome outcome;
static void operate(void *context) { outcome = act(breaker_in(region), context); }

/* The region is as the operation finds it. */
static void sweep_once(struct scenario *scenario) {
	memcpy(before, region, entry_bytes);
	memcpy(after, region, entry_bytes);
	struct outcome expected = act(breaker_in(after), &scenario->operation);
	bool changes = shmrt_breaker_gate(breaker_in(before)) != shmrt_breaker_gate(breaker_in(after));
	scenario->seen = scenario->sample_count = 0;
	struct sweep_report report = sweep_run(operate, &scenario->operation, region, entry_bytes, judge, scenario);
	if (changes) /* stood alike with both at first, if it changes nothing */
		sweep_expect(&report, scenario->name);
	else
		sweep_expect_clean(&report, scenario->name);
	CHECK(memcmp(&expected, &outcome, sizeof(outcome)) == 0);
	CHECK(!mutex_is_held(&breaker_in(region)->guard.mutex));
}

/* And over what is left, a second one dies: a call that fails, then a call that comes. */
static void sweep(struct scenario *scenario) {
	static struct scenario second;
	bytes_of *samples = scenario->samples;
	sweep_once(scenario);
	for (unsigned i = 0; i < scenario->sample_count; i += sweep_is_long() ? 1 : 2) {
		memset(&second, 0, sizeof(second));
		snprintf(second.name, sizeof(second.name), "after %.80s", scenario->name);
		memcpy(region, samples[i], entry_bytes);
		second.operation = (struct operation){.kind = ADMIT, .slot = DYING, .now = scenario->operation.now + 40 * SECOND};
		if (shmrt_gate_state(shmrt_breaker_gate(breaker_in(region))) == SHMRT_BREAKER_CLOSED) {
			second.operation.kind = SETTLE;
			second.operation.outcome = SHMRT_VERDICT_FAILURE;
			second.operation.admission.era = shmrt_gate_era(shmrt_breaker_gate(breaker_in(region)));
		}
		sweep_once(&second);
	}
}

/* ---- where it stands when the operation comes --------------------------------------------------- */

enum ground { FRESH, USED, LAST_STRAW, OPENED, OPEN_IS_OVER, HALF_FREE, HALF_TRIED, HALF_LAST, FORCED, DISABLED, GROUNDS };
static const char *const ground_names[] = {"fresh", "used", "one failure from open", "open", "open too long", "half-open", "tried",
					   "tried all but one", "forced open", "disabled"};

static struct shmrt_breaker_settings settings_of(unsigned window) {
	struct shmrt_breaker_settings s = {.failure_threshold = 2, .success_threshold = 2, .half_open_max = 2, .reset_ns = 10 * SECOND,
					   .reset_max_ns = 30 * SECOND, .trial_ns = 20 * SECOND, .growth = 2.0, .window = window};
	if (window != SHMRT_WINDOW_NONE)
		s.window_size = 4, s.min_calls = 3, s.bucket_ns = SECOND, s.slow_ns = SECOND, s.failure_rate = 0.5, s.slow_rate = 0.75;
	return s;
}

static struct shmrt_admission call_from(uint32_t slot, uint64_t now) {
	struct operation admit = {.kind = ADMIT, .slot = slot, .now = now};
	struct outcome out = act(breaker_in(region), &admit);
	CHECK(out.rc == SHMRT_OK);
	return out.admission;
}
static void result(struct shmrt_admission admission, enum shmrt_verdict value, uint64_t now) {
	struct operation settle = {.kind = SETTLE, .admission = admission, .outcome = value, .now = now};
	CHECK(act(breaker_in(region), &settle).rc == SHMRT_OK);
}
static void set(enum shmrt_breaker_state state, uint64_t now) {
	struct operation by_hand = {.kind = SET, .state = state, .now = now};
	CHECK(act(breaker_in(region), &by_hand).rc == SHMRT_OK);
}

/* Numbers shortly before their ends: the next change goes past them. */
static void wind_up(struct shmrt_admission *mine) {
	struct shmrt_breaker *breaker = breaker_in(region);
	struct shmrt_breaker_side *side = side_now(breaker);
	uint32_t more = UINT32_MAX - side->era;
	struct shmrt_window_bucket *ring = window_now(breaker);
	for (uint32_t i = 0; breaker->settings.window == SHMRT_WINDOW_TIME && i <= breaker->settings.window_size; i++)
		ring[i].era += more; /* a place that was never used has no calls */
	side->era += more, mine->era += more;
	side->tickets = UINT32_MAX;
	uint64_t gate = shmrt_breaker_gate(breaker) & UINT64_C(0xFF);
	gate |= UINT64_C(0xFFFFFF) << 8 | (uint64_t)side->era << 32;
	atomic_store_explicit(&breaker->gate, gate, memory_order_relaxed); /* nobody else is here */
	CHECK(is_whole(breaker));
}

/* Builds the ground; *mine is what the process has that will die. The time is AT + 20 s in the end. */
static void prepare(unsigned window, enum ground ground, bool at_the_end, struct shmrt_admission *mine) {
	struct shmrt_breaker_settings s = settings_of(window);
	uint64_t now = AT + 20 * SECOND, early = now - 3 * SECOND - SECOND / 2;
	entry_bytes = guard_make(region, sizeof(region), SHMRT_GUARD_BREAKER, shmrt_breaker_body_bytes(&s), shmrt_breaker_fill, &s);
	side_now(breaker_in(region))->since_ns = AT;
	*mine = (struct shmrt_admission){0};
	if (ground == USED || ground == LAST_STRAW) {
		bool old[] = {true, false, false, false, true, false, false}; /* failures leave the window later */
		unsigned count = window == SHMRT_WINDOW_NONE ? 1 : 7;
		for (unsigned i = 0; i < count; i++)
			result(call_from(ALIVE, early + i * SECOND / 2), old[i] ? SHMRT_VERDICT_FAILURE : SHMRT_VERDICT_SUCCESS, early + i * SECOND / 2);
		if (ground == USED && window == SHMRT_WINDOW_NONE)
			result(call_from(ALIVE, early), SHMRT_VERDICT_SUCCESS, early);
		if (ground == LAST_STRAW && window != SHMRT_WINDOW_NONE) {
			set(SHMRT_BREAKER_CLOSED, early);
			result(call_from(ALIVE, early), SHMRT_VERDICT_FAILURE, early), result(call_from(ALIVE, early), SHMRT_VERDICT_SUCCESS, early);
		}
	}
	if (ground == OPENED || ground == OPEN_IS_OVER)
		set(SHMRT_BREAKER_OPEN, ground == OPENED ? now - SECOND : now - 11 * SECOND);
	if (ground == HALF_FREE || ground == HALF_TRIED || ground == HALF_LAST)
		set(SHMRT_BREAKER_HALF_OPEN, early);
	if (ground == HALF_LAST && window == SHMRT_WINDOW_NONE)
		result(call_from(ALIVE, early), SHMRT_VERDICT_SUCCESS, early);
	if (ground == HALF_LAST && window != SHMRT_WINDOW_NONE)
		result(call_from(ALIVE, early), SHMRT_VERDICT_FAILURE, early);
	if (ground == FORCED)
		set(SHMRT_BREAKER_FORCED_OPEN, early);
	if (ground == DISABLED)
		set(SHMRT_BREAKER_DISABLED, early);
	if (at_the_end)
		wind_up(mine);
	if (ground != OPENED && ground != OPEN_IS_OVER && ground != FORCED && ground != HALF_FREE)
		*mine = call_from(DYING, early);
	if (ground == HALF_FREE) /* a trial that was lost meanwhile */
		*mine = (struct shmrt_admission){.era = side_now(breaker_in(region))->era, .trial = 1, .ticket = 99};
	if (ground == HALF_TRIED) /* the other place is a dead process's */
		(void)call_from(DEAD, early);
}

static void sweep_all(unsigned window, enum ground ground, bool at_the_end) {
	static struct scenario scenario;
	static const char *const windows[] = {"in a row", "calls", "time"};
	static const struct operation operations[] = {
		{.name = "admit", .kind = ADMIT, .slot = DYING},
		{.name = "success", .kind = SETTLE, .outcome = SHMRT_VERDICT_SUCCESS},
		{.name = "slow success", .kind = SETTLE, .outcome = SHMRT_VERDICT_SUCCESS, .slow = true},
		{.name = "failure", .kind = SETTLE, .outcome = SHMRT_VERDICT_FAILURE},
		{.name = "failure in the same bucket", .kind = SETTLE, .outcome = SHMRT_VERDICT_FAILURE, .now = 1},
		{.name = "failure much later", .kind = SETTLE, .outcome = SHMRT_VERDICT_FAILURE, .now = 9 * SECOND},
		{.name = "ignored", .kind = SETTLE, .outcome = SHMRT_VERDICT_IGNORED},
		{.name = "close", .kind = SET, .state = SHMRT_BREAKER_CLOSED},
		{.name = "trip", .kind = SET, .state = SHMRT_BREAKER_OPEN},
		{.name = "half-open", .kind = SET, .state = SHMRT_BREAKER_HALF_OPEN},
		{.name = "force open", .kind = SET, .state = SHMRT_BREAKER_FORCED_OPEN},
		{.name = "disable", .kind = SET, .state = SHMRT_BREAKER_DISABLED},
		{.name = "carry", .kind = CARRY},
		{.name = "carry of a closed one", .kind = CARRY_CLOSED},
	};
	for (unsigned i = 0; i < sizeof(operations) / sizeof(operations[0]); i++) {
		if (window != SHMRT_WINDOW_TIME && operations[i].now != 0)
			continue;
		struct shmrt_admission mine;
		prepare(window, ground, at_the_end, &mine);
		memset(&scenario, 0, sizeof(scenario));
		scenario.operation = operations[i];
		scenario.operation.admission = mine;
		uint64_t extra = scenario.operation.now;
		scenario.operation.now = AT + 20 * SECOND + extra - (extra == 1 ? SECOND / 2 : 0);
		snprintf(scenario.name, sizeof(scenario.name), "%s of a breaker by %s that is %s%s", operations[i].name, windows[window],
			 ground_names[ground], at_the_end ? ", numbers at their ends" : "");
		sweep(&scenario);
	}
}

int main(void) {
	world_begin();
	for (unsigned window = SHMRT_WINDOW_TIME + 1; window-- > SHMRT_WINDOW_NONE;) /* those with more to go wrong first */
		for (enum ground ground = FRESH; ground < GROUNDS; ground++) {
			sweep_all(window, ground, false);
			if (ground == LAST_STRAW || ground == OPEN_IS_OVER || ground == HALF_LAST)
				sweep_all(window, ground, true);
		}
	printf("%zu states\n", sweep_total_states());
	return 0;
}
