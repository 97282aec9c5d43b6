/* hub_thread.c -- life of the hub: opening, its thread, taking pools in and out. */
#include <signal.h>
#include <unistd.h>

#include "hub_internal.h"

int shmrt_hub_open(struct shmrt_hub *hub, struct shmrt_control *control, uint32_t self_slot,
		   const struct shmrt_arena *arena) {
	memset(hub, 0, sizeof(*hub));
	if (pthread_mutex_init(&hub->mutex, NULL) != 0)
		return SHMRT_SYSTEM;
	hub->control = control;
	hub->self_slot = self_slot;
	hub->arena = *arena;
	memset(hub->arena.warm_count, 0, sizeof(hub->arena.warm_count)); /* hints are not shared between halves */
	hub->owner = shmrt_owner_self();
	atomic_store_explicit(&hub->sleeping_until, UINT64_MAX, memory_order_relaxed);  /* a hint */
	atomic_store_explicit(&hub->sleeping_closer, UINT64_MAX, memory_order_relaxed); /* a hint */
	atomic_store_explicit(&hub->closer_ns, UINT64_MAX, memory_order_relaxed);       /* nobody else looks yet */
	return SHMRT_OK;
}

static void *thread_main(void *argument) {
	struct shmrt_hub *hub = argument;
	struct shmrt_slot *slot = &hub->control->slots[hub->self_slot];
	/* The root, and whoever works for us, see by this mutex that our process died, exec'ed or lost this thread. */
	int result = shmrt_slot_hold_death_mutex(slot);
	SHMRT_ASSERT(result == SHMRT_OK);
	result = shmrt_slot_ready(slot);
	(void)result; /* STALE: a hub was started before on this slot */
	atomic_store_explicit(&hub->thread_running, 1, memory_order_release); /* H4: start_thread waits for it */
	shmrt_futex_wake(&hub->thread_running, INT32_MAX);
	struct shmrt_hub_rest rest = {0};
	while (atomic_load_explicit(&hub->stop, memory_order_acquire) == 0) { /* H4: set by stop_thread */
		bool moved;
		uint64_t next_ns = shmrt_hub_pump(hub, &moved);
		bool urgent = shmrt_hub_is_urgent(hub);
		atomic_store_explicit(&hub->sleeping_until, next_ns, memory_order_relaxed); /* a hint */
		atomic_store_explicit(&hub->sleeping_closer, atomic_load_explicit(&hub->closer_ns, memory_order_relaxed),
				      memory_order_relaxed); /* hints */
		result = shmrt_hub_park(hub, next_ns, urgent, &rest);
		pthread_mutex_lock(&hub->mutex); /* it is awake, and will look */
		hub->thread_until_ns = 0;
		atomic_store_explicit(&hub->lazy_since, 0, memory_order_relaxed);    /* under the mutex */
		atomic_store_explicit(&hub->thread_behind, 0, memory_order_relaxed); /* under the mutex */
		pthread_mutex_unlock(&hub->mutex);
		(void)result; /* whatever ended the sleep, the next round looks at everything */
	}
	return NULL;
}

int shmrt_hub_start_thread(struct shmrt_hub *hub) {
	if (hub->thread_started)
		return SHMRT_OK;
	/* Signals are for the program's own threads: this one must not swallow a Ctrl-C. */
	sigset_t all, before;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int failed = pthread_create(&hub->thread, NULL, thread_main, hub);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (failed)
		return SHMRT_SYSTEM;
	hub->thread_started = true;
	while (atomic_load_explicit(&hub->thread_running, memory_order_acquire) == 0) { /* H4: thread_main says that it runs */
		int result = shmrt_futex_wait(&hub->thread_running, 0, SHMRT_FOREVER);
		(void)result;
	}
	return SHMRT_OK;
}

void shmrt_hub_stop_thread(struct shmrt_hub *hub) {
	if (!hub->thread_started)
		return;
	atomic_store_explicit(&hub->stop, 1, memory_order_release); /* H4: thread_main looks at it */
	shmrt_bell_ring_always(&hub->control->slots[hub->self_slot].bell);
	pthread_join(hub->thread, NULL);
	hub->thread_started = false;
	shmrt_hub__wake_dispatcher(hub);
}

void shmrt_hub_close(struct shmrt_hub *hub) {
	while (hub->free_tasks) {
		struct shmrt_task *next = hub->free_tasks->next;
		free(hub->free_tasks);
		hub->free_tasks = next;
	}
	free(hub->table);
	free(hub->table_free);
	free(hub->generations);
	hub->table = NULL;
	hub->table_free = hub->generations = NULL;
	hub->table_capacity = hub->table_free_count = 0;
	pthread_mutex_destroy(&hub->mutex);
}

int shmrt_hub_add_pool(struct shmrt_hub *hub, const struct shmrt_pool_options *options, int lanes_fd,
		       struct shmrt_hub_pool **out) {
	char reason[200];
	void *address;
	uint64_t size;
	int result = shmrt_segment_attach(lanes_fd, SHMRT_SEGMENT_LANES, &address, &size, reason, sizeof(reason));
	if (result != SHMRT_OK)
		return result;
	struct shmrt_lanes *lanes = address;
	uint64_t task_capacity = lanes->task_capacity, result_capacity = lanes->result_capacity;
	uint64_t pair_bytes = shmrt_lane_bytes(task_capacity) + shmrt_lane_bytes(result_capacity);
	if (!shmrt_is_power_of_two(task_capacity) || !shmrt_is_power_of_two(result_capacity) ||
	    task_capacity > UINT64_C(1) << 40 || result_capacity > UINT64_C(1) << 40 ||
	    lanes->pair_count < options->slot_count || options->slot_count == 0 ||
	    sizeof(*lanes) + pair_bytes * options->slot_count > size ||
	    options->first_slot + options->slot_count > hub->control->slot_count) {
		shmrt_unmap(address, size);
		return SHMRT_CORRUPT;
	}
	struct shmrt_hub_pool *pool = calloc(1, sizeof(*pool));
	if (pool) {
		pool->workers = calloc(options->slot_count, sizeof(*pool->workers));
		pool->pinned = calloc(options->max_workers, sizeof(*pool->pinned));
		pool->functions = calloc(64, sizeof(*pool->functions));
		pool->function_capacity = 64;
	}
	bool complete = pool && pool->workers && pool->pinned && pool->functions;
	for (uint32_t i = 0; complete && i < options->slot_count; i++) {
		struct shmrt_hub_worker *worker = &pool->workers[i];
		worker->slot = &hub->control->slots[options->first_slot + i];
		worker->known_functions = calloc(1, 64 / 8);
		worker->pidfd = -1;
		worker->stacks_fd = options->stacks_fd;
		worker->stack_offset = (uint64_t)i * SHMRT_STACK_BYTES;
		complete = worker->known_functions != NULL;
	}
	pthread_mutex_lock(&hub->mutex);
	uint32_t at = 0;
	while (at < hub->pool_high && hub->pools[at])
		at++;
	if (complete && at < SHMRT_HUB_POOLS_MAX) {
		pool->hub = hub;
		pool->options = *options;
		pool->lanes = lanes;
		pool->lanes_size = size;
		pool->pair_bytes = pair_bytes;
		pool->task_capacity = task_capacity;
		pool->keep_workers = UINT32_MAX;
		pool->result_capacity = result_capacity;
		hub->pools[at] = pool;
		if (at == hub->pool_high)
			hub->pool_high++;
		*out = pool;
	} else
		complete = false;
	pthread_mutex_unlock(&hub->mutex);
	if (complete)
		return SHMRT_OK;
	for (uint32_t i = 0; pool && pool->workers && i < options->slot_count; i++)
		free(pool->workers[i].known_functions);
	if (pool) {
		free(pool->workers);
		free(pool->pinned);
		free(pool->functions);
	}
	free(pool);
	shmrt_unmap(address, size);
	return SHMRT_SYSTEM;
}

int shmrt_hub_remove_pool(struct shmrt_hub *hub, struct shmrt_hub_pool *pool) {
	pthread_mutex_lock(&hub->mutex);
	bool busy = pool->pending > 0;
	for (uint32_t i = 0; i < pool->options.slot_count; i++)
		busy |= atomic_load_explicit(&pool->workers[i].slot->state, memory_order_acquire) != SHMRT_SLOT_EMPTY; /* F2 */
	if (busy) {
		pthread_mutex_unlock(&hub->mutex);
		return SHMRT_FULL;
	}
	for (uint32_t p = 0; p < hub->pool_high; p++)
		if (hub->pools[p] == pool)
			hub->pools[p] = NULL;
	for (uint32_t i = 0; i < pool->function_capacity; i++) {
		struct shmrt_function *function = &pool->functions[i];
		if (!function->used)
			continue;
		shmrt_hub__blocks_free(hub, &function->pickle, SHMRT_BLOCK_SENT, hub->owner);
		shmrt_payload_clear(&function->pickle);
	}
	pthread_mutex_unlock(&hub->mutex);
	for (uint32_t i = 0; i < pool->options.slot_count; i++)
		free(pool->workers[i].known_functions);
	shmrt_unmap(pool->lanes, pool->lanes_size);
	free(pool->workers);
	free(pool->pinned);
	free(pool->functions);
	free(pool);
	return SHMRT_OK;
}

void shmrt_hub__wake_dispatcher(struct shmrt_hub *hub) {
	/* H5: the mutex orders the lists. Of this and the dispatcher's entry one sees the other; its sleep compares the word. */
	atomic_fetch_add_explicit(&hub->dispatcher_word, 1, memory_order_seq_cst);
	if (atomic_load_explicit(&hub->dispatchers_asleep, memory_order_seq_cst) != 0) /* H5 */
		shmrt_futex_wake(&hub->dispatcher_word, INT32_MAX);
}

void shmrt_hub_dispatcher_wait(struct shmrt_hub *hub, uint32_t seen) {
	atomic_fetch_add_explicit(&hub->dispatchers_asleep, 1, memory_order_seq_cst); /* H5 */
	int result = shmrt_futex_wait(&hub->dispatcher_word, seen, SHMRT_FOREVER);
	atomic_fetch_sub_explicit(&hub->dispatchers_asleep, 1, memory_order_relaxed); /* H5: one wake too many is harmless */
	(void)result;
}
