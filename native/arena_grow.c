/* arena_grow.c -- a new run of granules: claimed, judged by the limits, reserved, published. See arena.h. */
#include "arena_words.h"

#include <errno.h>

#define TAKE_SPINS 1000
#define BUDGET_FRESH_NS UINT64_C(100000000)
#define BUDGET_LEFT_MAX (UINT64_C(64) << 20)

static int reserve(struct shmrt_arena *arena, const void *from, uint64_t size) {
	if (arena->fd < 0)
		return SHMRT_OK;
	uint64_t begin = (uint64_t)((const uint8_t *)from - arena->base), end = shmrt_align_up(begin + size, SHMRT_PAGE);
	begin &= ~(SHMRT_PAGE - 1);
	return shmrt_fallocate(arena->fd, arena->file_offset + begin, end - begin);
}

int shmrt__arena_no_space(struct shmrt_shortage *shortage, uint64_t needed, uint64_t free, const char *limit) {
	shortage->needed = needed;
	shortage->free = free;
	snprintf(shortage->limit, sizeof(shortage->limit), "%s", limit);
	return SHMRT_NO_SPACE;
}

/* Asks the machine whether `bytes` may be reserved; a recent ample answer holds for a little more. */
static int afford(struct shmrt_arena *arena, uint64_t bytes, struct shmrt_shortage *shortage) {
	if (arena->fd < 0)
		return SHMRT_OK;
	uint64_t now = shmrt_now_ns();
	if (bytes <= arena->budget_left && now - arena->budget_ns < BUDGET_FRESH_NS) {
		arena->budget_left -= bytes;
		return SHMRT_OK;
	}
	arena->budget_left = 0;
	int outcome = shmrt_budget_check(bytes, arena->fd, shortage);
	if (outcome == SHMRT_OK) {
		uint64_t ample = (shortage->free - bytes) / 16;
		arena->budget_left = ample < BUDGET_LEFT_MAX ? ample : BUDGET_LEFT_MAX;
		arena->budget_ns = now;
	}
	return outcome;
}

/* Makes the words of granules below `to` usable. Anybody may do it, also twice. */
static int extend(struct shmrt_arena *arena, uint64_t high, uint64_t to) {
	int outcome = reserve(arena, (const void *)&arena->granule_words[high], (to - high) * 8);
	if (outcome == SHMRT_OK)
		outcome = reserve(arena, (const void *)&arena->block_words[high * SHMRT_BLOCKS_PER_GRANULE],
				  (to - high) * SHMRT_BLOCKS_PER_GRANULE * 8);
	if (outcome == SHMRT_OK)
		(void)shmrt_word_swap(&arena->shared->granules_high, high, to); /* edge A4; else somebody did it */
	return outcome;
}

/* The first `run` FREE granules in a row at or after *granule; the last may lie above `high`. */
static bool find_free_run(const struct shmrt_arena *arena, uint64_t run, uint64_t high, uint64_t *granule) {
	uint64_t begin = *granule, at = begin;
	for (; at < high && at - begin < run; at++) {
		/* relaxed: the compare-and-swap decides */
		uint64_t word = atomic_load_explicit(&arena->granule_words[at], memory_order_relaxed);
		if (word != 0)
			begin = at + 1;
	}
	*granule = begin;
	return begin <= arena->granule_count && run <= arena->granule_count - begin;
}

static uint64_t claim_word(const struct shmrt_arena_wanted *wanted, uint64_t distance) {
	return shmrt_granule_pack(SHMRT_GRANULE_CLAIMED, wanted->class_index, distance == 0 ? wanted->run : 0,
				  wanted->owner);
}

/* Last to first: while the head is ours nobody can take the words for a run of his own. */
static void give_back(struct shmrt_arena *arena, const struct shmrt_arena_wanted *wanted, uint64_t granule, uint64_t count) {
	while (count-- > 0)
		(void)shmrt_word_swap(&arena->granule_words[granule + count], claim_word(wanted, count), 0);
}

static int claim(struct shmrt_arena *arena, const struct shmrt_arena_wanted *wanted, uint64_t *claimed,
		 struct shmrt_shortage *shortage) {
	uint64_t granule = 0;
	for (uint64_t tries = 0; tries <= 2 * arena->granule_count; tries++) {
		uint64_t high = shmrt_arena_high(arena), count = 0;
		if (!find_free_run(arena, wanted->run, high, &granule))
			break;
		if (granule + wanted->run > high) {
			int outcome = extend(arena, high, granule + wanted->run);
			if (outcome != SHMRT_OK)
				return outcome;
			if (shmrt_arena_high(arena) < granule + wanted->run)
				continue; /* somebody else extended, but not as far */
		}
		while (count < wanted->run &&
		       shmrt_word_swap(&arena->granule_words[granule + count], 0, claim_word(wanted, count)))
			count++;
		if (count == wanted->run) {
			*claimed = granule;
			return SHMRT_OK;
		}
		give_back(arena, wanted, granule, count);
	}
	return shmrt__arena_no_space(shortage, wanted->run * SHMRT_GRANULE_BYTES, 0, "unbroken address space of the arena");
}

static int within_limit(struct shmrt_arena *arena, const struct shmrt_arena_wanted *wanted, uint64_t claimed,
			struct shmrt_shortage *shortage) {
	uint64_t limit = arena->limit_bytes / SHMRT_GRANULE_BYTES;
	uint64_t others = shmrt__arena_count_reserved(arena) - claimed;
	if (others <= limit && wanted->run <= limit - others)
		return SHMRT_OK;
	return shmrt__arena_no_space(shortage, wanted->run * SHMRT_GRANULE_BYTES,
				     others < limit ? (limit - others) * SHMRT_GRANULE_BYTES : 0, "limit of the arena");
}

/* The limit is judged with the claim already in the count, so two that grow at once cannot both slip by. */
static int back_with_memory(struct shmrt_arena *arena, const struct shmrt_arena_wanted *wanted, uint64_t granule,
			    struct shmrt_shortage *shortage) {
	uint64_t bytes = wanted->run * SHMRT_GRANULE_BYTES;
	int outcome = within_limit(arena, wanted, wanted->run, shortage);
	if (outcome != SHMRT_OK)
		return outcome;
	outcome = afford(arena, bytes + wanted->run * SHMRT_BLOCKS_PER_GRANULE * 8, shortage);
	if (outcome == SHMRT_OK) {
		outcome = reserve(arena, arena->data + granule * SHMRT_GRANULE_BYTES, bytes);
		if (outcome == SHMRT_SYSTEM && errno == ENOSPC)
			outcome = shmrt__arena_no_space(shortage, bytes, 0, "file system of the segment");
		if (outcome != SHMRT_OK)
			shmrt_arena_punch(arena, granule, wanted->run);
	}
	return outcome;
}

int shmrt__arena_grow(struct shmrt_arena *arena, const struct shmrt_arena_wanted *wanted, struct shmrt_block *block,
		      struct shmrt_shortage *shortage) {
	uint64_t granule;
	int outcome = within_limit(arena, wanted, 0, shortage);
	if (outcome != SHMRT_OK)
		return outcome;
	outcome = claim(arena, wanted, &granule, shortage);
	if (outcome == SHMRT_SYSTEM && errno == ENOSPC)
		return shmrt__arena_no_space(shortage, wanted->run * SHMRT_GRANULE_BYTES, 0, "file system of the segment");
	if (outcome != SHMRT_OK)
		return outcome;
	outcome = back_with_memory(arena, wanted, granule, shortage);
	if (outcome != SHMRT_OK) {
		int error = errno;
		give_back(arena, wanted, granule, wanted->run);
		errno = error;
		return outcome;
	}
	uint64_t index = granule * SHMRT_BLOCKS_PER_GRANULE, claimed = claim_word(wanted, 0);
	bool taken = false;
	for (int spins = 0; !taken && spins < TAKE_SPINS; spins++) {
		taken = shmrt__arena_take_block(arena, index, claimed, wanted->owner, block);
		if (!taken)
			shmrt_pause();
	}
	bool ours = true; /* nobody changes the words of a living owner */
	for (uint64_t i = 1; i < wanted->run; i++)
		ours &= shmrt_word_swap(&arena->granule_words[granule + i], claim_word(wanted, i),
					shmrt_granule_pack(SHMRT_GRANULE_BODY, wanted->class_index, i, 0));
	ours &= shmrt_word_swap(&arena->granule_words[granule], claimed, /* edge A3 */
				shmrt_granule_pack(SHMRT_GRANULE_HEAD, wanted->class_index, wanted->run, 0));
	if (!ours)
		return SHMRT_CORRUPT;
	arena->growths++;
	if (taken && wanted->class_index < SHMRT_CLASS_COUNT)
		arena->cursor[wanted->class_index] = index + 1;
	return taken ? SHMRT_OK : SHMRT_EMPTY;
}
