/* races_lane.c -- for ThreadSanitizer: threads in the place of processes, on one mapping, as it knows memory by its address.
 *
 * Two threads send each other blocks of one arena by reference, through a lane each way, and sleep on a bell each when there is
 * nothing to read or no room. Everything that a payload, a record or a freed block is ordered by is in the library.
 */
#include "arena.h"
#include "bell.h"
#include "check.h"
#include "lane.h"

#include <pthread.h>

#define CAPACITY 1024
#define LIMIT (UINT64_C(2) << 20)
#define TURNS 3000
#define OWNER(side) ((uint32_t)(side) + 7)

static _Alignas(SHMRT_LINE) uint8_t lanes[2][sizeof(struct shmrt_lane_shared) + CAPACITY]; /* by sender */
static _Alignas(SHMRT_LINE) _Atomic uint32_t bells[2];
static void *arena_memory;
static uint64_t arena_bytes;

struct side {
	unsigned self;
	struct shmrt_arena arena;
	struct shmrt_lane_producer out;
	struct shmrt_lane_consumer in;
	uint64_t sent, read;
};

static bool try_send(struct side *side) {
	struct shmrt_record_header *record;
	struct shmrt_block block;
	if (side->sent == TURNS || shmrt_lane_reserve(&side->out, sizeof(struct shmrt_block_reference), &record) != SHMRT_OK)
		return false;
	CHECK(shmrt_arena_alloc(&side->arena, 2048, OWNER(side->self), &block, NULL) == SHMRT_OK);
	uint64_t *words = (uint64_t *)(void *)block.data;
	for (unsigned i = 0; i < 8; i++)
		words[i] = side->sent; /* plain stores: what A1 and A2 are for */
	CHECK(shmrt_arena_move(&side->arena, block.block, block.generation, SHMRT_BLOCK_WRITING, OWNER(side->self),
			       SHMRT_BLOCK_SENT, OWNER(side->self)) == SHMRT_OK);
	record->kind = SHMRT_RECORD_TASK;
	record->block_count = 1;
	record->id = side->sent++;
	*(struct shmrt_block_reference *)(void *)(record + 1) =
		(struct shmrt_block_reference){.block = block.block, .size = 64, .generation = block.generation};
	shmrt_lane_commit(&side->out);
	shmrt_bell_ring(&bells[!side->self]);
	return true;
}

static bool try_read(struct side *side) {
	struct shmrt_record_header header;
	const uint8_t *body;
	if (shmrt_lane_peek(&side->in, &header, &body) != SHMRT_OK)
		return false;
	struct shmrt_block_reference reference;
	struct shmrt_block block;
	memcpy(&reference, body, sizeof reference);
	uint32_t other = OWNER(!side->self), mine = OWNER(side->self);
	CHECK(header.id == side->read++);
	CHECK(shmrt_arena_move(&side->arena, reference.block, reference.generation, SHMRT_BLOCK_SENT, other, SHMRT_BLOCK_HELD,
			       mine) == SHMRT_OK);
	CHECK(shmrt_arena_resolve(&side->arena, &reference, &block) == SHMRT_OK);
	const uint64_t *words = (const uint64_t *)(const void *)block.data;
	for (unsigned i = 0; i < 8; i++)
		CHECK(words[i] == header.id);
	CHECK(shmrt_arena_free(&side->arena, reference.block, reference.generation, SHMRT_BLOCK_HELD, mine) == SHMRT_OK);
	shmrt_lane_advance(&side->in, &header);
	shmrt_lane_release(&side->in);
	shmrt_bell_ring(&bells[!side->self]); /* it may wait for room */
	return true;
}

static void *serve(void *number) {
	struct side side = {.self = (unsigned)(uintptr_t)number};
	char reason[200];
	CHECK(shmrt_arena_attach_at(&side.arena, arena_memory, arena_bytes, reason, sizeof reason) == SHMRT_OK);
	CHECK(shmrt_lane_attach_producer(&side.out, (void *)lanes[side.self], CAPACITY) == SHMRT_OK);
	CHECK(shmrt_lane_attach_consumer(&side.in, (void *)lanes[!side.self], CAPACITY) == SHMRT_OK);
	while (side.sent < TURNS || side.read < TURNS) {
		bool sent = try_send(&side), read = try_read(&side);
		if (sent || read)
			continue;
		shmrt_bell_arm(&bells[side.self]);
		sent = try_send(&side), read = try_read(&side);
		if (!sent && !read) {
			int result = shmrt_bell_sleep(&bells[side.self], SHMRT_FOREVER);
			CHECK(result == SHMRT_OK || result == SHMRT_INTERRUPTED);
		}
		shmrt_bell_disarm(&bells[side.self]);
	}
	return NULL;
}

int main(void) {
	pthread_t threads[2];
	struct shmrt_arena arena;
	arena_bytes = shmrt_arena_words_bytes(LIMIT) + 4 * LIMIT;
	arena_memory = aligned_alloc(4096, shmrt_align_up(arena_bytes, 4096));
	CHECK(arena_memory != NULL);
	memset(arena_memory, 0, arena_bytes);
	CHECK(shmrt_arena_create_at(&arena, arena_memory, arena_bytes, LIMIT) == SHMRT_OK);
	for (uintptr_t i = 0; i < 2; i++)
		shmrt_lane_format((void *)lanes[i], 0);
	for (uintptr_t i = 0; i < 2; i++)
		CHECK(pthread_create(&threads[i], NULL, serve, (void *)i) == 0);
	for (uintptr_t i = 0; i < 2; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
	struct shmrt_arena_stats stats;
	shmrt_arena_get_stats(&arena, &stats);
	CHECK(stats.blocks_used == 0);
	return 0;
}
