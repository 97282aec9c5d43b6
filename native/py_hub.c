/* py_hub.c -- Hub: the dispatcher as Python sees it.
 *
 * Who completes futures: any thread that holds the GIL may hand finished tasks over to bare futures
 * (no user code runs); watched futures and notes belong to the dispatcher thread, which sleeps in
 * `Hub.dispatch_once`. A finished task is the future's payload until somebody decodes it.
 */
#include "py_hub.h"

#include <unistd.h>

#define SPIN_NS UINT64_C(50000) /* about one sleeping wake: spinning longer than that never pays */
#define SIGNAL_NS UINT64_C(250000000) /* how late Ctrl-C may be noticed by a thread that waits for a result, at worst */

static _Atomic uint32_t fork_count; /* raised in every forked child */

static void count_fork(void) { atomic_fetch_add_explicit(&fork_count, 1, memory_order_relaxed); /* ours alone */ }

int shmrt_py_hub_check(ShmrtHub *self) {
	if (atomic_load_explicit(&fork_count, memory_order_relaxed) != self->forks) { /* ours alone */
		shmrt_raise("RuntimeDown", "this runtime belongs to process %d, and this is its forked child %d, which owns nothing of "
			    "it; make a Pool of its own here", (int)shmrt_owner_pid(self->hub.owner), (int)getpid());
		return -1;
	}
	if (self->closed) {
		shmrt_raise("RuntimeDown", "this runtime was stopped");
		return -1;
	}
	return 0;
}

/* ---- handing over ---- */

static enum shmrt_outcome outcome_of(const struct shmrt_task *task) {
	return task->outcome == SHMRT_TASK_VALUE	 ? SHMRT_OUTCOME_VALUE
	       : task->outcome == SHMRT_TASK_CANCELLED ? SHMRT_OUTCOME_CANCELLED
							: SHMRT_OUTCOME_EXCEPTION;
}

static void free_task(ShmrtHub *self, struct shmrt_task *task) {
	PyObject *core = task->pool_object;
	task->pool_object = NULL;
	shmrt_hub_task_free(&self->hub, task);
	Py_XDECREF(core);
}

static void complete(ShmrtHub *self, struct shmrt_task *task) {
	PyObject *future = task->future;
	task->future = NULL;
	enum shmrt_outcome outcome = outcome_of(task);
	ShmrtPoolCore *core = task->pool_object;
	PyObject *name = NULL;
	if (core && core->worker_names && task->crash.worker < (uint32_t)PyList_GET_SIZE(core->worker_names))
		name = PyList_GET_ITEM(core->worker_names, task->crash.worker);
	uint32_t attempts = task->begun;
	Py_XINCREF(name);
	if (outcome == SHMRT_OUTCOME_CANCELLED) {
		free_task(self, task);
		task = NULL;
	}
	shmrt_future_complete(future, outcome, task, name, attempts);
	Py_XDECREF(name);
	Py_DECREF(future);
}

Py_ssize_t shmrt_py_hub_apply(ShmrtHub *self, bool dispatcher) {
	Py_ssize_t count = 0;
	if (dispatcher) {
		while (self->deferred) {
			struct shmrt_task *task = self->deferred;
			self->deferred = task->next;
			if (self->deferred == NULL)
				self->deferred_end = &self->deferred;
			complete(self, task);
			count++;
		}
	}
	if (atomic_load_explicit(&self->hub.completed_count, memory_order_acquire) == 0) /* a hint */
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
	while (bare) {
		struct shmrt_task *next = bare->next;
		complete(self, bare);
		bare = next;
		count++;
	}
	if (deferred && !dispatcher)
		shmrt_hub__wake_dispatcher(&self->hub);
	else if (deferred)
		count += shmrt_py_hub_apply(self, true);
	return count;
}

/* ---- the origin of futures ---- */

static void origin_poll(PyObject *hub) {
	ShmrtHub *self = (ShmrtHub *)hub;
	if (atomic_load_explicit(&fork_count, memory_order_relaxed) != self->forks || self->closed) /* ours alone */
		return;
	if (atomic_load_explicit(&self->hub.completed_count, memory_order_relaxed) == 0) { /* a hint */
		bool moved;
		shmrt_hub_pump(&self->hub, &moved);
	}
	shmrt_py_hub_apply(self, false);
}

int shmrt_py_hub_wait(PyObject *hub, PyObject *future, int64_t timeout_ns) {
	ShmrtHub *self = (ShmrtHub *)hub;
	if (shmrt_py_hub_check(self) < 0)
		return -1;
	uint64_t start_ns = shmrt_now_ns(), now_ns = start_ns;
	uint64_t end_ns = timeout_ns == SHMRT_FOREVER || (uint64_t)timeout_ns > UINT64_MAX / 4 ? UINT64_MAX : start_ns + (uint64_t)timeout_ns;
	bool may_spin = shmrt_usable_cpus() >= 2;
	uint64_t look_again_ns = 0;
	int result = 0;
	self->waiters++;
	for (;;) {
		shmrt_py_hub_apply(self, false);
		if (shmrt_future_is_done(future)) {
			result = 1;
			break;
		}
		if (now_ns >= end_ns)
			break;
		Py_BEGIN_ALLOW_THREADS
		bool moved;
		uint64_t next_ns;
		do {
			next_ns = shmrt_hub_pump(&self->hub, &moved);
			now_ns = shmrt_now_ns();
			if (!moved && may_spin && now_ns - start_ns < SPIN_NS)
				for (int i = 0; i < 16; i++)
					shmrt_pause();
		} while (!moved && may_spin && now_ns - start_ns < SPIN_NS &&
			 atomic_load_explicit(&self->hub.completed_count, memory_order_relaxed) == 0); /* a hint */
		if (moved)
			look_again_ns = now_ns + SHMRT_RING_EVERY_NS;
		else if (atomic_load_explicit(&self->hub.completed_count, memory_order_relaxed) == 0) { /* a hint */
			uint64_t until_ns = next_ns < end_ns ? next_ns : end_ns;
			/* The first sleep is short: what was published lazily before the bell became urgent is looked for once. */
			if (look_again_ns == 0)
				look_again_ns = now_ns + SHMRT_RING_EVERY_NS;
			if (look_again_ns > now_ns && look_again_ns < until_ns)
				until_ns = look_again_ns;
			/* A signal that comes between the look for signals and the sleep, or to another thread, interrupts nothing. */
			if (until_ns > now_ns + SIGNAL_NS)
				until_ns = now_ns + SIGNAL_NS;
			int slept = shmrt_hub_park(&self->hub, until_ns, true);
			(void)slept; /* whatever ended it: look at everything */
			now_ns = shmrt_now_ns();
		}
		Py_END_ALLOW_THREADS
		if (PyErr_CheckSignals() < 0) {
			result = -1;
			break;
		}
		if (self->closed && !shmrt_future_is_done(future)) {
			result = shmrt_py_hub_check(self);
			break;
		}
	}
	self->waiters--;
	return result;
}

static int origin_cancel(PyObject *hub, uint64_t token) {
	ShmrtHub *self = (ShmrtHub *)hub;
	struct shmrt_task *task = shmrt_hub_cancel(&self->hub, token);
	if (task == NULL)
		return 0;
	PyObject *future = task->future;
	task->future = NULL;
	free_task(self, task);
	Py_XDECREF(future); /* the caller holds another reference */
	if (self->waiters) /* a thread that waits for this very future sleeps on the bell */
		shmrt_bell_ring_always(&self->control->slots[self->hub.self_slot].bell);
	return 1;
}

static int origin_kill(PyObject *hub, uint64_t token) {
	ShmrtHub *self = (ShmrtHub *)hub;
	int known = shmrt_hub_kill_task(&self->hub, token);
	shmrt_py_hub_apply(self, false);
	return known;
}

static void origin_watch(PyObject *hub, uint64_t token) { shmrt_hub_watch(&((ShmrtHub *)hub)->hub, token); }

static int origin_running(PyObject *hub, uint64_t token) { return shmrt_hub_is_running(&((ShmrtHub *)hub)->hub, token); }

static const char *const outcome_names[] = {
	"pending", "value", "error", "cancelled", "crashed", "poison", "timeout", "expired", "broken", "lost",
};

static PyObject *decode_payload(ShmrtHub *self, struct shmrt_payload *payload) {
	PyObject *buffers[SHMRT_MESSAGE_BLOCKS_MAX], *object = NULL;
	buffers[0] = NULL;
	uint16_t made = 0, count = payload->block_count;
	if (count > SHMRT_MESSAGE_BLOCKS_MAX)
		return shmrt_raise("SegmentError", "a message names %u blocks; at most %d are possible", count, SHMRT_MESSAGE_BLOCKS_MAX);
	for (; made < count; made++) {
		if (payload->copies && payload->copies[made])
			buffers[made] = PyByteArray_FromStringAndSize((char *)payload->copies[made], (Py_ssize_t)payload->blocks[made].size);
		else
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

static PyObject *origin_decode(PyObject *hub, void *payload, enum shmrt_outcome Py_UNUSED(outcome)) {
	ShmrtHub *self = (ShmrtHub *)hub;
	struct shmrt_task *task = payload;
	if (task->outcome == SHMRT_TASK_VALUE)
		return decode_payload(self, &task->result);
	ShmrtPoolCore *core = task->pool_object;
	PyObject *pool_name = core ? core->name : Py_None;
	if (task->outcome == SHMRT_TASK_ERROR) {
		PyObject *packed = decode_payload(self, &task->result);
		if (packed == NULL)
			return NULL;
		PyObject *exception = PyObject_CallFunction(self->unpack_exception, "OOIiI", packed, pool_name, task->crash.worker,
							    task->crash.pid, task->begun);
		Py_DECREF(packed);
		return exception;
	}
	return PyObject_CallFunction(self->make_error, "s{sOsIsisisIsIsIsKsz}", outcome_names[task->outcome], "pool", pool_name,
				     "worker", task->crash.worker, "pid", task->crash.pid, "wait_status", task->crash.wait_status,
				     "oom", task->crash.oom, "attempts", task->begun, "kill_reason", task->crash.kill_reason,
				     "elapsed_ns", (unsigned long long)task->crash.elapsed_ns, "stack", task->crash.stack);
}

static void origin_drop(PyObject *hub, void *payload) {
	ShmrtHub *self = (ShmrtHub *)hub;
	struct shmrt_task *task = payload;
	if (task == NULL)
		return;
	if (atomic_load_explicit(&fork_count, memory_order_relaxed) != self->forks) /* ours alone */
		return; /* a forked child frees nothing that its parent owns */
	free_task(self, task);
}

const struct shmrt_future_origin shmrt_hub_origin = {
	.poll = origin_poll,
	.wait = shmrt_py_hub_wait,
	.cancel = origin_cancel,
	.kill = origin_kill,
	.watch = origin_watch,
	.running = origin_running,
	.decode = origin_decode,
	.drop = origin_drop,
};

/* ---- the dispatcher thread ---- */

static PyObject *note_object(ShmrtHub *self, struct shmrt_note *note) {
	PyObject *value;
	if (note->payload.bytes) {
		value = decode_payload(self, &note->payload);
		if (value == NULL) { /* a note that cannot be decoded tells that */
			PyErr_Clear();
			value = Py_NewRef(Py_None);
		}
	} else
		value = Py_NewRef(Py_None);
	PyObject *object = Py_BuildValue("(iIIIIKN{sisisIsIsz})", (int)note->kind, note->pool, note->slot, note->epoch, note->worker,
					 (unsigned long long)note->task, value, "pid", note->crash.pid, "wait_status",
					 note->crash.wait_status, "oom", note->crash.oom, "kill_reason", note->crash.kill_reason, "stack",
					 note->crash.stack);
	shmrt_hub_note_free(&self->hub, note);
	return object;
}

/* Sleeps until there is something only this thread may do; does the completions and returns the notes. None: stopped. */
static PyObject *hub_dispatch_once(ShmrtHub *self, PyObject *Py_UNUSED(ignored)) {
	uint32_t seen = atomic_load_explicit(&self->hub.dispatcher_word, memory_order_acquire); /* futex: looked at before the lists */
	PyObject *notes = PyList_New(0);
	if (notes == NULL)
		return NULL;
	struct shmrt_note *note = shmrt_hub_take_notes(&self->hub);
	while (note) {
		struct shmrt_note *next = note->next;
		PyObject *object = note_object(self, note);
		if (object == NULL || PyList_Append(notes, object) < 0)
			PyErr_WriteUnraisable((PyObject *)self);
		Py_XDECREF(object);
		note = next;
	}
	if (PyList_GET_SIZE(notes))
		return notes;
	if (shmrt_py_hub_apply(self, true) > 0) {
		if (self->waiters)
			shmrt_bell_ring_always(&self->control->slots[self->hub.self_slot].bell);
		return notes;
	}
	if (atomic_load_explicit(&self->hub.stop, memory_order_acquire)) { /* set by stop_thread */
		Py_DECREF(notes);
		Py_RETURN_NONE;
	}
	Py_BEGIN_ALLOW_THREADS
	shmrt_hub_dispatcher_wait(&self->hub, seen);
	Py_END_ALLOW_THREADS
	return notes;
}

static PyObject *hub_start(ShmrtHub *self, PyObject *Py_UNUSED(ignored)) {
	int result;
	Py_BEGIN_ALLOW_THREADS
	result = shmrt_hub_start_thread(&self->hub);
	Py_END_ALLOW_THREADS
	if (result != SHMRT_OK)
		return PyErr_SetFromErrno(PyExc_OSError);
	Py_RETURN_NONE;
}

static PyObject *hub_stop(ShmrtHub *self, PyObject *Py_UNUSED(ignored)) {
	if (atomic_load_explicit(&fork_count, memory_order_relaxed) != self->forks || self->closed) /* ours alone */
		Py_RETURN_NONE;
	self->closed = true;
	Py_BEGIN_ALLOW_THREADS
	shmrt_hub_stop_thread(&self->hub);
	Py_END_ALLOW_THREADS
	shmrt_py_hub_apply(self, false);
	shmrt_bell_ring_always(&self->control->slots[self->hub.self_slot].bell); /* waiters find it closed */
	Py_RETURN_NONE;
}

static PyObject *hub_pump(ShmrtHub *self, PyObject *Py_UNUSED(ignored)) {
	bool moved;
	if (shmrt_py_hub_check(self) < 0)
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	shmrt_hub_pump(&self->hub, &moved);
	Py_END_ALLOW_THREADS
	shmrt_py_hub_apply(self, false);
	return PyBool_FromLong(moved);
}

static PyObject *hub_stats(ShmrtHub *self, PyObject *Py_UNUSED(ignored)) {
	struct shmrt_hub *hub = &self->hub;
	pthread_mutex_lock(&hub->mutex);
	PyObject *stats = Py_BuildValue("{sKsKsKsK}", "pumps", (unsigned long long)hub->pumps, "sleeps", (unsigned long long)hub->sleeps,
					"notes_dropped", (unsigned long long)hub->notes_dropped, "completed_waiting",
					(unsigned long long)hub->completed.count);
	pthread_mutex_unlock(&hub->mutex);
	return stats;
}

/* ---- the type ---- */

static int hub_init(ShmrtHub *self, PyObject *args, PyObject *kwargs) {
	static char *names[] = {"control_fd", "arena", "slot", NULL};
	int control_fd;
	PyObject *arena;
	char reason[200];
	void *address;
	unsigned int self_slot = SHMRT_SLOT_PROGRAM;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iO|I", names, &control_fd, &arena, &self_slot))
		return -1;
	if (shmrt_segment_attach(control_fd, SHMRT_SEGMENT_CONTROL, &address, &self->control_size, reason, sizeof(reason)) != SHMRT_OK) {
		shmrt_raise("SegmentError", "cannot use the control segment: %s", reason);
		return -1;
	}
	self->control = address;
	if (self_slot >= self->control->slot_count) {
		PyErr_Format(PyExc_ValueError, "there is no slot %u", self_slot);
		return -1;
	}
	self->arena = (ShmrtArena *)Py_NewRef(arena);
	self->deferred_end = &self->deferred;
	self->forks = atomic_load_explicit(&fork_count, memory_order_relaxed); /* ours alone */
	if (shmrt_hub_open(&self->hub, self->control, self_slot, &self->arena->arena) != SHMRT_OK) {
		PyErr_SetFromErrno(PyExc_OSError);
		return -1;
	}
	PyObject *remote = PyImport_ImportModule("shmrt.process.remote");
	if (remote == NULL)
		return -1;
	self->make_error = PyObject_GetAttrString(remote, "make_error");
	self->unpack_exception = PyObject_GetAttrString(remote, "unpack_exception");
	Py_DECREF(remote);
	return self->make_error && self->unpack_exception ? 0 : -1;
}

static void hub_dealloc(ShmrtHub *self) {
	PyTypeObject *type = Py_TYPE(self);
	bool ours = atomic_load_explicit(&fork_count, memory_order_relaxed) == self->forks; /* ours alone */
	if (ours && self->control) {
		shmrt_hub_stop_thread(&self->hub);
		shmrt_unmap(self->control, self->control_size);
		shmrt_hub_close(&self->hub);
	}
	Py_XDECREF(self->arena);
	Py_XDECREF(self->make_error);
	Py_XDECREF(self->unpack_exception);
	type->tp_free((PyObject *)self);
	Py_DECREF(type);
}

static PyMethodDef hub_methods[] = {
	{"start", (PyCFunction)hub_start, METH_NOARGS, "Start the hub's thread."},
	{"stop", (PyCFunction)hub_stop, METH_NOARGS, "Stop the hub's thread; waiting threads get RuntimeDown."},
	{"pump", (PyCFunction)hub_pump, METH_NOARGS, "Turn the wheel once; whether anything moved."},
	{"dispatch_once", (PyCFunction)hub_dispatch_once, METH_NOARGS, "The dispatcher thread's work: notes, or None once stopped."},
	{"stats", (PyCFunction)hub_stats, METH_NOARGS, "Counters of the hub."},
	{NULL, NULL, 0, NULL},
};

static PyType_Slot hub_slots[] = {
	{Py_tp_init, (void *)hub_init},
	{Py_tp_new, (void *)PyType_GenericNew},
	{Py_tp_dealloc, (void *)hub_dealloc},
	{Py_tp_methods, hub_methods},
	{Py_tp_doc, "Hub(control_fd, arena)\n--\n\nDispatches the tasks of every pool of this process."},
	{0, NULL},
};

static PyType_Spec hub_spec = {"shmrt._native.Hub", sizeof(ShmrtHub), 0, Py_TPFLAGS_DEFAULT, hub_slots};

int shmrt_py_add_hub(PyObject *module) {
	static bool registered;
	if (!registered) {
		pthread_atfork(NULL, NULL, count_fork);
		registered = true;
	}
	PyObject *type = PyType_FromSpec(&hub_spec);
	if (type == NULL || PyModule_AddObjectRef(module, "Hub", type) < 0) {
		Py_XDECREF(type);
		return -1;
	}
	Py_DECREF(type);
	return shmrt_py_add_pool(module);
}
