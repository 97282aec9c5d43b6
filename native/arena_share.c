/* arena_share.c -- a second owner for a block that its sender can still see. See arena.h. */
#include "arena_words.h"

static _Atomic uint64_t *share_word(const struct shmrt_arena *arena, uint64_t index) {
	if (index / SHMRT_BLOCKS_PER_GRANULE >= shmrt_arena_high(arena))
		return NULL;
	/* relaxed: the class of a granule stands still while the caller has a block there */
	uint64_t word = atomic_load_explicit(&arena->granule_words[index / SHMRT_BLOCKS_PER_GRANULE],
					     memory_order_relaxed);
	return shmrt_arena_share_word(arena, index, shmrt_granule_class_of(word));
}

bool shmrt_arena_share(struct shmrt_arena *arena, uint64_t index, uint32_t generation, uint32_t owner) {
	_Atomic uint64_t *share = share_word(arena, index), *word = &arena->block_words[index];
	if (share == NULL || owner == 0)
		return false;
	/* acquire: a KEPT word was given back by whoever read the block last (edge A2) */
	uint64_t main = atomic_load_explicit(word, memory_order_acquire);
	uint64_t held = shmrt_block_pack(SHMRT_BLOCK_HELD, generation, owner);
	uint64_t kept = shmrt_block_pack(SHMRT_BLOCK_KEPT, generation, owner);
	uint64_t leased = shmrt_block_pack(SHMRT_BLOCK_QUEUED, generation, 0);
	if (main != held && main != kept && main != leased)
		return false; /* on its way, or with a receiver */
	/* relaxed: the compare-and-swap decides. Not FREE: who gave the block back has not let go of the share. */
	uint64_t before = atomic_load_explicit(share, memory_order_relaxed);
	if (shmrt_block_state_of(before) != SHMRT_BLOCK_FREE || !shmrt_word_swap(share, before, kept))
		return false;
	if (main == kept && !shmrt_word_swap(word, kept, held)) {
		(void)shmrt_word_swap(share, kept, shmrt_block_next_free(kept));
		return false;
	}
	return true;
}

uint32_t shmrt_arena_sharer(const struct shmrt_arena *arena, uint64_t index, uint32_t generation) {
	const _Atomic uint64_t *share = share_word(arena, index);
	/* acquire: it was stored before the block was sent (A1) */
	uint64_t word = share == NULL ? 0 : atomic_load_explicit(share, memory_order_acquire);
	bool kept = shmrt_block_state_of(word) == SHMRT_BLOCK_KEPT && shmrt_block_generation_of(word) == generation;
	return kept ? shmrt_word_owner(word) : 0;
}

void shmrt_arena_unshare(struct shmrt_arena *arena, uint64_t index, uint32_t generation, uint32_t owner) {
	_Atomic uint64_t *share = share_word(arena, index);
	if (share == NULL)
		return;
	uint64_t kept = shmrt_block_pack(SHMRT_BLOCK_KEPT, generation, owner);
	(void)shmrt_word_swap(share, kept, shmrt_block_next_free(kept));
	/* If it came back to us, it is ours alone now. Else its receiver frees it and finds no share. */
	(void)!shmrt_arena_free(arena, index, generation, SHMRT_BLOCK_KEPT, owner);
}
