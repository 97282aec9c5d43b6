/* hub_age.c -- the orderly end of a worker: one that is surplus, or has served long enough. */
#include "hub_internal.h"

static void send_stop(struct shmrt_hub_pool *pool, struct shmrt_hub_worker *worker) {
	struct shmrt_record_header *record;
	int result = shmrt_lane_reserve(&worker->tasks, 0, &record);
	if (result == SHMRT_CORRUPT)
		shmrt_hub__doubt(pool, worker);
	if (result != SHMRT_OK)
		return; /* the next round tries again */
	record->kind = SHMRT_RECORD_STOP;
	shmrt_lane_commit(&worker->tasks);
	worker->stop_sent = true;
	shmrt_bell_ring(&worker->slot->bell);
}

/* Recycling: a worker that has served long enough is replaced first and stopped then. */
void shmrt_hub__watch_age(struct shmrt_hub_pool *pool, struct shmrt_hub_worker *worker, uint64_t now_ns) {
	struct shmrt_slot *slot = worker->slot;
	const struct shmrt_pool_options *options = &pool->options;
	if (!worker->ready || worker->stop_sent)
		return;
	uint32_t index = worker->index;
	bool surplus = index >= pool->keep_workers;
	if (surplus) {
		worker->retiring = pool->retires = true;
		if (worker->lane.count == 0)
			send_stop(pool, worker);
		return;
	}
	if (!worker->retiring) {
		uint64_t born_ns = atomic_load_explicit(&slot->spawn_ns, memory_order_relaxed); /* fixed for this epoch */
		bool old = options->max_age_ns && now_ns - born_ns > options->max_age_ns;
		bool worn = options->max_tasks_per_worker && worker->sent >= options->max_tasks_per_worker;
		bool fat = options->max_rss_bytes &&
			   atomic_load_explicit(&slot->rss_bytes, memory_order_relaxed) > options->max_rss_bytes; /* an estimate */
		/* Whoever did nothing yet goes on: a limit that workers pass before they are ready lets each serve once. */
		if (worker->sent == 0 || (!old && !worn && !fat))
			return;
		worker->retiring = pool->retires = true;
	}
	if (!worker->replace_asked && !pool->closed)
		worker->replace_asked = shmrt_hub__note(pool->hub, SHMRT_NOTE_REPLACE, pool, worker) != NULL;
	if (worker->lane.count)
		return;
	for (uint32_t i = 0; i < options->slot_count; i++) {
		struct shmrt_hub_worker *other = &pool->workers[i];
		if (other == worker || !other->ready || other->retiring || other->index != index)
			continue;
		send_stop(pool, worker);
		return;
	}
}
