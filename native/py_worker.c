/* py_worker.c -- WorkerLoop: what a worker process does all day.
 *
 * One loop, run by the worker's main thread: read a record, claim the task, decode, call, encode, publish, step on.
 * Order of the stores that others rely on (slots.h F1, hub.h H1 and H2):
 *
 *   claim the record (1)                     died here: not begun, the hub puts it back
 *   task_id, start, phase DECODE             died from here to the commit: this task is the ambiguous one
 *   fence, look at kill_reason               set: nothing is begun; wait to be killed or for the order to be withdrawn
 *   phase RUN, call, phase ENCODE
 *   blocks SENT, result record, commit       died after: the result is delivered
 *   phase SPIN, head released                died before: the task is still in the lane, its id is resolved: dropped
 *
 * The lanes belong to the main thread; other threads publish log records only under the GIL, and nothing between
 * reserve and commit releases it.
 */
#include "py_worker.h"

#define SPIN_NS UINT64_C(5000)

/* ---- receiving ---- */

/* Python objects for the record's blocks. movable: it runs once only, so the blocks become ours and writable. */
static int receive_blocks(WorkerLoop *self, const struct shmrt_record_header *header, const uint8_t *body, bool movable,
			  PyObject **buffers) {
	const struct shmrt_block_reference *references = (const struct shmrt_block_reference *)(const void *)body;
	for (uint16_t i = 0; i < header->block_count; i++) {
		enum shmrt_block_state state = SHMRT_BLOCK_FREE;
		uint32_t generation = 0, owner = 0;
		struct shmrt_block block;
		buffers[i] = NULL;
		int result = shmrt_arena_resolve(&self->arena->arena, &references[i], &block);
		if (result == SHMRT_OK) {
			shmrt_arena_state(&self->arena->arena, references[i].block, &state, &generation, &owner);
			result = state == SHMRT_BLOCK_SENT ? SHMRT_OK : SHMRT_STALE;
		}
		if (result == SHMRT_OK && movable)
			result = shmrt_arena_move(&self->arena->arena, references[i].block, references[i].generation,
						  SHMRT_BLOCK_SENT, owner, SHMRT_BLOCK_HELD, self->arena->owner);
		if (result == SHMRT_OK) {
			buffers[i] = shmrt_py_block_new(self->arena, &references[i], movable ? SHMRT_BLOCK_HELD : SHMRT_BLOCK_SENT,
							movable ? self->arena->owner : owner,
							!movable || references[i].flags & 1);
			if (buffers[i] && !movable)
				shmrt_py_block_disown(buffers[i]);
		} else
			shmrt_raise("SegmentError", "a payload block of this message is not there any more (code %d)", result);
		if (buffers[i] == NULL) {
			while (i--)
				Py_DECREF(buffers[i]);
			return -1;
		}
	}
	return 0;
}

/* Views that outlive a task which may run again: their blocks become KEPT by us, so the sender does not re-use them. */
static void keep_or_leave(WorkerLoop *self, const struct shmrt_record_header *header, const uint8_t *body, PyObject **buffers) {
	const struct shmrt_block_reference *references = (const struct shmrt_block_reference *)(const void *)body;
	for (uint16_t i = 0; i < header->block_count; i++) {
		if (shmrt_py_block_exports(buffers[i]) == 0 && Py_REFCNT(buffers[i]) == 1)
			continue;
		enum shmrt_block_state state;
		uint32_t generation, owner;
		shmrt_arena_state(&self->arena->arena, references[i].block, &state, &generation, &owner);
		if (state == SHMRT_BLOCK_SENT &&
		    shmrt_arena_move(&self->arena->arena, references[i].block, references[i].generation, SHMRT_BLOCK_SENT, owner,
				     SHMRT_BLOCK_KEPT, self->arena->owner) == SHMRT_OK)
			shmrt_py_block_adopt(buffers[i], SHMRT_BLOCK_KEPT, self->arena->owner);
	}
}

static void release_buffers(PyObject **buffers, uint16_t count) {
	while (count)
		Py_DECREF(buffers[--count]);
}

static int learn_function(WorkerLoop *self, const struct shmrt_record_header *header, const uint8_t *body) {
	uint32_t number = header->function;
	if (number >= UINT32_C(1) << 24 || header->block_count > SHMRT_MESSAGE_BLOCKS_MAX)
		return 0;
	if (number >= self->function_count) {
		uint32_t count = number * 2 + 16;
		PyObject **functions = PyMem_Realloc(self->functions, count * sizeof(PyObject *));
		if (functions == NULL) {
			PyErr_NoMemory();
			return -1;
		}
		memset(functions + self->function_count, 0, (count - self->function_count) * sizeof(PyObject *));
		self->functions = functions;
		self->function_count = count;
	}
	/* Kept as it came: unpickling may import or run anything, which belongs to the first task that names it. */
	uint64_t size = (uint64_t)header->block_count * sizeof(struct shmrt_block_reference) + header->inline_size;
	PyObject *record = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(sizeof(*header) + size));
	if (record == NULL)
		return -1;
	memcpy(PyBytes_AS_STRING(record), header, sizeof(*header));
	memcpy(PyBytes_AS_STRING(record) + sizeof(*header), body, size);
	Py_XSETREF(self->functions[number], record);
	return 0;
}

/* The callable that another process found under (module, qualified name), with nothing to retry on. New reference. */
static PyObject *find_by_name(PyObject *name) {
	PyObject *found = PyImport_Import(PyTuple_GET_ITEM(name, 0)), *dot = PyUnicode_FromString(".");
	PyObject *parts = dot ? PyUnicode_Split(PyTuple_GET_ITEM(name, 1), dot, -1) : NULL;
	for (Py_ssize_t i = 0; found && parts && i < PyList_GET_SIZE(parts); i++)
		Py_SETREF(found, PyObject_GetAttr(found, PyList_GET_ITEM(parts, i)));
	PyObject *entry = found && parts ? PyTuple_Pack(2, found, Py_None) : NULL;
	Py_XDECREF(found);
	Py_XDECREF(parts);
	Py_XDECREF(dot);
	return entry;
}

/* The (callable, retry_on) of a function, or the exception that its unpickling raised; borrowed. Its blocks stay the
 * program's while a task that names it is not done. */
static PyObject *function_of(WorkerLoop *self, uint32_t number) {
	PyObject *entry = number < self->function_count ? self->functions[number] : NULL;
	if (entry == NULL)
		return shmrt_raise("SegmentError", "this worker was never sent function %u", number);
	if (!PyBytes_Check(entry))
		return entry;
	PyObject *buffers[SHMRT_MESSAGE_BLOCKS_MAX], *function = NULL;
	struct shmrt_record_header header;
	memcpy(&header, PyBytes_AS_STRING(entry), sizeof(header));
	const uint8_t *body = (const uint8_t *)PyBytes_AS_STRING(entry) + sizeof(header);
	Py_INCREF(entry);
	if (receive_blocks(self, &header, body, false, buffers) == 0) {
		uint64_t references = (uint64_t)header.block_count * sizeof(struct shmrt_block_reference);
		function = shmrt_decode_message(body + references, header.inline_size, header.flags, buffers, header.block_count, true);
		release_buffers(buffers, header.block_count);
	}
	Py_DECREF(entry);
	if (function && PyTuple_Check(function) && PyTuple_GET_SIZE(function) == 2 && PyUnicode_Check(PyTuple_GET_ITEM(function, 0)) &&
	    PyUnicode_Check(PyTuple_GET_ITEM(function, 1)))
		Py_SETREF(function, find_by_name(function));
	if (function == NULL || !PyTuple_Check(function) || PyTuple_GET_SIZE(function) != 2) {
		/* Each task that names it fails with this; the worker lives on. */
		Py_XDECREF(function);
		PyObject *type, *value, *traceback;
		if (!PyErr_Occurred())
			shmrt_raise("SegmentError", "corrupt function record");
		PyErr_Fetch(&type, &value, &traceback);
		PyErr_NormalizeException(&type, &value, &traceback);
		if (traceback)
			PyException_SetTraceback(value, traceback);
		Py_XDECREF(type);
		Py_XDECREF(traceback);
		function = value;
	}
	Py_XSETREF(self->functions[number], function);
	return function;
}

/* ---- one task ---- */

static PyObject *call_function(WorkerLoop *self, const struct shmrt_record_header *header, const uint8_t *body,
			       PyObject **buffers, PyObject **retry_on) {
	PyObject *entry = function_of(self, header->function);
	if (entry == NULL)
		return NULL;
	if (!PyTuple_Check(entry)) {
		PyErr_SetObject((PyObject *)Py_TYPE(entry), entry);
		return NULL;
	}
	*retry_on = PyTuple_GET_ITEM(entry, 1);
	PyObject *function = PyTuple_GET_ITEM(entry, 0), *args, *kwargs = NULL;
	uint64_t references = (uint64_t)header->block_count * sizeof(struct shmrt_block_reference);
	if (shmrt_decode_call(body + references, header->inline_size, header->flags, buffers, header->block_count, &args, &kwargs) < 0)
		return NULL;
	shmrt_slot_phase_set(self->slot, SHMRT_PHASE_RUN);
	PyObject *value = PyObject_Call(function, args, kwargs);
	Py_DECREF(args);
	Py_XDECREF(kwargs);
	return value;
}

static bool is_condemned(const WorkerLoop *self) {
	return atomic_load_explicit(&self->slot->kill_reason, memory_order_relaxed) != SHMRT_KILL_NONE; /* H2 */
}

/* 0: went on; 1: the worker must end (SystemExit); -1: exception that ends the loop. */
static int run_task(WorkerLoop *self, const struct shmrt_record_header *header, const uint8_t *body) {
	_Atomic uint32_t *claim = (_Atomic uint32_t *)&((struct shmrt_record_header *)(void *)(uintptr_t)body - 1)->claim;
	uint32_t offered = header->claim & 0x100;
	bool movable = offered == 0;
	if (!atomic_compare_exchange_strong_explicit(claim, &offered, offered | 1, memory_order_acq_rel, memory_order_relaxed)) /* H1 */
		return 0; /* taken back */
	uint64_t start_ns = shmrt_now_ns();
	if (self->ring_deferred && (self->done == 0 || self->busy_ns / self->done > SHMRT_RING_EVERY_NS / 2))
		shmrt_worker_ring_hub(self, true); /* a result must not wait behind a long task */
	shmrt_slot_task_begin(self->slot, header->id, start_ns);
	shmrt_slot_phase_set(self->slot, SHMRT_PHASE_DECODE);
	atomic_thread_fence(memory_order_seq_cst); /* H2 */
	while (is_condemned(self)) { /* H2 */
		/* Not begun, and it stays so until the order is carried out or withdrawn. A phase that came back before that would
		 * have the hub time this task, order again, and so on; and its time begins when it does. */
		shmrt_slot_phase_set(self->slot, SHMRT_PHASE_STOPPING);
		while (is_condemned(self)) {
			shmrt_bell_arm(&self->slot->bell);
			if (is_condemned(self) && shmrt_worker_sleep(self, INT64_C(5000000)) < 0)
				return -1;
		}
		start_ns = shmrt_now_ns();
		shmrt_slot_task_begin(self->slot, header->id, start_ns);
		shmrt_slot_phase_set(self->slot, SHMRT_PHASE_DECODE);
		atomic_thread_fence(memory_order_seq_cst); /* H2 */
	}
	self->current_task = header->id;
	atomic_store_explicit(&self->slot->started, ++self->started, memory_order_relaxed); /* ours alone */
	PyObject *buffers[SHMRT_MESSAGE_BLOCKS_MAX], *retry_on = NULL, *value = NULL;
	bool received = header->block_count <= SHMRT_MESSAGE_BLOCKS_MAX && receive_blocks(self, header, body, movable, buffers) == 0;
	if (received)
		value = call_function(self, header, body, buffers, &retry_on);
	else if (!PyErr_Occurred())
		shmrt_raise("SegmentError", "a message names %u blocks; at most %d are possible", header->block_count,
			    SHMRT_MESSAGE_BLOCKS_MAX);
	if (value == NULL && PyErr_ExceptionMatches(PyExc_SystemExit)) {
		if (received)
			release_buffers(buffers, header->block_count);
		return 1; /* the process ends with that code, and the task with it */
	}
	shmrt_slot_phase_set(self->slot, SHMRT_PHASE_ENCODE);
	if (received && !movable)
		keep_or_leave(self, header, body, buffers); /* before the commit: after it the sender re-uses what is SENT */
	int result;
	if (value) {
		result = shmrt_worker_publish_object(self, SHMRT_RECORD_RESULT, header->id, 0, value, false);
		if (result < 0 && PyErr_Occurred() && shmrt_lane_has_uncommitted(&self->results))
			shmrt_lane_abort(&self->results);
		if (result < 0 && PyErr_ExceptionMatches(PyExc_SystemExit)) {
			/* sys.exit in its reduction is sys.exit in the task: raised in the program it would end that. */
			PyObject *type, *error, *traceback;
			PyErr_Fetch(&type, &error, &traceback);
			Py_DECREF(value);
			release_buffers(buffers, header->block_count);
			PyErr_Restore(type, error, traceback);
			return 1;
		}
		if (result < 0)
			result = shmrt_worker_publish_exception(self, SHMRT_RECORD_ERROR, header->id, retry_on);
		Py_DECREF(value);
	} else
		result = shmrt_worker_publish_exception(self, SHMRT_RECORD_ERROR, header->id, retry_on);
	if (received)
		release_buffers(buffers, header->block_count);
	shmrt_slot_phase_set(self->slot, SHMRT_PHASE_SPIN);
	uint64_t end_ns = shmrt_now_ns();
	self->busy_ns += end_ns - start_ns;
	atomic_store_explicit(&self->slot->busy_ns, self->busy_ns, memory_order_relaxed); /* ours alone */
	atomic_store_explicit(&self->slot->done, ++self->done, memory_order_relaxed);     /* ours alone */
	self->current_task = 0;
	return result;
}

/* ---- the loop ---- */

/* TERM, or the word that its handler and the root store in the slot: looked at between two tasks. */
static bool stop_wanted(const WorkerLoop *self) {
	return self->stop_requested || atomic_load_explicit(&self->slot->stop_requested, memory_order_relaxed); /* a flag: its ring follows */
}

/* A caller that waits for each result sends the next task a few microseconds later: worth staying awake for, where another
 * CPU can run the caller meanwhile. */
static bool spin_for_task(WorkerLoop *self) {
	if (shmrt_usable_cpus() < 2 || self->done == 0)
		return false;
	uint64_t end_ns = shmrt_now_ns() + SPIN_NS;
	do {
		for (int i = 0; i < 8; i++) {
			if (!shmrt_lane_is_empty(&self->tasks))
				return true;
			shmrt_pause();
		}
	} while (shmrt_now_ns() < end_ns && !stop_wanted(self));
	return false;
}

static PyObject *loop_run(WorkerLoop *self, PyObject *Py_UNUSED(ignored)) {
	int result = 0;
	shmrt_slot_phase_set(self->slot, SHMRT_PHASE_SPIN);
	shmrt_bell_ring(&self->control->slots[self->hub_slot].bell); /* ready: tasks may wait for us */
	while (result == 0 && !stop_wanted(self)) {
		struct shmrt_record_header header;
		const uint8_t *body;
		if (PyErr_CheckSignals() < 0)
			return NULL;
		int peeked = shmrt_lane_peek(&self->tasks, &header, &body);
		if (peeked == SHMRT_EMPTY) {
			if (self->ring_deferred)
				shmrt_worker_ring_hub(self, true);
			if (spin_for_task(self))
				continue;
			shmrt_slot_phase_set(self->slot, SHMRT_PHASE_PARKED);
			shmrt_bell_arm(&self->slot->bell);
			result = PyErr_CheckSignals(); /* a handler that ran before we armed may have rung in vain */
			if (result == 0 && shmrt_lane_is_empty(&self->tasks) && !stop_wanted(self))
				result = shmrt_worker_sleep(self, SHMRT_FOREVER);
			shmrt_slot_phase_set(self->slot, SHMRT_PHASE_SPIN);
			shmrt_beat_wake();
			continue;
		}
		if (peeked != SHMRT_OK) {
			shmrt_raise("SegmentError", "the task lane of this worker is corrupt (code %d); the worker ends", peeked);
			return NULL;
		}
		if (header.kind == SHMRT_RECORD_TASK)
			result = run_task(self, &header, body);
		else if (header.kind == SHMRT_RECORD_FUNCTION)
			result = learn_function(self, &header, body);
		if (result)
			break; /* head stays: whatever is undecided is decided by the hub */
		shmrt_lane_advance(&self->tasks, &header);
		shmrt_lane_release(&self->tasks);
		if (header.kind == SHMRT_RECORD_STOP)
			break;
		if (header.kind == SHMRT_RECORD_TASK)
			shmrt_worker_ring_hub(self, shmrt_lane_is_empty(&self->tasks));
	}
	if (result == 0)
		shmrt_slot_phase_set(self->slot, SHMRT_PHASE_STOPPING);
	if (result)
		return NULL; /* SystemExit, or what a signal handler raised */
	shmrt_bell_ring(&self->control->slots[self->hub_slot].bell);
	Py_RETURN_NONE;
}

static PyObject *loop_request_stop(WorkerLoop *self, PyObject *Py_UNUSED(ignored)) {
	self->stop_requested = true; /* looked at between two tasks */
	shmrt_bell_ring(&self->slot->bell);
	Py_RETURN_NONE;
}

static PyObject *loop_start_failed(WorkerLoop *self, PyObject *exception) {
	PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
	if (shmrt_worker_publish_exception(self, SHMRT_RECORD_START_FAILED, 0, NULL) < 0)
		return NULL;
	shmrt_bell_ring(&self->control->slots[self->hub_slot].bell);
	Py_RETURN_NONE;
}

static PyObject *loop_exit_value(WorkerLoop *self, PyObject *value) {
	if (shmrt_worker_publish_object(self, SHMRT_RECORD_EXIT, 0, 0, value, false) < 0)
		return NULL;
	shmrt_bell_ring(&self->control->slots[self->hub_slot].bell);
	Py_RETURN_NONE;
}

/* Any thread; drops and counts instead of blocking, and leaves half of the lane to results. */
static PyObject *loop_log(WorkerLoop *self, PyObject *record) {
	struct shmrt_message message;
	struct shmrt_shortage shortage;
	bool sent = false;
	struct shmrt_encoder encoder = {0};
	if (shmrt_encode(&encoder, record) < 0) {
		shmrt_encoder_clear(&encoder);
		return NULL;
	}
	uint64_t room = shmrt_lane_record_max(self->results.capacity) / 2;
	if (shmrt_message_finish(&encoder, self->arena, room, &message, &shortage) == SHMRT_OK) {
		uint64_t body = message.inline_size + message.block_count * sizeof(struct shmrt_block_reference);
		if (shmrt_lane_free_bytes(&self->results) > self->results.capacity / 2 + 2 * shmrt_record_bytes(body))
			sent = shmrt_worker_publish(self, SHMRT_RECORD_LOG, 0, 0, &message) == 0;
		shmrt_message_clear(&message, self->arena, !sent);
	}
	PyErr_Clear();
	shmrt_encoder_clear(&encoder);
	if (sent)
		shmrt_worker_ring_hub(self, true);
	else
		atomic_store_explicit(&self->slot->logs_dropped, ++self->logs_dropped, memory_order_relaxed); /* ours alone */
	return PyBool_FromLong(sent);
}

/* ---- the type ---- */

static int loop_init(WorkerLoop *self, PyObject *args, PyObject *kwargs) {
	static char *names[] = {"slots", "slot", "lanes_fd", "pair", "arena_fd", "options", NULL};
	PyObject *slots, *options = NULL;
	unsigned int slot_index, pair;
	int lanes_fd, arena_fd;
	char reason[200];
	void *address;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OIiIi|O", names, &slots, &slot_index, &lanes_fd, &pair, &arena_fd, &options))
		return -1;
	PyObject *fd = PyObject_GetAttrString(slots, "fd");
	if (fd == NULL)
		return -1;
	int control_fd = (int)PyLong_AsLong(fd);
	Py_DECREF(fd);
	if (control_fd == -1 && PyErr_Occurred())
		return -1;
	if (shmrt_segment_attach(control_fd, SHMRT_SEGMENT_CONTROL, &address, &self->control_size, reason, sizeof(reason)) != SHMRT_OK) {
		shmrt_raise("SegmentError", "cannot use the control segment: %s", reason);
		return -1;
	}
	self->control = address;
	if (shmrt_segment_attach(lanes_fd, SHMRT_SEGMENT_LANES, &address, &self->lanes_size, reason, sizeof(reason)) != SHMRT_OK) {
		shmrt_raise("SegmentError", "cannot use the lanes of the pool: %s", reason);
		return -1;
	}
	self->lanes = address;
	uint64_t task_capacity = self->lanes->task_capacity, result_capacity = self->lanes->result_capacity;
	uint64_t pair_bytes = shmrt_lane_bytes(task_capacity) + shmrt_lane_bytes(result_capacity);
	if (shmrt_control_check(self->control, self->control_size) != SHMRT_OK || slot_index >= self->control->slot_count ||
	    pair >= self->lanes->pair_count || sizeof(struct shmrt_lanes) + (pair + 1) * pair_bytes > self->lanes_size) {
		shmrt_raise("SegmentError", "slot %u or lane pair %u is outside of the shared segments", slot_index, pair);
		return -1;
	}
	PyObject *hub_slot = options ? PyDict_GetItemString(options, "hub_slot") : NULL;
	self->hub_slot = hub_slot ? (uint32_t)PyLong_AsUnsignedLong(hub_slot) : SHMRT_SLOT_PROGRAM;
	if (PyErr_Occurred() || self->hub_slot >= self->control->slot_count) {
		PyErr_Format(PyExc_ValueError, "hub_slot=%R is no slot", hub_slot);
		return -1;
	}
	self->slot_index = slot_index;
	self->slot = &self->control->slots[slot_index];
	uint8_t *lanes = (uint8_t *)self->lanes + sizeof(struct shmrt_lanes) + pair * pair_bytes;
	if (shmrt_lane_attach_consumer(&self->tasks, (struct shmrt_lane_shared *)(void *)lanes, task_capacity) != SHMRT_OK ||
	    shmrt_lane_attach_producer(&self->results,
				       (struct shmrt_lane_shared *)(void *)(lanes + shmrt_lane_bytes(task_capacity)),
				       result_capacity) != SHMRT_OK) {
		shmrt_raise("SegmentError", "lane pair %u is corrupt", pair);
		return -1;
	}
	self->arena = (ShmrtArena *)shmrt_py_arena_attach(arena_fd, 0);
	if (self->arena == NULL || shmrt_arena_set_default((PyObject *)self->arena) < 0)
		return -1;
	shmrt_slot_set_process(self->slot, (int32_t)getpid(), shmrt_owner_self()); /* the root says the same */
	PyObject *remote = PyImport_ImportModule("shmrt.process.remote");
	if (remote == NULL)
		return -1;
	self->pack_exception = PyObject_GetAttrString(remote, "pack_exception");
	Py_DECREF(remote);
	if (self->pack_exception == NULL)
		return -1;
	return 0;
}

static void loop_dealloc(WorkerLoop *self) {
	PyTypeObject *type = Py_TYPE(self);
	for (uint32_t i = 0; i < self->function_count; i++)
		Py_XDECREF(self->functions[i]);
	PyMem_Free(self->functions);
	shmrt_encoder_clear(&self->encoder);
	Py_XDECREF(self->arena);
	Py_XDECREF(self->pack_exception);
	/* Control and lanes stay mapped: the beat thread and the death mutex live in them until the process ends. */
	type->tp_free((PyObject *)self);
	Py_DECREF(type);
}

static PyMethodDef loop_methods[] = {
	{"run", (PyCFunction)loop_run, METH_NOARGS, "Serve tasks until told to stop."},
	{"request_stop", (PyCFunction)loop_request_stop, METH_NOARGS, "Leave the loop before the next task."},
	{"start_failed", (PyCFunction)loop_start_failed, METH_O, "Tell the program why this worker cannot become ready."},
	{"exit_value", (PyCFunction)loop_exit_value, METH_O, "Tell the program what worker_exit returned."},
	{"log", (PyCFunction)loop_log, METH_O, "Send a log record; False if it was dropped (and counted)."},
	{NULL, NULL, 0, NULL},
};

static PyType_Slot loop_slots[] = {
	{Py_tp_init, (void *)loop_init},
	{Py_tp_new, (void *)PyType_GenericNew},
	{Py_tp_dealloc, (void *)loop_dealloc},
	{Py_tp_methods, loop_methods},
	{Py_tp_doc, "WorkerLoop(slots, slot, lanes_fd, pair, arena_fd, options=None)\n--\n\nThe dispatch loop of a worker process."},
	{0, NULL},
};

static PyType_Spec loop_spec = {"shmrt._native.WorkerLoop", sizeof(WorkerLoop), 0, Py_TPFLAGS_DEFAULT, loop_slots};

int shmrt_py_add_worker(PyObject *module) {
	PyObject *type = PyType_FromSpec(&loop_spec);
	if (type == NULL || PyModule_AddObjectRef(module, "WorkerLoop", type) < 0) {
		Py_XDECREF(type);
		return -1;
	}
	Py_DECREF(type);
	return 0;
}
