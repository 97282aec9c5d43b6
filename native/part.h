/* part.h -- the record that a worker writes the outcomes of a chunk into, one behind the other.
 *
 * Written by the worker alone, in room that it has reserved in its result lane. Its progress word (count << 32 | bytes), at
 * the start of the body, is raised after each outcome. It is committed like any record; as long as it is not it lies behind
 * the lane's tail, and if the worker dies the hub takes from there what the word covers (hub_chunk.h). The death notice
 * orders all of it (F4), so only the compiler has to be kept from changing the order.
 *
 * What lies behind a tail may be a PART of an earlier turn of the lane. It is taken for the open one only if it names the
 * task, the epoch of the worker and the outcome that comes next: every other PART of that task and epoch begins with an outcome
 * that was collected since, or holds none.
 */
#ifndef SHMRT_PART_H
#define SHMRT_PART_H

#include "lane.h"

#define SHMRT_PART_BYTES 16384 /* of its body; enough for a chunk of small outcomes */

struct shmrt_part {
	struct shmrt_record_header *record; /* NULL: none is open */
	uint32_t count;                     /* outcomes in it */
	uint32_t room, used;                /* bytes behind the progress word */
};

/* How much to reserve for the body. */
static inline uint64_t shmrt_part_body(uint64_t capacity) {
	uint64_t most = shmrt_lane_record_max(capacity) - sizeof(struct shmrt_record_header);
	return most < SHMRT_PART_BYTES ? most : SHMRT_PART_BYTES;
}
/* `record` was just reserved with `body` bytes. first: which outcome of this chunk comes next. */
void shmrt_part_open(struct shmrt_part *, struct shmrt_record_header *record, uint64_t body, uint64_t id, uint32_t first,
		     uint32_t epoch);
/* False: there is no room for it. */
bool shmrt_part_put(struct shmrt_part *, const uint8_t *bytes, uint32_t size, bool is_error);
/* last: the chunk ends with it, after that running time. */
void shmrt_part_commit(struct shmrt_part *, struct shmrt_lane_producer *, bool last, uint64_t elapsed_ns);
/* Commits it, or gives its room back if nothing is in it: something else goes into the lane. */
void shmrt_part_close(struct shmrt_part *, struct shmrt_lane_producer *);

#endif
