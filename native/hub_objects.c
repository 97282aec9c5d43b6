/* hub_objects.c -- what the hub keeps: messages it owns, task ids, tasks, functions, notes.
 *
 * All of it is private memory of this process, under the hub's mutex (but for the tasks that wait to be used again, see
 * hub.h); only the blocks that a payload names lie in shared memory, and they name this process as their owner.
 */
#include "hub_internal.h"

/* ---- payloads ---- */

int shmrt_payload_set(struct shmrt_payload *payload, const uint8_t *bytes, uint32_t size, uint16_t flags,
		      const struct shmrt_block_reference *blocks, uint16_t block_count) {
	payload->bytes = size <= SHMRT_PAYLOAD_LOCAL ? payload->local : malloc(size);
	payload->blocks = block_count ? malloc(block_count * sizeof(*blocks)) : NULL;
	payload->copies = NULL;
	if (payload->bytes == NULL || (block_count && payload->blocks == NULL)) {
		if (payload->bytes != payload->local)
			free(payload->bytes);
		free(payload->blocks);
		memset(payload, 0, offsetof(struct shmrt_payload, local));
		return SHMRT_SYSTEM;
	}
	memcpy(payload->bytes, bytes, size);
	if (block_count)
		memcpy(payload->blocks, blocks, block_count * sizeof(*blocks));
	payload->size = size;
	payload->flags = flags;
	payload->block_count = block_count;
	return SHMRT_OK;
}

void shmrt_payload_clear(struct shmrt_payload *payload) {
	if (payload->bytes != payload->local)
		free(payload->bytes);
	if (payload->copies) {
		for (uint16_t i = 0; i < payload->block_count; i++)
			free(payload->copies[i]);
		free(payload->copies);
	}
	free(payload->blocks);
	memset(payload, 0, offsetof(struct shmrt_payload, local));
}

void shmrt_hub__blocks_free(struct shmrt_hub *hub, struct shmrt_payload *payload, enum shmrt_block_state state,
			    uint32_t owner) {
	for (uint16_t i = 0; i < payload->block_count; i++) {
		if (payload->copies && payload->copies[i])
			continue; /* the block was freed when it was copied out */
		/* STALE: the receiver took it and frees it itself. */
		int result = shmrt_arena_free(&hub->arena, payload->blocks[i].block, payload->blocks[i].generation,
					      state, owner);
		(void)result;
	}
}

/* ---- ids ---- */

static int table_grow(struct shmrt_hub *hub) {
	uint32_t capacity = hub->table_capacity ? hub->table_capacity * 2 : 1024;
	if (capacity > UINT32_C(1) << 30)
		return SHMRT_SYSTEM;
	struct shmrt_task **table = realloc(hub->table, capacity * sizeof(*table));
	if (table == NULL)
		return SHMRT_SYSTEM;
	hub->table = table;
	uint32_t *generations = realloc(hub->generations, capacity * sizeof(*generations));
	if (generations == NULL)
		return SHMRT_SYSTEM;
	hub->generations = generations;
	uint32_t *free_indexes = realloc(hub->table_free, capacity * sizeof(*free_indexes));
	if (free_indexes == NULL)
		return SHMRT_SYSTEM;
	hub->table_free = free_indexes;
	for (uint32_t i = capacity; i-- > hub->table_capacity;) {
		table[i] = NULL;
		generations[i] = 1;
		free_indexes[hub->table_free_count++] = i;
	}
	hub->table_capacity = capacity;
	return SHMRT_OK;
}

int shmrt_hub__id_take(struct shmrt_hub *hub, struct shmrt_task *task) {
	if (hub->table_free_count == 0) {
		int result = table_grow(hub);
		if (result != SHMRT_OK)
			return result;
	}
	uint32_t index = hub->table_free[--hub->table_free_count];
	hub->table[index] = task;
	task->id = (uint64_t)hub->generations[index] << 32 | index;
	return SHMRT_OK;
}

void shmrt_hub__id_give_back(struct shmrt_hub *hub, const struct shmrt_task *task) {
	uint32_t index = (uint32_t)task->id;
	hub->table[index] = NULL;
	hub->generations[index]++;
	hub->table_free[hub->table_free_count++] = index;
}

struct shmrt_task *shmrt_hub__find(struct shmrt_hub *hub, uint64_t id) {
	uint32_t index = (uint32_t)id;
	if (index >= hub->table_capacity || hub->table[index] == NULL || hub->table[index]->id != id)
		return NULL;
	return hub->table[index];
}

/* ---- tasks ---- */

struct shmrt_task *shmrt_hub_task_new(struct shmrt_hub *hub) {
	struct shmrt_task *task = hub->free_tasks;
	if (task) {
		hub->free_tasks = task->next;
		hub->free_task_count--;
	} else if ((task = malloc(sizeof(*task))) == NULL)
		return NULL;
	memset(task, 0, offsetof(struct shmrt_task, arguments));
	memset(&task->arguments, 0, offsetof(struct shmrt_payload, local));
	memset(&task->result, 0, offsetof(struct shmrt_payload, local));
	memset(&task->function, 0, sizeof(*task) - offsetof(struct shmrt_task, function));
	task->max_attempts = 1;
	task->timeout_ns = SHMRT_FOREVER;
	task->affinity = -1;
	return task;
}

void shmrt_hub_task_free(struct shmrt_hub *hub, struct shmrt_task *task) {
	if (task->result.block_count || task->arguments.block_count || task->alone_count) {
		pthread_mutex_lock(&hub->mutex);
		shmrt_hub__blocks_free(hub, &task->result, SHMRT_BLOCK_HELD, hub->owner);
		shmrt_hub__blocks_free(hub, &task->arguments, SHMRT_BLOCK_SENT, hub->owner);
		for (uint32_t i = 0; i < task->alone_count; i++)
			shmrt_hub__blocks_free(hub, &task->alone[i], SHMRT_BLOCK_HELD, hub->owner);
		pthread_mutex_unlock(&hub->mutex);
	}
	shmrt_payload_clear(&task->result);
	shmrt_payload_clear(&task->arguments);
	for (uint32_t i = 0; i < task->alone_count; i++)
		shmrt_payload_clear(&task->alone[i]);
	free(task->alone);
	free(task->crash.stack);
	if (hub->free_task_count >= 4096) {
		free(task);
		return;
	}
	task->next = hub->free_tasks;
	hub->free_tasks = task;
	hub->free_task_count++;
}

/* ---- functions ---- */

int shmrt_hub_add_function(struct shmrt_hub_pool *pool, struct shmrt_payload *pickle, uint32_t *number) {
	pthread_mutex_lock(&pool->hub->mutex);
	uint32_t at = 0;
	while (at < pool->function_capacity && pool->functions[at].used)
		at++;
	int result = SHMRT_OK;
	if (at == pool->function_capacity) {
		uint32_t capacity = at ? at * 2 : 64;
		struct shmrt_function *functions = realloc(pool->functions, capacity * sizeof(*functions));
		if (functions == NULL)
			result = SHMRT_SYSTEM;
		else {
			memset(functions + at, 0, (capacity - at) * sizeof(*functions));
			/* Payloads are only ever read through `bytes`; the few bytes in place moved with the array. */
			for (uint32_t i = 0; i < at; i++)
				if (functions[i].used && functions[i].pickle.size <= SHMRT_PAYLOAD_LOCAL)
					functions[i].pickle.bytes = functions[i].pickle.local;
			pool->functions = functions;
		}
		for (uint32_t i = 0; result == SHMRT_OK && i < pool->options.slot_count; i++) {
			uint64_t *known = realloc(pool->workers[i].known_functions, capacity / 8);
			if (known == NULL) {
				result = SHMRT_SYSTEM;
				break;
			}
			memset((uint8_t *)known + at / 8, 0, (capacity - at) / 8);
			pool->workers[i].known_functions = known;
		}
		if (result == SHMRT_OK)
			pool->function_capacity = capacity;
	}
	if (result == SHMRT_OK) {
		struct shmrt_function *function = &pool->functions[at];
		*function = (struct shmrt_function){.used = true};
		function->pickle = *pickle;
		if (pickle->bytes == pickle->local)
			function->pickle.bytes = function->pickle.local;
		memset(pickle, 0, offsetof(struct shmrt_payload, local));
		for (uint32_t i = 0; i < pool->options.slot_count; i++)
			pool->workers[i].known_functions[at / 64] &= ~(UINT64_C(1) << (at % 64));
		*number = at;
	}
	pthread_mutex_unlock(&pool->hub->mutex);
	return result;
}

void shmrt_hub_drop_function(struct shmrt_hub_pool *pool, uint32_t number) {
	pthread_mutex_lock(&pool->hub->mutex);
	struct shmrt_function *function = &pool->functions[number];
	function->dropped = true;
	if (function->used && function->tasks == 0) {
		shmrt_hub__blocks_free(pool->hub, &function->pickle, SHMRT_BLOCK_SENT, pool->hub->owner);
		shmrt_payload_clear(&function->pickle);
		function->used = false;
	}
	pthread_mutex_unlock(&pool->hub->mutex);
}

/* ---- notes ---- */

struct shmrt_note *shmrt_hub__note(struct shmrt_hub *hub, enum shmrt_note_kind kind, struct shmrt_hub_pool *pool,
				   struct shmrt_hub_worker *worker) {
	bool may_drop = kind == SHMRT_NOTE_LOG;
	struct shmrt_note *note = may_drop && hub->note_count >= SHMRT_HUB_NOTES_MAX ? NULL : calloc(1, sizeof(*note));
	if (note == NULL) {
		hub->notes_dropped++;
		return NULL;
	}
	note->kind = kind;
	note->pool = pool->options.id;
	note->slot = pool->options.first_slot + (uint32_t)(worker - pool->workers);
	note->epoch = worker->epoch;
	note->worker = worker->index;
	if (hub->notes_last)
		hub->notes_last->next = note;
	else
		hub->notes_first = note;
	hub->notes_last = note;
	hub->note_count++;
	shmrt_hub__wake_dispatcher(hub);
	return note;
}

struct shmrt_note *shmrt_hub_take_note(struct shmrt_hub *hub) {
	pthread_mutex_lock(&hub->mutex);
	struct shmrt_note *note = hub->notes_first;
	if (note) {
		hub->notes_first = note->next;
		if (note->next == NULL)
			hub->notes_last = NULL;
		hub->note_count--;
	}
	pthread_mutex_unlock(&hub->mutex);
	return note;
}

bool shmrt_hub_has_notes(struct shmrt_hub *hub) {
	pthread_mutex_lock(&hub->mutex);
	bool has = hub->notes_first != NULL;
	pthread_mutex_unlock(&hub->mutex);
	return has;
}

void shmrt_hub_note_free(struct shmrt_hub *hub, struct shmrt_note *note) {
	pthread_mutex_lock(&hub->mutex);
	if (note->payload.block_count)
		shmrt_hub__blocks_free(hub, &note->payload, SHMRT_BLOCK_HELD, hub->owner);
	pthread_mutex_unlock(&hub->mutex);
	shmrt_payload_clear(&note->payload);
	free(note->crash.stack);
	free(note);
}
