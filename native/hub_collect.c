/* hub_collect.c -- from result lanes to outcomes and notes.
 *
 * A record is copied out, its blocks are taken (SENT|worker -> HELD|us; arguments that a task returns, SENT|us -> HELD|us),
 * and only then is it stepped over; the lane's space is given back in one go. A worker that died leaves what it committed,
 * which is delivered like any other.
 */
#include "hub_chunk.h"

static bool is_argument_of(const struct shmrt_task *task, const struct shmrt_block_reference *reference) {
	for (uint16_t i = 0; i < task->arguments.block_count; i++)
		if (task->arguments.blocks[i].block == reference->block && task->arguments.blocks[i].generation == reference->generation)
			return true;
	return false;
}

/* Blocks that a task returns were ours all the time. Of a result that nobody wants any more they stay the arguments'. */
static void forget_returned(struct shmrt_payload *payload) {
	uint16_t kept = 0;
	for (uint16_t i = 0; i < payload->block_count; i++)
		if ((payload->blocks[i].flags & SHMRT_REFERENCE_RETURNED) == 0)
			payload->blocks[kept++] = payload->blocks[i];
	payload->block_count = kept;
}

/* task: whose result it is; NULL if it is none, or nobody's any more. */
static int take_blocks(struct shmrt_hub *hub, struct shmrt_payload *payload, uint32_t sender, const struct shmrt_task *task) {
	struct shmrt_arena_stats stats;
	bool pressed = false;
	if (task == NULL)
		forget_returned(payload);
	if (payload->block_count) {
		uint64_t reserved = atomic_load_explicit(&hub->arena.shared->reserved_granules, memory_order_relaxed); /* a hint */
		pressed = reserved * SHMRT_GRANULE_BYTES > hub->arena.limit_bytes / 2;
		if (pressed) {
			shmrt_arena_get_stats(&hub->arena, &stats);
			pressed = stats.bytes_used > hub->arena.limit_bytes / 2;
		}
	}
	for (uint16_t i = 0; i < payload->block_count; i++) {
		struct shmrt_block_reference *reference = &payload->blocks[i];
		bool returned = reference->flags & SHMRT_REFERENCE_RETURNED;
		if (returned && !is_argument_of(task, reference))
			return SHMRT_CORRUPT;
		reference->flags &= ~(uint32_t)SHMRT_REFERENCE_RETURNED;
		int result = shmrt_arena_move(&hub->arena, reference->block, reference->generation, SHMRT_BLOCK_SENT,
					      returned ? hub->owner : sender, SHMRT_BLOCK_HELD, hub->owner);
		struct shmrt_block block;
		if (result == SHMRT_OK)
			result = shmrt_arena_resolve(&hub->arena, reference, &block);
		if (result != SHMRT_OK)
			return result;
		if (!pressed || shmrt_arena_sharer(&hub->arena, reference->block, reference->generation) == hub->owner)
			continue; /* of what the program looks at anyway a copy would free nothing */
		/* Receivers hold much already: copy out, so that senders always find room again. */
		if (payload->copies == NULL)
			payload->copies = calloc(payload->block_count, sizeof(uint8_t *));
		uint8_t *copy = payload->copies ? malloc(reference->size ? reference->size : 1) : NULL;
		if (copy == NULL)
			continue;
		memcpy(copy, block.data, reference->size);
		payload->copies[i] = copy;
		result = shmrt_arena_free(&hub->arena, reference->block, reference->generation, SHMRT_BLOCK_HELD, hub->owner);
		if (result != SHMRT_OK)
			return result;
	}
	return SHMRT_OK;
}

static int read_message(struct shmrt_hub *hub, const struct shmrt_record_header *header, const uint8_t *body,
			uint32_t sender, const struct shmrt_task *task, struct shmrt_payload *payload) {
	uint64_t references = (uint64_t)header->block_count * sizeof(struct shmrt_block_reference);
	if (sizeof(*header) + references + header->inline_size > header->size)
		return SHMRT_CORRUPT;
	int result = shmrt_payload_set(payload, body + references, header->inline_size, header->flags,
				       (const struct shmrt_block_reference *)(const void *)body, header->block_count);
	return result == SHMRT_OK ? take_blocks(hub, payload, sender, task) : result;
}

/* A task that failed may have put by what it was given; then it cannot run again, and its error stands. */
static bool has_arguments(struct shmrt_hub *hub, const struct shmrt_task *task) {
	for (uint16_t i = 0; i < task->arguments.block_count; i++) {
		enum shmrt_block_state state;
		uint32_t generation, owner;
		shmrt_arena_state(&hub->arena, task->arguments.blocks[i].block, &state, &generation, &owner);
		if (state != SHMRT_BLOCK_SENT || owner != hub->owner || generation != task->arguments.blocks[i].generation)
			return false;
	}
	return true;
}

/* A chunk's outcomes, or the one of an item that came by itself. CORRUPT, or whatever reading it said. */
static int more_of_chunk(struct shmrt_hub *hub, struct shmrt_hub_worker *worker, struct shmrt_task *task,
			 const struct shmrt_record_header *header, const uint8_t *body) {
	if (header->kind == SHMRT_RECORD_RESULT || header->kind == SHMRT_RECORD_ERROR) {
		struct shmrt_payload *payload = shmrt_hub__take_alone(task, header->kind == SHMRT_RECORD_ERROR);
		return payload ? read_message(hub, header, body, worker->owner, NULL, payload) : SHMRT_CORRUPT;
	}
	int result = header->kind == SHMRT_RECORD_PART ? shmrt_hub__take_part(task, header, body) : SHMRT_CORRUPT;
	if (result == SHMRT_OK && header->claim & 1) {
		shmrt_list_remove(&worker->lane, task);
		task->begun++;
		if (task->items_sent == 0)
			task->elapsed_ns = (uint64_t)(header->claim >> 1) * SHMRT_PART_TICK_NS;
		shmrt_hub__go_on(task);
	}
	return result;
}

static void outcome_of(struct shmrt_hub_pool *pool, struct shmrt_hub_worker *worker,
		       const struct shmrt_record_header *header, const uint8_t *body) {
	struct shmrt_hub *hub = pool->hub;
	struct shmrt_task *task = shmrt_hub__find(hub, header->id);
	if (task == NULL || task->state != SHMRT_TASK_LANE || &pool->workers[task->worker] != worker || task->pool != pool ||
	    shmrt_hub__is_condemned(worker, task)) {
		/* A condemned task's time was over while it ran: what it still published may come of the very signal that asked
		 * for its stack. It stays in the lane until its worker is dead. */
		pool->stale++;
		struct shmrt_payload stale = {0};
		if (read_message(hub, header, body, worker->owner, NULL, &stale) == SHMRT_OK)
			shmrt_hub__blocks_free(hub, &stale, SHMRT_BLOCK_HELD, hub->owner);
		shmrt_payload_clear(&stale);
		return;
	}
	if (task != worker->lane.first) { /* it serves them in order: what was before was stepped over, or this is another */
		shmrt_hub__doubt(pool, worker);
		return;
	}
	if (SHMRT_UNLIKELY(task->items || header->kind == SHMRT_RECORD_PART)) {
		task->crash.worker = worker->index;
		task->crash.pid = worker->pid;
		int more = more_of_chunk(hub, worker, task, header, body);
		if (more == SHMRT_SYSTEM) { /* no memory here */
			shmrt_list_remove(&worker->lane, task);
			shmrt_hub__spoil(task, &task->crash);
		} else if (more != SHMRT_OK)
			shmrt_hub__doubt(pool, worker);
		return;
	}
	if (header->kind == SHMRT_RECORD_EXPIRED) {
		shmrt_list_remove(&worker->lane, task);
		shmrt_hub__finish(task, task->flags & SHMRT_TASK_KILL ? SHMRT_TASK_CANCELLED : SHMRT_TASK_EXPIRED);
		return;
	}
	int result = read_message(hub, header, body, worker->owner, header->kind == SHMRT_RECORD_RESULT ? task : NULL, &task->result);
	if (result != SHMRT_OK && result != SHMRT_SYSTEM) { /* bytes that no correct worker leaves */
		shmrt_payload_clear(&task->result);
		shmrt_hub__doubt(pool, worker);
		return;
	}
	shmrt_list_remove(&worker->lane, task);
	task->begun++;
	bool again = header->kind == SHMRT_RECORD_ERROR && header->attempt /* the worker's word: in retry_on */ &&
		     task->begun < task->max_attempts && !(task->flags & SHMRT_TASK_KILL) && has_arguments(hub, task);
	if (result != SHMRT_OK) { /* no memory here: the task is done, and what it gave is lost */
		shmrt_payload_clear(&task->result);
		task->crash.worker = worker->index;
		task->crash.pid = worker->pid;
		shmrt_hub__finish(task, SHMRT_TASK_CRASHED);
		return;
	}
	if (again) {
		shmrt_hub__blocks_free(hub, &task->result, SHMRT_BLOCK_HELD, hub->owner);
		shmrt_payload_clear(&task->result);
		pool->retried++;
		shmrt_hub__enqueue(task, false);
		return;
	}
	task->crash.worker = worker->index;
	task->crash.pid = worker->pid;
	shmrt_hub__finish(task, header->kind == SHMRT_RECORD_RESULT ? SHMRT_TASK_VALUE : SHMRT_TASK_ERROR);
}

bool shmrt_hub__drain(struct shmrt_hub_pool *pool, uint32_t offset, uint32_t most) {
	struct shmrt_hub_worker *worker = &pool->workers[offset];
	struct shmrt_record_header header;
	const uint8_t *body;
	uint32_t taken = 0;
	int result = SHMRT_EMPTY;
	while (taken < most && !worker->doubtful && (result = shmrt_lane_peek(&worker->results, &header, &body)) == SHMRT_OK) {
		enum shmrt_note_kind kind = 0;
		switch (header.kind) {
		case SHMRT_RECORD_RESULT:
		case SHMRT_RECORD_ERROR:
		case SHMRT_RECORD_EXPIRED:
		case SHMRT_RECORD_PART:
			outcome_of(pool, worker, &header, body);
			break;
		case SHMRT_RECORD_LOG:
			kind = SHMRT_NOTE_LOG;
			break;
		case SHMRT_RECORD_EXIT:
			kind = SHMRT_NOTE_EXIT;
			break;
		case SHMRT_RECORD_START_FAILED:
			kind = SHMRT_NOTE_START_FAILED;
			break;
		default:
			pool->stale++;
		}
		if (kind) {
			struct shmrt_note *note = shmrt_hub__note(pool->hub, kind, pool, worker);
			if (note == NULL)
				pool->log_dropped++;
			struct shmrt_payload dropped = {0};
			struct shmrt_payload *payload = note ? &note->payload : &dropped;
			if (read_message(pool->hub, &header, body, worker->owner, NULL, payload) != SHMRT_OK)
				pool->stale++;
			if (note == NULL) {
				shmrt_hub__blocks_free(pool->hub, payload, SHMRT_BLOCK_HELD, pool->hub->owner);
				shmrt_payload_clear(payload);
			}
		}
		shmrt_lane_advance(&worker->results, &header);
		taken++;
	}
	if (result == SHMRT_CORRUPT)
		shmrt_hub__doubt(pool, worker); /* its lane cannot be read any more */
	if (taken) {
		shmrt_lane_release(&worker->results);
		pool->full = worker->lane_full = false;
		/* A worker that waits for room in this lane sleeps on its bell. It stored its phase, fenced, and looked at
		 * head; we stored head, fence, and look at its phase (edge B1): one of the two sees the other. */
		atomic_thread_fence(memory_order_seq_cst); /* B1 */
		if ((shmrt_slot_phase_get(worker->slot) & 0xFF) == SHMRT_PHASE_BLOCKED)
			shmrt_bell_ring(&worker->slot->bell);
	}
	return taken > 0;
}
