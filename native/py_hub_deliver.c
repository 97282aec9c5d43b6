/* py_hub_deliver.c -- finished tasks to their futures, and their payloads to objects.
 *
 * A finished task is the future's payload until somebody decodes it; the future then gives it back. A small value that holds
 * no others is decoded at once instead, while the task is in the caches, and the task is there for the next call. Bare
 * futures are completed by whoever comes first; those of watched ones wait in `deferred` for the dispatcher thread, as
 * completing them runs user code.
 */
#include "codec.h"
#include "hub_internal.h"
#include "py_block.h"
#include "py_chunk.h"

/* ---- handing over ---- */

static enum shmrt_outcome outcome_of(const struct shmrt_task *task) {
	return task->outcome == SHMRT_TASK_VALUE	 ? SHMRT_OUTCOME_VALUE
	       : task->outcome == SHMRT_TASK_CANCELLED ? SHMRT_OUTCOME_CANCELLED
							: SHMRT_OUTCOME_EXCEPTION;
}

void shmrt_py_hub_free_task(ShmrtHub *self, struct shmrt_task *task) {
	PyObject *core = task->pool_object;
	task->pool_object = NULL;
	shmrt_hub_task_free(&self->hub, task);
	Py_XDECREF(core);
}

/* NULL without an exception: decoding it has to wait for somebody who asks. */
static PyObject *value_at_once(ShmrtHub *self, struct shmrt_task *task) {
	const struct shmrt_payload *result = &task->result;
	if (task->outcome != SHMRT_TASK_VALUE || task->items != 0 || result->bytes != result->local || result->block_count != 0 ||
	    !shmrt_body_is_single(result->bytes, result->size))
		return NULL;
	PyObject *value = shmrt_py_hub_decode_payload(self, &task->result);
	if (value == NULL)
		PyErr_Clear(); /* it comes again, for who asks */
	return value;
}

/* True: nobody needs the task any more. The caller frees it, after its last completion: its pool may end with it. */
static bool complete(ShmrtHub *self, struct shmrt_task *task) {
	PyObject *future = task->future;
	task->future = NULL;
	enum shmrt_outcome outcome = outcome_of(task);
	ShmrtPoolCore *core = task->pool_object;
	PyObject *name = NULL;
	if (core && core->worker_names && task->crash.worker < (uint32_t)PyList_GET_SIZE(core->worker_names))
		name = PyList_GET_ITEM(core->worker_names, task->crash.worker);
	uint32_t attempts = task->begun;
	Py_XINCREF(name);
	PyObject *value = value_at_once(self, task);
	bool spent = value != NULL || outcome == SHMRT_OUTCOME_CANCELLED;
	if (value != NULL)
		shmrt_future_complete_object(future, outcome, value, name, attempts);
	else
		shmrt_future_complete(future, outcome, spent ? NULL : task, name, attempts);
	Py_XDECREF(name);
	Py_DECREF(future);
	return spent;
}

/* After completions: what a thread has looked at before them and may wait for is another matter now. The hub told when the outcome
 * came, but the future was completed later, and whoever was woken may have been faster. */
static void tell_waiters(ShmrtHub *self) {
	if (self->waiters)
		shmrt_hub_tell(&self->hub);
}

Py_ssize_t shmrt_py_hub_apply(ShmrtHub *self, bool dispatcher) {
	Py_ssize_t count = 0;
	if (dispatcher && self->deferred) {
		while (self->deferred) {
			struct shmrt_task *task = self->deferred;
			self->deferred = task->next;
			if (self->deferred == NULL)
				self->deferred_end = &self->deferred;
			if (complete(self, task))
				shmrt_py_hub_free_task(self, task);
			count++;
		}
		tell_waiters(self);
	}
	if (atomic_load_explicit(&self->hub.completed_count, memory_order_acquire) == 0) /* H3: a hint */
		return count;
	struct shmrt_task *task = shmrt_hub_take_completed(&self->hub);
	bool deferred = false;
	/* Everything is put where it belongs before any callback can run: order is kept, nothing is in a local list. */
	struct shmrt_task *bare = NULL, **bare_end = &bare;
	while (task) {
		struct shmrt_task *next = task->next;
		task->next = NULL;
		if (shmrt_future_is_watched(task->future)) {
			*self->deferred_end = task;
			self->deferred_end = &task->next;
			deferred = true;
		} else {
			*bare_end = task;
			bare_end = &task->next;
		}
		task = next;
	}
	struct shmrt_task *spent = NULL;
	bool any = bare != NULL;
	while (bare) {
		struct shmrt_task *next = bare->next;
		if (complete(self, bare)) {
			bare->next = spent;
			spent = bare;
		}
		bare = next;
		count++;
	}
	if (any)
		tell_waiters(self);
	while (spent) {
		struct shmrt_task *next = spent->next;
		shmrt_py_hub_free_task(self, spent);
		spent = next;
	}
	if (deferred && !dispatcher)
		shmrt_hub__wake_dispatcher(&self->hub);
	else if (deferred)
		count += shmrt_py_hub_apply(self, true);
	return count;
}

/* ---- decoding ---- */

static const char *const outcome_names[] = {
	"pending", "value", "error", "cancelled", "crashed", "poison", "timeout", "expired", "broken", "lost",
};

PyObject *shmrt_py_hub_decode_payload(ShmrtHub *self, struct shmrt_payload *payload) {
	PyObject *buffers[SHMRT_MESSAGE_BLOCKS_MAX], *object = NULL;
	buffers[0] = NULL;
	uint16_t made = 0, count = payload->block_count;
	if (count > SHMRT_MESSAGE_BLOCKS_MAX)
		return shmrt_raise("SegmentError", "a message names %u blocks; at most %d are possible", count, SHMRT_MESSAGE_BLOCKS_MAX);
	for (; made < count; made++) {
		if (payload->copies && payload->copies[made])
			buffers[made] = PyByteArray_FromStringAndSize((char *)payload->copies[made], (Py_ssize_t)payload->blocks[made].size);
		else if ((buffers[made] = shmrt_py_block_came_back(self->arena, &payload->blocks[made])) == NULL)
			buffers[made] = shmrt_py_block_new(self->arena, &payload->blocks[made], SHMRT_BLOCK_HELD, self->hub.owner,
							   payload->blocks[made].flags & 1);
		if (buffers[made] == NULL)
			break;
	}
	if (made == count) {
		/* The Block objects free the blocks from here on; the copies are no longer needed. */
		object = shmrt_decode_message(payload->bytes, payload->size, payload->flags, buffers, count, true);
		if (payload->copies)
			for (uint16_t i = 0; i < count; i++)
				free(payload->copies[i]);
		free(payload->copies);
		payload->copies = NULL;
		payload->block_count = 0;
	} else
		for (uint16_t i = 0; i < made; i++)
			if (!(payload->copies && payload->copies[i]))
				shmrt_py_block_disown(buffers[i]);
	while (made)
		Py_DECREF(buffers[--made]);
	return object;
}

PyObject *shmrt_py_hub_unpack(ShmrtHub *self, struct shmrt_task *task, PyObject *packed, uint32_t attempts) {
	ShmrtPoolCore *core = task->pool_object;
	return PyObject_CallFunction(self->unpack_exception, "OOIiI", packed, core ? core->name : Py_None, task->crash.worker,
				     task->crash.pid, attempts);
}

PyObject *shmrt_py_hub_describe(ShmrtHub *self, struct shmrt_task *task, enum shmrt_task_outcome outcome,
				const struct shmrt_crash *crash, uint32_t attempts) {
	ShmrtPoolCore *core = task->pool_object;
	return PyObject_CallFunction(self->make_error, "s{sOsIsisisIsIsIsKsz}", outcome_names[outcome], "pool",
				     core ? core->name : Py_None, "worker", crash->worker, "pid", crash->pid, "wait_status",
				     crash->wait_status, "oom", crash->oom, "attempts", attempts, "kill_reason", crash->kill_reason,
				     "elapsed_ns", (unsigned long long)crash->elapsed_ns, "stack", crash->stack);
}

PyObject *shmrt_py_hub_decode(PyObject *hub, void *payload, enum shmrt_outcome Py_UNUSED(outcome)) {
	ShmrtHub *self = (ShmrtHub *)hub;
	struct shmrt_task *task = payload;
	if (task->outcome == SHMRT_TASK_VALUE)
		return task->items ? shmrt_py_chunk_decode(self, task) : shmrt_py_hub_decode_payload(self, &task->result);
	if (task->outcome != SHMRT_TASK_ERROR)
		return shmrt_py_hub_describe(self, task, task->outcome, &task->crash, task->begun);
	PyObject *packed = shmrt_py_hub_decode_payload(self, &task->result);
	PyObject *exception = packed ? shmrt_py_hub_unpack(self, task, packed, task->begun) : NULL;
	Py_XDECREF(packed);
	return exception;
}

void shmrt_py_hub_drop(PyObject *hub, void *payload) {
	ShmrtHub *self = (ShmrtHub *)hub;
	struct shmrt_task *task = payload;
	if (task == NULL)
		return;
	if (!shmrt_py_hub_is_ours(self))
		return; /* a forked child frees nothing that its parent owns */
	shmrt_py_hub_free_task(self, task);
}
