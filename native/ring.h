/* ring.h -- a bounded many-to-many ring of messages under one robust mutex; needs no runtime.
 *
 * Byte map: struct shmrt_ring_shared in layout.h, then `slots` slots of slot_stride bytes
 * (struct shmrt_ring_slot and slot_bytes of body). Position p lives in slot p % slots.
 *
 * The mutex is held only for a copy of at most slot_bytes. Whoever locks next after its holder died
 * gets EOWNERDEAD and repairs before anything else (shmrt_ring_repair: idempotent, so a repairer may die).
 *
 *   put: [lock] intent = tail + 1; fill the slot; blocks WRITING|me -> QUEUED; messages_in...;
 *        wake sleepers on not_empty; tail = tail + 1 (commit); intent = 0 [unlock]
 *        Died before the commit: the repair frees QUEUED blocks that the intended slot names; WRITING
 *        ones name the dead producer and are reclaimed from the arena. Died after: the message is in.
 *        Sleepers are woken before the commit, inside the lock: a woken consumer queues up at the
 *        mutex and looks after the unlock (or the repair), so no death can lose a wake-up.
 *   get: [lock] copy out of slot `next` (or of the oldest returned one); blocks QUEUED -> HELD|me;
 *        next = next + 1; slot DONE; free the DONE prefix (head); wake sleepers on not_full [unlock]
 *        Died after next moved: what it was returning dies with it (at most once); blocks HELD|dead are
 *        reclaimed from the arena.
 *   lease: as get, but the slot stays LEASED|me and its blocks QUEUED; release makes it DONE. A holder
 *        that died: any later get, put on full, or wait turns the slot back into FULL (returned += 1).
 *
 * Sleepers: bell words; while leases are out, sleepers wake every 20 ms to look for dead holders.
 * Spin before sleeping where two CPUs are usable: look at tail/next without the mutex.
 *
 * Edge R1: unlock -> lock of the mutex: everything under it. Edge R2: tail (release) -> unlocked look
 * at tail (acquire): only a hint whether locking is worth it.
 */
#ifndef SHMRT_RING_H
#define SHMRT_RING_H

#include "arena.h"
#include "bell.h"

struct shmrt_ring {
	struct shmrt_ring_shared *shared;
	uint64_t size;
	int fd;
	uint64_t slots, slot_bytes, slot_stride; /* checked copies of the geometry */
	uint8_t *slot_base;
	struct shmrt_arena *arena; /* where its blocks live; NULL: none may be sent or taken */
	enum shmrt_ring_full_policy on_full;
};

struct shmrt_ring_message { /* what a put takes and a get gives; the caller owns the memory */
	const uint8_t *inline_bytes;
	uint32_t inline_size;
	uint16_t flags;
	uint16_t block_count;
	const struct shmrt_block_reference *blocks;
};

uint64_t shmrt_ring_bytes(uint64_t slots, uint64_t slot_bytes);
/* Into zeroed, reserved memory whose segment header is already formatted; does not publish. */
SHMRT_MUST_USE int shmrt_ring_format(struct shmrt_ring_shared *, uint64_t slots, uint64_t slot_bytes,
				     enum shmrt_ring_full_policy, uint64_t arena_offset, uint64_t start);
SHMRT_MUST_USE int shmrt_ring_attach(struct shmrt_ring *, void *address, uint64_t size, int fd, struct shmrt_arena *);

/* Puts `count` messages in order; *done says how many are in (bulk under one lock, one wake).
 * OK: all; FULL (policy raise, or timeout 0); TIMEOUT; CLOSED; TOO_LARGE; INTERRUPTED (look at signals and
 * call again with the rest); CORRUPT. drop_newest drops and counts; drop_oldest frees the dropped message's blocks. */
SHMRT_MUST_USE int shmrt_ring_put(struct shmrt_ring *, const struct shmrt_ring_message *, uint64_t count,
				  int64_t timeout_ns, uint64_t *done);
/* Takes at most `count` messages; waits for the first one only. Each is copied by `take(context, message)`
 * under the mutex (copy only: no allocation by Python, no user code). Blocks are HELD|self afterwards. */
typedef void (*shmrt_ring_take)(void *context, const struct shmrt_ring_message *);
SHMRT_MUST_USE int shmrt_ring_get(struct shmrt_ring *, uint64_t count, int64_t timeout_ns, shmrt_ring_take, void *context, uint64_t *done);
/* *position names the lease for release (done) or give_back (FULL again). */
SHMRT_MUST_USE int shmrt_ring_lease(struct shmrt_ring *, int64_t timeout_ns, shmrt_ring_take, void *context, uint64_t *position);
SHMRT_MUST_USE int shmrt_ring_release(struct shmrt_ring *, uint64_t position);
SHMRT_MUST_USE int shmrt_ring_give_back(struct shmrt_ring *, uint64_t position);
/* No more puts; gets go on until it is empty, then CLOSED. */
SHMRT_MUST_USE int shmrt_ring_close(struct shmrt_ring *);
uint64_t shmrt_ring_depth(const struct shmrt_ring *);

/* Under the mutex (or with nobody else there). Returns whether it changed anything. */
bool shmrt_ring_repair(struct shmrt_ring *);
SHMRT_MUST_USE int shmrt_ring_check(const struct shmrt_ring *);

#endif
