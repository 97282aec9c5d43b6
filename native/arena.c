/* arena.c -- taking blocks, moving them, giving them back. See arena.h. */
#include "arena_words.h"

#define WARM_MAX 16
#define HINTS (SHMRT_LINE / 8)
#define GROW_ATTEMPTS 8

/* ---- taking one block ---------------------------------------------------------------------------- */

static void fill_block(const struct shmrt_arena *arena, uint64_t index, uint64_t granule_word, uint32_t generation,
		       struct shmrt_block *block) {
	uint32_t class_index = shmrt_granule_class_of(granule_word);
	block->block = index;
	block->generation = generation;
	block->class_index = class_index;
	block->capacity = shmrt_block_capacity(class_index, shmrt_granule_run_of(granule_word));
	block->data = arena->data + index / SHMRT_BLOCKS_PER_GRANULE * SHMRT_GRANULE_BYTES +
		      (class_index >= 8 ? 0 : index % SHMRT_BLOCKS_PER_GRANULE * block->capacity);
}

bool shmrt__arena_take_block(struct shmrt_arena *arena, uint64_t index, uint64_t granule_word, uint32_t owner,
			     struct shmrt_block *block) {
	_Atomic uint64_t *word = &arena->block_words[index];
	/* relaxed: the compare-and-swap decides */
	uint64_t seen = atomic_load_explicit(word, memory_order_relaxed);
	if (shmrt_block_state_of(seen) != SHMRT_BLOCK_FREE)
		return false;
	uint32_t generation = shmrt_block_generation_of(seen);
	uint64_t mine = shmrt_block_pack(SHMRT_BLOCK_WRITING, generation, owner);
	if (!shmrt_word_swap(word, seen, mine)) /* edge A2 */
		return false;
	/* A trim may have come between the look at the granule and the swap. Had it come, it would have
	 * stored this block word after the granule word, so the swap (acquire) shows its granule word (A2, A3). */
	uint64_t now = atomic_load_explicit(&arena->granule_words[index / SHMRT_BLOCKS_PER_GRANULE],
					    memory_order_acquire);
	if (SHMRT_UNLIKELY(now != granule_word)) {
		(void)shmrt_word_swap(word, mine, shmrt_block_next_free(mine));
		return false;
	}
	fill_block(arena, index, granule_word, generation, block);
	return true;
}

/* A hint is any number: check it like one. */
static bool take_hinted(struct shmrt_arena *arena, uint64_t index, uint32_t class_index, uint32_t owner,
			struct shmrt_block *block) {
	uint64_t granule = index / SHMRT_BLOCKS_PER_GRANULE, high = shmrt_arena_high(arena);
	if (granule >= high)
		return false;
	/* edge A3 */
	uint64_t word = atomic_load_explicit(&arena->granule_words[granule], memory_order_acquire);
	if (shmrt_granule_state_of(word) != SHMRT_GRANULE_HEAD || shmrt_granule_class_of(word) != class_index ||
	    index % SHMRT_BLOCKS_PER_GRANULE >= shmrt_class_slots(class_index) ||
	    !shmrt_head_is_valid(word, granule, high))
		return false;
	return shmrt__arena_take_block(arena, index, word, owner, block);
}

static bool take_warm(struct shmrt_arena *arena, uint32_t class_index, uint32_t owner, struct shmrt_block *block) {
	while (arena->warm_count[class_index] > 0) {
		uint64_t index = arena->warm[class_index][--arena->warm_count[class_index]];
		if (take_hinted(arena, index, class_index, owner, block))
			return true;
	}
	_Atomic uint64_t *hints = arena->shared->hints[class_index];
	for (unsigned i = 0; i < HINTS; i++) {
		/* relaxed: hints order nothing */
		if (atomic_load_explicit(&hints[i], memory_order_relaxed) == 0)
			continue;
		uint64_t hint = atomic_exchange_explicit(&hints[i], 0, memory_order_relaxed);
		if (hint != 0 && take_hinted(arena, hint - 1, class_index, owner, block))
			return true;
	}
	return false;
}

/* Remembers a block that became free: here if this process will want it, else where others look. */
static void remember(struct shmrt_arena *arena, uint64_t index, uint32_t class_index) {
	if (arena->balance[class_index] > 0) {
		arena->balance[class_index]--;
		if (arena->warm_count[class_index] < WARM_MAX) {
			arena->warm[class_index][arena->warm_count[class_index]++] = index;
			return;
		}
	}
	_Atomic uint64_t *hints = arena->shared->hints[class_index];
	for (unsigned i = 0; i < HINTS; i++) {
		/* relaxed: hints order nothing; two that store at once lose one hint, no block */
		if (atomic_load_explicit(&hints[i], memory_order_relaxed) == 0) {
			atomic_store_explicit(&hints[i], index + 1, memory_order_relaxed);
			return;
		}
	}
}

/* ---- searching ----------------------------------------------------------------------------------- */

static bool search_granules(struct shmrt_arena *arena, const struct shmrt_arena_wanted *wanted, uint64_t from, uint64_t to,
			    uint64_t first_slot, uint64_t high, struct shmrt_block *block) {
	uint64_t slots = shmrt_class_slots(wanted->class_index);
	for (uint64_t granule = from; granule < to; first_slot = 0) {
		/* edge A3 */
		uint64_t word = atomic_load_explicit(&arena->granule_words[granule], memory_order_acquire);
		if (shmrt_granule_state_of(word) != SHMRT_GRANULE_HEAD ||
		    !shmrt_head_is_valid(word, granule, high)) {
			granule++;
			continue;
		}
		uint64_t run = shmrt_granule_run_of(word);
		if (shmrt_granule_class_of(word) == wanted->class_index && run >= wanted->run && run <= wanted->run_max) {
			for (uint64_t slot = first_slot; slot < slots; slot++) {
				uint64_t index = granule * SHMRT_BLOCKS_PER_GRANULE + slot;
				if (shmrt__arena_take_block(arena, index, word, wanted->owner, block))
					return true;
			}
		}
		granule += run;
	}
	return false;
}

/* From where the last search of the class ended, once around. */
static bool search(struct shmrt_arena *arena, const struct shmrt_arena_wanted *wanted, struct shmrt_block *block) {
	uint64_t high = shmrt_arena_high(arena), cursor = 0;
	bool classed = wanted->class_index < SHMRT_CLASS_COUNT;
	if (classed)
		cursor = arena->cursor[wanted->class_index];
	uint64_t start = cursor / SHMRT_BLOCKS_PER_GRANULE, slot = cursor % SHMRT_BLOCKS_PER_GRANULE;
	if (start >= high)
		start = slot = 0;
	if (!search_granules(arena, wanted, start, high, slot, high, block) &&
	    !search_granules(arena, wanted, 0, start + (slot > 0), 0, high, block))
		return false;
	if (classed)
		arena->cursor[wanted->class_index] = block->block + 1;
	return true;
}

/* ---- the operations ------------------------------------------------------------------------------ */

/* As many granules as it needs: beyond the classes, or where a whole class is too much. */
static void choose_exact(uint64_t size, struct shmrt_arena_wanted *wanted) {
	wanted->class_index = SHMRT_CLASS_RUN;
	wanted->run = (size - 1) / SHMRT_GRANULE_BYTES + 1;
	wanted->run_max = wanted->run + wanted->run / 4;
}

static int choose(const struct shmrt_arena *arena, uint64_t size, uint32_t owner, struct shmrt_arena_wanted *wanted) {
	uint64_t limit = arena->limit_bytes / SHMRT_GRANULE_BYTES;
	wanted->owner = owner;
	if (size <= SHMRT_CLASS_BYTES_MAX) {
		uint64_t rounded = shmrt_power_of_two_at_least(size);
		wanted->class_index = rounded <= SHMRT_BLOCK_BYTES_MIN
					      ? 0
					      : (uint32_t)__builtin_ctzll(rounded / SHMRT_BLOCK_BYTES_MIN);
		wanted->run = wanted->run_max = shmrt_class_run(wanted->class_index);
		if (wanted->run <= limit)
			return SHMRT_OK;
	}
	if (size > limit * SHMRT_GRANULE_BYTES || size > SHMRT_RUN_MAX * SHMRT_GRANULE_BYTES)
		return SHMRT_TOO_LARGE;
	choose_exact(size, wanted);
	return SHMRT_OK;
}

/* Idle runs of other classes may hold what is missing: first as much as is wanted, then all of it. */
static bool make_room(struct shmrt_arena *arena, uint64_t run, int *stage) {
	uint64_t reserved = shmrt__arena_count_reserved(arena), released = 0;
	if (*stage == 0) {
		released = shmrt_arena_trim(arena, (reserved > run ? reserved - run : 0) * SHMRT_GRANULE_BYTES);
		*stage = 1;
	}
	if (*stage == 1 && released == 0) {
		released = shmrt_arena_trim(arena, 0);
		*stage = 2;
	}
	return released != 0;
}

static int alloc_slow(struct shmrt_arena *arena, const struct shmrt_arena_wanted *wanted, struct shmrt_block *block,
		      struct shmrt_shortage *shortage) {
	int stage = 0;
	int outcome = SHMRT_EMPTY;
	for (int attempts = 0; attempts < GROW_ATTEMPTS; attempts++) {
		if (search(arena, wanted, block))
			return SHMRT_OK;
		outcome = shmrt__arena_grow(arena, wanted, block, shortage);
		if (outcome == SHMRT_OK || (outcome != SHMRT_NO_SPACE && outcome != SHMRT_EMPTY))
			return outcome;
		if (outcome == SHMRT_NO_SPACE && !make_room(arena, wanted->run, &stage))
			return outcome;
	}
	return outcome == SHMRT_EMPTY
		       ? shmrt__arena_no_space(shortage, wanted->run * SHMRT_GRANULE_BYTES, 0, "blocks of the arena held by others")
		       : outcome;
}

int shmrt_arena_alloc(struct shmrt_arena *arena, uint64_t size, uint32_t owner, struct shmrt_block *block,
		      struct shmrt_shortage *shortage) {
	struct shmrt_arena_wanted wanted;
	struct shmrt_shortage unwanted;
	if (owner == 0)
		return SHMRT_INVALID;
	int outcome = choose(arena, size, owner, &wanted);
	if (outcome != SHMRT_OK)
		return outcome;
	bool classed = wanted.class_index < SHMRT_CLASS_COUNT;
	if (!(classed && take_warm(arena, wanted.class_index, owner, block))) {
		if (shortage == NULL)
			shortage = &unwanted;
		outcome = alloc_slow(arena, &wanted, block, shortage);
		if (outcome == SHMRT_NO_SPACE && classed && wanted.run > (size - 1) / SHMRT_GRANULE_BYTES + 1) {
			choose_exact(size, &wanted); /* up to half of the class would be empty */
			classed = false;
			outcome = alloc_slow(arena, &wanted, block, shortage);
		}
		if (outcome != SHMRT_OK)
			return outcome;
	}
	if (classed && arena->balance[wanted.class_index] < WARM_MAX)
		arena->balance[wanted.class_index]++;
	arena->allocations++;
	return SHMRT_OK;
}

int shmrt_arena_resolve(struct shmrt_arena *arena, const struct shmrt_block_reference *reference,
			struct shmrt_block *block) {
	struct shmrt_block_reference read = *reference; /* once: it may lie in shared memory */
	uint64_t high = shmrt_arena_high(arena), granule = read.block / SHMRT_BLOCKS_PER_GRANULE;
	if (granule >= high || read.generation > SHMRT_GENERATION_MASK)
		return SHMRT_CORRUPT;
	/* edge A1: the sender's store of the state is what the reference led to */
	uint64_t word = atomic_load_explicit(&arena->block_words[read.block], memory_order_acquire);
	uint32_t state = shmrt_block_state_of(word);
	if (state > SHMRT_BLOCK_QUEUED)
		return SHMRT_CORRUPT;
	if (shmrt_block_generation_of(word) != read.generation || state == SHMRT_BLOCK_FREE)
		return SHMRT_STALE;
	/* edge A3 */
	uint64_t granule_word = atomic_load_explicit(&arena->granule_words[granule], memory_order_acquire);
	if (shmrt_granule_state_of(granule_word) > SHMRT_GRANULE_BODY)
		return SHMRT_CORRUPT;
	if (shmrt_granule_state_of(granule_word) != SHMRT_GRANULE_HEAD)
		return SHMRT_STALE;
	if (!shmrt_head_is_valid(granule_word, granule, high))
		return SHMRT_CORRUPT;
	if (read.block % SHMRT_BLOCKS_PER_GRANULE >= shmrt_class_slots(shmrt_granule_class_of(granule_word)))
		return SHMRT_STALE;
	fill_block(arena, read.block, granule_word, read.generation, block);
	return read.size <= block->capacity ? SHMRT_OK : SHMRT_CORRUPT;
}

static bool index_is_valid(const struct shmrt_arena *arena, uint64_t index) {
	return index / SHMRT_BLOCKS_PER_GRANULE < shmrt_arena_high(arena);
}

int shmrt_arena_move(struct shmrt_arena *arena, uint64_t index, uint32_t generation, enum shmrt_block_state from,
		     uint32_t from_owner, enum shmrt_block_state to, uint32_t to_owner) {
	if (from == SHMRT_BLOCK_FREE || to == SHMRT_BLOCK_FREE || to > SHMRT_BLOCK_QUEUED ||
	    (to == SHMRT_BLOCK_QUEUED) != (to_owner == 0))
		return SHMRT_INVALID;
	if (!index_is_valid(arena, index))
		return SHMRT_CORRUPT;
	/* edge A1: to SENT or QUEUED releases the payload, from them acquires it */
	return shmrt_word_swap(&arena->block_words[index], shmrt_block_pack(from, generation, from_owner),
			       shmrt_block_pack(to, generation, to_owner))
		       ? SHMRT_OK
		       : SHMRT_STALE;
}

int shmrt_arena_free(struct shmrt_arena *arena, uint64_t index, uint32_t generation, enum shmrt_block_state state,
		     uint32_t owner) {
	if (state == SHMRT_BLOCK_FREE)
		return SHMRT_INVALID;
	if (!index_is_valid(arena, index))
		return SHMRT_CORRUPT;
	/* relaxed: only to know the class; a block that is ours keeps its granule as it is */
	uint64_t granule_word = atomic_load_explicit(&arena->granule_words[index / SHMRT_BLOCKS_PER_GRANULE],
						     memory_order_relaxed);
	uint64_t expected = shmrt_block_pack(state, generation, owner);
	uint64_t kept = shmrt_arena_heir(arena, index, shmrt_granule_class_of(granule_word), expected);
	if (SHMRT_UNLIKELY(kept != 0))
		return shmrt_arena_hand_over(arena, index, expected, kept) ? SHMRT_OK : SHMRT_STALE;
	if (!shmrt_word_swap(&arena->block_words[index], expected, shmrt_block_next_free(expected))) /* edge A2 */
		return SHMRT_STALE;
	arena->frees++;
	if (shmrt_granule_class_of(granule_word) < SHMRT_CLASS_COUNT)
		remember(arena, index, shmrt_granule_class_of(granule_word));
	return SHMRT_OK;
}

void shmrt_arena_state(struct shmrt_arena *arena, uint64_t index, enum shmrt_block_state *state,
		       uint32_t *generation, uint32_t *owner) {
	uint64_t word = 0;
	if (index_is_valid(arena, index)) /* edge A1 */
		word = atomic_load_explicit(&arena->block_words[index], memory_order_acquire);
	*state = (enum shmrt_block_state)shmrt_block_state_of(word);
	*generation = shmrt_block_generation_of(word);
	*owner = shmrt_word_owner(word);
}
