/* test_arena.c -- blocks: classes, limits, states, re-use, trim, damaged words, and what it costs. */
#define _GNU_SOURCE
#include "arena.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int failures;
#define CHECK(condition)                                                                       \
	do {                                                                                   \
		if (!(condition)) {                                                            \
			fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
			failures++;                                                            \
		}                                                                              \
	} while (0)
#define KIB UINT64_C(1024)
#define MIB (KIB * KIB)
#define ME 11U
#define OTHER 22U

static uint64_t reserved_blocks(int fd) {
	struct stat info;
	CHECK(fstat(fd, &info) == 0);
	return (uint64_t)info.st_blocks * 512;
}

static struct shmrt_block_reference reference_to(const struct shmrt_block *block, uint64_t size) {
	return (struct shmrt_block_reference){.block = block->block, .generation = block->generation, .size = size};
}

static void test_classes(void) {
	struct shmrt_arena arena;
	struct shmrt_shortage shortage;
	CHECK(shmrt_arena_create(&arena, 128 * MIB, &shortage) == SHMRT_OK);
	int fd = arena.fd;
	CHECK(reserved_blocks(fd) < 64 * KIB); /* nothing but the header */
	for (uint64_t size = 0; size <= 4 * MIB; size = size < 3 ? size + 1 : size * 2 - 1) {
		struct shmrt_block block, again;
		CHECK(shmrt_arena_alloc(&arena, size, ME, &block, &shortage) == SHMRT_OK);
		CHECK(block.capacity >= size && (block.capacity < 2 * size || block.capacity == KIB || size == 1 ||
						 block.capacity == 2 * size));
		memset(block.data, 0x5A, block.capacity); /* memory is behind every byte */
		CHECK((uint64_t)(block.data - arena.data) % (block.capacity < 256 * KIB ? block.capacity : 4096) == 0);
		struct shmrt_block_reference reference = reference_to(&block, block.capacity);
		CHECK(shmrt_arena_resolve(&arena, &reference, &again) == SHMRT_OK);
		CHECK(again.data == block.data && again.capacity == block.capacity &&
		      again.class_index == block.class_index);
		reference.size++;
		CHECK(shmrt_arena_resolve(&arena, &reference, &again) == SHMRT_CORRUPT);
		/* Freed and taken again it is the same memory under another name. */
		CHECK(shmrt_arena_free(&arena, block.block, block.generation, SHMRT_BLOCK_WRITING, ME) == SHMRT_OK);
		CHECK(shmrt_arena_free(&arena, block.block, block.generation, SHMRT_BLOCK_WRITING, ME) == SHMRT_STALE);
		CHECK(shmrt_arena_alloc(&arena, size, ME, &again, &shortage) == SHMRT_OK);
		CHECK(again.block == block.block && again.generation != block.generation);
		reference.size--;
		CHECK(shmrt_arena_resolve(&arena, &reference, &block) == SHMRT_STALE);
		CHECK(shmrt_arena_free(&arena, again.block, again.generation, SHMRT_BLOCK_WRITING, ME) == SHMRT_OK);
	}
	struct shmrt_block big;
	CHECK(shmrt_arena_alloc(&arena, 65 * MIB, ME, &big, &shortage) == SHMRT_OK);
	CHECK(big.class_index == SHMRT_CLASS_RUN && big.capacity == 65 * MIB);
	big.data[0] = big.data[big.capacity - 1] = 1;
	CHECK(shmrt_arena_check(&arena) == SHMRT_OK);
	CHECK(shmrt_arena_alloc(&arena, 64 * MIB, ME, &big, &shortage) == SHMRT_NO_SPACE);
	CHECK(strstr(shortage.limit, "arena") != NULL && shortage.needed == 64 * MIB && shortage.free < 64 * MIB);
	CHECK(shmrt_arena_alloc(&arena, 128 * MIB + 1, ME, &big, &shortage) == SHMRT_TOO_LARGE);
	CHECK(shmrt_arena_alloc(&arena, UINT64_MAX, ME, &big, NULL) == SHMRT_TOO_LARGE);
	CHECK(shmrt_arena_alloc(&arena, 1, 0, &big, NULL) == SHMRT_INVALID);
	/* Given back: the kernel has it, only words stay. */
	CHECK(shmrt_arena_reclaim(&arena, ME, NULL, NULL) == 1);
	CHECK(shmrt_arena_reclaim(&arena, ME, NULL, NULL) == 0);
	CHECK(shmrt_arena_trim(&arena, 0) >= 65 * MIB);
	struct shmrt_arena_stats stats;
	shmrt_arena_get_stats(&arena, &stats);
	CHECK(stats.reserved == 0 && stats.blocks_used == 0 && stats.blocks_free == 0 && stats.limit == 128 * MIB);
	CHECK(reserved_blocks(fd) < 2 * MIB);
	CHECK(shmrt_arena_check(&arena) == SHMRT_OK);
	/* The whole limit can be had at once, though its class would be too large or the space is broken up. */
	CHECK(shmrt_arena_alloc(&arena, 128 * MIB, ME, &big, &shortage) == SHMRT_OK);
	shmrt_arena_detach(&arena);
	close(fd);
}

static void test_limit(void) {
	struct shmrt_arena arena;
	struct shmrt_shortage shortage;
	CHECK(shmrt_arena_create(&arena, 3 * MIB, &shortage) == SHMRT_OK);
	int fd = arena.fd;
	static struct shmrt_block blocks[4096];
	for (int round = 0; round < 3; round++) {
		/* Fill with one class, free, fill with another: idle granules change their class. */
		uint64_t size = round == 0 ? KIB : round == 1 ? 48 * KIB : MIB;
		size_t count = 0;
		while (count < 4096 && shmrt_arena_alloc(&arena, size, ME, &blocks[count], &shortage) == SHMRT_OK) {
			blocks[count].data[0] = (uint8_t)count;
			count++;
		}
		CHECK(count == 3 * MIB / blocks[0].capacity);
		for (size_t i = 0; i < count; i++)
			CHECK(blocks[i].data[0] == (uint8_t)i);
		CHECK(strstr(shortage.limit, "limit of the arena") != NULL);
		/* With all but one block held, exactly that one is found again. */
		size_t hole = count * 2 / 3;
		CHECK(shmrt_arena_free(&arena, blocks[hole].block, blocks[hole].generation, SHMRT_BLOCK_WRITING, ME) ==
		      SHMRT_OK);
		memset(arena.warm_count, 0, sizeof(arena.warm_count));
		uint64_t was = blocks[hole].block;
		CHECK(shmrt_arena_alloc(&arena, size, ME, &blocks[hole], &shortage) == SHMRT_OK && blocks[hole].block == was);
		for (size_t i = 0; i < count; i++)
			CHECK(shmrt_arena_free(&arena, blocks[i].block, blocks[i].generation, SHMRT_BLOCK_WRITING, ME) ==
			      SHMRT_OK);
		CHECK(shmrt_arena_check(&arena) == SHMRT_OK);
		CHECK(reserved_blocks(fd) <= 3 * MIB + 64 * KIB);
	}
	/* 2 MiB of 3 are idle in one piece of another class; a class of 4 MiB would not fit, the exact size does. */
	CHECK(shmrt_arena_alloc(&arena, 5 * MIB / 2, ME, &blocks[0], &shortage) == SHMRT_OK);
	CHECK(blocks[0].class_index == SHMRT_CLASS_RUN && blocks[0].capacity == 5 * MIB / 2);
	/* keep_bytes keeps. */
	CHECK(shmrt_arena_free(&arena, blocks[0].block, blocks[0].generation, SHMRT_BLOCK_WRITING, ME) == SHMRT_OK);
	CHECK(shmrt_arena_trim(&arena, 3 * MIB) == 0);
	CHECK(shmrt_arena_trim(&arena, 1) == 0); /* it would have to break the run */
	CHECK(shmrt_arena_trim(&arena, 0) == 5 * MIB / 2);
	shmrt_arena_detach(&arena);
	close(fd);
}

static void test_states(void) {
	struct shmrt_arena arena, peer;
	struct shmrt_shortage shortage;
	struct shmrt_block block, seen;
	char reason[200];
	CHECK(shmrt_arena_create(&arena, MIB, &shortage) == SHMRT_OK);
	CHECK(shmrt_arena_attach(&peer, arena.fd, 0, reason, sizeof(reason)) == SHMRT_OK);
	CHECK(shmrt_arena_alloc(&arena, 100, ME, &block, &shortage) == SHMRT_OK);
	strcpy((char *)block.data, "payload");
	uint64_t b = block.block;
	uint32_t g = block.generation;
	CHECK(shmrt_arena_move(&arena, b, g, SHMRT_BLOCK_WRITING, OTHER, SHMRT_BLOCK_SENT, OTHER) == SHMRT_STALE);
	CHECK(shmrt_arena_move(&arena, b, g + 1, SHMRT_BLOCK_WRITING, ME, SHMRT_BLOCK_SENT, ME) == SHMRT_STALE);
	CHECK(shmrt_arena_move(&arena, b, g, SHMRT_BLOCK_HELD, ME, SHMRT_BLOCK_SENT, ME) == SHMRT_STALE);
	CHECK(shmrt_arena_move(&arena, b, g, SHMRT_BLOCK_WRITING, ME, SHMRT_BLOCK_FREE, 0) == SHMRT_INVALID);
	CHECK(shmrt_arena_move(&arena, b, g, SHMRT_BLOCK_WRITING, ME, SHMRT_BLOCK_QUEUED, ME) == SHMRT_INVALID);
	CHECK(shmrt_arena_move(&arena, b, g, SHMRT_BLOCK_WRITING, ME, SHMRT_BLOCK_SENT, 0) == SHMRT_INVALID);
	CHECK(shmrt_arena_move(&arena, UINT64_MAX, g, SHMRT_BLOCK_WRITING, ME, SHMRT_BLOCK_SENT, ME) == SHMRT_CORRUPT);
	CHECK(shmrt_arena_move(&arena, b, g, SHMRT_BLOCK_WRITING, ME, SHMRT_BLOCK_SENT, ME) == SHMRT_OK);
	struct shmrt_block_reference reference = reference_to(&block, 8);
	CHECK(shmrt_arena_resolve(&peer, &reference, &seen) == SHMRT_OK && strcmp((char *)seen.data, "payload") == 0);
	CHECK(seen.data != block.data); /* another mapping of the same bytes */
	CHECK(shmrt_arena_move(&peer, b, g, SHMRT_BLOCK_SENT, ME, SHMRT_BLOCK_HELD, OTHER) == SHMRT_OK);
	/* The sender's death does not touch what the receiver took; the receiver's does. */
	CHECK(shmrt_arena_reclaim(&peer, ME, NULL, NULL) == 0);
	CHECK(shmrt_arena_reclaim(&peer, 0, NULL, NULL) == 0);
	enum shmrt_block_state state;
	uint32_t generation, owner;
	shmrt_arena_state(&arena, b, &state, &generation, &owner);
	CHECK(state == SHMRT_BLOCK_HELD && generation == g && owner == OTHER);
	CHECK(shmrt_arena_free(&peer, b, g, SHMRT_BLOCK_HELD, OTHER) == SHMRT_OK);
	/* Freed by who never allocates: the other finds it at once. */
	CHECK(shmrt_arena_alloc(&arena, 100, ME, &seen, &shortage) == SHMRT_OK && seen.block == b);
	CHECK(shmrt_arena_move(&arena, seen.block, seen.generation, SHMRT_BLOCK_WRITING, ME, SHMRT_BLOCK_QUEUED, 0) ==
	      SHMRT_OK);
	CHECK(shmrt_arena_reclaim(&peer, ME, NULL, NULL) == 0);
	CHECK(shmrt_arena_reclaim_dead(&peer) == 0);
	CHECK(shmrt_arena_free(&peer, seen.block, seen.generation, SHMRT_BLOCK_QUEUED, 0) == SHMRT_OK);
	/* A trim does not touch a run of which one block is in use. */
	CHECK(shmrt_arena_alloc(&arena, 100, ME, &seen, &shortage) == SHMRT_OK);
	CHECK(shmrt_arena_trim(&peer, 0) == 0 && shmrt_arena_check(&peer) == SHMRT_OK);
	/* After the granule went and came back as another class, an old reference is stale, not wrong data. */
	reference = reference_to(&seen, 8);
	CHECK(shmrt_arena_free(&arena, seen.block, seen.generation, SHMRT_BLOCK_WRITING, ME) == SHMRT_OK);
	CHECK(shmrt_arena_trim(&peer, 0) == SHMRT_GRANULE_BYTES);
	CHECK(shmrt_arena_resolve(&peer, &reference, &block) == SHMRT_STALE);
	CHECK(shmrt_arena_alloc(&peer, MIB, OTHER, &block, &shortage) == SHMRT_OK);
	CHECK(shmrt_arena_resolve(&peer, &reference, &block) == SHMRT_STALE);
	CHECK(shmrt_arena_alloc(&arena, 100, ME, &seen, &shortage) == SHMRT_NO_SPACE);
	int fd = arena.fd;
	shmrt_arena_detach(&peer);
	shmrt_arena_detach(&arena);
	close(fd);
}

static void test_in_file(void) {
	struct shmrt_arena arena, peer;
	struct shmrt_shortage shortage;
	char reason[200];
	int fd = shmrt_memfd_create("shmrt-test", 8192 + shmrt_arena_bytes(MIB));
	CHECK(shmrt_arena_create_in(&arena, fd, 100, MIB, &shortage) == SHMRT_INVALID);
	CHECK(shmrt_arena_create_in(&arena, fd, 8192, MIB, &shortage) == SHMRT_OK);
	CHECK(shmrt_arena_attach(&peer, fd, 0, reason, sizeof(reason)) == SHMRT_FOREIGN);
	CHECK(shmrt_arena_attach(&peer, fd, 8192, reason, sizeof(reason)) == SHMRT_OK);
	struct shmrt_block block, seen;
	CHECK(shmrt_arena_alloc(&arena, 300 * KIB, ME, &block, &shortage) == SHMRT_OK);
	memset(block.data, 7, block.capacity);
	struct shmrt_block_reference reference = reference_to(&block, block.capacity);
	CHECK(shmrt_arena_resolve(&peer, &reference, &seen) == SHMRT_OK && seen.data[block.capacity - 1] == 7);
	/* What is given back is the arena's, not what stands before it in the file. */
	CHECK(shmrt_fallocate(fd, 0, 8192) == SHMRT_OK);
	uint8_t bytes[8192];
	memset(bytes, 9, sizeof(bytes));
	CHECK(pwrite(fd, bytes, sizeof(bytes), 0) == sizeof(bytes));
	CHECK(shmrt_arena_reclaim(&arena, ME, NULL, NULL) == 1 && shmrt_arena_trim(&arena, 0) == 512 * KIB);
	CHECK(seen.data[0] == 0);
	CHECK(pread(fd, bytes, sizeof(bytes), 0) == sizeof(bytes) && bytes[0] == 9 && bytes[8191] == 9);
	shmrt_arena_detach(&peer);
	shmrt_arena_detach(&arena);
	close(fd);
}

/* ---- damage -------------------------------------------------------------------------------------- */

static uint64_t random_state;
static uint64_t next_random(void) {
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

static bool is_answer(int outcome) {
	return outcome == SHMRT_OK || outcome == SHMRT_STALE || outcome == SHMRT_CORRUPT ||
	       outcome == SHMRT_NO_SPACE || outcome == SHMRT_TOO_LARGE || outcome == SHMRT_INVALID;
}

static void inside(const struct shmrt_arena *arena, const struct shmrt_block *block) {
	uint64_t bytes = arena->granule_count * SHMRT_GRANULE_BYTES;
	CHECK(block->data >= arena->data && block->capacity <= bytes);
	CHECK((uint64_t)(block->data - arena->data) <= bytes - block->capacity);
}

static void use_damaged(struct shmrt_arena *arena, const struct shmrt_block_reference *known, size_t count) {
	struct shmrt_block block;
	struct shmrt_shortage shortage;
	struct shmrt_arena_stats stats;
	for (size_t i = 0; i < count; i++) {
		struct shmrt_block_reference reference = known[i];
		if (next_random() % 2 == 0)
			((uint8_t *)&reference)[next_random() % sizeof(reference)] ^= (uint8_t)(1U << next_random() % 8);
		int outcome = shmrt_arena_resolve(arena, &reference, &block);
		CHECK(outcome == SHMRT_OK || outcome == SHMRT_STALE || outcome == SHMRT_CORRUPT);
		if (outcome == SHMRT_OK) {
			inside(arena, &block);
			CHECK(reference.size <= block.capacity);
		}
		outcome = shmrt_arena_alloc(arena, UINT64_C(1) << next_random() % 22, ME, &block, &shortage);
		CHECK(is_answer(outcome));
		if (outcome == SHMRT_OK)
			inside(arena, &block);
		CHECK(is_answer(shmrt_arena_free(arena, reference.block, reference.generation, SHMRT_BLOCK_WRITING, ME)));
	}
	(void)!shmrt_arena_check(arena);
	shmrt_arena_get_stats(arena, &stats);
	(void)shmrt_arena_reclaim(arena, ME, NULL, NULL);
	(void)shmrt_arena_trim(arena, 0);
	(void)!shmrt_arena_check(arena);
}

static void test_damage(void) {
	const uint64_t limit = 2 * MIB, size = shmrt_arena_words_bytes(2 * MIB);
	uint8_t *memory = aligned_alloc(4096, size), *saved = malloc(size);
	struct shmrt_arena arena;
	struct shmrt_block block;
	struct shmrt_block_reference known[32];
	char reason[200];
	memset(memory, 0, size);
	CHECK(shmrt_arena_create_at(&arena, memory, size - 1, limit) == SHMRT_INVALID);
	CHECK(shmrt_arena_create_at(&arena, memory, size, limit) == SHMRT_OK);
	size_t count = 0;
	for (; count < 32; count++) {
		uint64_t bytes = count % 4 == 0 ? 200 * KIB : count == 7 ? 512 * KIB : KIB << count % 4;
		if (shmrt_arena_alloc(&arena, bytes, count % 3 ? ME : OTHER, &block, NULL) != SHMRT_OK)
			break;
		known[count] = reference_to(&block, bytes);
	}
	CHECK(count > 8 && shmrt_arena_check(&arena) == SHMRT_OK);
	memcpy(saved, memory, size);
	uint64_t words_end = (uint64_t)((uint8_t *)arena.block_words - memory) + arena.granule_count * 2048;
	int refused = 0;
	for (int round = 0; round < 4000; round++) {
		memcpy(memory, saved, size);
		for (uint64_t flips = 1 + next_random() % 4; flips-- > 0;) {
			/* Half of the damage in the used granule words, the rest anywhere behind the header. */
			uint64_t at = next_random() % 2 == 0
					      ? (uint64_t)((uint8_t *)arena.granule_words - memory) + next_random() % 96
					      : 256 + next_random() % (words_end - 256);
			memory[at] = (uint8_t)(next_random() % 2 ? next_random() : memory[at] ^ 1U << next_random() % 8);
		}
		struct shmrt_arena damaged;
		CHECK(shmrt_arena_attach_at(&damaged, memory, size, reason, sizeof(reason)) == SHMRT_OK);
		refused += shmrt_arena_check(&damaged) != SHMRT_OK;
		use_damaged(&damaged, known, count);
	}
	CHECK(refused > 1000); /* the check is not blind */
	/* The header's geometry is believed only if it is the one that follows from the count. */
	for (uint64_t at = 0; at < offsetof(struct shmrt_arena_shared, limit_bytes); at++) {
		for (int bit = 0; bit < 8; bit++) {
			memcpy(memory, saved, size);
			memory[at] ^= (uint8_t)(1 << bit);
			struct shmrt_arena damaged;
			int outcome = shmrt_arena_attach_at(&damaged, memory, size, reason, sizeof(reason));
			bool free_field = (at >= 24 && at < 128); /* token, creator, time, reserved */
			CHECK(free_field ? outcome == SHMRT_OK : outcome == SHMRT_FOREIGN || outcome == SHMRT_CORRUPT);
		}
	}
	free(memory);
	free(saved);
}

/* ---- cost: printed, never judged ------------------------------------------------------------------ */

static void show_cost(void) {
	struct shmrt_arena arena, peer;
	struct shmrt_shortage shortage;
	struct shmrt_block block = {0};
	char reason[200];
	CHECK(shmrt_arena_create(&arena, 64 * MIB, &shortage) == SHMRT_OK);
	CHECK(shmrt_arena_attach(&peer, arena.fd, 0, reason, sizeof(reason)) == SHMRT_OK);
	const uint64_t turns = 200000;
	for (int kind = 0; kind < 2; kind++) {
		struct shmrt_arena *freeing = kind == 0 ? &arena : &peer;
		uint64_t begin = shmrt_now_ns();
		for (uint64_t i = 0; i < turns; i++) {
			CHECK(shmrt_arena_alloc(&arena, 4096, ME, &block, &shortage) == SHMRT_OK);
			CHECK(shmrt_arena_free(freeing, block.block, block.generation, SHMRT_BLOCK_WRITING, ME) == SHMRT_OK);
		}
		printf("alloc + free of a warm block, freed by %s: %.1f ns\n", kind == 0 ? "its owner" : "another",
		       (double)(shmrt_now_ns() - begin) / (double)turns);
	}
	/* 4000 blocks in flight, freed in order by another: hints run out, the search goes on. */
	static struct shmrt_block flight[4000];
	for (size_t i = 0; i < 4000; i++)
		CHECK(shmrt_arena_alloc(&arena, 4096, ME, &flight[i], &shortage) == SHMRT_OK);
	uint64_t begin = shmrt_now_ns();
	for (uint64_t i = 0; i < turns; i++) {
		struct shmrt_block *oldest = &flight[i % 4000];
		CHECK(shmrt_arena_free(&peer, oldest->block, oldest->generation, SHMRT_BLOCK_WRITING, ME) == SHMRT_OK);
		CHECK(shmrt_arena_alloc(&arena, 4096, ME, oldest, &shortage) == SHMRT_OK);
	}
	printf("with 4000 in flight: %.1f ns\n", (double)(shmrt_now_ns() - begin) / (double)turns);
	begin = shmrt_now_ns();
	CHECK(shmrt_arena_reclaim(&peer, ME, NULL, NULL) == 4000);
	printf("reclaim of 4000 blocks: %.1f us\n", (double)(shmrt_now_ns() - begin) / 1000);
	int fd = arena.fd;
	shmrt_arena_detach(&peer);
	shmrt_arena_detach(&arena);
	close(fd);
}

int main(int argc, char **argv) {
	random_state = argc > 1 ? strtoull(argv[1], NULL, 0) : shmrt_now_ns() | 1;
	printf("seed %llu\n", (unsigned long long)random_state);
	test_classes();
	test_limit();
	test_states();
	test_in_file();
	test_damage();
	show_cost();
	return failures != 0;
}
