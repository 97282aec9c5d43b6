/* arena.h -- payload blocks in power-of-two classes that travel between processes by reference.
 *
 * One segment of fixed virtual size; memory is reserved granule by granule (256 KiB) when first needed
 * and can be given back. Block words and granule words stand apart from the data, so that user code
 * writing past an array cannot reach them.
 *
 * Granule: FREE -> CLAIMED|me (compare-and-swap, then fallocate) -> HEAD/BODY -> CLAIMED|me -> FREE.
 *   A run is claimed word by word, head first; whoever loses a word gives its words back. Died in
 *   CLAIMED: the words name the dead owner; reclaim takes them over by compare-and-swap (so that two
 *   reclaimers never punch the same memory), punches and frees them, the head last.
 * Block: FREE -> WRITING|me -> SENT|me or QUEUED -> HELD|receiver -> FREE with generation + 1.
 *   Every change is one compare-and-swap that names the state, owner and generation it expects, so a
 *   stale reference gives SHMRT_STALE, never wrong data. A block in flight names its sender.
 *   Died owner: drain what it published first; then reclaim frees every block that still names it.
 * Alloc looks at the granule again after it took a block: if a trim came between, the block is let go.
 *   A trim takes all blocks of a run before it touches the run, so it never meets a block in use.
 *
 * Re-use is last in, first out: freed blocks are remembered in a small private stack, or, by who frees
 * more than it allocates, in a line of the segment where the others find them. Both hold hints only;
 * the compare-and-swap decides. Without a hint the search goes on where the last one of the class ended.
 *
 * Edge A1: send stores SENT/QUEUED (release) -> take loads (acquire): the payload is visible.
 * Edge A2: free stores FREE (release) -> alloc takes (acquire): the last reader is done with the bytes.
 * Edge A3: granule HEAD stored (release) -> alloc loads it (acquire): memory is behind it.
 * Edge A4: granules_high stored (release) -> whoever loads it (acquire): the words below are reserved.
 */
#ifndef SHMRT_ARENA_H
#define SHMRT_ARENA_H

#include "segment.h"

struct shmrt_arena {
	struct shmrt_arena_shared *shared;
	uint8_t *base; /* of the mapped segment */
	uint64_t size;
	int fd;
	uint64_t file_offset;
	uint64_t granule_count; /* checked copies of the geometry */
	_Atomic uint64_t *granule_words;
	_Atomic uint64_t *block_words;
	uint8_t *data;
	uint64_t limit_bytes;
	uint64_t cursor[SHMRT_CLASS_COUNT];    /* where the last search of a class ended */
	uint64_t warm[SHMRT_CLASS_COUNT][16];  /* hints: blocks freed by this process, newest last */
	uint8_t warm_count[SHMRT_CLASS_COUNT];
	uint8_t balance[SHMRT_CLASS_COUNT];    /* allocations ahead of frees, at most 16 */
	uint64_t budget_left, budget_ns;       /* may be reserved without asking again, and since when */
	uint64_t allocations, frees, growths;  /* private counters */
};
/* The private half is not locked: one process serialises its own calls (under the GIL or a mutex). */

struct shmrt_block {
	uint64_t block;      /* index into block_words */
	uint32_t generation;
	uint32_t class_index;
	uint64_t capacity;   /* bytes */
	uint8_t *data;
};

/* Virtual bytes of a segment that may hold `limit` payload bytes: twice that, against fragmentation. */
uint64_t shmrt_arena_bytes(uint64_t limit);
/* Creates a sealed memfd; reserves the header only. arena->fd belongs to the caller, who closes it after
 * detach; the other ways in borrow the caller's descriptor. `limit` is rounded up to a granule. */
SHMRT_MUST_USE int shmrt_arena_create(struct shmrt_arena *, uint64_t limit, struct shmrt_shortage *);
/* The same inside an existing writable file (a named ring), at a page-aligned offset. */
SHMRT_MUST_USE int shmrt_arena_create_in(struct shmrt_arena *, int fd, uint64_t offset, uint64_t limit, struct shmrt_shortage *);
SHMRT_MUST_USE int shmrt_arena_attach(struct shmrt_arena *, int fd, uint64_t offset, char *reason, size_t reason_size);
/* In plain zeroed memory of at least shmrt_arena_words_bytes(limit) bytes: nothing is reserved or given
 * back, memory counts as always there. Data lies behind the words and is not touched by the arena. */
SHMRT_MUST_USE int shmrt_arena_create_at(struct shmrt_arena *, void *memory, uint64_t size, uint64_t limit);
SHMRT_MUST_USE int shmrt_arena_attach_at(struct shmrt_arena *, void *memory, uint64_t size, char *reason, size_t reason_size);
uint64_t shmrt_arena_words_bytes(uint64_t limit);
/* Unmaps. Views on blocks must be gone. */
void shmrt_arena_detach(struct shmrt_arena *);

/* A block of at least `size` bytes in state WRITING|owner, warm ones first; reserves memory if none
 * is free. NO_SPACE (shortage filled in) when a limit would be passed; TOO_LARGE when it can never fit. */
SHMRT_MUST_USE int shmrt_arena_alloc(struct shmrt_arena *, uint64_t size, uint32_t owner, struct shmrt_block *, struct shmrt_shortage *);
/* Resolves and checks a reference read from shared memory: range, HEAD granule, size, generation. */
SHMRT_MUST_USE int shmrt_arena_resolve(struct shmrt_arena *, const struct shmrt_block_reference *, struct shmrt_block *);
/* One compare-and-swap from (from, from_owner, generation) to (to, to_owner); STALE if it is not so. */
SHMRT_MUST_USE int shmrt_arena_move(struct shmrt_arena *, uint64_t block, uint32_t generation, enum shmrt_block_state from,
				    uint32_t from_owner, enum shmrt_block_state to, uint32_t to_owner);
/* -> FREE with the next generation; remembers it as warm. STALE if it is not (state, owner, generation). */
SHMRT_MUST_USE int shmrt_arena_free(struct shmrt_arena *, uint64_t block, uint32_t generation, enum shmrt_block_state, uint32_t owner);
void shmrt_arena_state(struct shmrt_arena *, uint64_t block, enum shmrt_block_state *, uint32_t *generation, uint32_t *owner);

/* A sender that goes on looking at a block it sends keeps a share: until it lets go, whoever frees or
 * reclaims the block gives it back as KEPT|owner instead. Before sending, block HELD|owner or KEPT|owner
 * (it came back: HELD again afterwards), or QUEUED in a message that the caller leases. False: the block cannot have one (smaller than 2 KiB) or is not the
 * owner's at the moment. A dead owner's share is reclaimed with its blocks. */
SHMRT_MUST_USE bool shmrt_arena_share(struct shmrt_arena *, uint64_t block, uint32_t generation, uint32_t owner);
/* Lets go: frees the block if it came back, else whoever has it will. Nothing else of the caller's may name it. */
void shmrt_arena_unshare(struct shmrt_arena *, uint64_t block, uint32_t generation, uint32_t owner);

/* Who keeps a share of it, or 0. While somebody does, to free the block gives no memory back. */
uint32_t shmrt_arena_sharer(const struct shmrt_arena *, uint64_t block, uint32_t generation);

/* Frees every block and claimed granule that names `owner`, except blocks for which keep(context,
 * block, generation) is true. Only when that process is gone and what it published was taken.
 * Returns how many. Idempotent; may run beside anybody's alloc. */
uint64_t shmrt_arena_reclaim(struct shmrt_arena *, uint32_t owner, bool (*keep)(void *, uint64_t, uint32_t), void *context);
/* The same for every owner that is no longer alive (shmrt_owner_is_alive); QUEUED blocks stay. */
uint64_t shmrt_arena_reclaim_dead(struct shmrt_arena *);
/* Returns memory of granules whose blocks are all free, down to `keep_bytes` reserved. Returns how many
 * bytes were given back. */
uint64_t shmrt_arena_trim(struct shmrt_arena *, uint64_t keep_bytes);

struct shmrt_arena_stats { uint64_t limit, reserved, blocks_free, blocks_used, bytes_used; };
void shmrt_arena_get_stats(struct shmrt_arena *, struct shmrt_arena_stats *);
/* Pure validity test of all words, at rest: nobody grows or trims meanwhile. */
SHMRT_MUST_USE int shmrt_arena_check(struct shmrt_arena *);

#endif
