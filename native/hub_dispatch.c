/* hub_dispatch.c -- from the backlog into task lanes, and from result lanes to outcomes. */
#include "hub.h"

/* ---- out ---- */

/* How many tasks a lane should hold, from the mean running time over the living workers. Each keeps its own sums
 * (one writer per word); reading them costs a cache miss each, so this is done once a pump and not for each task. */
void shmrt_hub__measure(struct shmrt_hub_pool *pool) {
	uint64_t busy = 0, done = 0;
	for (uint32_t i = 0; i < pool->options.slot_count; i++) {
		const struct shmrt_slot *slot = pool->workers[i].slot;
		if (!pool->workers[i].ready)
			continue;
		busy += atomic_load_explicit(&slot->busy_ns, memory_order_relaxed); /* an estimate may be stale */
		done += atomic_load_explicit(&slot->done, memory_order_relaxed);    /* an estimate may be stale */
	}
	if (done == 0) {
		pool->credit = 8;
		return;
	}
	uint64_t tasks = SHMRT_CREDIT_NS / (busy / done + 1);
	pool->credit = tasks < SHMRT_CREDIT_MIN ? SHMRT_CREDIT_MIN : tasks > SHMRT_CREDIT_MAX ? SHMRT_CREDIT_MAX : tasks;
}

static bool may_take(const struct shmrt_hub_worker *worker) {
	return worker->ready && !worker->abandoned && !worker->retiring && !worker->stop_sent && worker->kill_stage == 0 &&
	       atomic_load_explicit(&worker->slot->kill_reason, memory_order_relaxed) == SHMRT_KILL_NONE && /* a hint: H2 decides */
	       !(worker->lane.first && worker->lane.first->flags & SHMRT_TASK_ALONE);
}

static struct shmrt_task_list *next_list(struct shmrt_hub_pool *pool, struct shmrt_hub_worker *worker) {
	uint32_t index = atomic_load_explicit(&worker->slot->worker, memory_order_relaxed); /* fixed for this epoch */
	if (index < pool->options.max_workers && pool->pinned[index].first) {
		struct shmrt_task *first = pool->pinned[index].first;
		if (!(first->flags & SHMRT_TASK_ALONE) || worker->lane.count == 0)
			return &pool->pinned[index];
		return NULL;
	}
	if (pool->alone.first && worker->sent == 0 && worker->lane.count == 0)
		return &pool->alone;
	for (uint32_t i = 0; i < pool->queue_count; i++)
		if (pool->queues[i].tasks.first)
			return &pool->queues[i].tasks;
	return NULL;
}

static int write_message(struct shmrt_hub_worker *worker, const struct shmrt_payload *payload, uint8_t kind,
			 struct shmrt_record_header **record) {
	uint64_t references = (uint64_t)payload->block_count * sizeof(struct shmrt_block_reference);
	int result = shmrt_lane_reserve(&worker->tasks, references + payload->size, record);
	if (result != SHMRT_OK)
		return result;
	struct shmrt_record_header *header = *record;
	header->kind = kind;
	header->flags = (uint8_t)payload->flags;
	header->block_count = payload->block_count;
	header->inline_size = payload->size;
	uint8_t *body = (uint8_t *)(header + 1);
	if (references)
		memcpy(body, payload->blocks, references);
	memcpy(body + references, payload->bytes, payload->size);
	return SHMRT_OK;
}

/* Puts the task into the worker's lane, its function first if the worker does not know it. */
static int place(struct shmrt_hub_pool *pool, struct shmrt_hub_worker *worker, struct shmrt_task *task) {
	struct shmrt_record_header *record;
	uint32_t number = task->function;
	bool known = worker->known_functions[number / 64] >> (number % 64) & 1;
	if (!known) {
		int result = write_message(worker, &pool->functions[number].pickle, SHMRT_RECORD_FUNCTION, &record);
		if (result != SHMRT_OK)
			return result;
		record->function = number;
	}
	int result = write_message(worker, &task->arguments, SHMRT_RECORD_TASK, &record);
	if (result != SHMRT_OK) {
		shmrt_lane_abort(&worker->tasks);
		return result;
	}
	record->id = task->id;
	record->function = number;
	record->attempt = task->begun + 1;
	record->claim = task->max_attempts > 1 ? 0x100 : 0; /* bit 8: it may run again (arguments read-only) */
	worker->known_functions[number / 64] |= UINT64_C(1) << (number % 64);
	task->claim = (_Atomic uint32_t *)&record->claim;
	task->worker = (uint32_t)(worker - pool->workers);
	task->state = SHMRT_TASK_LANE;
	shmrt_lane_commit(&worker->tasks);
	shmrt_list_append(&worker->lane, task);
	worker->sent++;
	return SHMRT_OK;
}

static uint32_t active_workers(const struct shmrt_hub_pool *pool) {
	uint32_t active = 0;
	for (uint32_t i = 0; i < pool->options.slot_count; i++)
		active += pool->workers[i].ready && pool->workers[i].lane.count > 0;
	return active;
}

/* The worker with the shortest lane that may take a task now and for which there is one. A worker that is awake and
 * will be through with its lane before a sleeper could wake up comes before the sleeper: waking costs both sides
 * more than such tasks do. (If its task turns out long, rebalance gives what waits behind it to the idle.) */
static struct shmrt_hub_worker *choose(struct shmrt_hub_pool *pool, bool spare_waits, struct shmrt_task_list **list) {
	struct shmrt_hub_worker *best = NULL;
	uint64_t soon = pool->credit * SHMRT_WAKE_NS / SHMRT_CREDIT_NS;
	uint32_t count = pool->options.slot_count, at = pool->next_worker;
	for (uint32_t step = 0; step < count; step++, at = at + 1 < count ? at + 1 : 0) {
		struct shmrt_hub_worker *worker = &pool->workers[at];
		if (!worker->ready || worker->lane_full || worker->lane.count >= (best ? best->lane.count : pool->credit) ||
		    !may_take(worker))
			continue;
		if (worker->lane.count == 0 && spare_waits)
			continue; /* a spare waits for a death */
		struct shmrt_task_list *found = next_list(pool, worker);
		if (found == NULL)
			continue;
		best = worker;
		*list = found;
		if (best->lane.count == 0)
			break;
	}
	if (best && best->lane.count == 0 && soon > 2) {
		for (uint32_t i = 0; i < count; i++) {
			struct shmrt_hub_worker *awake = &pool->workers[i];
			if (!awake->ready || awake->lane.count == 0 || awake->lane.count >= soon || awake->lane_full || !may_take(awake))
				continue;
			struct shmrt_task_list *found = next_list(pool, awake);
			if (found != *list)
				continue;
			return awake;
		}
	}
	return best;
}

void shmrt_hub__dispatch(struct shmrt_hub_pool *pool) {
	if (pool->backlog_count == 0 || pool->ready_count == 0 || pool->paused)
		return;
	if (pool->credit == 0)
		shmrt_hub__measure(pool);
	uint64_t now_ns = 0;
	bool spares = pool->ready_count > pool->options.max_workers;
	while (pool->backlog_count) {
		struct shmrt_task_list *list = NULL;
		bool spare_waits = spares && active_workers(pool) >= pool->options.max_workers;
		struct shmrt_hub_worker *worker = choose(pool, spare_waits, &list);
		if (worker == NULL)
			break;
		struct shmrt_task *task = list->first;
		shmrt_list_remove(list, task);
		pool->backlog_count--;
		if (task->deadline_ns && task->deadline_ns <= (now_ns ? now_ns : (now_ns = shmrt_now_ns()))) {
			shmrt_hub__finish(task, SHMRT_TASK_EXPIRED);
			continue;
		}
		if (place(pool, worker, task) != SHMRT_OK) {
			shmrt_list_prepend(list, task);
			task->state = SHMRT_TASK_BACKLOG;
			pool->backlog_count++;
			worker->lane_full = true; /* room comes with its results */
			continue;
		}
		pool->next_worker = (uint32_t)(worker - pool->workers); /* among idle ones the last used is warm, and maybe awake */
		shmrt_bell_ring(&worker->slot->bell);
	}
	pool->full = pool->backlog_count > 0;
}

/* Takes a task that its worker has not begun out of its lane. The record stays and is skipped. */
bool shmrt_hub__revoke(struct shmrt_task *task) {
	uint32_t offered = task->max_attempts > 1 ? 0x100 : 0;
	if (!atomic_compare_exchange_strong_explicit(task->claim, &offered, offered | 2, memory_order_acq_rel,
						     memory_order_acquire)) /* H1 */
		return false;
	shmrt_list_remove(&task->pool->workers[task->worker].lane, task);
	return true;
}

/* A neighbour with nothing to do takes over half of what waits behind a task that has run for a while. A lane in
 * which something waits is looked at again after a quarter of that time, so no idle worker stays idle for long. */
static void rebalance(struct shmrt_hub_pool *pool, uint64_t now_ns, uint64_t *next_ns) {
	bool waiting = false, idle = false;
	for (uint32_t i = 0; i < pool->options.slot_count; i++) {
		const struct shmrt_hub_worker *worker = &pool->workers[i];
		waiting |= worker->ready && worker->lane.count >= 2;
		idle |= worker->ready && worker->lane.count == 0 && may_take(worker);
	}
	if (!waiting || pool->ready_count < 2)
		return;
	idle = idle && pool->backlog_count == 0 && active_workers(pool) < pool->options.max_workers;
	for (uint32_t i = 0; i < pool->options.slot_count; i++) {
		struct shmrt_hub_worker *worker = &pool->workers[i];
		if (!worker->ready || worker->lane.count < 2)
			continue;
		uint64_t start_ns = atomic_load_explicit(&worker->slot->task_start_ns, memory_order_relaxed); /* F1: a hint */
		uint64_t age_ns = now_ns > start_ns ? now_ns - start_ns : 0;
		uint64_t again_ns = age_ns / 4 < SHMRT_RING_EVERY_NS ? SHMRT_RING_EVERY_NS : age_ns / 4 > 10000000 ? 10000000 : age_ns / 4;
		if (now_ns + again_ns < *next_ns)
			*next_ns = now_ns + again_ns;
		if (!idle || age_ns < 2 * SHMRT_WAKE_NS)
			continue;
		uint64_t give = (worker->lane.count + 1) / 2;
		struct shmrt_task *task = worker->lane.last;
		while (give && task && task != worker->lane.first) {
			struct shmrt_task *previous = task->previous;
			if (task->affinity < 0 && shmrt_hub__revoke(task)) {
				shmrt_hub__enqueue(task, true);
				give--;
			}
			task = previous;
		}
		pool->full = false;
	}
}

/* ---- in ---- */

static int take_blocks(struct shmrt_hub *hub, struct shmrt_payload *payload, uint32_t sender) {
	struct shmrt_arena_stats stats;
	bool pressed = false;
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
		int result = shmrt_arena_move(&hub->arena, reference->block, reference->generation, SHMRT_BLOCK_SENT,
					      sender, SHMRT_BLOCK_HELD, hub->owner);
		struct shmrt_block block;
		if (result == SHMRT_OK)
			result = shmrt_arena_resolve(&hub->arena, reference, &block);
		if (result != SHMRT_OK)
			return result;
		if (!pressed)
			continue;
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
			uint32_t sender, struct shmrt_payload *payload) {
	uint64_t references = (uint64_t)header->block_count * sizeof(struct shmrt_block_reference);
	if (sizeof(*header) + references + header->inline_size > header->size)
		return SHMRT_CORRUPT;
	int result = shmrt_payload_set(payload, body + references, header->inline_size, header->flags,
				       (const struct shmrt_block_reference *)(const void *)body, header->block_count);
	return result == SHMRT_OK ? take_blocks(hub, payload, sender) : result;
}

static void outcome_of(struct shmrt_hub_pool *pool, struct shmrt_hub_worker *worker,
		       const struct shmrt_record_header *header, const uint8_t *body) {
	struct shmrt_hub *hub = pool->hub;
	struct shmrt_task *task = shmrt_hub__find(hub, header->id);
	if (task == NULL || task->state != SHMRT_TASK_LANE || &pool->workers[task->worker] != worker || task->pool != pool) {
		pool->stale++;
		struct shmrt_payload stale = {0};
		if (read_message(hub, header, body, worker->owner, &stale) == SHMRT_OK)
			shmrt_hub__blocks_free(hub, &stale, SHMRT_BLOCK_HELD, hub->owner);
		shmrt_payload_clear(&stale);
		return;
	}
	if (header->kind == SHMRT_RECORD_PARTIAL) {
		struct shmrt_note *note = shmrt_hub__note(hub, SHMRT_NOTE_PARTIAL, pool, worker);
		task->flags |= SHMRT_TASK_STREAMED;
		if (note) {
			note->task = task->id;
			note->future = task->future;
			if (read_message(hub, header, body, worker->owner, &note->payload) != SHMRT_OK)
				pool->stale++;
		}
		return;
	}
	shmrt_list_remove(&worker->lane, task);
	task->begun++;
	bool again = header->kind == SHMRT_RECORD_ERROR && header->attempt /* the worker's word: in retry_on */ &&
		     task->begun < task->max_attempts && !(task->flags & (SHMRT_TASK_STREAMED | SHMRT_TASK_KILL));
	if (read_message(hub, header, body, worker->owner, &task->result) != SHMRT_OK) {
		/* Bytes no correct worker leaves: treat it as that worker's failure, not as ours. */
		shmrt_payload_clear(&task->result);
		task->crash.worker = atomic_load_explicit(&worker->slot->worker, memory_order_relaxed); /* fixed for this epoch */
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
	task->crash.worker = atomic_load_explicit(&worker->slot->worker, memory_order_relaxed); /* fixed for this epoch */
	task->crash.pid = worker->pid;
	shmrt_hub__finish(task, header->kind == SHMRT_RECORD_RESULT ? SHMRT_TASK_VALUE : SHMRT_TASK_ERROR);
}

bool shmrt_hub__drain(struct shmrt_hub_pool *pool, uint32_t offset, uint32_t most) {
	struct shmrt_hub_worker *worker = &pool->workers[offset];
	struct shmrt_record_header header;
	const uint8_t *body;
	uint32_t taken = 0;
	int result = SHMRT_EMPTY;
	while (taken < most && (result = shmrt_lane_peek(&worker->results, &header, &body)) == SHMRT_OK) {
		enum shmrt_note_kind kind = 0;
		switch (header.kind) {
		case SHMRT_RECORD_RESULT:
		case SHMRT_RECORD_ERROR:
		case SHMRT_RECORD_PARTIAL:
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
			if (read_message(pool->hub, &header, body, worker->owner, payload) != SHMRT_OK)
				pool->stale++;
			if (note == NULL) {
				shmrt_hub__blocks_free(pool->hub, payload, SHMRT_BLOCK_HELD, pool->hub->owner);
				shmrt_payload_clear(payload);
			}
		}
		shmrt_lane_advance(&worker->results, &header);
		taken++;
	}
	if (result == SHMRT_CORRUPT && !worker->abandoned && worker->kill_stage != 2 && worker->pidfd >= 0) {
		/* Its lane cannot be read any more: end it; its tasks go on elsewhere. */
		if (shmrt_pidfd_signal(worker->pidfd, 9) == SHMRT_OK)
			worker->kill_stage = 2;
	}
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

/* ---- the wheel ---- */

uint64_t shmrt_hub_pump(struct shmrt_hub *hub, bool *moved) {
	uint64_t next_ns = UINT64_MAX, now_ns = 0;
	*moved = false;
	pthread_mutex_lock(&hub->mutex);
	hub->pumps++;
	for (uint32_t p = 0; p < hub->pool_high; p++) {
		struct shmrt_hub_pool *pool = hub->pools[p];
		if (pool == NULL)
			continue;
		now_ns = shmrt_now_ns();
		for (uint32_t i = 0; i < pool->options.slot_count; i++)
			*moved |= shmrt_hub__look_at_worker(pool, i, now_ns, &next_ns);
		if (*moved)
			shmrt_hub__measure(pool);
		if (pool->pending > 1)
			rebalance(pool, now_ns, &next_ns);
		if (pool->backlog_count && !pool->full)
			shmrt_hub__dispatch(pool);
		if (pool->timed && pool->backlog_count) {
			/* Deadlines of tasks that nobody has begun; only the queues' fronts are looked at in dispatch. */
			for (uint32_t q = 0; q < pool->queue_count + 1 + pool->options.max_workers; q++) {
				struct shmrt_task_list *list = q < pool->queue_count ? &pool->queues[q].tasks
					: q == pool->queue_count ? &pool->alone : &pool->pinned[q - pool->queue_count - 1];
				for (struct shmrt_task *task = list->first, *after; task; task = after) {
					after = task->next;
					if (task->deadline_ns == 0)
						continue;
					if (task->deadline_ns <= now_ns) {
						shmrt_list_remove(list, task);
						pool->backlog_count--;
						shmrt_hub__finish(task, SHMRT_TASK_EXPIRED);
						*moved = true;
					} else if (task->deadline_ns < next_ns)
						next_ns = task->deadline_ns;
				}
			}
		}
	}
	pthread_mutex_unlock(&hub->mutex);
	return next_ns;
}

/* Whether a pump would find something; under the mutex. */
static bool has_work(struct shmrt_hub *hub) {
	for (uint32_t p = 0; p < hub->pool_high; p++) {
		struct shmrt_hub_pool *pool = hub->pools[p];
		for (uint32_t i = 0; pool && i < pool->options.slot_count; i++) {
			struct shmrt_hub_worker *worker = &pool->workers[i];
			uint32_t state = atomic_load_explicit(&worker->slot->state, memory_order_acquire); /* F2 */
			if (state == SHMRT_SLOT_EMPTY)
				continue;
			if (atomic_load_explicit(&worker->slot->epoch, memory_order_relaxed) != worker->epoch) { /* F2: after state */
				if (atomic_load_explicit(&worker->slot->pid, memory_order_acquire) != 0) /* F2 */
					return true;
				continue;
			}
			if (state == SHMRT_SLOT_GONE || (state == SHMRT_SLOT_READY && !worker->ready && !worker->abandoned))
				return true;
			if (!worker->abandoned && shmrt_slot_is_abandoned(worker->slot))
				return true;
			if (!shmrt_lane_is_empty(&worker->results))
				return true;
		}
	}
	return false;
}

int shmrt_hub_park(struct shmrt_hub *hub, uint64_t until_ns, bool urgent) {
	_Atomic uint32_t *bell = &hub->control->slots[hub->self_slot].bell;
	uint32_t wanted = urgent ? 2 : 1, found = 0;
	/* Never lower an urgent bell: another thread may sleep behind it. */
	while (!atomic_compare_exchange_weak_explicit(bell, &found, wanted > found ? wanted : found, memory_order_seq_cst,
						      memory_order_relaxed)) /* B1 */
		;
	atomic_thread_fence(memory_order_seq_cst); /* B1 */
	pthread_mutex_lock(&hub->mutex);
	bool work = has_work(hub);
	hub->sleeps += !work;
	pthread_mutex_unlock(&hub->mutex);
	if (work)
		return SHMRT_OK;
	uint64_t now_ns = until_ns == UINT64_MAX ? 0 : shmrt_now_ns();
	if (until_ns != UINT64_MAX && until_ns <= now_ns)
		return SHMRT_TIMEOUT;
	int64_t timeout = until_ns == UINT64_MAX ? SHMRT_FOREVER : (int64_t)(until_ns - now_ns);
	return shmrt_futex_wait(bell, wanted > found ? wanted : found, timeout);
}

void shmrt_hub_make_urgent(struct shmrt_hub *hub) {
	_Atomic uint32_t *bell = &hub->control->slots[hub->self_slot].bell;
	uint32_t lazily = 1;
	bool moved;
	atomic_compare_exchange_strong_explicit(bell, &lazily, 2, memory_order_seq_cst, memory_order_relaxed); /* B1 */
	atomic_thread_fence(memory_order_seq_cst); /* B1: a worker that saw 1 has published what we now find */
	uint64_t next_ns = shmrt_hub_pump(hub, &moved);
	if (next_ns < atomic_load_explicit(&hub->sleeping_until, memory_order_relaxed)) /* a hint */
		shmrt_bell_ring_always(bell);
}
