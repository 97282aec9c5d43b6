/* test_breaker.c -- what a breaker decides: every state and event, and windows beside a list of all results. */
#include "guards_world.h"

#include <math.h>

#define SECOND UINT64_C(1000000000)
#define RESULTS 4000

static struct shmrt_holder me = {.owner = 0x500002, .slot = ALIVE};
static uint64_t memory[4096];
static struct shmrt_breaker *breaker;
static struct shmrt_breaker_settings settings;
static struct shmrt_admission admission;
static uint64_t retry;
static struct shmrt_breaker_change change;

static void make(struct shmrt_breaker_settings wanted) {
	settings = wanted;
	breaker = (struct shmrt_breaker *)(void *)memory;
	guard_make(memory, sizeof(memory), SHMRT_GUARD_BREAKER, shmrt_breaker_body_bytes(&settings), shmrt_breaker_fill, &settings);
	CHECK(shmrt_breaker_is_sound(breaker));
}

/* Three failures in a row open it for 10 s, then twice as long, at most 35 s. */
static struct shmrt_breaker_settings in_a_row(void) {
	return (struct shmrt_breaker_settings){.failure_threshold = 3, .success_threshold = 2, .half_open_max = 2, .reset_ns = 10 * SECOND,
					       .reset_max_ns = 35 * SECOND, .trial_ns = 5 * SECOND, .growth = 2.0};
}
static struct shmrt_breaker_settings by_rate(uint32_t window, uint32_t size, uint32_t least) {
	struct shmrt_breaker_settings s = in_a_row();
	s.window = window, s.window_size = size, s.min_calls = least, s.bucket_ns = SECOND, s.slow_ns = SECOND;
	s.failure_rate = 0.5, s.slow_rate = 0.75;
	return s;
}

static int admit(uint64_t now) { return shmrt_breaker_admit(breaker, &table.control, me, now, 0, &admission, &retry, &change); }
static void settle(enum shmrt_verdict outcome, bool slow, uint64_t now) {
	CHECK(shmrt_breaker_settle(breaker, &admission, outcome, slow, now, 0, &change) == SHMRT_OK);
}
static void call(enum shmrt_verdict outcome, uint64_t now) {
	CHECK(admit(now) == SHMRT_OK);
	settle(outcome, false, now);
}
static enum shmrt_breaker_state state(void) {
	CHECK(shmrt_gate_state(shmrt_breaker_gate(breaker)) == side_now(breaker)->state);
	CHECK(shmrt_gate_era(shmrt_breaker_gate(breaker)) == side_now(breaker)->era);
	return shmrt_gate_state(shmrt_breaker_gate(breaker));
}
static uint64_t counted(int counter) { return counter_of(&breaker->guard, counter); }
static void open_it(uint64_t now) {
	while (state() == SHMRT_BREAKER_CLOSED)
		call(SHMRT_VERDICT_FAILURE, now);
	CHECK(state() == SHMRT_BREAKER_OPEN);
}

static void test_settings(void) {
	struct shmrt_breaker_settings s = in_a_row();
	CHECK(shmrt_breaker_settings_are_sound(&s) && shmrt_breaker_window_bytes(&s) == 0);
	CHECK(shmrt_breaker_wait_ns(&s, 0) == 10 * SECOND && shmrt_breaker_wait_ns(&s, 1) == 10 * SECOND);
	CHECK(shmrt_breaker_wait_ns(&s, 2) == 20 * SECOND && shmrt_breaker_wait_ns(&s, 3) == 35 * SECOND);
	CHECK(shmrt_breaker_wait_ns(&s, UINT32_MAX) == 35 * SECOND);
	s.growth = 1.0;
	CHECK(shmrt_breaker_wait_ns(&s, UINT32_MAX) == 10 * SECOND); /* and not after 2^32 rounds */
	s.reset_ns = s.reset_max_ns = UINT64_MAX;
	CHECK(shmrt_breaker_wait_ns(&s, 1) == UINT64_MAX);
	s = by_rate(SHMRT_WINDOW_CALLS, SHMRT_WINDOW_CALLS_MAX, 1);
	CHECK(shmrt_breaker_settings_are_sound(&s) && shmrt_breaker_window_bytes(&s) == SHMRT_WINDOW_CALLS_MAX + 8);
	s.window_size++;
	CHECK(!shmrt_breaker_settings_are_sound(&s));
	s = by_rate(SHMRT_WINDOW_TIME, SHMRT_WINDOW_BUCKETS_MAX, 1);
	CHECK(shmrt_breaker_settings_are_sound(&s));
	s.window_size++;
	CHECK(!shmrt_breaker_settings_are_sound(&s));
	s.window_size = 0;
	CHECK(!shmrt_breaker_settings_are_sound(&s));
	s = by_rate(SHMRT_WINDOW_TIME, 1, 1), s.bucket_ns = 0;
	CHECK(!shmrt_breaker_settings_are_sound(&s));
	s = in_a_row(), s.half_open_max = 0;
	CHECK(!shmrt_breaker_settings_are_sound(&s));
	s.half_open_max = SHMRT_TRIALS_MAX + 1;
	CHECK(!shmrt_breaker_settings_are_sound(&s));
	s = in_a_row(), s.window = 3;
	CHECK(!shmrt_breaker_settings_are_sound(&s));
	s = in_a_row(), s.growth = 0.5;
	CHECK(!shmrt_breaker_settings_are_sound(&s));
	s.growth = (double)NAN;
	CHECK(!shmrt_breaker_settings_are_sound(&s));
	make(in_a_row());
	breaker->window_offset += 8;
	CHECK(!shmrt_breaker_is_sound(breaker));
}

static void test_in_a_row(void) {
	uint64_t left, now = AT;
	make(in_a_row());
	call(SHMRT_VERDICT_FAILURE, now), call(SHMRT_VERDICT_FAILURE, now);
	CHECK(shmrt_gate_is_watched(shmrt_breaker_gate(breaker)));
	call(SHMRT_VERDICT_IGNORED, now); /* says nothing */
	CHECK(side_now(breaker)->row == 2);
	call(SHMRT_VERDICT_SUCCESS, now);
	CHECK(side_now(breaker)->row == 0 && !shmrt_gate_is_watched(shmrt_breaker_gate(breaker)));
	uint64_t gate = shmrt_breaker_gate(breaker);
	call(SHMRT_VERDICT_SUCCESS, now); /* costs no change */
	CHECK(shmrt_breaker_gate(breaker) == gate && counted(SHMRT_BREAKER_SUCCESSES) == 2);
	struct shmrt_admission early;
	CHECK(admit(now) == SHMRT_OK);
	early = admission;
	call(SHMRT_VERDICT_FAILURE, now), call(SHMRT_VERDICT_FAILURE, now);
	CHECK(state() == SHMRT_BREAKER_CLOSED);
	call(SHMRT_VERDICT_FAILURE, now);
	CHECK(state() == SHMRT_BREAKER_OPEN && change.from == SHMRT_BREAKER_CLOSED && change.to == SHMRT_BREAKER_OPEN);
	CHECK(counted(SHMRT_BREAKER_OPENED) == 1);
	admission = early; /* of another era: only counted */
	settle(SHMRT_VERDICT_SUCCESS, false, now);
	CHECK(state() == SHMRT_BREAKER_OPEN && counted(SHMRT_BREAKER_LATE) == 1);

	CHECK(admit(now + 3 * SECOND) == SHMRT_FULL && retry == 7 * SECOND && counted(SHMRT_BREAKER_REFUSED) == 1);
	CHECK(shmrt_breaker_state_at(breaker, now + 10 * SECOND, &left) == SHMRT_BREAKER_OPEN && left == 0);
	CHECK(shmrt_breaker_state_at(breaker, now + 10 * SECOND + 1, &left) == SHMRT_BREAKER_HALF_OPEN);
	CHECK(admit(now + 10 * SECOND) == SHMRT_FULL && state() == SHMRT_BREAKER_OPEN); /* its time is not over yet */
	now += 10 * SECOND + 1;
	CHECK(admit(now) == SHMRT_OK && admission.trial != 0 && state() == SHMRT_BREAKER_HALF_OPEN);
	struct shmrt_admission first = admission;
	CHECK(admit(now) == SHMRT_OK && admission.trial != first.trial && admission.ticket != first.ticket);
	CHECK(admit(now) == SHMRT_FULL && retry == 5 * SECOND); /* no more than two at once; a trial ends then */
	uint32_t trials;
	struct shmrt_breaker_side side;
	shmrt_breaker_look(breaker, &side, &trials);
	CHECK(trials == 2 && side.state == SHMRT_BREAKER_HALF_OPEN && counted(SHMRT_BREAKER_TRIALS) == 2);
	settle(SHMRT_VERDICT_IGNORED, false, now);
	settle(SHMRT_VERDICT_SUCCESS, false, now); /* it has no trial any more */
	CHECK(counted(SHMRT_BREAKER_LATE) == 2 && side_now(breaker)->row == 0);
	admission = first;
	settle(SHMRT_VERDICT_SUCCESS, false, now);
	CHECK(state() == SHMRT_BREAKER_HALF_OPEN && side_now(breaker)->row == 1);
	call(SHMRT_VERDICT_SUCCESS, now);
	CHECK(state() == SHMRT_BREAKER_CLOSED && counted(SHMRT_BREAKER_CLOSED_AGAIN) == 1 && side_now(breaker)->attempt == 0);
}

/* What shmrt_breaker_admit and _settle see without the mutex is decided under it, too. */
static void test_what_is_decided_twice(void) {
	struct shmrt_breaker_side *side = (struct shmrt_breaker_side *)(void *)memory;
	settings = in_a_row();
	memset(side, 0, shmrt_breaker_side_bytes(&settings));
	side->row = 2;
	CHECK(shmrt_breaker_decide_admit(&settings, side, me, AT, &admission, &retry) == SHMRT_OK && retry == 0 && admission.trial == 0);
	CHECK(shmrt_breaker_decide_settle(&settings, side, NULL, &admission, SHMRT_VERDICT_IGNORED, true, AT) && side->row == 2);
	CHECK(shmrt_breaker_decide_settle(&settings, side, NULL, &admission, SHMRT_VERDICT_SUCCESS, true, AT)); /* slow: as good as failed */
	CHECK(side->state == SHMRT_BREAKER_OPEN && side->era == 1 && open_until(side) == AT + 10 * SECOND);
	CHECK(!shmrt_breaker_decide_settle(&settings, side, NULL, &admission, SHMRT_VERDICT_FAILURE, false, AT));
	CHECK(shmrt_breaker_decide_admit(&settings, side, me, AT + 10 * SECOND, &admission, &retry) == SHMRT_FULL && retry == 0);
	CHECK(side->state == SHMRT_BREAKER_OPEN);
	CHECK(shmrt_breaker_decide_admit(&settings, side, me, AT + 10 * SECOND + 1, &admission, &retry) == SHMRT_OK);
	CHECK(side->state == SHMRT_BREAKER_HALF_OPEN && side->trials[admission.trial - 1].until_ns == AT + 15 * SECOND + 1);
}

static void test_waits_grow(void) {
	uint64_t now = AT, waits[] = {10, 20, 35, 35};
	make(in_a_row());
	open_it(now);
	for (int i = 0; i < 4; i++) {
		CHECK(open_until(side_now(breaker)) == now + waits[i] * SECOND);
		now += waits[i] * SECOND + 1;
		call(SHMRT_VERDICT_FAILURE, now);
		CHECK(state() == SHMRT_BREAKER_OPEN);
	}
	CHECK(shmrt_breaker_set(breaker, SHMRT_BREAKER_OPEN, now + 1, 0, &change) == SHMRT_OK); /* again by hand: does not grow */
	CHECK(side_now(breaker)->attempt == 5 && open_until(side_now(breaker)) == now + 1 + 35 * SECOND);
	CHECK(shmrt_breaker_set(breaker, SHMRT_BREAKER_CLOSED, now, 0, &change) == SHMRT_OK);
	open_it(now);
	CHECK(open_until(side_now(breaker)) == now + 10 * SECOND); /* closed in between: from the start */
	make(in_a_row());
	open_it(UINT64_MAX - SECOND);
	CHECK(open_until(side_now(breaker)) == UINT64_MAX);
}

/* Every state by hand, from every state. */
static void test_by_hand(void) {
	for (int from = 0; from <= SHMRT_BREAKER_DISABLED; from++)
		for (int to = 0; to <= SHMRT_BREAKER_DISABLED; to++) {
			make(in_a_row());
			CHECK(shmrt_breaker_set(breaker, (enum shmrt_breaker_state)from, AT, 0, &change) == SHMRT_OK);
			CHECK(admit(AT) == (from == SHMRT_BREAKER_OPEN || from == SHMRT_BREAKER_FORCED_OPEN ? SHMRT_FULL : SHMRT_OK));
			CHECK(retry == (from == SHMRT_BREAKER_OPEN ? 10 * SECOND : from == SHMRT_BREAKER_FORCED_OPEN ? SHMRT_FOREVER : 0));
			CHECK((admission.trial != 0) == (from == SHMRT_BREAKER_HALF_OPEN));
			struct shmrt_admission before = admission;
			CHECK(shmrt_breaker_set(breaker, (enum shmrt_breaker_state)to, AT, 0, &change) == SHMRT_OK);
			CHECK((int)change.from == from && (int)change.to == to && (int)state() == to);
			admission = before;
			for (int i = 0; i < 5; i++) /* of the era before, so nothing happens */
				settle(SHMRT_VERDICT_FAILURE, false, AT);
			CHECK((int)state() == to && counted(SHMRT_BREAKER_LATE) == 5);
			if (to == SHMRT_BREAKER_DISABLED) {
				for (int i = 0; i < 5; i++)
					call(SHMRT_VERDICT_FAILURE, AT);
				CHECK(state() == SHMRT_BREAKER_DISABLED && counted(SHMRT_BREAKER_FAILURES) == 10);
			}
		}
}

static void test_lost_trials(void) {
	struct shmrt_holder dead = holder_in(DEAD);
	uint64_t now = AT;
	make(in_a_row());
	open_it(now);
	now += 10 * SECOND + 1;
	CHECK(shmrt_breaker_admit(breaker, &table.control, dead, now, 0, &admission, &retry, &change) == SHMRT_OK);
	CHECK(admit(now) == SHMRT_FULL && retry == 20 * SECOND); /* its holder is gone: a failed trial */
	CHECK(state() == SHMRT_BREAKER_OPEN && counted(SHMRT_BREAKER_LOST) == 1 && counted(SHMRT_BREAKER_OPENED) == 2);
	now += 20 * SECOND + 1;
	CHECK(admit(now) == SHMRT_OK);
	struct shmrt_admission slow = admission;
	CHECK(admit(now + 5 * SECOND) == SHMRT_OK && state() == SHMRT_BREAKER_HALF_OPEN); /* in time, to the last ns */
	CHECK(admit(now + 5 * SECOND + 1) == SHMRT_FULL && state() == SHMRT_BREAKER_OPEN && counted(SHMRT_BREAKER_LOST) == 2);
	admission = slow;
	settle(SHMRT_VERDICT_SUCCESS, false, now + 6 * SECOND);
	CHECK(state() == SHMRT_BREAKER_OPEN && counted(SHMRT_BREAKER_LATE) == 1);
	/* A place that another trial has by now: the ticket tells. */
	make(in_a_row());
	CHECK(shmrt_breaker_set(breaker, SHMRT_BREAKER_HALF_OPEN, AT, 0, &change) == SHMRT_OK);
	side_now(breaker)->tickets = UINT32_MAX - 1;
	CHECK(admit(AT) == SHMRT_OK && admission.ticket == UINT32_MAX);
	struct shmrt_admission old = admission;
	settle(SHMRT_VERDICT_IGNORED, false, AT);
	CHECK(admit(AT) == SHMRT_OK && admission.trial == old.trial && admission.ticket == 0);
	struct shmrt_admission young = admission;
	admission = old;
	settle(SHMRT_VERDICT_FAILURE, false, AT);
	CHECK(state() == SHMRT_BREAKER_HALF_OPEN && counted(SHMRT_BREAKER_LATE) == 1);
	admission = young;
	settle(SHMRT_VERDICT_FAILURE, false, AT);
	CHECK(state() == SHMRT_BREAKER_OPEN);
}

/* With a window the verdict comes after as many results as it takes, and by the rate. */
static void test_half_open_by_rate(void) {
	struct shmrt_breaker_settings s = by_rate(SHMRT_WINDOW_CALLS, 10, 5);
	s.half_open_max = 4, s.success_threshold = 1; /* four results: min_calls, but no more than there are trials at once */
	for (unsigned bad = 0; bad <= 4; bad++) {
		struct shmrt_admission all[4];
		make(s);
		CHECK(shmrt_breaker_set(breaker, SHMRT_BREAKER_HALF_OPEN, AT, 0, &change) == SHMRT_OK);
		for (int i = 0; i < 4; i++) {
			CHECK(admit(AT) == SHMRT_OK);
			all[i] = admission;
		}
		CHECK(admit(AT) == SHMRT_FULL);
		for (unsigned i = 0; i < 4; i++) {
			CHECK(state() == SHMRT_BREAKER_HALF_OPEN);
			admission = all[i];
			settle(i < bad ? SHMRT_VERDICT_FAILURE : SHMRT_VERDICT_SUCCESS, false, AT);
			CHECK(i == 3 || admit(AT) == SHMRT_FULL); /* exactly four are tried, however they come back */
		}
		CHECK(state() == (bad >= 2 ? SHMRT_BREAKER_OPEN : SHMRT_BREAKER_CLOSED));
	}
	make(s);
	CHECK(shmrt_breaker_set(breaker, SHMRT_BREAKER_HALF_OPEN, AT, 0, &change) == SHMRT_OK);
	for (int i = 0; i < 4; i++) {
		CHECK(admit(AT) == SHMRT_OK);
		settle(SHMRT_VERDICT_SUCCESS, i > 0, AT); /* three of four are slow */
	}
	CHECK(state() == SHMRT_BREAKER_OPEN && counted(SHMRT_BREAKER_SLOW) == 3);
}

/* ---- windows beside a list of all results ------------------------------------------------------- */

static struct { uint64_t at; bool failed, slow; } results[RESULTS];
static unsigned long long random_state = 88172645463325252ULL;
static uint64_t draw(uint64_t below) {
	random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
	return random_state % below;
}

static void test_windows(uint32_t window, uint32_t size, uint32_t least, unsigned fail_percent) {
	struct shmrt_breaker_settings s = by_rate(window, size, least);
	uint64_t now = AT + draw(SECOND);
	unsigned count = 0, openings = 0;
	make(s);
	for (unsigned i = 0; i < RESULTS; i++) {
		if (draw(3) == 0)
			now += draw(10) == 0 ? draw(2 * size * SECOND) : draw(SECOND);
		bool failed = draw(100) < fail_percent, slow = draw(4) == 0;
		CHECK(admit(now) == SHMRT_OK);
		settle(failed ? SHMRT_VERDICT_FAILURE : SHMRT_VERDICT_SUCCESS, slow, now);
		results[count].at = now, results[count].failed = failed, results[count].slow = slow;
		count++;
		uint64_t in = 0, bad = 0, late = 0;
		for (unsigned j = count; j-- > 0 && (window == SHMRT_WINDOW_TIME || in < size);) {
			if (window == SHMRT_WINDOW_TIME && results[j].at / SECOND + size <= now / SECOND)
				break;
			in++, bad += results[j].failed, late += results[j].slow;
		}
		uint32_t needed = window == SHMRT_WINDOW_CALLS && least > size ? size : least;
		bool opens = in >= needed && (bad * 2 >= in || late * 4 >= in * 3);
		CHECK((state() == SHMRT_BREAKER_OPEN) == opens);
		if (opens) {
			openings++;
			count = 0;
			CHECK(shmrt_breaker_set(breaker, SHMRT_BREAKER_CLOSED, now, 0, &change) == SHMRT_OK);
			continue;
		}
		const struct shmrt_breaker_side *side = side_now(breaker);
		CHECK(side->results == in && side->failed == bad && side->slow == late);
		CHECK(window_adds_up(&s, side, window_now(breaker)));
	}
	CHECK(openings > 0 || fail_percent < 50);
}

/* A clock that is a little behind, one bucket only, and the first buckets of all. */
static void test_time_edges(void) {
	make(by_rate(SHMRT_WINDOW_TIME, 3, 100));
	call(SHMRT_VERDICT_SUCCESS, 5 * SECOND);
	call(SHMRT_VERDICT_FAILURE, 4 * SECOND); /* counts in the bucket that is current */
	CHECK(side_now(breaker)->results == 2 && side_now(breaker)->position == 5);
	call(SHMRT_VERDICT_SUCCESS, 7 * SECOND);
	CHECK(side_now(breaker)->results == 3);
	call(SHMRT_VERDICT_SUCCESS, 8 * SECOND); /* the first two are three buckets back */
	CHECK(side_now(breaker)->results == 2 && side_now(breaker)->failed == 0);
	make(by_rate(SHMRT_WINDOW_TIME, 3, 100));
	for (uint64_t now = 0; now < 6; now++)
		call(SHMRT_VERDICT_SUCCESS, now * SECOND);
	CHECK(side_now(breaker)->results == 3);
	make(by_rate(SHMRT_WINDOW_TIME, 1, 100));
	for (uint64_t now = 0; now < 6; now++)
		call(SHMRT_VERDICT_SUCCESS, now * SECOND), call(SHMRT_VERDICT_SUCCESS, now * SECOND);
	CHECK(side_now(breaker)->results == 2);
	call(SHMRT_VERDICT_SUCCESS, UINT64_MAX);
	CHECK(side_now(breaker)->results == 1);
}

static void test_carry(void) {
	struct shmrt_breaker_side from;
	make(in_a_row());
	open_it(AT);
	shmrt_breaker_look(breaker, &from, NULL);
	make(in_a_row());
	shmrt_breaker_carry(breaker, &from, true);
	CHECK(state() == SHMRT_BREAKER_OPEN && open_until(side_now(breaker)) == AT + 10 * SECOND && side_now(breaker)->era == 2);
	from.state = SHMRT_BREAKER_DISABLED;
	shmrt_breaker_carry(breaker, &from, true); /* it is not fresh any more */
	CHECK(state() == SHMRT_BREAKER_OPEN);
	shmrt_breaker_carry(breaker, &from, false);
	CHECK(state() == SHMRT_BREAKER_DISABLED && side_now(breaker)->era == 3);
	make(in_a_row());
	CHECK(shmrt_breaker_set(breaker, SHMRT_BREAKER_HALF_OPEN, AT, 0, &change) == SHMRT_OK && admit(AT) == SHMRT_OK);
	shmrt_breaker_look(breaker, &from, NULL);
	make(in_a_row());
	shmrt_breaker_carry(breaker, &from, true); /* trials stay behind: open, and its time is over */
	CHECK(state() == SHMRT_BREAKER_OPEN && admit(AT) == SHMRT_FULL && admit(AT + 1) == SHMRT_OK && admission.trial != 0);
}

/* The next number is taken as a number modulo 2^24 or 2^32: nothing else changes there. */
static void test_numbers_at_their_ends(void) {
	make(in_a_row());
	uint64_t gate = shmrt_breaker_gate(breaker), mask = UINT64_C(0xFFFFFF) << 8;
	atomic_store_explicit(&breaker->gate, gate | mask | UINT64_C(0xFFFFFFFF) << 32, memory_order_relaxed); /* nobody else is here */
	side_now(breaker)->era = UINT32_MAX;
	open_it(AT);
	CHECK(side_now(breaker)->era == 0 && (shmrt_breaker_gate(breaker) & mask) >> 8 == 2);
	CHECK(admit(AT) == SHMRT_FULL && admit(AT + 10 * SECOND + 1) == SHMRT_OK);
	side_now(breaker)->attempt = UINT32_MAX;
	settle(SHMRT_VERDICT_FAILURE, false, AT);
	CHECK(state() == SHMRT_BREAKER_OPEN && side_now(breaker)->attempt == UINT32_MAX && side_now(breaker)->era == 2);
}

int main(void) {
	world_begin();
	test_settings();
	test_in_a_row();
	test_what_is_decided_twice();
	test_waits_grow();
	test_by_hand();
	test_lost_trials();
	test_half_open_by_rate();
	static const unsigned rates[] = {20, 40, 55};
	for (unsigned rate = 0; rate < 3; rate++) {
		test_windows(SHMRT_WINDOW_CALLS, 1, 1, rates[rate]);
		test_windows(SHMRT_WINDOW_CALLS, 7, 100, rates[rate]);
		test_windows(SHMRT_WINDOW_CALLS, 40, 10, rates[rate]);
		test_windows(SHMRT_WINDOW_TIME, 1, 3, rates[rate]);
		test_windows(SHMRT_WINDOW_TIME, 5, 8, rates[rate]);
		test_windows(SHMRT_WINDOW_TIME, 30, 20, rates[rate]);
	}
	test_time_edges();
	test_carry();
	test_numbers_at_their_ends();
	puts("what a breaker decides: as it should");
	return 0;
}
