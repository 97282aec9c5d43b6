/* test_mailbox_sweep.c -- taking from a mailbox, and putting into a full one, dies after every instruction.
 *
 * The region holds a ring, the call slots and the words of the arena. The judge lets the root clean up and the next
 * incarnation of the server take what is left: each call is either taken by it, once, or its caller has an end. Over a sample
 * of the states that next incarnation dies as well, in its repair or with its first message, and another one comes.
 */
#include "call_world.h"
#include "mailbox.h"
#include "sweep.h"

#define TARGET 5
#define CALL_BYTES (CALLS * sizeof(struct shmrt_call_slot))
#define RINGS 2

static struct call_world calls;
static struct world ring_world;
static struct shmrt_mailbox mailbox;
static uint32_t generations[CALLS];
static int result;

struct scenario {
	const char *name;
	uint16_t blocks;
	unsigned dying; /* the call in question */
	bool takes;     /* else a put that drops it */
	bool stale;     /* nobody waits for it from the start */
	bool again;     /* a second taker died with whatever call it had */
};

#define BROKEN(reason) (fprintf(stderr, "%s: %s (step %zu)\n", scenario->name, reason, step), SWEEP_BROKEN)

static void attach(struct world *world, struct call_world *slots, struct shmrt_mailbox *box, void *region, size_t size) {
	world_attach(world, region, size);
	call_world_attach(slots, world->region + world->words_offset - CALL_BYTES);
	struct shmrt_arena_shared *shared = slots->arena.shared;
	slots->arena = world->arena;
	slots->arena.shared = shared;
	memset(box, 0, sizeof *box);
	box->ring = world->ring;
	shmrt_mailbox_attach(box, &slots->calls);
}

static void make(enum shmrt_ring_full_policy on_full) {
	static uint8_t *memory;
	if (memory == NULL)
		memory = mmap(NULL, REGION_MOST, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(memory != MAP_FAILED);
	memset(memory, 0, REGION_MOST);
	size_t size = (size_t)shmrt_align_up(shmrt_ring_bytes(RINGS, SLOT_BYTES), SHMRT_LINE) + CALL_BYTES + BLOCKS * 8;
	CHECK(size <= REGION_MOST);
	CHECK(shmrt_ring_format((struct shmrt_ring_shared *)(void *)memory, RINGS, SLOT_BYTES, on_full, 0, 0) == SHMRT_OK);
	attach(&ring_world, &calls, &mailbox, memory, size);
}

static struct shmrt_ring_message request(uint32_t index, uint16_t blocks, uint64_t deadline_ns, struct message_memory *memory) {
	struct shmrt_mail_envelope envelope = {.kind = SHMRT_MAIL_CALL, .name_size = 1, .index = index,
					       .generation = generations[index], .deadline_ns = deadline_ns};
	memcpy(memory->bytes, &envelope, sizeof envelope);
	memory->bytes[sizeof envelope] = 'f';
	memory->bytes[sizeof envelope + 1] = (uint8_t)index;
	for (uint16_t i = 0; i < blocks; i++)
		memory->blocks[i] = block_new(&calls.arena, SHMRT_BLOCK_WRITING);
	return (struct shmrt_ring_message){.inline_bytes = memory->bytes, .inline_size = sizeof envelope + 2, .block_count = blocks,
					   .blocks = memory->blocks};
}

/* A call of the other party's, in the mailbox. */
static void put_call(uint32_t index, uint16_t blocks, uint64_t deadline_ns) {
	struct message_memory memory;
	generations[index] = call_make(&calls, index, TARGET);
	struct shmrt_ring_message message = request(index, blocks, deadline_ns, &memory);
	CHECK(shmrt_mailbox_put(&mailbox, &message, 0) == SHMRT_OK);
	call_world_rename(&calls, shmrt_owner_self(), other_owner());
}

#define SAMPLES 12
static uint8_t samples[SAMPLES][REGION_MOST]; /* what deaths left, for the sweep of the next incarnation */
static int answers[SAMPLES];
static size_t sample_count, looks;
static bool collect;

static int survive(void *copy, size_t step, const struct scenario *scenario) {
	static uint8_t fresh[REGION_MOST];
	struct world left_ring;
	struct call_world left;
	struct shmrt_mailbox box;
	uint32_t self = shmrt_owner_self(), dead = dead_owner();
	struct shmrt_ring_shared *shared = copy, *model = (struct shmrt_ring_shared *)(void *)fresh;
	attach(&left_ring, &left, &box, copy, ring_world.size);
	call_world_rename(&left, self, dead);
	for (uint64_t i = 0; i < RINGS; i++) { /* takers are named in the ring, too */
		struct shmrt_ring_slot *slot = shmrt_ring_slot_at(&left_ring.ring, i);
		if (slot->owner == self)
			slot->owner = dead;
	}
	CHECK(shmrt_ring_format(model, RINGS, SLOT_BYTES, SHMRT_RING_BLOCK, 0, 0) == SHMRT_OK);
	memcpy(&shared->put_mutex, &model->put_mutex, sizeof shared->put_mutex);
	memcpy(&shared->take_mutex, &model->take_mutex, sizeof shared->take_mutex);
	shmrt_ring_repair(&box.ring);
	if (shmrt_ring_check(&box.ring) != SHMRT_OK)
		return BROKEN("the ring is not sound");
	bool unrung = shmrt_call_is_answered(shmrt_call_word(&left.calls, scenario->dying)) && bell_of(&left, scenario->dying) != 0;
	bool by_death = shmrt_call_owner_of(shmrt_call_word(&left.calls, scenario->dying)) == dead;
	if (unrung && !by_death)
		return BROKEN("an end that nobody will ring");
	call_world_fail_taken(&left, dead);
	blocks_reclaim(&left.arena, dead);
	unsigned taken[CALLS] = {0};
	uint8_t bytes[SLOT_BYTES];
	struct shmrt_mail mail = {.bytes = bytes};
	for (;;) {
		int rc = shmrt_mailbox_take(&box, &left.calls, &mail);
		if (rc == SHMRT_EMPTY)
			break;
		for (uint16_t i = 0; i < mail.block_count; i++) {
			struct shmrt_block_reference reference;
			memcpy(&reference, bytes + i * sizeof reference, sizeof reference);
			if (shmrt_arena_free(&left.arena, reference.block, reference.generation, SHMRT_BLOCK_HELD, self) != SHMRT_OK)
				return BROKEN("a block is not the taker's");
		}
		if (rc != SHMRT_OK && rc != SHMRT_STALE)
			return BROKEN("a take fails");
		if (rc == SHMRT_OK) {
			if (mail.envelope.index >= CALLS || mail.body_size != 1 || mail.name[0] != 'f' || mail.body[0] != mail.envelope.index)
				return BROKEN("a torn message");
			taken[mail.envelope.index]++;
		}
	}
	int answer = -1;
	for (unsigned i = 0; i < RINGS; i++) {
		bool ended = shmrt_call_is_answered(shmrt_call_word(&left.calls, i));
		if (ended && bell_of(&left, i) != 0)
			return BROKEN("a caller sleeps past its end");
		if (i == scenario->dying && scenario->stale) {
			answer = taken[i] == 0 ? SWEEP_BEFORE : -1;
			continue;
		}
		if (taken[i] + ended != 1 || (i != scenario->dying && ended && !scenario->again))
			return BROKEN("a call is lost, or runs although its caller has an end");
		if (i == scenario->dying)
			answer = ended ? SWEEP_AFTER : SWEEP_BEFORE;
	}
	if (answer < 0)
		return BROKEN("a stale call is taken");
	return blocks_used(&left.arena) == 0 ? answer : BROKEN("a block is lost");
}

static int judge(void *copy, size_t step, void *context) {
	bool keep = collect && sample_count < SAMPLES && looks++ % (sweep_is_long() ? 4 : 12) == 1;
	if (keep)
		memcpy(samples[sample_count], copy, ring_world.size);
	int answer = survive(copy, step, context);
	if (keep)
		answers[sample_count++] = answer;
	return answer;
}

/* The root and the next incarnation of the server, up to its first message; it dies, too, anywhere. */
static void repair(void *context) {
	(void)context;
	static uint8_t bytes[SLOT_BYTES];
	struct shmrt_mail mail = {.bytes = bytes};
	shmrt_ring_repair(&mailbox.ring);
	call_world_fail_taken(&calls, dead_owner());
	int ignored = shmrt_mailbox_take(&mailbox, &calls.calls, &mail);
	(void)ignored;
}
/* The first call may then end with the second death; what had its end before keeps it. */
struct again {
	struct scenario scenario;
	int answer;
};
static int judge_repair(void *copy, size_t step, void *context) {
	const struct again *again = context;
	const struct scenario *scenario = &again->scenario;
	int answer = survive(copy, step, scenario);
	if (answer < 0)
		return answer;
	return again->answer == SWEEP_AFTER && answer != SWEEP_AFTER ? BROKEN("a call that has an end runs") : SWEEP_BEFORE;
}

static uint8_t bytes_out[SLOT_BYTES];
static struct shmrt_mail mail_out = {.bytes = bytes_out};
static struct message_memory memory_in;
static struct shmrt_ring_message message_in;

static void do_take(void *context) {
	(void)context;
	result = shmrt_mailbox_take(&mailbox, &calls.calls, &mail_out);
}
static void do_put(void *context) {
	(void)context;
	result = shmrt_mailbox_put(&mailbox, &message_in, 0);
}

static void sweep(struct scenario scenario, void (*operation)(void *), int expected) {
	static uint8_t lived[REGION_MOST];
	sample_count = looks = 0;
	collect = true;
	struct sweep_report report = sweep_run(operation, NULL, ring_world.region, ring_world.size, judge, &scenario);
	collect = false;
	if (scenario.stale)
		sweep_expect_clean(&report, scenario.name);
	else
		sweep_expect(&report, scenario.name);
	memcpy(lived, ring_world.region, ring_world.size);
	for (size_t i = 0; i < sample_count; i++) {
		struct again again = {scenario, answers[i]};
		again.scenario.again = true;
		memcpy(ring_world.region, samples[i], ring_world.size);
		call_world_rename(&calls, shmrt_owner_self(), dead_owner());
		for (uint64_t slot = 0; slot < RINGS; slot++)
			if (shmrt_ring_slot_at(&ring_world.ring, slot)->owner == shmrt_owner_self())
				shmrt_ring_slot_at(&ring_world.ring, slot)->owner = dead_owner();
		static uint8_t fresh[REGION_MOST]; /* the mutex that the dead left is the kernel's business: test_real_kills.c */
		struct shmrt_ring_shared *model = (struct shmrt_ring_shared *)(void *)fresh;
		CHECK(shmrt_ring_format(model, RINGS, SLOT_BYTES, SHMRT_RING_BLOCK, 0, 0) == SHMRT_OK);
		memcpy(&ring_world.ring.shared->put_mutex, &model->put_mutex, sizeof model->put_mutex);
		memcpy(&ring_world.ring.shared->take_mutex, &model->take_mutex, sizeof model->take_mutex);
		struct sweep_report second = sweep_run(repair, NULL, ring_world.region, ring_world.size, judge_repair, &again);
		sweep_expect_clean(&second, scenario.name);
	}
	memcpy(ring_world.region, lived, ring_world.size);
	CHECK(result == expected);
}

int main(void) {
	dead_owner();
	for (uint16_t blocks = 0; blocks <= 2; blocks++) {
		make(SHMRT_RING_BLOCK);
		put_call(0, blocks, 0), put_call(1, 1, 0);
		sweep((struct scenario){.name = "take", .takes = true, .dying = 0}, do_take, SHMRT_OK);
		make(SHMRT_RING_BLOCK);
		put_call(0, blocks, 1), put_call(1, 1, 0);
		sweep((struct scenario){.name = "take of an expired call", .takes = true, .stale = true}, do_take, SHMRT_STALE);
		make(SHMRT_RING_BLOCK);
		put_call(0, blocks, 0), put_call(1, 1, 0);
		call_world_rename(&calls, other_owner(), shmrt_owner_self());
		CHECK(shmrt_call_give_up(&calls.calls, 0, generations[0]) == SHMRT_OK);
		call_world_rename(&calls, shmrt_owner_self(), other_owner());
		sweep((struct scenario){.name = "take of a call given up", .takes = true, .stale = true}, do_take, SHMRT_STALE);
		make(SHMRT_RING_DROP_OLDEST);
		put_call(0, blocks, 0), put_call(1, 1, 0);
		generations[2] = call_make(&calls, 2, TARGET);
		message_in = request(2, blocks, 0, &memory_in);
		sweep((struct scenario){.name = "put that drops the oldest", .dying = 0}, do_put, SHMRT_OK);
		CHECK(state_of(&calls, 0) == SHMRT_CALL_DROPPED && bell_of(&calls, 0) == 0);
	}
	printf("%zu states\n", sweep_total_states());
	return 0;
}
