/* hub_wheel.c -- one turn of the hub, and how it sleeps between two. */
#include "hub_internal.h"

uint64_t shmrt_hub_pump(struct shmrt_hub *hub, bool *moved) {
	uint64_t next_ns = UINT64_MAX, now_ns = 0;
	uint32_t going_on = 0;
	*moved = false;
	pthread_mutex_lock(&hub->mutex);
	uint64_t before = shmrt_hub__finished(hub);
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
		for (uint32_t i = 0; pool->pending > 1 && pool->mean_ns >= SHMRT_WORK_NS && i < pool->options.slot_count; i++)
			going_on += pool->workers[i].lane.count >= 2;
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
	atomic_store_explicit(&hub->going_on, going_on, memory_order_relaxed); /* a hint */
	shmrt_hub__unlock_and_tell(hub, before);
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

/* Somebody wants results soon: tasks wait for room, or completions are watched. Under the mutex. */
static bool wants_soon(struct shmrt_hub *hub) {
	bool soon = false;
	for (uint32_t p = 0; p < hub->pool_high; p++) {
		struct shmrt_hub_pool *pool = hub->pools[p];
		if (pool == NULL)
			continue;
		soon |= (pool->backlog_count > 0 && !shmrt_hub__has_stock(pool)) || pool->watched > 0 ||
			(pool->closed && pool->pending > 0) || pool->options.max_tasks_per_worker;
		/* A worker that is to leave waits for its last result to be collected, and nobody else may ask for that. */
		for (uint32_t i = 0; pool->retires && i < pool->options.slot_count; i++)
			soon |= pool->workers[i].retiring;
	}
	return soon;
}

bool shmrt_hub_is_urgent(struct shmrt_hub *hub) {
	pthread_mutex_lock(&hub->mutex);
	bool urgent = wants_soon(hub);
	pthread_mutex_unlock(&hub->mutex);
	return urgent;
}

/* Who is parked has armed the bell before it looked under the mutex. So whoever changes `finished` under the mutex is seen by
 * that look, or sees here that it is parked; then this ring takes the bell from it. A bell that somebody took before
 * needs none: who took it wakes all in front, or dies, and then all bells are rung. */
void shmrt_hub__unlock_and_tell(struct shmrt_hub *hub, uint64_t before) {
	bool tell = shmrt_hub__finished(hub) != before &&
		    atomic_load_explicit(&hub->parked, memory_order_relaxed) != 0; /* raised before the mutex was taken */
	pthread_mutex_unlock(&hub->mutex);
	if (tell)
		shmrt_bell_ring(&hub->control->slots[hub->self_slot].bell);
}

void shmrt_hub_tell(struct shmrt_hub *hub) {
	pthread_mutex_lock(&hub->mutex);
	uint64_t before = atomic_fetch_add_explicit(&hub->finished, 1, memory_order_release); /* H3 */
	shmrt_hub__unlock_and_tell(hub, before);
}

/* A number that nobody who is about to sleep expects, unless it stays about to while 2^31 others arm. */
static uint32_t fresh(struct shmrt_hub *hub) {
	return 2 + (atomic_fetch_add_explicit(&hub->armed, 1, memory_order_relaxed) & 0x7FFFFFFF); /* any will do, but once */
}

/* Returns the word to sleep on; *found: what it was, 0 if nobody had armed it since the last ring. */
static uint32_t arm(struct shmrt_hub *hub, _Atomic uint32_t *bell, bool urgent, uint32_t *found) {
	uint32_t word;
	*found = 0;
	do /* never lower an urgent bell: another thread may sleep on it */
		word = *found >= 2 || (*found == 1 && !urgent) ? *found : urgent ? fresh(hub) : 1;
	while (!atomic_compare_exchange_weak_explicit(bell, found, word, memory_order_seq_cst, memory_order_relaxed)); /* B1 */
	atomic_thread_fence(memory_order_seq_cst); /* B1 */
	return word;
}

/* Tasks wait where nobody is asked to ring for them: the hub's thread looks by itself. Under the mutex. */
static bool have_stock(struct shmrt_hub *hub) {
	bool stock = false;
	for (uint32_t p = 0; p < hub->pool_high; p++)
		stock |= hub->pools[p] && shmrt_hub__has_stock(hub->pools[p]);
	return stock;
}

/* The hub's own thread waits for no outcome. */
static bool is_thread(const struct shmrt_hub_rest *rest) { return rest && !rest->outcomes; }

/* OK: a ring woke it. STALE: it did not sleep. */
static int sleep_armed(struct shmrt_hub *hub, uint64_t until_ns, bool urgent, struct shmrt_hub_rest *rest) {
	_Atomic uint32_t *bell = &hub->control->slots[hub->self_slot].bell;
	uint32_t found, word = arm(hub, bell, urgent, &found);
	bool thread = is_thread(rest), brief = rest && urgent && !(rest->quiet && rest->armed == word);
	pthread_mutex_lock(&hub->mutex);
	/* Who began to watch before this look is seen by it; who does after it sees that we sleep lazily. */
	bool work = has_work(hub) || (!urgent && wants_soon(hub)) || (rest && rest->outcomes && shmrt_hub__finished(hub) != rest->seen);
	hub->sleeps += !work;
	if (!urgent && !work)
		atomic_store_explicit(&hub->lazy_since, shmrt_now_ns(), memory_order_relaxed); /* under the mutex */
	uint64_t closer_ns = atomic_load_explicit(&hub->closer_ns, memory_order_relaxed); /* under the mutex */
	if (closer_ns < until_ns)
		until_ns = closer_ns;
	uint64_t now_ns = shmrt_now_ns();
	bool due = until_ns <= now_ns, soon = brief || (!urgent && have_stock(hub));
	if (soon && until_ns > now_ns + SHMRT_RING_EVERY_NS)
		until_ns = now_ns + SHMRT_RING_EVERY_NS;
	else
		brief = false; /* it may end too early to tell anything */
	bool behind = thread && !due && atomic_load_explicit(&hub->parked, memory_order_relaxed) != 0; /* raised before the mutex was taken */
	if (behind && until_ns < now_ns + SHMRT_BEHIND_NS)
		until_ns = now_ns + SHMRT_BEHIND_NS;
	if (thread && !work) {
		hub->thread_until_ns = until_ns;
		atomic_store_explicit(&hub->thread_behind, behind, memory_order_relaxed); /* under the mutex */
	}
	pthread_mutex_unlock(&hub->mutex);
	/* stop_thread sets the word before it rings: a ring that came before we armed is seen here. */
	if (work || atomic_load_explicit(&hub->stop, memory_order_acquire) != 0) /* B1 */
		return SHMRT_STALE;
	if (due)
		return SHMRT_TIMEOUT;
	int64_t timeout = until_ns == UINT64_MAX ? SHMRT_FOREVER : (int64_t)(until_ns - now_ns);
	int result = shmrt_bell_sleep_on(bell, word, timeout, behind);
	if (brief) {
		rest->quiet = result == SHMRT_TIMEOUT;
		rest->armed = word;
	}
	return result;
}

/* What the hub's thread would have done, had the ring woken it: it may be the only one whom the ring was for. What is published
 * before the bell is armed is found here; what comes later rings, or is deferred, and then the hub's thread sleeps for a time. */
static void stand_in(struct shmrt_hub *hub) {
	_Atomic uint32_t *bell = &hub->control->slots[hub->self_slot].bell;
	if (atomic_load_explicit(&hub->thread_behind, memory_order_relaxed) == 0) /* it was behind before it slept, so before the ring */
		return;
	/* The ring has come. Who rang may be off its CPU and say so later: until then its neighbours would ring, too. If somebody has armed
	 * the bell since, it may sleep for long already, and nobody may defer by this ring. */
	uint64_t rung_ns = shmrt_now_ns(); /* of before it is armed: whoever sleeps on it from then on wakes after that time */
	uint32_t found;
	(void)arm(hub, bell, true, &found);
	if (found == 0)
		atomic_store_explicit(&hub->control->slots[hub->self_slot].rung_ns, rung_ns, memory_order_relaxed); /* a hint */
	bool moved;
	uint64_t next_ns;
	int rounds = 0;
	do
		next_ns = shmrt_hub_pump(hub, &moved);
	while (moved && ++rounds < 3);
	pthread_mutex_lock(&hub->mutex);
	uint64_t now_ns = shmrt_now_ns(), late_ns = now_ns + SHMRT_BEHIND_NS;
	uint64_t closer_ns = atomic_load_explicit(&hub->closer_ns, memory_order_relaxed); /* under the mutex */
	if (closer_ns < next_ns)
		next_ns = closer_ns;
	bool behind = atomic_load_explicit(&hub->thread_behind, memory_order_relaxed) != 0; /* under the mutex */
	bool wanted = wants_soon(hub);
	bool wake = behind && hub->thread_until_ns > late_ns && (wanted || moved || hub->thread_until_ns > next_ns);
	if (wake)
		atomic_store_explicit(&hub->thread_behind, 0, memory_order_relaxed); /* under the mutex: nobody else need wake it */
	else if (behind && !wanted)
		atomic_store_explicit(&hub->lazy_since, now_ns, memory_order_relaxed); /* under the mutex: it sleeps lazily from now on */
	pthread_mutex_unlock(&hub->mutex);
	if (wake)
		shmrt_bell_wake_behind(bell);
}

int shmrt_hub_park(struct shmrt_hub *hub, uint64_t until_ns, bool urgent, struct shmrt_hub_rest *rest) {
	uint32_t counts = rest && rest->outcomes;
	atomic_fetch_add_explicit(&hub->parked, counts, memory_order_relaxed); /* the mutex orders it */
	int result = sleep_armed(hub, until_ns, urgent, rest);
	atomic_fetch_sub_explicit(&hub->parked, counts, memory_order_relaxed); /* a ring too many is harmless */
	if (result == SHMRT_OK && !is_thread(rest))
		stand_in(hub);
	return result == SHMRT_STALE ? SHMRT_OK : result;
}

/* A task waits behind another: that one's result may come without a ring. Under the mutex. */
static bool is_behind(struct shmrt_hub *hub) {
	for (uint32_t p = 0; p < hub->pool_high; p++) {
		struct shmrt_hub_pool *pool = hub->pools[p];
		for (uint32_t i = 0; pool && i < pool->options.slot_count; i++)
			if (pool->workers[i].lane.count >= 2)
				return true;
	}
	return false;
}

/* The hub's thread counts as told from now on that results are wanted. Whether it must wake for that: a worker with another task
 * before it defers a ring for a while after its last one, and who sleeps on does not look again by itself. The last ring woke it; when
 * it has slept for longer than that while, nobody defers any more. */
static bool tell_sleeper(struct shmrt_hub *hub) {
	if (atomic_load_explicit(&hub->lazy_since, memory_order_relaxed) == 0) /* whoever must know has held the mutex */
		return false;
	pthread_mutex_lock(&hub->mutex);
	uint64_t since_ns = atomic_load_explicit(&hub->lazy_since, memory_order_relaxed); /* under the mutex */
	atomic_store_explicit(&hub->lazy_since, 0, memory_order_relaxed);                 /* under the mutex */
	if (since_ns != 0)
		atomic_store_explicit(&hub->told_since, since_ns, memory_order_relaxed); /* under the mutex */
	bool behind = is_behind(hub);
	pthread_mutex_unlock(&hub->mutex);
	return since_ns != 0 && behind && shmrt_now_ns() - since_ns < SHMRT_RING_EVERY_NS;
}

void shmrt_hub_make_urgent(struct shmrt_hub *hub) {
	_Atomic uint32_t *bell = &hub->control->slots[hub->self_slot].bell;
	uint32_t lazily = 1;
	bool moved, lately = tell_sleeper(hub);
	if (atomic_load_explicit(bell, memory_order_relaxed) == 1) /* B1: so that no number is spent in vain */
		atomic_compare_exchange_strong_explicit(bell, &lazily, fresh(hub), memory_order_seq_cst, memory_order_relaxed); /* B1 */
	atomic_thread_fence(memory_order_seq_cst); /* B1: a worker that saw 1 has published what we now find */
	uint64_t next_ns = shmrt_hub_pump(hub, &moved);
	/* The hub's thread is to wake in time, and to take short sleeps if a result may come without a ring. For a closer look once
	 * is enough: then it has a time of its own. */
	if (lately || next_ns < atomic_load_explicit(&hub->sleeping_until, memory_order_relaxed) || /* a hint */
	    (atomic_load_explicit(&hub->sleeping_closer, memory_order_relaxed) == UINT64_MAX && /* a hint */
	     atomic_load_explicit(&hub->closer_ns, memory_order_relaxed) != UINT64_MAX)) /* a hint */
		shmrt_bell_ring_always(bell);
}
