/* races_arena.c -- for ThreadSanitizer: a block goes from thread to thread, and nothing but its own word orders its bytes.
 *
 * The reference lies in a relaxed word, which promises nothing: that the payload is seen is edge A1, and that the memory is not
 * written anew while somebody still reads it is edge A2. There is room for one block, so every alloc takes the one freed last.
 */
#include "arena.h"
#include "check.h"

#include <pthread.h>

#define TURNS 2000
#define WORDS 8
#define LIMIT (UINT64_C(1) << 20)
#define SIZE (UINT64_C(1) << 19)
#define OWNER(side) ((uint32_t)(side) + 7)

static void *memory;
static uint64_t bytes;
static _Atomic uint64_t sent; /* generation << 32 | block + 1; 0: none */

static void attach(struct shmrt_arena *arena) {
	char reason[200];
	CHECK(shmrt_arena_attach_at(arena, memory, bytes, reason, sizeof(reason)) == SHMRT_OK);
}

static void *send(void *nothing) {
	struct shmrt_arena arena;
	attach(&arena);
	for (uint64_t turn = 0; turn < TURNS; turn++) {
		struct shmrt_block block;
		while (atomic_load_explicit(&sent, memory_order_relaxed) != 0)
			shmrt_pause(); /* an alloc in vain would order more than it should */
		CHECK(shmrt_arena_alloc(&arena, SIZE, OWNER(0), &block, NULL) == SHMRT_OK);
		uint64_t *words = (uint64_t *)(void *)block.data;
		for (unsigned i = 0; i < WORDS; i++) /* plain; the sanitizer forgets single bytes, and sees no memset written out */
			words[i] = turn;
		CHECK(shmrt_arena_move(&arena, block.block, block.generation, SHMRT_BLOCK_WRITING, OWNER(0), SHMRT_BLOCK_SENT,
				       OWNER(0)) == SHMRT_OK);
		atomic_store_explicit(&sent, (uint64_t)block.generation << 32 | (block.block + 1), memory_order_relaxed);
	}
	return nothing;
}

static void *take(void *nothing) {
	struct shmrt_arena arena;
	attach(&arena);
	for (uint64_t turn = 0; turn < TURNS; turn++) {
		uint64_t word;
		struct shmrt_block block;
		while ((word = atomic_load_explicit(&sent, memory_order_relaxed)) == 0)
			shmrt_pause();
		struct shmrt_block_reference reference = {
			.block = (uint32_t)word - 1, .generation = (uint32_t)(word >> 32), .size = 64};
		CHECK(shmrt_arena_move(&arena, reference.block, reference.generation, SHMRT_BLOCK_SENT, OWNER(0), SHMRT_BLOCK_HELD,
				       OWNER(1)) == SHMRT_OK);
		CHECK(shmrt_arena_resolve(&arena, &reference, &block) == SHMRT_OK);
		const uint64_t *words = (const uint64_t *)(const void *)block.data;
		for (unsigned i = 0; i < WORDS; i++)
			CHECK(words[i] == turn);
		CHECK(shmrt_arena_free(&arena, reference.block, reference.generation, SHMRT_BLOCK_HELD, OWNER(1)) == SHMRT_OK);
		atomic_store_explicit(&sent, 0, memory_order_relaxed);
	}
	return nothing;
}

int main(void) {
	pthread_t threads[2];
	struct shmrt_arena arena;
	bytes = shmrt_arena_words_bytes(LIMIT) + 4 * LIMIT;
	memory = aligned_alloc(4096, shmrt_align_up(bytes, 4096));
	CHECK(memory != NULL);
	memset(memory, 0, bytes);
	CHECK(shmrt_arena_create_at(&arena, memory, bytes, LIMIT) == SHMRT_OK);
	CHECK(pthread_create(&threads[0], NULL, send, NULL) == 0 && pthread_create(&threads[1], NULL, take, NULL) == 0);
	CHECK(pthread_join(threads[0], NULL) == 0 && pthread_join(threads[1], NULL) == 0);
	return 0;
}
