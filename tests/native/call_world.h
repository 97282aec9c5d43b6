/* call_world.h -- a few call slots and a small arena in one region, and what survivors make of a copy of it.
 *
 * The arena is the model of ring_world.h. Whoever runs an operation under a sweep is this process; the judge
 * gives it another name in the copy: that of a process that is gone. The other party is a process that lives.
 */
#ifndef SHMRT_TEST_CALL_WORLD_H
#define SHMRT_TEST_CALL_WORLD_H

#include "call.h"
#include "ring_world.h"

#define CALLS 3
#define CALLS_REGION (CALLS * sizeof(struct shmrt_call_slot) + BLOCKS * sizeof(uint64_t))
#define DOWN_BYTE 0xDD

struct call_world {
	uint8_t *region;
	struct shmrt_calls calls;
	struct shmrt_arena arena;
};

static inline void call_world_attach(struct call_world *world, void *region) {
	static struct shmrt_arena_shared shared; /* only its token is looked at */
	memset(world, 0, sizeof *world);
	shared.header.token[0] = 77;
	world->region = region;
	world->calls = (struct shmrt_calls){.slots = region, .count = CALLS};
	world->arena.block_words = (_Atomic uint64_t *)(void *)(world->region + CALLS * sizeof(struct shmrt_call_slot));
	world->arena.shared = &shared;
}

/* What a slot that was used before begins with: the generation near its end, in some sweeps. */
static uint32_t first_generation;

static inline void call_world_make(struct call_world *world) {
	static uint8_t *memory;
	if (memory == NULL)
		memory = mmap(NULL, CALLS_REGION, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(memory != MAP_FAILED);
	memset(memory, 0, CALLS_REGION);
	call_world_attach(world, memory);
	for (uint32_t i = 0; i < CALLS; i++)
		atomic_store_explicit(&world->calls.slots[i].word, shmrt_call_pack(SHMRT_CALL_FREE, first_generation, 0),
				      memory_order_relaxed); /* nobody else is here */
}

/* A process that lives, and is not this one. */
static inline uint32_t other_owner(void) {
	static uint32_t owner;
	if (owner == 0)
		owner = shmrt_owner_of(getppid());
	CHECK(owner != 0);
	return owner;
}

/* In every word that names `from`. */
static inline void call_world_rename(struct call_world *world, uint32_t from, uint32_t to) {
	for (uint32_t i = 0; i < CALLS; i++) {
		struct shmrt_call_slot *slot = &world->calls.slots[i];
		uint64_t word = shmrt_call_word(&world->calls, i);
		if (shmrt_call_owner_of(word) == from)
			atomic_store_explicit(&slot->word,
					      shmrt_call_pack(shmrt_call_state_of(word), shmrt_call_generation_of(word), to),
					      memory_order_relaxed);
		if (atomic_load_explicit(&slot->caller, memory_order_relaxed) == from)
			atomic_store_explicit(&slot->caller, to, memory_order_relaxed);
	}
	for (uint64_t block = 0; block < BLOCKS; block++) {
		uint64_t word = atomic_load_explicit(&world->arena.block_words[block], memory_order_relaxed);
		if ((uint32_t)word == from && word >> 60 != SHMRT_BLOCK_FREE)
			atomic_store_explicit(&world->arena.block_words[block], (word & ~(uint64_t)UINT32_MAX) | to,
					      memory_order_relaxed);
	}
}

static inline enum shmrt_call_state state_of(const struct call_world *world, uint32_t index) {
	return shmrt_call_state_of(shmrt_call_word(&world->calls, index));
}
static inline uint32_t bell_of(const struct call_world *world, uint32_t index) {
	return atomic_load_explicit(&world->calls.slots[index].bell, memory_order_relaxed);
}

/* A reply whose bytes tell of its number. */
struct call_memory { uint8_t bytes[SHMRT_CALL_INLINE]; struct shmrt_block_reference blocks[4]; };
static inline struct shmrt_call_message reply_make(struct call_world *world, struct call_memory *memory, unsigned number, uint32_t size,
						   uint16_t blocks, bool frozen) {
	for (uint32_t i = 0; i < size; i++)
		memory->bytes[i] = message_byte(number, i);
	for (uint16_t i = 0; i < blocks; i++)
		memory->blocks[i] = block_new(&world->arena, frozen ? SHMRT_BLOCK_HELD : SHMRT_BLOCK_WRITING);
	return (struct shmrt_call_message){.status = SHMRT_CALL_REPLY, .flags = (uint16_t)number, .block_count = blocks,
					   .inline_size = size, .inline_bytes = memory->bytes, .blocks = memory->blocks};
}
static inline bool reply_is_whole(const struct shmrt_call_message *message, unsigned number, uint32_t size, uint16_t blocks) {
	bool whole = message->inline_size == size && message->flags == number && message->block_count == blocks;
	for (uint32_t i = 0; whole && i < size; i++)
		whole = message->inline_bytes[i] == message_byte(number, i);
	return whole;
}
static inline struct shmrt_call_message down_make(void) {
	static const uint8_t byte = DOWN_BYTE;
	return (struct shmrt_call_message){.status = SHMRT_CALL_DOWN, .inline_size = 1, .inline_bytes = &byte};
}

/* A call of this process in slot `index`, WAITING, its caller asleep. */
static inline uint32_t call_make(struct call_world *world, uint32_t index, uint64_t target) {
	uint32_t cursor = index, claimed, generation;
	CHECK(shmrt_call_claim(&world->calls, &cursor, &claimed) == SHMRT_OK && claimed == index);
	CHECK(shmrt_call_begin(&world->calls, index, target, 0, index, &generation) == SHMRT_OK);
	atomic_store_explicit(&world->calls.slots[index].bell, 1, memory_order_relaxed); /* as if it slept */
	return generation;
}

/* What the root does after the death of `dead`, to all slots. */
static inline void call_world_fail_taken(struct call_world *world, uint32_t dead) {
	struct shmrt_call_message down = down_make();
	for (uint32_t i = 0; i < CALLS; i++) {
		uint32_t generation;
		if (shmrt_call_seize(&world->calls, i, SHMRT_SEIZE_TAKEN, dead, &world->arena, &generation)) {
			int ignored = shmrt_call_finish(&world->calls, i, generation, &world->arena, &down);
			(void)ignored;
		}
	}
}

#endif
