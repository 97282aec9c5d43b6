/* hub_ledger.c -- tasks from acceptance to outcome: queues, submit, cancel, kill, ends. */
#include "hub_internal.h"

/* ---- outcomes ---- */

static bool is_timed(const struct shmrt_task *task) {
	return task->timeout_ns != SHMRT_FOREVER || task->deadline_ns != 0;
}

static void forget(struct shmrt_task *task) {
	struct shmrt_hub_pool *pool = task->pool;
	if (task->flags & SHMRT_TASK_WATCHED)
		pool->watched--;
	if (is_timed(task))
		pool->timed--;
	pool->pending -= shmrt_task_weight(task);
	pool->open_tasks--;
	shmrt_hub__id_give_back(pool->hub, task);
	if (task->arguments.block_count)
		shmrt_hub__blocks_free(pool->hub, &task->arguments, SHMRT_BLOCK_SENT, pool->hub->owner);
	shmrt_payload_clear(&task->arguments);
	struct shmrt_function *function = &pool->functions[task->function];
	if (--function->tasks == 0 && function->dropped) {
		shmrt_hub__blocks_free(pool->hub, &function->pickle, SHMRT_BLOCK_SENT, pool->hub->owner);
		shmrt_payload_clear(&function->pickle);
		function->used = false;
	}
}

/* Counted here, reported by whoever reads the notes, which says how many there were. */
static void count_expired(struct shmrt_hub_pool *pool) {
	uint64_t now_ns = shmrt_now_ns();
	pool->expired++;
	if (pool->told_expired_ns != 0 && now_ns - pool->told_expired_ns < UINT64_C(1000000000))
		return;
	pool->told_expired_ns = now_ns;
	(void)shmrt_hub__note(pool->hub, SHMRT_NOTE_EXPIRED, pool, &pool->workers[0]);
}

void shmrt_hub__finish(struct shmrt_task *task, enum shmrt_task_outcome outcome) {
	struct shmrt_hub_pool *pool = task->pool;
	struct shmrt_hub *hub = pool->hub;
	bool watched = task->flags & SHMRT_TASK_WATCHED;
	forget(task);
	task->state = SHMRT_TASK_DONE;
	task->outcome = (uint8_t)outcome;
	uint64_t weight = shmrt_task_weight(task) - task->items_done; /* items with an outcome are counted */
	if (SHMRT_LIKELY(task->items == 0))
		pool->completed += outcome == SHMRT_TASK_VALUE;
	pool->failed += outcome == SHMRT_TASK_ERROR;
	pool->cancelled += outcome == SHMRT_TASK_CANCELLED ? weight : 0;
	pool->crashed += outcome == SHMRT_TASK_CRASHED || outcome == SHMRT_TASK_POISON ? weight : 0;
	pool->poisoned += outcome == SHMRT_TASK_POISON;
	pool->timed_out += outcome == SHMRT_TASK_TIMED_OUT || outcome == SHMRT_TASK_EXPIRED;
	if (outcome == SHMRT_TASK_EXPIRED)
		count_expired(pool);
	shmrt_list_append(&hub->completed, task);
	atomic_fetch_add_explicit(&hub->completed_count, 1, memory_order_release); /* H3: a hint; the mutex orders the list */
	atomic_fetch_add_explicit(&hub->finished, 1, memory_order_release); /* H3: park looks under the mutex */
	if (watched) {
		atomic_store_explicit(&hub->watched_ready, 1, memory_order_relaxed); /* under the mutex */
		shmrt_hub__wake_dispatcher(hub);
	}
}

/* ---- queues ---- */

static struct shmrt_task_list *queue_of(struct shmrt_hub_pool *pool, const struct shmrt_task *task) {
	if (task->affinity >= 0)
		return &pool->pinned[(uint32_t)task->affinity % pool->options.max_workers];
	if (task->flags & SHMRT_TASK_ALONE)
		return &pool->alone;
	uint32_t at = 0;
	while (at < pool->queue_count && pool->queues[at].priority > task->priority)
		at++;
	if (at < pool->queue_count && pool->queues[at].priority == task->priority)
		return &pool->queues[at].tasks;
	/* An empty queue of another priority makes room; when all are in use the nearest one serves. */
	if (pool->queue_count == SHMRT_HUB_PRIORITIES) {
		uint32_t empty = 0;
		while (empty < pool->queue_count && pool->queues[empty].tasks.count)
			empty++;
		if (empty == pool->queue_count)
			return &pool->queues[at < pool->queue_count ? at : pool->queue_count - 1].tasks;
		memmove(&pool->queues[empty], &pool->queues[empty + 1],
			(pool->queue_count - empty - 1) * sizeof(pool->queues[0]));
		pool->queue_count--;
		at -= empty < at;
	}
	memmove(&pool->queues[at + 1], &pool->queues[at], (pool->queue_count - at) * sizeof(pool->queues[0]));
	pool->queue_count++;
	pool->queues[at] = (struct shmrt_hub_queue){.priority = task->priority};
	return &pool->queues[at].tasks;
}

void shmrt_hub__enqueue(struct shmrt_task *task, bool front) {
	struct shmrt_task_list *queue = queue_of(task->pool, task);
	task->state = SHMRT_TASK_BACKLOG;
	if (front)
		shmrt_list_prepend(queue, task);
	else
		shmrt_list_append(queue, task);
	task->pool->backlog_count++;
}

int shmrt_hub_submit(struct shmrt_hub_pool *pool, struct shmrt_task *task) {
	struct shmrt_hub *hub = pool->hub;
	pthread_mutex_lock(&hub->mutex);
	int result;
	if (pool->closed || pool->broken)
		result = SHMRT_CLOSED;
	else
		result = shmrt_hub__id_take(hub, task);
	if (result != SHMRT_OK) {
		pthread_mutex_unlock(&hub->mutex);
		return result;
	}
	task->pool = pool;
	pool->functions[task->function].tasks++;
	pool->submitted += shmrt_task_weight(task);
	pool->pending += shmrt_task_weight(task);
	pool->open_tasks++;
	if (pool->pending > pool->pending_most)
		pool->pending_most = pool->pending;
	bool timed = is_timed(task);
	uint64_t wake_at = UINT64_MAX;
	if (timed) {
		pool->timed++;
		task->submitted_ns = shmrt_now_ns();
		wake_at = task->deadline_ns ? task->deadline_ns : UINT64_MAX;
		if (task->timeout_ns != SHMRT_FOREVER && task->submitted_ns + (uint64_t)task->timeout_ns < wake_at)
			wake_at = task->submitted_ns + (uint64_t)task->timeout_ns;
	}
	if (task->flags & SHMRT_TASK_WATCHED)
		pool->watched++;
	/* Where every worker has enough to do, tasks go into the lanes by the dozen, which spares both sides cache misses. What
	 * waits for that is in the backlog as behind full lanes: an idle worker rings, whoever waits for a result pumps. */
	bool stocked = pool->open_tasks - pool->backlog_count > (uint64_t)SHMRT_STOCK * 2 * pool->ready_count;
	shmrt_hub__enqueue(task, false);
	if (!pool->full && !stocked)
		shmrt_hub__dispatch(pool);
	bool kept = shmrt_hub__has_stock(pool);
	bool waiting = pool->backlog_count > 0 && !kept;
	bool look = pool->backlog_count > 0 && (pool->submitted & 15) == 0;
	/* The hub's thread is to look by itself for what is kept back, should nobody else. */
	uint64_t late_ns = atomic_load_explicit(&hub->thread_behind, memory_order_relaxed) ? SHMRT_BEHIND_NS : SHMRT_RING_EVERY_NS; /* under the mutex */
	bool asleep = kept && hub->thread_until_ns > late_ns && hub->thread_until_ns > shmrt_now_ns() + late_ns;
	/* Something waits behind a task of unknown length: the hub's thread must look again by itself, once it is awake. */
	bool behind = task->state == SHMRT_TASK_LANE && pool->workers[task->worker].lane.count == 2;
	pthread_mutex_unlock(&hub->mutex);
	_Atomic uint32_t *bell = &hub->control->slots[hub->self_slot].bell;
	if (asleep || (timed && wake_at < atomic_load_explicit(&hub->sleeping_until, memory_order_relaxed))) /* a hint; a wake too many is harmless */
		shmrt_bell_ring_always(bell);
	else if (waiting && atomic_load_explicit(&hub->lazy_since, memory_order_relaxed) != 0) /* set under the mutex */
		shmrt_hub_make_urgent(hub);
	else if (behind && (atomic_load_explicit(&hub->sleeping_until, memory_order_relaxed) == UINT64_MAX || /* a hint */
			    shmrt_now_ns() - atomic_load_explicit(&hub->told_since, memory_order_relaxed) < /* set under the mutex */
				    SHMRT_RING_EVERY_NS)) /* as in make_urgent */
		shmrt_bell_ring_always(bell);
	else if (look) {
		bool moved;
		shmrt_hub_pump(hub, &moved);
	}
	return SHMRT_OK;
}

/* Takes a task out of the backlog or, unclaimed, out of its lane. */
static bool take_back(struct shmrt_task *task) {
	struct shmrt_hub_pool *pool = task->pool;
	if (task->state == SHMRT_TASK_BACKLOG) {
		shmrt_list_remove(queue_of(pool, task), task);
		pool->backlog_count--;
		return true;
	}
	return task->state == SHMRT_TASK_LANE && shmrt_hub__revoke(task);
}

struct shmrt_task *shmrt_hub_cancel(struct shmrt_hub *hub, uint64_t id) {
	pthread_mutex_lock(&hub->mutex);
	uint64_t before = shmrt_hub__finished(hub);
	struct shmrt_task *task = shmrt_hub__find(hub, id);
	if (task && !take_back(task))
		task = NULL;
	if (task) {
		forget(task);
		task->state = SHMRT_TASK_DONE;
		task->outcome = SHMRT_TASK_CANCELLED;
		task->pool->cancelled += shmrt_task_weight(task) - task->items_done;
		task->pool->full = false;
		shmrt_hub__dispatch(task->pool);
		/* Not in the completed list; but who waits until few are pending is parked for it. */
		atomic_fetch_add_explicit(&hub->finished, 1, memory_order_release); /* H3 */
	}
	shmrt_hub__unlock_and_tell(hub, before);
	return task;
}

int shmrt_hub_kill_task(struct shmrt_hub *hub, uint64_t id) {
	pthread_mutex_lock(&hub->mutex);
	uint64_t before = shmrt_hub__finished(hub);
	struct shmrt_task *task = shmrt_hub__find(hub, id);
	int known = task != NULL;
	if (task) {
		task->flags |= SHMRT_TASK_KILL;
		if (take_back(task)) {
			struct shmrt_hub_pool *pool = task->pool;
			shmrt_hub__finish(task, SHMRT_TASK_CANCELLED);
			pool->full = false; /* its place is free, and no result will say so */
		}
	}
	shmrt_hub__unlock_and_tell(hub, before);
	if (known)
		shmrt_hub_make_urgent(hub); /* the pump orders the kill of a running one */
	return known;
}

int shmrt_hub_is_running(struct shmrt_hub *hub, uint64_t id) {
	pthread_mutex_lock(&hub->mutex);
	struct shmrt_task *task = shmrt_hub__find(hub, id);
	int running = 0;
	if (task && task->state == SHMRT_TASK_VICTIM)
		running = 1;
	else if (task && task->state == SHMRT_TASK_LANE) {
		const _Atomic uint32_t *claim = shmrt_hub__claim_of(task);
		running = claim == NULL || (atomic_load_explicit(claim, memory_order_acquire) & 3) == 1; /* H1 */
	}
	pthread_mutex_unlock(&hub->mutex);
	return running;
}

void shmrt_hub_watch(struct shmrt_hub *hub, uint64_t id) {
	pthread_mutex_lock(&hub->mutex);
	struct shmrt_task *task = shmrt_hub__find(hub, id);
	if (task && !(task->flags & SHMRT_TASK_WATCHED)) {
		task->flags |= SHMRT_TASK_WATCHED;
		task->pool->watched++;
	} else if (task == NULL) {
		/* Already done: it waits in the completed list for somebody to hand it over. */
		atomic_store_explicit(&hub->watched_ready, 1, memory_order_relaxed); /* under the mutex */
		shmrt_hub__wake_dispatcher(hub);
	}
	pthread_mutex_unlock(&hub->mutex);
	if (atomic_load_explicit(&hub->lazy_since, memory_order_relaxed) != 0) /* set under the mutex */
		shmrt_hub_make_urgent(hub);
}

/* ---- ends ---- */

int shmrt_hub_resize(struct shmrt_hub_pool *pool, uint32_t max_workers, uint32_t keep_workers) {
	if (max_workers == 0 || max_workers > pool->options.slot_count)
		return SHMRT_INVALID;
	pthread_mutex_lock(&pool->hub->mutex);
	uint32_t before = pool->options.max_workers;
	struct shmrt_task_list *pinned = calloc(max_workers, sizeof(*pinned));
	if (pinned) {
		struct shmrt_task_list *old = pool->pinned;
		pool->pinned = pinned;
		pool->options.max_workers = max_workers;
		pool->keep_workers = keep_workers;
		for (uint32_t i = 0; i < before; i++)
			while (old[i].first) {
				struct shmrt_task *task = old[i].first;
				shmrt_list_remove(&old[i], task);
				pool->backlog_count--;
				shmrt_hub__enqueue(task, false);
			}
		free(old);
		pool->full = false;
		shmrt_hub__dispatch(pool);
	}
	pthread_mutex_unlock(&pool->hub->mutex);
	return pinned ? SHMRT_OK : SHMRT_SYSTEM;
}

int shmrt_hub_retire(struct shmrt_hub_pool *pool, uint32_t slot, uint32_t epoch) {
	uint32_t offset = slot - pool->options.first_slot; /* wraps below the first one */
	int result = SHMRT_STALE;
	if (offset >= pool->options.slot_count)
		return SHMRT_INVALID;
	pthread_mutex_lock(&pool->hub->mutex);
	struct shmrt_hub_worker *worker = &pool->workers[offset];
	if (worker->epoch == epoch && worker->ready && !worker->abandoned) {
		worker->retiring = pool->retires = true; /* the wheel asks for the other one */
		result = SHMRT_OK;
	}
	pthread_mutex_unlock(&pool->hub->mutex);
	return result;
}


static uint64_t fail_list(struct shmrt_hub_pool *pool, struct shmrt_task_list *list, enum shmrt_task_outcome outcome) {
	uint64_t failed = 0;
	while (list->first) {
		struct shmrt_task *task = list->first;
		shmrt_list_remove(list, task);
		pool->backlog_count--;
		shmrt_hub__finish(task, outcome);
		failed++;
	}
	return failed;
}

static uint64_t fail_backlog(struct shmrt_hub_pool *pool, enum shmrt_task_outcome outcome) {
	uint64_t failed = fail_list(pool, &pool->alone, outcome);
	for (uint32_t i = 0; i < pool->queue_count; i++)
		failed += fail_list(pool, &pool->queues[i].tasks, outcome);
	for (uint32_t i = 0; i < pool->options.max_workers; i++)
		failed += fail_list(pool, &pool->pinned[i], outcome);
	for (uint32_t i = 0; i < pool->options.slot_count; i++) {
		struct shmrt_task *task = pool->workers[i].lane.first;
		while (task) {
			struct shmrt_task *next = task->next;
			if (shmrt_hub__revoke(task)) {
				shmrt_hub__finish(task, outcome);
				failed++;
			}
			task = next;
		}
	}
	return failed;
}

uint64_t shmrt_hub_fail_backlog(struct shmrt_hub_pool *pool, enum shmrt_task_outcome outcome) {
	pthread_mutex_lock(&pool->hub->mutex);
	uint64_t before = shmrt_hub__finished(pool->hub), failed = fail_backlog(pool, outcome);
	shmrt_hub__unlock_and_tell(pool->hub, before);
	return failed;
}

void shmrt_hub_break_pool(struct shmrt_hub_pool *pool) {
	pthread_mutex_lock(&pool->hub->mutex);
	uint64_t before = shmrt_hub__finished(pool->hub);
	pool->broken = true;
	fail_backlog(pool, SHMRT_TASK_BROKEN);
	shmrt_hub__unlock_and_tell(pool->hub, before);
}

bool shmrt_hub_is_busy(struct shmrt_hub *hub) {
	bool busy = false;
	pthread_mutex_lock(&hub->mutex);
	for (uint32_t p = 0; p < hub->pool_high; p++) {
		struct shmrt_hub_pool *pool = hub->pools[p];
		busy |= pool && pool->pending > 0;
		for (uint32_t i = 0; pool && i < pool->options.slot_count; i++) {
			uint64_t phase = shmrt_slot_phase_get(pool->workers[i].slot) & 0xFF;
			busy |= pool->workers[i].epoch != 0 && phase >= SHMRT_PHASE_DECODE && phase <= SHMRT_PHASE_BLOCKED;
		}
	}
	pthread_mutex_unlock(&hub->mutex);
	return busy;
}

struct shmrt_task *shmrt_hub_take_completed(struct shmrt_hub *hub) {
	pthread_mutex_lock(&hub->mutex);
	struct shmrt_task *tasks = hub->completed.first;
	hub->completed = (struct shmrt_task_list){0};
	atomic_store_explicit(&hub->completed_count, 0, memory_order_relaxed); /* under the mutex */
	atomic_store_explicit(&hub->watched_ready, 0, memory_order_relaxed);   /* under the mutex */
	pthread_mutex_unlock(&hub->mutex);
	return tasks;
}
