/* lane.h -- a byte ring with one producer and one consumer: everything the runtime dispatches.
 *
 *     0  tail  u64  next byte to write; only the producer stores it
 *   128  head  u64  oldest byte still needed; only the consumer stores it
 *   256  data  u8[capacity], capacity a power of two
 *
 * Positions only grow; index = position & (capacity - 1); used = tail - head <= capacity. Records
 * (struct shmrt_record_header and body) are contiguous, aligned to 16; a PAD record fills the end of
 * the array when the next record does not fit before it.
 *
 * Dies before `commit`: the bytes are not there, a successor writes over them. Dies after: the record
 * is there. The consumer reads with a private cursor and stores head by `release` when the record's
 * effect is durable; dies before: the record is read again. Nothing is ever half claimed.
 *
 * The private halves (struct shmrt_lane_producer / _consumer) live in the process that plays the role
 * and are rebuilt by `attach` from tail and head. One process may play a role from several threads if
 * it serialises them.
 *
 * Edge L1: commit stores tail (release)  -> peek loads tail (acquire):    the record bytes are visible.
 * Edge L2: release stores head (release) -> reserve loads head (acquire): the space may be overwritten. is_needed loads it to ask
 *   whether it may have been: only its own process writes over a record, so the answer stands as long as that does not reserve.
 */
#ifndef SHMRT_LANE_H
#define SHMRT_LANE_H

#include "layout.h"

struct shmrt_lane_producer {
	struct shmrt_lane_shared *shared;
	uint64_t capacity;
	uint64_t tail;        /* private: includes reserved, uncommitted records */
	uint64_t committed;   /* private: what shared->tail says, which anybody might have overwritten */
	uint64_t cached_head; /* refreshed only when the lane looks full */
};

struct shmrt_lane_consumer {
	struct shmrt_lane_shared *shared;
	uint64_t capacity;
	uint64_t cursor;      /* private: next record to read; head <= cursor <= tail */
	uint64_t cached_tail;
};

#define SHMRT_LANE_CAPACITY_MIN 1024

/* Bytes of a lane of this capacity, and of a record whose body (references + inline) has `body` bytes. */
static inline uint64_t shmrt_lane_bytes(uint64_t capacity) {
	return sizeof(struct shmrt_lane_shared) + capacity;
}
static inline uint64_t shmrt_record_bytes(uint64_t body) {
	return shmrt_align_up(sizeof(struct shmrt_record_header) + body, 16);
}
/* Largest record that can always be sent however the lane is turned: a quarter of the capacity. */
static inline uint64_t shmrt_lane_record_max(uint64_t capacity) { return capacity / 4; }

/* Fresh or recycled memory that no other process uses: both positions = `start` (tests start near a wrap). */
void shmrt_lane_format(struct shmrt_lane_shared *shared, uint64_t start);
/* CORRUPT when the positions cannot be. `capacity` comes from checked geometry, not from the lane. */
SHMRT_MUST_USE int shmrt_lane_attach_producer(struct shmrt_lane_producer *, struct shmrt_lane_shared *, uint64_t capacity);
SHMRT_MUST_USE int shmrt_lane_attach_consumer(struct shmrt_lane_consumer *, struct shmrt_lane_shared *, uint64_t capacity);

/* Room for one record: header (zeroed but for size) and a body of `body` bytes directly behind it.
 * OK, FULL, or TOO_LARGE (above record_max). Invisible until commit; several may be reserved first. */
SHMRT_MUST_USE int shmrt_lane_reserve(struct shmrt_lane_producer *, uint64_t body, struct shmrt_record_header **record);
/* Makes the record just reserved smaller (never larger) before it is committed. */
void shmrt_lane_shrink(struct shmrt_lane_producer *, struct shmrt_record_header *record, uint64_t body);
void shmrt_lane_commit(struct shmrt_lane_producer *);
/* Forgets everything reserved since the last commit. */
void shmrt_lane_abort(struct shmrt_lane_producer *);
/* The position of the record just reserved. */
uint64_t shmrt_lane_position(const struct shmrt_lane_producer *, const struct shmrt_record_header *record);
/* Whether the consumer still needs the record at that position. If not, its bytes may be another's. */
bool shmrt_lane_is_needed(const struct shmrt_lane_producer *, uint64_t position);
bool shmrt_lane_has_uncommitted(const struct shmrt_lane_producer *);
uint64_t shmrt_lane_free_bytes(struct shmrt_lane_producer *);

/* The record at the cursor: its header is copied into *header (read once, range-checked), *body points
 * at block references + inline bytes. OK, EMPTY or CORRUPT. Pads are skipped. Does not move. */
SHMRT_MUST_USE int shmrt_lane_peek(struct shmrt_lane_consumer *, struct shmrt_record_header *header, const uint8_t **body);
/* Steps over the record just peeked; its space stays taken until release. */
void shmrt_lane_advance(struct shmrt_lane_consumer *, const struct shmrt_record_header *header);
/* Gives everything before the cursor back to the producer. */
void shmrt_lane_release(struct shmrt_lane_consumer *);
bool shmrt_lane_is_empty(struct shmrt_lane_consumer *); /* nothing at the cursor */
uint64_t shmrt_lane_used(const struct shmrt_lane_shared *);

/* Pure validity test of the shared bytes: positions, every record between head and tail. */
SHMRT_MUST_USE int shmrt_lane_check(const struct shmrt_lane_shared *, uint64_t capacity);

#endif
