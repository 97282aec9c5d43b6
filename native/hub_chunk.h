/* hub_chunk.h -- chunks: many items of a map as one task of the hub.
 *
 * A chunk is one task of many items of a map, each with an outcome of its own, without deadline or timeout, and none of
 * them is ever run twice. Its items lie one behind the other, each behind its length (4 bytes). Its claim word counts, too: the
 * worker raises `begun` by compare-and-swap before it begins an item, and the hub may lower `end` to what is begun (split), so
 * that it knows at once which items are nobody's. The worker writes each outcome behind the last one into a PART that it has
 * reserved in its result lane (part.h), and commits that when it is full, when something else has to go into the lane, and
 * at the end. If it dies before, take_leave collects what the open PART holds (salvage). At most one item is begun and has
 * no outcome, the one that was running; its outcome is the death, once the reason is known, and the items behind it go back
 * to the front of the backlog. An outcome that needs blocks, or is long, is a RESULT or ERROR record of its own between two
 * PARTs.
 */
#ifndef SHMRT_HUB_CHUNK_H
#define SHMRT_HUB_CHUNK_H

#include "hub_internal.h"

/* Lets a chunk end with the items that are begun. How many those are; -1: it is not running. */
int64_t shmrt_hub_split(struct shmrt_hub *, uint64_t id);

/* ---- between hub_*.c, under the mutex ---- */
/* The claim word of a record that nobody has taken. */
static inline uint32_t shmrt_hub__offered(const struct shmrt_task *task) {
	return task->items ? (task->items - task->items_sent) << SHMRT_CLAIM_END_SHIFT : task->max_attempts > 1 ? 0x100 : 0;
}
/* In the bytes of a chunk's result each outcome is `length << 2 | kind` in four bytes, and so many bytes. */
enum shmrt_item_kind {
	SHMRT_ITEM_VALUE = 0, /* the codec's bytes */
	SHMRT_ITEM_ERROR = 1, /* those of a packed exception */
	SHMRT_ITEM_CRASH = 2, /* a struct shmrt_crash and the stack's text; only the hub writes it */
	SHMRT_ITEM_ALONE = 3, /* 1 byte, whether it is an exception: the next of task->alone; only the hub writes it */
};
/* Takes the outcomes of a PART. CORRUPT: no correct worker writes that. */
int shmrt_hub__take_part(struct shmrt_task *, const struct shmrt_record_header *, const uint8_t *body);
/* Room for the outcome that came by itself; NULL: no correct worker sends it, or no memory. Counts it as done. */
struct shmrt_payload *shmrt_hub__take_alone(struct shmrt_task *, bool is_error);
/* Its worker is dead and its lane drained: takes what the open record at the tail holds. True: an item was running. */
bool shmrt_hub__salvage(struct shmrt_hub_worker *, struct shmrt_task *);
/* That item's outcome is this death. */
void shmrt_hub__take_crash(struct shmrt_task *, const struct shmrt_crash *);
/* Out of a lane, with some outcomes: finished, or back to the front of the backlog with what is left of it. */
void shmrt_hub__go_on(struct shmrt_task *);
/* Nobody knows what its worker did: every item without outcome has died with it. */
void shmrt_hub__spoil(struct shmrt_task *, const struct shmrt_crash *);

#endif
