/* py_slots_look.c -- the methods of Slots that only look: one word, every word, or what the root asks of many slots.
 *
 * Others change these words meanwhile. A report is read word by word, each for itself; only the state (edge F2) and the
 * phase (edge F1) are read in the order that gives the words behind them a meaning.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_slots_internal.h"

PyObject *shmrt_py_slots_is_abandoned(SlotsObject *self, PyObject *index) {
	struct shmrt_slot *slot = shmrt_py_slots_at(self, index);
	return slot ? PyBool_FromLong(shmrt_slot_is_abandoned(slot)) : NULL;
}

PyObject *shmrt_py_slots_state(SlotsObject *self, PyObject *index) {
	struct shmrt_slot *slot = shmrt_py_slots_at(self, index);
	return slot ? PyLong_FromUnsignedLong(atomic_load_explicit(&slot->state, memory_order_acquire)) : NULL; /* F2 */
}

PyObject *shmrt_py_slots_epoch(SlotsObject *self, PyObject *index) {
	struct shmrt_slot *slot = shmrt_py_slots_at(self, index);
	return slot ? PyLong_FromUnsignedLong(atomic_load_explicit(&slot->epoch, memory_order_acquire)) : NULL; /* F2 */
}

PyObject *shmrt_py_slots_control_count(SlotsObject *self, PyObject *index) {
	struct shmrt_slot *slot = shmrt_py_slots_at(self, index);
	return slot ? PyLong_FromUnsignedLong(atomic_load_explicit(&slot->control_count, memory_order_acquire)) : NULL; /* C5 */
}

/* ---- a report ----------------------------------------------------------------------------------- */
static int put(PyObject *dict, const char *key, PyObject *value) {
	int result = value ? PyDict_SetItemString(dict, key, value) : -1;
	Py_XDECREF(value);
	return result;
}
static int put_unsigned(PyObject *dict, const char *key, uint64_t value) {
	return put(dict, key, PyLong_FromUnsignedLongLong(value));
}
static int put_signed(PyObject *dict, const char *key, int64_t value) {
	return put(dict, key, PyLong_FromLongLong(value));
}

#define LOAD(field) atomic_load_explicit(&slot->field, memory_order_relaxed) /* a report: each word for itself */

PyObject *shmrt_py_slots_info(SlotsObject *self, PyObject *index) {
	struct shmrt_slot *slot = shmrt_py_slots_at(self, index);
	PyObject *info = slot ? PyDict_New() : NULL;
	if (!info)
		return NULL;
	uint64_t phase = shmrt_slot_phase_get(slot); /* F1: before the task it belongs to */
	if (put_unsigned(info, "state", atomic_load_explicit(&slot->state, memory_order_acquire)) < 0 || /* F2 */
	    put_unsigned(info, "epoch", LOAD(epoch)) < 0 || put_signed(info, "pid", LOAD(pid)) < 0 ||
	    put_signed(info, "wait_status", LOAD(wait_status)) < 0 || put_unsigned(info, "owner", LOAD(owner)) < 0 ||
	    put_unsigned(info, "pool", LOAD(pool)) < 0 || put_unsigned(info, "worker", LOAD(worker)) < 0 ||
	    put_unsigned(info, "oom", LOAD(oom)) < 0 || put_unsigned(info, "spawn_ns", LOAD(spawn_ns)) < 0 ||
	    put_unsigned(info, "phase", phase & 0xFF) < 0 || put_unsigned(info, "phase_sequence", phase >> 8) < 0 ||
	    put_unsigned(info, "task_id", LOAD(task_id)) < 0 ||
	    put_unsigned(info, "task_start_ns", LOAD(task_start_ns)) < 0 ||
	    put_unsigned(info, "started", LOAD(started)) < 0 || put_unsigned(info, "done", LOAD(done)) < 0 ||
	    put_unsigned(info, "busy_ns", LOAD(busy_ns)) < 0 || put_unsigned(info, "logs_dropped", LOAD(logs_dropped)) < 0 ||
	    put_unsigned(info, "blocked_ns", LOAD(blocked_ns)) < 0 || put_unsigned(info, "beat_ns", LOAD(beat_ns)) < 0 ||
	    put_unsigned(info, "beats", LOAD(beats)) < 0 || put_unsigned(info, "main_cpu_ns", LOAD(main_cpu_ns)) < 0 ||
	    put_unsigned(info, "rss_bytes", LOAD(rss_bytes)) < 0 ||
	    put_unsigned(info, "kill_reason", LOAD(kill_reason)) < 0 ||
	    put_unsigned(info, "stop_requested", LOAD(stop_requested)) < 0 ||
	    put_unsigned(info, "kill_task_id", LOAD(kill_task_id)) < 0 ||
	    put_unsigned(info, "control_count", LOAD(control_count)) < 0) {
		Py_DECREF(info);
		return NULL;
	}
	return info;
}

/* ---- many slots ------------------------------------------------------------------------------- */

/* What the root asks of each slot after a wake: one call instead of one per slot and word. */
PyObject *shmrt_py_slots_scan(SlotsObject *self, PyObject *indexes) {
	PyObject *items = PySequence_Fast(indexes, "scan(indexes) takes a sequence of slot indexes");
	if (!items)
		return NULL;
	Py_ssize_t count = PySequence_Fast_GET_SIZE(items);
	PyObject *found = PyList_New(count);
	for (Py_ssize_t i = 0; found && i < count; i++) {
		struct shmrt_slot *slot = shmrt_py_slots_at(self, PySequence_Fast_GET_ITEM(items, i));
		PyObject *row = slot ? Py_BuildValue("(IO)", atomic_load_explicit(&slot->state, memory_order_acquire), /* F2 */
						     shmrt_slot_is_abandoned(slot) ? Py_True : Py_False)
				     : NULL;
		if (!row)
			Py_CLEAR(found);
		else
			PyList_SET_ITEM(found, i, row);
	}
	Py_DECREF(items);
	return found;
}
