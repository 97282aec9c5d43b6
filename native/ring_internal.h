/* ring_internal.h -- what the files of the ring share with mailbox.c; nobody else includes it.
 *
 * Under the mutex the words need no ordering between processes (edge R1), but they do need one within
 * the process: the kernel stops it between two instructions, and a repair reads exactly the stores
 * before. `shmrt_ring_step` keeps the compiler from moving stores across a step of a protocol.
 */
#ifndef SHMRT_RING_INTERNAL_H
#define SHMRT_RING_INTERNAL_H

#include "ring.h"

#define SHMRT_RING_CHUNK 32 /* messages per hold of the mutex in a bulk call */
#define SHMRT_RING_AHEAD_BYTES 256 /* of a message that are fetched before its turn comes */
#define SHMRT_RING_OUT_OF_LINE UINT32_MAX
#define SHMRT_RING_LOCK_SLICE_NS UINT64_C(100000000) /* longest sleep behind one holder of the mutex */
#define SHMRT_RING_LOCK_TRIES 64
#define SHMRT_RING_LEASE_LOOK_NS INT64_C(20000000) /* a sleeper looks for dead lease holders this often */

/* Which of the two mutexes. Who wants both takes the putters' first. */
enum shmrt_ring_side { SHMRT_RING_PUT = 1, SHMRT_RING_TAKE = 2, SHMRT_RING_BOTH = 3 };

/* The four positions, read once and checked. */
struct shmrt_ring_view {
	uint64_t head, next, tail, holes;
};

static inline void shmrt_ring_step(void) { atomic_signal_fence(memory_order_seq_cst); } /* orders the compiler only */

static inline uint64_t shmrt_ring_load(const _Atomic uint64_t *word) {
	return atomic_load_explicit(word, memory_order_relaxed); /* R1, or only a hint */
}
static inline void shmrt_ring_store(_Atomic uint64_t *word, uint64_t value) {
	atomic_store_explicit(word, value, memory_order_relaxed); /* R1 */
}
static inline uint64_t shmrt_ring_peek(const _Atomic uint64_t *word) { /* of the other side */
	return atomic_load_explicit(word, memory_order_acquire); /* R2 tail, R4 head and holes */
}
static inline void shmrt_ring_store_head(struct shmrt_ring_shared *shared, uint64_t head) {
	atomic_store_explicit(&shared->head, head, memory_order_release); /* R4 */
}
static inline void shmrt_ring_add(_Atomic uint64_t *word, uint64_t more) {
	shmrt_ring_store(word, shmrt_ring_load(word) + more);
}
/* One lease less, after its message was counted elsewhere: who looks without the mutex sees it in one of the two counts. */
static inline void shmrt_ring_lease_less(struct shmrt_ring_shared *shared) {
	atomic_store_explicit(&shared->leased, shmrt_ring_load(&shared->leased) - 1, memory_order_release); /* R3 */
}

static inline struct shmrt_ring_slot *shmrt_ring_slot_at(const struct shmrt_ring *ring, uint64_t position) {
	uint64_t place = position - ring->start; /* counted from the start: 2^64 need not divide by slots */
	place = ring->mask != 0 ? place & ring->mask : place % ring->slots;
	return (struct shmrt_ring_slot *)(void *)(ring->slot_base + place * ring->slot_stride);
}
static inline struct shmrt_block_reference *shmrt_ring_references(struct shmrt_ring_slot *slot) {
	return (struct shmrt_block_reference *)(void *)(slot + 1);
}
static inline bool shmrt_ring_fits(const struct shmrt_ring *ring, uint32_t inline_size, uint16_t blocks) {
	return (uint64_t)inline_size + (uint64_t)blocks * sizeof(struct shmrt_block_reference) <= ring->slot_bytes;
}
/* Which of `left` messages, counted from the present one, to fetch now, so that its lines have come from the other side when
 * its turn comes: a batch ahead if there are so many; 0: none. */
static inline uint64_t shmrt_ring_ahead(uint64_t left) {
	return left > SHMRT_RING_CHUNK ? SHMRT_RING_CHUNK : left > 4 ? 4 : left - (left != 0);
}
/* What the message in the slot counts for: inline bytes and those of its blocks. */
static inline uint64_t shmrt_ring_message_bytes(const struct shmrt_ring *ring, struct shmrt_ring_slot *slot) {
	uint64_t bytes = slot->inline_size;
	uint16_t count = slot->block_count;
	if (SHMRT_LIKELY(count == 0) || !shmrt_ring_fits(ring, 0, count))
		return bytes;
	const struct shmrt_block_reference *references = shmrt_ring_references(slot);
	for (uint16_t i = 0; i < count; i++)
		bytes += references[i].size;
	return bytes;
}
static inline void shmrt_ring_set_state(struct shmrt_ring_slot *slot, enum shmrt_ring_slot_state state) {
	shmrt_ring_step();
	slot->state = state;
	shmrt_ring_step();
}

/* ring_repair.c */
/* Under the takers' mutex: everything but for what is put meanwhile. Under both: everything. */
int shmrt_ring_view(struct shmrt_ring *, struct shmrt_ring_view *);
void shmrt_ring_finish(struct shmrt_ring *, struct shmrt_ring_slot *); /* TAKING, FREEING, DROPPING -> at rest */
void shmrt_ring_free_queued(struct shmrt_ring *, struct shmrt_ring_slot *);
void shmrt_ring_advance(struct shmrt_ring *, struct shmrt_ring_view *); /* head over the DONE prefix */
bool shmrt_ring_compact(struct shmrt_ring *, struct shmrt_ring_view *); /* oldest held -> a hole, so that head moves */

/* ring_take.c */
/* The oldest message that nobody holds; EMPTY when there is none. */
int shmrt_ring_oldest(struct shmrt_ring *, struct shmrt_ring_view *, uint64_t *position);
/* After the slot at `position` stopped being FULL: `next` or `returned` follow. */
void shmrt_ring_pass(struct shmrt_ring *, struct shmrt_ring_view *, uint64_t position, bool in_line);
void shmrt_ring_make_hole(struct shmrt_ring *, struct shmrt_ring_view *); /* after a slot became DONE */

/* ring_lock.c. OK; INTERRUPTED after lock_slice_ns behind a stopped holder; CORRUPT. */
int shmrt_ring_lock(struct shmrt_ring *, enum shmrt_ring_side);
int shmrt_ring_lock_after(struct shmrt_ring *, enum shmrt_ring_side, int tries); /* so many looks before it sleeps */
/* After a ring of its bell. Who rang holds that side's mutex, and this may be the CPU that it lost to us: sleeps at once until
 * it is free, where a look would be in vain for as long as it lasts. Behind a stopped holder no longer than a slice. */
void shmrt_ring_await_waker(struct shmrt_ring *, enum shmrt_ring_side);
int shmrt_ring_lock_rest(struct shmrt_ring *); /* a putter, before its put: the takers' mutex as well */
void shmrt_ring_unlock(struct shmrt_ring *, enum shmrt_ring_side);

/* ring_wait.c */
void shmrt_ring_wake(_Atomic uint32_t *bell); /* under a mutex, before the change it announces */
bool shmrt_ring_take_back(struct shmrt_ring *, bool always); /* leases of the dead; true if one came back */

/* How long a call may still wait, over all its attempts. */
struct shmrt_ring_patience {
	int64_t timeout_ns;
	uint64_t deadline_ns; /* 0: not computed yet */
	uint64_t waited_ns;
	bool spun;            /* one vain spin per sleep */
};
/* Without the mutex: look for a while, if that may help. */
void shmrt_ring_spin(struct shmrt_ring *, bool for_room, struct shmrt_ring_patience *);
/* Without the mutex, before a take: where taker and putter go in step, so that every message costs each of them a wait for the
 * other's line, lets the putter get ahead by a few. */
void shmrt_ring_linger(struct shmrt_ring *);
/* Called with this or both held, after a look that found nothing; returns with nothing held.
 * OK: look again. TIMEOUT, INTERRUPTED, CORRUPT. */
int shmrt_ring_wait(struct shmrt_ring *, enum shmrt_ring_side held, bool for_room, struct shmrt_ring_patience *);
/* A wait that a signal cut short counts, too, unless the mutex is not to be had. */
void shmrt_ring_keep_waited(struct shmrt_ring *, bool for_room, struct shmrt_ring_patience *);
/* Without the mutex: whether a get could find something, a put room. Hints. */
bool shmrt_ring_seems_empty(const struct shmrt_ring *);
bool shmrt_ring_seems_full(const struct shmrt_ring *, uint64_t room_wanted);

#endif
