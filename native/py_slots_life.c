/* py_slots_life.c -- the methods of Slots that change a slot: its life, its bell, its beat.
 *
 * Which process may call which is written at the function of slots.c behind each; nothing here checks it. A change that
 * the slot's present state forbids changes nothing and raises RuntimeError.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "py_slots_internal.h"

#include <unistd.h>

/* ---- one slot's life ---------------------------------------------------------------------------- */
PyObject *shmrt_py_slots_claim(SlotsObject *self, PyObject *const *args, Py_ssize_t count) {
	if (count != 3) {
		PyErr_SetString(PyExc_TypeError, "claim(index, pool, worker)");
		return NULL;
	}
	struct shmrt_slot *slot = shmrt_py_slots_at(self, args[0]);
	unsigned long pool = slot ? PyLong_AsUnsignedLong(args[1]) : 0;
	unsigned long worker = slot && !PyErr_Occurred() ? PyLong_AsUnsignedLong(args[2]) : 0;
	if (!slot || PyErr_Occurred())
		return NULL;
	int result = shmrt_slot_claim(slot, (uint32_t)pool, (uint32_t)worker, shmrt_now_ns());
	if (result != SHMRT_OK)
		return shmrt_py_slots_answer(result, slot, "claimed");
	return PyLong_FromUnsignedLong(atomic_load_explicit(&slot->epoch, memory_order_relaxed)); /* ours: just claimed */
}

PyObject *shmrt_py_slots_set_process(SlotsObject *self, PyObject *const *args, Py_ssize_t count) {
	if (count != 2) {
		PyErr_SetString(PyExc_TypeError, "set_process(index, pid)");
		return NULL;
	}
	struct shmrt_slot *slot = shmrt_py_slots_at(self, args[0]);
	long pid = slot ? PyLong_AsLong(args[1]) : 0;
	if (!slot || PyErr_Occurred())
		return NULL;
	uint32_t owner = pid == (long)getpid() ? shmrt_owner_self() : shmrt_owner_of((int32_t)pid);
	shmrt_slot_set_process(slot, (int32_t)pid, owner);
	Py_RETURN_NONE;
}

PyObject *shmrt_py_slots_hold_death_mutex(SlotsObject *self, PyObject *index) {
	struct shmrt_slot *slot = shmrt_py_slots_at(self, index);
	return slot ? shmrt_py_slots_answer(shmrt_slot_hold_death_mutex(slot), slot, "held") : NULL;
}

PyObject *shmrt_py_slots_ready(SlotsObject *self, PyObject *index) {
	struct shmrt_slot *slot = shmrt_py_slots_at(self, index);
	return slot ? shmrt_py_slots_answer(shmrt_slot_ready(slot), slot, "made ready") : NULL;
}

PyObject *shmrt_py_slots_gone(SlotsObject *self, PyObject *const *args, Py_ssize_t count) {
	if (count != 3) {
		PyErr_SetString(PyExc_TypeError, "gone(index, wait_status, oom)");
		return NULL;
	}
	struct shmrt_slot *slot = shmrt_py_slots_at(self, args[0]);
	long status = slot ? PyLong_AsLong(args[1]) : 0;
	int oom = slot && !PyErr_Occurred() ? PyObject_IsTrue(args[2]) : 0;
	if (!slot || oom < 0 || PyErr_Occurred())
		return NULL;
	return shmrt_py_slots_answer(shmrt_slot_gone(slot, (int32_t)status, oom), slot, "marked gone");
}

PyObject *shmrt_py_slots_gone_anyway(SlotsObject *self, PyObject *const *args, Py_ssize_t count) {
	if (count != 4) {
		PyErr_SetString(PyExc_TypeError, "gone_anyway(index, epoch, wait_status, oom)");
		return NULL;
	}
	struct shmrt_slot *slot = shmrt_py_slots_at(self, args[0]);
	unsigned long epoch = slot ? PyLong_AsUnsignedLong(args[1]) : 0;
	long status = slot && !PyErr_Occurred() ? PyLong_AsLong(args[2]) : 0;
	int oom = slot && !PyErr_Occurred() ? PyObject_IsTrue(args[3]) : 0;
	if (!slot || oom < 0 || PyErr_Occurred())
		return NULL;
	return PyBool_FromLong(shmrt_slot_gone_anyway(slot, (uint32_t)epoch, (int32_t)status, oom));
}

PyObject *shmrt_py_slots_free(SlotsObject *self, PyObject *index) {
	struct shmrt_slot *slot = shmrt_py_slots_at(self, index);
	return slot ? shmrt_py_slots_answer(shmrt_slot_free(slot), slot, "freed") : NULL;
}

PyObject *shmrt_py_slots_order_kill(SlotsObject *self, PyObject *const *args, Py_ssize_t count) {
	if (count < 2 || count > 3) {
		PyErr_SetString(PyExc_TypeError, "order_kill(index, reason, task_id=0)");
		return NULL;
	}
	struct shmrt_slot *slot = shmrt_py_slots_at(self, args[0]);
	long reason = slot ? PyLong_AsLong(args[1]) : 0;
	unsigned long long task = slot && count == 3 ? PyLong_AsUnsignedLongLong(args[2]) : 0;
	if (!slot || PyErr_Occurred())
		return NULL;
	if (reason <= SHMRT_KILL_NONE || reason > SHMRT_KILL_RESTART) {
		PyErr_Format(PyExc_ValueError, "reason=%ld must be one of the KILL_* constants", reason);
		return NULL;
	}
	return PyBool_FromLong(shmrt_slot_order_kill(slot, (enum shmrt_kill_reason)reason, task));
}

PyObject *shmrt_py_slots_request_stop(SlotsObject *self, PyObject *index) {
	struct shmrt_slot *slot = shmrt_py_slots_at(self, index);
	if (!slot)
		return NULL;
	atomic_store_explicit(&slot->stop_requested, 1, memory_order_release); /* B1: before the ring, which fences */
	shmrt_bell_ring(&slot->bell);
	Py_RETURN_NONE;
}

/* ---- bell and beat ------------------------------------------------------------------------------ */
PyObject *shmrt_py_slots_ring(SlotsObject *self, PyObject *index) {
	struct shmrt_slot *slot = shmrt_py_slots_at(self, index);
	return slot ? PyBool_FromLong(shmrt_bell_ring(&slot->bell)) : NULL;
}

PyObject *shmrt_py_slots_ring_all(SlotsObject *self, PyObject *unused) {
	(void)unused;
	if (self->control)
		shmrt_slots_ring_all(self->control);
	Py_RETURN_NONE;
}

/* By the root, after the message is in the process's socket; by the process itself, in its handler of TERM. */
PyObject *shmrt_py_slots_send_control(SlotsObject *self, PyObject *index) {
	struct shmrt_slot *slot = shmrt_py_slots_at(self, index);
	if (!slot)
		return NULL;
	/* C5: before the rings, which fence. */
	uint32_t count = atomic_fetch_add_explicit(&slot->control_count, 1, memory_order_release) + 1; /* C5 */
	shmrt_bell_ring(&slot->bell);
	return PyLong_FromUnsignedLong(count);
}

/* Sleeps on the slot's bell until it rings or `timeout_ns` passed; True when it rang. For simple loops
 * in Python: the caller looks again at what it waits for after each return. */
PyObject *shmrt_py_slots_park(SlotsObject *self, PyObject *const *args, Py_ssize_t count) {
	if (count != 2) {
		PyErr_SetString(PyExc_TypeError, "park(index, timeout_ns)");
		return NULL;
	}
	struct shmrt_slot *slot = shmrt_py_slots_at(self, args[0]);
	long long timeout = slot ? PyLong_AsLongLong(args[1]) : 0;
	if (!slot || PyErr_Occurred())
		return NULL;
	int result = SHMRT_OK;
	shmrt_bell_arm(&slot->bell);
	if (atomic_load_explicit(&slot->stop_requested, memory_order_acquire) == 0) { /* B1: the second look */
		Py_BEGIN_ALLOW_THREADS;
		result = shmrt_bell_sleep(&slot->bell, timeout < 0 ? SHMRT_FOREVER : timeout);
		Py_END_ALLOW_THREADS;
	}
	shmrt_bell_disarm(&slot->bell);
	if (result == SHMRT_INTERRUPTED && PyErr_CheckSignals() < 0)
		return NULL;
	return PyBool_FromLong(result != SHMRT_TIMEOUT);
}

PyObject *shmrt_py_slots_start_beat(SlotsObject *self, PyObject *const *args, Py_ssize_t count) {
	if (count != 3) {
		PyErr_SetString(PyExc_TypeError, "start_beat(index, root_pid, hub_slot)");
		return NULL;
	}
	struct shmrt_slot *slot = shmrt_py_slots_at(self, args[0]), *hub = slot ? shmrt_py_slots_at(self, args[2]) : NULL;
	long root = hub ? PyLong_AsLong(args[1]) : 0;
	if (!hub || PyErr_Occurred())
		return NULL;
	return shmrt_py_slots_answer(shmrt_beat_start(self->control, (uint32_t)(slot - self->control->slots), (int32_t)root,
						      (uint32_t)(hub - self->control->slots)), slot, "given a beat");
}
