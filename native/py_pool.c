/* py_pool.c -- PoolCore: one pool of the hub as Python sees it. The submit path is in py_submit.c. */
#include "py_chunk.h"

#include <sys/wait.h>

static PyObject *core_add_function(ShmrtPoolCore *self, PyObject *entry) {
	struct shmrt_encoder encoder = {0};
	struct shmrt_payload payload = {0};
	uint32_t number;
	if (shmrt_py_check_open(self) < 0)
		return NULL;
	int result = shmrt_encode(&encoder, entry);
	if (result == 0)
		result = shmrt_py_finish_payload(self, &encoder, &payload);
	shmrt_encoder_clear(&encoder);
	if (result < 0)
		return NULL;
	if (shmrt_hub_add_function(self->pool, &payload, &number) != SHMRT_OK)
		return PyErr_NoMemory();
	return PyLong_FromUnsignedLong(number);
}

static PyObject *core_drop_function(ShmrtPoolCore *self, PyObject *number) {
	unsigned long value = PyLong_AsUnsignedLong(number);
	if (PyErr_Occurred())
		return NULL;
	if (self->pool && value < self->pool->function_capacity) {
		if (self->last_function && self->last_number == value) {
			Py_CLEAR(self->last_function);
			Py_CLEAR(self->last_retry_on);
			Py_CLEAR(self->last_parts);
		}
		shmrt_hub_drop_function(self->pool, (uint32_t)value);
	}
	Py_RETURN_NONE;
}

/* ---- state ---- */

static PyObject *core_stats(ShmrtPoolCore *self, PyObject *Py_UNUSED(ignored)) {
	struct shmrt_hub_pool *pool = self->pool;
	if (pool == NULL)
		return PyDict_New();
	PyObject *stats = PyDict_New();
	if (stats == NULL)
		return NULL;
	bool moved;
	shmrt_hub_pump(pool->hub, &moved); /* what lies in result lanes, since nobody has asked for it, counts as done */
	pthread_mutex_lock(&pool->hub->mutex);
	uint64_t running = 0, in_lanes = 0, busy_ns = 0, blocked_ns = 0, logs_dropped = pool->log_dropped;
	for (uint32_t i = 0; i < pool->options.slot_count; i++) {
		struct shmrt_hub_worker *worker = &pool->workers[i];
		in_lanes += worker->lane.count;
		if (worker->epoch == 0)
			continue;
		uint64_t phase = shmrt_slot_phase_get(worker->slot) & 0xFF;
		running += worker->lane.count && phase >= SHMRT_PHASE_DECODE && phase <= SHMRT_PHASE_BLOCKED;
		busy_ns += atomic_load_explicit(&worker->slot->busy_ns, memory_order_relaxed);           /* statistics */
		blocked_ns += atomic_load_explicit(&worker->slot->blocked_ns, memory_order_relaxed);     /* statistics */
		logs_dropped += atomic_load_explicit(&worker->slot->logs_dropped, memory_order_relaxed); /* statistics */
	}
	const struct { const char *name; uint64_t value; } rows[] = {
		{"submitted", pool->submitted}, {"pending", pool->pending}, {"backlog", pool->backlog_count}, {"in_lanes", in_lanes},
		{"running", running}, {"completed", pool->completed}, {"failed", pool->failed}, {"cancelled", pool->cancelled},
		{"crashed", pool->crashed}, {"poisoned", pool->poisoned}, {"timed_out", pool->timed_out}, {"retried", pool->retried},
		{"requeued", pool->requeued}, {"stale_results", pool->stale}, {"restarts", pool->restarts},
		{"chaos_kills", pool->killed}, {"workers_ready", pool->ready_count}, {"logs_dropped", logs_dropped},
		{"expired", pool->expired}, {"pending_most", pool->pending_most},
		{"busy_ns", busy_ns + pool->buried_busy_ns}, {"blocked_ns", blocked_ns + pool->buried_blocked_ns},
	};
	pthread_mutex_unlock(&pool->hub->mutex);
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		PyObject *value = PyLong_FromUnsignedLongLong(rows[i].value);
		if (value == NULL || PyDict_SetItemString(stats, rows[i].name, value) < 0) {
			Py_XDECREF(value);
			Py_DECREF(stats);
			return NULL;
		}
		Py_DECREF(value);
	}
	return stats;
}

static PyObject *core_workers(ShmrtPoolCore *self, PyObject *Py_UNUSED(ignored)) {
	struct { uint32_t slot, epoch, worker; int32_t pid; bool ready, retiring; uint64_t lane, sent, phase; } rows[SHMRT_SLOTS_MAX];
	uint32_t count = 0;
	PyObject *list = PyList_New(0);
	if (list == NULL || self->pool == NULL)
		return list;
	bool moved;
	shmrt_hub_pump(self->pool->hub, &moved); /* as for stats */
	pthread_mutex_lock(&self->pool->hub->mutex);
	for (uint32_t i = 0; i < self->pool->options.slot_count && count < SHMRT_SLOTS_MAX; i++) {
		struct shmrt_hub_worker *worker = &self->pool->workers[i];
		if (worker->epoch == 0 || worker->abandoned)
			continue;
		rows[count].slot = self->pool->options.first_slot + i;
		rows[count].epoch = worker->epoch;
		rows[count].worker = worker->index;
		rows[count].pid = worker->pid;
		rows[count].ready = worker->ready;
		rows[count].retiring = worker->retiring;
		rows[count].lane = worker->lane.count;
		rows[count].sent = worker->sent;
		rows[count].phase = shmrt_slot_phase_get(worker->slot) & 0xFF;
		count++;
	}
	pthread_mutex_unlock(&self->pool->hub->mutex);
	for (uint32_t i = 0; i < count; i++) {
		PyObject *row = Py_BuildValue("{sIsIsIsisNsNsKsKsK}", "slot", rows[i].slot, "epoch", rows[i].epoch, "worker", rows[i].worker,
					      "pid", rows[i].pid, "ready", PyBool_FromLong(rows[i].ready), "retiring",
					      PyBool_FromLong(rows[i].retiring), "in_lane", (unsigned long long)rows[i].lane, "sent",
					      (unsigned long long)rows[i].sent, "phase", (unsigned long long)rows[i].phase);
		if (row == NULL || PyList_Append(list, row) < 0) {
			Py_XDECREF(row);
			Py_DECREF(list);
			return NULL;
		}
		Py_DECREF(row);
	}
	return list;
}

/* ---- ends ---- */

static PyObject *wait_until_few(ShmrtPoolCore *self, unsigned long long at_most, long long timeout_ns) {
	struct shmrt_hub *hub = &self->hub->hub;
	uint64_t end_ns = timeout_ns < 0 ? UINT64_MAX : shmrt_now_ns() + (uint64_t)timeout_ns;
	struct shmrt_hub_rest rest = {.outcomes = true};
	for (;;) {
		bool done, moved, late = false;
		rest.seen = atomic_load_explicit(&hub->finished, memory_order_acquire); /* H3: before the look, see park */
		shmrt_py_hub_apply(self->hub, false);
		Py_BEGIN_ALLOW_THREADS
		uint64_t next_ns = shmrt_hub_pump(hub, &moved), now_ns = shmrt_now_ns();
		pthread_mutex_lock(&hub->mutex);
		done = self->pool->pending <= at_most;
		pthread_mutex_unlock(&hub->mutex);
		late = now_ns >= end_ns;
		if (!done && !late && !moved) {
			uint64_t until_ns = now_ns + 20000000; /* for a signal that interrupts nothing */
			until_ns = next_ns < until_ns ? next_ns : until_ns;
			int slept = shmrt_hub_park(hub, end_ns < until_ns ? end_ns : until_ns, true, &rest);
			(void)slept; /* whatever ended it: look at everything */
		}
		Py_END_ALLOW_THREADS
		if (done)
			Py_RETURN_TRUE;
		if (PyErr_CheckSignals() < 0) /* the sleep was short: a signal that it missed is late, not lost */
			return NULL;
		if (late)
			Py_RETURN_FALSE;
		if (shmrt_py_hub_check(self->hub) < 0)
			return NULL;
	}
}

/* wait_pending(at_most, timeout_ns) -> bool: until no more than so many tasks are pending. Negative: forever. */
static PyObject *core_wait_pending(ShmrtPoolCore *self, PyObject *args) {
	unsigned long long at_most;
	long long timeout_ns;
	if (!PyArg_ParseTuple(args, "KL", &at_most, &timeout_ns) || shmrt_py_hub_check(self->hub) < 0)
		return NULL;
	if (self->pool == NULL)
		Py_RETURN_TRUE;
	self->waiters++; /* the pool stays until we are out, whoever removes it meanwhile */
	PyObject *answer = wait_until_few(self, at_most, timeout_ns);
	self->waiters--;
	return answer;
}

static PyObject *core_close(ShmrtPoolCore *self, PyObject *Py_UNUSED(ignored)) {
	if (self->pool) {
		pthread_mutex_lock(&self->pool->hub->mutex);
		self->pool->closed = true;
		pthread_mutex_unlock(&self->pool->hub->mutex);
		shmrt_hub_make_urgent(&self->hub->hub);
	}
	Py_RETURN_NONE;
}

static PyObject *core_fail_backlog(ShmrtPoolCore *self, PyObject *args) {
	int cancelled;
	if (!PyArg_ParseTuple(args, "p", &cancelled))
		return NULL;
	uint64_t failed = 0;
	if (self->pool)
		failed = shmrt_hub_fail_backlog(self->pool, cancelled ? SHMRT_TASK_CANCELLED : SHMRT_TASK_LOST);
	shmrt_py_hub_apply(self->hub, false);
	return PyLong_FromUnsignedLongLong(failed);
}

static PyObject *core_break(ShmrtPoolCore *self, PyObject *Py_UNUSED(ignored)) {
	if (self->pool)
		shmrt_hub_break_pool(self->pool);
	shmrt_py_hub_apply(self->hub, false);
	shmrt_bell_ring_always(&self->hub->control->slots[self->hub->hub.self_slot].bell);
	Py_RETURN_NONE;
}

static PyObject *core_pause(ShmrtPoolCore *self, PyObject *paused) {
	if (self->pool) {
		pthread_mutex_lock(&self->pool->hub->mutex);
		self->pool->paused = PyObject_IsTrue(paused);
		self->pool->full = false;
		pthread_mutex_unlock(&self->pool->hub->mutex);
		shmrt_hub_make_urgent(&self->hub->hub);
	}
	Py_RETURN_NONE;
}

/* True once no worker and no task is left and the pool is out of the hub. */
static PyObject *core_remove(ShmrtPoolCore *self, PyObject *Py_UNUSED(ignored)) {
	bool moved;
	if (self->pool == NULL)
		Py_RETURN_TRUE;
	shmrt_hub_pump(&self->hub->hub, &moved);
	shmrt_py_hub_apply(self->hub, false);
	if (self->waiters > 0 || self->pool == NULL) /* the second: applying ran user code, which may end the pool too */
		return PyBool_FromLong(self->pool == NULL);
	if (shmrt_hub_remove_pool(&self->hub->hub, self->pool) != SHMRT_OK)
		Py_RETURN_FALSE;
	self->pool = NULL;
	/* The table of functions refers back to us; this type takes no part in garbage collection. */
	Py_CLEAR(self->register_function);
	Py_CLEAR(self->last_function);
	Py_CLEAR(self->last_retry_on);
	Py_CLEAR(self->last_parts);
	Py_RETURN_TRUE;
}

/* resize(max_workers, keep_workers) */
static PyObject *core_resize(ShmrtPoolCore *self, PyObject *args) {
	unsigned int count, keep;
	if (!PyArg_ParseTuple(args, "II", &count, &keep))
		return NULL;
	if (self->pool && shmrt_hub_resize(self->pool, count, keep) != SHMRT_OK) {
		PyErr_Format(PyExc_ValueError, "a pool cannot be resized to %u workers: at most %u fit into its slots", count,
			     self->pool->options.slot_count);
		return NULL;
	}
	shmrt_hub_make_urgent(&self->hub->hub);
	Py_RETURN_NONE;
}

/* retire(slot, epoch): the hub asks for another, and stops this one when that is ready. False: it is not there. */
static PyObject *core_retire(ShmrtPoolCore *self, PyObject *args) {
	unsigned int slot, epoch;
	if (!PyArg_ParseTuple(args, "II", &slot, &epoch))
		return NULL;
	bool found = self->pool && shmrt_hub_retire(self->pool, slot, epoch) == SHMRT_OK;
	shmrt_hub_make_urgent(&self->hub->hub);
	return PyBool_FromLong(found);
}

/* ---- the type ---- */

static int core_init(ShmrtPoolCore *self, PyObject *args, PyObject *kwargs) {
	static char *names[] = {"hub", "name", "pool", "first_slot", "slot_count", "max_workers", "lanes_fd", "stacks_fd",
				"register_function", "timeout_ns", "max_attempts", "max_tasks", "max_rss", "max_age_ns", NULL};
	PyObject *hub, *register_function;
	struct shmrt_pool_options options = {0};
	long long timeout_ns;
	unsigned long long max_tasks, max_rss, max_age_ns;
	int lanes_fd;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OUIIIIiiOLIKKK", names, &hub, &self->name, &options.id, &options.first_slot,
					 &options.slot_count, &options.max_workers, &lanes_fd, &options.stacks_fd, &register_function, &timeout_ns,
					 &self->max_attempts, &max_tasks, &max_rss, &max_age_ns)) {
		self->name = NULL;
		return -1;
	}
	Py_INCREF(self->name);
	self->hub = (ShmrtHub *)Py_NewRef(hub);
	self->register_function = Py_NewRef(register_function);
	self->timeout_ns = timeout_ns < 0 ? SHMRT_FOREVER : timeout_ns;
	options.max_tasks_per_worker = max_tasks;
	options.max_rss_bytes = max_rss;
	options.max_age_ns = max_age_ns;
	if (shmrt_py_hub_check(self->hub) < 0)
		return -1;
	self->worker_names = PyList_New(0);
	for (uint32_t i = 0; self->worker_names && i < options.slot_count; i++) {
		PyObject *name = PyUnicode_FromFormat("%U/%u", self->name, i);
		if (name == NULL || PyList_Append(self->worker_names, name) < 0)
			return -1;
		Py_DECREF(name);
	}
	int result = shmrt_hub_add_pool(&self->hub->hub, &options, lanes_fd, &self->pool);
	if (result != SHMRT_OK) {
		shmrt_raise("SegmentError", "cannot take pool %U in (code %d): its lanes do not fit its slots, or more than %d pools are open",
			    self->name, result, SHMRT_HUB_POOLS_MAX);
		return -1;
	}
	uint64_t record_max = shmrt_lane_record_max(self->pool->task_capacity), references = SHMRT_MESSAGE_BLOCKS_MAX * sizeof(struct shmrt_block_reference);
	self->inline_max = record_max > 4 * references ? record_max - 64 - references : record_max / 2;
	return 0;
}

static void core_dealloc(ShmrtPoolCore *self) {
	PyTypeObject *type = Py_TYPE(self);
	/* A pool that was not removed stays in the hub until the hub ends: its workers may still write. */
	shmrt_encoder_clear(&self->encoder);
	Py_XDECREF(self->name);
	Py_XDECREF(self->worker_names);
	Py_XDECREF(self->register_function);
	Py_XDECREF(self->last_function);
	Py_XDECREF(self->last_retry_on);
	Py_XDECREF(self->last_parts);
	Py_XDECREF(self->hub);
	type->tp_free((PyObject *)self);
	Py_DECREF(type);
}

static PyMethodDef core_methods[] = {
	{"submit", (PyCFunction)(void (*)(void))shmrt_py_pool_submit, METH_FASTCALL | METH_KEYWORDS,
	 "submit($self, fn, /, *args, **kwargs)\n--\n\nSchedule fn(*args, **kwargs) in a worker; its Future."},
	{"submit_with", (PyCFunction)(void (*)(void))shmrt_py_pool_submit_with, METH_FASTCALL | METH_KEYWORDS, "submit() with options."},
	{"submit_chunk", (PyCFunction)(void (*)(void))shmrt_py_pool_submit_chunk, METH_FASTCALL, "Many items as one task (py_chunk.c)."},
	{"split", (PyCFunction)shmrt_py_pool_split, METH_O, "Let a chunk end with the items that were begun; how many, or -1."},
	{"add_function", (PyCFunction)core_add_function, METH_O, "Number of a (callable, retry_on) entry."},
	{"drop_function", (PyCFunction)core_drop_function, METH_O, "Forget a function once its last task is done."},
	{"stats", (PyCFunction)core_stats, METH_NOARGS, "Counters."},
	{"workers", (PyCFunction)core_workers, METH_NOARGS, "One dict per living worker."},
	{"wait_pending", (PyCFunction)core_wait_pending, METH_VARARGS, "Wait until at most so many tasks are pending."},
	{"close", (PyCFunction)core_close, METH_NOARGS, "Take no more tasks."},
	{"fail_backlog", (PyCFunction)core_fail_backlog, METH_VARARGS, "End every task that has not begun."},
	{"break_pool", (PyCFunction)core_break, METH_NOARGS, "The pool is broken."},
	{"pause", (PyCFunction)core_pause, METH_O, "Stop (True) or go on (False) dispatching."},
	{"remove", (PyCFunction)core_remove, METH_NOARGS, "Take the pool out of the hub; False while something is left."},
	{"resize", (PyCFunction)core_resize, METH_VARARGS, "Use so many workers at once, and end those above the second number."},
	{"retire", (PyCFunction)core_retire, METH_VARARGS, "Replace the worker in that slot and epoch, the new one first."},
	{NULL, NULL, 0, NULL},
};

static PyType_Slot core_slots[] = {
	{Py_tp_init, (void *)core_init},
	{Py_tp_new, (void *)PyType_GenericNew},
	{Py_tp_dealloc, (void *)core_dealloc},
	{Py_tp_methods, core_methods},
	{Py_tp_doc, "One pool of the hub."},
	{0, NULL},
};

static PyType_Spec core_spec = {"shmrt._native.PoolCore", sizeof(ShmrtPoolCore), 0, Py_TPFLAGS_DEFAULT, core_slots};

/* lanes_create(pair_count, task_capacity, result_capacity) -> fd of a fresh lane segment, both capacities powers of two */
static PyObject *lanes_create(PyObject *Py_UNUSED(module), PyObject *args) {
	unsigned int pairs;
	unsigned long long task_capacity, result_capacity;
	int fd;
	void *address;
	struct shmrt_shortage shortage;
	if (!PyArg_ParseTuple(args, "IKK", &pairs, &task_capacity, &result_capacity))
		return NULL;
	if (!shmrt_is_power_of_two(task_capacity) || !shmrt_is_power_of_two(result_capacity) || pairs == 0) {
		PyErr_SetString(PyExc_ValueError, "lane capacities must be powers of two, and there must be at least one pair");
		return NULL;
	}
	uint64_t pair_bytes = shmrt_lane_bytes(task_capacity) + shmrt_lane_bytes(result_capacity);
	uint64_t size = sizeof(struct shmrt_lanes) + pair_bytes * pairs;
	int result = shmrt_segment_create(SHMRT_SEGMENT_LANES, "shmrt-lanes", size, &fd, &address, &shortage);
	if (result == SHMRT_NO_SPACE)
		return shmrt_raise_shortage(&shortage);
	if (result != SHMRT_OK)
		return PyErr_SetFromErrno(PyExc_OSError);
	struct shmrt_lanes *lanes = address;
	lanes->pair_count = pairs;
	lanes->task_capacity = task_capacity;
	lanes->result_capacity = result_capacity;
	for (unsigned int i = 0; i < pairs; i++) {
		uint8_t *pair = (uint8_t *)lanes + sizeof(*lanes) + i * pair_bytes;
		shmrt_lane_format((struct shmrt_lane_shared *)(void *)pair, 0);
		shmrt_lane_format((struct shmrt_lane_shared *)(void *)(pair + shmrt_lane_bytes(task_capacity)), 0);
	}
	shmrt_segment_publish(address);
	shmrt_unmap(address, size);
	return PyLong_FromLong(fd);
}

static PyMethodDef module_methods[] = {
	{"lanes_create", lanes_create, METH_VARARGS, "Descriptor of a fresh lane segment."},
	{NULL, NULL, 0, NULL},
};

int shmrt_py_add_pool(PyObject *module) {
	PyObject *type = PyType_FromSpec(&core_spec);
	if (type == NULL || PyModule_AddObjectRef(module, "PoolCore", type) < 0) {
		Py_XDECREF(type);
		return -1;
	}
	Py_DECREF(type);
	static const struct { const char *name; int value; } notes[] = {
		{"NOTE_LOG", SHMRT_NOTE_LOG}, {"NOTE_EXIT", SHMRT_NOTE_EXIT}, {"NOTE_START_FAILED", SHMRT_NOTE_START_FAILED},
		{"NOTE_REPLACE", SHMRT_NOTE_REPLACE}, {"NOTE_GONE", SHMRT_NOTE_GONE}, {"NOTE_EXPIRED", SHMRT_NOTE_EXPIRED}, {"KILL_DOUBT", SHMRT_KILL_DOUBT},
	};
	for (size_t i = 0; i < sizeof(notes) / sizeof(notes[0]); i++)
		if (PyModule_AddIntConstant(module, notes[i].name, notes[i].value) < 0)
			return -1;
	return PyModule_AddFunctions(module, module_methods);
}
