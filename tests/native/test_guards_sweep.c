/* test_guards_sweep.c -- joins, permits and rate limits: every operation dies after every instruction, and others go on.
 *
 * Joins: what a death leaves has the new entry wholly or not at all, memory is behind every byte that counts, and the next joins
 * find what is there. Permits: each word is the one before or the one after; the next look counts right, frees what the dead had
 * and nothing else; then exactly as many permits can be taken as the limit says. Some of the copies become the ground of a second
 * death. Memory is "reserved" by this file's own shmrt_segment_reserve, which remembers how much (the real one: test_guards.c).
 */
#include "guards_world.h"
#include "sweep.h"

#define REGION 65536
#define SAMPLES 48 /* the short tier keeps four of them */

typedef uint8_t bytes_of[REGION];

static bytes_of region __attribute__((aligned(4096)));
static bytes_of before __attribute__((aligned(128))), after __attribute__((aligned(128)));
static char what[160];

#define BROKEN(reason) (fprintf(stderr, "%s: %s (step %zu)\n", what, reason, step), SWEEP_BROKEN)

/* ---- joins -------------------------------------------------------------------------------------- */

#define OFFSET 12288 /* of the area in the region; control, slots and the head are before it */
#define BACKED (OFFSET - sizeof(uint64_t))
#define AREA_SHOWN (REGION - OFFSET)

static uint8_t *reserving; /* the region, or a copy of it: whose memory is reserved now */
static bool memory_is_short;

static uint64_t *backed_in(uint8_t *bytes) { return (uint64_t *)(void *)(bytes + BACKED); }

int shmrt_segment_reserve(int fd, uint64_t offset, uint64_t size, struct shmrt_shortage *shortage) {
	(void)fd, (void)shortage;
	if (memory_is_short)
		return SHMRT_NO_SPACE;
	if (offset > OFFSET + *backed_in(reserving)) /* a hole */
		return SHMRT_INVALID;
	if (offset + size - OFFSET > *backed_in(reserving))
		*backed_in(reserving) = offset + size - OFFSET;
	return SHMRT_OK;
}

static const struct shmrt_breaker_settings breaker_settings = {
	.failure_threshold = 3, .success_threshold = 1, .half_open_max = 2, .window = SHMRT_WINDOW_CALLS, .window_size = 20, .min_calls = 5,
	.reset_ns = 1000, .reset_max_ns = 1000, .trial_ns = 1000, .growth = 1.0, .failure_rate = 0.5};
static const struct shmrt_bulkhead_settings bulkhead_settings = {.capacity = 5, .limit = 3, .most_waiting = 2};
static const struct shmrt_bucket_settings bucket_settings = {.token_ns = 100, .burst = 7};

static struct shmrt_guard_plan plan_of(uint32_t kind, const char *name) {
	struct shmrt_guard_plan plan = {.kind = kind, .name = name, .name_size = strlen(name), .text = "settings", .text_size = 8};
	switch (kind) {
	case SHMRT_GUARD_BREAKER:
		plan.body_bytes = shmrt_breaker_body_bytes(&breaker_settings);
		plan.fill = shmrt_breaker_fill, plan.settings = &breaker_settings;
		break;
	case SHMRT_GUARD_BULKHEAD:
		plan.body_bytes = shmrt_bulkhead_body_bytes(&bulkhead_settings);
		plan.fill = shmrt_bulkhead_fill, plan.settings = &bulkhead_settings;
		break;
	default:
		plan.body_bytes = sizeof(struct shmrt_bucket) - sizeof(struct shmrt_guard);
		plan.fill = shmrt_bucket_fill, plan.settings = &bucket_settings;
	}
	return plan;
}

struct joining {
	struct shmrt_guard_area area;
	struct shmrt_guard_plan plan;
	struct shmrt_guard *guard;
	struct shmrt_shortage shortage;
	int outcome;
	bool made;
	int expected;
};

static void attach(struct shmrt_guard_area *area, uint8_t *bytes) {
	CHECK(shmrt_guard_area_attach(area, (struct shmrt_control *)(void *)bytes, OFFSET + SHMRT_GUARD_AREA_BYTES, -1, ALIVE) == SHMRT_OK);
	reserving = bytes;
}
static void join(void *context) {
	struct joining *j = context;
	j->outcome = shmrt_guard_join(&j->area, &j->plan, &j->guard, &j->made, &j->shortage);
}

/* An entry as a join leaves it: its constants, zeros, a mutex that is free. */
static bool is_new(struct shmrt_guard *guard, const struct shmrt_guard_plan *plan) {
	static uint64_t memory[1024];
	struct shmrt_guard *model = (struct shmrt_guard *)(void *)memory;
	CHECK(shmrt_guard_bytes(plan->body_bytes) <= sizeof(memory));
	memset(memory, 0, sizeof(memory));
	CHECK(shmrt_guard_format(model, plan) == SHMRT_OK);
	if (plan->kind == SHMRT_GUARD_BREAKER) { /* made at another time */
		struct shmrt_breaker_side *there = side_now((struct shmrt_breaker *)(void *)guard), *here = side_now((struct shmrt_breaker *)(void *)model);
		here->since_ns = there->since_ns;
		here->tickets = there->tickets;
	}
	return memcmp(guard, model, shmrt_guard_bytes(plan->body_bytes)) == 0;
}

static int judge_join(void *copy, size_t step, void *context) {
	const struct joining *dead = context;
	struct joining next = {.plan = dead->plan};
	struct shmrt_guard_plan others[] = {plan_of(SHMRT_GUARD_BUCKET, "first"), plan_of(SHMRT_GUARD_BULKHEAD, "second")};
	uint64_t *backed = backed_in(copy);
	attach(&next.area, copy);
	struct shmrt_guards *head = next.area.head;
	uint64_t used = atomic_load_explicit(&head->used, memory_order_acquire), reserved = atomic_load_explicit(&head->reserved, memory_order_relaxed);
	if (used > reserved || reserved > *backed)
		return BROKEN("there is no memory behind what counts");
	/* Whoever looks without a lock. */
	struct shmrt_guard *guard = NULL, *found = NULL;
	unsigned entries = 0, old = 0;
	uint64_t bytes = 0;
	while ((guard = shmrt_guard_next(&next.area, guard)) != NULL) {
		entries++, bytes += guard->size;
		for (unsigned i = 0; i < 2; i++)
			old += guard->kind == others[i].kind && memcmp(guard->name, others[i].name, others[i].name_size) == 0 && is_new(guard, &others[i]);
		if (guard->kind == dead->plan.kind && guard->name_size == dead->plan.name_size && guard->name[0] == dead->plan.name[0])
			found = guard;
	}
	bool was_there = found != NULL && (uint8_t *)found < next.area.entries + ((struct shmrt_guards *)(void *)shmrt_guards_of((void *)before))->used;
	if (bytes != used || entries != old + (found != NULL && !was_there))
		return BROKEN("an entry is torn or lost");
	if (found != NULL && !was_there && !is_new(found, &dead->plan))
		return BROKEN("the entry is not whole when it counts");
	/* The next process joins the same, then another. */
	mutex_of_the_dead(&head->mutex);
	join(&next);
	if (next.outcome != dead->expected)
		return BROKEN("the next join has another outcome");
	if (dead->expected == SHMRT_OK) {
		if (next.made != (found == NULL) || (found != NULL && next.guard != found) || (next.made && !is_new(next.guard, &dead->plan)))
			return BROKEN("the next join does not find what is there");
	}
	struct joining third = {.plan = plan_of(SHMRT_GUARD_BREAKER, "third")}, again = third;
	attach(&third.area, copy), attach(&again.area, copy);
	memory_is_short = false;
	join(&third), join(&again);
	memory_is_short = dead->expected == SHMRT_NO_SPACE;
	if (third.outcome != SHMRT_OK || !third.made || again.made || again.guard != third.guard || !is_new(third.guard, &third.plan))
		return BROKEN("nobody can join any more");
	if (found != NULL && (uint8_t *)third.guard < (uint8_t *)found + found->size)
		return BROKEN("two entries lie over each other");
	reserving = region;
	return found != NULL ? SWEEP_AFTER : SWEEP_BEFORE;
}

/* `entries` are there already; behind them lies what a dead join left. */
static void ground_of_joins(unsigned entries, bool memory_is_there) {
	struct joining j = {0};
	memset(region, 0, sizeof(region));
	memcpy(region, &table, sizeof(table));
	CHECK(sizeof(table) <= BACKED);
	shmrt_guards_format(shmrt_guards_of((void *)region), OFFSET);
	attach(&j.area, region);
	for (unsigned i = 0; i < entries; i++) {
		j.plan = i == 0 ? plan_of(SHMRT_GUARD_BUCKET, "first") : plan_of(SHMRT_GUARD_BULKHEAD, "second");
		join(&j);
		CHECK(j.outcome == SHMRT_OK && j.made);
	}
	uint64_t used = atomic_load_explicit(&j.area.head->used, memory_order_relaxed);
	memset(region + OFFSET + used, 0xA5, AREA_SHOWN - used);
	if (!memory_is_there) { /* the next join has to reserve: the entries fill what is reserved, as far as the head says */
		uint64_t step_bytes = entries == 0 ? 0 : used;
		atomic_store_explicit(&j.area.head->reserved, step_bytes, memory_order_relaxed); /* nobody else is here */
		*backed_in(region) = step_bytes;
	}
}

static void sweep_join(unsigned entries, bool memory_is_there, const char *name, uint32_t kind, int expected) {
	static struct joining j;
	snprintf(what, sizeof(what), "join of kind %u beside %u, %s", kind, entries, memory_is_there ? "memory there" : "memory to be reserved");
	ground_of_joins(entries, memory_is_there);
	memory_is_short = expected == SHMRT_NO_SPACE;
	memset(&j, 0, sizeof(j));
	attach(&j.area, region);
	j.plan = plan_of(kind, name);
	j.expected = expected;
	if (expected == SHMRT_FOREIGN)
		j.plan.text = "SETTINGS";
	memcpy(before, region, sizeof(region));
	struct sweep_report report = sweep_run(join, &j, region, sizeof(region), judge_join, &j);
	if (expected == SHMRT_OK && j.made)
		sweep_expect(&report, what);
	else
		sweep_expect_clean(&report, what);
	CHECK(j.outcome == expected && !mutex_is_held(&j.area.head->mutex));
	CHECK(j.made || memcmp(before, region, OFFSET - sizeof(uint64_t)) == 0 || expected == SHMRT_NO_SPACE);
	memory_is_short = false;
}

/* ---- permits ------------------------------------------------------------------------------------ */

#define CAPACITY 4
#define LINE 3

enum action { TAKE, TAKE_OR_WAIT, GIVE_BACK, LEAVE_LINE, RESIZE, LOOK };

struct bulkhead_scenario {
	const char *name;
	enum action action;
	uint32_t limit;
	uint32_t out[CAPACITY]; /* slots of the holders, 0: free */
	uint32_t line[LINE];
	uint32_t hint, new_limit;
	bool stale; /* the word that it has is there no more */
	bool stopped; /* who waits has not looked for a while */
	int expected;
};

static const struct bulkhead_scenario scenarios[] = {
	{.name = "take of the first", .limit = 3},
	{.name = "take of the last", .limit = 3, .out = {ALIVE, 0, OTHER}, .hint = 2},
	{.name = "take of the last word", .limit = 4, .out = {ALIVE, ALIVE, OTHER, 0}, .hint = 4},
	{.name = "take when none is free", .limit = 2, .out = {ALIVE, 0, OTHER}, .expected = SHMRT_EMPTY},
	{.name = "take by a limit that was lowered", .limit = 1, .out = {ALIVE, OTHER}, .expected = SHMRT_EMPTY},
	{.name = "take of a dead one's", .limit = 2, .out = {DEAD, 0, OTHER}, .hint = 3},
	{.name = "take of two dead ones'", .limit = 2, .out = {DEAD, DEAD}, .line = {DEAD, ALIVE}},
	{.name = "take past the line", .limit = 2, .out = {ALIVE}, .line = {OTHER}},
	{.name = "take with a free permit", .action = TAKE_OR_WAIT, .limit = 2, .out = {ALIVE}},
	{.name = "join the line", .action = TAKE_OR_WAIT, .limit = 1, .out = {ALIVE}, .expected = SHMRT_EMPTY},
	{.name = "join the line behind others", .action = TAKE_OR_WAIT, .limit = 2, .out = {ALIVE}, .line = {OTHER, 0, ALIVE}, .expected = SHMRT_EMPTY},
	{.name = "join a full line", .action = TAKE_OR_WAIT, .limit = 1, .out = {ALIVE}, .line = {OTHER, ALIVE, ALIVE}, .expected = SHMRT_FULL},
	{.name = "join a line full of dead", .action = TAKE_OR_WAIT, .limit = 1, .out = {ALIVE}, .line = {DEAD, DEAD, DEAD}, .expected = SHMRT_EMPTY},
	{.name = "wait on", .action = TAKE_OR_WAIT, .limit = 1, .out = {ALIVE}, .line = {OTHER, DYING}, .expected = SHMRT_EMPTY},
	{.name = "wait behind a dead one", .action = TAKE_OR_WAIT, .limit = 1, .line = {DEAD, DYING}},
	{.name = "wait behind a stopped one", .action = TAKE_OR_WAIT, .limit = 1, .line = {OTHER, DYING}, .stopped = true},
	{.name = "wait behind a live one", .action = TAKE_OR_WAIT, .limit = 1, .line = {OTHER, DYING}, .expected = SHMRT_EMPTY},
	{.name = "wait no longer", .action = TAKE_OR_WAIT, .limit = 1, .line = {DYING, OTHER}},
	{.name = "wait no longer for a dead one", .action = TAKE_OR_WAIT, .limit = 1, .out = {0, 0, DEAD}, .line = {0, DYING}},
	{.name = "wait when taken for dead", .action = TAKE_OR_WAIT, .limit = 1, .line = {OTHER, DYING}, .stale = true, .expected = SHMRT_EMPTY},
	{.name = "give back", .action = GIVE_BACK, .limit = 3, .out = {ALIVE, DYING}},
	{.name = "give back to the line", .action = GIVE_BACK, .limit = 1, .out = {0, 0, 0, DYING}, .line = {0, ALIVE, DEAD}},
	{.name = "give back what is gone", .action = GIVE_BACK, .limit = 3, .out = {ALIVE, DYING}, .stale = true},
	{.name = "leave the line", .action = LEAVE_LINE, .limit = 1, .out = {ALIVE}, .line = {OTHER, DYING, ALIVE}},
	{.name = "leave the line as the last", .action = LEAVE_LINE, .limit = 1, .out = {ALIVE}, .line = {0, DYING}},
	{.name = "leave a line that it is not in", .action = LEAVE_LINE, .limit = 1, .out = {ALIVE}, .line = {OTHER, DYING}, .stale = true},
	{.name = "more permits", .action = RESIZE, .limit = 1, .out = {ALIVE}, .line = {OTHER}, .new_limit = 4},
	{.name = "fewer permits", .action = RESIZE, .limit = 4, .out = {ALIVE, OTHER, DEAD}, .new_limit = 1},
	{.name = "too many permits", .action = RESIZE, .limit = 1, .new_limit = CAPACITY + 1, .expected = SHMRT_INVALID},
	{.name = "look", .action = LOOK, .limit = 3, .out = {ALIVE, 0, OTHER}, .line = {OTHER}},
	{.name = "look at the dead", .action = LOOK, .limit = 3, .out = {DEAD, ALIVE, DEAD}, .line = {DEAD, OTHER, DEAD}},
};

static const struct bulkhead_scenario *scene;
static struct shmrt_permit mine;
static int outcome;
static struct { uint8_t bytes[4096]; } samples[SAMPLES];
static unsigned sample_count, seen;
static uint64_t entry_bytes;

static struct shmrt_bulkhead *bulkhead_in(uint8_t *bytes) { return (struct shmrt_bulkhead *)(void *)bytes; }
static struct shmrt_waiter *line_of(struct shmrt_bulkhead *b) { return (struct shmrt_waiter *)(void *)(b->words + b->capacity); }
/* A permit's or a waiter's, by one index. */
static uint64_t word_at(struct shmrt_bulkhead *b, uint32_t index) {
	return atomic_load_explicit(index < b->capacity ? &b->words[index] : &line_of(b)[index - b->capacity].word, memory_order_relaxed);
}
static uint32_t count_out(struct shmrt_bulkhead *b, uint32_t from, uint32_t to, bool dead_too) {
	uint32_t count = 0;
	for (uint32_t i = from; i < to; i++) {
		uint32_t slot = (uint32_t)word_at(b, i) >> 21;
		count += word_at(b, i) != 0 && (dead_too || slot == ALIVE || slot == OTHER);
	}
	return count;
}

static int act(struct shmrt_bulkhead *b, struct shmrt_permit *permit) {
	struct shmrt_holder holder = holder_in(DYING);
	struct shmrt_permit none;
	uint32_t bell, out, waiting;
	switch (scene->action) {
	case TAKE:
		return shmrt_bulkhead_take(b, &table.control, holder, 0, permit, NULL, &bell);
	case TAKE_OR_WAIT:
		return shmrt_bulkhead_take(b, &table.control, holder, 0, &none, permit, &bell);
	case GIVE_BACK:
		return shmrt_bulkhead_give_back(b, 0, permit);
	case LEAVE_LINE:
		return shmrt_bulkhead_leave_line(b, 0, permit);
	case RESIZE:
		return shmrt_bulkhead_resize(b, 0, scene->new_limit);
	default:
		return shmrt_bulkhead_look(b, &table.control, 0, &out, &waiting);
	}
}
static void act_on_region(void *context) {
	(void)context;
	outcome = act(bulkhead_in(region), &mine);
}

/* What others find and do after the death: NULL, or what is wrong. */
static const char *go_on(struct shmrt_bulkhead *b) {
	uint32_t out, waiting, limit = atomic_load_explicit(&b->limit, memory_order_relaxed), all = b->capacity + shmrt_bulkhead_places(b->capacity, b->most_waiting);
	uint32_t alive_out = count_out(b, 0, b->capacity, false), alive_line = count_out(b, b->capacity, all, false);
	struct shmrt_permit permits[CAPACITY + 1], first = {0}, second = {0};
	if (shmrt_bulkhead_look(b, &table.control, 0, &out, &waiting) != SHMRT_OK)
		return "the mutex is not free";
	if (out != alive_out || waiting != alive_line || count_out(b, 0, all, true) != alive_out + alive_line)
		return "a look does not free what the dead had, and nothing else";
	uint32_t free = limit > out ? limit - out : 0, taken = 0;
	while (taken <= CAPACITY && shmrt_bulkhead_take(b, &table.control, holder_in(ALIVE), 0, &permits[taken], NULL, NULL) == SHMRT_OK)
		taken++;
	if (taken != free || count_out(b, 0, b->capacity, true) != out + free)
		return "there are more or fewer permits than there should be";
	if (atomic_load_explicit(&b->used, memory_order_relaxed) != out + free || atomic_load_explicit(&b->high_water, memory_order_relaxed) < out + free)
		return "the count is not that of the words";
	/* The line: who is alive in it goes first, then these two, in their order. */
	for (uint32_t i = 0; i < all - b->capacity; i++) {
		struct shmrt_permit place = {.index = i, .word = word_at(b, b->capacity + i)};
		if (shmrt_bulkhead_leave_line(b, 0, &place) != SHMRT_OK)
			return "nobody can leave the line";
	}
	if (taken == 0 || b->most_waiting < 2)
		return NULL;
	uint32_t bell = atomic_load_explicit(&b->bell, memory_order_relaxed);
	if (shmrt_bulkhead_take(b, &table.control, holder_in(ALIVE), 0, &permits[CAPACITY], &first, NULL) != SHMRT_EMPTY ||
	    shmrt_bulkhead_take(b, &table.control, holder_in(OTHER), 0, &permits[CAPACITY], &second, NULL) != SHMRT_EMPTY || second.word == 0)
		return "nobody can join the line";
	if (shmrt_bulkhead_give_back(b, 0, &permits[--taken]) != SHMRT_OK || atomic_load_explicit(&b->bell, memory_order_relaxed) == bell)
		return "those that wait are not told";
	if (shmrt_bulkhead_take(b, &table.control, holder_in(OTHER), 0, &permits[CAPACITY], &second, NULL) != SHMRT_EMPTY ||
	    shmrt_bulkhead_take(b, &table.control, holder_in(ALIVE), 0, &permits[taken], &first, NULL) != SHMRT_OK)
		return "the line has lost its order";
	return NULL;
}

static int judge_bulkhead(void *copy, size_t step, void *context) {
	struct shmrt_bulkhead *left = copy;
	bool is_before = true, is_after = true, second_death = context != NULL;
	uint32_t all = CAPACITY + LINE, limit = atomic_load_explicit(&left->limit, memory_order_relaxed);
	mutex_of_the_dead(&left->guard.mutex);
	if (!second_death && seen++ % (sweep_is_long() ? 2 : 4) == (sweep_is_long() ? 0 : 2) && sample_count < (sweep_is_long() ? SAMPLES : 4))
		memcpy(samples[sample_count++].bytes, copy, entry_bytes);
	if (!shmrt_bulkhead_is_sound(left))
		return BROKEN("it is not sound");
	for (uint32_t i = 0; i < all; i++) {
		uint64_t now = word_at(left, i), first = word_at(bulkhead_in(before), i), last = word_at(bulkhead_in(after), i);
		if (now != first && now != last && now != 0)
			return BROKEN("a word is torn");
		if (now != first && now != last && (uint32_t)first >> 21 != DEAD)
			return BROKEN("who lives has lost a permit");
		is_before = is_before && now == first, is_after = is_after && now == last;
	}
	if (count_out(left, 0, CAPACITY, true) > (limit > scene->limit ? limit : scene->limit) &&
	    count_out(left, 0, CAPACITY, true) > count_out(bulkhead_in(before), 0, CAPACITY, true))
		return BROKEN("more permits are out than there are");
	if (scene->action == RESIZE)
		is_before = limit == scene->limit, is_after = limit == scene->new_limit;
	world_let_die(true);
	const char *wrong = go_on(left);
	world_let_die(false);
	if (wrong != NULL)
		return BROKEN(wrong);
	return is_after ? SWEEP_AFTER : is_before ? SWEEP_BEFORE : 2;
}

static void second_look(void *context) {
	uint32_t out, waiting;
	CHECK(shmrt_bulkhead_look(context, &table.control, 0, &out, &waiting) == SHMRT_OK);
}

static void ground_of_permits(uint32_t tickets) {
	struct shmrt_bulkhead_settings s = {.capacity = CAPACITY, .limit = scene->limit, .most_waiting = LINE};
	entry_bytes = guard_make(region, 4096, SHMRT_GUARD_BULKHEAD, shmrt_bulkhead_body_bytes(&s), shmrt_bulkhead_fill, &s);
	struct shmrt_bulkhead *b = bulkhead_in(region);
	uint32_t used = 0, waiting = 0;
	mine = (struct shmrt_permit){0};
	for (uint32_t i = 0; i < CAPACITY + LINE; i++) { /* nobody else is here: relaxed everywhere */
		uint32_t slot = i < CAPACITY ? scene->out[i] : scene->line[i - CAPACITY];
		uint64_t word = (uint64_t)holder_in(slot).owner << 32 | slot << 21 | (i + 1);
		if (slot == 0)
			continue;
		atomic_store_explicit(i < CAPACITY ? &b->words[i] : &line_of(b)[i - CAPACITY].word, word, memory_order_relaxed);
		if (i >= CAPACITY) {
			line_of(b)[i - CAPACITY].order = ++waiting;
			line_of(b)[i - CAPACITY].seen_ns = scene->stopped ? 1 : shmrt_now_ns() + UINT64_C(1000000000000); /* looks all the time */
		} else {
			used++;
		}
		if (slot == DYING)
			mine = (struct shmrt_permit){.index = i < CAPACITY ? i : i - CAPACITY, .word = scene->stale ? word + 1 : word};
	}
	atomic_store_explicit(&b->used, used, memory_order_relaxed);
	atomic_store_explicit(&b->waiting, waiting, memory_order_relaxed);
	atomic_store_explicit(&b->high_water, used, memory_order_relaxed);
	atomic_store_explicit(&b->orders, waiting, memory_order_relaxed);
	atomic_store_explicit(&b->hint, scene->hint, memory_order_relaxed);
	atomic_store_explicit(&b->tickets, tickets, memory_order_relaxed);
}

static void sweep_permits(uint32_t tickets) {
	snprintf(what, sizeof(what), "%s, ticket %u", scene->name, tickets);
	ground_of_permits(tickets);
	memcpy(before, region, entry_bytes);
	memcpy(after, region, entry_bytes);
	struct shmrt_permit theirs = mine;
	CHECK(act(bulkhead_in(after), &theirs) == scene->expected);
	seen = sample_count = 0;
	uint32_t all = CAPACITY + LINE;
	bool changes = scene->action == RESIZE && scene->expected == SHMRT_OK;
	for (uint32_t i = 0; i < all; i++)
		changes = changes || word_at(bulkhead_in(before), i) != word_at(bulkhead_in(after), i);
	CHECK(!changes || !scene->stale || scene->action == TAKE_OR_WAIT); /* another's word is not touched */
	struct sweep_report report = sweep_run(act_on_region, NULL, region, entry_bytes, judge_bulkhead, NULL);
	if (changes)
		sweep_expect(&report, what);
	else
		sweep_expect_clean(&report, what);
	CHECK(outcome == scene->expected && !mutex_is_held(&bulkhead_in(region)->guard.mutex));
	uint32_t all_used = count_out(bulkhead_in(region), 0, CAPACITY, true);
	CHECK(atomic_load_explicit(&bulkhead_in(region)->used, memory_order_relaxed) == all_used);
	/* And who repairs dies, too: a look counts again and frees, up to some instruction. */
	for (unsigned i = 0; i < sample_count; i++) {
		memcpy(region, samples[i].bytes, entry_bytes);
		report = sweep_run(second_look, region, region, entry_bytes, judge_bulkhead, region);
		sweep_expect_clean(&report, what);
	}
}

/* ---- rate limits -------------------------------------------------------------------------------- */

static uint64_t wait_ns;
static void take_tokens(void *context) {
	outcome = shmrt_bucket_take((struct shmrt_bucket *)(void *)region, 2, *(uint64_t *)context, 1000, &wait_ns);
}
static uint64_t full_in(void *bytes) { return atomic_load_explicit(&((struct shmrt_bucket *)bytes)->full_ns, memory_order_relaxed); }

static int judge_bucket(void *copy, size_t step, void *context) {
	uint64_t now = *(uint64_t *)context, wait, first = full_in(before), last = full_in(after), left = full_in(copy);
	if (left != first && left != last)
		return BROKEN("tokens are half taken");
	uint64_t tokens = shmrt_bucket_tokens(copy, now), rest = tokens;
	while (shmrt_bucket_take(copy, 1, now, 0, &wait) == SHMRT_OK)
		rest--;
	if (rest != 0)
		return BROKEN("there are more or fewer tokens than it says");
	if (counter_of(copy, SHMRT_BUCKET_TAKEN) > 2 + tokens)
		return BROKEN("tokens are counted that nobody took");
	return left == last ? SWEEP_AFTER : SWEEP_BEFORE;
}

static void sweep_bucket(uint64_t full, uint64_t now, int expected) {
	struct shmrt_bucket_settings s = {.token_ns = 700, .burst = 4};
	snprintf(what, sizeof(what), "tokens at %llu, full at %llu", (unsigned long long)now, (unsigned long long)full);
	entry_bytes = guard_make(region, 4096, SHMRT_GUARD_BUCKET, sizeof(struct shmrt_bucket) - sizeof(struct shmrt_guard), shmrt_bucket_fill, &s);
	atomic_store_explicit(&((struct shmrt_bucket *)(void *)region)->full_ns, full, memory_order_relaxed); /* nobody else is here */
	memcpy(before, region, entry_bytes), memcpy(after, region, entry_bytes);
	CHECK(shmrt_bucket_take((struct shmrt_bucket *)(void *)after, 2, now, 1000, &wait_ns) == expected);
	struct sweep_report report = sweep_run(take_tokens, &now, region, entry_bytes, judge_bucket, &now);
	if (expected == SHMRT_OK)
		sweep_expect(&report, what);
	else
		sweep_expect_clean(&report, what);
	CHECK(outcome == expected);
}

int main(void) {
	world_begin();
	for (unsigned entries = 0; entries <= 2; entries++)
		for (uint32_t kind = SHMRT_GUARD_BREAKER; kind <= SHMRT_GUARD_BUCKET; kind++)
			for (int there = 0; there < 2; there++)
				if (entries > 0 || !there)
					sweep_join(entries, there, "new", kind, SHMRT_OK);
	sweep_join(2, true, "second", SHMRT_GUARD_BULKHEAD, SHMRT_OK);
	sweep_join(2, true, "second", SHMRT_GUARD_BULKHEAD, SHMRT_FOREIGN);
	sweep_join(1, false, "new", SHMRT_GUARD_BULKHEAD, SHMRT_NO_SPACE);
	size_t joins = sweep_total_states();
	static const uint32_t tickets[] = {6, (UINT32_C(1) << 21) - 1, UINT32_MAX};
	for (unsigned i = 0; i < sizeof(scenarios) / sizeof(scenarios[0]); i++)
		for (unsigned j = 0; j < 3; j++) {
			scene = &scenarios[i];
			sweep_permits(tickets[j]);
		}
	size_t permits = sweep_total_states() - joins;
	static const uint64_t times[] = {AT, INT64_MAX, UINT64_C(1) << 63, UINT64_MAX - 10000};
	for (unsigned i = 0; i < 4; i++) {
		sweep_bucket(0, times[i], SHMRT_OK);
		sweep_bucket(times[i] + 2000, times[i], SHMRT_OK);
		sweep_bucket(times[i] + 2800, times[i], SHMRT_FULL);
	}
	printf("%zu states of joins, %zu of permits, %zu in all\n", joins, permits, sweep_total_states());
	return 0;
}
