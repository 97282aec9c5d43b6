/* test_call_sweep.c -- every step of a call dies after every instruction; the other party and the root go on.
 *
 * Each scenario is one operation of this process on slot 0. In the judge's copy it is dead. First the other party may
 * act (give up, reply), then the root cleans up, in both orders with the arena. Then a caller that lives must find an
 * end or wait rightly, its bell rung; one that is dead must leave nothing: no slot, no block. Over states that deaths left
 * (a sample; more of them with SWEEP_LONG=1) the root's repair dies after every instruction, too, and is done again.
 */
#include "call_world.h"
#include "sweep.h"

#define TARGET 5
#define SIZE 40
#define NUMBER 9

enum peer { PEER_NONE, PEER_GIVES_UP, PEER_DIES, PEER_FINISHES };

static struct call_world world;
static struct call_memory memory;
static struct shmrt_call_message reply;
static uint32_t generation;
static int result;

struct scenario {
	const char *name;
	bool caller_dies; /* the operation is the caller's */
	enum peer peer;
	uint16_t blocks;
	bool may_reply, may_fail, may_drop, may_wait; /* how a living caller may find its call */
};

#define BROKEN(reason) (fprintf(stderr, "%s: %s (step %zu)\n", scenario->name, reason, step), SWEEP_BROKEN)

/* The living caller of slot 0, here under this process's name. Its answer: before or after. */
static int look_as_caller(struct call_world *left, const struct scenario *scenario, size_t step) {
	uint8_t body[SHMRT_CALL_INLINE] __attribute__((aligned(8)));
	struct shmrt_call_message message;
	call_world_rename(left, other_owner(), shmrt_owner_self());
	int rc = shmrt_call_read(&left->calls, 0, generation, &left->arena, body, &message);
	if (rc == SHMRT_EMPTY) {
		if (!scenario->may_wait)
			return BROKEN("the caller waits for ever");
		return blocks_used(&left->arena) == 0 ? SWEEP_BEFORE : BROKEN("a block is lost");
	}
	if (rc != SHMRT_OK)
		return BROKEN("the caller cannot read");
	if (bell_of(left, 0) != 0)
		return BROKEN("the caller sleeps past its answer");
	if (state_of(left, 0) != SHMRT_CALL_IDLE)
		return BROKEN("the slot is not the caller's again");
	if (blocks_used(&left->arena) != message.block_count)
		return BROKEN("a block is lost or shared");
	for (uint16_t i = 0; i < message.block_count; i++)
		if (shmrt_arena_free(&left->arena, message.blocks[i].block, message.blocks[i].generation, SHMRT_BLOCK_HELD,
				     shmrt_owner_self()) != SHMRT_OK)
			return BROKEN("a block is not the caller's");
	if (message.status == SHMRT_CALL_DOWN && scenario->may_fail)
		return message.inline_size == 1 && message.inline_bytes[0] == DOWN_BYTE ? 2 : BROKEN("a torn reason");
	if (message.status == SHMRT_CALL_REPLY && scenario->may_reply)
		return reply_is_whole(&message, NUMBER, SIZE, scenario->blocks) ? SWEEP_AFTER : BROKEN("a torn reply");
	return message.status == SHMRT_CALL_OVERLOADED && scenario->may_drop ? SWEEP_AFTER : BROKEN("a wrong end");
}

static int survive(const struct scenario *scenario, void *copy, size_t step, bool arena_first) {
	struct call_world left;
	uint32_t self = shmrt_owner_self(), dead = dead_owner();
	call_world_attach(&left, copy);
	bool before = state_of(&left, 0) == SHMRT_CALL_FREE || shmrt_call_generation_of(shmrt_call_word(&left.calls, 0)) != generation;
	call_world_rename(&left, self, dead);
	int given_up = SHMRT_EMPTY;
	if (scenario->peer == PEER_GIVES_UP) {
		call_world_rename(&left, other_owner(), self);
		given_up = shmrt_call_give_up(&left.calls, 0, generation);
		call_world_rename(&left, self, other_owner());
	} else if (scenario->peer == PEER_DIES) { /* the living party dies, too, and is cleaned up first */
		call_world_rename(&left, other_owner(), dead);
		shmrt_calls_reclaim(&left.calls, &left.arena);
	} else if (scenario->peer == PEER_FINISHES) {
		struct shmrt_call_message message = {.status = SHMRT_CALL_REPLY, .inline_size = 1, .inline_bytes = memory.bytes};
		call_world_rename(&left, other_owner(), self);
		uint64_t word = shmrt_call_word(&left.calls, 0);
		if (shmrt_call_owner_of(word) == self && (shmrt_call_state_of(word) == SHMRT_CALL_WRITING ||
							  shmrt_call_state_of(word) == SHMRT_CALL_ABANDONED)) {
			int ignored = shmrt_call_finish(&left.calls, 0, generation, &left.arena, &message);
			(void)ignored;
		}
		call_world_rename(&left, self, other_owner());
	}
	if (arena_first)
		blocks_reclaim(&left.arena, dead);
	call_world_fail_taken(&left, dead);
	call_world_rename(&left, self, dead); /* the root dies, too: another one finds nothing to do */
	shmrt_calls_reclaim(&left.calls, &left.arena);
	call_world_fail_taken(&left, dead);
	shmrt_calls_reclaim(&left.calls, &left.arena);
	blocks_reclaim(&left.arena, dead);
	for (uint32_t i = 0; i < CALLS; i++)
		if (shmrt_call_check(&left.calls, i) != SHMRT_OK)
			return BROKEN("a word that no writer leaves");
	if (!scenario->caller_dies && scenario->peer == PEER_NONE)
		return look_as_caller(&left, scenario, step);
	if (!scenario->caller_dies && given_up == SHMRT_EMPTY && scenario->peer == PEER_GIVES_UP)
		return look_as_caller(&left, scenario, step);
	if (!scenario->caller_dies && given_up == SHMRT_OK) {
		if (state_of(&left, 0) != SHMRT_CALL_IDLE)
			return BROKEN("a slot that was given up is not the caller's");
	} else if (state_of(&left, 0) != SHMRT_CALL_FREE) {
		return BROKEN("a slot is lost");
	}
	if (blocks_used(&left.arena) != 0)
		return BROKEN("a block is lost");
	return before ? SWEEP_BEFORE : SWEEP_AFTER;
}

#define STATES_MAX 64
static uint8_t states[STATES_MAX][CALLS_REGION]; /* what deaths left, for the sweep of the repair */
static int answers[STATES_MAX];
static size_t state_count, state_looks;
static bool collect;

static int judge(void *copy, size_t step, void *context) {
	static uint8_t other[CALLS_REGION] __attribute__((aligned(4096)));
	memcpy(other, copy, CALLS_REGION);
	bool keep = collect && state_count < STATES_MAX && state_looks++ % (sweep_is_long() ? 16 : 60) == 3;
	if (keep)
		memcpy(states[state_count], copy, CALLS_REGION);
	int answer = survive(context, copy, step, false);
	int second = answer < 0 ? answer : survive(context, other, step, true);
	if (keep)
		answers[state_count++] = answer;
	return second < 0 ? second : answer;
}

/* The root's repair of the death of this process: what it had taken fails, what it waited for is freed. */
static void repair(void *context) {
	(void)context;
	call_world_fail_taken(&world, dead_owner());
	shmrt_calls_reclaim(&world.calls, &world.arena);
}

/* A repair dies: the next one and the survivors find what the first would have left, its answer included. */
struct again {
	struct scenario scenario;
	int answer;
};
static int judge_repair(void *copy, size_t step, void *context) {
	static uint8_t other[CALLS_REGION] __attribute__((aligned(4096)));
	const struct again *again = context;
	const struct scenario *scenario = &again->scenario;
	memcpy(other, copy, CALLS_REGION);
	int answer = survive(scenario, copy, step, false);
	int second = answer < 0 ? answer : survive(scenario, other, step, true);
	if (second < 0)
		return second;
	bool ended = again->answer == SWEEP_BEFORE && scenario->may_fail && answer == 2; /* the root that died told it */
	return answer == again->answer || ended || scenario->caller_dies || scenario->peer != PEER_NONE
		       ? SWEEP_BEFORE
		       : BROKEN("a repair that dies decides otherwise");
}

static void sweep(struct scenario scenario, void (*operation)(void *)) {
	result = SHMRT_OK;
	static uint8_t lived[CALLS_REGION];
	state_count = state_looks = 0;
	collect = sweep_is_long() || (scenario.peer == PEER_NONE && first_generation == 0);
	struct sweep_report report = sweep_run(operation, &world, world.region, CALLS_REGION, judge, &scenario);
	collect = false;
	sweep_expect_clean(&report, scenario.name);
	memcpy(lived, world.region, CALLS_REGION);
	for (size_t i = 0; i < state_count; i++) {
		struct again again = {scenario, answers[i]};
		memcpy(world.region, states[i], CALLS_REGION);
		call_world_rename(&world, shmrt_owner_self(), dead_owner());
		struct sweep_report second = sweep_run(repair, &world, world.region, CALLS_REGION, judge_repair, &again);
		sweep_expect_clean(&second, scenario.name);
	}
	memcpy(world.region, lived, CALLS_REGION);
	CHECK(result == SHMRT_OK);
	if (scenario.may_reply && scenario.may_fail && scenario.peer == PEER_NONE && !report.skipped)
		CHECK(report.seen[SWEEP_AFTER] != 0 && report.seen[SWEEP_BEFORE] + report.seen[2] != 0);
}

/* ---- operations ---------------------------------------------------------------------------------- */
static uint32_t number_out;
static uint8_t body_out[SHMRT_CALL_INLINE] __attribute__((aligned(8)));
static struct shmrt_call_message message_out;

static void do_claim(void *context) {
	(void)context;
	uint32_t cursor = 0;
	result = shmrt_call_claim(&world.calls, &cursor, &number_out);
}
static void do_begin(void *context) {
	(void)context;
	result = shmrt_call_begin(&world.calls, 0, TARGET, 0, 0, &number_out);
}
static void do_read(void *context) {
	(void)context;
	result = shmrt_call_read(&world.calls, 0, generation, &world.arena, body_out, &message_out);
}
static void do_give_up(void *context) {
	(void)context;
	result = shmrt_call_give_up(&world.calls, 0, generation);
	if (result == SHMRT_STALE)
		result = SHMRT_OK; /* abandoned */
}
static void do_release(void *context) {
	(void)context;
	shmrt_call_release(&world.calls, 0);
}
static void do_take(void *context) {
	(void)context;
	result = shmrt_call_take(&world.calls, 0, generation);
}
static void do_drop(void *context) {
	(void)context;
	result = shmrt_call_drop(&world.calls, 0, generation);
}
static void do_reply(void *context) {
	(void)context;
	result = shmrt_call_reply(&world.calls, 0, generation, &world.arena, &reply);
}
static enum shmrt_call_seizure seizure;
static uint64_t whom;
static void do_fail(void *context) { /* what the root does to one slot */
	(void)context;
	uint32_t seized;
	struct shmrt_call_message down = {.status = SHMRT_CALL_DOWN, .inline_size = 1, .inline_bytes = (const uint8_t *)"\xDD"};
	if (shmrt_call_seize(&world.calls, 0, seizure, whom, &world.arena, &seized))
		result = shmrt_call_finish(&world.calls, 0, seized, &world.arena, &down);
	else
		result = shmrt_call_is_answered(shmrt_call_word(&world.calls, 0)) ? SHMRT_OK : SHMRT_STALE;
}
static void do_reclaim(void *context) {
	(void)context;
	result = shmrt_calls_reclaim(&world.calls, &world.arena) == 1 ? SHMRT_OK : SHMRT_STALE;
}

/* ---- scenarios ----------------------------------------------------------------------------------- */

/* A call of the other party's, WAITING. */
static void begin(void) {
	call_world_make(&world);
	generation = call_make(&world, 0, TARGET);
	call_world_rename(&world, shmrt_owner_self(), other_owner());
}
static void set_word(enum shmrt_call_state state, uint32_t owner) {
	atomic_store_explicit(&world.calls.slots[0].word, shmrt_call_pack(state, generation, owner), memory_order_relaxed);
}
/* As a writer leaves it that dies before the last store; `queued` of the two blocks are QUEUED. */
static void half_written(uint16_t queued) {
	struct shmrt_call_slot *slot = &world.calls.slots[0];
	struct shmrt_call_message message = reply_make(&world, &memory, NUMBER, SIZE, 2, false);
	memcpy(slot->body, memory.blocks, sizeof memory.blocks);
	atomic_store_explicit(&slot->arena, 77, memory_order_relaxed);
	atomic_store_explicit(&slot->block_count, 2, memory_order_relaxed);
	for (uint16_t i = 0; i < queued; i++)
		CHECK(shmrt_arena_move(&world.arena, message.blocks[i].block, message.blocks[i].generation, SHMRT_BLOCK_WRITING,
				       shmrt_owner_self(), SHMRT_BLOCK_QUEUED, 0) == SHMRT_OK);
}

static void sweep_caller(void) {
	call_world_make(&world);
	generation = first_generation;
	sweep((struct scenario){.name = "claim", .caller_dies = true}, do_claim);
	generation = (first_generation + 1) % SHMRT_CALL_GENERATIONS;
	sweep((struct scenario){.name = "begin", .caller_dies = true}, do_begin);
	for (uint16_t blocks = 0; blocks <= 2; blocks++) {
		call_world_make(&world);
		generation = call_make(&world, 0, TARGET);
		reply = reply_make(&world, &memory, NUMBER, SIZE, blocks, false);
		CHECK(shmrt_call_reply(&world.calls, 0, generation, &world.arena, &reply) == SHMRT_OK);
		CHECK(bell_of(&world, 0) == 0);
		sweep((struct scenario){.name = "read", .caller_dies = true}, do_read);
		CHECK(reply_is_whole(&message_out, NUMBER, SIZE, blocks));
	}
	static const enum shmrt_call_state states[] = {SHMRT_CALL_WAITING, SHMRT_CALL_TAKEN, SHMRT_CALL_WRITING};
	for (unsigned i = 0; i < 3; i++) {
		call_world_make(&world);
		generation = call_make(&world, 0, TARGET);
		set_word(states[i], i == 0 ? shmrt_owner_self() : other_owner());
		sweep((struct scenario){.name = "give up", .caller_dies = true, .peer = i == 2 ? PEER_FINISHES : PEER_NONE}, do_give_up);
		CHECK(state_of(&world, 0) == (i == 2 ? SHMRT_CALL_ABANDONED : SHMRT_CALL_IDLE));
	}
	call_world_make(&world);
	generation = call_make(&world, 0, TARGET);
	CHECK(shmrt_call_give_up(&world.calls, 0, generation) == SHMRT_OK);
	sweep((struct scenario){.name = "release", .caller_dies = true}, do_release);
	CHECK(state_of(&world, 0) == SHMRT_CALL_FREE);
}

static void sweep_server(enum peer peer) {
	begin();
	sweep((struct scenario){.name = "take", .peer = peer, .may_wait = true, .may_fail = true}, do_take);
	CHECK(state_of(&world, 0) == SHMRT_CALL_TAKEN);
	begin();
	sweep((struct scenario){.name = "drop", .peer = peer, .may_wait = true, .may_drop = true}, do_drop);
	CHECK(bell_of(&world, 0) == 0);
	for (uint16_t blocks = 0; blocks <= 2; blocks++) {
		for (unsigned taken = 0; taken < 2; taken++) {
			begin();
			if (taken)
				CHECK(shmrt_call_take(&world.calls, 0, generation) == SHMRT_OK);
			reply = reply_make(&world, &memory, NUMBER, SIZE, blocks, blocks == 2);
			for (uint16_t i = 0; i < blocks && blocks == 2; i++)
				memory.blocks[i].flags = 1;
			sweep((struct scenario){.name = "reply", .peer = peer, .blocks = blocks, .may_reply = true, .may_fail = true,
						.may_wait = !taken}, do_reply);
			CHECK(bell_of(&world, 0) == 0);
		}
	}
}

static void sweep_root(enum peer peer) {
	static const enum shmrt_call_state states[] = {SHMRT_CALL_TAKEN, SHMRT_CALL_WRITING, SHMRT_CALL_REPLIED, SHMRT_CALL_DROPPED};
	for (unsigned i = 0; i < 4; i++)
		for (uint16_t queued = 0; queued <= (i == 1 ? 2 : 0); queued++) {
			begin();
			if (i == 1)
				half_written(queued);
			call_world_rename(&world, shmrt_owner_self(), dead_owner());
			set_word(states[i], dead_owner());
			if (i == 2) { /* replied, the bell not rung */
				set_word(SHMRT_CALL_WAITING, other_owner());
				reply = reply_make(&world, &memory, NUMBER, SIZE, 0, false);
				CHECK(shmrt_call_reply(&world.calls, 0, generation, &world.arena, &reply) == SHMRT_OK);
				set_word(SHMRT_CALL_REPLIED, dead_owner());
				atomic_store_explicit(&world.calls.slots[0].bell, 1, memory_order_relaxed);
			}
			seizure = SHMRT_SEIZE_TAKEN, whom = dead_owner();
			sweep((struct scenario){.name = "fail taken", .peer = peer, .may_fail = i < 2, .may_drop = i == 3,
						.may_reply = i == 2, .may_wait = false}, do_fail);
			CHECK(bell_of(&world, 0) == 0);
		}
	begin();
	seizure = SHMRT_SEIZE_WAITING, whom = TARGET;
	sweep((struct scenario){.name = "fail waiting", .peer = peer, .may_fail = true, .may_wait = true}, do_fail);
	CHECK(bell_of(&world, 0) == 0);
}

static void sweep_reclaim(void) {
	for (enum shmrt_call_state state = SHMRT_CALL_IDLE; state <= SHMRT_CALL_ABANDONED; state++) {
		begin();
		if (state == SHMRT_CALL_REPLIED) {
			reply = reply_make(&world, &memory, NUMBER, SIZE, 2, false);
			CHECK(shmrt_call_reply(&world.calls, 0, generation, &world.arena, &reply) == SHMRT_OK);
		} else if (state == SHMRT_CALL_WRITING || state == SHMRT_CALL_ABANDONED) {
			half_written(1);
		}
		call_world_rename(&world, shmrt_owner_self(), dead_owner());
		call_world_rename(&world, other_owner(), dead_owner());
		set_word(state, dead_owner());
		sweep((struct scenario){.name = "reclaim", .caller_dies = true}, do_reclaim);
		CHECK(state_of(&world, 0) == SHMRT_CALL_FREE);
	}
}

int main(void) {
	static const uint32_t starts[] = {0, SHMRT_CALL_GENERATIONS - 2, SHMRT_CALL_GENERATIONS - 1};
	dead_owner();
	for (unsigned i = 0; i < (sweep_is_long() ? 3 : 2); i++) {
		first_generation = starts[i == 1 ? 2 : i == 2 ? 1 : 0]; /* the next generation is 0 again */
		sweep_caller();
		for (enum peer peer = PEER_NONE; peer <= PEER_DIES; peer++) {
			sweep_server(peer);
			sweep_root(peer);
		}
		sweep_reclaim();
	}
	printf("%zu states\n", sweep_total_states());
	return 0;
}
