/* py_worker.c -- WorkerLoop: what a worker process does all day.
 *
 * One loop, run by the worker's main thread: read a record, claim the task, decode, call, encode, publish, step on. What
 * happens to one task, and in which order others see it, is py_worker_task.c's.
 *
 * The lanes belong to the main thread; other threads publish log records only under the GIL, and nothing between
 * reserve and commit releases it.
 */
#include "py_slots_internal.h"
#include "py_worker.h"

#define SPIN_NS UINT64_C(5000) /* unless the pool says otherwise */

static bool has_slot(const WorkerLoop *self) {
	if (self->slot == NULL)
		PyErr_SetString(PyExc_RuntimeError, "this WorkerLoop has no slot: take() comes first");
	return self->slot != NULL;
}

/* ---- the loop ---- */

/* A caller that waits for each result sends the next task a few microseconds later: worth staying awake for, where another
 * CPU can run the caller meanwhile. */
static bool spin_for_task(WorkerLoop *self) {
	if (self->spin_ns == 0 || self->done == 0 || shmrt_usable_cpus() < 2)
		return false;
	uint64_t end_ns = shmrt_now_ns() + self->spin_ns;
	do {
		for (int i = 0; i < 8; i++) {
			if (!shmrt_lane_is_empty(&self->tasks))
				return true;
			shmrt_pause();
		}
	} while (shmrt_now_ns() < end_ns && !shmrt_worker_stop_wanted(self));
	return false;
}

static PyObject *loop_run(WorkerLoop *self, PyObject *Py_UNUSED(ignored)) {
	int result = 0;
	if (!has_slot(self))
		return NULL;
	shmrt_slot_phase_set(self->slot, SHMRT_PHASE_SPIN);
	shmrt_bell_ring(&self->control->slots[self->hub_slot].bell); /* ready: tasks may wait for us */
	while (result == 0 && !shmrt_worker_stop_wanted(self)) {
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
			if (result == 0 && shmrt_lane_is_empty(&self->tasks) && !shmrt_worker_stop_wanted(self))
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
			result = shmrt_worker_run_task(self, &header, body);
		else if (header.kind == SHMRT_RECORD_CHUNK)
			result = shmrt_worker_run_chunk(self, &header, body);
		else if (header.kind == SHMRT_RECORD_FUNCTION)
			result = shmrt_worker_learn_function(self, &header, body);
		if (result)
			break; /* head stays: whatever is undecided is decided by the hub */
		shmrt_lane_advance(&self->tasks, &header);
		shmrt_lane_release(&self->tasks);
		if (header.kind == SHMRT_RECORD_STOP)
			break;
		if (header.kind == SHMRT_RECORD_TASK || header.kind == SHMRT_RECORD_CHUNK)
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
	if (!has_slot(self))
		return NULL;
	self->stop_requested = true; /* looked at between two tasks */
	shmrt_bell_ring(&self->slot->bell);
	Py_RETURN_NONE;
}

/* ---- other records than results ---- */

static PyObject *loop_start_failed(WorkerLoop *self, PyObject *exception) {
	if (!has_slot(self))
		return NULL;
	PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
	if (shmrt_worker_publish_exception(self, SHMRT_RECORD_START_FAILED, 0, NULL, NULL) < 0)
		return NULL;
	shmrt_bell_ring(&self->control->slots[self->hub_slot].bell);
	Py_RETURN_NONE;
}

static PyObject *loop_exit_value(WorkerLoop *self, PyObject *value) {
	if (!has_slot(self) || shmrt_worker_publish_object(self, SHMRT_RECORD_EXIT, 0, 0, value, false) < 0)
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
	if (!has_slot(self))
		return NULL;
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
	static char *names[] = {"slots", "lanes_fd", "arena_fd", "options", NULL};
	PyObject *slots, *options = NULL;
	int lanes_fd, arena_fd;
	char reason[200];
	void *address;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Oii|O", names, &slots, &lanes_fd, &arena_fd, &options))
		return -1;
	struct shmrt_control *control = shmrt_py_slots_control(slots);
	if (control == NULL)
		return -1;
	self->control = control; /* where the beat thread and the death mutex have it, until the process ends */
	if (shmrt_segment_attach(lanes_fd, SHMRT_SEGMENT_LANES, &address, &self->lanes_size, reason, sizeof(reason)) != SHMRT_OK) {
		shmrt_raise("SegmentError", "cannot use the lanes of the pool: %s", reason);
		return -1;
	}
	self->lanes = address;
	self->slot_count = ((SlotsObject *)slots)->count;
	PyObject *hub_slot = options ? PyDict_GetItemString(options, "hub_slot") : NULL;
	self->hub_slot = hub_slot ? (uint32_t)PyLong_AsUnsignedLong(hub_slot) : SHMRT_SLOT_PROGRAM;
	if (PyErr_Occurred() || self->hub_slot >= self->slot_count) {
		PyErr_Format(PyExc_ValueError, "hub_slot=%R is no slot", hub_slot);
		return -1;
	}
	PyObject *spin_ns = options ? PyDict_GetItemString(options, "spin_ns") : NULL;
	self->spin_ns = spin_ns ? (uint64_t)PyLong_AsUnsignedLongLong(spin_ns) : SPIN_NS;
	if (PyErr_Occurred())
		return -1;
	self->arena = (ShmrtArena *)shmrt_py_arena_attach(arena_fd, 0);
	if (self->arena == NULL || shmrt_arena_set_default((PyObject *)self->arena) < 0)
		return -1;
	PyObject *packing = PyImport_ImportModule("shmrt.process.packing");
	if (packing == NULL)
		return -1;
	self->pack_exception = PyObject_GetAttrString(packing, "pack_exception");
	Py_DECREF(packing);
	if (self->pack_exception == NULL)
		return -1;
	return 0;
}

/* Apart from the rest, since a standby (ADR 12) learns last which slot it gets. */
static PyObject *loop_take(WorkerLoop *self, PyObject *args) {
	unsigned int slot_index, pair;
	if (!PyArg_ParseTuple(args, "II", &slot_index, &pair))
		return NULL;
	uint64_t task_capacity = self->lanes->task_capacity, result_capacity = self->lanes->result_capacity;
	uint64_t pair_bytes = shmrt_lane_bytes(task_capacity) + shmrt_lane_bytes(result_capacity);
	if (slot_index >= self->slot_count || pair >= self->lanes->pair_count ||
	    sizeof(struct shmrt_lanes) + (pair + 1) * pair_bytes > self->lanes_size)
		return shmrt_raise("SegmentError", "slot %u or lane pair %u is outside of the shared segments", slot_index, pair);
	uint8_t *lanes = (uint8_t *)self->lanes + sizeof(struct shmrt_lanes) + pair * pair_bytes;
	if (shmrt_lane_attach_consumer(&self->tasks, (struct shmrt_lane_shared *)(void *)lanes, task_capacity) != SHMRT_OK ||
	    shmrt_lane_attach_producer(&self->results,
				       (struct shmrt_lane_shared *)(void *)(lanes + shmrt_lane_bytes(task_capacity)),
				       result_capacity) != SHMRT_OK)
		return shmrt_raise("SegmentError", "lane pair %u is corrupt", pair);
	self->slot_index = slot_index;
	self->slot = &self->control->slots[slot_index];
	shmrt_slot_set_process(self->slot, (int32_t)getpid(), shmrt_owner_self()); /* the root says the same */
	Py_RETURN_NONE;
}

static void loop_dealloc(WorkerLoop *self) {
	PyTypeObject *type = Py_TYPE(self);
	for (uint32_t i = 0; i < self->function_count; i++)
		Py_XDECREF(self->functions[i]);
	PyMem_Free(self->functions);
	shmrt_encoder_clear(&self->encoder);
	Py_XDECREF(self->arena);
	Py_XDECREF(self->pack_exception);
	/* The lanes stay mapped, as the process table does. */
	type->tp_free((PyObject *)self);
	Py_DECREF(type);
}

static PyMethodDef loop_methods[] = {
	{"take", (PyCFunction)loop_take, METH_VARARGS, "take(slot, pair): whose work this is, before anything else."},
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
	{Py_tp_doc, "WorkerLoop(slots, lanes_fd, arena_fd, options=None)\n--\n\nThe dispatch loop of a worker process."},
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
