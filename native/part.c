/* part.c -- see part.h. */
#include "part.h"

static _Atomic uint64_t *progress_of(const struct shmrt_part *part) {
	return (_Atomic uint64_t *)(void *)(part->record + 1);
}

void shmrt_part_open(struct shmrt_part *part, struct shmrt_record_header *record, uint64_t body, uint64_t id, uint32_t first,
		     uint32_t epoch) {
	*part = (struct shmrt_part){.record = record, .room = (uint32_t)(body - sizeof(uint64_t))};
	atomic_store_explicit(progress_of(part), 0, memory_order_relaxed); /* F4 */
	record->id = id;
	record->attempt = first;
	record->function = epoch;
	atomic_signal_fence(memory_order_seq_cst); /* nothing of an earlier turn of the lane is taken for this */
	record->kind = SHMRT_RECORD_PART;
}

bool shmrt_part_put(struct shmrt_part *part, const uint8_t *bytes, uint32_t size, bool is_error) {
	uint32_t head = size << 2 | is_error;
	if (part->room - part->used < sizeof(head) || part->room - part->used - sizeof(head) < size)
		return false;
	uint8_t *at = (uint8_t *)(part->record + 1) + sizeof(uint64_t) + part->used;
	memcpy(at, &head, sizeof(head));
	memcpy(at + sizeof(head), bytes, size);
	part->used += (uint32_t)sizeof(head) + size;
	part->count++;
	atomic_store_explicit(progress_of(part), (uint64_t)part->count << 32 | part->used, memory_order_release); /* F4 */
	return true;
}

void shmrt_part_commit(struct shmrt_part *part, struct shmrt_lane_producer *producer, bool last, uint64_t elapsed_ns) {
	struct shmrt_record_header *record = part->record;
	uint64_t ticks = elapsed_ns / SHMRT_PART_TICK_NS;
	uint32_t size = (uint32_t)sizeof(uint64_t) + part->used;
	/* Until the tail is stored it is still the open one: what is looked for there does not change. */
	record->inline_size = size;
	record->claim = (ticks > INT32_MAX ? INT32_MAX : (uint32_t)ticks) << 1 | last;
	part->record = NULL;
	shmrt_lane_shrink(producer, record, size);
	shmrt_lane_commit(producer);
}

void shmrt_part_close(struct shmrt_part *part, struct shmrt_lane_producer *producer) {
	if (SHMRT_LIKELY(part->record == NULL))
		return;
	if (part->count)
		shmrt_part_commit(part, producer, false, 0);
	else
		shmrt_lane_abort(producer);
	part->record = NULL;
}
