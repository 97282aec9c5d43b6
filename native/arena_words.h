/* arena_words.h -- how granule words and block words are packed; shared by the arena's own files only.
 *
 * granule word: state:4 | class:5 | reserved:3 | run:20 | owner:32
 *   FREE     all zero
 *   CLAIMED  owner; class and run of the run that begins here (run 0: a later granule of a claim)
 *   HEAD     class, run
 *   BODY     class, run = distance to its HEAD
 * Wherever BODY(i) stands, the word i before it is HEAD or CLAIMED with run > i: runs are taken head
 * first and let go head last. So a dead process's half-made run is found from its head alone.
 *
 * block word: state:4 | generation:28 | owner:32
 */
#ifndef SHMRT_ARENA_WORDS_H
#define SHMRT_ARENA_WORDS_H

#include "arena.h"

#define SHMRT_GENERATION_MASK ((UINT32_C(1) << 28) - 1)
#define SHMRT_RUN_MAX ((UINT64_C(1) << 20) - 1)
#define SHMRT_PAGE UINT64_C(4096)

static inline uint64_t shmrt_granule_pack(enum shmrt_granule_state state, uint32_t class_index, uint64_t run,
					  uint32_t owner) {
	return (uint64_t)state | (uint64_t)class_index << 4 | run << 12 | (uint64_t)owner << 32;
}
static inline uint32_t shmrt_granule_state_of(uint64_t word) { return word & 15; }
static inline uint32_t shmrt_granule_class_of(uint64_t word) { return word >> 4 & 31; }
static inline uint64_t shmrt_granule_run_of(uint64_t word) { return word >> 12 & SHMRT_RUN_MAX; }
static inline uint32_t shmrt_word_owner(uint64_t word) { return (uint32_t)(word >> 32); }

static inline uint64_t shmrt_block_pack(enum shmrt_block_state state, uint32_t generation, uint32_t owner) {
	return (uint64_t)state | (uint64_t)generation << 4 | (uint64_t)owner << 32;
}
static inline uint32_t shmrt_block_state_of(uint64_t word) { return word & 15; }
static inline uint32_t shmrt_block_generation_of(uint64_t word) {
	return (uint32_t)(word >> 4) & SHMRT_GENERATION_MASK;
}
static inline uint64_t shmrt_block_next_free(uint64_t word) {
	return shmrt_block_pack(SHMRT_BLOCK_FREE, (shmrt_block_generation_of(word) + 1) & SHMRT_GENERATION_MASK, 0);
}

/* Granules that a run of this class must have; 0: any number (CLASS_RUN). */
static inline uint64_t shmrt_class_run(uint32_t class_index) {
	return class_index == SHMRT_CLASS_RUN ? 0 : class_index <= 8 ? 1 : UINT64_C(1) << (class_index - 8);
}
static inline uint64_t shmrt_class_slots(uint32_t class_index) {
	return class_index >= 8 ? 1 : SHMRT_BLOCKS_PER_GRANULE >> class_index;
}
static inline bool shmrt_class_is_valid(uint32_t class_index) {
	return class_index < SHMRT_CLASS_COUNT || class_index == SHMRT_CLASS_RUN;
}
/* A HEAD that a correct writer could have left at `granule`, with `high` granules in use. */
static inline bool shmrt_head_is_valid(uint64_t word, uint64_t granule, uint64_t high) {
	uint32_t class_index = shmrt_granule_class_of(word);
	uint64_t run = shmrt_granule_run_of(word), expected = shmrt_class_run(class_index);
	return shmrt_class_is_valid(class_index) && run != 0 && run <= high - granule &&
	       (expected == 0 || run == expected) && shmrt_word_owner(word) == 0 && (word >> 9 & 7) == 0;
}
static inline uint64_t shmrt_block_capacity(uint32_t class_index, uint64_t run) {
	return class_index == SHMRT_CLASS_RUN ? run * SHMRT_GRANULE_BYTES : SHMRT_BLOCK_BYTES_MIN << class_index;
}

/* Edge A4: the words of the granules below are reserved before `granules_high` (release) says so. */
static inline uint64_t shmrt_arena_high(const struct shmrt_arena *arena) {
	uint64_t high = atomic_load_explicit(&arena->shared->granules_high, memory_order_acquire);
	return high < arena->granule_count ? high : arena->granule_count;
}

/* One compare-and-swap. acq_rel: what was done under the old value is over before the new one shows
 * (A2 for a free, A3 for a HEAD), and who finds the new value finds it done. */
static inline bool shmrt_word_swap(_Atomic uint64_t *word, uint64_t from, uint64_t to) {
	return atomic_compare_exchange_strong_explicit(word, &from, to, memory_order_acq_rel, memory_order_relaxed);
}

/* Data of granules back to the kernel. Without a descriptor memory is always there. */
static inline void shmrt_arena_punch(struct shmrt_arena *arena, uint64_t granule, uint64_t count) {
	if (arena->fd >= 0)
		(void)!shmrt_punch_hole(arena->fd,
					arena->file_offset + (uint64_t)(arena->data - arena->base) +
						granule * SHMRT_GRANULE_BYTES,
					count * SHMRT_GRANULE_BYTES);
}

struct shmrt_arena_wanted { /* what an alloc looks for */
	uint32_t class_index;
	uint32_t owner;
	uint64_t run;     /* granules; for CLASS_RUN the fewest */
	uint64_t run_max; /* the most: a bigger run would be wasted */
};

/* Takes a block of a granule that was just seen as `granule_word`. */
bool shmrt__arena_take_block(struct shmrt_arena *arena, uint64_t index, uint64_t granule_word, uint32_t owner,
			     struct shmrt_block *block);
/* A new run, its first block taken. EMPTY: the run is there, but its first block was held by somebody
 * who is just finding out that it is not his (see shmrt__arena_take_block). */
SHMRT_MUST_USE int shmrt__arena_grow(struct shmrt_arena *arena, const struct shmrt_arena_wanted *wanted,
				     struct shmrt_block *block, struct shmrt_shortage *shortage);
int shmrt__arena_no_space(struct shmrt_shortage *shortage, uint64_t needed, uint64_t free, const char *limit);
/* ---- shares (arena.h): the word half a granule behind a block's own, never a block's where blocks are
 * 2 KiB or larger. KEPT|generation|sender while the sender's views may still be looked at; else FREE. */
static inline _Atomic uint64_t *shmrt_arena_share_word(const struct shmrt_arena *arena, uint64_t index,
						       uint32_t class_index) {
	if (class_index == 0 || !shmrt_class_is_valid(class_index) ||
	    index % SHMRT_BLOCKS_PER_GRANULE >= SHMRT_BLOCKS_PER_GRANULE / 2)
		return NULL;
	return &arena->block_words[index + SHMRT_BLOCKS_PER_GRANULE / 2];
}
/* The share on this generation of a block, or 0. */
static inline uint64_t shmrt_arena_share_on(const struct shmrt_arena *arena, uint64_t index, uint32_t class_index,
					    uint32_t generation) {
	const _Atomic uint64_t *share = shmrt_arena_share_word(arena, index, class_index);
	if (share == NULL)
		return 0;
	/* acquire: it was stored before the block was sent, which is how the caller came to have it (A1) */
	uint64_t word = atomic_load_explicit(share, memory_order_acquire);
	return shmrt_block_state_of(word) == SHMRT_BLOCK_KEPT && shmrt_block_generation_of(word) == generation ? word : 0;
}
/* What a block in this state goes to instead of FREE: the share on it, or 0. One that came back to its own sharer (KEPT) is
 * freed by that; one that its receiver went on looking at (KEPT, too) goes to the sharer like any other. */
static inline uint64_t shmrt_arena_heir(const struct shmrt_arena *arena, uint64_t index, uint32_t class_index, uint64_t word) {
	uint64_t kept = shmrt_arena_share_on(arena, index, class_index, shmrt_block_generation_of(word));
	return kept == word ? 0 : kept;
}
/* Instead of freeing: the block goes to the share's owner, then the share is cleared. Had the owner let go
 * meanwhile, the block is freed here. Died in between: the owner frees both. */
static inline bool shmrt_arena_hand_over(struct shmrt_arena *arena, uint64_t index, uint64_t expected, uint64_t kept) {
	_Atomic uint64_t *word = &arena->block_words[index], *share = word + SHMRT_BLOCKS_PER_GRANULE / 2;
	if (!shmrt_word_swap(word, expected, kept))
		return false;
	if (!shmrt_word_swap(share, kept, shmrt_block_next_free(kept)))
		(void)shmrt_word_swap(word, kept, shmrt_block_next_free(kept));
	return true;
}

/* Granules that are not FREE. */
uint64_t shmrt__arena_count_reserved(const struct shmrt_arena *arena);

#endif
