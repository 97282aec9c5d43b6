/* hub_dispatch.c -- from the backlog into task lanes, and between lanes. */
#include "hub_chunk.h"

/* How many tasks a lane should hold, from the mean running time of the last tasks over the living workers. A mean that has
 * grown counts at once, one that has shrunk when it is of several tasks: the first call of a function may import for a
 * long time, and says nothing of the next. Each worker keeps its own sums (one writer per word); reading them costs a
 * cache miss each, so this is done once a pump and not for each task. */
void shmrt_hub__measure(struct shmrt_hub_pool *pool) {
	uint64_t busy = 0, done = 0;
	for (uint32_t i = 0; i < pool->options.slot_count; i++) {
		const struct shmrt_slot *slot = pool->workers[i].slot;
		if (!pool->workers[i].ready)
			continue;
		busy += atomic_load_explicit(&slot->busy_ns, memory_order_relaxed); /* an estimate may be stale */
		done += atomic_load_explicit(&slot->done, memory_order_relaxed);    /* an estimate may be stale */
	}
	pool->measured = done > 0;
	if (done == 0) {
		pool->credit = 8;
		return;
	}
	if (busy < pool->seen_busy_ns || done < pool->seen_done || pool->credit == 0)
		pool->seen_busy_ns = pool->seen_done = 0; /* other workers than at the last look */
	uint64_t count = done - pool->seen_done, mean_ns = count ? (busy - pool->seen_busy_ns) / count : 0;
	if (count >= SHMRT_MEAN_OF || (count && mean_ns > pool->mean_ns)) {
		pool->mean_ns = mean_ns;
		pool->seen_busy_ns = busy;
		pool->seen_done = done;
	}
	uint64_t mean = pool->mean_ns, tasks = mean < SHMRT_CREDIT_NS ? SHMRT_CREDIT_NS / (mean + 1) : 0; /* whatever a worker says */
	pool->credit = tasks < SHMRT_CREDIT_MIN ? SHMRT_CREDIT_MIN : tasks > SHMRT_CREDIT_MAX ? SHMRT_CREDIT_MAX : tasks;
}

static bool may_take(const struct shmrt_hub_worker *worker) {
	return worker->ready && !worker->abandoned && !worker->doubtful && !worker->retiring && !worker->stop_sent && worker->kill_stage == 0 &&
	       atomic_load_explicit(&worker->slot->kill_reason, memory_order_relaxed) == SHMRT_KILL_NONE && /* a hint: H2 decides */
	       !(worker->lane.first && worker->lane.first->flags & SHMRT_TASK_ALONE);
}

static struct shmrt_task_list *next_list(struct shmrt_hub_pool *pool, struct shmrt_hub_worker *worker) {
	uint32_t index = worker->index;
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

/* deadline_ns: 0, or it follows the body. */
static int write_message(struct shmrt_hub_worker *worker, const struct shmrt_payload *payload, uint8_t kind, uint64_t deadline_ns,
			 struct shmrt_record_header **record) {
	uint64_t references = (uint64_t)payload->block_count * sizeof(struct shmrt_block_reference);
	uint64_t more = deadline_ns ? sizeof(deadline_ns) : 0;
	int result = shmrt_lane_reserve(&worker->tasks, references + payload->size + more, record);
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
	if (more)
		memcpy(body + references + payload->size, &deadline_ns, sizeof(deadline_ns));
	return SHMRT_OK;
}

/* Puts the task into the worker's lane, its function first if the worker does not know it. The worker sees it once the lane
 * is committed. */
static int place(struct shmrt_hub_pool *pool, struct shmrt_hub_worker *worker, struct shmrt_task *task) {
	struct shmrt_record_header *record;
	uint32_t number = task->function;
	bool known = worker->known_functions[number / 64] >> (number % 64) & 1;
	if (!known) {
		shmrt_lane_commit(&worker->tasks); /* an abort takes back no more than this task's */
		int result = write_message(worker, &pool->functions[number].pickle, SHMRT_RECORD_FUNCTION, 0, &record);
		if (result != SHMRT_OK)
			return result;
		record->function = number;
	}
	int result;
	if (task->items) { /* what has an outcome is left out */
		struct shmrt_payload rest = {.bytes = task->arguments.bytes + task->offset, .size = task->arguments.size - task->offset,
					     .flags = task->arguments.flags};
		result = write_message(worker, &rest, SHMRT_RECORD_CHUNK, 0, &record);
	} else
		result = write_message(worker, &task->arguments, SHMRT_RECORD_TASK, task->deadline_ns, &record);
	if (result != SHMRT_OK) {
		if (!known)
			shmrt_lane_abort(&worker->tasks);
		return result;
	}
	record->id = task->id;
	record->function = number;
	if (task->items) {
		task->items_sent = task->items_done;
		record->attempt = (task->items - task->items_done) | task->items_done << SHMRT_CHUNK_FIRST_SHIFT |
				  (task->star ? SHMRT_CHUNK_STAR : 0);
	} else
		record->attempt = (task->begun + 1) | (task->deadline_ns ? SHMRT_ATTEMPT_DEADLINE : 0);
	record->claim = shmrt_hub__offered(task); /* bit 8: it may run again (arguments read-only) */
	worker->known_functions[number / 64] |= UINT64_C(1) << (number % 64);
	task->claim = (_Atomic uint32_t *)&record->claim;
	task->position = shmrt_lane_position(&worker->tasks, record);
	task->worker = (uint32_t)(worker - pool->workers);
	task->state = SHMRT_TASK_LANE;
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

/* A worker with something in its lane that it will be through with before a sleeper could wake up, as far as the mean
 * running time tells. One whose task has already run for longer than that has shown that the mean says nothing of it. */
static bool is_through_soon(const struct shmrt_hub_worker *worker, uint64_t most, uint64_t *now_ns) {
	if (!worker->ready || worker->lane.count == 0 || worker->lane.count >= most || worker->lane_full || !may_take(worker))
		return false;
	if (*now_ns == 0)
		*now_ns = shmrt_now_ns();
	uint64_t start_ns = atomic_load_explicit(&worker->slot->task_start_ns, memory_order_relaxed); /* F1: a hint */
	return start_ns == 0 || *now_ns < start_ns + SHMRT_WAKE_NS;
}

/* The worker with the shortest lane that may take a task now and for which there is one. A worker that is awake and
 * through soon comes before a sleeper: waking costs both sides more than such tasks do. (If its task turns out long,
 * rebalance gives what waits behind it to the idle.) While nothing is known of the running times, nobody is. */
static struct shmrt_hub_worker *choose(struct shmrt_hub_pool *pool, bool spare_waits, struct shmrt_task_list **list) {
	struct shmrt_hub_worker *best = NULL;
	uint64_t soon = pool->measured ? pool->credit * SHMRT_WAKE_NS / SHMRT_CREDIT_NS : 0, now_ns = 0;
	uint32_t count = pool->options.slot_count, at = pool->next_worker;
	for (uint32_t step = 0; step < count; step++, at = at + 1 < count ? at + 1 : 0) {
		struct shmrt_hub_worker *worker = &pool->workers[at];
		if (!worker->ready || worker->lane_full || worker->lane.count >= (best ? best->lane.count : pool->credit) ||
		    !may_take(worker))
			continue;
		if (worker->lane.count == 0 && spare_waits)
			continue; /* a spare waits for a death */
		if (pool->options.max_tasks_per_worker && worker->sent >= pool->options.max_tasks_per_worker)
			continue; /* it has had its share: the next round retires it */
		struct shmrt_task_list *found = next_list(pool, worker);
		if (found == NULL)
			continue;
		best = worker;
		*list = found;
		if (best->lane.count == 0)
			break;
	}
	if (best && best->lane.count == 0 && soon > 2 && (*list)->first->items <= 1) {
		for (uint32_t i = 0; i < count; i++) {
			struct shmrt_hub_worker *awake = &pool->workers[i];
			if (pool->options.max_tasks_per_worker && awake->sent >= pool->options.max_tasks_per_worker)
				continue;
			if (!is_through_soon(awake, soon, &now_ns))
				continue;
			struct shmrt_task_list *found = next_list(pool, awake);
			if (found != *list)
				continue;
			return awake;
		}
	}
	return best;
}

/* The last attempt of a suspect waits for a worker that has served nobody. The death that made it the last usually brings
 * one; if none is there or on its way (the pool was made smaller meanwhile), a worker is replaced for its sake. */
static void hire_fresh(struct shmrt_hub_pool *pool) {
	struct shmrt_hub_worker *oldest = NULL;
	for (uint32_t i = 0; i < pool->options.slot_count; i++) {
		struct shmrt_hub_worker *worker = &pool->workers[i];
		uint32_t state = atomic_load_explicit(&worker->slot->state, memory_order_acquire); /* F2 */
		/* One is there, on its way, asked for, or may follow a death; whose burial dispatches again. */
		if (state == SHMRT_SLOT_STARTING || worker->replace_asked || worker->abandoned || (worker->ready && worker->sent == 0))
			return;
		if (worker->ready && !worker->retiring && (oldest == NULL || worker->sent > oldest->sent))
			oldest = worker;
	}
	if (oldest == NULL)
		return;
	oldest->retiring = pool->retires = true;
	oldest->replace_asked = shmrt_hub__note(pool->hub, SHMRT_NOTE_REPLACE, pool, oldest) != NULL;
}

/* Tasks from the front of the list into the worker's lane: one, or a run of them behind what it has to do for a while
 * anyway. */
static void place_some(struct shmrt_hub_pool *pool, struct shmrt_hub_worker *worker, struct shmrt_task_list *list, uint64_t *now_ns) {
	uint64_t room = worker->lane.count < pool->credit ? pool->credit - worker->lane.count : 1, placed = 0;
	uint64_t most = worker->lane.count < SHMRT_STOCK || pool->options.max_tasks_per_worker ? 1 : room < SHMRT_STOCK ? room : SHMRT_STOCK;
	bool fits = true;
	while (fits && placed < most && list->first) {
		struct shmrt_task *task = list->first;
		if (task->flags & SHMRT_TASK_ALONE)
			most = 1;
		shmrt_list_remove(list, task);
		pool->backlog_count--;
		if (task->deadline_ns && task->deadline_ns <= (*now_ns ? *now_ns : (*now_ns = shmrt_now_ns()))) {
			shmrt_hub__finish(task, SHMRT_TASK_EXPIRED);
			placed++;
			continue;
		}
		int result = place(pool, worker, task);
		fits = result == SHMRT_OK;
		if (!fits) {
			shmrt_list_prepend(list, task);
			task->state = SHMRT_TASK_BACKLOG;
			pool->backlog_count++;
			worker->lane_full = true; /* room comes with its results */
			if (result == SHMRT_CORRUPT)
				shmrt_hub__doubt(pool, worker);
		} else
			placed++;
	}
	shmrt_lane_commit(&worker->tasks);
	if (placed) {
		pool->next_worker = (uint32_t)(worker - pool->workers); /* among idle ones the last used is warm, and maybe awake */
		shmrt_bell_ring(&worker->slot->bell);
	}
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
		place_some(pool, worker, list, &now_ns);
	}
	if (pool->alone.first)
		hire_fresh(pool);
	pool->full = pool->backlog_count > 0;
}

_Atomic uint32_t *shmrt_hub__claim_of(const struct shmrt_task *task) {
	return shmrt_lane_is_needed(&task->pool->workers[task->worker].tasks, task->position) ? task->claim : NULL;
}

/* Takes a task that its worker has not begun out of its lane. The record stays and is skipped. */
bool shmrt_hub__revoke(struct shmrt_task *task) {
	_Atomic uint32_t *claim = shmrt_hub__claim_of(task);
	uint32_t offered = shmrt_hub__offered(task);
	if (claim == NULL || !atomic_compare_exchange_strong_explicit(claim, &offered, offered | 2, memory_order_acq_rel,
								      memory_order_acquire)) /* H1 */
		return false;
	shmrt_list_remove(&task->pool->workers[task->worker].lane, task);
	return true;
}

/* A neighbour with nothing to do takes over half of what waits behind a task that has run for a while. A lane in
 * which something waits is looked at again after a quarter of that time, so no idle worker stays idle for long. */
void shmrt_hub__rebalance(struct shmrt_hub_pool *pool, uint64_t now_ns, uint64_t *next_ns) {
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
