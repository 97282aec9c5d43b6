/* test_arena_sweep.c -- a kill at every instruction of every arena operation, and of the repair after it.
 *
 * The swept region is the arena's words alone: the arena stands in plain memory (no descriptor), so a
 * copy of the words is all that a death leaves. ME dies; OTHER lives and holds blocks that must not
 * change; trims and repairs act under this process's own owner id, SELF, which dies in its turn.
 */
#include "arena_words.h"
#include "check.h"
#include "sweep.h"

#include <unistd.h>

#define KIB UINT64_C(1024)
#define LIMIT (UINT64_C(1024) * KIB)
#define ME 11U
#define OTHER 22U
#define STATES_MAX 1024

static uint8_t *region;
static uint64_t region_size;
static struct shmrt_arena arena;
static struct shmrt_block mine;  /* what the operation works on */
static struct shmrt_block theirs[8];
static size_t theirs_count;
static uint8_t *states[STATES_MAX]; /* what deaths left, for the sweep of the repair */
static size_t states_count;
static bool collect;
static uint32_t first_generation; /* of every block; near where it runs over, in some sweeps */

#define REQUIRE(condition)                                                                     \
	do {                                                                                   \
		if (!(condition)) {                                                            \
			fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
			return SWEEP_BROKEN;                                                   \
		}                                                                              \
	} while (0)

static uint64_t word_at(const _Atomic uint64_t *word) { return atomic_load_explicit(word, memory_order_relaxed); }

/* ---- what must hold after any death --------------------------------------------------------------- */

static int others_are_whole(struct shmrt_arena *left) {
	for (size_t i = 0; i < theirs_count; i++) {
		struct shmrt_block_reference reference = {
			.block = theirs[i].block, .generation = theirs[i].generation, .size = theirs[i].capacity};
		struct shmrt_block found;
		enum shmrt_block_state state;
		uint32_t generation, owner;
		REQUIRE(shmrt_arena_resolve(left, &reference, &found) == SHMRT_OK);
		REQUIRE(found.capacity == theirs[i].capacity && found.data - left->data == theirs[i].data - arena.data);
		shmrt_arena_state(left, reference.block, &state, &generation, &owner);
		REQUIRE(state == SHMRT_BLOCK_HELD && owner == OTHER);
	}
	return 0;
}

static int nothing_is_left(struct shmrt_arena *left) {
	uint64_t high = shmrt_arena_high(left), used = 0;
	for (uint64_t granule = 0; granule < high; granule++) {
		uint64_t word = word_at(&left->granule_words[granule]);
		REQUIRE(shmrt_granule_state_of(word) != SHMRT_GRANULE_CLAIMED);
		bool head = shmrt_granule_state_of(word) == SHMRT_GRANULE_HEAD;
		uint64_t slots = head ? shmrt_class_slots(shmrt_granule_class_of(word)) : 0;
		for (uint64_t slot = 0; slot < SHMRT_BLOCKS_PER_GRANULE; slot++) {
			uint64_t block = word_at(&left->block_words[granule * SHMRT_BLOCKS_PER_GRANULE + slot]);
			REQUIRE(slot < slots || shmrt_block_state_of(block) == SHMRT_BLOCK_FREE);
			REQUIRE(shmrt_block_state_of(block) == SHMRT_BLOCK_FREE || shmrt_word_owner(block) == OTHER);
			used += shmrt_block_state_of(block) != SHMRT_BLOCK_FREE;
		}
	}
	REQUIRE(used == theirs_count);
	return 0;
}

/* Repairs a copy and judges it; scribbles on it. */
static int repair_and_judge(uint8_t *copy) {
	static uint8_t *repaired;
	if (repaired == NULL)
		repaired = malloc(region_size);
	struct shmrt_arena left;
	struct shmrt_block block;
	char reason[200];
	REQUIRE(shmrt_arena_attach_at(&left, copy, region_size, reason, sizeof(reason)) == SHMRT_OK);
	uint32_t self = shmrt_owner_self();
	(void)shmrt_arena_reclaim(&left, self, NULL, NULL);
	(void)shmrt_arena_reclaim(&left, ME, NULL, NULL);
	REQUIRE(shmrt_arena_check(&left) == SHMRT_OK);
	REQUIRE(nothing_is_left(&left) == 0 && others_are_whole(&left) == 0);
	memcpy(repaired, copy, region_size);
	REQUIRE(shmrt_arena_reclaim(&left, ME, NULL, NULL) == 0);
	REQUIRE(shmrt_arena_reclaim(&left, self, NULL, NULL) == 0);
	REQUIRE(memcmp(repaired, copy, region_size) == 0);
	/* No granule is lost: with the others' blocks gone too, the whole limit can be had in one piece. */
	for (size_t i = 0; i < theirs_count; i++)
		REQUIRE(shmrt_arena_free(&left, theirs[i].block, theirs[i].generation, SHMRT_BLOCK_HELD, OTHER) == SHMRT_OK);
	(void)shmrt_arena_trim(&left, 0);
	REQUIRE(shmrt__arena_count_reserved(&left) == 0);
	REQUIRE(shmrt_arena_alloc(&left, LIMIT, ME, &block, NULL) == SHMRT_OK);
	return 0;
}

/* ---- one scenario --------------------------------------------------------------------------------- */

struct scenario {
	const char *name;
	void (*prepare)(void);
	void (*operate)(void *context);
	bool (*is_done)(struct shmrt_arena *left);
};

static int judge(void *copy, size_t step, void *context) {
	(void)step;
	const struct scenario *scenario = context;
	struct shmrt_arena left;
	char reason[200];
	REQUIRE(shmrt_arena_attach_at(&left, copy, region_size, reason, sizeof(reason)) == SHMRT_OK);
	bool done = scenario->is_done(&left);
	if (collect && states_count < STATES_MAX) {
		states[states_count] = malloc(region_size);
		memcpy(states[states_count++], copy, region_size);
	}
	REQUIRE(repair_and_judge(copy) == 0);
	return done ? SWEEP_AFTER : SWEEP_BEFORE;
}

static int judge_repair(void *copy, size_t step, void *context) {
	(void)step, (void)context;
	struct shmrt_arena left;
	char reason[200];
	REQUIRE(shmrt_arena_attach_at(&left, copy, region_size, reason, sizeof(reason)) == SHMRT_OK);
	return repair_and_judge(copy);
}

static void operate_repair(void *context) { (void)shmrt_arena_reclaim(context, ME, NULL, NULL); }
static void operate_repair_self(void *context) { (void)shmrt_arena_reclaim(context, shmrt_owner_self(), NULL, NULL); }

/* Runs judges with allocation (malloc in a handler) outside of any malloc of the operation: the arena
 * never allocates. */
static void run(const struct scenario *scenario) {
	memset(region, 0, region_size);
	theirs_count = states_count = 0;
	CHECK(shmrt_arena_create_at(&arena, region, region_size, LIMIT) == SHMRT_OK);
	for (uint64_t block = 0; block < LIMIT / SHMRT_GRANULE_BYTES * SHMRT_BLOCKS_PER_GRANULE; block++)
		atomic_store_explicit(&arena.block_words[block], shmrt_block_pack(SHMRT_BLOCK_FREE, first_generation, 0),
				      memory_order_relaxed); /* nobody else is here */
	scenario->prepare();
	CHECK(shmrt_arena_check(&arena) == SHMRT_OK);
	collect = true;
	struct sweep_report report = sweep_run(scenario->operate, NULL, region, region_size, judge, (void *)(uintptr_t)scenario);
	collect = false;
	sweep_expect(&report, scenario->name);
	CHECK(states_count < STATES_MAX);
	size_t before = sweep_total_states();
	for (size_t i = 0; i < states_count; i++) {
		/* Death during the repair of a death, from every state that the operation can leave. */
		if (first_generation != 0 && !sweep_is_long()) {
			free(states[i]);
			continue;
		}
		struct shmrt_arena left;
		char reason[200];
		for (int pass = 0; pass < 2; pass++) {
			memcpy(region, states[i], region_size);
			CHECK(shmrt_arena_attach_at(&left, region, region_size, reason, sizeof(reason)) == SHMRT_OK);
			report = sweep_run(pass == 0 ? operate_repair : operate_repair_self, &left, region, region_size,
					   judge_repair, NULL);
			sweep_expect_clean(&report, scenario->name);
		}
		free(states[i]);
	}
	printf("%-34s generation %8x, %6zu states left, %8zu states of their repair\n", scenario->name, first_generation, states_count,
	       sweep_total_states() - before);
}

/* ---- preparations --------------------------------------------------------------------------------- */

static void take(uint64_t size, uint32_t owner, struct shmrt_block *block) {
	CHECK(shmrt_arena_alloc(&arena, size, owner, block, NULL) == SHMRT_OK);
}

static void give(const struct shmrt_block *block, uint32_t owner) {
	CHECK(shmrt_arena_free(&arena, block->block, block->generation, SHMRT_BLOCK_WRITING, owner) == SHMRT_OK);
}

static void take_theirs(uint64_t size) {
	struct shmrt_block *block = &theirs[theirs_count++];
	take(size, OTHER, block);
	CHECK(shmrt_arena_move(&arena, block->block, block->generation, SHMRT_BLOCK_WRITING, OTHER, SHMRT_BLOCK_HELD,
			      OTHER) == SHMRT_OK);
}

static void forget_hints(void) {
	memset(arena.warm_count, 0, sizeof(arena.warm_count));
	memset(arena.cursor, 0, sizeof(arena.cursor));
	memset(arena.balance, 0, sizeof(arena.balance));
	memset((void *)arena.shared->hints, 0, sizeof(arena.shared->hints));
}

static void prepare_little(void) { take_theirs(100 * KIB); }
static void prepare_hole(void) { /* a free granule between others, so that a run must look behind it */
	struct shmrt_block block;
	take_theirs(100 * KIB);
	take(256 * KIB, ME, &block);
	take_theirs(200 * KIB);
	give(&block, ME);
	(void)shmrt_arena_trim(&arena, 2 * SHMRT_GRANULE_BYTES);
	CHECK(shmrt__arena_count_reserved(&arena) == 2);
}
static void prepare_warm(void) {
	take_theirs(64 * KIB);
	take(64 * KIB, ME, &mine);
	give(&mine, ME);
}
static void prepare_cold(void) {
	prepare_warm();
	forget_hints();
}
static void prepare_hint(void) {
	prepare_cold();
	atomic_store_explicit(&arena.shared->hints[6][3], mine.block + 1, memory_order_relaxed);
	atomic_store_explicit(&arena.shared->hints[6][1], UINT64_MAX, memory_order_relaxed); /* a false one */
}
static void prepare_full(void) { /* the limit is reached by idle runs of other classes */
	struct shmrt_block run, small;
	take_theirs(100 * KIB);
	take(512 * KIB, ME, &run);
	take(64 * KIB, ME, &small);
	give(&run, ME);
	give(&small, ME);
	CHECK(shmrt__arena_count_reserved(&arena) == LIMIT / SHMRT_GRANULE_BYTES);
}
static void prepare_mine(void) {
	take_theirs(32 * KIB);
	take(32 * KIB, ME, &mine);
}
static void prepare_sent(void) {
	prepare_mine();
	CHECK(shmrt_arena_move(&arena, mine.block, mine.generation, SHMRT_BLOCK_WRITING, ME, SHMRT_BLOCK_SENT, ME) == SHMRT_OK);
}
static void prepare_idle(void) {
	struct shmrt_block block;
	take_theirs(100 * KIB);
	take(512 * KIB, ME, &mine);
	take(32 * KIB, ME, &block);
	give(&mine, ME);
	give(&block, ME);
}
static void prepare_idle_partly(void) { /* the last of eight blocks is in use: the trim must let go again */
	struct shmrt_block blocks[7];
	for (int i = 0; i < 7; i++)
		take(32 * KIB, ME, &blocks[i]);
	take_theirs(32 * KIB);
	for (int i = 0; i < 7; i++)
		give(&blocks[i], ME);
	take(256 * KIB, ME, &mine);
	give(&mine, ME);
}
static void prepare_estate(void) { /* what a process that dies may own, in every state */
	struct shmrt_block block;
	take_theirs(32 * KIB);
	take(32 * KIB, ME, &block);
	for (int state = SHMRT_BLOCK_SENT; state <= SHMRT_BLOCK_KEPT; state++) {
		take(32 * KIB, ME, &block);
		CHECK(shmrt_arena_move(&arena, block.block, block.generation, SHMRT_BLOCK_WRITING, ME,
				      (enum shmrt_block_state)state, ME) == SHMRT_OK);
	}
	take(512 * KIB, ME, &mine);
}

/* ---- operations ----------------------------------------------------------------------------------- */

static uint64_t wanted;
static void operate_alloc(void *context) {
	(void)context;
	if (shmrt_arena_alloc(&arena, wanted, ME, &mine, NULL) != SHMRT_OK)
		abort();
}
#define ALLOC(name, size)                                                                      \
	static void name(void *context) {                                                      \
		wanted = (size);                                                               \
		operate_alloc(context);                                                        \
	}
ALLOC(alloc_1k, 1000)
ALLOC(alloc_64k, 64 * KIB)
ALLOC(alloc_512k, 512 * KIB)
ALLOC(alloc_run, 600 * KIB) /* its class, 1 MiB, does not fit beside the others: 3 granules do */

static void move_sent(void *context) {
	(void)context;
	(void)!shmrt_arena_move(&arena, mine.block, mine.generation, SHMRT_BLOCK_WRITING, ME, SHMRT_BLOCK_SENT, ME);
}
static void move_held(void *context) {
	(void)context;
	(void)!shmrt_arena_move(&arena, mine.block, mine.generation, SHMRT_BLOCK_SENT, ME, SHMRT_BLOCK_HELD, ME);
}
static void free_mine(void *context) {
	(void)context;
	(void)!shmrt_arena_free(&arena, mine.block, mine.generation, SHMRT_BLOCK_WRITING, ME);
}
static void trim_all(void *context) {
	(void)context;
	(void)shmrt_arena_trim(&arena, 0);
}
static void reclaim_me(void *context) {
	(void)context;
	(void)shmrt_arena_reclaim(&arena, ME, NULL, NULL);
}

static bool has_block(struct shmrt_arena *left) { /* ME owns a block that is one */
	for (uint64_t index = 0; index < shmrt_arena_high(left) * SHMRT_BLOCKS_PER_GRANULE; index++) {
		uint64_t granule = word_at(&left->granule_words[index / SHMRT_BLOCKS_PER_GRANULE]);
		if (shmrt_word_owner(word_at(&left->block_words[index])) == ME &&
		    shmrt_granule_state_of(granule) == SHMRT_GRANULE_HEAD)
			return true;
	}
	return false;
}
static uint32_t state_of_mine(struct shmrt_arena *left) {
	return shmrt_block_state_of(word_at(&left->block_words[mine.block]));
}
static bool is_sent(struct shmrt_arena *left) { return state_of_mine(left) == SHMRT_BLOCK_SENT; }
static bool is_held(struct shmrt_arena *left) { return state_of_mine(left) == SHMRT_BLOCK_HELD; }
static bool is_free(struct shmrt_arena *left) { return state_of_mine(left) == SHMRT_BLOCK_FREE; }
static bool is_trimmed(struct shmrt_arena *left) {
	return word_at(&left->granule_words[mine.block / SHMRT_BLOCKS_PER_GRANULE]) == 0;
}
static bool has_nothing(struct shmrt_arena *left) { return !has_block(left); }

static const struct scenario scenarios[] = {
	{"alloc: first granule, 1 KiB", prepare_little, alloc_1k, has_block},
	{"alloc: new granule, 64 KiB", prepare_little, alloc_64k, has_block},
	{"alloc: new run behind a hole", prepare_hole, alloc_512k, has_block},
	{"alloc: run of its own size", prepare_little, alloc_run, has_block},
	{"alloc: warm", prepare_warm, alloc_64k, has_block},
	{"alloc: by another's hint", prepare_hint, alloc_64k, has_block},
	{"alloc: by search", prepare_cold, alloc_64k, has_block},
	{"alloc: after a trim at the limit", prepare_full, alloc_run, has_block},
	{"move: to sent", prepare_mine, move_sent, is_sent},
	{"move: to held", prepare_sent, move_held, is_held},
	{"free", prepare_mine, free_mine, is_free},
	{"trim: granule and run", prepare_idle, trim_all, is_trimmed},
	{"trim: one block in use", prepare_idle_partly, trim_all, is_trimmed},
	{"reclaim: all states", prepare_estate, reclaim_me, has_nothing},
};

int main(int argc, char **argv) {
	(void)shmrt_owner_self(); /* its first answer reads files: not within a sweep */
	region_size = shmrt_arena_words_bytes(LIMIT);
	region = aligned_alloc(4096, region_size);
	static const uint32_t generations[] = {0, SHMRT_GENERATION_MASK - 1, SHMRT_GENERATION_MASK};
	for (size_t i = 0; i < 3 * sizeof(scenarios) / sizeof(scenarios[0]); i++) {
		const struct scenario *scenario = &scenarios[i / 3];
		first_generation = generations[i % 3];
		if (argc < 2 || strstr(scenario->name, argv[1]) != NULL)
			run(scenario);
	}
	free(region);
	printf("%zu states judged\n", sweep_total_states());
	return 0;
}
