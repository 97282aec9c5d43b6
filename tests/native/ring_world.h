/* ring_world.h -- a ring and a small arena in one region, and what a survivor finds in a copy of it.
 *
 * The arena here is a model: the words and rules of arena.h without memory behind them, so that a sweep
 * steps through the ring's instructions and a leak is a word that is not FREE. Its functions take the
 * place of the library's. A message carries its number in `flags`; size and bytes follow from it.
 */
#ifndef SHMRT_TEST_RING_WORLD_H
#define SHMRT_TEST_RING_WORLD_H

#include "check.h"
#include "ring_internal.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define BLOCKS 96
#define SLOT_BYTES 128
#define MESSAGES 80
#define LIST_END 0

/* ---- the model of the arena --------------------------------------------------------------------- */
static inline uint64_t block_word(enum shmrt_block_state state, uint32_t generation, uint32_t owner) {
	return (uint64_t)state << 60 | (uint64_t)(generation & 0xFFFFFFF) << 32 | owner;
}
void shmrt_arena_state(struct shmrt_arena *arena, uint64_t block, enum shmrt_block_state *state, uint32_t *generation,
		       uint32_t *owner) {
	uint64_t word = atomic_load_explicit(&arena->block_words[block], memory_order_acquire); /* A1 */
	*state = (enum shmrt_block_state)(word >> 60);
	*generation = (uint32_t)(word >> 32) & 0xFFFFFFF;
	*owner = (uint32_t)word;
}
int shmrt_arena_resolve(struct shmrt_arena *arena, const struct shmrt_block_reference *reference,
			struct shmrt_block *block) {
	enum shmrt_block_state state;
	uint32_t owner;
	if (reference->block >= BLOCKS)
		return SHMRT_CORRUPT;
	shmrt_arena_state(arena, reference->block, &state, &block->generation, &owner);
	return block->generation == reference->generation ? SHMRT_OK : SHMRT_STALE;
}
int shmrt_arena_move(struct shmrt_arena *arena, uint64_t block, uint32_t generation, enum shmrt_block_state from,
		     uint32_t from_owner, enum shmrt_block_state to, uint32_t to_owner) {
	if (block >= BLOCKS)
		return SHMRT_CORRUPT;
	uint64_t word = block_word(from, generation, from_owner);
	bool moved = atomic_compare_exchange_strong_explicit(&arena->block_words[block], &word,
							     block_word(to, generation, to_owner),
							     memory_order_acq_rel, memory_order_relaxed); /* A1 */
	return moved ? SHMRT_OK : SHMRT_STALE;
}
int shmrt_arena_free(struct shmrt_arena *arena, uint64_t block, uint32_t generation, enum shmrt_block_state state,
		     uint32_t owner) {
	if (block >= BLOCKS)
		return SHMRT_CORRUPT;
	uint64_t word = block_word(state, generation, owner);
	bool freed = atomic_compare_exchange_strong_explicit(&arena->block_words[block], &word,
							     block_word(SHMRT_BLOCK_FREE, generation + 1, 0),
							     memory_order_acq_rel, memory_order_relaxed); /* A2 */
	return freed ? SHMRT_OK : SHMRT_STALE;
}
static inline struct shmrt_block_reference block_new(struct shmrt_arena *arena, enum shmrt_block_state state) {
	for (uint64_t block = 0; block < BLOCKS; block++) {
		enum shmrt_block_state now;
		uint32_t generation, owner;
		shmrt_arena_state(arena, block, &now, &generation, &owner);
		uint64_t word = block_word(SHMRT_BLOCK_FREE, generation, 0);
		if (now != SHMRT_BLOCK_FREE ||
		    !atomic_compare_exchange_strong_explicit(&arena->block_words[block], &word,
							     block_word(state, generation, shmrt_owner_self()),
							     memory_order_acq_rel, memory_order_relaxed)) /* A2 */
			continue;
		return (struct shmrt_block_reference){.block = block, .size = 8, .generation = generation,
						      .flags = state == SHMRT_BLOCK_HELD};
	}
	CHECK(!"a free block");
	return (struct shmrt_block_reference){0};
}
/* What the program does for a dead process. */
static inline void blocks_reclaim(struct shmrt_arena *arena, uint32_t dead) {
	for (uint64_t block = 0; block < BLOCKS; block++) {
		enum shmrt_block_state state;
		uint32_t generation, owner;
		shmrt_arena_state(arena, block, &state, &generation, &owner);
		if (state != SHMRT_BLOCK_FREE && owner == dead)
			CHECK(shmrt_arena_free(arena, block, generation, state, owner) == SHMRT_OK);
	}
}
static inline int blocks_used(struct shmrt_arena *arena) {
	int used = 0;
	for (uint64_t block = 0; block < BLOCKS; block++)
		used += atomic_load_explicit(&arena->block_words[block], memory_order_relaxed) >> 60 != 0;
	return used;
}

/* ---- messages ----------------------------------------------------------------------------------- */
struct message_plan { uint32_t size; uint16_t blocks; bool frozen; };
static struct message_plan plan[MESSAGES]; /* by number; number 0 is none */

static inline uint8_t message_byte(unsigned number, uint32_t index) { return (uint8_t)(number * 31 + index * 7 + 1); }

struct message_memory { uint8_t bytes[SLOT_BYTES + 1]; struct shmrt_block_reference blocks[4]; };
static inline struct shmrt_ring_message message_make(struct shmrt_arena *arena, unsigned number, struct message_memory *memory) {
	for (uint32_t i = 0; i < plan[number].size; i++)
		memory->bytes[i] = message_byte(number, i);
	for (uint16_t i = 0; i < plan[number].blocks; i++)
		memory->blocks[i] = block_new(arena, plan[number].frozen ? SHMRT_BLOCK_HELD : SHMRT_BLOCK_WRITING);
	return (struct shmrt_ring_message){.inline_bytes = memory->bytes, .inline_size = plan[number].size,
					   .flags = (uint16_t)number, .block_count = plan[number].blocks,
					   .blocks = memory->blocks};
}

/* What came out, in order; a torn message makes `torn` true. */
struct catch { unsigned numbers[MESSAGES]; unsigned count; bool torn; struct shmrt_block_reference blocks[MESSAGES]; unsigned block_count; };
static inline void catch_message(void *context, const struct shmrt_ring_message *message) {
	struct catch *caught = context;
	unsigned number = message->flags;
	if (number == 0 || number >= MESSAGES || caught->count >= MESSAGES || message->inline_size != plan[number].size ||
	    message->block_count != plan[number].blocks) {
		caught->torn = true;
		return;
	}
	for (uint32_t i = 0; i < message->inline_size; i++)
		caught->torn |= message->inline_bytes[i] != message_byte(number, i);
	for (uint16_t i = 0; i < message->block_count; i++)
		if (caught->block_count < MESSAGES)
			caught->blocks[caught->block_count++] = message->blocks[i];
	caught->numbers[caught->count++] = number;
}

/* ---- the world ---------------------------------------------------------------------------------- */
struct world {
	uint8_t *region;
	size_t size, words_offset;
	struct shmrt_ring ring;
	struct shmrt_arena arena;
};
static inline void world_attach(struct world *world, void *region, size_t size) {
	memset(world, 0, sizeof *world);
	world->region = region;
	world->size = size;
	world->words_offset = size - BLOCKS * sizeof(uint64_t);
	world->arena.block_words = (_Atomic uint64_t *)(void *)(world->region + world->words_offset);
	CHECK(shmrt_ring_attach(&world->ring, region, world->words_offset, -1, &world->arena) == SHMRT_OK);
}
#define REGION_MOST (64 << 10)
static inline void world_make(struct world *world, uint64_t slots, enum shmrt_ring_full_policy on_full, uint64_t start) {
	static uint8_t *memory;
	if (memory == NULL)
		memory = mmap(NULL, REGION_MOST, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(memory != MAP_FAILED);
	memset(memory, 0, REGION_MOST);
	size_t ring_size = (size_t)shmrt_align_up(shmrt_ring_bytes(slots, SLOT_BYTES), SHMRT_LINE);
	CHECK(ring_size + BLOCKS * 8 <= REGION_MOST);
	CHECK(shmrt_ring_format((struct shmrt_ring_shared *)(void *)memory, slots, SLOT_BYTES, on_full, 0, start) == SHMRT_OK);
	world_attach(world, memory, ring_size + BLOCKS * 8);
}
static inline int world_put(struct world *world, unsigned number, int64_t timeout_ns) {
	struct message_memory memory;
	uint64_t done;
	struct shmrt_ring_message message = message_make(&world->arena, number, &memory);
	int rc = shmrt_ring_put(&world->ring, &message, 1, timeout_ns, &done);
	CHECK((rc == SHMRT_OK) == (done == 1));
	if (rc != SHMRT_OK) /* the blocks are still ours */
		for (uint16_t i = 0; i < message.block_count; i++)
			CHECK(shmrt_arena_free(&world->arena, memory.blocks[i].block, memory.blocks[i].generation,
					       plan[number].frozen ? SHMRT_BLOCK_HELD : SHMRT_BLOCK_WRITING,
					       shmrt_owner_self()) == SHMRT_OK);
	return rc;
}
static inline void catch_free(struct world *world, struct catch *caught) {
	for (unsigned i = 0; i < caught->block_count; i++)
		CHECK(shmrt_arena_free(&world->arena, caught->blocks[i].block, caught->blocks[i].generation,
				       SHMRT_BLOCK_HELD, shmrt_owner_self()) == SHMRT_OK);
	memset(caught, 0, sizeof *caught);
}
/* The number of the next message, blocks given back; 0 if there is none. */
static inline unsigned world_get(struct world *world) {
	struct catch caught = {0};
	uint64_t done;
	int rc = shmrt_ring_get(&world->ring, 1, 0, catch_message, &caught, &done);
	if (rc != SHMRT_OK)
		return 0;
	unsigned number = caught.numbers[0];
	CHECK(done == 1 && caught.count == 1 && !caught.torn);
	catch_free(world, &caught);
	return number;
}
static inline unsigned world_lease(struct world *world, uint64_t *position) {
	struct catch caught = {0};
	if (shmrt_ring_lease(&world->ring, 0, catch_message, &caught, position) != SHMRT_OK)
		return 0;
	CHECK(caught.count == 1 && !caught.torn);
	return caught.numbers[0];
}
/* An owner id that nobody has (any more). */
static inline uint32_t dead_owner(void) {
	static uint32_t owner;
	if (owner != 0)
		return owner;
	int pipes[2];
	char byte;
	CHECK(pipe(pipes) == 0);
	pid_t child = fork();
	if (child == 0) {
		close(pipes[1]);
		_exit(read(pipes[0], &byte, 1) == 0 ? 0 : 1);
	}
	owner = shmrt_owner_of(child);
	close(pipes[0]);
	close(pipes[1]);
	CHECK(owner != 0 && waitpid(child, NULL, 0) == child && !shmrt_owner_is_alive(owner));
	return owner;
}
/* As if the holders of all leases had died. */
static inline void world_kill_holders(struct world *world) {
	struct shmrt_ring_view view;
	CHECK(shmrt_ring_view(&world->ring, &view) == SHMRT_OK);
	for (uint64_t position = view.head; position != view.tail; position++) {
		struct shmrt_ring_slot *slot = shmrt_ring_slot_at(&world->ring, position);
		if (slot->state == SHMRT_RING_SLOT_LEASED)
			slot->owner = dead_owner();
	}
	atomic_store_explicit(&world->ring.lease_look_ns, 0, memory_order_relaxed); /* as if it was long ago */
}

#endif
