/* hub_wheel.c -- one turn of the hub, and how it sleeps between two. */
#include "hub.h"

uint64_t shmrt_hub_pump(struct shmrt_hub *hub, bool *moved) {
	uint64_t next_ns = UINT64_MAX, now_ns = 0;
	*moved = false;
	pthread_mutex_lock(&hub->mutex);
	hub->pumps++;
	atomic_store_explicit(&hub->closer_ns, UINT64_MAX, memory_order_relaxed); /* under the mutex */
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
			shmrt_hub__rebalance(pool, now_ns, &next_ns);
		if (pool->backlog_count && !pool->full) {
			uint64_t before = pool->backlog_count;
			shmrt_hub__dispatch(pool);
			if (pool->timed && pool->backlog_count != before)
				next_ns = now_ns; /* the lanes were looked at before: once more, for the times of what is in them now */
		}
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
			if (worker->epoch == 0) {
				if (state != SHMRT_SLOT_EMPTY && atomic_load_explicit(&worker->slot->epoch, memory_order_relaxed) != 0 && /* F2 */
				    atomic_load_explicit(&worker->slot->pid, memory_order_acquire) != 0) /* F2 */
					return true;
				continue;
			}
			if (worker->doubtful) {
				if (!worker->abandoned || shmrt_hub__may_bury(hub, worker, state))
					return true;
				continue;
			}
			if (shmrt_hub__contradicts(worker, state))
				return true;
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

int shmrt_hub_park(struct shmrt_hub *hub, uint64_t until_ns, bool urgent, const uint64_t *seen) {
	_Atomic uint32_t *bell = &hub->control->slots[hub->self_slot].bell;
	uint32_t wanted = urgent ? 2 : 1, found = 0;
	/* Never lower an urgent bell: another thread may sleep behind it. */
	while (!atomic_compare_exchange_weak_explicit(bell, &found, wanted > found ? wanted : found, memory_order_seq_cst,
						      memory_order_relaxed)) /* B1 */
		;
	atomic_thread_fence(memory_order_seq_cst); /* B1 */
	pthread_mutex_lock(&hub->mutex);
	bool work = has_work(hub);
	if (seen && atomic_load_explicit(&hub->finished, memory_order_relaxed) != *seen) /* under the mutex */
		work = true;
	hub->sleeps += !work;
	uint64_t closer_ns = atomic_load_explicit(&hub->closer_ns, memory_order_relaxed); /* under the mutex */
	if (closer_ns < until_ns)
		until_ns = closer_ns;
	pthread_mutex_unlock(&hub->mutex);
	/* stop_thread sets the word before it rings: a ring that came before we armed is seen here. */
	if (work || atomic_load_explicit(&hub->stop, memory_order_acquire) != 0) /* B1 */
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
	/* The hub's thread is to wake in time. For a closer look once is enough: then it has a time of its own. */
	if (next_ns < atomic_load_explicit(&hub->sleeping_until, memory_order_relaxed) || /* a hint */
	    (atomic_load_explicit(&hub->sleeping_closer, memory_order_relaxed) == UINT64_MAX && /* a hint */
	     atomic_load_explicit(&hub->closer_ns, memory_order_relaxed) != UINT64_MAX)) /* a hint */
		shmrt_bell_ring_always(bell);
}
