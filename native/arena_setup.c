/* arena_setup.c -- making an arena and finding one that others made. See arena.h. */
#include "arena_words.h"

#include <errno.h>
#include <unistd.h>

struct geometry {
	uint64_t granule_count, granule_words_offset, block_words_offset, data_offset, size;
};

static uint64_t limit_granules(uint64_t limit) {
	return limit <= SHMRT_GRANULE_BYTES ? 1 : (limit - 1) / SHMRT_GRANULE_BYTES + 1;
}

static struct geometry make_geometry(uint64_t granule_count) {
	struct geometry made = {.granule_count = granule_count};
	made.granule_words_offset = shmrt_align_up(sizeof(struct shmrt_arena_shared), SHMRT_PAGE);
	made.block_words_offset = shmrt_align_up(made.granule_words_offset + granule_count * 8, SHMRT_PAGE);
	made.data_offset = shmrt_align_up(
		made.block_words_offset + granule_count * SHMRT_BLOCKS_PER_GRANULE * 8, SHMRT_PAGE);
	made.size = made.data_offset + granule_count * SHMRT_GRANULE_BYTES;
	return made;
}

/* Sizes above could wrap around; 2^38 bytes are more than a run can name anyway. */
#define LIMIT_MAX (UINT64_C(1) << 44)

uint64_t shmrt_arena_bytes(uint64_t limit) {
	return limit > LIMIT_MAX ? UINT64_MAX : make_geometry(2 * limit_granules(limit)).size;
}

uint64_t shmrt_arena_words_bytes(uint64_t limit) {
	return limit > LIMIT_MAX ? UINT64_MAX : make_geometry(2 * limit_granules(limit)).data_offset;
}

static void set_up(struct shmrt_arena *arena, void *memory, int fd, uint64_t offset, const struct geometry *made,
		   uint64_t limit) {
	memset(arena, 0, sizeof(*arena));
	arena->shared = memory;
	arena->base = memory;
	arena->size = made->size;
	arena->fd = fd;
	arena->file_offset = offset;
	arena->granule_count = made->granule_count;
	arena->granule_words = (_Atomic uint64_t *)(void *)(arena->base + made->granule_words_offset);
	arena->block_words = (_Atomic uint64_t *)(void *)(arena->base + made->block_words_offset);
	arena->data = arena->base + made->data_offset;
	arena->limit_bytes = limit;
}

/* Into zeroed memory whose first page is reserved. */
static int format(void *memory, const struct geometry *made, uint64_t limit) {
	int outcome = shmrt_segment_format(memory, SHMRT_SEGMENT_ARENA, made->size);
	if (outcome != SHMRT_OK)
		return outcome;
	struct shmrt_arena_shared *shared = memory;
	shared->granule_count = made->granule_count;
	shared->granule_words_offset = made->granule_words_offset;
	shared->block_words_offset = made->block_words_offset;
	shared->data_offset = made->data_offset;
	shared->limit_bytes = limit;
	shmrt_segment_publish(memory);
	return SHMRT_OK;
}

int shmrt_arena_create_in(struct shmrt_arena *arena, int fd, uint64_t offset, uint64_t limit,
			  struct shmrt_shortage *shortage) {
	if (limit > LIMIT_MAX || offset % SHMRT_PAGE != 0)
		return SHMRT_INVALID;
	struct geometry made = make_geometry(2 * limit_granules(limit));
	limit = limit_granules(limit) * SHMRT_GRANULE_BYTES;
	int outcome = shmrt_budget_check(made.granule_words_offset, fd, shortage);
	if (outcome != SHMRT_OK)
		return outcome;
	void *memory = NULL;
	outcome = shmrt_fallocate(fd, offset, made.granule_words_offset);
	if (outcome == SHMRT_OK)
		outcome = shmrt_map(fd, offset, made.size, true, &memory);
	if (outcome != SHMRT_OK)
		return outcome;
	outcome = format(memory, &made, limit);
	if (outcome != SHMRT_OK) {
		shmrt_unmap(memory, made.size);
		return outcome;
	}
	set_up(arena, memory, fd, offset, &made, limit);
	return SHMRT_OK;
}

int shmrt_arena_create(struct shmrt_arena *arena, uint64_t limit, struct shmrt_shortage *shortage) {
	if (limit > LIMIT_MAX)
		return SHMRT_INVALID;
	int fd = shmrt_memfd_create("shmrt-arena", shmrt_arena_bytes(limit));
	if (fd < 0)
		return fd;
	int outcome = shmrt_arena_create_in(arena, fd, 0, limit, shortage);
	if (outcome != SHMRT_OK) {
		int error = errno;
		close(fd);
		errno = error;
	}
	return outcome;
}

int shmrt_arena_create_at(struct shmrt_arena *arena, void *memory, uint64_t size, uint64_t limit) {
	if (limit > LIMIT_MAX || size < shmrt_arena_words_bytes(limit))
		return SHMRT_INVALID;
	struct geometry made = make_geometry(2 * limit_granules(limit));
	limit = limit_granules(limit) * SHMRT_GRANULE_BYTES;
	int outcome = format(memory, &made, limit);
	if (outcome == SHMRT_OK)
		set_up(arena, memory, -1, 0, &made, limit);
	return outcome;
}

/* Reads the geometry once and accepts it only if it is the one that its granule count leads to. */
static int adopt(struct shmrt_arena *arena, void *memory, uint64_t size, int fd, uint64_t offset, char *reason,
		 size_t reason_size) {
	struct shmrt_arena_shared copy;
	memcpy(&copy, memory, offsetof(struct shmrt_arena_shared, reserved_granules));
	if (copy.granule_count == 0 || copy.granule_count > 2 * (LIMIT_MAX / SHMRT_GRANULE_BYTES)) {
		snprintf(reason, reason_size, "the arena claims %llu granules",
			 (unsigned long long)copy.granule_count);
		return SHMRT_CORRUPT;
	}
	struct geometry made = make_geometry(copy.granule_count);
	if (copy.granule_words_offset != made.granule_words_offset ||
	    copy.block_words_offset != made.block_words_offset || copy.data_offset != made.data_offset ||
	    copy.header.size != made.size || (fd < 0 ? size < made.data_offset : size != made.size) ||
	    copy.limit_bytes == 0 || copy.limit_bytes % SHMRT_GRANULE_BYTES != 0 ||
	    copy.limit_bytes / SHMRT_GRANULE_BYTES > copy.granule_count) {
		snprintf(reason, reason_size, "the arena's geometry does not fit its %llu granules",
			 (unsigned long long)copy.granule_count);
		return SHMRT_CORRUPT;
	}
	set_up(arena, memory, fd, offset, &made, copy.limit_bytes);
	return SHMRT_OK;
}

int shmrt_arena_attach(struct shmrt_arena *arena, int fd, uint64_t offset, char *reason, size_t reason_size) {
	void *memory = NULL;
	uint64_t size = 0;
	int outcome = shmrt_segment_attach_at(fd, offset, SHMRT_SEGMENT_ARENA, &memory, &size, reason, reason_size);
	if (outcome != SHMRT_OK)
		return outcome;
	if (size < sizeof(struct shmrt_arena_shared)) {
		snprintf(reason, reason_size, "%llu bytes are too few for an arena", (unsigned long long)size);
		outcome = SHMRT_CORRUPT;
	} else {
		outcome = adopt(arena, memory, size, fd, offset, reason, reason_size);
	}
	if (outcome != SHMRT_OK)
		shmrt_unmap(memory, size);
	return outcome;
}

int shmrt_arena_attach_at(struct shmrt_arena *arena, void *memory, uint64_t size, char *reason, size_t reason_size) {
	if (size < sizeof(struct shmrt_arena_shared))
		return SHMRT_INVALID;
	/* edge S1, as for a mapped segment */
	struct shmrt_segment_header *header = memory;
	if (atomic_load_explicit(&header->magic, memory_order_acquire) != SHMRT_MAGIC ||
	    header->layout_version != SHMRT_LAYOUT_VERSION || header->kind != SHMRT_SEGMENT_ARENA) {
		snprintf(reason, reason_size, "no arena of this version of shmrt");
		return SHMRT_FOREIGN;
	}
	return adopt(arena, memory, size, -1, 0, reason, reason_size);
}

void shmrt_arena_detach(struct shmrt_arena *arena) {
	if (arena->shared != NULL && arena->fd >= 0)
		shmrt_unmap(arena->base, arena->size);
	memset(arena, 0, sizeof(*arena));
	arena->fd = -1;
}
