/* arena_reclaim.c -- what the dead left, what is idle, what there is. See arena.h.
 *
 * The order of the stores is the repair: a run is let go last granule first and head last, and its
 * head stays CLAIMED, naming somebody, until all else is done. Whoever dies on the way is found by the
 * next reclaim, the reclaimer included.
 */
#include "arena_words.h"

#define VERDICTS 64

/* ---- reclaim ------------------------------------------------------------------------------------- */

struct verdicts { /* of one reclaim: whose words are to be taken */
	uint32_t only; /* this owner; 0: every owner that is dead */
	uint32_t self;
	uint32_t owners[VERDICTS]; /* remembered answers, by hash; the dead stay dead */
	bool dead[VERDICTS];
};

static bool is_to_take(struct verdicts *verdicts, uint32_t owner) {
	if (owner == 0)
		return false;
	if (verdicts->only != 0)
		return owner == verdicts->only;
	uint32_t at = (owner ^ owner >> 22) % VERDICTS;
	if (verdicts->owners[at] != owner) {
		verdicts->owners[at] = owner;
		verdicts->dead[at] = !shmrt_owner_is_alive(owner);
	}
	return verdicts->dead[at];
}

static uint64_t reclaim_blocks(struct shmrt_arena *arena, uint64_t granule, struct verdicts *verdicts,
			       bool (*keep)(void *, uint64_t, uint32_t), void *context) {
	uint64_t count = 0, first = granule * SHMRT_BLOCKS_PER_GRANULE;
	/* relaxed: only where shares stand; a granule with blocks in use keeps its class */
	uint32_t class_index =
		shmrt_granule_class_of(atomic_load_explicit(&arena->granule_words[granule], memory_order_relaxed));
	/* All words, also those that are no blocks at the moment: see shmrt__arena_take_block. */
	for (uint64_t index = first; index < first + SHMRT_BLOCKS_PER_GRANULE; index++) {
		/* acquire (edge A1): what the dead did to the block is over */
		uint64_t word = atomic_load_explicit(&arena->block_words[index], memory_order_acquire);
		if (shmrt_block_state_of(word) == SHMRT_BLOCK_FREE || !is_to_take(verdicts, shmrt_word_owner(word)))
			continue;
		if (keep != NULL && keep(context, index, shmrt_block_generation_of(word)))
			continue;
		uint64_t kept = shmrt_arena_heir(arena, index, class_index, word);
		count += kept != 0 ? shmrt_arena_hand_over(arena, index, word, kept)
				   : shmrt_word_swap(&arena->block_words[index], word, shmrt_block_next_free(word));
	}
	return count;
}

/* A run whose head is CLAIMED by us: its BODY words go first, so the head can lead the next one here. */
static void release_run(struct shmrt_arena *arena, uint64_t granule, uint64_t claimed, uint64_t high) {
	uint64_t run = shmrt_granule_run_of(claimed);
	if (run > high - granule)
		run = high - granule;
	for (uint64_t i = run; i-- > 1;) {
		uint64_t body = shmrt_granule_pack(SHMRT_GRANULE_BODY, shmrt_granule_class_of(claimed), i, 0);
		/* relaxed: only we change BODY words of a run that we have claimed */
		if (atomic_load_explicit(&arena->granule_words[granule + i], memory_order_relaxed) != body)
			continue;
		shmrt_arena_punch(arena, granule + i, 1);
		(void)shmrt_word_swap(&arena->granule_words[granule + i], body, 0);
	}
	shmrt_arena_punch(arena, granule, 1);
	(void)shmrt_word_swap(&arena->granule_words[granule], claimed, 0);
}

static uint64_t reclaim(struct shmrt_arena *arena, struct verdicts *verdicts,
			bool (*keep)(void *, uint64_t, uint32_t), void *context) {
	uint64_t count = 0, high = shmrt_arena_high(arena);
	for (uint64_t granule = 0; granule < high; granule++) {
		count += reclaim_blocks(arena, granule, verdicts, keep, context);
		/* acquire (edge A3) */
		uint64_t word = atomic_load_explicit(&arena->granule_words[granule], memory_order_acquire);
		if (shmrt_granule_state_of(word) != SHMRT_GRANULE_CLAIMED ||
		    !is_to_take(verdicts, shmrt_word_owner(word)))
			continue;
		/* Take it over first: of two reclaimers one goes on, and if it dies its own name stands here. */
		uint64_t mine = shmrt_granule_pack(SHMRT_GRANULE_CLAIMED, shmrt_granule_class_of(word),
						   shmrt_granule_run_of(word), verdicts->self);
		if (!shmrt_word_swap(&arena->granule_words[granule], word, mine))
			continue;
		release_run(arena, granule, mine, high);
		count++;
	}
	return count;
}

uint64_t shmrt_arena_reclaim(struct shmrt_arena *arena, uint32_t owner, bool (*keep)(void *, uint64_t, uint32_t),
			     void *context) {
	struct verdicts verdicts = {.only = owner, .self = shmrt_owner_self()};
	return owner == 0 ? 0 : reclaim(arena, &verdicts, keep, context);
}

uint64_t shmrt_arena_reclaim_dead(struct shmrt_arena *arena) {
	struct verdicts verdicts = {.self = shmrt_owner_self()};
	return reclaim(arena, &verdicts, NULL, NULL);
}

/* ---- trim ---------------------------------------------------------------------------------------- */

static void let_go_blocks(struct shmrt_arena *arena, uint64_t first, uint64_t count, uint32_t self) {
	while (count-- > 0) {
		_Atomic uint64_t *word = &arena->block_words[first + count];
		/* relaxed: the block is ours */
		uint64_t seen = atomic_load_explicit(word, memory_order_relaxed);
		if (shmrt_block_state_of(seen) == SHMRT_BLOCK_WRITING && shmrt_word_owner(seen) == self)
			(void)shmrt_word_swap(word, seen, shmrt_block_next_free(seen));
	}
}

static bool all_free(const struct shmrt_arena *arena, uint64_t first, uint64_t count) {
	for (uint64_t i = 0; i < count; i++)
		/* relaxed: a first look; the compare-and-swaps decide */
		if (shmrt_block_state_of(atomic_load_explicit(&arena->block_words[first + i],
							      memory_order_relaxed)) != SHMRT_BLOCK_FREE)
			return false;
	return true;
}

/* Takes every block, then the run, returns its memory, and lets go in the order of reclaim. */
static bool trim_run(struct shmrt_arena *arena, uint64_t granule, uint64_t head, uint32_t self) {
	uint32_t class_index = shmrt_granule_class_of(head);
	uint64_t slots = shmrt_class_slots(class_index), run = shmrt_granule_run_of(head);
	uint64_t first = granule * SHMRT_BLOCKS_PER_GRANULE;
	if (!all_free(arena, first, slots))
		return false;
	for (uint64_t slot = 0; slot < slots; slot++) {
		/* relaxed: the compare-and-swap decides */
		uint64_t seen = atomic_load_explicit(&arena->block_words[first + slot], memory_order_relaxed);
		uint64_t mine = shmrt_block_pack(SHMRT_BLOCK_WRITING, shmrt_block_generation_of(seen), self);
		if (shmrt_block_state_of(seen) != SHMRT_BLOCK_FREE ||
		    !shmrt_word_swap(&arena->block_words[first + slot], seen, mine)) {
			let_go_blocks(arena, first, slot, self);
			return false;
		}
	}
	uint64_t claimed = shmrt_granule_pack(SHMRT_GRANULE_CLAIMED, class_index, run, self);
	if (!shmrt_word_swap(&arena->granule_words[granule], head, claimed)) {
		let_go_blocks(arena, first, slots, self);
		return false;
	}
	shmrt_arena_punch(arena, granule, run);
	for (uint64_t i = run; i-- > 1;)
		(void)shmrt_word_swap(&arena->granule_words[granule + i],
				      shmrt_granule_pack(SHMRT_GRANULE_BODY, class_index, i, 0), 0);
	let_go_blocks(arena, first, slots, self);
	(void)shmrt_word_swap(&arena->granule_words[granule], claimed, 0);
	return true;
}

uint64_t shmrt_arena_trim(struct shmrt_arena *arena, uint64_t keep_bytes) {
	uint64_t high = shmrt_arena_high(arena), reserved = shmrt__arena_count_reserved(arena), released = 0;
	uint64_t keep = keep_bytes / SHMRT_GRANULE_BYTES + (keep_bytes % SHMRT_GRANULE_BYTES != 0);
	uint32_t self = shmrt_owner_self();
	/* From the end: what is used again soon is found from the beginning. */
	for (uint64_t granule = high; granule-- > 0 && reserved - released > keep;) {
		/* acquire (edge A3) */
		uint64_t word = atomic_load_explicit(&arena->granule_words[granule], memory_order_acquire);
		uint64_t run = shmrt_granule_run_of(word);
		if (shmrt_granule_state_of(word) == SHMRT_GRANULE_HEAD && shmrt_head_is_valid(word, granule, high) &&
		    released + run <= reserved && reserved - released - run >= keep &&
		    trim_run(arena, granule, word, self))
			released += run;
	}
	if (released > 0)
		(void)shmrt__arena_count_reserved(arena);
	return released * SHMRT_GRANULE_BYTES;
}

/* ---- counting and checking ----------------------------------------------------------------------- */

uint64_t shmrt__arena_count_reserved(const struct shmrt_arena *arena) {
	uint64_t count = 0, high = shmrt_arena_high(arena);
	for (uint64_t granule = 0; granule < high; granule++)
		/* relaxed: a count of what may change at once */
		count += atomic_load_explicit(&arena->granule_words[granule], memory_order_relaxed) != 0;
	/* relaxed: statistics for observers */
	atomic_store_explicit(&arena->shared->reserved_granules, count, memory_order_relaxed);
	return count;
}

void shmrt_arena_get_stats(struct shmrt_arena *arena, struct shmrt_arena_stats *stats) {
	uint64_t high = shmrt_arena_high(arena);
	memset(stats, 0, sizeof(*stats));
	stats->limit = arena->limit_bytes;
	stats->reserved = shmrt__arena_count_reserved(arena) * SHMRT_GRANULE_BYTES;
	for (uint64_t granule = 0; granule < high; granule++) {
		/* relaxed, here and below: numbers for people */
		uint64_t word = atomic_load_explicit(&arena->granule_words[granule], memory_order_relaxed);
		if (shmrt_granule_state_of(word) != SHMRT_GRANULE_HEAD || !shmrt_head_is_valid(word, granule, high))
			continue;
		uint32_t class_index = shmrt_granule_class_of(word);
		uint64_t first = granule * SHMRT_BLOCKS_PER_GRANULE;
		for (uint64_t slot = 0; slot < shmrt_class_slots(class_index); slot++) {
			uint64_t block = atomic_load_explicit(&arena->block_words[first + slot], memory_order_relaxed);
			bool used = shmrt_block_state_of(block) != SHMRT_BLOCK_FREE;
			stats->blocks_used += used;
			stats->blocks_free += !used;
			stats->bytes_used += used ? shmrt_block_capacity(class_index, shmrt_granule_run_of(word)) : 0;
		}
	}
}

static bool granule_is_valid(const struct shmrt_arena *arena, uint64_t granule, uint64_t high) {
	/* relaxed, here and below: at rest nothing moves */
	uint64_t word = atomic_load_explicit(&arena->granule_words[granule], memory_order_relaxed);
	uint64_t run = shmrt_granule_run_of(word);
	uint32_t class_index = shmrt_granule_class_of(word);
	switch (shmrt_granule_state_of(word)) {
	case SHMRT_GRANULE_FREE:
		return word == 0;
	case SHMRT_GRANULE_CLAIMED:
		return shmrt_word_owner(word) != 0 && (word >> 9 & 7) == 0 && shmrt_class_is_valid(class_index) &&
		       run <= high - granule;
	case SHMRT_GRANULE_HEAD:
		if (!shmrt_head_is_valid(word, granule, high))
			return false;
		for (uint64_t i = 1; i < run; i++)
			if (atomic_load_explicit(&arena->granule_words[granule + i], memory_order_relaxed) !=
			    shmrt_granule_pack(SHMRT_GRANULE_BODY, class_index, i, 0))
				return false;
		return true;
	case SHMRT_GRANULE_BODY: {
		if (run == 0 || run > granule || word != shmrt_granule_pack(SHMRT_GRANULE_BODY, class_index, run, 0))
			return false;
		uint64_t head = atomic_load_explicit(&arena->granule_words[granule - run], memory_order_relaxed);
		uint32_t state = shmrt_granule_state_of(head);
		return (state == SHMRT_GRANULE_HEAD || state == SHMRT_GRANULE_CLAIMED) &&
		       shmrt_granule_run_of(head) > run && shmrt_granule_class_of(head) == class_index;
	}
	default:
		return false;
	}
}

static bool block_is_valid(const struct shmrt_arena *arena, uint64_t index, bool is_block) {
	uint64_t word = atomic_load_explicit(&arena->block_words[index], memory_order_relaxed);
	bool owned = shmrt_word_owner(word) != 0;
	switch (shmrt_block_state_of(word)) {
	case SHMRT_BLOCK_FREE:
		return !owned;
	case SHMRT_BLOCK_WRITING: /* also for a moment where there is no block: shmrt__arena_take_block */
		return owned;
	case SHMRT_BLOCK_SENT:
	case SHMRT_BLOCK_HELD:
		return owned && is_block;
	case SHMRT_BLOCK_KEPT: /* the upper half may be shares */
		return owned && (is_block || index % SHMRT_BLOCKS_PER_GRANULE >= SHMRT_BLOCKS_PER_GRANULE / 2);
	case SHMRT_BLOCK_QUEUED:
		return !owned && is_block;
	default:
		return false;
	}
}

int shmrt_arena_check(struct shmrt_arena *arena) {
	/* relaxed: see above */
	uint64_t high = atomic_load_explicit(&arena->shared->granules_high, memory_order_relaxed);
	if (high > arena->granule_count)
		return SHMRT_CORRUPT;
	for (uint64_t granule = 0; granule < high; granule++) {
		if (!granule_is_valid(arena, granule, high))
			return SHMRT_CORRUPT;
		uint64_t word = atomic_load_explicit(&arena->granule_words[granule], memory_order_relaxed);
		uint64_t slots = shmrt_granule_state_of(word) == SHMRT_GRANULE_HEAD
					 ? shmrt_class_slots(shmrt_granule_class_of(word))
					 : 0;
		for (uint64_t slot = 0; slot < SHMRT_BLOCKS_PER_GRANULE; slot++)
			if (!block_is_valid(arena, granule * SHMRT_BLOCKS_PER_GRANULE + slot, slot < slots))
				return SHMRT_CORRUPT;
	}
	return SHMRT_OK;
}
