/* hub_chunk.c -- the hub's side of a chunk: its outcomes as they come, what a dead worker leaves of them, an early end.
 *
 * The protocol is told in hub_chunk.h. Outcomes are counted and measured here; the decoder (py_chunk.c) checks the rest.
 */
#include "hub_chunk.h"

/* ---- outcomes as they come ---- */

/* So many more bytes behind the result; NULL: no memory, or too much of it. The size is the caller's to raise. */
static uint8_t *grow(struct shmrt_payload *result, uint64_t more) {
	uint64_t size = result->size + more;
	if (size > UINT32_MAX)
		return NULL;
	if (size <= SHMRT_PAYLOAD_LOCAL)
		result->bytes = result->local;
	else {
		bool was_local = result->bytes == NULL || result->bytes == result->local;
		uint8_t *bytes = realloc(was_local ? NULL : result->bytes, size);
		if (bytes == NULL)
			return NULL;
		if (was_local && result->size)
			memcpy(bytes, result->local, result->size);
		result->bytes = bytes;
	}
	return result->bytes + result->size;
}

/* The outcomes in `bytes`: *failed of them are exceptions. CORRUPT unless they are `count` and fill the bytes. */
static int measure(const uint8_t *bytes, uint64_t size, uint32_t count, uint32_t *failed) {
	uint64_t at = 0;
	*failed = 0;
	for (uint32_t i = 0; i < count; i++) {
		uint32_t head;
		if (size - at < sizeof(head))
			return SHMRT_CORRUPT;
		memcpy(&head, bytes + at, sizeof(head));
		at += sizeof(head);
		if ((head & 3) > SHMRT_ITEM_ERROR || size - at < head >> 2)
			return SHMRT_CORRUPT;
		at += head >> 2;
		*failed += (head & 3) == SHMRT_ITEM_ERROR;
	}
	return at == size ? SHMRT_OK : SHMRT_CORRUPT;
}

/* `room` bytes can be read at `body`. */
static int take_outcomes(struct shmrt_task *task, const uint8_t *body, uint64_t room) {
	if (room < sizeof(uint64_t))
		return SHMRT_CORRUPT;
	uint64_t progress = atomic_load_explicit((const _Atomic uint64_t *)(const void *)body, memory_order_relaxed); /* L1, or F4 */
	uint32_t count = (uint32_t)(progress >> 32), size = (uint32_t)progress, failed;
	if (size > room - sizeof(progress) || count > task->items - task->items_done)
		return SHMRT_CORRUPT;
	uint8_t *to = grow(&task->result, size);
	if (to == NULL)
		return SHMRT_SYSTEM;
	memcpy(to, body + sizeof(progress), size); /* judged where nobody writes any more */
	if (measure(to, size, count, &failed) != SHMRT_OK)
		return SHMRT_CORRUPT;
	task->result.size += size;
	task->items_done += count;
	task->pool->completed += count - failed;
	task->pool->failed += failed;
	return SHMRT_OK;
}

int shmrt_hub__take_part(struct shmrt_task *task, const struct shmrt_record_header *header, const uint8_t *body) {
	if (task->items == 0 || header->attempt != task->items_done || header->block_count != 0)
		return SHMRT_CORRUPT;
	return take_outcomes(task, body, header->inline_size);
}

static bool append(struct shmrt_task *task, enum shmrt_item_kind kind, const void *bytes, uint32_t size, const char *text) {
	uint32_t more = text ? (uint32_t)strlen(text) + 1 : 0, head = (size + more) << 2 | kind;
	uint8_t *to = grow(&task->result, sizeof(head) + size + more);
	if (to == NULL)
		return false;
	memcpy(to, &head, sizeof(head));
	memcpy(to + sizeof(head), bytes, size);
	if (more)
		memcpy(to + sizeof(head) + size, text, more);
	task->result.size += (uint32_t)sizeof(head) + size + more;
	task->items_done++;
	return true;
}

struct shmrt_payload *shmrt_hub__take_alone(struct shmrt_task *task, bool is_error) {
	uint8_t word = is_error;
	if (task->items_done == task->items)
		return NULL;
	struct shmrt_payload *alone = realloc(task->alone, (task->alone_count + 1) * sizeof(*alone));
	if (alone == NULL)
		return NULL;
	/* Payloads are only read through `bytes`; the few bytes in place moved with the array. */
	for (uint32_t i = 0; i < task->alone_count; i++)
		if (alone[i].size <= SHMRT_PAYLOAD_LOCAL)
			alone[i].bytes = alone[i].local;
	task->alone = alone;
	if (!append(task, SHMRT_ITEM_ALONE, &word, sizeof(word), NULL))
		return NULL;
	task->pool->completed += !is_error;
	task->pool->failed += is_error;
	memset(&alone[task->alone_count], 0, sizeof(*alone));
	return &alone[task->alone_count++];
}

/* ---- what a dead worker leaves ---- */

/* Where a record lies that the dead producer had reserved behind the last committed one, and how long it may be. */
static const uint8_t *open_record(const struct shmrt_lane_consumer *lane, struct shmrt_record_header *header, uint64_t *room) {
	uint64_t index = lane->cursor & (lane->capacity - 1), contiguous = lane->capacity - index;
	const uint8_t *at = lane->shared->data + index;
	memcpy(header, at, sizeof(uint64_t)); /* size and kind: a pad may be no longer than twice that */
	if (header->kind == SHMRT_RECORD_PAD && header->size == contiguous) {
		contiguous = lane->capacity;
		at = lane->shared->data;
	} else if (contiguous < sizeof(*header))
		return NULL;
	memcpy(header, at, sizeof(*header));
	if (header->kind != SHMRT_RECORD_PART || header->size % 16 != 0 || header->size > contiguous ||
	    header->size < sizeof(*header) + sizeof(uint64_t) || header->size > shmrt_lane_record_max(lane->capacity))
		return NULL;
	*room = header->size - sizeof(*header);
	return at + sizeof(*header);
}

/* part.h says why it is this one. */
bool shmrt_hub__salvage(struct shmrt_hub_worker *worker, struct shmrt_task *task) {
	struct shmrt_record_header header;
	uint64_t room;
	const uint8_t *body = open_record(&worker->results, &header, &room);
	if (body && header.id == task->id && header.function == worker->epoch && header.attempt == task->items_done) {
		int result = take_outcomes(task, body, room);
		(void)result; /* CORRUPT: its items that were begun are told to have died with it */
	}
	const _Atomic uint32_t *claim = shmrt_hub__claim_of(task);
	uint32_t begun = claim ? task->items_sent + (atomic_load_explicit(claim, memory_order_acquire) /* H1 */
						      >> SHMRT_CLAIM_BEGUN_SHIFT & SHMRT_CHUNK_ITEMS_MAX)
			       : task->items; /* no correct worker steps over what it is not through with */
	struct shmrt_crash unknown = {
		.pid = worker->pid, .worker = worker->index};
	while (begun > task->items_done + 1 && begun <= task->items) /* no correct worker leaves more than one */
		shmrt_hub__take_crash(task, &unknown);
	task->crash.worker = unknown.worker;
	task->crash.pid = unknown.pid;
	return begun > task->items_done && task->items_done < task->items;
}

void shmrt_hub__take_crash(struct shmrt_task *task, const struct shmrt_crash *crash) {
	struct shmrt_crash item = *crash;
	item.stack = NULL;
	task->pool->crashed++;
	if (!append(task, SHMRT_ITEM_CRASH, &item, sizeof(item), crash->stack))
		task->items_done++; /* no memory for it: the chunk ends as a whole */
}

void shmrt_hub__go_on(struct shmrt_task *task) {
	/* Over the items that have an outcome now; they are ours, and were measured when they were encoded. */
	for (uint32_t i = task->items_sent; i < task->items_done; i++) {
		uint32_t length;
		memcpy(&length, task->arguments.bytes + task->offset, sizeof(length));
		task->offset += (uint32_t)sizeof(length) + length;
	}
	task->items_sent = task->items_done;
	if (task->items_done == task->items)
		shmrt_hub__finish(task, SHMRT_TASK_VALUE);
	else if (task->pool->broken)
		shmrt_hub__finish(task, SHMRT_TASK_BROKEN);
	else {
		task->pool->requeued++;
		shmrt_hub__enqueue(task, true);
		task->pool->full = false;
	}
}

void shmrt_hub__spoil(struct shmrt_task *task, const struct shmrt_crash *crash) {
	struct shmrt_crash copy = *crash;
	while (task->items_done < task->items)
		shmrt_hub__take_crash(task, &copy);
	shmrt_hub__go_on(task);
}

/* ---- an early end ---- */

int64_t shmrt_hub_split(struct shmrt_hub *hub, uint64_t id) {
	int64_t kept = -1;
	pthread_mutex_lock(&hub->mutex);
	struct shmrt_task *task = shmrt_hub__find(hub, id);
	_Atomic uint32_t *word = task && task->state == SHMRT_TASK_LANE && task->items > 1 ? shmrt_hub__claim_of(task) : NULL;
	if (word) {
		uint32_t claim = atomic_load_explicit(word, memory_order_acquire), begun = 0, fewer; /* H1 */
		bool split = false;
		while ((claim & 3) == 1 && !split) {
			begun = claim >> SHMRT_CLAIM_BEGUN_SHIFT & SHMRT_CHUNK_ITEMS_MAX;
			fewer = (claim & ((UINT32_C(1) << SHMRT_CLAIM_END_SHIFT) - 1)) | begun << SHMRT_CLAIM_END_SHIFT;
			split = atomic_compare_exchange_weak_explicit(word, &claim, fewer, memory_order_acq_rel, memory_order_acquire); /* H1 */
		}
		uint32_t items = task->items_sent + begun;
		if (split && items <= task->items) {
			task->pool->pending -= task->items - items;
			task->pool->submitted -= task->items - items; /* whoever splits submits them once more */
			task->items = items;
			kept = items;
		}
	}
	pthread_mutex_unlock(&hub->mutex);
	return kept;
}
