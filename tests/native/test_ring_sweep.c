/* test_ring_sweep.c -- every operation of the ring dies after every instruction; a survivor takes over.
 *
 * The judge re-makes the mutexes in the copy (the kernel would say EOWNERDEAD), repairs, and uses the ring:
 * it checks, drains, fills it to the last slot, and compares what came out with the lists of messages
 * that are right. Then a sample of the states is taken again and the repair itself dies everywhere.
 * Where the dead held one mutex only, the other side works on before anybody repairs, in a copy of its own.
 */
#include "ring_world.h"
#include "sweep.h"

#define LISTS 5
#define SAMPLES 60 /* the short tier keeps fewer */

struct scenario {
	const char *name;
	uint64_t slots;
	struct world *world;
	unsigned lists[LISTS][MESSAGES]; /* answers: 0 before, 1 after, others between; ends with LIST_END */
	unsigned list_count;
	uint64_t dropped[LISTS];
	enum { BY_LIST, BY_LEASES, BY_CLOSED } by;
	uint64_t leases_before, tail_before, bytes_before;
	bool frees, makes; /* room, a message: the sleepers on it must be woken before */
	bool comes_back; /* a lease does: at any moment it is counted as leased, or as returned */
	unsigned state_count;
	bool only;       /* the compound part: only this answer is right */
	int only_answer;
	struct { uint8_t bytes[REGION_MOST]; int answer; } *samples;
	unsigned sample_count, seen;
};

static size_t worked_on; /* states in which the other side did something first */
static unsigned random_state = 12345;
static unsigned random_below(unsigned most) {
	random_state = random_state * 1103515245 + 12345;
	return (random_state >> 8) % most;
}

#define BROKEN(reason) (fprintf(stderr, "%s: %s (step %zu)\n", scenario->name, reason, step), SWEEP_BROKEN)

static struct shmrt_ring_message outgoing[4];

/* What the other side did before the repair: numbers of a message taken and of one put; 0: nothing. */
struct meanwhile { unsigned taken, put; };

static uint64_t bytes_of(const struct shmrt_ring_message *message) { return message->inline_size + 8u * message->block_count; }

static bool bytes_are_right(const struct scenario *scenario, const struct shmrt_ring_shared *shared, struct meanwhile meanwhile) {
	uint64_t bytes = scenario->bytes_before, count = shmrt_ring_load(&shared->tail) - scenario->tail_before - (meanwhile.put != 0);
	for (uint64_t i = 0; scenario->makes && i < count; i++)
		bytes += bytes_of(&outgoing[i]);
	return bytes + (meanwhile.put != 0 ? plan[meanwhile.put].size : 0) == shmrt_ring_load(&shared->bytes_in);
}

/* What a survivor makes of it; `reclaim_first`: the arena hears of the death before the ring does. */
static int survive(struct scenario *scenario, void *copy, size_t step, bool reclaim_first, struct meanwhile meanwhile) {
	static struct world left;
	static uint8_t once[REGION_MOST];
	struct shmrt_ring_shared *shared = copy;
	world_attach(&left, copy, scenario->world->size);
	uint32_t dead = shmrt_owner_self();
	if (reclaim_first)
		blocks_reclaim(&left.arena, dead);
	struct shmrt_ring_shared *model = (struct shmrt_ring_shared *)(void *)once;
	CHECK(shmrt_ring_format(model, scenario->slots, SLOT_BYTES, SHMRT_RING_BLOCK, 0, 0) == SHMRT_OK);
	memcpy(&shared->put_mutex, &model->put_mutex, sizeof shared->put_mutex);
	memcpy(&shared->take_mutex, &model->take_mutex, sizeof shared->take_mutex);
	shmrt_ring_repair(&left.ring);
	if (shmrt_ring_check(&left.ring) != SHMRT_OK)
		return BROKEN("not sound after a repair");
	if (!bytes_are_right(scenario, shared, meanwhile))
		return BROKEN("bytes_in is not what was put");
	memcpy(once, copy, left.size);
	if (shmrt_ring_repair(&left.ring) || memcmp(once, copy, left.size) != 0)
		return BROKEN("a second repair changes something");
	blocks_reclaim(&left.arena, dead);
	uint64_t leased = shmrt_ring_load(&shared->leased), dropped = shmrt_ring_load(&shared->dropped);
	bool closed = atomic_load_explicit(&shared->closed, memory_order_relaxed) != 0;
	struct catch caught = {0};
	uint64_t done;
	int named = 0;
	world_kill_holders(&left);
	for (;;) {
		int rc = shmrt_ring_get(&left.ring, 1, 0, catch_message, &caught, &done);
		if (rc == (closed ? SHMRT_CLOSED : SHMRT_EMPTY))
			break;
		if (rc != SHMRT_OK)
			return BROKEN("a get fails");
		if (caught.torn || done != 1)
			return BROKEN("a torn message");
		named += plan[caught.numbers[caught.count - 1]].blocks;
	}
	if (blocks_used(&left.arena) != named)
		return BROKEN("a block is lost or shared");
	if (meanwhile.taken != 0) { /* maybe before one that was leased: in the lists the numbers grow */
		unsigned place = caught.count++;
		for (; place > 0 && caught.numbers[place - 1] > meanwhile.taken; place--)
			caught.numbers[place] = caught.numbers[place - 1];
		caught.numbers[place] = meanwhile.taken;
	}
	if (meanwhile.put != 0) {
		if (caught.count == 0 || caught.numbers[caught.count - 1] != meanwhile.put)
			return BROKEN("what was put meanwhile is not there, or not last");
		caught.numbers[--caught.count] = LIST_END;
	}
	int answer = -1;
	for (unsigned list = 0; list < scenario->list_count && answer < 0; list++)
		if (memcmp(caught.numbers, scenario->lists[list], (caught.count + 1) * sizeof caught.numbers[0]) == 0 &&
		    dropped == scenario->dropped[list])
			answer = (int)list;
	if (answer < 0) {
		for (unsigned i = 0; i < caught.count; i++)
			fprintf(stderr, " %u", caught.numbers[i]);
		fprintf(stderr, ", %d dropped: ", (int)dropped);
		return BROKEN("not a right set of messages");
	}
	if (scenario->by == BY_LEASES)
		answer = leased == scenario->leases_before ? SWEEP_BEFORE : SWEEP_AFTER;
	if (scenario->by == BY_CLOSED)
		answer = closed ? SWEEP_AFTER : SWEEP_BEFORE;
	catch_free(&left, &caught);
	left.ring.on_full = SHMRT_RING_RAISE;
	for (uint64_t i = 0; i < scenario->slots && !closed; i++)
		if (world_put(&left, MESSAGES - 1, 0) != SHMRT_OK)
			return BROKEN("a slot is lost");
	if (world_put(&left, MESSAGES - 1, 0) != (closed ? SHMRT_CLOSED : SHMRT_FULL))
		return BROKEN("a slot too many");
	return shmrt_ring_check(&left.ring) == SHMRT_OK ? answer : BROKEN("not sound after use");
}

static bool is_free(const pthread_mutex_t *mutex) { return mutex->__data.__lock == 0; }

/* The side whose mutex the dead did not have goes on. BEFORE: nothing to do. */
static int go_on(struct scenario *scenario, void *copy, size_t step) {
	struct shmrt_ring_shared *shared = copy;
	struct world left;
	struct meanwhile meanwhile = {0};
	world_attach(&left, copy, scenario->world->size);
	if (is_free(&shared->put_mutex) == is_free(&shared->take_mutex))
		return SWEEP_BEFORE;
	if (is_free(&shared->take_mutex)) {
		meanwhile.taken = world_get(&left);
	} else {
		uint64_t held = shmrt_ring_load(&shared->tail) - shmrt_ring_load(&shared->head);
		if (held == left.ring.slots || atomic_load_explicit(&shared->closed, memory_order_relaxed) != 0)
			return SWEEP_BEFORE; /* it would need the other mutex */
		meanwhile.put = MESSAGES - 1;
		if (world_put(&left, meanwhile.put, 0) != SHMRT_OK)
			return BROKEN("a put beside the dead fails");
	}
	worked_on += meanwhile.taken + meanwhile.put != 0;
	return survive(scenario, copy, step, false, meanwhile);
}

/* A sleeper must have been woken before what it waits for is there: later nobody may come to do it. */
static bool sleeper_forgotten(const struct scenario *scenario, const void *copy) {
	const struct shmrt_ring_shared *shared = copy;
	uint64_t full = 0;
	struct world left;
	struct shmrt_ring_view view;
	world_attach(&left, (void *)(uintptr_t)copy, scenario->world->size);
	view.head = shmrt_ring_load(&shared->head), view.tail = shmrt_ring_load(&shared->tail);
	for (uint64_t position = view.head; position != view.tail; position++)
		full += shmrt_ring_slot_at(&left.ring, position)->state != SHMRT_RING_SLOT_DONE;
	bool not_empty = atomic_load_explicit(&shared->bell_not_empty, memory_order_relaxed) != 0;
	bool not_full = atomic_load_explicit(&shared->bell_not_full, memory_order_relaxed) != 0;
	return (scenario->makes && not_empty && view.tail != scenario->tail_before) ||
	       (scenario->frees && not_full && full < scenario->state_count);
}

static int judge(void *copy, size_t step, void *context) {
	static uint8_t other[REGION_MOST] __attribute__((aligned(4096))), third[REGION_MOST] __attribute__((aligned(4096)));
	struct scenario *scenario = context;
	if (!scenario->only && sleeper_forgotten(scenario, copy))
		return BROKEN("sleepers are not woken before");
	const struct shmrt_ring_shared *shared = copy;
	if (scenario->comes_back && !scenario->only && shmrt_ring_load(&shared->leased) + shmrt_ring_load(&shared->returned) == 0)
		return BROKEN("a lease that comes back is counted nowhere"); /* R3 */
	memcpy(other, copy, scenario->world->size);
	memcpy(third, copy, scenario->world->size);
	const unsigned most = sweep_is_long() ? SAMPLES : 24;
	unsigned place = scenario->seen++;
	if (place >= most)
		place = random_below(place + 1);
	if (!scenario->only && place < most) {
		memcpy(scenario->samples[place].bytes, copy, scenario->world->size);
		scenario->sample_count += scenario->sample_count < most;
	} else {
		place = SAMPLES;
	}
	int answer = survive(scenario, copy, step, false, (struct meanwhile){0});
	if (answer >= 0 && survive(scenario, other, step, true, (struct meanwhile){0}) < 0)
		return BROKEN("broken if the arena is reclaimed first");
	if (answer >= 0 && !scenario->only && go_on(scenario, third, step) < 0)
		return BROKEN("broken if the other side goes on first");
	if (place < SAMPLES)
		scenario->samples[place].answer = answer;
	if (scenario->only && answer != scenario->only_answer)
		return BROKEN("a repair that dies decides otherwise");
	return answer;
}

static void repair(void *context) {
	(void)shmrt_ring_repair(&((struct world *)context)->ring);
}

/* The region is as the operation finds it. */
static void sweep(struct scenario *scenario, void (*operation)(void *), void *context) {
	struct world *world = scenario->world;
	struct shmrt_ring_shared *shared = world->ring.shared;
	CHECK(shmrt_ring_check(&world->ring) == SHMRT_OK);
	scenario->slots = world->ring.slots;
	scenario->leases_before = shmrt_ring_load(&shared->leased);
	scenario->tail_before = shmrt_ring_load(&shared->tail);
	scenario->bytes_before = shmrt_ring_load(&shared->bytes_in);
	scenario->state_count = (unsigned)(shmrt_ring_load(&shared->tail) - shmrt_ring_load(&shared->head) -
					   shmrt_ring_load(&shared->holes));
	atomic_store_explicit(&shared->bell_not_empty, 1, memory_order_relaxed); /* as if somebody slept */
	atomic_store_explicit(&shared->bell_not_full, 1, memory_order_relaxed);
	static void *samples;
	if (samples == NULL)
		samples = calloc(SAMPLES, sizeof *scenario->samples);
	CHECK(samples != NULL);
	scenario->samples = samples;
	struct sweep_report report = sweep_run(operation, context, world->region, world->size, judge, scenario);
	sweep_expect(&report, scenario->name);
	scenario->only = true;
	for (unsigned i = 0; i < scenario->sample_count; i += sweep_is_long() ? 1 : 3) {
		memcpy(world->region, scenario->samples[i].bytes, world->size);
		scenario->only_answer = scenario->samples[i].answer;
		report = sweep_run(repair, world, world->region, world->size, judge, scenario);
		sweep_expect_clean(&report, "repair");
	}
}

/* ---- scenarios ---------------------------------------------------------------------------------- */
static struct world world;
static struct scenario scene;

static void list(unsigned index, unsigned first, unsigned last, unsigned skip, unsigned more, uint64_t dropped) {
	unsigned n = 0;
	for (unsigned number = first; number <= last; number++)
		if (number != skip)
			scene.lists[index][n++] = number;
	if (more != 0)
		scene.lists[index][n++] = more;
	scene.lists[index][n] = LIST_END;
	scene.dropped[index] = dropped;
	if (index >= scene.list_count)
		scene.list_count = index + 1;
}

/* A ring with the messages 1 .. count; `turn` messages went through it before. */
static void begin(const char *name, uint64_t slots, enum shmrt_ring_full_policy on_full, uint64_t start, unsigned turn, unsigned count) {
	memset(&scene, 0, sizeof scene);
	scene.name = name;
	scene.world = &world;
	world_make(&world, slots, on_full, start);
	for (unsigned i = 0; i < turn; i++)
		CHECK(world_put(&world, MESSAGES - 2, 0) == SHMRT_OK && world_get(&world) == MESSAGES - 2);
	for (unsigned number = 1; number <= count; number++)
		CHECK(world_put(&world, number, 0) == SHMRT_OK);
}

static struct message_memory outgoing_memory[4];
static uint64_t outgoing_count, wanted, lease;
static struct catch incoming;
static int result;

static void do_put(void *context) { result = shmrt_ring_put(&((struct world *)context)->ring, outgoing, outgoing_count, 0, &(uint64_t){0}); }
static void do_get(void *context) {
	result = shmrt_ring_get(&((struct world *)context)->ring, wanted, 0, catch_message, &incoming, &(uint64_t){0});
}
static void do_get_run(void *context) {
	result = shmrt_ring_get_run(&((struct world *)context)->ring, true, wanted, 0, catch_message, &incoming, &(uint64_t){0}, &(bool){0});
}
static void do_lease(void *context) { result = shmrt_ring_lease(&((struct world *)context)->ring, 0, catch_message, &incoming, &lease); }
static void do_release(void *context) { result = shmrt_ring_release(&((struct world *)context)->ring, lease); }
static void do_release_keep(void *context) { result = shmrt_ring_release_keep(&((struct world *)context)->ring, lease); }
static void do_give_back(void *context) { result = shmrt_ring_give_back(&((struct world *)context)->ring, lease); }
static void do_close(void *context) { result = shmrt_ring_close(&((struct world *)context)->ring); }

static void run(void (*operation)(void *)) {
	memset(&incoming, 0, sizeof incoming);
	sweep(&scene, operation, &world);
	CHECK(result == SHMRT_OK && !incoming.torn);
}

static void prepare_put(unsigned first, unsigned count) {
	outgoing_count = count;
	for (unsigned i = 0; i < count; i++)
		outgoing[i] = message_make(&world.arena, first + i, &outgoing_memory[i]);
	scene.makes = true;
}

static void sweep_at(uint64_t slots, uint64_t start, unsigned turn) {
	unsigned most = (unsigned)slots, room = most - 1;
	begin("put", slots, SHMRT_RING_BLOCK, start, turn, room); /* full but one */
	list(0, 1, room, 0, 0, 0), list(1, 1, room, 0, 70, 0);
	prepare_put(70, 1);
	run(do_put);
	begin("put, oldest dropped", slots, SHMRT_RING_DROP_OLDEST, start, turn, most);
	list(0, 1, most, 0, 0, 0), list(1, 2, most, 0, 71, 1), list(2, 2, most, 0, 0, 1);
	prepare_put(71, 1);
	run(do_put);
	begin("get", slots, SHMRT_RING_BLOCK, start, turn, most);
	list(0, 1, most, 0, 0, 0), list(1, 2, most, 0, 0, 0);
	wanted = 1, scene.frees = true;
	run(do_get);
	begin("lease", slots, SHMRT_RING_BLOCK, start, turn, most);
	list(0, 1, most, 0, 0, 0), scene.by = BY_LEASES;
	run(do_lease);
	begin("release", slots, SHMRT_RING_BLOCK, start, turn, most);
	list(0, 1, most, 0, 0, 0), list(1, 2, most, 0, 0, 0);
	CHECK(world_lease(&world, &lease) == 1);
	scene.frees = true;
	run(do_release);
	begin("release that keeps", slots, SHMRT_RING_BLOCK, start, turn, most);
	list(0, 1, most, 0, 0, 0), list(1, 2, most, 0, 0, 0);
	CHECK(world_lease(&world, &lease) == 1);
	scene.frees = true;
	run(do_release_keep);
	begin("give back", slots, SHMRT_RING_BLOCK, start, turn, most);
	list(0, 1, most, 0, 0, 0), scene.by = BY_LEASES;
	CHECK(world_lease(&world, &lease) == 1);
	scene.comes_back = true;
	run(do_give_back);
	begin("get of one that came back", slots, SHMRT_RING_BLOCK, start, turn, most);
	list(0, 1, most, 0, 0, 0), list(1, 2, most, 0, 0, 0);
	CHECK(world_lease(&world, &lease) == 1 && shmrt_ring_give_back(&world.ring, lease) == SHMRT_OK);
	wanted = 1, scene.frees = true;
	run(do_get);
	begin("close", slots, SHMRT_RING_BLOCK, start, turn, room);
	list(0, 1, room, 0, 0, 0), scene.by = BY_CLOSED;
	run(do_close);
	if (slots < 3)
		return;
	begin("put of three", slots, SHMRT_RING_BLOCK, start, turn, 0);
	list(0, 1, 0, 0, 0, 0), list(1, 70, 72, 0, 0, 0), list(2, 70, 70, 0, 0, 0), list(3, 70, 71, 0, 0, 0);
	prepare_put(70, 3);
	run(do_put);
	begin("put of a plain run", slots, SHMRT_RING_BLOCK, start, turn, 0); /* one step, or two beyond the head last seen */
	list(0, 1, 0, 0, 0, 0), list(1, 32, 34, 0, 0, 0);
	uint64_t room_seen = shmrt_ring_load(&world.ring.shared->head_seen) + slots - shmrt_ring_load(&world.ring.shared->tail);
	if (room_seen - 1 < 2)
		list(2, 32, 31 + (unsigned)room_seen, 0, 0, 0);
	prepare_put(32, 3);
	run(do_put);
	begin("get of a plain run", slots, SHMRT_RING_BLOCK, start, turn, 0);
	list(0, 32, 34, 0, 0, 0), list(1, 1, 0, 0, 0, 0);
	for (unsigned number = 32; number <= 34; number++) /* no flag of theirs says that decoding may fail */
		CHECK(world_put(&world, number, 0) == SHMRT_OK);
	wanted = 3, scene.frees = true;
	run(turn % 2 == 0 ? do_get : do_get_run);
	begin("get of three", slots, SHMRT_RING_BLOCK, start, turn, 3);
	list(0, 1, 3, 0, 0, 0), list(1, 4, 3, 0, 0, 0), list(2, 2, 3, 0, 0, 0), list(3, 3, 3, 0, 0, 0);
	wanted = 3, scene.frees = true;
	run(do_get);
	begin("get of a run", slots, SHMRT_RING_BLOCK, start, turn, 3); /* 1 has a block: alone */
	list(0, 1, 3, 0, 0, 0), list(1, 2, 3, 0, 0, 0);
	wanted = 3, scene.frees = true;
	run(do_get_run);
	begin("put behind a lease", slots, SHMRT_RING_BLOCK, start, turn, most); /* 1 moves into a hole */
	list(0, 1, most, 2, 0, 0), list(1, 1, most, 2, 70, 0);
	CHECK(world_lease(&world, &lease) == 1 && world_get(&world) == 2);
	prepare_put(70, 1);
	run(do_put);
	begin("put behind one that came back", slots, SHMRT_RING_BLOCK, start, turn, most);
	list(0, 1, most, 2, 0, 0), list(1, 1, most, 2, 70, 0);
	CHECK(world_lease(&world, &lease) == 1 && world_get(&world) == 2);
	CHECK(shmrt_ring_give_back(&world.ring, lease) == SHMRT_OK);
	prepare_put(70, 1);
	run(do_put);
	begin("drop behind a lease", slots, SHMRT_RING_DROP_OLDEST, start, turn, most);
	list(0, 1, most, 0, 0, 0), list(1, 1, most, 2, 71, 1), list(2, 1, most, 2, 0, 1);
	CHECK(world_lease(&world, &lease) == 1);
	prepare_put(71, 1);
	run(do_put);
	begin("get behind a lease", slots, SHMRT_RING_BLOCK, start, turn, most);
	list(0, 1, most, 0, 0, 0), list(1, 1, most, 2, 0, 0);
	CHECK(world_lease(&world, &lease) == 1);
	wanted = 1, scene.frees = true;
	run(do_get);
}

int main(void) {
	static const uint32_t sizes[] = {0, 1, 7, 8, 63, 64, 65, SLOT_BYTES - 1, SLOT_BYTES};
	static const uint64_t starts[] = {0, (UINT64_C(1) << 32) - 2, UINT64_MAX - 1};
	static const uint64_t slots[] = {1, 2, 3};
	dead_owner();
	for (unsigned number = 1; number < MESSAGES; number++)
		plan[number] = (struct message_plan){.size = number % 17, .blocks = (uint16_t)(number == 1 || number % 5 == 0)};
	plan[MESSAGES - 1] = (struct message_plan){.size = 3};
	plan[MESSAGES - 2] = (struct message_plan){.size = 5, .blocks = 1};
	plan[2] = (struct message_plan){.size = 9, .blocks = 2};
	plan[70] = (struct message_plan){.size = 20, .blocks = 2};
	plan[71] = (struct message_plan){.size = 8, .blocks = 1, .frozen = true};
	for (unsigned i = 0; i < 3; i++)
		for (unsigned j = 0; j < 3; j++)
			sweep_at(slots[i], starts[j], j == 2 ? i % 2 : i + j); /* at j = 2 the window lies across the wrap */
	sweep_at(64, UINT64_MAX - 20, 7);
	plan[70].blocks = 0, plan[1].blocks = 0;
	for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
		plan[70].size = plan[1].size = sizes[i];
		begin("put of a size", 2, SHMRT_RING_BLOCK, 5, 1, 1);
		list(0, 1, 1, 0, 0, 0), list(1, 1, 1, 0, 70, 0);
		prepare_put(70, 1);
		run(do_put);
		begin("get of a size", 2, SHMRT_RING_BLOCK, 5, 1, 1);
		list(0, 1, 1, 0, 0, 0), list(1, 2, 1, 0, 0, 0);
		wanted = 1, scene.frees = true;
		run(do_get);
	}
	for (unsigned full = 0; full < 2; full++) { /* one byte too many: refused at the door; only the mutex moves */
		plan[70].size = SLOT_BYTES + 1;
		begin("put of what is too large", 2, SHMRT_RING_BLOCK, 5, 1, 1 + full);
		list(0, 1, 1 + full, 0, 0, 0);
		prepare_put(70, 1);
		scene.slots = world.ring.slots, scene.only = true, scene.only_answer = SWEEP_BEFORE;
		scene.tail_before = shmrt_ring_load(&world.ring.shared->tail);
		scene.bytes_before = shmrt_ring_load(&world.ring.shared->bytes_in);
		struct sweep_report report = sweep_run(do_put, &world, world.region, world.size, judge, &scene);
		sweep_expect_clean(&report, scene.name);
		CHECK(result == SHMRT_TOO_LARGE);
	}
	CHECK(worked_on > 500 || sweep_total_states() < 10000); /* fewer: not stepped here */
	printf("%zu states, %zu of them after the other side went on\n", sweep_total_states(), worked_on);
	return 0;
}
